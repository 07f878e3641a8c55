"""The image processor against the official one's outputs."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from molmoact_policy.errors import CheckpointError, ObservationError
from molmoact_policy.images import CLIP_MEAN, CLIP_STD, ImageProcessor
from PIL import Image

DATA = Path(__file__).parent / "data" / "images"
NAMES = sorted(path.stem.removeprefix("d_") for path in DATA.glob("d_*.npz"))


def picture_and_record(family: str, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    picture = np.array(Image.open(DATA / f"{name}.png").convert("RGB"))
    return picture, dict(np.load(DATA / f"{family}_{name}.npz"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("family", "style"), [("d", "siglip2"), ("o", "clip")])
def test_crops_masks_and_indices_equal_the_official_ones(family: str, style: str, name: str) -> None:
    picture, recorded = picture_and_record(family, name)
    arrays = ImageProcessor(style, max_crops=8)(picture)
    crops = arrays["images"]
    assert (crops.dtype, crops.shape) == (np.float32, tuple(recorded["images_shape"]))
    np.testing.assert_allclose(crops.ravel()[recorded["sample_pos"]], recorded["sample_val"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(crops.mean((1, 2), np.float64), recorded["crop_mean"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(crops.std((1, 2), np.float64), recorded["crop_std"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(arrays["image_masks"], recorded["image_masks"])
    np.testing.assert_array_equal(arrays["pooled_patches_idx"], recorded["pooled_patches_idx"])
    np.testing.assert_array_equal(arrays["image_grids"], recorded["image_grids"])


@pytest.mark.parametrize("name", NAMES)
def test_stretched_crops_equal_the_official_ones_to_the_bit(name: str) -> None:
    picture, recorded = picture_and_record("d", name)
    crops = ImageProcessor("siglip2", max_crops=8)(picture)["images"]
    assert hashlib.sha256(crops.astype("<f4").tobytes()).hexdigest() == recorded["sha256"]


@pytest.mark.parametrize("name", ["odd_517x203", "qvga_320x240"])
def test_padded_crops_equal_the_official_ones_in_every_value(name: str) -> None:
    picture, recorded = picture_and_record("o", name)
    crops = ImageProcessor("clip", max_crops=8)(picture)["images"]
    half_precision = 2**-11 * np.abs(crops).max()  # what the record was rounded to
    np.testing.assert_allclose(crops, recorded["images_f16"].astype(np.float32), rtol=0, atol=half_precision)


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
@pytest.mark.parametrize("shape", [(1, 1), (1, 3840), (2160, 1), (2160, 3840), (3840, 2160)])
def test_a_plain_picture_of_any_size_stays_plain(style: str, shape: tuple[int, int]) -> None:
    colour = np.array([7, 130, 255], np.uint8)
    arrays = ImageProcessor(style)(np.full((*shape, 3), colour, np.uint8))
    pixels = arrays["images"].reshape(-1, 3)
    if style == "clip":
        pixels = np.rint((pixels * CLIP_STD + CLIP_MEAN) * 255)
        padded = (pixels == 0).all(-1)
        assert padded.mean() == pytest.approx(1 - arrays["image_masks"].mean(), abs=1e-6)
        pixels = pixels[~padded]
    else:
        pixels = np.rint((pixels + 1) / 2 * 255)
    assert (pixels == colour).all()


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


def test_what_preprocessor_config_leaves_out_is_the_released_default(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{}")
    loaded = ImageProcessor.from_pretrained(tmp_path)
    assert (loaded.style, loaded.max_crops, loaded.max_multi_image_crops) == ("siglip2", 8, 4)
    assert (loaded.margins, loaded.crop_size, loaded.patch_size, loaded.pooling_size) == ((4, 4), 378, 14, (2, 2))


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
        ({"normalize_mode": "openai"}, "normalize_mode 'openai' with resize_mode 'siglip'"),
        ({"resize_mode": "default", "normalize_mode": "siglip"}, "normalize_mode 'siglip' with resize_mode 'default'"),
        ({"resize_mode": "default"}, "normalize_mode 'siglip' with resize_mode 'default'"),
        ({"pad_value": 0.5}, "pad_value 0.5"),
        ({"base_image_input_size": [378, 336]}, "expected a square"),
        ({"overlap_margins": [20, 20]}, "leave nothing"),
    ],
)
def test_a_setting_that_is_not_supported_is_named_with_its_file(tmp_path: Path, setting: dict, message: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(setting))
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json: .*{message}"):
        ImageProcessor.from_pretrained(tmp_path)
