"""The annotated dataset: what annotation writes and training reads, one row for each look at a scene.

    DIR/frames-00000.arrow ...   rows of SCHEMA in Arrow IPC files, which are mapped into memory, not read
    DIR/dataset_statistics.json  action statistics in the release's schema, {unnorm_key: {"action": ...}}
    DIR/embodiment.yaml          the conventions of the actions
    DIR/annotation.json          every setting it was made with, and how many frames and episodes there are

A shard appears under its name only when it is whole, so that what was interrupted can go on.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from molmoact_policy.actions import ActionStatistics, statistics_of
from molmoact_policy.embodiment import EMBODIMENT_FILE, ROW, Embodiment
from numpy.typing import NDArray
from PIL import Image

from molmoact_training.errors import DatasetError

STATISTICS_FILE = "dataset_statistics.json"
ANNOTATION_FILE = "annotation.json"
ALLOW_CONSTANT = "allow_constant"  # setting: some dimensions of the actions are meant never to change
JPEG = {"quality": 95, "subsampling": 0}

POINT = pa.struct(
    [
        pa.field("object", pa.string(), nullable=False),
        pa.field("image", pa.uint8(), nullable=False),
        pa.field("x", pa.uint8(), nullable=False),
        pa.field("y", pa.uint8(), nullable=False),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("episode", pa.int64(), nullable=False),
        pa.field("frame", pa.int64(), nullable=False),  # within the episode
        pa.field("instruction", pa.string(), nullable=False),
        pa.field("images", pa.list_(pa.binary()), nullable=False),  # JPEG or PNG, one per camera in the order of use
        pa.field("actions", pa.list_(pa.float32()), nullable=False),  # [rows * D], rows from this frame on
        pa.field("depth_codes", pa.list_(pa.uint8())),  # [100] row by row; null: not annotated
        pa.field("traces", pa.list_(pa.list_(pa.uint8()))),  # per arm [x, y, x, y, ...] in 0..255; null: not annotated
        pa.field("points", pa.list_(POINT)),  # of what is seen in the images; null: not annotated
        # Whether the traces and actions are not those of the instruction: only to be shown with the trace drawn.
        pa.field("steered", pa.bool_(), nullable=False),
    ]
)


class Point(NamedTuple):
    """Where the middle of an object is: x right and y down in 0..255 across image number `image`."""

    object: str  # as it is spoken of: "red cube"
    image: int
    x: int
    y: int


@dataclass(frozen=True)
class Frame:
    """One look at a scene, with what should be said and done about it.

    images: uint8 RGB [H, W, 3] per camera; instruction: the task in words; actions: float32 [rows, D] in the dataset's
    units, from this frame on; depth_codes: uint8 [100] of the first image, None if not annotated; traces: for each arm
    uint8 [1..5, 2], x right and y down in 0..255 across the first image, None if not annotated; points: of the objects
    that are seen in the images, None if not annotated; steered: the traces and actions follow another path than the
    instruction asks for, so that only the steering prompt may show them.
    """

    episode: int
    frame: int
    instruction: str
    images: list[NDArray[np.uint8]]
    actions: NDArray[np.float32]
    depth_codes: NDArray[np.uint8] | None = None
    traces: list[NDArray[np.uint8]] | None = None
    points: list[Point] | None = None
    steered: bool = False


class AnnotatedDataset:
    """Reads a directory of the layout above; frames are decoded when they are asked for. Safe to share by fork."""

    def __init__(self, directory: Path) -> None:
        """Raises DatasetError when a file is missing, not readable, or of another schema."""
        self.directory = directory
        paths = sorted(directory.glob("frames-*.arrow"))
        if not paths:
            raise DatasetError(f"{directory}: no frames-*.arrow: expected a directory `molmoact annotate` wrote")
        self._shards = [_read_shard(path) for path in paths]
        self._starts = np.cumsum([0, *(shard.num_rows for shard in self._shards)])
        self._table = pa.concat_tables(self._shards)
        self.settings: dict[str, Any] = _read_json(directory / ANNOTATION_FILE)
        self.norm_stats: dict[str, Any] = _read_json(directory / STATISTICS_FILE)
        self.statistics = ActionStatistics.from_norm_stats(self.norm_stats)
        self.embodiment = Embodiment.from_file(directory / EMBODIMENT_FILE)

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> Frame:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.directory}: frame {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = self._shards[number].slice(index - self._starts[number], 1)
        lists = {name: row.column(name)[0].values for name in ("images", "actions", "depth_codes", "traces")}
        depth, traces = lists["depth_codes"], lists["traces"]
        return Frame(
            episode=row.column("episode")[0].as_py(),
            frame=row.column("frame")[0].as_py(),
            instruction=row.column("instruction")[0].as_py(),
            images=[decode_image(data.as_buffer()) for data in lists["images"]],
            actions=np.array(lists["actions"]).reshape(-1, self.statistics.dimensions),
            depth_codes=None if depth is None else np.array(depth),
            traces=None if traces is None else [np.array(trace.values).reshape(-1, 2) for trace in traces],
            points=_points(row.column("points")[0].as_py()),
            steered=row.column("steered")[0].as_py(),
        )

    def column(self, name: str) -> list[Any]:
        """One column of all rows as Python values: "episode", "instruction", "steered", ..."""
        return self._table.column(name).to_pylist()

    def annotated(self, name: str) -> NDArray[np.bool_]:
        """[frames], whether each has "depth_codes", "traces" or "points"."""
        return self._table.column(name).is_valid().to_numpy()

    def pointed(self) -> NDArray[np.bool_]:
        """[frames], whether something is pointed to in the first image of each."""
        first = [any(point["image"] == 0 for point in points or ()) for points in self.column("points")]
        return np.array(first, np.bool_)

    def all_actions(self) -> NDArray[np.float32]:
        """[frames, rows, D] in the dataset's units."""
        flat = self._table.column("actions").combine_chunks().flatten().to_numpy()
        return flat.reshape(len(self), -1, self.statistics.dimensions)

    @property
    def rows(self) -> int:
        """Rows of every chunk."""
        return self.all_actions().shape[1] if len(self) else 0


def write_shard(directory: Path, number: int, frames: Iterable[Frame]) -> int:
    """Write frames-{number}.arrow, whole or not at all; returns how many frames it holds."""
    path = shard_path(directory, number)
    directory.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([_row(frame) for frame in frames], schema=SCHEMA)
    partial = path.with_suffix(".partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(table)
    os.replace(partial, path)
    return table.num_rows


def shard_path(directory: Path, number: int) -> Path:
    return directory / f"frames-{number:05d}.arrow"


def finish_dataset(directory: Path, key: str, embodiment: Path, settings: dict[str, Any]) -> None:
    """Write what belongs to all shards: statistics under `key` over the first row of every unsteered frame, the
    embodiment file and the settings.
    """
    tables = [_read_shard(path) for path in sorted(directory.glob("frames-*.arrow"))]
    table = pa.concat_tables(tables)
    dimensions = ROW * int(settings["arms"])
    actions = table.column("actions").combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1, dimensions)
    kept = ~table.column("steered").to_numpy()
    episodes = len(np.unique(table.column("episode").to_numpy()))
    entry = {
        "action": statistics_of(actions[kept, 0]),
        "num_transitions": table.num_rows,
        "num_trajectories": episodes,
    }
    (directory / EMBODIMENT_FILE).write_text(embodiment.read_text(encoding="utf-8"), encoding="utf-8")
    (directory / STATISTICS_FILE).write_text(json.dumps({key: entry}, indent=1))
    summary = settings | {"frames": table.num_rows, "episodes": episodes}
    (directory / ANNOTATION_FILE).write_text(json.dumps(summary, indent=1))


def encode_image(image: NDArray[np.uint8]) -> bytes:
    """uint8 RGB [H, W, 3] as JPEG at a quality that keeps its colours' resolution."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", **JPEG)
    return stream.getvalue()


def decode_image(data: bytes | pa.Buffer) -> NDArray[np.uint8]:
    """What `encode_image` wrote, or any other picture, as uint8 RGB [H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _row(frame: Frame) -> dict[str, Any]:
    traces: Sequence[NDArray[np.uint8]] | None = frame.traces
    return {
        "episode": frame.episode,
        "frame": frame.frame,
        "instruction": frame.instruction,
        "images": [encode_image(image) for image in frame.images],
        "actions": np.asarray(frame.actions, np.float32).ravel(),
        "depth_codes": frame.depth_codes,
        "traces": None if traces is None else [np.asarray(trace, np.uint8).ravel() for trace in traces],
        "points": None if frame.points is None else [point._asdict() for point in frame.points],
        "steered": frame.steered,
    }


def _points(stored: list[dict[str, Any]] | None) -> list[Point] | None:
    return None if stored is None else [Point(**point) for point in stored]


def _read_shard(path: Path) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DatasetError(f"{path}: not readable as an Arrow file: {error}") from error
    if not table.schema.equals(SCHEMA):
        raise DatasetError(f"{path}: columns are {table.schema.names}, expected those of an annotated dataset")
    return table


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected a JSON object")
    return content
