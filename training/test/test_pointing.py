"""Pointing at the gripper: the release's rule for Molmo's answers, and a process with a small model like it."""

import shutil
import string
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from molmoact_training.errors import TrainingError
from molmoact_training.pointing import MolmoPointer, parse_point
from safetensors.torch import save_file

DATA = Path(__file__).parent / "data" / "pointing_model"
PROMPT = "point to the robot gripper"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = shutil.copytree(DATA, tmp_path_factory.mktemp("models") / "pointing_model")
    save_file({"unused": torch.zeros(1)}, path / "model.safetensors", {"format": "pt"})
    with pytest.MonkeyPatch.context() as patch:  # where transformers copies a model's code to
        patch.setenv("HF_MODULES_CACHE", str(path.parent / "modules"))
        yield path


@pytest.fixture(scope="module")
def pointer(directory):
    with MolmoPointer(directory, Path(sys.executable)) as pointer:
        yield pointer


@pytest.mark.parametrize(
    ("text", "pixel"),
    [
        (' <point x="50.0" y="25.0" alt="robot gripper">robot gripper</point>', (320.0, 120.0)),
        ('The gripper is here: <point x=" 10.1" y="0" alt="">', (65.0, 0.0)),
        ('<point x="100.0" y="100.0" alt="">', (640.0, 480.0)),
        ('<point x="10.0" y="10.0" alt="a"></point> <point x="90.0" y="90.0" alt="b"></point>', (64.0, 48.0)),
        ('<points x1="10.0" y1="10.0" x2="20.0" y2="20.0" alt="">', None),
        ('<point x="100.5" y="10.0" alt="">', None),
        ('<point x="-1.0" y="10.0" alt="">', None),
        ('<point x="1.2.3" y="10.0" alt="">', None),
        ("I see no gripper.", None),
        ("", None),
    ],
)
def test_the_first_single_point_counts_and_several_are_no_gripper(text, pixel):
    assert parse_point(text, (640, 480)) == pixel


@given(st.text(string.printable + '<point x="50.0" y="'))
def test_no_answer_breaks_the_parser(text):
    pixel = parse_point(text, (640, 480))
    assert pixel is None or (0 <= pixel[0] <= 640 and 0 <= pixel[1] <= 480)


@given(st.floats(0, 100), st.floats(0, 100))
def test_a_point_written_with_one_digit_is_found_to_half_a_percent(x, y):
    pixel = parse_point(f'<point x="{x:.1f}" y="{y:.1f}" alt="robot gripper">robot gripper</point>', (1000, 500))
    assert pixel == pytest.approx((x * 10, y * 5), abs=1.1)


def test_a_process_with_the_model_points_at_what_is_in_each_picture(pointer):
    image = np.zeros((80, 100, 3), np.uint8)
    image[20, 50] = 255
    assert pointer(image, PROMPT) == (50.0, 20.0)
    assert pointer(np.roll(image, 10, 1), f"{PROMPT} on the left") == (60.0, 20.0)


def test_several_points_are_none(pointer):
    assert pointer(np.zeros((8, 8, 3), np.uint8), PROMPT) is None


def test_what_the_models_code_raises_is_said_with_the_directory(directory):
    with MolmoPointer(directory) as pointer:
        with pytest.raises(TrainingError, match="unexpected prompt") as caught:
            pointer(np.zeros((8, 8, 3), np.uint8), "dance")
        assert str(directory) in str(caught.value)
        with pytest.raises(TrainingError, match="ended"):
            pointer(np.zeros((8, 8, 3), np.uint8), PROMPT)


def test_a_model_that_does_not_load_is_named_with_the_versions_that_would(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "molmo_that_is_not_here"}')
    with pytest.raises(TrainingError, match="transformers 4.46") as caught:
        MolmoPointer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_directory_without_a_model_and_a_python_that_is_not_there_are_named(tmp_path, directory):
    with pytest.raises(TrainingError, match="config.json"):
        MolmoPointer(tmp_path)
    with pytest.raises(TrainingError, match="no_python"):
        MolmoPointer(directory, tmp_path / "no_python")
