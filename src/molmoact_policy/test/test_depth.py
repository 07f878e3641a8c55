"""The depth VQVAE against the official one, at full size with seeded weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from molmoact_policy.depth import DepthVQVAE, most_square, to_grey
from molmoact_policy.errors import CheckpointError

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


def test_codes_and_maps_equal_the_official_ones_from_the_released_file_layout(
    recorded: dict[str, np.ndarray], tmp_path: Path
) -> None:
    weights = {f"module.{name}": tensor for name, tensor in seeded_weights(recorded).items()}
    torch.save({"weights": weights}, tmp_path / "vae-final.pt")
    vqvae = DepthVQVAE.from_pretrained(tmp_path / "vae-final.pt")
    with torch.inference_mode():
        codes = vqvae.encode(torch.from_numpy(recorded["input_u8"]).float() / 255)
        decoded = vqvae.decode(codes.flatten(1))
    np.testing.assert_array_equal(codes, recorded["indices"])
    np.testing.assert_allclose(decoded[:, :, ::16, ::16], recorded["decoded_sample"], rtol=0, atol=1e-4)


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


def test_codes_outside_the_codebook_are_refused() -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.7"):
        DepthVQVAE(**SMALL).decode(torch.tensor([[0, 8]]))


def test_a_flat_map_is_drawn_without_dividing_by_zero() -> None:
    assert to_grey(torch.full((2, 3), 0.4)).tolist() == [[0, 0, 0], [0, 0, 0]]


class Unsafe:
    """Stands for whatever else a pickle may run."""


def test_files_that_are_not_tensors_only_are_refused(tmp_path: Path) -> None:
    torch.save({"weights": Unsafe()}, tmp_path / "unsafe.pt")
    with pytest.raises(CheckpointError, match=r"unsafe\.pt: not readable as tensors only"):
        DepthVQVAE.from_pretrained(tmp_path / "unsafe.pt")
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
