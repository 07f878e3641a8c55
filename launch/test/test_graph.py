from __future__ import annotations

from pathlib import Path

import pytest
from molmoact_bringup.errors import ConfigurationError
from molmoact_bringup.graph import Deployment, RecordingDeployment, ReplayDeployment, recording, replay, single_arm

FILES = (
    "policy",
    "bridge",
    "sim",
    "cameras",
    "embodiments",
    "recorder",
    "replay",
    "teleop",
    "robots/sim",
    "robots/fr3",
    "scenes/tabletop",
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for name in FILES:
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.touch()
    return tmp_path


def nodes(config: Path, *arguments: str) -> dict:
    return {node.name: node for node in single_arm(Deployment.from_arguments(arguments), config)}


def test_simulated_system_differs_from_the_real_one_only_by_the_robot_and_its_cameras(config):
    simulated = nodes(config, "robot:=sim")
    real = nodes(config, "robot:=fr3", "front_serial:=1", "wrist_serial:=2")
    assert set(simulated) == {"franka_sim", "franka_bridge", "policy"}
    assert set(real) == {"front", "wrist", "franka_bridge", "policy"}
    for name in ("franka_bridge", "policy"):
        assert simulated[name].parameters == real[name].parameters
        assert [file.name.replace("sim", "fr3") for file in simulated[name].parameter_files] == [
            file.name for file in real[name].parameter_files
        ]


def test_cameras_get_their_serial_numbers_as_text(config):
    real = nodes(config, "robot:=fr3", "front_serial:=0123456", "wrist_serial:=2")
    assert real["front"].parameters["serial_no"] == "0123456"
    assert real["front"].full_name == "/camera/front"


def test_robot_specific_values_win_over_general_ones(config):
    assert [file.name for file in nodes(config)["franka_bridge"].parameter_files] == ["bridge.yaml", "sim.yaml"]


def test_simulated_time_reaches_every_node(config):
    simulated = nodes(config, "use_sim_time:=true")
    assert simulated["franka_sim"].parameters["publish_clock"] is True
    assert simulated["policy"].parameters["use_sim_time"] is True
    assert simulated["franka_bridge"].parameters["use_sim_time"] is True


def test_checkpoint_directory_is_made_absolute(config, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert nodes(config, "checkpoint:=mine")["policy"].parameters["checkpoint"] == str(tmp_path / "mine")


def test_embedded_checkpoint_is_meant_by_its_name_also_beside_a_directory_of_that_name(config, tmp_path, monkeypatch):
    (tmp_path / "nano").mkdir()
    monkeypatch.chdir(tmp_path)
    assert nodes(config, "checkpoint:=nano")["policy"].parameters["checkpoint"] == "nano"
    assert nodes(config, "checkpoint:=./nano")["policy"].parameters["checkpoint"] == str(tmp_path / "nano")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["robot:=ur5"], "argument 'robot': 'ur5' is not one of sim, fr3"),
        (["robot=sim"], "argument 'robot=sim': expected name:=value"),
        (["rboot:=sim"], "argument 'rboot': unknown, expected one of robot, front_serial"),
        (["robot:=fr3", "wrist_serial:=1"], "argument 'front_serial': needed for robot:=fr3"),
        (
            ["robot:=fr3", "front_serial:=1", "wrist_serial:=2", "use_sim_time:=true"],
            "a real robot runs on the wall clock",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Deployment.from_arguments(arguments)


def recording_nodes(config: Path, *arguments: str) -> dict:
    return {node.name: node for node in recording(RecordingDeployment.from_arguments(arguments), config)}


@pytest.mark.parametrize(
    ("device", "teleop"),
    [
        ("none", set()),
        ("gamepad", {"teleop_gamepad"}),
        ("spacemouse", {"teleop_spacemouse"}),
        ("leader", {"teleop_leader"}),
    ],
)
def test_recording_has_a_recorder_and_the_chosen_device_in_the_place_of_the_policy(config, device, teleop):
    assert set(recording_nodes(config, f"device:={device}")) == {"franka_sim", "franka_bridge", "recorder"} | teleop


def test_episodes_go_where_the_operator_stands(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorder = recording_nodes(config, "episodes:=takes", "use_sim_time:=true")["recorder"]
    assert recorder.parameters == {"directory": str(tmp_path / "takes"), "use_sim_time": True}


def test_depth_is_recorded_beside_everything_else(config):
    (config / "recorder.yaml").write_text("recorder: {ros__parameters: {topics: [joint_states 15 Hz, task]}}")
    assert "topics" not in recording_nodes(config)["recorder"].parameters
    topics = recording_nodes(config, "depth:=true")["recorder"].parameters["topics"]
    assert topics == ["joint_states 15 Hz", "task", "camera/front/aligned_depth_to_color/image_raw"]


def replay_nodes(config: Path, *arguments: str) -> dict:
    return {node.name: node for node in replay(ReplayDeployment.from_arguments(arguments), config)}


def test_replay_is_kept_apart_from_every_robot(config, tmp_path):
    system = replay_nodes(config, f"bag:={tmp_path}")
    assert set(system) == {"policy", "replay"}
    for node in system.values():
        assert node.namespace == "/replay"
        assert all(target.startswith("/replay/") for _, target in node.remappings)
    assert ("/clock", "/replay/clock") in system["policy"].remappings
    assert not ReplayDeployment(bag=str(tmp_path)).reaches_a_robot
    assert Deployment(robot="fr3", front_serial="1", wrist_serial="2").reaches_a_robot
    assert not Deployment().reaches_a_robot


def test_replay_ends_the_system_when_it_is_done_and_writes_where_the_operator_stands(config, tmp_path, monkeypatch):
    (tmp_path / "bag").mkdir()
    monkeypatch.chdir(tmp_path)
    system = replay_nodes(config, "bag:=bag", "out:=results", "every:=5")
    assert [node.name for node in system.values() if node.finishes] == ["replay"]
    found = system["replay"].parameters
    assert (found["bag"], found["out"], found["every"]) == (str(tmp_path / "bag"), str(tmp_path / "results"), 5)
    assert found["checkpoint"] == system["policy"].parameters["checkpoint"] == "nano"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "argument 'bag': '' is no directory"),
        (["bag:=/nowhere"], "argument 'bag': '/nowhere' is no directory"),
        (["bag:=/tmp", "every:=0"], "argument 'every': '0' is not a whole number"),
        (["bag:=/tmp", "robot:=fr3"], "argument 'robot': unknown, expected one of bag, checkpoint"),
    ],
)
def test_wrong_arguments_of_a_replay_are_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        ReplayDeployment.from_arguments(arguments)


def test_missing_parameter_file_is_named(config):
    (config / "bridge.yaml").unlink()
    with pytest.raises(ConfigurationError, match=r"bridge\.yaml: not found"):
        single_arm(Deployment(), config)
