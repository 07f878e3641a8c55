"""From action numbers to metres, radians and an open or closed gripper."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from molmoact_policy.embodiment import Embodiment
from molmoact_policy.errors import EmbodimentError
from scipy.spatial.transform import Rotation

DATA = Path(__file__).parent / "data"
ENTRY = {
    "frame": "base",
    "rotation": "rotation_vector",
    "translation_scale": 1.0,
    "rotation_scale": 1.0,
    "gripper_open": "high",
    "step_period": 0.1,
    "cameras": ["front", "wrist"],
}


def load(directory: Path, **change: object) -> Embodiment:
    path = directory / "embodiment.yaml"
    path.write_text(yaml.safe_dump({"arm": {name: v for name, v in (ENTRY | change).items() if v != "absent"}}))
    return Embodiment.from_file(path, "arm")


def test_roll_pitch_yaw_becomes_a_rotation_vector_as_in_simpler_env(tmp_path: Path) -> None:
    embodiment = load(tmp_path, rotation="rpy")
    for step in json.loads((DATA / "eval_cases.json").read_text())["google_robot_sequence"]:
        (delta,) = embodiment.to_deltas([step["decoded"]])
        np.testing.assert_allclose(delta.translation, step["world_vector"])
        # Theirs goes the long way round beyond half a turn, ours never does: the rotation is the same.
        difference = Rotation.from_rotvec(delta.rotation).inv() * Rotation.from_rotvec(step["rot_axangle"])
        assert difference.magnitude() < 1e-9


def test_scales_apply_before_the_rotation_is_converted(tmp_path: Path) -> None:
    embodiment = load(tmp_path, translation_scale=0.05, rotation_scale=0.5)
    (delta,) = embodiment.to_deltas([[1, -1, 0.5, 1, 0, -0.2, 0.7]])
    np.testing.assert_allclose(delta.translation, [0.05, -0.05, 0.025])
    np.testing.assert_allclose(delta.rotation, [0.5, 0, -0.1])
    assert delta.gripper == 0.7


@pytest.mark.parametrize(("gripper_open", "expected"), [("high", [0.0, 0.2, 1.0]), ("low", [1.0, 0.8, 0.0])])
def test_gripper_is_zero_closed_to_one_open(tmp_path: Path, gripper_open: str, expected: list[float]) -> None:
    rows = np.zeros((3, 7))
    rows[:, 6] = [-0.9, 0.2, 1.3]
    deltas = load(tmp_path, gripper_open=gripper_open).to_deltas(rows)
    assert [delta.gripper for delta in deltas] == pytest.approx(expected)


def test_rows_of_another_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"actions are \[2, 14\], expected \[rows, 7\]"):
        load(tmp_path).to_deltas(np.zeros((2, 14)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame": "world"}, "frame is 'world', expected one of base, end_effector"),
        ({"rotation": "quaternion"}, "rotation is 'quaternion'"),
        ({"gripper_open": True}, "gripper_open is True"),
        ({"translation_scale": 0.0}, "translation_scale is 0.0"),
        ({"rotation_scale": "half"}, "rotation_scale is 'half'"),
        ({"step_period": float("inf")}, "step_period is inf"),
        ({"cameras": []}, r"cameras is \[\]"),
        ({"image_size": [320]}, r"image_size is \[320\]"),
        ({"confirmed": "yes"}, "confirmed is 'yes'"),
        ({"speed": 1.0}, r"unknown fields \['speed'\]"),
        ({"frame": "absent"}, r"missing fields \['frame'\]"),
    ],
)
def test_a_wrong_field_is_named_with_its_file_and_key(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(EmbodimentError, match=f"embodiment.yaml: arm: .*{message}"):
        load(tmp_path, **change)


def test_the_only_entry_needs_no_key_and_another_key_is_named(tmp_path: Path) -> None:
    load(tmp_path)
    assert Embodiment.from_file(tmp_path / "embodiment.yaml").cameras == ("front", "wrist")
    with pytest.raises(EmbodimentError, match=r"no entry for unnorm_key 'other'; it has \['arm'\]"):
        Embodiment.from_file(tmp_path / "embodiment.yaml", "other")
    with pytest.raises(EmbodimentError, match="not readable as YAML"):
        Embodiment.from_file(tmp_path / "none.yaml", "arm")
