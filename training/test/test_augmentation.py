"""Geometry and colours of the augmentation, as the paper states them and as the release does it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from molmoact_training.augmentation import augment, crop_box, jitter_colours, shift_hue
from molmoact_training.presets import Augmentation, ColourJitter
from PIL import Image

SIDES = st.integers(1, 700)
PAPER = ColourJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(height: int = 24, width: int = 32) -> np.ndarray:
    return rng().integers(0, 256, (height, width, 3)).astype(np.uint8)


@given(SIDES, SIDES, st.floats(0.05, 1), st.integers(0, 9))
def test_a_crop_of_the_pictures_own_ratio_has_the_area_and_lies_inside(width, height, area, seed) -> None:
    left, top, w, h = crop_box((width, height), area, width / height, rng(seed))
    assert 0 <= left <= width - w and 0 <= top <= height - h
    assert (abs(w - width * area**0.5) <= 0.5 and abs(h - height * area**0.5) <= 0.5) or min(w, h) < 1 or w == width


@given(SIDES, SIDES, st.floats(0.05, 1), st.floats(0.1, 10), st.integers(0, 9))
def test_every_crop_lies_inside_the_picture(width, height, area, ratio, seed) -> None:
    left, top, w, h = crop_box((width, height), area, ratio, rng(seed))
    assert 0 <= left <= width - w and 0 <= top <= height - h


def test_a_square_of_a_square_picture_is_243_of_256_pixels_anywhere() -> None:
    boxes = [crop_box((256, 256), 0.9, 1.0, rng(seed)) for seed in range(200)]
    assert {box[2:] for box in boxes} == {(243, 243)}
    assert {box[0] for box in boxes} == set(range(14)) == {box[1] for box in boxes}


def test_a_square_that_does_not_fit_is_the_centre_without_randomness_as_in_the_release() -> None:
    assert {crop_box((320, 240), 0.9, 1.0, rng(seed)) for seed in range(20)} == {(40, 0, 240, 240)}
    assert {crop_box((240, 320), 0.9, 1.0, rng(seed)) for seed in range(20)} == {(0, 40, 240, 240)}


def test_the_papers_crop_of_320x240_keeps_the_ratio_and_moves() -> None:
    boxes = {crop_box((320, 240), 0.9, 320 / 240, rng(seed)) for seed in range(500)}
    assert {box[2:] for box in boxes} == {(304, 228)}
    assert {box[0] for box in boxes} == set(range(17)) and {box[1] for box in boxes} == set(range(13))


@pytest.mark.parametrize("ratio", ["picture", "square"])
def test_the_crop_is_enlarged_to_the_pictures_size(ratio: str) -> None:
    picture = noise(240, 320)
    ours = augment(picture, Augmentation(crop_area=0.9, crop_ratio=ratio), rng(3))
    ratio_value = 320 / 240 if ratio == "picture" else 1.0
    left, top, width, height = crop_box((320, 240), 0.9, ratio_value, rng(3))
    part = Image.fromarray(picture[top : top + height, left : left + width])
    assert ours.shape == picture.shape
    assert (ours == np.asarray(part.resize((320, 240), Image.Resampling.BILINEAR))).all()


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_a_factor_stays_within_its_range_and_reaches_both_sides(name: str) -> None:
    # Brightness scales a flat picture; contrast and saturation scale the distance from its (grey) mean.
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0], picture[1] = (140, 100, 60), (60, 100, 140)
    spread = []
    for seed in range(300):
        changed = jitter_colours(picture, ColourJitter(**{name: 0.2}), rng(seed)).astype(float)
        spread.append(changed[0, 0].mean() / 100 if name == "brightness" else np.ptp(changed[0, 0]) / 80)
    assert 0.79 < min(spread) < 0.83 and 1.17 < max(spread) < 1.21


def test_hue_turns_by_at_most_a_twentieth_and_keeps_grey() -> None:
    red, grey = np.full((1, 1, 3), (200, 40, 40), np.uint8), np.full((1, 1, 3), 90, np.uint8)
    turns = []
    for seed in range(200):
        changed = Image.fromarray(jitter_colours(red, ColourJitter(hue=0.05), rng(seed))).convert("HSV")
        hue = np.asarray(changed)[0, 0, 0].item()
        turns.append((hue + 128) % 256 - 128)
        assert (jitter_colours(grey, ColourJitter(hue=0.05), rng(seed)) == 90).all()
    assert -14 <= min(turns) < -10 and 10 < max(turns) <= 14


def test_a_third_of_the_circle_turns_red_to_green() -> None:
    green = shift_hue(np.full((1, 1, 3), (255, 0, 0), np.uint8), 1 / 3)[0, 0]
    assert green.tolist() == [0, 255, 0]


def test_the_order_of_the_changes_is_random() -> None:
    picture = np.array([[[250, 20, 20], [10, 30, 200]]], np.uint8)
    results = {jitter_colours(picture, PAPER, rng(seed)).tobytes() for seed in range(20)}
    assert len(results) == 20


def test_nothing_is_changed_by_nothing() -> None:
    picture = noise()
    assert (augment(picture, Augmentation(), rng()) == picture).all()
    assert (augment(picture, Augmentation(colour_jitter=ColourJitter()), rng()) == picture).all()
