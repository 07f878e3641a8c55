"""Depth becomes the picture that the release feeds its VQVAE with."""

import numpy as np
import pytest
from molmoact_training.depth_pictures import picture_of_depth, relative_picture
from molmoact_training.errors import DatasetError


@pytest.fixture
def depth():
    """[240, 320] m: a slanted table with something on it."""
    rows, columns = np.mgrid[0:240, 0:320]
    metres = 1.4 - rows / 400 + columns / 3000
    metres[100:140, 150:200] -= 0.2
    return metres


def test_near_is_bright_and_the_whole_range_is_used(depth):
    picture = picture_of_depth(depth)
    assert picture.shape == (320, 320)
    assert picture.dtype == np.uint8
    assert picture[-1, 0] > picture[0, 0]
    assert picture.min() == 0
    assert picture.max() >= 254


def test_millimetres_give_the_picture_of_metres(depth):
    millimetres = np.round(depth * 1000).astype(np.uint16)
    difference = picture_of_depth(millimetres).astype(int) - picture_of_depth(depth)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("hole", [0.0, np.nan, np.inf, -1.0])
def test_a_hole_takes_the_depth_around_it(depth, hole):
    whole = picture_of_depth(depth).astype(int)
    depth[20:24, 30:40] = hole
    assert np.abs(picture_of_depth(depth) - whole).max() <= 4


def test_depth_without_any_measurement_is_refused():
    with pytest.raises(DatasetError, match="no pixel"):
        picture_of_depth(np.zeros((4, 4), np.uint16))


def test_inverse_depth_that_is_not_finite_is_refused():
    with pytest.raises(DatasetError, match="finite"):
        relative_picture(np.array([[1.0, np.nan]]))


def test_a_flat_wall_gives_a_black_picture():
    assert not picture_of_depth(np.full((8, 8), 1.0)).any()


def test_the_scale_of_an_estimate_does_not_matter(depth):
    np.testing.assert_array_equal(relative_picture(1 / depth), relative_picture(8 / depth))
