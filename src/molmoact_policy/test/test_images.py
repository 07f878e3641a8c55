"""The image processor against the official one's outputs."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from molmoact_policy.errors import CheckpointError, ObservationError
from molmoact_policy.images import ImageProcessor
from PIL import Image

DATA = Path(__file__).parent / "data" / "images"
NAMES = ["bcz_213x171", "odd_171x398", "odd_517x203", "qvga_320x240", "wide_1500x300"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("family", "style"), [("d", "siglip2"), ("o", "clip")])
def test_crops_masks_and_indices_equal_the_official_ones(family: str, style: str, name: str) -> None:
    picture = np.array(Image.open(DATA / f"{name}.png").convert("RGB"))
    recorded = np.load(DATA / f"{family}_{name}.npz")
    arrays = ImageProcessor(style, max_crops=8)(picture)
    assert arrays["images"].shape == tuple(recorded["images_shape"])
    values = arrays["images"].ravel()[recorded["sample_pos"]]
    np.testing.assert_allclose(values, recorded["sample_val"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(arrays["image_masks"], recorded["image_masks"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(arrays["pooled_patches_idx"], recorded["pooled_patches_idx"])
    np.testing.assert_array_equal(arrays["image_grids"], recorded["image_grids"])


def test_grid_choice_equals_the_official_one() -> None:
    for case in json.loads((DATA / "select_tiling.json").read_text()):
        processor = ImageProcessor(base_image_input_size=(case["base"], case["base"]))
        assert list(processor.select_tiling(case["h"], case["w"], case["max_crops"])) == case["tiling"], case


def test_one_of_several_pictures_has_its_own_limit_of_crops() -> None:
    picture = np.zeros((480, 640, 3), np.uint8)
    processor = ImageProcessor("siglip2", max_crops=8, max_multi_image_crops=2)
    assert len(processor(picture)["images"]) == 1 + 4
    assert len(processor(picture, multi_image=True)["images"]) == 1 + 2


def test_a_small_configuration_gives_the_same_crop_twice() -> None:
    processor = ImageProcessor(
        "siglip2", max_crops=1, overlap_margins=(0, 0), base_image_input_size=(128, 128), image_patch_size=16
    )
    arrays = processor(np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8))
    assert arrays["images"].shape == (2, 64, 768)
    np.testing.assert_array_equal(arrays["images"][0], arrays["images"][1])
    np.testing.assert_array_equal(arrays["pooled_patches_idx"][16:], arrays["pooled_patches_idx"][:16] + 64)


@given(height=st.integers(1, 700), width=st.integers(1, 700), style=st.sampled_from(["siglip2", "clip"]))
@settings(max_examples=25, deadline=None)
def test_every_patch_of_the_grid_is_used_at_most_once(height: int, width: int, style: str) -> None:
    processor = ImageProcessor(style, base_image_input_size=(56, 56), image_patch_size=4)
    arrays = processor(np.zeros((height, width, 3), np.uint8))
    used = arrays["pooled_patches_idx"][arrays["pooled_patches_idx"] >= 0]
    assert len(np.unique(used)) == len(used)
    assert used.max() < arrays["images"].shape[0] * arrays["images"].shape[1]
    assert len(arrays["pooled_patches_idx"]) == arrays["image_grids"].prod(1).sum()
    assert np.isfinite(arrays["images"]).all()


@pytest.mark.parametrize("style", ["siglip2", "clip"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3840), (2160, 1)])
def test_extreme_shapes_are_accepted(style: str, shape: tuple[int, int]) -> None:
    assert np.isfinite(ImageProcessor(style)(np.full((*shape, 3), 7, np.uint8))["images"]).all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        "front.png",
    ],
)
def test_anything_but_an_rgb_picture_is_refused(image: object) -> None:
    with pytest.raises(ObservationError, match="expected .*uint8 RGB"):
        ImageProcessor()(image)  # type: ignore[arg-type]


def test_settings_survive_preprocessor_config(tmp_path: Path) -> None:
    ImageProcessor(
        "clip",
        3,
        max_multi_image_crops=2,
        overlap_margins=(1, 2),
        base_image_input_size=(64, 64),
        image_patch_size=8,
        pooling_size=(2, 1),
    ).save_pretrained(tmp_path)
    loaded = ImageProcessor.from_pretrained(tmp_path)
    assert (loaded.style, loaded.max_crops, loaded.max_multi_image_crops) == ("clip", 3, 2)
    assert (loaded.margins, loaded.crop_size, loaded.patch_size, loaded.pooling_size) == ((1, 2), 64, 8, (2, 1))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"crop_mode": "resize"}, "crop_mode 'resize'"),
        ({"resize_mode": "dino"}, "resize_mode 'dino'"),
        ({"base_image_input_size": [378, 336]}, "expected a square"),
        ({"overlap_margins": [20, 20]}, "leave nothing"),
    ],
)
def test_a_setting_that_is_not_supported_is_named_with_its_file(tmp_path: Path, setting: dict, message: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(setting))
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json: .*{message}"):
        ImageProcessor.from_pretrained(tmp_path)
