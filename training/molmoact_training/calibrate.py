"""`molmoact calibrate`: finds where a camera stands, from the end effector's positions and where it is in the pictures.

`page` writes a page with pictures to click on, `solve` makes a calibration of the clicks, or of what Molmo points at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from teleop_recorder.episode import find_episodes

from molmoact_training.calibration import Intrinsics
from molmoact_training.calibration_views import (
    FrameId,
    Track,
    Views,
    choose_frames,
    open_views,
    recorded_intrinsics,
)
from molmoact_training.camera_pose import LEAST_POINTS, THRESHOLD_PX, CameraPose, find_camera
from molmoact_training.clicking import Click, read_clicks, write_checking_page, write_clicking_page, write_clicks
from molmoact_training.errors import DatasetError, TrainingError
from molmoact_training.pointing import MolmoPointer
from molmoact_training.traces import PROMPT

FRAMES = 24
# Of the median error: more than a click can be off says that something else is wrong.
GOOD_PX = 5.0
GOOD, BAD = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (TrainingError, OSError) as error:
        print(f"molmoact calibrate: {error}", file=sys.stderr)
        return BAD
    except KeyboardInterrupt:
        return BAD


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="molmoact calibrate", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    page = commands.add_parser("page", help="write a page with pictures to click on")
    page.set_defaults(run=_page)
    page.add_argument("--out", type=Path, required=True, metavar="HTML", help="the page to write")
    solve = commands.add_parser("solve", help="make a calibration of clicks")
    solve.set_defaults(run=_solve)
    pixels = solve.add_mutually_exclusive_group(required=True)
    pixels.add_argument("--clicks", type=Path, metavar="FILE", help="JSON of the page, or CSV: episode,frame,x,y")
    pixels.add_argument("--detect", type=Path, metavar="MODEL", help="Molmo-7B-D-0924, which points instead")
    solve.add_argument("--pointing-python", type=Path, metavar="PYTHON", help="to run MODEL with [this one]")
    solve.add_argument("--out", type=Path, required=True, metavar="YAML", help="the calibration to write")
    solve.add_argument(
        "--intrinsics", type=Path, metavar="FILE|DIR", help="YAML, or recordings with camera_info [those of SOURCE]"
    )
    solve.add_argument(
        "--tool-offset", action="store_true", help="what was clicked is fixed to the end effector, but not its origin"
    )
    solve.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD_PX,
        metavar="PX",
        help="left out is what is more off [%(default)g]",
    )
    for command in (page, solve):
        command.add_argument("source", type=Path, help="a LeRobot dataset, a recording, or a directory of recordings")
        command.add_argument("--camera", default="front", metavar="NAME[=TOPIC]", help="[front]")
        command.add_argument("--arm", default="", metavar="NAME", help="left or right, of two")
        command.add_argument("--frames", type=int, default=FRAMES, metavar="N", help="how many pictures [%(default)d]")
    return parser


def _page(options: argparse.Namespace) -> int:
    views = open_views(options.source, options.camera, options.arm)
    chosen = choose_frames(views.tracks, _checked(options.frames))
    arm = f"the {options.arm} " if options.arm else "the "
    write_clicking_page(_looked_at(views, chosen), f"{arm}gripper in camera {options.camera}", options.out)
    print(f"{options.out}: {len(chosen)} pictures: open it in a browser, click, save clicks.json; then")
    print(f"molmoact calibrate solve {options.source} --camera {options.camera} --clicks clicks.json --out YAML")
    return GOOD


def _solve(options: argparse.Namespace) -> int:
    if not options.threshold > 0:
        raise DatasetError(f"--threshold {options.threshold}: expected pixels, more than 0")
    views = open_views(options.source, options.camera, options.arm)
    intrinsics = _intrinsics(options, views)
    clicks = read_clicks(options.clicks) if options.detect is None else _detect(options, views)
    poses = _poses(views.tracks, clicks)
    pictures = dict(_looked_at(views, [click.picture for click in clicks]))
    pixels = np.array([_in_size_of(intrinsics, click, pictures[click.picture]) for click in clicks])
    found = find_camera(*poses, pixels.reshape(-1, 2), intrinsics, options.threshold, options.tool_offset)
    found.calibration.save(options.out)
    page = options.out.with_suffix(".html")
    write_checking_page(_checks(found, clicks, poses, pictures), f"Calibration of {options.camera}", page)
    _report(options, found, clicks)
    print(f"{options.out}; look at {page}")
    return GOOD


def _checked(frames: int) -> int:
    if frames < LEAST_POINTS:
        raise DatasetError(f"--frames {frames}: expected at least {LEAST_POINTS}")
    return frames


def _intrinsics(options: argparse.Namespace, views: Views) -> Intrinsics:
    given = options.intrinsics
    if given is not None and given.is_file():
        return Intrinsics.from_file(given)
    if given is None:
        found, where = views.intrinsics(), options.source
    else:
        recordings = find_episodes(given)
        found, where = recorded_intrinsics(recordings[0], options.camera) if recordings else None, given
    if found is None:
        raise DatasetError(
            f"{where}: there is no camera_info of {options.camera}: pass --intrinsics with the recordings, or a YAML "
            "file with width, height, fx, fy, cx, cy and distortion"
        )
    return found


def _detect(options: argparse.Namespace, views: Views) -> list[Click]:
    """What the model points at, which is saved as well: a person may correct it."""
    chosen = choose_frames(views.tracks, _checked(options.frames))
    prompt = f"{PROMPT} on the {options.arm}" if options.arm else PROMPT
    clicks = []
    with MolmoPointer(options.detect, options.pointing_python) as pointer:
        for it, image in _looked_at(views, chosen):
            pixel = pointer(image, prompt)
            if pixel is not None:
                clicks.append(Click(it.episode, it.frame, *pixel))
    path = options.out.with_suffix(".clicks.json")
    write_clicks(clicks, path)
    print(f"{path}: the gripper is pointed at in {len(clicks)} of {len(chosen)} pictures")
    return clicks


def _looked_at(views: Views, wanted: Sequence[FrameId]) -> Iterator[tuple[FrameId, NDArray[np.uint8]]]:
    """(picture's name, RGB uint8 [H, W, 3]), one episode after the other."""
    for episode in sorted({it.episode for it in wanted}):
        frames = {it.frame for it in wanted if it.episode == episode}
        yield from ((FrameId(episode, frame), image) for frame, image in views.pictures(episode, frames))


def _poses(tracks: Sequence[Track], clicks: Sequence[Click]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions [n, 3] and quaternions [n, 4] at the clicks. Raises DatasetError for a picture that is not there."""
    by_episode = {track.episode: track for track in tracks}
    positions, quaternions = [], []
    for click in clicks:
        track = by_episode.get(click.episode)
        if track is None or click.frame >= len(track.positions):
            raise DatasetError(f"{click.picture}: was clicked, but there is no such picture")
        if not np.isfinite(track.positions[click.frame]).all():
            raise DatasetError(f"{click.picture}: the end effector's position is not known there")
        positions.append(track.positions[click.frame])
        quaternions.append(track.quaternions[click.frame])
    return np.array(positions).reshape(-1, 3), np.array(quaternions).reshape(-1, 4)


def _in_size_of(intrinsics: Intrinsics, click: Click, image: NDArray[np.uint8]) -> tuple[float, float]:
    """The click as a pixel of the size that the intrinsics are for: an export may have resized the pictures."""
    height, width = image.shape[:2]
    if not (-0.5 <= click.x <= width - 0.5 and -0.5 <= click.y <= height - 0.5):
        raise DatasetError(f"{click.picture}: ({click.x:g}, {click.y:g}) is outside its {width}x{height} pixels")
    return (
        (click.x + 0.5) * intrinsics.width / width - 0.5,
        (click.y + 0.5) * intrinsics.height / height - 0.5,
    )


def _checks(
    found: CameraPose,
    clicks: Sequence[Click],
    poses: tuple[NDArray[np.float64], NDArray[np.float64]],
    pictures: Mapping[FrameId, NDArray[np.uint8]],
) -> Iterator[tuple[Click, NDArray[np.float64], bool, NDArray[np.uint8]]]:
    points = found.points(*poses)
    for click, point, fits in zip(clicks, points, found.fits, strict=True):
        image = pictures[click.picture]
        resized = found.calibration.resized(image.shape[1], image.shape[0])
        yield click, resized.project(point[None])[0], bool(fits), image


def _report(options: argparse.Namespace, found: CameraPose, clicks: Sequence[Click]) -> None:
    errors = found.errors[found.fits]
    x, y, z = found.calibration.position
    print(
        f"{options.camera}: {found.fits.sum()} of {len(clicks)} points agree, reprojection error median "
        f"{np.median(errors):.2f} px, max {errors.max():.2f} px; camera at {x:.3f} {y:.3f} {z:.3f} m, sure to "
        f"{1000 * found.position_sd:.1f} mm and {np.rad2deg(found.rotation_sd):.2f} degrees"
    )
    if options.tool_offset:
        print("clicked is {:.1f} {:.1f} {:.1f} mm from the end effector".format(*(1000 * v for v in found.tool_offset)))
    for click, error, fits in zip(clicks, found.errors, found.fits, strict=True):
        if not fits:
            print(f"left out: {click.picture}: {error:.1f} px off")
    if np.median(errors) > GOOD_PX:
        print(f"note: a median of more than {GOOD_PX:g} px: look at intrinsics, clocks, and which arm it is")
