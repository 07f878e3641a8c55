from pathlib import Path

import numpy as np
import pytest
from franka_sim.cameras import RgbdCamera
from franka_sim.errors import ConfigurationError, TaskError
from franka_sim.scene import SceneConfig, build_model
from franka_sim.simulation import Simulation
from franka_sim.tasks import TaskSpec, sample_layout
from hypothesis import given, settings
from hypothesis import strategies as st

SCENE = Path(__file__).resolve().parents[3] / "config/scenes/tabletop.yaml"


def broken(tmp_path: Path, old: str, new: str) -> Path:
    text = SCENE.read_text()
    assert old in text
    path = tmp_path / "broken.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("  stiffness:", "  stifness:", "control.stifness: unknown key"),
        ("  max_delta_tau: 0.5", "  max_delta_tau: fast", "control.max_delta_tau: is 'fast', expected a number"),
        ("  max_delta_tau: 0.5", "  max_delta_tau: .nan", "control.max_delta_tau: is nan, expected a finite number"),
        ("  max_delta_tau: 0.5  ", "  # ", "control.max_delta_tau: missing"),
        ("tcp: [0.45, 0.0, 0.30]", "tcp: [0.45, 0.0]", "home.tcp: has 2 entries, expected 3"),
        ("other_cubes: 1", "other_cubes: 1.5", "tasks.pick.other_cubes: is 1.5, expected a whole number"),
        ("mount: hand", "mount: head", "cameras.wrist: mount is 'head'"),
        ("sensor: D435", "sensor: D455", "cameras.front.sensor is 'D455'"),
        ("cubes: {colours: [red", "cubes: {colours: [pink", "objects.cubes.colours names 'pink'"),
        ("plate: blue", "plate: pink", "tasks.push.plate is 'pink'"),
        ("target_filter: 0.1 ", "target_filter: 1.1 ", "control: target_filter is 1.1"),
        ("instruction: pick up the {cube} cube", "instruction: pick up {that}", "tasks.pick: instruction"),
        ("arms: ", "arms: ]", "not YAML"),
    ],
)
def test_a_mistake_in_the_scene_file_is_named_with_its_key_and_file(
    tmp_path: Path, old: str, new: str, named: str
) -> None:
    path = broken(tmp_path, old, new)
    with pytest.raises(ConfigurationError) as caught:
        SceneConfig.load(path)
    assert str(path) in str(caught.value)
    assert named in str(caught.value)


def test_a_missing_scene_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml: cannot be read"):
        SceneConfig.load(tmp_path / "nowhere.yaml")


def test_more_arms_than_the_scene_describes_are_refused(scene: SceneConfig) -> None:
    prefixes = tuple(f"arm{i}/" for i in range(len(scene.arms) + 1))
    with pytest.raises(ConfigurationError, match="arms"):
        build_model(scene, prefixes)


@pytest.mark.parametrize(
    ("text", "instruction"),
    [
        ("pick", "pick up the red cube"),
        ("pick:blue", "pick up the blue cube"),
        ("pick:yellow:green", "pick up the yellow cube"),
        ("place", "put the red cube on the blue plate"),
        ("place:green:red", "put the green cube on the red plate"),
        ("push", "push the red cube to the left of the plate"),
        ("push:yellow:right", "push the yellow cube to the right of the plate"),
    ],
)
def test_a_task_name_becomes_its_instruction(scene: SceneConfig, text: str, instruction: str) -> None:
    assert TaskSpec.parse(text, scene).instruction == instruction


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("juggle", "'juggle' is not one of pick, place, push"),
        ("pick:pink", "cube 'pink' is not in the scene (red, "),
        ("place:red:pink", "plate 'pink'"),
        ("push:red:up", "side 'up'"),
        ("pick:red:blue:green", "3 arguments"),
        ("pick:red:red", "other cube 'red' is not in the scene (blue, "),
        ("push:red:left:blue", "3 arguments"),
        ("", "''"),
    ],
)
def test_a_task_the_scene_does_not_offer_is_refused_with_what_it_does_offer(
    scene: SceneConfig, text: str, named: str
) -> None:
    with pytest.raises(TaskError) as caught:
        TaskSpec.parse(text, scene)
    assert named in str(caught.value)


@settings(deadline=None)
@given(st.integers(0, 2**63), st.sampled_from(["pick", "pick:blue", "place", "push", "push:red:right"]))
def test_objects_stand_apart_and_inside_their_areas(scene: SceneConfig, seed: int, task: str) -> None:
    spec = TaskSpec.parse(task, scene)
    rules = getattr(scene.tasks, spec.kind)
    layout = sample_layout(spec, scene, np.random.default_rng(seed))
    for name, placement in layout.items():
        area = rules.plate_area if name.endswith("plate") else rules.cube_area
        for value, (lowest, highest) in zip(placement.position, area, strict=False):
            assert lowest <= value <= highest
        for other, elsewhere in layout.items():
            if other != name:
                assert np.linalg.norm(placement.position[:2] - elsewhere.position[:2]) >= rules.separation


def test_the_distractor_is_never_the_cube_that_is_asked_for(scene: SceneConfig) -> None:
    for colour in scene.objects.cubes.colours:
        spec = TaskSpec.parse(f"pick:{colour}", scene)
        layout = sample_layout(spec, scene, np.random.default_rng(0))
        assert len(layout) == 1 + scene.tasks.pick.other_cubes
        assert spec.cube_name in layout


def test_the_same_scene_can_be_asked_for_either_of_its_cubes(scene: SceneConfig) -> None:
    layouts = [
        sample_layout(TaskSpec.parse(task, scene), scene, np.random.default_rng(5))
        for task in ("pick:green:red", "pick:red:green")
    ]
    assert layouts[0].keys() == layouts[1].keys() == {"red_cube", "green_cube"}
    for name, placement in layouts[0].items():
        np.testing.assert_array_equal(placement.position, layouts[1][name].position)
        assert placement.yaw == layouts[1][name].yaw


def test_same_seed_gives_the_same_scene_bit_for_bit_whatever_came_before(scene: SceneConfig) -> None:
    fresh, used = Simulation(scene), Simulation(scene)
    used.reset("push", 3)
    used.set_gripper(0, 0.0, 0.1)
    used.step(300)
    seen = []
    for simulation in (fresh, used):
        simulation.reset("pick", 7)
        simulation.step(100)
        data = simulation.copy_data()
        with RgbdCamera(simulation.model, "front", 160, 120) as camera:
            seen.append((data.qpos.copy(), data.qvel.copy(), *camera.render(data)))
    for first, second in zip(*seen, strict=True):
        np.testing.assert_array_equal(first, second)


def test_another_seed_gives_another_scene(scene: SceneConfig) -> None:
    simulation = Simulation(scene)
    cubes, tools = [], []
    for seed in (0, 1):
        simulation.reset("pick", seed)
        cubes.append(simulation.object_poses()["red_cube"][0])
        tools.append(simulation.arm_state(0).position)
    assert np.linalg.norm(cubes[0] - cubes[1]) > 0.005
    assert np.linalg.norm(tools[0] - tools[1]) > 0.001


def test_objects_stand_still_at_the_start_and_the_unused_ones_stay_away(scene: SceneConfig) -> None:
    simulation = Simulation(scene)
    simulation.reset("place", 2)
    before = simulation.object_poses()
    parked = simulation.copy_data().body("green_plate").xpos.copy()
    simulation.step(1000)
    assert set(before) == {"red_cube", "blue_plate", "yellow_bowl"}
    for name, (position, _) in simulation.object_poses().items():
        assert np.linalg.norm(position - before[name][0]) < 1e-4
    np.testing.assert_allclose(simulation.copy_data().body("green_plate").xpos, parked, atol=1e-3)
