from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from franka_sim.operator import Step
from franka_sim.scene import SceneConfig
from molmoact_policy.embodiment import Embodiment
from molmoact_training.nano_checkpoint import EMBODIMENT
from molmoact_training.posed_demonstrations import Look, PosedDemonstrations, chunk_of

ROOT = Path(__file__).parents[2]
CONFIG = yaml.safe_load((ROOT / "config/training/nano.yaml").read_text())["demonstrations"]


def looks_of(tmp_path_factory, **changes) -> list[Look]:
    file = tmp_path_factory.mktemp("checkpoint") / "embodiment.yaml"
    file.write_text(yaml.safe_dump(EMBODIMENT))
    kept = {"early": 0.3, "late": 0.3}
    config = CONFIG | {"keep_fraction": kept, "start_probability": 0.0} | changes
    scene = SceneConfig.load(ROOT / "config/scenes/tabletop.yaml")
    demonstrations = PosedDemonstrations(scene, config, Embodiment.from_file(file))
    return [look for seed in (100000, 100001) for look in demonstrations.episode(seed)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> list[Look]:
    return looks_of(tmp_path_factory, tasks={"pick": 1.0}, steered={"other_cube": 0.0, "wandering": 0.0})


@pytest.fixture(scope="module")
def pushing(tmp_path_factory) -> list[Look]:
    return looks_of(tmp_path_factory, tasks={"push": 1.0}, steered={"other_cube": 0.0, "wandering": 0.0})


def looks_at_objects(tmp_path_factory, task: str, **changes) -> list[Look]:
    """The first looks of episodes that start in the midst of a task."""
    looks = looks_of(
        tmp_path_factory,
        tasks={task: 1.0},
        steered={"other_cube": 0.0, "wandering": 0.0},
        keep_fraction={"early": 1.0, "late": 0.0},
        start_probability=1.0,
        start_at_objects=1.0,
        at_objects=CONFIG["at_objects"] | changes,
    )
    return [look for look in looks if look.frame.frame == 0]


@pytest.fixture(scope="module")
def to_the_other_cube(tmp_path_factory) -> list[Look]:
    return looks_of(tmp_path_factory, tasks={"pick": 1.0}, steered={"other_cube": 1.0, "wandering": 0.0})


def colour_centre(look: Look, colour: str) -> np.ndarray:
    """Middle of a cube's pixels in the front picture, in 0..255 across it."""
    hsv = {"red": (0, 10), "yellow": (20, 35), "green": (45, 75), "blue": (105, 125)}[colour]
    picture = cv2.cvtColor(look.frame.images[0], cv2.COLOR_RGB2HSV).astype(int)
    seen = (picture[..., 0] >= hsv[0]) & (picture[..., 0] <= hsv[1]) & (picture[..., 1] > 150) & (picture[..., 2] > 80)
    rows, columns = np.nonzero(seen)
    return np.array([columns.mean() * 255 / 319, rows.mean() * 255 / 239])


def test_looks_hold_what_the_policy_will_see_and_should_write(straight):
    assert len(straight) > 6
    for look in straight:
        frame = look.frame
        assert [image.shape for image in frame.images] == [(240, 320, 3)] * 2
        assert frame.actions.shape == (8, 7) and np.all(np.isfinite(frame.actions))
        assert np.linalg.norm(frame.actions[:, :3], axis=1).max() <= 0.0251
        assert len(frame.traces) == 1 and 1 <= len(frame.traces[0]) <= 5
        assert frame.instruction.startswith("pick up the ") and not frame.steered


def test_a_trace_passes_the_cube_that_is_asked_for(straight):
    look = straight[0]
    cube = colour_centre(look, look.frame.instruction.split()[3])
    assert np.linalg.norm(look.frame.traces[0] - cube, axis=1).min() < 20


def test_a_steered_trace_leaves_the_cube_that_is_asked_for_alone(to_the_other_cube):
    look = to_the_other_cube[0]
    assert look.frame.steered
    cube = colour_centre(look, look.frame.instruction.split()[3])
    assert np.linalg.norm(look.frame.traces[0] - cube, axis=1).min() > 20


def test_the_same_look_is_labelled_for_the_other_cube_until_one_of_them_is_touched(straight):
    assert straight[0].otherwise is not None and any(look.otherwise is None for look in straight)
    for look in straight:
        if look.otherwise is not None:
            asked, otherwise = look.frame.instruction.split()[3], look.otherwise.instruction.split()[3]
            assert asked != otherwise and not look.otherwise.steered
            assert look.otherwise.images is look.frame.images
            assert np.linalg.norm(look.otherwise.traces[0] - colour_centre(look, otherwise), axis=1).min() < 20


def test_the_same_look_is_labelled_for_the_other_side(pushing):
    look = pushing[0]
    assert {look.frame.instruction.split()[6], look.otherwise.instruction.split()[6]} == {"left", "right"}
    assert not np.array_equal(look.frame.actions, look.otherwise.actions)


def test_frames_that_leave_the_words_alone_are_not_labelled_otherwise(to_the_other_cube):
    assert all(look.otherwise is None for look in to_the_other_cube)


def test_points_are_where_the_colours_are_in_the_front_picture(straight):
    look = straight[0]
    points = {point.object: (point.x, point.y) for point in look.frame.points if point.image == 0}
    asked = [frame.instruction.split()[3] for frame in (look.frame, look.otherwise)]
    assert points.keys() == {f"{colour} cube" for colour in asked}
    for colour in asked:
        assert np.linalg.norm(np.array(points[f"{colour} cube"]) - colour_centre(look, colour)) < 6
    assert look.otherwise.points == look.frame.points


def test_some_steered_frames_show_the_trace_as_it_was_drawn_at_the_start(to_the_other_cube):
    first = [look.frame for look in to_the_other_cube if look.frame.episode == 100000]
    same = [np.array_equal(frame.traces[0], first[0].traces[0]) for frame in first[1:]]
    assert any(same) and not all(same)


def test_placing_may_start_with_the_cube_in_the_hand(tmp_path_factory):
    for look in looks_at_objects(tmp_path_factory, "place", held=1.0):
        gripper = look.frame.actions[:, 6]
        assert gripper[0] == 0.0  # it holds on to the cube
        (tool, _) = look.frame.traces[0][:2]
        colour = look.frame.instruction.split()[2]
        assert np.linalg.norm(colour_centre(look, colour) - tool) < 40  # the cube is at the tool, or its plate is below


def test_pushing_may_start_beside_the_cube_with_the_hand_closed(tmp_path_factory):
    looks = looks_at_objects(tmp_path_factory, "push", closed={"push": 1.0})
    assert looks
    for look in looks:
        assert np.all(look.frame.actions[:, 6] == 0.0)
        tool = look.frame.traces[0][0]
        colour = look.frame.instruction.split()[2]
        cube = next(p for p in look.frame.points if p.object == f"{colour} cube" and p.image == 0)
        assert np.linalg.norm(np.array([cube.x, cube.y]) - tool) < 80  # within the spread, seen from the front


def test_an_episode_is_the_same_again(straight, tmp_path_factory):
    again = looks_of(tmp_path_factory, tasks={"pick": 1.0}, steered={"other_cube": 0.0, "wandering": 0.0})
    assert len(again) == len(straight)
    assert all(np.array_equal(a.frame.actions, b.frame.actions) for a, b in zip(again, straight, strict=True))
    assert all(np.array_equal(a.depth, b.depth) for a, b in zip(again, straight, strict=True))


def test_a_hand_that_stays_upright_turns_about_nothing_else(straight):
    assert not np.any([look.frame.actions[:, 3:5] for look in straight])


def test_a_finished_plan_is_filled_up_with_standing_still():
    step = Step(np.array([0.01, 0.0, 0.0]), np.zeros(3), 0)
    chunk = chunk_of([step], rows=3)
    assert chunk.tolist() == [pytest.approx([0.01, 0, 0, 0, 0, 0, 0]), [0.0] * 7, [0.0] * 7]
