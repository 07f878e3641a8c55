"""Question-answer pairs from JSONL: what is read, and that what is wrong is named with file and line."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from molmoact_training.errors import DatasetError
from molmoact_training.question_answers import QuestionAnswers
from PIL import Image

GOOD = {"images": ["cube.png"], "question": "Which colour?", "answer": "Red."}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (8, 6), (200, 10, 10)).save(tmp_path / "cube.png")
    Image.new("L", (4, 4), 7).save(tmp_path / "grey.png")
    return tmp_path


def written(folder, *lines):
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_pairs_come_with_their_images_as_rgb(folder):
    pairs = QuestionAnswers(written(folder, GOOD, "", GOOD | {"images": ["cube.png", "grey.png"]}))
    assert len(pairs) == 2
    images, question, answer = pairs[0]
    assert (question, answer) == ("Which colour?", "Red.")
    assert images[0].shape == (6, 8, 3) and images[0][0, 0].tolist() == [200, 10, 10]
    assert [image.shape for image in pairs[1].images] == [(6, 8, 3), (4, 4, 3)]
    assert pairs[1].images[1].dtype == np.uint8


def test_a_pair_may_have_no_image(folder):
    assert QuestionAnswers(written(folder, GOOD | {"images": []}))[0].images == []


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "JSON"),
        ("[1]", "expected an object"),
        ({"question": "a", "answer": "b"}, "images"),
        (GOOD | {"more": 1}, "more"),
        (GOOD | {"question": " "}, "question"),
        (GOOD | {"answer": 3}, "answer"),
        (GOOD | {"images": "cube.png"}, "images"),
        (GOOD | {"images": [""]}, "images"),
        (GOOD | {"images": ["nowhere.png"]}, "nowhere.png"),
        (GOOD | {"images": ["pairs.jsonl"]}, "not readable as an image"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(folder, line, named):
    with pytest.raises(DatasetError, match=named) as caught:
        QuestionAnswers(written(folder, GOOD, line))
    assert "pairs.jsonl:2: " in str(caught.value)


def test_a_file_that_is_missing_or_empty_is_named(folder):
    with pytest.raises(DatasetError, match="nowhere.jsonl"):
        QuestionAnswers(folder / "nowhere.jsonl")
    with pytest.raises(DatasetError, match="pairs.jsonl: has no"):
        QuestionAnswers(written(folder, ""))


def test_an_image_torn_after_its_header_is_named_when_it_is_used(folder):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "cube.png")
    whole = (folder / "cube.png").read_bytes()
    (folder / "cube.png").write_bytes(whole[: len(whole) // 2])
    pairs = QuestionAnswers(written(folder, GOOD))
    with pytest.raises(DatasetError, match="cube.png"):
        pairs[0]


@given(line=st.text(max_size=60) | st.dictionaries(st.sampled_from(["images", "question", "answer"]), st.text()))
def test_nothing_but_a_dataset_error_comes_of_a_strange_line(tmp_path_factory, line):
    folder = tmp_path_factory.getbasetemp() / "strange"
    folder.mkdir(exist_ok=True)
    with pytest.raises(DatasetError):
        QuestionAnswers(written(folder, line))
