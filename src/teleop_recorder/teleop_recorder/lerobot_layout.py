"""The files of a LeRobotDataset v3.0, written from finished pieces; the same pieces give the same bytes.

meta/info.json  meta/stats.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet
data/chunk-000/file-000.parquet  videos/<key>/chunk-000/file-000.mp4
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

CODEBASE_VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FILES_PER_CHUNK = 1000
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200
MB = 2**20

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STATE, ACTION = "observation.state", "action"
COUNTERS = ("frame_index", "episode_index", "index", "task_index")

# H.264 because every decoder has it. A key frame every second frame makes any frame cheap to reach, no B-frames keep
# presentation and decoding order the same. One thread, no version in the file: the same pictures are the same bytes.
CODEC, PIXELS = "libx264", "yuv420p"
ENCODER = {"crf": "18", "preset": "medium", "g": "2", "bf": "0", "x264-params": "threads=1:lookahead-threads=1"}
CONTAINER = {"fflags": "+bitexact", "movflags": "+faststart"}


@dataclass(frozen=True)
class Piece:
    """One episode of the dataset, ready to be put together with others."""

    task: str
    state: NDArray[np.float32]  # [N, S]
    action: NDArray[np.float32]  # [N, D]
    videos: Mapping[str, Path]  # video key -> MP4 of N frames
    histograms: Mapping[str, NDArray[np.int64]]  # video key -> [3, 256], how often each value was in each channel


@dataclass(frozen=True)
class Layout:
    """What is the same for all episodes."""

    fps: int
    size: tuple[int, int]  # width, height of every video
    state_names: Sequence[str]
    action_names: Sequence[str]
    video_keys: Sequence[str]
    robot_type: str


class VideoWriter:
    """Writes uint8 RGB pictures [H, W, 3] of one size as an MP4 with a constant rate. Use as a context."""

    def __init__(self, path: Path, size: tuple[int, int], fps: int) -> None:
        self._container = av.open(str(path), "w", format="mp4", container_options=CONTAINER)
        stream = self._container.add_stream(CODEC, rate=fps, options=ENCODER)
        assert isinstance(stream, av.VideoStream)  # what its codec makes
        self._stream = stream
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = PIXELS
        self._stream.thread_count = 1
        self._period = Fraction(1, fps)
        self._stream.codec_context.time_base = self._period
        self._count = 0

    def write(self, picture: NDArray[np.uint8]) -> None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = self._count, self._period
        self._count += 1
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()


def write_dataset(root: Path, pieces: Sequence[Piece], layout: Layout) -> None:
    """Write everything below `root`, an empty directory, in the order of the pieces."""
    tasks = list(dict.fromkeys(piece.task for piece in pieces))
    places = _write_data(root, pieces, tasks, layout)
    for key in layout.video_keys:
        for place, more in zip(places, _write_videos(root, pieces, key, layout.fps), strict=True):
            place.update(more)
    counters = [
        _counters(len(piece.action), number, place["dataset_from_index"], tasks.index(piece.task))
        for number, (piece, place) in enumerate(zip(pieces, places, strict=True))
    ]
    statistics = [_episode_statistics(piece, counts, layout) for piece, counts in zip(pieces, counters, strict=True)]
    _write_parquet(root / "meta" / "tasks.parquet", _tasks_table(tasks))
    _write_parquet(
        root / EPISODES_PATH.format(chunk_index=0, file_index=0), _episodes_table(pieces, places, statistics)
    )
    write_json(root / "meta" / "stats.json", _dataset_statistics(pieces, counters, layout))
    write_json(root / "meta" / "info.json", _info(pieces, tasks, layout))


def write_json(path: Path, content: Any) -> None:
    """As lerobot writes it: indented, so that a person can read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def vector_statistics(values: NDArray[Any]) -> dict[str, list[float]]:
    """Statistics over the rows of [N, D], as lists of D; `count` is [N]."""
    values = np.asarray(values, np.float64)
    found = {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
        **{name: np.quantile(values, share, axis=0) for name, share in QUANTILES.items()},
    }
    return {name: value.tolist() for name, value in found.items()} | {"count": [len(values)]}


def picture_statistics(histogram: NDArray[np.int64], frames: int) -> dict[str, list[Any]]:
    """Statistics of pixel values 0..1 from how often each of 256 values was there, [3, 256]; shape [3, 1, 1]."""
    values = np.arange(256) / 255.0
    shares = histogram / histogram.sum(1, keepdims=True)
    mean = shares @ values
    found = {
        "min": values[(histogram > 0).argmax(1)],
        "max": values[255 - (histogram[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt((shares * (values - mean[:, None]) ** 2).sum(1)),
        **{name: values[(shares.cumsum(1) >= share - 1e-12).argmax(1)] for name, share in QUANTILES.items()},
    }
    return {name: value.reshape(3, 1, 1).tolist() for name, value in found.items()} | {"count": [frames]}


class _Files:
    """Fills files up to a size, and chunks up to a number of files."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._number = 0
        self._size = 0

    def place(self, size: int) -> tuple[int, int]:
        """Chunk and file of the next `size` bytes."""
        if self._size and self._size + size > self._limit:
            self._number += 1
            self._size = 0
        self._size += size
        return divmod(self._number, FILES_PER_CHUNK)


def _write_data(root: Path, pieces: Sequence[Piece], tasks: list[str], layout: Layout) -> list[dict[str, Any]]:
    """Where each episode's rows are."""
    files, places, begin = _Files(DATA_FILE_MB * MB), [], 0
    tables: dict[tuple[int, int], list[pa.Table]] = {}
    for number, piece in enumerate(pieces):
        table = _data_table(piece, number, begin, tasks.index(piece.task), layout)
        chunk, file = files.place(table.nbytes)
        tables.setdefault((chunk, file), []).append(table)
        end = begin + len(piece.action)
        places.append(
            {"data/chunk_index": chunk, "data/file_index": file, "dataset_from_index": begin, "dataset_to_index": end}
        )
        begin = end
    for (chunk, file), parts in tables.items():
        _write_parquet(root / DATA_PATH.format(chunk_index=chunk, file_index=file), pa.concat_tables(parts))
    return places


def _data_table(piece: Piece, number: int, begin: int, task: int, layout: Layout) -> pa.Table:
    columns: dict[str, pa.Array] = {STATE: _vectors(piece.state), ACTION: _vectors(piece.action)}
    columns["timestamp"] = pa.array(_timestamps(len(piece.action), layout.fps))
    columns |= {name: pa.array(values) for name, values in _counters(len(piece.action), number, begin, task).items()}
    return pa.table(columns)


def _vectors(values: NDArray[np.float32]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).reshape(-1)), values.shape[1])


def _timestamps(count: int, fps: int) -> NDArray[np.float32]:
    return (np.arange(count) / fps).astype(np.float32)


def _counters(count: int, number: int, begin: int, task: int) -> dict[str, NDArray[np.int64]]:
    frames = np.arange(count, dtype=np.int64)
    return dict(
        zip(COUNTERS, (frames, np.full_like(frames, number), frames + begin, np.full_like(frames, task)), strict=True)
    )


def _write_videos(root: Path, pieces: Sequence[Piece], key: str, fps: int) -> list[dict[str, Any]]:
    """Where each episode's pictures are."""
    files, places = _Files(VIDEO_FILE_MB * MB), []
    parts: dict[tuple[int, int], list[Path]] = {}
    frames: dict[tuple[int, int], int] = {}
    for piece in pieces:
        place = files.place(piece.videos[key].stat().st_size)
        begin = frames.get(place, 0)
        frames[place] = end = begin + len(piece.action)
        parts.setdefault(place, []).append(piece.videos[key])
        places.append(
            {
                f"videos/{key}/chunk_index": place[0],
                f"videos/{key}/file_index": place[1],
                f"videos/{key}/from_timestamp": begin / fps,
                f"videos/{key}/to_timestamp": end / fps,
            }
        )
    for (chunk, file), videos in parts.items():
        path = root / VIDEO_PATH.format(video_key=key, chunk_index=chunk, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        _join_videos(path, videos, fps)
    return places


def _join_videos(path: Path, videos: Sequence[Path], fps: int) -> None:
    """One after another, without encoding again: all come from `VideoWriter` with the same settings."""
    with av.open(str(path), "w", format="mp4", container_options=CONTAINER) as joined:
        begin = 0  # frames
        stream = None
        for video in videos:
            with av.open(str(video)) as part:
                source = part.streams.video[0]
                if stream is None:
                    stream = joined.add_stream_from_template(source)
                count = 0
                for packet in part.demux(source):
                    if packet.pts is None or packet.dts is None or packet.time_base is None:  # flushes the demuxer
                        continue
                    offset = int(Fraction(begin, fps) / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, stream
                    joined.mux(packet)
                    count += 1
                begin += count


def _episode_statistics(piece: Piece, counters: Mapping[str, NDArray[np.int64]], layout: Layout) -> dict[str, Any]:
    return {
        STATE: vector_statistics(piece.state),
        ACTION: vector_statistics(piece.action),
        "timestamp": vector_statistics(_timestamps(len(piece.action), layout.fps)[:, None]),
        **{name: vector_statistics(values[:, None]) for name, values in counters.items()},
        **{key: picture_statistics(piece.histograms[key], len(piece.action)) for key in layout.video_keys},
    }


def _dataset_statistics(
    pieces: Sequence[Piece], counters: Sequence[Mapping[str, NDArray[np.int64]]], layout: Layout
) -> dict[str, Any]:
    """Of all frames together, exactly: not combined from those of the episodes."""
    times = np.concatenate([_timestamps(len(piece.action), layout.fps) for piece in pieces])
    columns = {name: np.concatenate([counts[name] for counts in counters]) for name in COUNTERS}
    histograms = {key: np.sum([piece.histograms[key] for piece in pieces], axis=0) for key in layout.video_keys}
    return {
        STATE: vector_statistics(np.concatenate([piece.state for piece in pieces])),
        ACTION: vector_statistics(np.concatenate([piece.action for piece in pieces])),
        "timestamp": vector_statistics(times[:, None]),
        **{name: vector_statistics(values[:, None]) for name, values in columns.items()},
        **{key: picture_statistics(histogram, len(times)) for key, histogram in histograms.items()},
    }


def _tasks_table(tasks: list[str]) -> pa.Table:
    """A pandas frame whose index is the task in words: that is how lerobot finds it."""
    table = pa.table(
        {"task_index": pa.array(range(len(tasks)), pa.int64()), "__index_level_0__": pa.array(tasks, pa.string())}
    )
    columns = [
        ("task_index", "task_index", "int64", "int64"),
        (None, "__index_level_0__", "unicode", "object"),
    ]
    pandas = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [
            {
                "name": None,
                "field_name": None,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": {"encoding": "UTF-8"},
            }
        ],
        "columns": [
            {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, field, kind, numpy in columns
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _episodes_table(
    pieces: Sequence[Piece], places: Sequence[Mapping[str, Any]], statistics: Sequence[Mapping[str, Any]]
) -> pa.Table:
    rows = []
    for number, (piece, place, stats) in enumerate(zip(pieces, places, statistics, strict=True)):
        row = {"episode_index": number, "tasks": [piece.task], "length": len(piece.action), **place}
        for feature, values in stats.items():
            row |= {f"stats/{feature}/{name}": value for name, value in values.items()}
        rows.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
    return pa.Table.from_pylist(rows)


def _write_parquet(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="snappy", use_dictionary=True)


def _info(pieces: Sequence[Piece], tasks: list[str], layout: Layout) -> dict[str, Any]:
    width, height = layout.size
    video = {
        "video.height": height,
        "video.width": width,
        "video.codec": "h264",
        "video.pix_fmt": PIXELS,
        "video.is_depth_map": False,
        "video.fps": layout.fps,
        "video.channels": 3,
        "has_audio": False,
    }
    features: dict[str, Any] = {
        STATE: {"dtype": "float32", "shape": [len(layout.state_names)], "names": list(layout.state_names)},
        ACTION: {"dtype": "float32", "shape": [len(layout.action_names)], "names": list(layout.action_names)},
    }
    for key in layout.video_keys:
        features[key] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": video,
        }
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    features |= {name: {"dtype": "int64", "shape": [1], "names": None} for name in COUNTERS}
    return {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": layout.robot_type,
        "total_episodes": len(pieces),
        "total_frames": sum(len(piece.action) for piece in pieces),
        "total_tasks": len(tasks),
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": DATA_FILE_MB,
        "video_files_size_in_mb": VIDEO_FILE_MB,
        "fps": layout.fps,
        "splits": {"train": f"0:{len(pieces)}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": features,
    }
