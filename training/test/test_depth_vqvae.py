"""Training of the depth VQVAE: it learns, goes on where it was stopped, and says what it cannot be trained on."""

import numpy as np
import pytest
import torch
from molmoact_policy.depth import DepthVQVAE
from molmoact_training import depth_vqvae
from molmoact_training.depth_vqvae import (
    STATE_FILE,
    VQVAESettings,
    codebook_use,
    encode_pictures,
    report,
    revive_unused_codes,
    to_input,
    train_vqvae,
)
from molmoact_training.errors import DatasetError, PresetError, TrainingError

SMALL = VQVAESettings(hidden_dim=2, codebook_dim=8, steps=6, batch=4)


def silent(entry):
    pass


@pytest.fixture(scope="module")
def pictures():
    """uint8 [12, 40, 40]: slanted tables with a box that is somewhere else in each."""
    rng = np.random.default_rng(0)
    rows = np.repeat(np.linspace(40, 200, 40, dtype=np.uint8)[:, None], 40, 1)
    made = np.repeat(rows[None], 12, 0)
    for picture, (x, y) in zip(made, rng.integers(0, 30, (12, 2)), strict=True):
        picture[y : y + 10, x : x + 10] = 250
    return made


def weights(vqvae):
    return torch.cat([tensor.flatten() for tensor in vqvae.state_dict().values()])


def test_training_lowers_the_reconstruction_error_and_revives_enough_codes_to_use_many(pictures):
    untrained = train_vqvae(pictures, VQVAESettings(hidden_dim=4, codebook_dim=16, steps=1, batch=4), log=silent)
    trained = train_vqvae(
        pictures, VQVAESettings(hidden_dim=4, codebook_dim=16, steps=120, batch=4, learning_rate=2e-3), log=silent
    )
    before = report(untrained, pictures, encode_pictures(untrained, pictures))
    after = report(trained, pictures, encode_pictures(trained, pictures))
    assert after["mse"] < 0.5 * before["mse"]
    assert after["codes_used"] >= 20
    assert 1.0 < after["perplexity"] <= after["codes_used"]


def test_an_interrupted_training_goes_on_to_the_same_bits(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(depth_vqvae, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(depth_vqvae, "LOG_EVERY", 1)
    steps = []

    def stop_at_third(entry):
        steps.append(entry["step"])
        if entry["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_vqvae(pictures, SMALL, tmp_path, log=stop_at_third)
    assert not (tmp_path / "model.safetensors").exists()
    continued = train_vqvae(pictures, SMALL, tmp_path, log=lambda entry: steps.append(entry["step"]))
    assert steps == [1, 2, 3, 3, 4, 5, 6]
    assert torch.equal(weights(continued), weights(train_vqvae(pictures, SMALL, log=silent)))


def test_what_is_saved_loads_in_the_policy_and_gives_the_same_codes(pictures, tmp_path):
    vqvae = train_vqvae(pictures, SMALL, tmp_path, log=silent)
    loaded = DepthVQVAE.from_pretrained(tmp_path)
    codes = encode_pictures(loaded, pictures)
    assert codes.shape == (12, 100)
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes, encode_pictures(vqvae, pictures))


def test_a_training_with_other_settings_does_not_go_on_from_this_one(pictures, tmp_path):
    train_vqvae(pictures, SMALL, tmp_path, log=silent)
    with pytest.raises(DatasetError, match=STATE_FILE):
        train_vqvae(pictures, VQVAESettings(hidden_dim=2, codebook_dim=8, steps=7, batch=4), tmp_path, log=silent)


def test_training_leaves_the_random_numbers_of_its_caller_alone(pictures):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_vqvae(pictures, SMALL, log=silent)
    assert torch.equal(torch.rand(3), expected)


def test_the_default_is_the_papers_network_and_length():
    settings = VQVAESettings()
    vqvae = DepthVQVAE(
        hidden_dim=settings.hidden_dim, codebook_dim=settings.codebook_dim, num_tokens=settings.num_tokens
    )
    assert sum(parameter.numel() for parameter in vqvae.parameters()) == 7_689_201
    assert settings.steps_for(np.zeros((640, 1, 1), np.uint8)) == 200


def test_unused_codes_are_revived_even_when_there_are_fewer_vectors_than_codes(pictures):
    torch.manual_seed(0)
    vqvae = DepthVQVAE(hidden_dim=2, codebook_dim=8, num_tokens=128).train()
    before = vqvae._vq_vae._embedding.clone()
    revive_unused_codes(vqvae, to_input(pictures[:1]))
    moved = (vqvae._vq_vae._embedding != before).any(1).sum()
    assert moved == 100


def test_an_input_of_the_networks_size_is_not_resampled():
    picture = np.random.default_rng(0).integers(0, 256, (1, 320, 320), dtype=np.uint8)
    np.testing.assert_allclose(to_input(picture)[0, 0].numpy(), picture[0] / 255, atol=1e-6)


def test_perplexity_counts_equally_used_codes():
    assert codebook_use(np.arange(8, dtype=np.uint8)[None])["perplexity"] == pytest.approx(8)
    assert codebook_use(np.full((2, 100), 3, np.uint8)) == {"codes_used": 1, "perplexity": pytest.approx(1)}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (np.zeros((8, 40, 40, 3), np.uint8), "n, h, w"),
        (np.zeros((8, 40, 40), np.float32), "uint8"),
        (np.zeros((3, 40, 40), np.uint8), "batch of 4"),
        (np.full((8, 40, 40), 7, np.uint8), "one shade"),
    ],
)
def test_pictures_that_cannot_be_trained_on_are_refused_before_the_first_step(wrong, named, tmp_path):
    with pytest.raises(DatasetError, match=named):
        train_vqvae(wrong, SMALL, tmp_path, log=silent)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"batch": 2.5}, "batch"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"maps": True}, "maps"),
        ({"num_tokens": 129}, "128 depth tokens"),
        ({"codebook": 512}, "codebook"),
    ],
)
def test_a_wrong_field_of_a_preset_is_named(section, named):
    with pytest.raises(PresetError, match=named):
        VQVAESettings.from_dict(section)


def test_a_loss_that_is_not_finite_stops_the_training(pictures):
    diverging = VQVAESettings(hidden_dim=2, codebook_dim=8, steps=50, batch=4, learning_rate=1e30)
    with pytest.raises(TrainingError, match="step"):
        train_vqvae(pictures, diverging, log=silent)
