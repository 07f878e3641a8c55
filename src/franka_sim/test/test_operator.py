"""The scripted operator: what it is asked to be, and that it does the tasks in the physics."""

from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
from franka_sim.episode import StepFollower, operator_episode
from franka_sim.operator import CLOSED, OPEN, VIA_DETOUR_M, VIA_MIN, SceneView, ScriptedOperator, WanderingOperator
from franka_sim.rotations import TOOL_DOWN, about_z
from franka_sim.scene import SceneConfig
from franka_sim.simulation import Simulation
from franka_sim.tasks import TaskSpec, sample_layout
from hypothesis import given, settings
from hypothesis import strategies as st

SCENE = Path(__file__).resolve().parents[3] / "config/scenes/tabletop.yaml"
CONFIG = SceneConfig.load(SCENE)
TASKS = ["pick", "pick:blue", "place", "push", "push:red:right"]
ROLLOUT_STEPS = 150


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return Simulation(CONFIG)


def seen(task: str, seed: int) -> SceneView:
    """The view at the start of an episode, with the arm at home."""
    layout = sample_layout(TaskSpec.parse(task, CONFIG), CONFIG, np.random.default_rng(seed))
    objects = {name: (placement.position, about_z(placement.yaw)) for name, placement in layout.items()}
    return SceneView(np.array(CONFIG.home.tcp), TOOL_DOWN, CONFIG.gripper.maximum_width, objects)


def operator_for(task: str) -> ScriptedOperator:
    return ScriptedOperator(TaskSpec.parse(task, CONFIG), CONFIG)


@pytest.mark.parametrize("seed", range(1000, 1004))
@pytest.mark.parametrize("task", ["pick", "place", "push"])
def test_operator_does_the_task_in_the_physics(simulation: Simulation, task: str, seed: int) -> None:
    simulation.reset(task, seed)
    episode = operator_episode(simulation)
    assert episode.success, episode.detail


@pytest.mark.parametrize("task", ["pick", "place", "push"])
def test_no_task_is_done_with_the_hand_held_open(simulation: Simulation, task: str) -> None:
    simulation.reset(task, 1000)
    assert not operator_episode(simulation, hold_open=True, limit=8.0).success


@settings(deadline=None, max_examples=40)
@given(
    task=st.sampled_from(TASKS),
    seed=st.integers(0, 1000),
    shift=st.tuples(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1), st.floats(-0.15, 0.05)),
    turn=st.floats(-0.5, 0.5),
    width=st.floats(0.0, 0.08),
)
def test_plan_from_any_state_is_slow_enough_above_the_table_and_ends(
    task: str, seed: int, shift: tuple[float, float, float], turn: float, width: float
) -> None:
    view = seen(task, seed)
    position = view.position + shift
    position[2] = max(position[2], 0.05)
    view = replace(view, position=position, rotation=about_z(turn) @ view.rotation, gripper_width=width)
    plan, positions = operator_for(task).rollout(view, ROLLOUT_STEPS)
    assert len(plan) == len(positions) < ROLLOUT_STEPS
    reach = CONFIG.operator.speed * CONFIG.operator.step_period
    turned = CONFIG.operator.turn_speed * CONFIG.operator.step_period
    for step, tool in zip(plan, positions, strict=True):
        assert np.linalg.norm(step.translation) <= reach + 1e-9
        assert np.linalg.norm(step.rotation) <= turned + 1e-9
        assert tool[2] > 0.01


@settings(deadline=None, max_examples=10)
@given(task=st.sampled_from(TASKS), seed=st.integers(0, 1000), rows=st.integers(1, 30))
def test_operator_has_no_memory(task: str, seed: int, rows: int) -> None:
    """A plan continued from its middle by an operator that saw nothing before is the same plan."""
    view = seen(task, seed)
    operator = operator_for(task)
    whole, _ = operator.rollout(view, ROLLOUT_STEPS)
    for step in whole[:rows]:
        view = operator.imagine(view, step)
    rest, _ = operator_for(task).rollout(view, ROLLOUT_STEPS)
    assert len(rest) == len(whole[rows:])
    for continued, planned in zip(rest, whole[rows:], strict=True):
        np.testing.assert_array_equal(continued.translation, planned.translation)
        assert continued.gripper == planned.gripper


@pytest.mark.parametrize(("task", "gripper"), [("pick", CLOSED), ("place", OPEN), ("push", CLOSED)])
def test_plan_ends_as_the_task_does(task: str, gripper: int) -> None:
    view = seen(task, 5)
    operator = operator_for(task)
    plan, _ = operator.rollout(view, ROLLOUT_STEPS)
    for step in plan:
        view = operator.imagine(view, step)
    assert operator.done(view)
    assert operator.rollout(view, 10) == ([], [])
    assert operator.step(view).gripper == gripper


def test_plan_predicts_what_happens(simulation: Simulation) -> None:
    """Until the hand closes: what it takes to close is the one thing a plan cannot know."""
    simulation.reset("pick", 6)
    view = SceneView.from_simulation(simulation)
    operator = ScriptedOperator.for_simulation(simulation)
    plan, positions = operator.rollout(view, 12)
    follower = StepFollower(simulation)
    follower.execute(plan)
    follower.settle(0.3)
    assert np.linalg.norm(simulation.arm_state(0).position - positions[-1]) < 0.004


def test_a_missed_grasp_is_opened_raised_and_tried_again() -> None:
    view = seen("pick", 7)
    cube = view.objects["red_cube"][0]
    missed = replace(view, position=np.add(cube, [0.06, 0.0, 0.0]), gripper_width=0.0)
    operator = operator_for("pick")
    step = operator.step(missed)
    assert step.gripper == OPEN
    assert step.translation[2] > 0.0
    assert np.linalg.norm(step.translation[:2]) < 1e-9
    plan, positions = operator.rollout(missed, ROLLOUT_STEPS)
    assert plan[-1].gripper == CLOSED
    assert positions[-1][2] > CONFIG.tasks.pick.lift


def test_operator_recovers_in_the_physics_from_closing_too_early(simulation: Simulation) -> None:
    simulation.reset("pick", 8)
    operator = ScriptedOperator.for_simulation(simulation)
    follower = StepFollower(simulation)
    for _ in range(5):
        plan, _ = operator.rollout(SceneView.from_simulation(simulation), 4)
        follower.execute([replace(step, gripper=CLOSED) for step in plan])
    follower.execute([replace(step, gripper=OPEN) for step in plan[:1]])
    assert operator_episode(simulation).success


@pytest.mark.parametrize("yaw", np.linspace(-1.5, 1.5, 7))
def test_operator_aligns_its_fingers_with_the_cube(yaw: float) -> None:
    view = seen("pick", 9)
    view = replace(view, objects={**view.objects, "red_cube": (view.objects["red_cube"][0], about_z(yaw))})
    operator = operator_for("pick")
    plan, _ = operator.rollout(view, ROLLOUT_STEPS)
    for step in takewhile(lambda step: step.gripper == OPEN, plan):
        view = operator.imagine(view, step)
    along = np.abs(about_z(yaw).T @ view.rotation[:, 1])  # the closing axis, seen from the cube
    assert max(along[:2]) > np.cos(0.1)


def wandered(task: str, seed: int) -> tuple[list[np.ndarray], SceneView]:
    """(the tool's path, the last view) of an imagined episode of the wandering operator."""
    scripted, view = operator_for(task), seen(task, seed)
    operator = WanderingOperator(scripted, seed)
    path = [view.position]
    while not scripted.done(view) and len(path) < 3 * ROLLOUT_STEPS:
        view = scripted.imagine(view, operator.step(view))
        path.append(view.position)
    return path, view


@settings(deadline=None, max_examples=20)
@given(task=st.sampled_from(TASKS), seed=st.integers(0, 1000))
def test_wandering_reaches_the_same_goal_as_slowly_by_another_way(task: str, seed: int) -> None:
    path, view = wandered(task, seed)
    operator = operator_for(task)
    assert operator.done(view)
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    assert steps.max() <= CONFIG.operator.speed * CONFIG.operator.step_period + 1e-9
    assert min(position[2] for position in path) > 0.01
    _, straight = operator.rollout(seen(task, seed), ROLLOUT_STEPS)
    off = max(min(np.linalg.norm(np.subtract(a, b)[:2]) for b in straight) for a in path)
    assert off > VIA_DETOUR_M / 2
    assert steps.sum() > np.linalg.norm(np.diff(straight, axis=0), axis=1).sum()


def test_wandering_is_the_same_for_a_seed_and_another_for_another() -> None:
    first, again, other = (wandered("place", seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert len(other) != len(first) or np.abs(np.subtract(other, first)).max() > 0.01


def test_a_held_cube_is_lifted_before_it_is_carried_elsewhere() -> None:
    scripted, view = operator_for("place"), seen("place", 3)
    cube = view.objects["red_cube"][0]
    held = replace(view, position=cube.copy(), gripper_width=CONFIG.objects.cubes.size)
    operator = WanderingOperator(scripted, 3)
    while held.position[2] < VIA_MIN[2]:
        step = operator.step(held)
        assert step.gripper == CLOSED
        assert np.linalg.norm(step.translation[:2]) < 1e-9
        held = scripted.imagine(held, step)


def test_picking_up_the_other_cube_is_no_success_and_is_named(simulation: Simulation) -> None:
    simulation.reset("pick:blue:red", 1000)
    operator, follower, start = operator_for("pick:red:blue"), StepFollower(simulation), simulation.time
    while "lifted" not in simulation.outcome().detail and simulation.time < start + 15.0:
        view = SceneView.from_simulation(simulation)
        follower.execute(operator.rollout(view, 4)[0] or [operator.step(view)])
    assert "the red cube was lifted" in simulation.outcome().detail
    assert not simulation.outcome().success
