"""Depth estimation through transformers' own Depth Anything, tiny and untrained: the path is that of the real one."""

import json
import shutil

import numpy as np
import pytest
import torch
from molmoact_training.depth_estimation import DepthEstimator, prepared
from molmoact_training.errors import TrainingError
from safetensors.torch import load_file, save_file
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

PATCH = 14


def tiny_config(**changes):
    backbone = Dinov2Config(
        image_size=518,
        patch_size=PATCH,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    sizes = {
        "reassemble_hidden_size": 32,
        "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
        "head_hidden_size": 4,
    }
    return DepthAnythingConfig(backbone_config=backbone, patch_size=PATCH, **sizes, **changes)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("depth_anything")
    DepthAnythingForDepthEstimation(tiny_config()).save_pretrained(path)
    return path


@pytest.fixture
def image():
    """uint8 [48, 64, 3]"""
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def test_a_picture_becomes_a_depth_picture_of_the_vqvaes_size(directory, image):
    estimator = DepthEstimator.from_pretrained(directory)
    picture = estimator(image)
    assert picture.shape == (320, 320)
    assert picture.dtype == np.uint8
    assert picture.max() > 200
    assert picture.min() < 20


def test_inverse_depth_has_the_size_of_the_picture_and_is_not_negative(directory, image):
    nearness = DepthEstimator.from_pretrained(directory).nearness(image)
    assert nearness.shape == (48, 64)
    assert (nearness >= 0).all()
    assert nearness.std() > 0


def test_the_same_picture_gives_the_same_depth(directory, image):
    estimator = DepthEstimator.from_pretrained(directory)
    np.testing.assert_array_equal(estimator(image), estimator(image))


@pytest.mark.parametrize(
    ("size", "expected"), [((480, 640), (518, 686)), ((240, 320), (518, 686)), ((640, 480), (686, 518))]
)
def test_the_shorter_side_becomes_518_pixels_and_both_are_whole_patches(size, expected):
    assert prepared(np.zeros((*size, 3), np.uint8), PATCH).shape == (3, *expected)


def test_pixels_are_normalised_as_the_backbone_was_trained_channel_by_channel():
    image = np.empty((20, 20, 3), np.uint8)
    image[:] = (255, 0, 128)
    red, green, blue = prepared(image, PATCH)[:, 10, 10]
    assert red == pytest.approx((1 - 0.485) / 0.229, abs=1e-4)
    assert green == pytest.approx(-0.456 / 0.224, abs=1e-4)
    assert blue == pytest.approx((128 / 255 - 0.406) / 0.225, abs=1e-4)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (None, "config.json"),
        ({"model_type": "dpt"}, "dpt"),
        ({"model_type": "depth_anything", "depth_estimation_type": "metric"}, "metric"),
        ({"model_type": "depth_anything"}, "not readable"),
    ],
)
def test_a_directory_without_such_a_model_is_named(tmp_path, config, named):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TrainingError, match=named) as caught:
        DepthEstimator.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_weight_is_named_and_not_drawn_at_random(directory, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    del weights["head.conv2.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrainingError, match="head.conv2.weight"):
        DepthEstimator.from_pretrained(copy)
