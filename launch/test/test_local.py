from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from molmoact_bringup import local
from molmoact_bringup.errors import ConfigurationError
from molmoact_bringup.graph import NodeSpec


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prefix with the package `acme` and its executable `arm`."""
    index = tmp_path / "share/ament_index/resource_index/packages"
    index.mkdir(parents=True)
    (index / "acme").touch()
    program = tmp_path / "lib/acme/arm"
    program.parent.mkdir(parents=True)
    program.touch()
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    return tmp_path


def test_command_is_the_one_of_ros2_run(package):
    node = NodeSpec(
        "acme",
        "arm",
        "left_arm",
        namespace="/left",
        parameter_files=(Path("/config/arm.yaml"),),
        parameters={"speed": 0.1},
        remappings=(("pose", "target_pose"),),
    )
    command = local.node_command(node, {"ROS_DOMAIN_ID": "7"})
    assert command.argv == (
        *(str(package / "lib/acme/arm"), "--ros-args", "-r", "__node:=left_arm", "-r", "__ns:=/left"),
        *("--params-file", "/config/arm.yaml", "-p", "speed:=0.1", "-r", "pose:=target_pose"),
    )
    assert command.environment == {"ROS_DOMAIN_ID": "7"}


@pytest.mark.parametrize("value", ["0123", "true", 'say "hi": now', "größer", "", 3, 0.5, True, ["1", "b"]])
def test_parameter_values_keep_their_type(package, value):
    command = local.node_command(NodeSpec("acme", "arm", "arm", parameters={"p": value}), {})
    read = yaml.safe_load(command.argv[-1].removeprefix("p:="))
    assert read == value and type(read) is type(value)


def test_missing_package_and_executable_are_named_with_their_node(package):
    with pytest.raises(ConfigurationError, match="node /cam: package 'realsense2_camera' is not installed"):
        local.node_command(NodeSpec("realsense2_camera", "realsense2_camera_node", "cam"), {})
    with pytest.raises(ConfigurationError, match="node /hand: package 'acme' has no executable 'hand'"):
        local.node_command(NodeSpec("acme", "hand", "hand"), {})


def test_simulated_robot_stays_on_this_machine_and_a_real_one_where_it_is(monkeypatch):
    for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE"):
        monkeypatch.delenv(name, raising=False)
    assert local.dds_environment(Path("/config"), 3, simulated=True)["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert "ROS_AUTOMATIC_DISCOVERY_RANGE" not in local.dds_environment(Path("/config"), 3, simulated=False)


def test_variables_the_user_has_set_are_left_alone(monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", "/my/profile.xml")
    environment = {**os.environ, **local.dds_environment(Path("/config"), 3, simulated=True)}
    assert environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "SUBNET"
    assert environment["FASTRTPS_DEFAULT_PROFILES_FILE"] == "/my/profile.xml"


def test_lines_are_coloured_on_a_terminal_only(capsys):
    local.coloured_output(["policy", "franka_bridge"], terminal=False)("policy", "ready")
    local.coloured_output(["policy", "franka_bridge"], terminal=True)("policy", "ready")
    plain, coloured = capsys.readouterr().out.splitlines()
    assert plain == "[policy]        ready"
    assert coloured == "\033[36m[policy]       \033[0m ready"


def test_unknown_system_ends_the_command_with_those_there_are(capsys):
    assert local.main(["training", "robot:=sim"]) == 1
    assert "system 'training': expected one of policy, recording" in capsys.readouterr().err


def test_wrong_argument_ends_the_command_with_its_reason(capsys):
    assert local.main(["robot:=ur5"]) == 1
    assert "argument 'robot': 'ur5' is not one of sim, fr3" in capsys.readouterr().err
