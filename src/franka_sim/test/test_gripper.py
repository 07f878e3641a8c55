"""The Franka Hand's manners, in the physics: slow to start, one command at a time, holds what it grasped."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from franka_sim.rotations import TOOL_DOWN, about_z, matrix_from_quaternion, quaternion_from_matrix
from franka_sim.scene import SceneConfig
from franka_sim.simulation import Simulation

SCENE = Path(__file__).resolve().parents[3] / "config/scenes/tabletop.yaml"
LIMIT_MS = 5000


@pytest.fixture(scope="module")
def built() -> Simulation:
    return Simulation(SceneConfig.load(SCENE))


@pytest.fixture
def simulation(built: Simulation) -> Simulation:
    built.reset("pick", 1)
    return built


def step_until(simulation: Simulation, condition: Callable[[], bool]) -> float:
    """Simulated seconds it took."""
    start = simulation.time
    for _ in range(LIMIT_MS):
        if condition():
            return simulation.time - start
        simulation.step()
    raise AssertionError("never happened")


def finish(simulation: Simulation) -> float:
    return step_until(simulation, lambda: not simulation.gripper_state(0).moving)


def go_around_the_cube(simulation: Simulation) -> None:
    position, quaternion = simulation.object_poses()["red_cube"]
    cube = matrix_from_quaternion(quaternion)
    down = quaternion_from_matrix(about_z(float(np.arctan2(cube[1, 0], cube[0, 0]))) @ TOOL_DOWN)
    for height in (0.12, position[2]):
        start, goal = simulation.arm_state(0).target_position, np.array([*position[:2], height])
        for i in range(1, 801):
            simulation.set_target(0, start + (goal - start) * i / 800, down)
            simulation.step()
        simulation.step(400)


def lift(simulation: Simulation, height: float) -> None:
    state = simulation.arm_state(0)
    for i in range(1, 801):
        simulation.set_target(0, np.add(state.target_position, [0, 0, height * i / 800]), state.target_quaternion)
        simulation.step()


@pytest.mark.parametrize("width", [0.0, 0.04])
def test_a_command_starts_late_and_takes_over_a_second(simulation: Simulation, width: float) -> None:
    start = simulation.time
    simulation.set_gripper(0, width, 0.1)
    simulation.step(round(1000 * simulation.config.gripper.latency) - 5)
    assert simulation.arm_state(0).gripper_width == pytest.approx(0.08, abs=0.001)
    finish(simulation)
    assert simulation.time - start > 1.0
    assert simulation.arm_state(0).gripper_width == pytest.approx(width, abs=0.0015)
    assert simulation.gripper_state(0).reached


def test_fingers_move_no_faster_than_asked_and_than_they_can(simulation: Simulation) -> None:
    for speed, allowed in ((0.05, 0.05), (5.0, simulation.config.gripper.maximum_speed)):
        simulation.set_gripper(0, 0.08, 0.1)
        finish(simulation)
        simulation.set_gripper(0, 0.0, speed)
        simulation.step(400)
        before = simulation.arm_state(0).gripper_width
        simulation.step(100)
        assert (before - simulation.arm_state(0).gripper_width) / 0.1 == pytest.approx(allowed, rel=0.1)


@pytest.mark.parametrize(("asked", "reached"), [(0.05, 0.05), (0.2, 0.08), (-0.1, 0.0)])
def test_a_move_ends_at_the_width_or_at_the_end_of_the_stroke(
    simulation: Simulation, asked: float, reached: float
) -> None:
    simulation.set_gripper(0, 0.03, 0.1)
    finish(simulation)
    simulation.set_gripper(0, asked, 0.1)
    finish(simulation)
    assert simulation.arm_state(0).gripper_width == pytest.approx(reached, abs=0.0015)


def test_a_grasped_cube_is_held_while_it_is_lifted(simulation: Simulation) -> None:
    go_around_the_cube(simulation)
    simulation.set_gripper(0, 0.04, 0.1, 40.0)
    finish(simulation)
    assert simulation.arm_state(0).gripper_width == pytest.approx(0.04, abs=0.001)
    lift(simulation, 0.12)
    simulation.step(1000)
    state, (cube, _) = simulation.arm_state(0), simulation.object_poses()["red_cube"]
    assert np.linalg.norm(cube - state.position) < 0.006
    assert simulation.outcome().success
    simulation.set_gripper(0, 0.08, 0.1)
    finish(simulation)
    simulation.step(500)
    assert simulation.object_poses()["red_cube"][0][2] < 0.03


def test_a_grasp_of_nothing_closes_fully_and_misses_its_width(simulation: Simulation) -> None:
    simulation.set_gripper(0, 0.04, 0.1, 40.0)
    finish(simulation)
    assert simulation.arm_state(0).gripper_width < 0.001
    assert not simulation.gripper_state(0).reached


def test_homing_closes_and_opens_fully(simulation: Simulation) -> None:
    number = simulation.home_gripper(0)
    step_until(simulation, lambda: simulation.arm_state(0).gripper_width < 0.001)
    finish(simulation)
    assert simulation.arm_state(0).gripper_width == pytest.approx(0.08, abs=0.001)
    assert simulation.gripper_state(0).command == number


def test_stop_ends_a_command_where_the_fingers_are(simulation: Simulation) -> None:
    simulation.set_gripper(0, 0.0, 0.1)
    step_until(simulation, lambda: simulation.arm_state(0).gripper_width < 0.05)
    simulation.stop_gripper(0)
    simulation.step(500)
    assert not simulation.gripper_state(0).moving
    assert simulation.arm_state(0).gripper_width == pytest.approx(0.05, abs=0.003)


def test_a_stream_of_commands_gets_nowhere(simulation: Simulation) -> None:
    """Every command starts over with its latency: who streams samples learns it here and not on the robot."""
    for _ in range(20):
        simulation.set_gripper(0, 0.0, 0.1)
        simulation.step(100)
    assert simulation.arm_state(0).gripper_width > 0.075


def test_a_newer_command_replaces_the_running_one(simulation: Simulation) -> None:
    first = simulation.set_gripper(0, 0.0, 0.1)
    simulation.step(400)
    second = simulation.set_gripper(0, 0.08, 0.1)
    assert second == first + 1
    finish(simulation)
    assert simulation.arm_state(0).gripper_width == pytest.approx(0.08, abs=0.001)
