"""Recorded episodes and exports as what replies are compared with."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from molmoact_policy.embodiment import Embodiment
from molmoact_training.errors import DatasetError
from molmoact_training.evaluation.command import main as evaluate
from molmoact_training.evaluation.episode_source import EpisodeSettings, EpisodeSource
from molmoact_training.evaluation.looks import Look, Source
from molmoact_training.evaluation.sources import open_source
from teleop_recorder.commands import main as episodes_command

ROOT = Path(__file__).parents[2]
# The recordings that teleop_recorder is tested with: what moved is known, and every picture has its number in it.
_spec = importlib.util.spec_from_file_location("episodes", ROOT / "src/teleop_recorder/test/episodes.py")
episodes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(episodes)

SECONDS = 3.0
EMBODIMENT = replace(
    Embodiment.from_file(ROOT / "config/embodiments.yaml", "franka"), step_period=0.1, image_size=None, rows=8
)
SETTINGS = EpisodeSettings(EMBODIMENT, EMBODIMENT.cameras)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recorded") / "episodes"
    episodes.make_episode(root / "a", seconds=SECONDS)
    episodes.make_episode(root / "b", seconds=SECONDS, compressed=True, instruction="push it")
    episodes.make_episode(root / "c", outcome="failure", seconds=1.0)
    return root


@pytest.fixture(scope="module")
def exported(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "dataset"
    options = ["--embodiment", "franka", "--rate", "10", "--size", "64x48", "--jobs", "1"]
    assert episodes_command(["export", str(recorded), "--out", str(out), *options]) == 0
    return out


def looks(source: Source, name: str) -> list[Look]:
    return list(source.looks(name, source.recording(name).frames[::4].tolist()))


def test_recorded_motion_is_what_the_arm_did(recorded):
    source = open_source(recorded, SETTINGS)
    assert source.names() == ["a", "b"]
    assert source.left_out == {"episodes with outcome failure": 1}
    recording = source.recording("a")
    seen = looks(source, "a")
    assert [look.frame for look in seen] == recording.frames[::4].tolist()
    whole = np.concatenate([look.recorded[:4] for look in seen])
    begin, end = (episodes.position_at(episodes.progress_at(t, SECONDS)) for t in (1 / 90, 1 / 90 + 0.1 * len(whole)))
    assert whole[:, :3].sum(0) == pytest.approx(end - begin, abs=2e-4)
    assert recording.openings[0] == pytest.approx(1.0) and recording.openings[-1] == pytest.approx(0.5)
    assert seen[-1].recorded.shape[0] == recording.frames[-1] - seen[-1].frame + 1


def test_pictures_are_those_of_their_moment(recorded):
    for name in ("a", "b"):
        for look in looks(open_source(recorded, SETTINGS), name):
            front, wrist = (episodes.number_of(image) for image in look.images)
            assert front == wrist
            assert abs(front / episodes.CAMERA_HZ - look.frame / 10) < 0.06


def test_an_export_says_the_same_as_the_episodes_it_is_made_of(recorded, exported):
    ours, theirs = open_source(recorded, SETTINGS), open_source(exported, SETTINGS)
    assert theirs.embodiment.cameras == ("front", "wrist") and theirs.dimensions == 7
    for name, number in zip(ours.names(), theirs.names(), strict=True):
        assert np.array_equal(ours.recording(name).frames, theirs.recording(number).frames)
        for one, other in zip(looks(ours, name), looks(theirs, number), strict=True):
            assert one.recorded == pytest.approx(other.recorded, abs=1e-6)
            assert one.instruction == other.instruction
            assert [*map(episodes.number_of, one.images)] == [*map(episodes.number_of, other.images)]


def test_looks_at_single_frames_are_the_same_as_in_passing(recorded):
    source = open_source(recorded, SETTINGS)
    for look in looks(source, "a")[2:4]:
        (alone,) = EpisodeSource(recorded, SETTINGS).looks("a", [look.frame])
        assert np.array_equal(alone.images[0], look.images[0]) and np.array_equal(alone.recorded, look.recorded)


def test_imported_episodes_are_evaluated_like_recorded_ones(recorded, exported, tmp_path):
    assert episodes_command(["import", str(exported), "--out", str(tmp_path / "imported")]) == 0
    imported = open_source(tmp_path / "imported", SETTINGS)
    name = imported.names()[0]
    ours, theirs = looks(open_source(recorded, SETTINGS), "a"), looks(imported, name)
    for one, other in zip(ours[:-2], theirs, strict=False):
        assert one.recorded[:, :6] == pytest.approx(other.recorded[:, :6], abs=1e-5)
        assert episodes.number_of(one.images[0]) == episodes.number_of(other.images[0])


def without(topic: str):
    return lambda samples: [sample for sample in samples if not sample.topic.startswith(topic)]


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (without(episodes.WRIST), "episode bad: camera wrist: there is no /camera/wrist/color/image_raw"),
        (without(episodes.POSE), "episode bad: there is no /current_pose"),
        (without(episodes.GRIPPER), "episode bad: there is no /franka_gripper/joint_states"),
    ],
)
def test_missing_topics_are_named_with_their_episode(tmp_path, edit, complaint):
    episodes.make_episode(tmp_path / "bad", seconds=1.0, edit=edit)
    with pytest.raises(DatasetError, match=complaint):
        open_source(tmp_path, SETTINGS).recording("bad")


def test_damaged_picture_is_named_with_its_topic(tmp_path):
    def damage(samples):
        for sample in samples:
            if sample.topic.startswith(episodes.FRONT):
                sample.message.data = sample.message.data[:100]
        return samples

    episodes.make_episode(tmp_path / "bad", seconds=1.0, compressed=True, edit=damage)
    with pytest.raises(DatasetError, match="episode bad: /camera/front/color/image_raw/compressed"):
        looks(open_source(tmp_path, SETTINGS), "bad")


def test_directories_without_anything_to_evaluate_say_what_was_expected(tmp_path, recorded, exported):
    with pytest.raises(DatasetError, match="is no directory"):
        open_source(tmp_path / "nowhere", SETTINGS)
    with pytest.raises(DatasetError, match=r"no annotated dataset \(frames-\*\.arrow\), no LeRobot dataset"):
        open_source(tmp_path, SETTINGS)
    (tmp_path / "bag").mkdir()
    (tmp_path / "bag" / "bag_0.db3").touch()
    with pytest.raises(DatasetError, match="`molmoact episodes import` first"):
        open_source(tmp_path, SETTINGS)
    with pytest.raises(DatasetError, match=r"no episode is a success \(found: 1 failure\)"):
        open_source(recorded / "c", SETTINGS)


@pytest.mark.parametrize("name", ["dataset_statistics.json", "embodiment.yaml"])
def test_export_without_its_statistics_or_conventions_is_refused(exported, name):
    file = exported / name
    content = file.read_bytes()
    file.unlink()
    try:
        with pytest.raises(DatasetError, match=f"{name} is missing"):
            open_source(exported, SETTINGS)
    finally:
        file.write_bytes(content)


def test_unreadable_video_is_named(exported):
    (video,) = (exported / "videos/observation.images.front").rglob("*.mp4")
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2])
    try:
        with pytest.raises(DatasetError, match=r"front/chunk-000/file-000\.mp4"):
            open_source(exported, SETTINGS)
    finally:
        video.write_bytes(content)


def test_command_gives_the_same_answers_however_many_processes_there_are(recorded, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the last bits of a sum may depend on it
    found = []
    for jobs in ("1", "2"):
        out = tmp_path / jobs
        assert evaluate(["nano", "--data", str(recorded), "--out", str(out), "--every", "40", "--jobs", jobs]) == 0
        lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
        found.append([{name: value for name, value in line.items() if name != "latency_s"} for line in lines])
    assert found[0] == found[1]
    assert [(line["episode"], line["frame"]) for line in found[0]] == [("a", 0), ("b", 0)]
