"""The trace overlay and its subsampling against the official data code."""

import json
from pathlib import Path

import numpy as np
import pytest
from molmoact_policy.trace import draw_trace, subsample_trace

DATA = Path(__file__).parent / "data"
OVERLAY = np.load(DATA / "overlay.npz")


def gradient(height: int, width: int) -> np.ndarray:
    """The picture under the recorded overlays."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)


def official(picture: np.ndarray, name: str) -> np.ndarray:
    """The picture with the pixels the official code changed."""
    drawn = picture.copy()
    y, x = OVERLAY[f"{name}_changed_yx"].T
    drawn[y, x] = OVERLAY[f"{name}_changed_rgb"]
    return drawn


@pytest.mark.parametrize("name", ["qvga", "libero", "one_point", "vga_oob"])
def test_overlay_equals_the_official_one(name: str) -> None:
    picture = gradient(*OVERLAY[f"{name}_hw"])
    drawn = draw_trace(picture, OVERLAY[f"{name}_points"])
    assert np.abs(drawn.astype(int) - official(picture, name)).max() <= 2
    np.testing.assert_array_equal(picture, gradient(*OVERLAY[f"{name}_hw"]))


def test_two_arms_are_two_overlays_one_after_the_other() -> None:
    picture = gradient(240, 320)
    # Read off the recorded pixels: the record holds only those.
    left, right = [[0, 0], [100, 100]], [[255, 0], [100, 200]]
    drawn = draw_trace(draw_trace(picture, left), right)
    assert np.abs(drawn.astype(int) - official(picture, "bimanual")).max() <= 2


def test_subsampling_equals_the_official_one() -> None:
    for case in json.loads((DATA / "encode_cases.json").read_text())["trace_subsample"]:
        seen = [point for point in case["points"] if point is not None]
        assert subsample_trace(seen, case["k"]) == case["line"]
