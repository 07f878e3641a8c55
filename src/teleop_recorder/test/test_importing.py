"""Recordings of others become episodes, and what was exported comes back."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rosbags.rosbag2 import StoragePlugin, Writer
from scipy.spatial.transform import Rotation
from teleop_recorder import importing
from teleop_recorder.alignment import read_arm
from teleop_recorder.episode import Episode, find_episodes
from teleop_recorder.errors import ConfigurationError
from teleop_recorder.foreign_bag import load_bag_mapping
from teleop_recorder.lerobot_layout import VideoWriter
from teleop_recorder.pictures import decode_picture

from .episodes import (
    FRONT,
    GRIPPER,
    POSE,
    START_NS,
    Sample,
    make_episode,
    number_of,
    picture,
    position_at,
    quaternion_at,
    stamp_of,
    typestore,
)
from .test_export import digests, exported, rows


def imported(source: Path, out: Path, mapping: dict | None = None, *more: str) -> list[Episode]:
    assert importing.run(parsed(source, out, mapping, *more)) == 0
    return [Episode.open(directory) for directory in find_episodes(out)]


def parsed(source: Path, out: Path, mapping: dict | None, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    importing.add_arguments(parser)
    arguments = [str(source), "--out", str(out), *more]
    if mapping is not None:
        path = out.parent / "mapping.yaml"
        path.write_text(yaml.safe_dump(mapping))
        arguments += ["--mapping", str(path)]
    return parser.parse_args(arguments)


def pictures(episode: Episode, topic: str) -> list[np.ndarray]:
    return [decode_picture(episode, topic, message.data) for message in episode.messages([topic])]


# Datasets


def test_what_was_exported_comes_back_the_same_after_import_and_export(tmp_path):
    make_episode(tmp_path / "episodes" / "a", seconds=1.5)
    make_episode(tmp_path / "episodes" / "b", seconds=1.0, instruction="push the green cube")
    first = exported(tmp_path / "episodes", tmp_path / "first")
    episodes = imported(first, tmp_path / "back")
    assert [episode.name for episode in episodes] == ["first_000000", "first_000001"]
    assert [episode.labels.instruction for episode in episodes] == ["pick up the red cube", "push the green cube"]
    second = exported(tmp_path / "back", tmp_path / "second")
    before, after = rows(first), rows(second)
    for number in (0, 1):
        # Where the last step ends was not in the dataset: each loses a frame.
        these, those = before["episode_index"] == number, after["episode_index"] == number
        np.testing.assert_allclose(
            before["observation.state"][these][:-1], after["observation.state"][those], atol=1e-6
        )
        np.testing.assert_allclose(before["action"][these][:-1], after["action"][those], atol=1e-5)


def write_dataset_v21(root: Path, image: bool = False, frames: int = 20) -> None:
    """Two episodes at 10 Hz; state: x, y, z, rpy, width of both fingers in mm."""
    feature = {"dtype": "image" if image else "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    info = {
        "codebase_version": "v2.1",
        "fps": 10,
        "chunks_size": 1000,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {"state": {"dtype": "float32", "shape": [7], "names": None}, "top": feature},
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    lines = [{"episode_index": n, "tasks": [f"task {n}"], "length": frames} for n in (0, 1)]
    (root / "meta" / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "data" / "chunk-000").mkdir(parents=True)
    (root / "videos" / "chunk-000" / "top").mkdir(parents=True)
    for number in (0, 1):
        shown = [picture(20 * number + frame, (64, 48), 0) for frame in range(frames)]
        columns = {
            "state": [[0.1 * frame, number, 0.3, 3.0, 0.1, -0.2, 40.0] for frame in range(frames)],
            "timestamp": (np.arange(frames) / 10).astype(np.float32),
            "episode_index": [number] * frames,
        }
        if image:
            encoded = [cv2.imencode(".png", cv2.cvtColor(one, cv2.COLOR_RGB2BGR))[1].tobytes() for one in shown]
            columns["top"] = [{"bytes": data, "path": None} for data in encoded]
        else:
            with VideoWriter(
                root / "videos" / "chunk-000" / "top" / f"episode_{number:06d}.mp4", (64, 48), 10
            ) as video:
                for one in shown:
                    video.write(one)
        pq.write_table(pa.table(columns), root / "data" / "chunk-000" / f"episode_{number:06d}.parquet")


V21_MAPPING = {
    "cameras": {"front": "top"},
    "state": "state",
    "position": [0, 1, 2],
    "rotation": [3, 4, 5],
    "rotation_kind": "rpy",
    "gripper": {"feature": "state", "indices": [6], "scale": 0.001},
}


@pytest.mark.parametrize("image", [False, True])
def test_dataset_v21_becomes_episodes_with_pictures_poses_and_widths(tmp_path, image):
    write_dataset_v21(tmp_path / "theirs", image)
    episodes = imported(tmp_path / "theirs", tmp_path / "ours", V21_MAPPING)
    assert [(episode.labels.instruction, episode.labels.outcome) for episode in episodes] == [
        ("task 0", "success"),
        ("task 1", "success"),
    ]
    for number, episode in enumerate(episodes):
        shown = [number_of(one) for one in pictures(episode, f"{FRONT}/compressed")]
        assert shown == [20 * number + frame for frame in range(20)]
        arm = read_arm(episode, "", targets=False, commanded=False)
        np.testing.assert_allclose(arm.measured.positions, [[0.1 * n, number, 0.3] for n in range(20)], atol=1e-6)
        turn = Rotation.from_quat(arm.measured.quaternions).inv() * Rotation.from_euler("xyz", [3.0, 0.1, -0.2])
        assert turn.magnitude().max() < 1e-6
        np.testing.assert_allclose(arm.openings.values, 0.5)
        np.testing.assert_allclose(np.diff(arm.measured.stamps), 1e8)


def test_dataset_without_mapping_is_told_what_it_has(tmp_path, capsys):
    write_dataset_v21(tmp_path / "theirs")
    assert importing.run(parsed(tmp_path / "theirs", tmp_path / "ours", None)) == 2
    assert "needs a --mapping that says what its features are: state, top" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": "proprio"}, "there is no feature proprio"),
        ({"rotation": [5, 6, 7]}, "state has 7 numbers, the mapping asks for 7"),
        ({"rotation_kind": "euler"}, "rotation_kind: 'euler', expected one of quaternion"),
        ({"rotation": [1]}, r"rotation: [1], expected 3 indices"),
        ({"cameras": {"front": "state"}}, "camera front: state is float32, expected pictures"),
        ({"colour": 1}, "colour: unknown"),
    ],
)
def test_wrong_entry_of_a_dataset_mapping_is_named(tmp_path, capsys, change, message):
    write_dataset_v21(tmp_path / "theirs")
    assert importing.run(parsed(tmp_path / "theirs", tmp_path / "ours", V21_MAPPING | change)) == 2
    assert message in capsys.readouterr().err


def test_episode_whose_video_ends_early_is_named_and_the_others_are_imported(tmp_path, capsys):
    root = tmp_path / "theirs"
    write_dataset_v21(root)
    with VideoWriter(root / "videos" / "chunk-000" / "top" / "episode_000001.mp4", (64, 48), 10) as video:
        video.write(picture(0, (64, 48), 0))
    assert importing.run(parsed(root, tmp_path / "ours", V21_MAPPING)) == 1
    assert "theirs_000001: " in (said := capsys.readouterr().err) and "there is no picture at 0.100 s" in said
    assert [path.name for path in find_episodes(tmp_path / "ours")] == ["theirs_000000"]


def test_import_that_is_started_again_leaves_what_is_there(tmp_path):
    write_dataset_v21(tmp_path / "theirs")
    imported(tmp_path / "theirs", tmp_path / "ours", V21_MAPPING)
    before = digests(tmp_path / "ours")
    assert "theirs_000000" in (tmp_path / "ours" / "episodes.jsonl").read_text()
    imported(tmp_path / "theirs", tmp_path / "ours", V21_MAPPING)
    after = digests(tmp_path / "ours")
    assert {name: after[name] for name in after if name.endswith(".mcap")} == {
        name: before[name] for name in before if name.endswith(".mcap")
    }


# Bags

RENAMED = {FRONT: "/cam_high/image", POSE: "/panda/ee_pose", GRIPPER: "/panda_gripper/joints"}
BAG_MAPPING = {"topics": {theirs: ours for ours, theirs in RENAMED.items()}}


def write_foreign_bag(directory: Path, plugin: StoragePlugin, samples: list[Sample]) -> None:
    store = typestore()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with Writer(directory, version=8, storage_plugin=plugin) as writer:
        connections = {}
        for sample in samples:
            if sample.topic not in connections:
                connections[sample.topic] = writer.add_connection(sample.topic, sample.type, typestore=store)
            writer.write(connections[sample.topic], sample.log_ns, store.serialize_cdr(sample.message, sample.type))


def foreign_samples(tmp_path: Path, seconds: float = 1.0) -> list[Sample]:
    """Those of a demonstration, by other names."""
    kept: list[Sample] = []

    def keep(samples):
        kept.extend(samples)
        return samples

    make_episode(tmp_path / "made", seconds=seconds, edit=keep)
    return [sample._replace(topic=RENAMED[sample.topic]) for sample in kept if sample.topic in RENAMED]


@pytest.mark.parametrize("plugin", [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
def test_foreign_bag_becomes_an_episode_that_can_be_exported(tmp_path, plugin):
    write_foreign_bag(tmp_path / "bags" / "monday", plugin, foreign_samples(tmp_path))
    (episode,) = imported(tmp_path / "bags", tmp_path / "ours", BAG_MAPPING, "--instruction", "wipe the table")
    assert (episode.name, episode.labels.instruction) == ("monday", "wipe the table")
    dataset = exported(tmp_path / "ours", tmp_path / "dataset", "--cameras", "front")
    np.testing.assert_allclose(rows(dataset)["observation.state"][0, :3], position_at(0.0), atol=1e-4)
    np.testing.assert_allclose(rows(dataset)["observation.state"][-1, :3], position_at(1.0), atol=5e-3)


def transform(store, stamp_ns: int, parent: str, child: str, position, quaternion):
    stamp = store.types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, 10**9))
    vector, rotation = store.types["geometry_msgs/msg/Vector3"], store.types["geometry_msgs/msg/Quaternion"]
    return store.types["geometry_msgs/msg/TransformStamped"](
        header=store.types["std_msgs/msg/Header"](stamp=stamp, frame_id=parent),
        child_frame_id=child,
        transform=store.types["geometry_msgs/msg/Transform"](
            translation=vector(*map(float, position)), rotation=rotation(*map(float, quaternion))
        ),
    )


def test_pose_is_found_through_tf_and_the_width_among_all_joints(tmp_path):
    store = typestore()
    kind, static = "tf2_msgs/msg/TFMessage", []
    samples = [sample for sample in foreign_samples(tmp_path) if sample.topic != RENAMED[POSE]]
    offset, tilt = [0.0, 0.0, 0.1], Rotation.from_euler("z", 0.5).as_quat()
    static = [transform(store, 0, "flange", "tool", offset, tilt)]
    samples.append(Sample("/tf_static", START_NS, kind, store.types[kind](transforms=static)))
    for n in range(50):
        stamp = START_NS + n * 20_000_000
        moved = [transform(store, stamp, "base", "flange", [0.01 * n, 0, 0.4], quaternion_at(0.0))]
        samples.append(Sample("/tf", stamp + 1_000_000, kind, store.types[kind](transforms=moved)))
    samples.sort(key=lambda sample: sample.log_ns)
    write_foreign_bag(tmp_path / "bag", StoragePlugin.MCAP, samples)
    mapping = {
        "topics": {RENAMED[FRONT]: FRONT},
        "tf": {POSE: ["base", "tool"]},
        "gripper": {"topic": RENAMED[GRIPPER], "joints": ["fr3_finger_joint1"], "scale": 2.0},
    }
    (episode,) = imported(tmp_path / "bag", tmp_path / "ours", mapping)
    arm = read_arm(episode, "", targets=False, commanded=False)
    # The flange looks down: the tool is below it.
    np.testing.assert_allclose(arm.measured.positions, [[0.01 * n, 0, 0.3] for n in range(50)], atol=1e-9)
    expected = Rotation.from_quat(quaternion_at(0.0)) * Rotation.from_quat(tilt)
    assert (Rotation.from_quat(arm.measured.quaternions).inv() * expected).magnitude().max() < 1e-9
    assert arm.measured.stamps[1] == START_NS + 20_000_000
    assert arm.openings.values[0] == pytest.approx(1.0)


def test_messages_without_stamps_are_refused_unless_receipt_counts(tmp_path, capsys):
    samples = foreign_samples(tmp_path)
    received = {sample.log_ns for sample in samples if sample.topic == RENAMED[POSE]}
    for sample in samples:
        sample.message.header.stamp.sec = sample.message.header.stamp.nanosec = 0
    write_foreign_bag(tmp_path / "bag", StoragePlugin.SQLITE3, samples)
    assert importing.run(parsed(tmp_path / "bag", tmp_path / "ours", BAG_MAPPING)) == 1
    assert "a message has no stamp; set 'stamps: receipt'" in capsys.readouterr().err
    (episode,) = imported(tmp_path / "bag", tmp_path / "ours", BAG_MAPPING | {"stamps": "receipt"})
    assert set(read_arm(episode, "", False, False).measured.stamps.tolist()) == received


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topics": {"/none": POSE}}, "there is no /none; it has"),
        ({"topics": {RENAMED[GRIPPER]: POSE}}, "is sensor_msgs/msg/JointState, but /current_pose is geometry_msgs"),
        ({"topics": {}, "tf": {POSE: ["base", "tool"]}}, "there is no /tf"),
        (
            {"topics": {RENAMED[POSE]: POSE}, "gripper": {"topic": RENAMED[GRIPPER], "joints": ["thumb"]}},
            "no joint thumb",
        ),
    ],
)
def test_mapping_that_does_not_fit_the_bag_is_named(tmp_path, capsys, change, message):
    write_foreign_bag(tmp_path / "bag", StoragePlugin.MCAP, foreign_samples(tmp_path, seconds=0.2))
    assert importing.run(parsed(tmp_path / "bag", tmp_path / "ours", BAG_MAPPING | change)) == 1
    assert message in capsys.readouterr().err
    assert find_episodes(tmp_path / "ours") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "expected a mapping"),
        ("topics: {/a: b}", "topics: /a: 'b', expected a topic"),
        ("tf: {/current_pose: base}", "tf: /current_pose: 'base', expected"),
        ("stamps: clock", "stamps: 'clock', expected header or receipt"),
        ("gripper: {scale: 1}", "gripper: topic: missing"),
        ("gripper: {topic: /a, scale: wide}", "gripper: scale: 'wide', expected a number"),
        ("speed: 1", "speed: unknown"),
        ("{topics: {/a: /current_pose}, tf: {/current_pose: [a, b]}}", "/current_pose: comes from two places"),
        ("{}", "names neither topics nor tf"),
        ("a: [", "not readable"),
    ],
)
def test_wrong_entry_of_a_bag_mapping_is_named(tmp_path, content, message):
    path = tmp_path / "mapping.yaml"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=rf"mapping\.yaml: (\[1\], )?{message}"):
        load_bag_mapping(path)


def test_directory_with_nothing_to_import_is_refused(tmp_path, capsys):
    assert importing.run(parsed(tmp_path, tmp_path / "ours", None)) == 2
    assert "is no LeRobot dataset (meta/info.json), and there is no bag" in capsys.readouterr().err


def test_stamps_of_the_foreign_bag_are_kept(tmp_path):
    samples = foreign_samples(tmp_path)
    write_foreign_bag(tmp_path / "bag", StoragePlugin.MCAP, samples)
    (episode,) = imported(tmp_path / "bag", tmp_path / "ours", BAG_MAPPING)
    expected = [stamp_of(sample) for sample in samples if sample.topic == RENAMED[POSE]]
    assert read_arm(episode, "", False, False).measured.stamps.tolist() == expected
