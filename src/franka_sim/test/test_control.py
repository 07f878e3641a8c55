"""What the arm does with a target: in the physics, with nothing in between."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from franka_sim.errors import FrankaSimError
from franka_sim.rotations import (
    TOOL_DOWN,
    about_z,
    matrix_from_quaternion,
    matrix_from_vector,
    quaternion_from_matrix,
    vector_from_matrix,
)
from franka_sim.scene import SceneConfig
from franka_sim.simulation import IDLE, MOVE, REFLEX, ArmState, Simulation

DOWN = quaternion_from_matrix(TOOL_DOWN)
SCENE = Path(__file__).resolve().parents[3] / "config/scenes/tabletop.yaml"


@pytest.fixture(scope="module")
def built() -> Simulation:
    return Simulation(SceneConfig.load(SCENE))


@pytest.fixture
def simulation(built: Simulation) -> Simulation:
    built.reset("pick", 1)
    return built


def move(simulation: Simulation, goal: np.ndarray, yaw: float = 0.0, speed: float = 0.25) -> None:
    """The target travels in a straight line, the tool's yaw with it."""
    state = simulation.arm_state(0)
    start, turned = state.target_position, matrix_from_quaternion(state.target_quaternion)
    turn = vector_from_matrix(about_z(yaw) @ TOOL_DOWN @ turned.T)
    count = max(1, round(1000 * float(np.linalg.norm(goal - start)) / speed))
    for i in range(1, count + 1):
        rotation = matrix_from_vector(turn * i / count) @ turned
        simulation.set_target(0, start + (goal - start) * i / count, quaternion_from_matrix(rotation))
        simulation.step()


def off(state: ArmState, goal: np.ndarray, yaw: float) -> tuple[float, float]:
    turn = about_z(yaw) @ TOOL_DOWN @ matrix_from_quaternion(state.quaternion).T
    return float(np.linalg.norm(state.position - goal)), float(np.linalg.norm(vector_from_matrix(turn)))


@pytest.mark.parametrize(
    ("goal", "yaw"), [([0.60, 0.16, 0.20], 0.7), ([0.40, -0.16, 0.03], -0.4), ([0.55, 0.0, 0.10], 1.5)]
)
def test_arm_settles_on_its_target_within_a_third_of_a_second(
    simulation: Simulation, goal: list[float], yaw: float
) -> None:
    move(simulation, np.array(goal), yaw)
    simulation.step(330)
    distance, angle = off(simulation.arm_state(0), np.array(goal), yaw)
    assert distance < 0.003
    assert angle < 0.02
    simulation.step(500)
    assert off(simulation.arm_state(0), np.array(goal), yaw)[0] < 0.002


def test_arm_stays_where_it_is_without_a_target(simulation: Simulation) -> None:
    before = simulation.arm_state(0).position
    simulation.step(1000)
    assert np.linalg.norm(simulation.arm_state(0).position - before) < 1e-4


def test_torque_changes_no_faster_than_max_delta_tau(simulation: Simulation) -> None:
    state = simulation.arm_state(0)
    simulation.set_target(0, np.add(state.position, [0.15, 0.1, -0.1]), state.quaternion)
    tau = state.tau
    for _ in range(200):
        simulation.step()
        now = simulation.arm_state(0).tau
        assert np.max(np.abs(now - tau)) <= simulation.config.control.max_delta_tau + 1e-9
        tau = now


@pytest.mark.parametrize("shift", [[0.05, 0.05, -0.10], [0.0, 0.15, 0.0], [0.08, -0.10, -0.10]])
def test_a_target_that_jumps_is_reached_without_swinging(simulation: Simulation, shift: list[float]) -> None:
    """A client of the topic may send a step: the error clip and the torque rate must not make it a limit cycle."""
    state = simulation.arm_state(0)
    goal = np.add(state.position, shift)
    simulation.set_target(0, goal, state.quaternion)
    simulation.step(1200)
    settled = simulation.arm_state(0)
    assert settled.robot_mode == MOVE
    assert off(settled, goal, 0.0)[0] < 0.002


def test_pull_towards_a_far_target_is_that_of_the_error_clip(scene: SceneConfig) -> None:
    """Pressing down with the target far below the table: the force is the clipped error's, not the error's."""
    free = dataclasses.replace(scene.reflex, contact_force=1e6)
    simulation = Simulation(dataclasses.replace(scene, reflex=free))
    simulation.reset("pick", 1)
    move(simulation, np.array([0.45, 0.0, 0.01]))
    move(simulation, np.array([0.45, 0.0, -0.18]), speed=0.1)
    simulation.step(500)
    clipped = scene.control.stiffness[0] * scene.control.error_clip[0]
    assert simulation.arm_state(0).external_force[2] == pytest.approx(clipped, rel=0.2)


def test_an_arm_in_a_reflex_stands_still(simulation: Simulation) -> None:
    state = simulation.arm_state(0)
    for i in range(300):
        simulation.set_target(0, np.add(state.position, [0.0, 0.00025 * i, 0.0]), state.quaternion)
        simulation.step()
    simulation.set_target(0, np.add(state.position, [0.0, 0.5, 0.0]), state.quaternion)
    simulation.step(400)
    stopped = simulation.arm_state(0)
    simulation.step(400)
    assert stopped.robot_mode == REFLEX
    assert np.linalg.norm(simulation.arm_state(0).position - stopped.position) < 1e-3


def test_posture_returns_home_while_the_tool_stays(simulation: Simulation) -> None:
    """Out and back: the redundant joint must not wander."""
    start = simulation.arm_state(0)
    for _ in range(2):
        move(simulation, np.array([0.55, 0.15, 0.15]), 0.6)
        move(simulation, start.position, 0.0)
    simulation.step(1500)
    assert np.max(np.abs(simulation.arm_state(0).q - start.q)) < 0.06


def test_reported_twist_is_the_tools_motion(simulation: Simulation) -> None:
    state = simulation.arm_state(0)
    goal = np.add(state.position, [0.10, 0.0, 0.0])
    for i in range(1, 401):
        simulation.set_target(0, state.position + (goal - state.position) * i / 400, state.quaternion)
        simulation.step()
    first = simulation.arm_state(0)
    simulation.step(1)
    second = simulation.arm_state(0)
    np.testing.assert_allclose(second.linear_velocity, (second.position - first.position) / 0.001, atol=0.01)
    assert first.linear_velocity[0] > 0.1


@pytest.mark.parametrize(
    ("position", "quaternion"),
    [
        ([np.nan, 0.0, 0.3], [1.0, 0.0, 0.0, 0.0]),
        ([0.4, np.inf, 0.3], [1.0, 0.0, 0.0, 0.0]),
        ([0.4, 0.0, 0.3], [0.0, 0.0, 0.0, 0.0]),
        ([0.4, 0.0], [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_a_target_that_is_no_pose_is_refused(
    simulation: Simulation, position: list[float], quaternion: list[float]
) -> None:
    with pytest.raises(FrankaSimError, match="target pose"):
        simulation.set_target(0, np.array(position), np.array(quaternion))


def press_on_the_table(simulation: Simulation) -> None:
    move(simulation, np.array([0.45, 0.0, 0.02]))
    move(simulation, np.array([0.45, 0.0, -0.08]), speed=0.1)


def test_pressing_on_the_table_is_a_reflex_that_stops_following_until_recovered(simulation: Simulation) -> None:
    simulation.reset("pick", 1)
    press_on_the_table(simulation)
    state = simulation.arm_state(0)
    assert state.robot_mode == REFLEX
    assert "contact force" in state.reflex_reason
    accepted = simulation.set_target(0, np.array([0.45, 0.0, 0.20]), DOWN)
    simulation.step(500)
    assert not accepted
    assert simulation.arm_state(0).position[2] < 0.05
    assert simulation.recover(0)
    assert simulation.arm_state(0).robot_mode == MOVE
    assert simulation.arm_state(0).reflex_reason == ""
    move(simulation, np.array([0.45, 0.0, 0.20]))
    simulation.step(400)
    assert off(simulation.arm_state(0), np.array([0.45, 0.0, 0.20]), 0.0)[0] < 0.003


@pytest.mark.parametrize(
    ("shift", "turn", "reason"), [([0.4, 0.0, 0.0], 0.0, "position error"), ([0.0, 0.0, 0.0], 2.0, "rotation error")]
)
def test_a_target_out_of_reach_of_the_error_limits_is_a_reflex(
    simulation: Simulation, shift: list[float], turn: float, reason: str
) -> None:
    state = simulation.arm_state(0)
    simulation.set_target(0, state.position + shift, quaternion_from_matrix(about_z(turn) @ TOOL_DOWN))
    simulation.step(100)
    assert simulation.arm_state(0).robot_mode == REFLEX
    assert reason in simulation.arm_state(0).reflex_reason


def test_recovering_an_arm_that_has_no_reflex_changes_nothing(simulation: Simulation) -> None:
    assert not simulation.recover(0)
    assert simulation.arm_state(0).robot_mode == MOVE


def test_contact_force_estimate_is_the_push_and_vanishes_with_it(simulation: Simulation) -> None:
    move(simulation, np.array([0.45, 0.0, 0.02]))
    move(simulation, np.array([0.45, 0.0, 0.001]), speed=0.05)
    simulation.step(500)
    state = simulation.arm_state(0)
    pressed = simulation.config.control.stiffness[0] * (state.position[2] - state.target_position[2])
    assert state.external_force[2] == pytest.approx(pressed, rel=0.25)
    move(simulation, np.array([0.45, 0.0, 0.10]))
    simulation.step(300)
    assert np.linalg.norm(simulation.arm_state(0).external_force) < 0.1


def test_an_arm_that_engages_on_target_waits_for_one_close_to_it(scene: SceneConfig) -> None:
    simulation = Simulation(scene, engage_on_target=True)
    simulation.reset("pick", 1)
    state = simulation.arm_state(0)
    assert state.robot_mode == IDLE
    assert not simulation.set_target(0, np.add(state.position, [0.1, 0.0, 0.0]), state.quaternion)
    simulation.step(200)
    np.testing.assert_allclose(simulation.arm_state(0).position, state.position, atol=1e-3)
    assert simulation.set_target(0, np.add(state.position, [0.01, 0.0, 0.0]), state.quaternion)
    assert simulation.arm_state(0).robot_mode == MOVE


def test_each_of_two_arms_follows_its_own_target_in_its_own_base_frame(scene: SceneConfig) -> None:
    simulation = Simulation(scene, ("left/", "right/"))
    simulation.reset("pick", 1)
    goal = np.array([0.50, 0.05, 0.20])
    before = simulation.arm_state(0).position
    simulation.set_target(1, goal, DOWN)
    simulation.step(1500)
    assert off(simulation.arm_state(1), goal, 0.0)[0] < 0.003
    assert np.linalg.norm(simulation.arm_state(0).position - before) < 1e-3
    in_world = simulation.copy_data().site("right_TCP").xpos
    np.testing.assert_allclose(in_world, simulation.arm_state(1).position + scene.arms[1].base_position, atol=1e-3)
