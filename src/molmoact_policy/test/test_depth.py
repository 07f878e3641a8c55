"""The depth VQVAE against the official one: small with stored weights, and at full size with seeded ones."""

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from molmoact_policy.depth import DepthVQVAE, most_square, to_grey
from molmoact_policy.errors import CheckpointError
from safetensors.torch import load_file, save_file

DATA = Path(__file__).parent / "data"
SMALL = {"hidden_dim": 2, "codebook_dim": 4, "num_tokens": 8, "image_size": 64}


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    return dict(np.load(DATA / "vqvae_full_seeded.npz"))


def seeded_weights(recorded: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The recipe the recorded outputs were made with."""
    shapes = json.loads((DATA / "state_dict_vqvae.json").read_text())["state_dict"]
    weights = {}
    for i, name in enumerate(recorded["sorted_keys"].tolist()):
        shape = shapes[name]
        scale = 1.4 / np.sqrt(np.prod(shape[1:])) if len(shape) == 4 else 0.05 if name.endswith(".bias") else 1.0
        values = scale * np.random.RandomState(1000 + i).standard_normal(shape)
        weights[name] = torch.from_numpy(values.astype(np.float32))
    return weights | {"_vq_vae._embedding": torch.from_numpy(recorded["embedding"])}


@pytest.fixture(scope="module")
def maps(recorded: dict[str, np.ndarray]) -> torch.Tensor:
    """Three depth maps; both records were made from them."""
    return torch.from_numpy(recorded["input_u8"]).float() / 255


@torch.inference_mode()
def test_small_network_equals_the_official_one(maps: torch.Tensor) -> None:
    official = np.load(DATA / "vqvae_small" / "outputs.npz")
    vqvae = DepthVQVAE.from_pretrained(DATA / "vqvae_small")
    codes = vqvae.encode(maps)
    decoded = vqvae.decode(codes)
    np.testing.assert_allclose(vqvae.encoder(maps), official["encoder_out"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(codes, official["indices"])
    np.testing.assert_allclose(decoded[:1, :, ::3, ::3], official["decoded_first"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(decoded[:, :, ::8, ::8], official["decoded_sample"], rtol=0, atol=1e-4)


@torch.inference_mode()
def test_losses_of_the_small_network_equal_the_official_ones(maps: torch.Tensor) -> None:
    official = np.load(DATA / "vqvae_small" / "outputs.npz")
    result = DepthVQVAE.from_pretrained(DATA / "vqvae_small")(maps)
    np.testing.assert_array_equal(result.codes, official["indices"])
    assert result.reconstruction_loss.item() == pytest.approx(official["recon_loss"].item(), abs=1e-6)
    assert result.loss.item() == pytest.approx(official["total_loss"].item(), abs=1e-6)


@torch.inference_mode()
def test_full_network_equals_the_official_one_from_the_released_file_layout(
    recorded: dict[str, np.ndarray], maps: torch.Tensor, tmp_path: Path
) -> None:
    weights = {f"module.{name}": tensor for name, tensor in seeded_weights(recorded).items()}
    torch.save({"weights": weights}, tmp_path / "vae-final.pt")
    vqvae = DepthVQVAE.from_pretrained(tmp_path / "vae-final.pt")
    codes = vqvae.encode(maps)
    decoded = vqvae.decode(codes.flatten(1))
    np.testing.assert_allclose(vqvae.encoder(maps)[:, :16], recorded["encoder_out_sample"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(codes, recorded["indices"])
    np.testing.assert_allclose(decoded[:, :, ::16, ::16], recorded["decoded_sample"], rtol=0, atol=1e-4)
    half_precision = 2**-11 * decoded[0].abs().max().item()  # what the record was rounded to
    np.testing.assert_allclose(
        decoded[:1, :, ::3, ::3], recorded["decoded_first_f16"].astype(np.float32), rtol=0, atol=half_precision
    )


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("layout", ["weights.pt", "bare.pt", "model.safetensors"])
def test_one_weight_file_loads_in_any_layout_the_release_writes(tmp_path: Path, layout: str, prefix: str) -> None:
    official = load_file(DATA / "vqvae_small" / "model.safetensors")
    tensors = {prefix + name: tensor for name, tensor in official.items()}
    file = tmp_path / layout
    if layout == "model.safetensors":
        save_file(tensors, file)
    else:
        torch.save({"weights": tensors} if layout == "weights.pt" else tensors, file)
    loaded = DepthVQVAE.from_pretrained(file, hidden_dim=4, codebook_dim=32).state_dict()
    assert loaded.keys() == official.keys()
    assert all(torch.equal(loaded[name], official[name]) for name in official)


def test_full_size_has_exactly_the_official_keys_and_shapes() -> None:
    official = json.loads((DATA / "state_dict_vqvae.json").read_text())
    vqvae = DepthVQVAE(**official["config"])
    assert {name: list(tensor.shape) for name, tensor in vqvae.state_dict().items()} == official["state_dict"]


def test_training_moves_the_codebook_by_average_and_the_encoder_by_gradient() -> None:
    torch.manual_seed(0)
    vqvae = DepthVQVAE(**SMALL).train()
    optimiser = torch.optim.Adam(vqvae.parameters(), 3e-3)
    maps = torch.linspace(0, 1, 64).expand(4, 1, 64, 64) * torch.tensor([0.2, 0.5, 0.8, 1.0]).view(4, 1, 1, 1)
    before = vqvae._vq_vae._embedding.clone()
    losses = []
    for _ in range(40):
        result = vqvae(maps)
        optimiser.zero_grad()
        result.loss.backward()
        assert all(parameter.grad is not None for parameter in vqvae.parameters())
        optimiser.step()
        losses.append(result.reconstruction_loss.item())
    assert losses[-1] < losses[0] / 2
    assert not torch.equal(vqvae._vq_vae._embedding, before)
    kept = vqvae.eval()._vq_vae._embedding.clone()
    vqvae(maps)
    assert torch.equal(vqvae._vq_vae._embedding, kept)


def test_a_saved_directory_reads_back(tmp_path: Path) -> None:
    vqvae = DepthVQVAE(**SMALL).eval()
    vqvae.save_pretrained(tmp_path)
    loaded = DepthVQVAE.from_pretrained(tmp_path)
    assert loaded.config == vqvae.config
    maps = torch.rand(1, 1, 64, 64)
    assert torch.equal(loaded.encode(maps), vqvae.encode(maps))


@pytest.mark.parametrize(("count", "grid"), [(100, (10, 10)), (12, (3, 4)), (7, (1, 7)), (1, (1, 1))])
def test_any_number_of_codes_has_a_most_square_grid(count: int, grid: tuple[int, int]) -> None:
    assert most_square(count) == grid
    assert DepthVQVAE(**SMALL).decode(torch.zeros(1, count, dtype=torch.int64)).shape == (
        1,
        1,
        grid[0] * 32,
        grid[1] * 32,
    )


@given(st.integers(1, 100_000))
def test_no_grid_is_closer_to_a_square(count: int) -> None:
    rows, columns = most_square(count)
    assert rows <= columns
    assert rows * columns == count
    assert not any(count % between == 0 for between in range(rows + 1, math.isqrt(count) + 1))


@pytest.mark.parametrize("shape", [(1, 0), (1, 0, 3), (0, 4)])
def test_no_codes_at_all_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"{re.escape(str(list(shape)))}: none to decode"):
        DepthVQVAE(**SMALL).decode(torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(ValueError, match="0 depth codes, expected at least 1"):
        most_square(0)


def test_codes_outside_the_codebook_are_refused() -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.7"):
        DepthVQVAE(**SMALL).decode(torch.tensor([[0, 8]]))


def test_a_flat_map_is_drawn_without_dividing_by_zero() -> None:
    assert to_grey(torch.full((2, 3), 0.4)).tolist() == [[0, 0, 0], [0, 0, 0]]


class Unsafe:
    """Stands for whatever else a pickle may run."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.directory,)


def test_files_that_are_not_tensors_only_are_refused(tmp_path: Path) -> None:
    torch.save({"weights": Unsafe(str(tmp_path / "ran"))}, tmp_path / "unsafe.pt")
    with pytest.raises(CheckpointError, match=r"unsafe\.pt: not readable as tensors only"):
        DepthVQVAE.from_pretrained(tmp_path / "unsafe.pt")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(CheckpointError, match=r"nothing\.pt is missing"):
        DepthVQVAE.from_pretrained(tmp_path / "nothing.pt")
    torch.save({"weights": {"encoder.0.weight": torch.zeros(1)}}, tmp_path / "part.pt")
    with pytest.raises(
        CheckpointError, match=r"part\.pt.*missing: encoder\.0\.bias, .* and 47 more; 1 mis-shaped: encoder\.0\.weight"
    ):
        DepthVQVAE.from_pretrained(tmp_path / "part.pt", **SMALL)


def test_a_setting_of_another_network_is_named() -> None:
    with pytest.raises(CheckpointError, match="use_norm is True, only False"):
        DepthVQVAE(use_norm=True)
    with pytest.raises(CheckpointError, match="unknown setting 'codebook'"):
        DepthVQVAE(codebook=3)
