"""Pixels of the end effector that a person clicked: the page to click on, and the files that come of it."""

from __future__ import annotations

import base64
import csv
import html
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from molmoact_training.annotated_dataset import encode_image
from molmoact_training.calibration_views import FrameId
from molmoact_training.errors import DatasetError

FIELDS = ("episode", "frame", "x", "y")
CLICKED, PROJECTED = (255, 200, 0), (0, 220, 255)  # RGB
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem } figure { margin: 0 0 2rem; display: inline-block }
img { width: 640px; display: block } .clicking { position: relative; display: inline-block; cursor: crosshair }
.clicking img { width: min(960px, 95vw) } .mark { position: absolute; width: 21px; height: 21px;
  margin: -11px 0 0 -11px; pointer-events: none; background: linear-gradient(#fc0, #fc0) 50% / 1px 100% no-repeat,
  linear-gradient(#fc0, #fc0) 50% / 100% 1px no-repeat }
button { font: inherit; padding: .3rem .8rem } .small { color: #666 }
"""
SCRIPT = """
const clicks = new Map();
let shown = 0;
const byId = id => document.getElementById(id);
// (0, 0) is the centre of the first pixel, as in sensor_msgs/CameraInfo.
function toPixel(x, y, box, size) {
  return [x / box[0] * size[0] - 0.5, y / box[1] * size[1] - 0.5].map(v => Math.round(v * 100) / 100);
}
function asJson() {
  return JSON.stringify([...clicks].sort((a, b) => a[0] - b[0]).map(([i, [x, y]]) =>
    ({episode: FRAMES[i].episode, frame: FRAMES[i].frame, x, y})), null, 1);
}
function show(index) {
  shown = Math.max(0, Math.min(FRAMES.length - 1, index));
  const frame = FRAMES[shown], image = byId("image");
  image.src = "data:image/jpeg;base64," + frame.image;
  byId("title").textContent = `${shown + 1} of ${FRAMES.length}: episode ${frame.episode}, frame ${frame.frame}`;
  byId("count").textContent = `${clicks.size} clicked`;
  const click = clicks.get(shown), mark = byId("mark");
  mark.hidden = !click;
  if (click) {
    mark.style.left = `${(click[0] + 0.5) / frame.width * 100}%`;
    mark.style.top = `${(click[1] + 0.5) / frame.height * 100}%`;
  }
}
byId("image").addEventListener("click", event => {
  const image = byId("image"), frame = FRAMES[shown];
  clicks.set(shown, toPixel(event.offsetX, event.offsetY, [image.clientWidth, image.clientHeight],
    [frame.width, frame.height]));
  show(shown);
});
byId("before").addEventListener("click", () => show(shown - 1));
byId("next").addEventListener("click", () => show(shown + 1));
byId("clear").addEventListener("click", () => { clicks.delete(shown); show(shown); });
byId("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([asJson()], {type: "application/json"}));
  link.download = "clicks.json";
  link.click();
});
document.addEventListener("keydown", event => {
  const does = {ArrowLeft: "before", ArrowRight: "next", Delete: "clear"}[event.key];
  if (does) byId(does).click();
});
show(0);
"""


class Click(NamedTuple):
    """Where the end effector is in a picture; pixels, (0, 0) is the centre of the first one."""

    episode: int
    frame: int
    x: float
    y: float

    @property
    def picture(self) -> FrameId:
        return FrameId(self.episode, self.frame)


def read_clicks(path: Path) -> list[Click]:
    """Of a JSON file [{"episode": 0, "frame": 3, "x": 1.5, "y": 2}, ...] or a CSV file with these columns.

    Raises DatasetError naming the file and the entry at fault.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(text.splitlines())) if path.suffix == ".csv" else json.loads(text)
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(f"{path}: not readable as clicks: {error}") from error
    if not isinstance(rows, list):
        raise DatasetError(f"{path}: expected a list of clicks with {', '.join(FIELDS)}")
    clicks = [_click(row, f"{path}: click {number}") for number, row in enumerate(rows, 1)]
    pictures = [click.picture for click in clicks]
    for picture in pictures:
        if pictures.count(picture) > 1:
            raise DatasetError(f"{path}: {picture} is clicked more than once")
    return clicks


def write_clicks(clicks: Sequence[Click], path: Path) -> None:
    """What `read_clicks` reads, as JSON."""
    path.write_text(json.dumps([click._asdict() for click in clicks], indent=1), encoding="utf-8")


def write_clicking_page(frames: Iterable[tuple[FrameId, NDArray[np.uint8]]], what: str, path: Path) -> None:
    """One file, without a server: shows the pictures RGB uint8 [H, W, 3], and saves what is clicked as clicks.json."""
    entries = [
        {
            "episode": it.episode,
            "frame": it.frame,
            "width": image.shape[1],
            "height": image.shape[0],
            "image": base64.b64encode(encode_image(image)).decode(),
        }
        for it, image in frames
    ]
    title = html.escape(f"Click {what}")
    path.write_text(
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>\n"
        f"<h1>{title}</h1>\n<p>Between the fingertips, where the end effector's frame is. Leave out pictures in which "
        "it cannot be seen. Arrow keys go on and back, Delete takes a click away.</p>\n"
        "<p><button id=before>back</button> <button id=next>on</button> <button id=clear>no click here</button> "
        "<button id=save>save clicks.json</button> <span id=count class=small></span></p>\n<p id=title></p>\n"
        "<div class=clicking><img id=image alt='picture to click on'><span id=mark class=mark hidden></span></div>\n"
        f"<script>\nconst FRAMES = {json.dumps(entries)};\n{SCRIPT}</script>\n</html>\n",
        encoding="utf-8",
    )


def write_checking_page(
    frames: Iterable[tuple[Click, NDArray[np.float64], bool, NDArray[np.uint8]]], title: str, path: Path
) -> None:
    """One file with, for each click, its picture RGB uint8 [H, W, 3]: the click, where it should have been (pixel [2]),
    and whether it was used.
    """
    figures = []
    for click, expected, fits, image in frames:
        off = float(np.hypot(expected[0] - click.x, expected[1] - click.y))
        drawn = image.copy()
        cv2.drawMarker(drawn, _rounded((click.x, click.y)), CLICKED, cv2.MARKER_CROSS, 15, 1)
        if np.isfinite(off):
            cv2.circle(drawn, _rounded(expected), 8, PROJECTED, 1, cv2.LINE_AA)
        data = base64.b64encode(encode_image(drawn)).decode()
        figures.append(
            f"<figure><img src='data:image/jpeg;base64,{data}' alt=''><figcaption>{click.picture}: {off:.1f} px"
            f"{'' if fits else ' <b>left out</b>'}</figcaption></figure>"
        )
    shown = html.escape(title)
    path.write_text(
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{shown}</title><style>{STYLE}</style>\n"
        f"<h1>{shown}</h1>\n<p class=small>Cross: what was clicked. Circle: where the calibration puts it.</p>\n"
        + "\n".join(figures)
        + "\n</html>\n",
        encoding="utf-8",
    )


def _rounded(pixel: Iterable[float]) -> tuple[int, int]:
    # Drawing far outside the picture overflows.
    x, y = (int(np.clip(round(value), -10000, 10000)) for value in pixel)
    return x, y


def _click(row: Any, where: str) -> Click:
    if not isinstance(row, dict):
        raise DatasetError(f"{where}: {row!r}, expected {', '.join(FIELDS)}")
    values = []
    for name in FIELDS:
        try:
            value = float(row[name])
            whole = name in ("x", "y") or (value.is_integer() and value >= 0)
            if isinstance(row[name], bool) or not math.isfinite(value) or not whole:
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):
            kind = "a number of pixels" if name in ("x", "y") else "a number from 0"
            raise DatasetError(f"{where}: {name} is {row.get(name)!r}, expected {kind}") from None
        values.append(value)
    return Click(int(values[0]), int(values[1]), values[2], values[3])
