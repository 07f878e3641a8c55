"""From episodes to a dataset: what goes into it, what never does, and that it is the same every time."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from molmoact_policy.actions import ActionStatistics
from molmoact_policy.embodiment import EMBODIMENT_FILE, Embodiment
from rosbags.typesys import get_types_from_msg
from teleop_recorder import export
from teleop_recorder.episode import METADATA, Episode
from teleop_recorder.foreign import message_of
from teleop_recorder.motion_labels import integrate

from .episodes import (
    CAMERA_HZ,
    FRONT,
    GRIPPER,
    MESSAGES,
    POSE,
    START_NS,
    Sample,
    make_episode,
    number_of,
    position_at,
    progress_at,
    restamp,
    stamp_of,
    typestore,
    write_samples,
)

KEY = "lab"
RATE = 15
EMBODIMENTS = {
    KEY: {
        "frame": "end_effector",
        "rotation": "rpy",
        "translation_scale": 0.5,
        "rotation_scale": 2.0,
        "gripper_open": "low",
        "step_period": 0.1,
        "rows": 8,
        "cameras": ["front", "wrist"],
    }
}


def parsed(root: Path, out: Path, *more: str) -> argparse.Namespace:
    conventions = out.parent / "embodiments.yaml"
    conventions.write_text(yaml.safe_dump(EMBODIMENTS))
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    return parser.parse_args(
        [str(root), "--out", str(out), "--embodiment", KEY, "--embodiments", str(conventions), "--jobs", "1", *more]
    )


def exported(root: Path, out: Path, *more: str) -> Path:
    assert export.run(parsed(root, out, *more)) == 0
    return out


def rows(dataset: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(dataset / "data" / "chunk-000" / "file-000.parquet")
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def sources(dataset: Path) -> list[dict]:
    return [json.loads(line) for line in (dataset / export.SOURCES_FILE).read_text().splitlines()]


def frames(dataset: Path, camera: str) -> list[np.ndarray]:
    with av.open(str(dataset / "videos" / f"observation.images.{camera}" / "chunk-000" / "file-000.mp4")) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def digests(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def episodes(tmp_path_factory) -> Path:
    """Two successes, and one of everything that is not to be exported."""
    root = tmp_path_factory.mktemp("episodes")
    make_episode(root / "a", seconds=2.0, still_s=0.8)
    make_episode(root / "b", seconds=1.5, compressed=True, instruction="push the green cube")
    make_episode(root / "failed", seconds=1.0, outcome="failure")
    make_episode(root / "discarded", seconds=1.0, outcome="discard")
    make_episode(root / "interrupted", seconds=1.0, outcome="interrupted")
    make_episode(root / "crashed", seconds=1.0, closed=False)
    return root


@pytest.fixture(scope="module")
def dataset(episodes, tmp_path_factory) -> Path:
    return exported(episodes, tmp_path_factory.mktemp("out") / "dataset")


def test_only_successes_are_exported_and_what_is_left_out_is_said(episodes, tmp_path, capsys):
    dataset = exported(episodes, tmp_path / "dataset")
    assert [source["source"] for source in sources(dataset)] == ["a", "b"]
    said = capsys.readouterr().out
    assert "left out: 1 discard, 1 failure, 2 interrupted" in said
    # Their gripper closes on something 4 cm wide.
    assert "the gripper moves, but is never less than 0.50 open" in said


def test_failures_are_exported_when_asked_for_and_discarded_ones_cannot_be(episodes, tmp_path, capsys):
    dataset = exported(episodes, tmp_path / "dataset", "--outcome", "failure")
    assert [source["source"] for source in sources(dataset)] == ["failed"]
    for outcome in ("discard", "interrupted"):
        with pytest.raises(SystemExit):
            parsed(episodes, tmp_path / "other", "--outcome", outcome)


def test_frames_are_consecutive_and_every_picture_is_the_one_nearest_to_its_moment(dataset):
    table = rows(dataset)
    count = len(table["index"])
    assert table["index"].tolist() == list(range(count))
    pictures = {camera: frames(dataset, camera) for camera in ("front", "wrist")}
    assert len(pictures["front"]) == len(pictures["wrist"]) == count
    for source in sources(dataset):
        mine = np.flatnonzero(table["episode_index"] == source["episode_index"])
        assert table["frame_index"][mine].tolist() == list(range(len(mine)))
        np.testing.assert_allclose(table["timestamp"][mine], np.arange(len(mine)) / RATE, atol=1e-6)
        for frame, row in enumerate(mine):
            seconds = (source["begin_stamp_ns"] - START_NS) / 1e9 + frame / RATE
            for camera, phase in (("front", 0.0), ("wrist", 1 / 3)):
                taken = (number_of(pictures[camera][row]) + phase) / CAMERA_HZ
                assert abs(taken - seconds) <= 0.5 / CAMERA_HZ + 1e-6


def test_actions_run_by_the_policys_conventions_follow_the_recorded_path(dataset):
    conventions = Embodiment.from_file(dataset / EMBODIMENT_FILE, KEY)
    assert conventions.step_period == pytest.approx(1 / RATE) and conventions.cameras == ("front", "wrist")
    table = rows(dataset)
    for source, (seconds, still) in zip(sources(dataset), ((2.0, 0.8), (1.5, 0.0)), strict=True):
        mine = table["episode_index"] == source["episode_index"]
        state, action = table["observation.state"][mine], table["action"][mine]
        deltas = conventions.to_deltas(action)
        positions, _ = integrate(state[0, :3], state[0, 3:7], deltas, conventions.frame)
        np.testing.assert_allclose(positions[:-1], state[:, :3], atol=1e-5)
        begin = (source["begin_stamp_ns"] - START_NS) / 1e9
        truth = [position_at(progress_at(begin + n / RATE, seconds, still)) for n in range(len(positions))]
        assert np.linalg.norm(positions - truth, axis=1).max() < 1e-3
        # low opens: the hand closes in the middle, to half of its width
        assert action[0, 6] == pytest.approx(0.0) and action[-1, 6] == pytest.approx(0.5, abs=0.01)


def test_statistics_of_the_release_unnormalise_the_actions_of_the_dataset(dataset):
    content = json.loads((dataset / export.STATISTICS_FILE).read_text())
    actions = rows(dataset)["action"].astype(np.float32)
    statistics = ActionStatistics.from_norm_stats(content, KEY)
    np.testing.assert_allclose(statistics.q99, np.quantile(actions, 0.99, axis=0), rtol=1e-6)
    assert set(content[KEY]["action"]) == {"mean", "std", "min", "max", "q01", "q99", "mask"}
    assert content[KEY]["num_transitions"] == len(actions) and content[KEY]["num_trajectories"] == 2


def test_metadata_describes_the_files(dataset):
    info = json.loads((dataset / "meta" / "info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == RATE
    assert info["total_frames"] == len(rows(dataset)["index"]) and info["total_episodes"] == 2
    assert info["features"]["observation.images.front"]["shape"] == [48, 64, 3]
    tasks = pq.read_table(dataset / "meta" / "tasks.parquet").to_pydict()
    assert tasks["__index_level_0__"] == ["pick up the red cube", "push the green cube"]
    described = pq.read_table(dataset / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    for episode in described:
        assert episode["dataset_to_index"] - episode["dataset_from_index"] == episode["length"]
        span = (
            episode["videos/observation.images.wrist/to_timestamp"]
            - episode["videos/observation.images.wrist/from_timestamp"]
        )
        assert span == pytest.approx(episode["length"] / RATE)
    statistics = json.loads((dataset / "meta" / "stats.json").read_text())
    pictures = np.stack(frames(dataset, "front")) / 255
    np.testing.assert_allclose(
        np.ravel(statistics["observation.images.front"]["mean"]), pictures.mean((0, 1, 2)), atol=0.02
    )


def test_same_episodes_give_the_same_bytes_in_any_number_of_processes(episodes, dataset, tmp_path):
    again = exported(episodes, tmp_path / "again", "--jobs", "2")
    assert digests(again) == digests(dataset)


def test_export_that_was_killed_goes_on_and_ends_with_the_same_bytes(tmp_path):
    root = tmp_path / "episodes"
    for name, seconds in (("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 8.0)):  # there is time to kill it before d is done
        make_episode(root / name, seconds=seconds, size=(320, 240))
    whole = digests(exported(root, tmp_path / "whole"))
    options = parsed(root, tmp_path / "torn")
    arguments = [str(root), "--out", str(options.out), "--embodiment", KEY, "--embodiments", str(options.embodiments)]
    code = (
        "import argparse, sys\nfrom teleop_recorder import export\nparser = argparse.ArgumentParser()\n"
        "export.add_arguments(parser)\nsys.exit(export.run(parser.parse_args()))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *arguments, "--jobs", "1"])
    pieces = tmp_path / ".torn.pieces"
    deadline = time.monotonic() + 60
    while not (pieces / "b").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not options.out.exists()
    finished = (pieces / "a" / export.PIECE_FILE).stat().st_mtime_ns
    seen = []
    original = export._write_runs

    def counting(episode, *rest):
        seen.append(episode.name)
        return original(episode, *rest)

    export._write_runs = counting
    try:
        assert (pieces / "a" / export.PIECE_FILE).stat().st_mtime_ns == finished
        assert export.run(options) == 0
    finally:
        export._write_runs = original
    assert "a" not in seen and "d" in seen
    assert digests(options.out) == whole
    assert not pieces.exists()


def test_pieces_of_other_settings_are_made_again(tmp_path):
    root = tmp_path / "episodes"
    make_episode(root / "a", seconds=1.0)
    make_episode(root / "bad", seconds=1.0, edit=lambda samples: [s for s in samples if s.topic != POSE])
    assert export.run(parsed(root, tmp_path / "dataset")) == 1
    shutil.rmtree(root / "bad")
    dataset = exported(root, tmp_path / "dataset", "--rate", "20")
    assert json.loads((dataset / "meta" / "info.json").read_text())["fps"] == 20
    np.testing.assert_allclose(np.diff(rows(dataset)["timestamp"]), 0.05, atol=1e-6)


def test_episode_discarded_after_its_pieces_were_made_is_absent(tmp_path):
    root = tmp_path / "episodes"
    make_episode(root / "a", seconds=1.0)
    make_episode(root / "b", seconds=1.0)
    make_episode(root / "bad", seconds=1.0, edit=lambda samples: [s for s in samples if s.topic != POSE])
    assert export.run(parsed(root, tmp_path / "dataset")) == 1
    Episode.open(root / "a").label(outcome="discard")
    Episode.open(root / "bad").label(outcome="discard")
    dataset = exported(root, tmp_path / "dataset")
    assert [source["source"] for source in sources(dataset)] == ["b"]


def test_episode_discarded_while_others_are_exported_is_absent(tmp_path, monkeypatch):
    root = tmp_path / "episodes"
    make_episode(root / "a", seconds=1.0)
    make_episode(root / "b", seconds=1.0)
    original = export._export_episode

    def discarding(request):
        result = original(request)
        if request.name == "b":
            Episode.open(root / "a").label(outcome="discard")
        return result

    monkeypatch.setattr(export, "_export_episode", discarding)
    dataset = exported(root, tmp_path / "dataset")
    assert [source["source"] for source in sources(dataset)] == ["b"]


def test_relabelled_task_is_exported_and_an_interrupted_episode_once_it_is_a_success(tmp_path):
    root = tmp_path / "episodes"
    Episode.open(make_episode(root / "a", seconds=1.0)).label(instruction="stack the cubes")
    Episode.open(make_episode(root / "b", seconds=1.0, outcome="interrupted")).label(outcome="success")
    dataset = exported(root, tmp_path / "dataset")
    tasks = pq.read_table(dataset / "meta" / "tasks.parquet").to_pydict()["__index_level_0__"]
    assert tasks == ["stack the cubes", "pick up the red cube"]


def test_idle_frames_are_left_out_reported_and_can_be_found_again(episodes, dataset, tmp_path, capsys):
    short = exported(episodes, tmp_path / "short", "--drop-idle")
    full, source = rows(dataset), sources(short)[0]
    assert source["idle"] >= 0.6 * RATE and "idle frames left out" in capsys.readouterr().out
    kept = [frame for begin, end in source["kept"] for frame in range(begin, end)]
    table = rows(short)
    mine = table["episode_index"] == 0
    np.testing.assert_array_equal(table["observation.state"][mine], full["observation.state"][kept[:-1]])
    assert kept[0] == 0 and kept[-1] == source["moments"] - 1
    settings = json.loads((short / export.SETTINGS_FILE).read_text())
    assert settings["idle"]["linear_speed"] == 0.005
    assert settings["idle_frames_left_out"] == sum(one["idle"] for one in sources(short))


def test_gap_of_a_camera_divides_an_episode(tmp_path, capsys):
    def gap(samples):
        return [s for s in samples if not (s.topic == FRONT and 1.0 < (stamp_of(s) - START_NS) / 1e9 < 1.5)]

    root = tmp_path / "episodes"
    make_episode(root / "a", seconds=2.5, edit=gap)
    dataset = exported(root, tmp_path / "dataset")
    assert [source["source"] for source in sources(dataset)] == ["a", "a"]
    first, second = sources(dataset)
    missing = second["first_moment"] - first["moments"]
    assert missing >= 5 and f"in 2 parts: at {missing} moments something was missing" in capsys.readouterr().out
    state = rows(dataset)["observation.state"][rows(dataset)["episode_index"] == 1]
    seconds = (sources(dataset)[1]["begin_stamp_ns"] - START_NS) / 1e9
    np.testing.assert_allclose(state[0, :3], position_at(progress_at(seconds, 2.5)), atol=1e-3)
    held = exported(root, tmp_path / "held", "--align", "hold")
    assert [source["source"] for source in sources(held)] == ["a"]


def test_cameras_are_chosen_ordered_and_resized(episodes, tmp_path):
    dataset = exported(episodes, tmp_path / "dataset", "--cameras", "wrist", "--size", "32x24")
    assert sorted(path.name for path in (dataset / "videos").iterdir()) == ["observation.images.wrist"]
    assert frames(dataset, "wrist")[0].shape == (24, 32, 3)
    conventions = Embodiment.from_file(dataset / EMBODIMENT_FILE, KEY)
    assert conventions.cameras == ("wrist",) and conventions.image_size == (32, 24)


def test_targets_are_followed_when_asked_for(tmp_path):
    def ahead(samples):  # the arm is 0.1 s behind its target
        return [
            restamp(sample, stamp_of(sample) + 100_000_000) if sample.topic == POSE else sample for sample in samples
        ]

    root = tmp_path / "episodes"
    make_episode(root / "a", edit=ahead)
    actions = {}
    for choice in ("measured", "target"):
        dataset = exported(root, tmp_path / choice, "--actions", choice)
        actions[choice] = rows(dataset)["action"]
    # The same motion, but 0.1 s earlier.
    fastest = {choice: np.linalg.norm(action[:, :3], axis=1).argmax() for choice, action in actions.items()}
    assert fastest["measured"] - fastest["target"] in (1, 2)


def test_commanded_gripper_is_in_the_actions_and_the_measured_one_in_the_state(tmp_path):
    store = typestore()
    for name in ("CartesianDelta", "TeleopCommand"):
        kind = f"molmoact_msgs/msg/{name}"
        store.register(get_types_from_msg((MESSAGES / f"{name}.msg").read_text(), kind))

    def command(stamp_ns: int, gripper: float, enabled: bool) -> Sample:
        message = message_of(store, kind, enabled=enabled)
        message.delta.gripper = gripper
        return restamp(Sample("/teleop_command", stamp_ns, kind, message), stamp_ns)

    samples = []
    make_episode(tmp_path / "made", seconds=2.0, edit=lambda made: samples.extend(made) or made)
    first, closing, idle = START_NS, START_NS + 10**9, START_NS + 15 * 10**8
    samples += [command(first, 1.0, True), command(closing, 0.0, True), command(idle, 1.0, False)]
    write_samples(tmp_path / "episodes" / "a", sorted(samples, key=lambda sample: sample.log_ns), store)
    dataset = exported(tmp_path / "episodes", tmp_path / "dataset", "--gripper", "command")
    table = rows(dataset)
    assert table["observation.state"][-1, 7] == pytest.approx(0.5, abs=0.01)
    asked = 1.0 - table["action"][:, 6]  # low opens
    assert set(asked.tolist()) == {0.0, 1.0} and np.all(np.diff(asked) <= 0)
    assert np.flatnonzero(asked == 0)[0] == pytest.approx(RATE - 1, abs=1)


def test_two_arms_stand_side_by_side(tmp_path):
    def mirrored(samples):
        arms = {POSE, GRIPPER}
        left = [sample._replace(topic=f"/left{sample.topic}") if sample.topic in arms else sample for sample in samples]
        right = [sample._replace(topic=f"/right{sample.topic}") for sample in samples if sample.topic in arms]
        return sorted(left + right, key=lambda sample: sample.log_ns)

    make_episode(tmp_path / "episodes" / "a", seconds=1.0, edit=mirrored)
    dataset = exported(tmp_path / "episodes", tmp_path / "dataset", "--arms", "left/", "right/")
    table = rows(dataset)
    np.testing.assert_array_equal(table["action"][:, :7], table["action"][:, 7:])
    np.testing.assert_array_equal(table["observation.state"][:, :8], table["observation.state"][:, 8:])
    names = json.loads((dataset / "meta" / "info.json").read_text())["features"]["action"]["names"]
    assert (names[0], names[7], names[13]) == ("left_x", "right_x", "right_gripper")


def test_episode_that_cannot_be_exported_is_named_and_nothing_is_written(tmp_path, capsys):
    root = tmp_path / "episodes"
    make_episode(root / "a", seconds=1.0, edit=lambda samples: [s for s in samples if s.topic != POSE])
    make_episode(root / "b", seconds=1.0, task="", instruction="")
    assert export.run(parsed(root, tmp_path / "dataset")) == 1
    said = capsys.readouterr().err
    assert "episode a: there is no /current_pose" in said and "episode b: has no instruction: relabel it" in said
    assert not (tmp_path / "dataset").exists()


def test_unreadable_episode_is_left_out_and_said(tmp_path, capsys):
    root = tmp_path / "episodes"
    make_episode(root / "a", seconds=1.0)
    make_episode(root / "b", seconds=1.0)
    (root / "b" / METADATA).write_text("a: [")
    exported(root, tmp_path / "dataset")
    said = capsys.readouterr()
    assert "left out: 1 unreadable" in said.out and "episode b is unreadable" in said.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--rate", "0"), "rate is 0"),
        (("--tolerance", "-1"), "tolerance is -1.0"),
        (("--cameras", "front", "front"), "expected different names"),
        (("--embodiment", "other"), "no entry for unnorm_key 'other'"),
        (("--jobs", "0"), "--jobs 0"),
        (("--idle-longer-than", "-2"), "longer_than is -2.0"),
    ],
)
def test_request_that_makes_no_sense_is_refused_before_any_work(episodes, tmp_path, capsys, more, message):
    assert export.run(parsed(episodes, tmp_path / "dataset", *more)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob(".dataset*"))


def test_dataset_that_exists_is_not_touched(episodes, tmp_path, capsys):
    (tmp_path / "dataset").mkdir()
    assert export.run(parsed(episodes, tmp_path / "dataset")) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["320", "320x", "0x240", "321x240", "axb"])
def test_size_that_video_cannot_hold_is_refused(episodes, tmp_path, size):
    with pytest.raises(SystemExit):
        parsed(episodes, tmp_path / "dataset", "--size", size)
