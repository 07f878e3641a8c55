"""When the physics say a task is done, and when they must not."""

from dataclasses import replace

import numpy as np
import pytest
from franka_sim.scene import SceneConfig
from franka_sim.simulation import Simulation
from franka_sim.tasks import Facts, TaskSpec, judge

ON_TABLE = Facts(
    cube=np.array([0.5, 0.0, 0.02]),
    plate=None,
    cube_touches_fingers=0,
    cube_touches_plate=False,
    cube_speed=0.0,
    highest_cube=0.02,
)
PLATE = np.array([0.55, 0.0, 0.0])


def holds(scene: SceneConfig, task: str, **facts: object) -> bool:
    return judge(TaskSpec.parse(task, scene), scene, replace(ON_TABLE, **facts))[0]


@pytest.mark.parametrize(
    ("height", "fingers", "done"), [(0.10, 2, True), (0.10, 1, False), (0.10, 0, False), (0.05, 2, False)]
)
def test_a_cube_is_picked_up_when_both_fingers_hold_it_high_enough(
    scene: SceneConfig, height: float, fingers: int, done: bool
) -> None:
    assert holds(scene, "pick", cube=np.array([0.5, 0.0, height]), cube_touches_fingers=fingers) is done


@pytest.mark.parametrize(
    ("facts", "done"),
    [
        ({}, True),
        ({"cube_touches_fingers": 1}, False),
        ({"cube_touches_plate": False}, False),
        ({"cube_speed": 0.1}, False),
        ({"cube": np.array([0.65, 0.0, 0.03])}, False),
    ],
)
def test_a_cube_is_placed_when_it_rests_on_the_plate_and_nobody_holds_it(
    scene: SceneConfig, facts: dict, done: bool
) -> None:
    on_plate = {"cube": np.array([0.56, 0.0, 0.03]), "plate": PLATE, "cube_touches_plate": True}
    assert holds(scene, "place", **{**on_plate, **facts}) is done


@pytest.mark.parametrize(
    ("side", "y", "highest", "done"),
    [
        ("left", 0.12, 0.02, True),
        ("right", -0.12, 0.02, True),
        ("left", -0.12, 0.02, False),
        ("right", 0.12, 0.02, False),
        ("left", 0.06, 0.02, False),
        ("left", 0.12, 0.08, False),
    ],
)
def test_a_cube_is_pushed_when_it_is_clear_of_the_plate_on_the_named_side_and_never_left_the_table(
    scene: SceneConfig, side: str, y: float, highest: float, done: bool
) -> None:
    facts = {"cube": np.array([0.42, y, 0.02]), "plate": PLATE, "highest_cube": highest}
    assert holds(scene, f"push:red:{side}", **facts) is done


@pytest.mark.parametrize("task", ["pick", "place", "push", "push:red:right"])
def test_nothing_is_done_by_waiting(scene: SceneConfig, task: str) -> None:
    simulation = Simulation(scene)
    for seed in range(5):
        simulation.reset(task, seed)
        simulation.step(700)
        assert not simulation.outcome().success


def test_success_has_to_last_and_is_then_remembered_until_the_reset(scene: SceneConfig) -> None:
    simulation = Simulation(scene)
    simulation.reset("push", 1)
    cube = simulation.model.body("red_cube")
    # Somebody else moves the cube: the simulation's own state is the only way to do that.
    address = int(simulation.model.jnt_qposadr[cube.jntadr[0]])
    simulation._data.qpos[address : address + 2] = [0.42, 0.15]
    hold_ms = round(1000 * scene.tasks.push.hold_time)
    simulation.step(hold_ms - 50)
    assert not simulation.outcome().success
    simulation.step(150)
    assert simulation.outcome().success
    simulation._data.qpos[address : address + 2] = [0.42, 0.0]
    simulation.step(100)
    assert simulation.outcome().success
    simulation.reset("push", 1)
    assert not simulation.outcome().success
