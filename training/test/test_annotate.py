"""`molmoact annotate` on exports of small recordings: what frames hold, resuming, and what is refused beforehand."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from molmoact_policy.actions import ActionStatistics
from molmoact_policy.depth import DepthVQVAE
from molmoact_training import annotate
from molmoact_training.annotated_dataset import ALLOW_CONSTANT, AnnotatedDataset, decode_image, encode_image
from molmoact_training.annotation import action_chunks
from molmoact_training.depth_estimation import DepthEstimator
from molmoact_training.depth_pictures import picture_of_depth
from molmoact_training.depth_vqvae import encode_pictures
from PIL import Image
from safetensors.torch import save_file
from transformers import DepthAnythingForDepthEstimation

from .annotation_data import (
    CALIBRATION,
    DEPTH,
    INSTRUCTIONS,
    RATE,
    SECONDS,
    SIZE,
    depth_of,
    edit_yaml,
    episodes,
    export,
    record,
    save_vqvae,
    tilting,
    two_arms,
    with_depth,
)
from .test_depth_estimation import tiny_config

NOTHING = ("--depth", "none", "--trace", "none", "--jobs", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """recordings, dataset (their export), vqvae, front.yaml"""
    root = tmp_path_factory.mktemp("annotate")
    export(record(root / "recordings"), root / "dataset")
    save_vqvae(root / "vqvae")
    CALIBRATION.save(root / "front.yaml")
    return root


def everything(place: Path, jobs: int = 1) -> list[str]:
    return [
        *("--depth", "camera", "--vqvae", str(place / "vqvae"), "--recordings", str(place / "recordings")),
        *("--trace", "projection", "--calibration", str(place / "front.yaml"), "--jobs", str(jobs)),
    ]


@pytest.fixture(scope="module")
def annotated(place) -> Path:
    out = place / "annotated"
    assert annotate.main([str(place / "dataset"), "--out", str(out), *everything(place)]) == 0
    return out


@pytest.fixture(scope="module")
def frames(annotated):
    dataset = AnnotatedDataset(annotated)
    return [dataset[row] for row in range(len(dataset))]


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def of_episode(frames, number):
    return [frame for frame in frames if frame.episode == number]


def test_every_frame_of_the_export_is_there_with_its_pictures_and_instruction(place, annotated, frames):
    table = pq.read_table(place / "dataset/data/chunk-000/file-000.parquet")
    assert [frame.episode for frame in frames] == table["episode_index"].to_pylist()
    assert [frame.frame for frame in frames] == table["frame_index"].to_pylist()
    assert {frame.instruction for frame in of_episode(frames, 0)} == {INSTRUCTIONS[0]}
    assert {frame.instruction for frame in of_episode(frames, 1)} == {INSTRUCTIONS[1]}
    for frame in frames:
        front, wrist = map(episodes.number_of, frame.images)
        assert abs(front / episodes.CAMERA_HZ - frame.frame / RATE) < 0.06
        assert front == wrist and frame.images[0].shape == (SIZE[1], SIZE[0], 3)
        assert not frame.steered


def test_chunks_go_on_to_the_end_of_the_episode_whose_last_row_is_repeated(place, frames):
    table = pq.read_table(place / "dataset/data/chunk-000/file-000.parquet")
    actions = np.array(table["action"].to_pylist(), np.float32)
    first = actions[np.array(table["episode_index"]) == 0]
    mine = of_episode(frames, 0)
    assert np.array_equal(mine[3].actions, first[3:11])
    assert np.array_equal(mine[-3].actions, first[[-3, -2, -1, -1, -1, -1, -1, -1]])
    assert np.array_equal(action_chunks(first, 1)[:, 0], first)


def test_depth_codes_are_those_of_the_depth_picture_taken_with_the_first_image(place, frames):
    vqvae = DepthVQVAE.from_pretrained(place / "vqvae")
    for number in range(2):
        mine = of_episode(frames, number)
        pictures = [picture_of_depth(depth_of(episodes.number_of(frame.images[0]))) for frame in mine]
        # In one batch as annotation does: in another, the last bits and with them the nearest code may be others.
        codes = encode_pictures(vqvae, np.stack(pictures))
        assert np.array_equal([frame.depth_codes for frame in mine], codes)
        assert len(np.unique(codes, axis=0)) > len(mine) / 2


def test_traces_are_where_the_arm_will_be_in_the_first_picture(frames):
    mine = of_episode(frames, 0)
    times = np.arange(len(mine)) / RATE + 1 / 3 / episodes.CAMERA_HZ
    for frame in (0, 7, len(mine) - 2, len(mine) - 1):
        future = times[frame:]
        chosen = future[np.linspace(0, len(future) - 1, min(5, len(future))).astype(int)]
        positions = [episodes.position_at(episodes.progress_at(t, SECONDS)) for t in chosen]
        expected = CALIBRATION.project(positions) / (639, 479) * 255
        (trace,) = mine[frame].traces
        assert np.abs(trace - expected).max() < 2.5  # half a pixel of the 64x48 picture is 2.0 steps of 255
    assert np.ptp(mine[0].traces[0], axis=0).min() > 15


def test_the_directory_carries_statistics_conventions_and_settings(place, annotated, frames):
    dataset = AnnotatedDataset(annotated)
    exported = ActionStatistics.from_norm_stats(json.loads((place / "dataset/dataset_statistics.json").read_text()))
    assert dataset.statistics.key == "franka"
    assert np.array_equal(dataset.statistics.q01, exported.q01)
    assert np.array_equal(dataset.statistics.q99, exported.q99)
    assert dataset.embodiment.step_period == pytest.approx(1 / RATE)
    assert (dataset.rows, dataset.embodiment.rows, dataset.embodiment.image_size) == (8, 8, SIZE)
    assert dataset.settings["frames"] == len(frames) and dataset.settings["episodes"] == 2
    assert not (annotated / annotate.STARTED_FILE).exists()


def test_the_page_shows_pictures_and_what_was_said_and_done(annotated):
    page = (annotated / "pictures.html").read_text()
    assert page.count("<figure>") == 24
    assert page.count("<img") == 24 * 3  # front with the trace, wrist, depth
    assert "push it &lt;left&gt; &amp; right" in page and "<left>" not in page
    assert "mm, turn" in page


def test_the_same_bytes_whatever_the_number_of_processes(place, annotated):
    out = place / "in_two" / "annotated"
    assert annotate.main([str(place / "dataset"), "--out", str(out), *everything(place, jobs=2)]) == 0
    assert digests(out) == digests(annotated)


def test_an_interrupted_annotation_goes_on_with_what_is_missing(place, annotated, tmp_path):
    out = shutil.copytree(annotated, tmp_path / "annotated")
    (out / "frames-00001.arrow").unlink()
    (out / "frames-00001.partial").write_bytes(b"torn")
    for name in ("annotation.json", "dataset_statistics.json", "pictures.html"):
        (out / name).unlink()
    settings = json.loads((annotated / "annotation.json").read_text())
    (out / annotate.STARTED_FILE).write_text(json.dumps(settings))
    kept = (out / "frames-00000.arrow").stat().st_mtime_ns
    assert annotate.main([str(place / "dataset"), "--out", str(out), *everything(place)]) == 0
    assert (out / "frames-00000.arrow").stat().st_mtime_ns == kept
    assert digests(out) == digests(annotated)


def test_other_settings_than_the_directory_was_begun_with_are_refused(place, annotated, capsys):
    before = digests(annotated)
    assert annotate.main([str(place / "dataset"), "--out", str(annotated), *everything(place), "--rows", "4"]) == 2
    assert "was made with another embodiment" in capsys.readouterr().err
    assert annotate.main([str(place / "dataset"), "--out", str(annotated), *NOTHING]) == 2
    assert "was made with another depth, vqvae, trace, calibrations" in capsys.readouterr().err
    assert digests(annotated) == before


def test_without_depth_and_trace_frames_say_that_they_have_none(place, tmp_path):
    assert annotate.main([str(place / "dataset"), "--out", str(tmp_path / "out"), *NOTHING, "--rows", "3"]) == 0
    dataset = AnnotatedDataset(tmp_path / "out")
    assert dataset[0].depth_codes is None and dataset[0].traces is None
    assert dataset.rows == dataset.embodiment.rows == 3


def test_two_arms_have_two_traces_and_fourteen_numbers(place, tmp_path):
    episodes.make_episode(tmp_path / "recordings" / "a", seconds=1.0, edit=two_arms)
    export(tmp_path / "recordings", tmp_path / "dataset", "--arms", "left/", "right/")
    request = [str(tmp_path / "dataset"), "--out", str(tmp_path / "out"), "--depth", "none", "--jobs", "1"]
    request += ["--trace", "projection", "--calibration", str(place / "front.yaml")]
    assert annotate.main([*request, str(place / "front.yaml")]) == 0
    frame = AnnotatedDataset(tmp_path / "out")[0]
    assert frame.actions.shape == (8, 14)
    left, right = frame.traces
    # The camera faces the robot: what is further to the robot's right is further left in its picture.
    assert np.all(right[:, 0].astype(int) < left[:, 0].astype(int) - 10)


def test_two_arms_need_two_calibrations(place, tmp_path, capsys):
    episodes.make_episode(tmp_path / "recordings" / "a", seconds=1.0, edit=two_arms)
    export(tmp_path / "recordings", tmp_path / "dataset", "--arms", "left/", "right/")
    request = [str(tmp_path / "dataset"), "--out", str(tmp_path / "out"), "--depth", "none"]
    assert annotate.main([*request, "--trace", "projection", "--calibration", str(place / "front.yaml")]) == 2
    assert "--calibration: 1 files, expected one for each of 2 arm(s)" in capsys.readouterr().err


def test_a_frame_whose_depth_camera_measured_nothing_has_no_codes(place, tmp_path):
    def blind(samples):
        samples = with_depth(tilting(samples))
        first = next(sample for sample in samples if sample.topic == DEPTH)
        first.message.data[:] = 0
        return samples

    episodes.make_episode(tmp_path / "recordings" / "a", seconds=1.0, edit=blind)
    export(tmp_path / "recordings", tmp_path / "dataset")
    request = [str(tmp_path / "dataset"), "--out", str(tmp_path / "out"), "--trace", "none", "--jobs", "1"]
    request += ["--depth", "camera", "--vqvae", str(place / "vqvae"), "--recordings", str(tmp_path / "recordings")]
    assert annotate.main(request) == 0
    dataset = AnnotatedDataset(tmp_path / "out")
    assert [dataset[row].depth_codes is None for row in range(3)] == [True, False, False]


# --- Bad input ------------------------------------------------------------------------------------------------------


def rewrite(path: Path, **columns) -> None:
    table = pq.read_table(path)
    for name, change in columns.items():
        values = np.array(table[name].to_pylist(), np.float32)
        change(values)
        array = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        table = table.set_column(table.column_names.index(name), name, array)
    pq.write_table(table, path)


def nan_action(dataset):
    def change(values):
        values[5, 2] = np.nan

    rewrite(dataset / "data/chunk-000/file-000.parquet", action=change)


def constant_action(dataset):
    def change(values):
        values[:, 3] = 0.25

    rewrite(dataset / "data/chunk-000/file-000.parquet", action=change)


def nan_state(dataset):
    def change(values):
        values[-1, 0] = np.inf

    rewrite(dataset / "data/chunk-000/file-000.parquet", **{"observation.state": change})


def empty_instruction(dataset):
    path = next((dataset / "meta/episodes").rglob("*.parquet"))
    table = pq.read_table(path)
    tasks = pa.array([["pick it up"], [" "]], table.schema.field("tasks").type)
    pq.write_table(table.set_column(table.column_names.index("tasks"), "tasks", tasks), path)


def edit_info(dataset, change):
    path = dataset / "meta/info.json"
    info = json.loads(path.read_text())
    change(info["features"])
    path.write_text(json.dumps(info))


def video(dataset):
    return next((dataset / "videos/observation.images.wrist").rglob("*.mp4"))


def spoil_statistics(dataset):
    path = dataset / "dataset_statistics.json"
    content = json.loads(path.read_text())
    action = content["franka"]["action"]
    content["franka"]["action"] = {name: values + values for name, values in action.items()}
    path.write_text(json.dumps(content))


BAD = {
    "NaN action": (nan_action, "episode 0: frame 5: action[2] is nan"),
    "constant dimension": (constant_action, "action[3] is always 0.25: if that is meant, say --allow-constant"),
    "NaN state": (nan_state, "episode 1: frame 23: observation.state[0] is inf"),
    "empty instruction": (empty_instruction, "episode 1: its instruction is empty"),
    "other camera": (
        lambda it: edit_yaml(it / "embodiment.yaml", cameras=["front", "side"]),
        "there is no camera side: the embodiment looks through front, side, the dataset has front, wrist",
    ),
    "other degrees of freedom": (
        lambda it: edit_info(it, lambda features: features["action"].update(shape=[8])),
        "action has [8] numbers, expected 7",
    ),
    "no action": (lambda it: edit_info(it, lambda features: features.pop("action")), "there is no feature action"),
    "rows of other lengths": (
        lambda it: edit_info(it, lambda features: features["action"].update(shape=[14])),
        "action: rows of other lengths than 14",
    ),
    "no statistics": (lambda it: (it / "dataset_statistics.json").unlink(), "dataset_statistics.json: expected"),
    "statistics of two arms": (spoil_statistics, "of 14 degrees of freedom, the actions have 7"),
    "no conventions": (lambda it: (it / "embodiment.yaml").unlink(), "embodiment.yaml is missing"),
    "no video": (lambda it: video(it).unlink(), "file-000.mp4: not readable as a video"),
    "torn video": (lambda it: video(it).write_bytes(video(it).read_bytes()[:-3000]), "it is not whole"),
    "garbage video": (lambda it: video(it).write_bytes(b"nonsense" * 1000), "file-000.mp4: not readable as a video"),
    "no data": (
        lambda it: (it / "data/chunk-000/file-000.parquet").unlink(),
        "data/chunk-000/file-000.parquet: not readable",
    ),
    "no metadata": (lambda it: (it / "meta/info.json").unlink(), "expected a LeRobot dataset"),
    "no source frames": (lambda it: (it / "meta/source_frames.jsonl").unlink(), "source_frames.jsonl"),
    "no export settings": (lambda it: (it / "meta/export.json").unlink(), "export.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_dataset_is_named_before_anything_is_written(place, tmp_path, capsys, name):
    spoil, complaint = BAD[name]
    dataset = shutil.copytree(place / "dataset", tmp_path / "dataset")
    spoil(dataset)
    assert annotate.main([str(dataset), "--out", str(tmp_path / "out"), *everything(place)]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def change(options: list[str], name: str, *values: str) -> list[str]:
    """The options with other values for one of them, or without it."""
    at = options.index(name)
    return options[:at] + ([name, *values] if values else []) + options[at + 2 :]


@pytest.mark.parametrize(
    ("name", "values", "complaint"),
    [
        ("--calibration", (), "--trace projection needs --calibration"),
        ("--calibration", ("nowhere.yaml",), "nowhere.yaml"),
        ("--vqvae", (), "--depth camera needs --vqvae"),
        ("--vqvae", ("nowhere",), "nowhere"),
        ("--recordings", (), "--depth camera needs --recordings"),
        ("--recordings", ("nowhere",), "nowhere/take_0/metadata.yaml"),
        ("--jobs", ("0",), "--jobs 0: expected at least 1"),
        ("--depth", ("estimate",), "--depth estimate needs --depth-model"),
        ("--trace", ("pointing",), "--trace pointing needs --pointing-model"),
        ("--trace", ("pointing", "--pointing-model", "nowhere"), "nowhere: config.json is missing"),
    ],
)
def test_what_is_missing_for_a_request_is_named(place, tmp_path, capsys, name, values, complaint):
    request = change(everything(place), name, *values)
    assert annotate.main([str(place / "dataset"), "--out", str(tmp_path / "out"), *request]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_recordings_without_depth_are_named(place, tmp_path, capsys):
    for name in ("take_0", "take_1"):
        episodes.make_episode(tmp_path / "recordings" / name, seconds=1.0)
    request = change(everything(place), "--recordings", str(tmp_path / "recordings"))
    assert annotate.main([str(place / "dataset"), "--out", str(tmp_path / "out"), *request]) == 2
    assert f"take_0: no depth was recorded on {DEPTH}" in capsys.readouterr().err


def test_other_recordings_than_the_dataset_is_of_are_found_out(place, tmp_path, capsys):
    for name in ("take_0", "take_1"):
        episodes.make_episode(tmp_path / "recordings" / name, seconds=1.0, edit=with_depth)
    request = change(everything(place), "--recordings", str(tmp_path / "recordings"))
    assert annotate.main([str(place / "dataset"), "--out", str(tmp_path / "out"), *request]) == 1
    assert "is not what frame" in capsys.readouterr().err


def test_a_picture_damaged_within_a_video_is_named_and_what_is_finished_kept(place, tmp_path, capsys):
    dataset = shutil.copytree(place / "dataset", tmp_path / "dataset")
    data = bytearray(video(dataset).read_bytes())
    late = int(0.8 * len(data))
    data[late : late + 100] = np.random.default_rng(0).integers(0, 256, 100, np.uint8).tobytes()
    video(dataset).write_bytes(data)
    assert annotate.main([str(dataset), "--out", str(tmp_path / "out"), *NOTHING]) == 1
    complaint = capsys.readouterr().err
    assert "observation.images.wrist/chunk-000/file-000.mp4: " in complaint and "episode 1" in complaint
    assert sorted(path.name for path in (tmp_path / "out").glob("frames-*.arrow")) == ["frames-00000.arrow"]


def test_a_disk_that_is_too_small_is_named(place, tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 5000, 5000))
    assert annotate.main([str(place / "dataset"), "--out", str(tmp_path / "out"), *everything(place)]) == 2
    assert "the disk has 0 MiB left" in capsys.readouterr().err


def test_a_directory_with_something_else_in_it_is_left_alone(place, tmp_path, capsys):
    (tmp_path / "letter.txt").write_text("dear")
    assert annotate.main([str(place / "dataset"), "--out", str(tmp_path), *NOTHING]) == 2
    assert "is no annotated dataset" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_constant_dimensions_that_are_meant_are_made_exactly_so(place, tmp_path):
    def nearly(values):
        values[:, 3] = 1e-9 * np.random.default_rng(0).normal(size=len(values))

    dataset = shutil.copytree(place / "dataset", tmp_path / "dataset")
    rewrite(dataset / "data/chunk-000/file-000.parquet", action=nearly)
    assert annotate.main([str(dataset), "--out", str(tmp_path / "out"), *NOTHING, "--allow-constant"]) == 0
    result = AnnotatedDataset(tmp_path / "out")
    assert result.settings[ALLOW_CONSTANT]
    assert len(np.unique(result.all_actions()[..., 3])) == 1
    assert np.all(result.statistics.normalise(result.all_actions())[..., 3] == 0)


# --- Other datasets, models and machines ----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_bytes_on_a_ray_cluster(place, annotated, tmp_path):
    out = tmp_path / "annotated"
    assert annotate.main([str(place / "dataset"), "--out", str(out), *everything(place), "--ray", "local"]) == 0
    assert digests(out) == digests(annotated)


@pytest.mark.slow
def test_an_error_on_a_ray_cluster_names_the_episode(place, tmp_path, capsys):
    for name in ("take_0", "take_1"):
        episodes.make_episode(tmp_path / "recordings" / name, seconds=1.0, edit=with_depth)
    request = [*change(everything(place), "--recordings", str(tmp_path / "recordings")), "--ray", "local"]
    assert annotate.main([str(place / "dataset"), "--out", str(tmp_path / "out"), *request]) == 1
    complaint = capsys.readouterr().err
    assert "molmoact annotate: episode take_" in complaint and "Traceback" not in complaint


def v2_dataset(root: Path) -> Path:
    """v2.1, pictures in the rows, without anything of ours."""
    features = {"action": {"dtype": "float32", "shape": [7], "names": None}}
    for camera in ("front", "wrist"):
        features[f"observation.images.{camera}"] = {"dtype": "image", "shape": [48, 64, 3], "names": None}
    info = {
        "codebase_version": "v2.1",
        "fps": 5,
        "chunks_size": 1000,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "features": features,
    }
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    lines = [json.dumps({"episode_index": number, "tasks": ["wipe the table"], "length": 12}) for number in range(2)]
    (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    rng = np.random.default_rng(0)
    for episode in range(2):
        pictures = {
            f"observation.images.{camera}": [
                {"bytes": encode_image(episodes.picture(number, SIZE, hue)), "path": None} for number in range(12)
            ]
            for hue, camera in enumerate(("front", "wrist"))
        }
        table = pa.table(
            {
                "action": [row.tolist() for row in rng.uniform(-1, 1, (12, 7)).astype(np.float32)],
                "timestamp": [number / 5 for number in range(12)],
                "episode_index": [episode] * 12,
                "task_index": [0] * 12,
                **pictures,
            }
        )
        pq.write_table(table, root / f"data/chunk-000/episode_{episode:06d}.parquet")
    return root


def test_a_dataset_of_others_is_annotated_by_the_conventions_that_are_named(tmp_path, capsys):
    dataset = v2_dataset(tmp_path / "dataset")
    request = [str(dataset), "--out", str(tmp_path / "out"), *NOTHING]
    assert annotate.main(request) == 2
    assert "say --embodiment KEY" in capsys.readouterr().err
    assert annotate.main([*request, "--embodiment", "franka"]) == 0
    result = AnnotatedDataset(tmp_path / "out")
    assert len(result) == 24 and result[13].instruction == "wipe the table"
    assert result[13].images[0].shape == (240, 320, 3)
    assert episodes.number_of(result[13].images[1]) == 1
    assert result.embodiment.step_period == pytest.approx(0.2)
    assert result.statistics.key == "franka"


def test_depth_is_estimated_from_the_first_camera(place, tmp_path):
    torch.manual_seed(0)
    DepthAnythingForDepthEstimation(tiny_config()).save_pretrained(tmp_path / "depth_anything")
    request = [
        "--depth",
        "estimate",
        "--vqvae",
        str(place / "vqvae"),
        "--depth-model",
        str(tmp_path / "depth_anything"),
    ]
    out = tmp_path / "out"
    assert annotate.main([str(v2_dataset(tmp_path / "dataset")), "--out", str(out), "--embodiment", "franka", *request,
                          "--trace", "none", "--jobs", "1"]) == 0  # fmt: skip
    result = AnnotatedDataset(out)
    estimate = DepthEstimator.from_pretrained(tmp_path / "depth_anything")
    pictures = [estimate(decode_image(encode_image(episodes.picture(number, SIZE, 0)))) for number in range(12)]
    codes = encode_pictures(DepthVQVAE.from_pretrained(place / "vqvae"), np.stack(pictures))
    assert np.array_equal([result[row].depth_codes for row in range(12)], codes)


def test_a_directory_without_a_depth_model_is_named(place, tmp_path, capsys):
    request = change(change(everything(place), "--recordings"), "--depth", "estimate")
    request += ["--depth-model", str(place / "vqvae")]
    assert annotate.main([str(place / "dataset"), "--out", str(tmp_path / "out"), *request]) == 2
    assert "expected Depth-Anything-V2" in capsys.readouterr().err


@pytest.fixture
def pointing_model(tmp_path, monkeypatch) -> Path:
    """Points at the brightest pixel."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    path = shutil.copytree(Path(__file__).parent / "data/pointing_model", tmp_path / "pointing_model")
    save_file({"unused": torch.zeros(1)}, path / "model.safetensors", {"format": "pt"})
    return path


def test_a_model_points_at_the_gripper_in_the_first_camera(pointing_model, tmp_path):
    dataset = v2_dataset(tmp_path / "dataset")
    request = [str(dataset), "--out", str(tmp_path / "out"), "--embodiment", "franka", "--depth", "none"]
    assert annotate.main([*request, "--trace", "pointing", "--pointing-model", str(pointing_model), "--jobs", "1"]) == 0
    expected = []
    for number in range(12):
        image = decode_image(encode_image(episodes.picture(number, SIZE, 0)))
        row, column = divmod(int(np.array(Image.fromarray(image).convert("L")).argmax()), SIZE[0])
        expected.append([column * 255 / (SIZE[0] - 1), row * 255 / (SIZE[1] - 1)])
    expected = np.array(expected)
    result = AnnotatedDataset(tmp_path / "out")
    assert np.abs(result[0].traces[0] - expected[[0, 2, 5, 8, 11]]).max() <= 0.5
    assert np.abs(result[11].traces[0] - expected[[11]]).max() <= 0.5
    assert len(np.unique(expected, axis=0)) > 1


def test_positions_that_are_not_named_cannot_be_projected(place, tmp_path, capsys):
    dataset = v2_dataset(tmp_path / "dataset")
    request = [str(dataset), "--out", str(tmp_path / "out"), "--embodiment", "franka", "--depth", "none"]
    assert annotate.main([*request, "--trace", "projection", "--calibration", str(place / "front.yaml")]) == 2
    assert "there is nothing to project" in capsys.readouterr().err


def test_conventions_that_contradict_the_datasets_own_are_refused(place, tmp_path, capsys):
    request = [str(place / "dataset"), "--out", str(tmp_path / "out"), *NOTHING, "--embodiment", "bridge_orig"]
    assert annotate.main(request) == 2
    assert "says already what the actions mean" in capsys.readouterr().err
