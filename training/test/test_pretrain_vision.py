"""What the vision backbone is to tell of each frame."""

import numpy as np
import pytest
from molmoact_policy.images import ImageProcessor
from molmoact_training.annotated_dataset import AnnotatedDataset, Point
from molmoact_training.errors import DatasetError
from molmoact_training.presets import Preset
from molmoact_training.pretrain_vision import POINT_SCALE, Looks, points_of

from .test_mixture import frames, write_dataset


def test_each_object_of_each_picture_has_a_place_and_what_is_not_seen_has_none(tmp_path) -> None:
    first = frames(1, length=1, points=[Point("red cube", 0, 0, 255), Point("red cube", 1, 51, 102)])
    second = frames(1, length=1, points=[Point("blue plate", 0, 255, 0)])
    points = points_of(AnnotatedDataset(write_dataset(tmp_path / "d", first + second, allow_constant=True)))
    none = [np.nan, np.nan]  # in the order of picture, then name
    np.testing.assert_allclose(
        points / POINT_SCALE, [[*none, -0.5, 0.5, -0.3, -0.1], [0.5, -0.5, *none, *none]], atol=1e-6
    )


def test_frames_without_points_are_refused(tmp_path) -> None:
    dataset = AnnotatedDataset(write_dataset(tmp_path / "d", frames(1)))
    with pytest.raises(DatasetError, match="some frames have no points"):
        points_of(dataset)


@pytest.mark.parametrize(("trace", "drawn"), [([[3, 4], [200, 100]], True), ([[3, 4]], False)])
def test_only_a_trace_that_can_be_seen_stands_for_the_instruction(nano_directory, tmp_path, trace, drawn) -> None:
    look = frames(2, traces=[np.array(trace, np.uint8)], points=[Point("red cube", 0, 0, 255)])
    dataset = AnnotatedDataset(write_dataset(tmp_path / "d", look))
    processor = ImageProcessor.from_pretrained(nano_directory)
    looks = Looks.of(dataset, processor, Preset.from_file("nano"), drawn_share=1.0)
    _, instructions, _, _ = looks.batch(looks.train, None, np.random.default_rng(0))
    assert (instructions == looks.what_is_drawn).tolist() == [drawn] * len(looks.train)
