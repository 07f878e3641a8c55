"""What the vision backbone is to tell of each frame."""

import numpy as np
import pytest
from molmoact_training.annotated_dataset import AnnotatedDataset, Point
from molmoact_training.errors import DatasetError
from molmoact_training.pretrain_vision import POINT_SCALE, points_of

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
