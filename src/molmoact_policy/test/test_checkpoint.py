"""Which checkpoints load, at what cost in memory, and what is said of those that do not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from molmoact_policy import checkpoint
from molmoact_policy.config import VARIANTS
from molmoact_policy.errors import CheckpointError
from molmoact_policy.model import MolmoActConfig, MolmoActForActionReasoning
from safetensors.torch import load_file, save_file

DATA = Path(__file__).parent / "data"
REPOSITORY = "laboratory/fine-tune"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(params=["tiny_d", "tiny_o"])
def official(request: pytest.FixtureRequest) -> Path:
    return DATA / request.param


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A small checkpoint, to be damaged."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((DATA / "tiny_d" / name).read_bytes())
    return tmp_path


def edit_config(directory: Path, part: str | None = None, **change: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    config |= {part: config[part] | change} if part else change
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 300_000])
def test_saved_again_every_file_is_the_same_to_the_byte(official: Path, tmp_path: Path, max_shard_bytes: int) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    MolmoActForActionReasoning.from_pretrained(official).save_pretrained(once, max_shard_bytes=max_shard_bytes)
    MolmoActForActionReasoning.from_pretrained(once).save_pretrained(twice, max_shard_bytes=max_shard_bytes)
    files = {path.name: path.read_bytes() for path in once.iterdir()}
    assert files == {path.name: path.read_bytes() for path in twice.iterdir()}


def test_bfloat16_saves_and_loads_without_a_change(official: Path, tmp_path: Path) -> None:
    model = MolmoActForActionReasoning.from_pretrained(official, dtype="bfloat16")
    model.save_pretrained(tmp_path)
    again = MolmoActForActionReasoning.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("adapter_config", {"text_hidden_size": 32}, r"text_hidden_size is 32, llm_config\.hidden_size 64"),
        (
            "adapter_config",
            {"vit_layers": [-3, 40]},
            r"vit_layers is \[-3, 40\], expected layers of 10",
        ),
        ("vit_config", {"image_num_pos": 120}, r"image_num_pos is 120, expected a square"),
        (
            "vit_config",
            {"num_key_value_heads": 3},
            r"num_attention_heads is 4, which num_key_value_heads 3",
        ),
        (None, {"image_patch_id": 999}, "image_patch_id is 999, expected one of the 272 embedding rows"),
    ],
)
def test_settings_that_do_not_go_together_are_named(directory: Path, part, change: dict, message: str) -> None:
    edit_config(directory, part, **change)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        MolmoActForActionReasoning.from_pretrained(directory)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_is_chosen_by_name_and_weights_stay_as_they_are(official: Path, variant: str) -> None:
    model = MolmoActForActionReasoning.from_pretrained(official, variant=variant)
    expected = VARIANTS[variant]
    assert model.config.image_injection == expected.image_injection
    assert model.config.use_pad_embed == expected.use_pad_embed
    pooling = model.vision_backbone.image_pooling_2d
    assert pooling.float32_scores == expected.float32_attention
    assert torch.equal(model.lm_head.weight, load_file(official / "model.safetensors")["lm_head.weight"])


def test_no_variant_is_the_released_hf_code(official: Path) -> None:
    config = MolmoActForActionReasoning.from_pretrained(official).config
    assert (config.image_injection, config.use_pad_embed) == ("add", False)
    assert config.vit_config.float32_attention and config.adapter_config.float32_attention


@pytest.mark.parametrize(("option", "value"), [("variant", "sglang"), ("dtype", "int8"), ("dtype", torch.float64)])
def test_option_that_is_none_is_refused_with_those_there_are(directory: Path, option: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{option} is .*\("):
        MolmoActForActionReasoning.from_pretrained(directory, **{option: value})


def shard(directory: Path, names: list[str]) -> None:
    """All tensors of the checkpoint in each of the files, with an index that names them."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    for name in names:
        save_file(tensors, directory / name)
    weight_map = {key: names[index % len(names)] for index, key in enumerate(tensors)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_tensor_in_two_shards_is_named_with_both(directory: Path) -> None:
    shard(directory, ["a.safetensors", "b.safetensors"])
    with pytest.raises(CheckpointError, match=r"is there twice: .* in a\.safetensors, .* in b\.safetensors"):
        MolmoActForActionReasoning.from_pretrained(directory)


def test_truncated_shard_is_named(directory: Path) -> None:
    shard(directory, ["a.safetensors"])
    content = (directory / "a.safetensors").read_bytes()
    (directory / "a.safetensors").write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"a\.safetensors: not a complete safetensors file"):
        MolmoActForActionReasoning.from_pretrained(directory)


@pytest.mark.parametrize("weight_map", [["a"], {"lm_head.weight": 1}, {"lm_head.weight": "../other.safetensors"}, None])
def test_index_that_does_not_map_tensors_to_files_is_named(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"index\.json: weight_map is not a mapping"):
        MolmoActForActionReasoning.from_pretrained(directory)


def test_pickled_weights_are_named_and_not_opened(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: a pickle can run code and is not loaded"):
        MolmoActForActionReasoning.from_pretrained(directory)


def test_generation_config_that_is_no_json_is_named(directory: Path) -> None:
    (directory / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: not readable as JSON"):
        MolmoActForActionReasoning.from_pretrained(directory)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def download(cache: Path, source: Path) -> None:
    """What a download of REPOSITORY leaves in the cache: contents in blobs/, a snapshot of links, and its name."""
    repository = cache / "models--laboratory--fine-tune"
    snapshot = repository / "snapshots" / REVISION
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    for path in (path for path in source.iterdir() if path.suffix in (".json", ".safetensors")):
        (repository / "blobs" / path.name).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(repository / "blobs" / path.name)
    (repository / "refs" / "main").write_text(REVISION)


def test_hub_repository_loads_from_the_local_cache_by_its_name(cache: Path) -> None:
    download(cache, DATA / "tiny_d")
    model = MolmoActForActionReasoning.from_pretrained(REPOSITORY)
    assert torch.equal(model.lm_head.weight, load_file(DATA / "tiny_d" / "model.safetensors")["lm_head.weight"])


def test_nano_is_the_embedded_checkpoint_wherever_it_is_typed(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "nano").mkdir()
    monkeypatch.chdir(tmp_path)
    assert (checkpoint.locate("nano") / "model.safetensors").is_file()
    assert checkpoint.locate("./nano") == Path("nano")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (REPOSITORY, "not in the local hub cache; try: hf download laboratory/fine-tune"),
        ("/no/such/place", "no such directory, nor the name of a hub repository"),
    ],
)
def test_checkpoint_that_is_nowhere_says_how_to_get_it(cache: Path, name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        checkpoint.locate(name)


LOADING = """
import re, sys
from pathlib import Path
from molmoact_policy import checkpoint
from molmoact_policy.model import MolmoActForActionReasoning

def peak():  # bytes; ru_maxrss would begin with the parent's
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))

checkpoint.MAPPED_BYTES = 1 << 25
MolmoActForActionReasoning.from_pretrained(sys.argv[1])  # what the libraries themselves take
before = peak()
model = MolmoActForActionReasoning.from_pretrained(sys.argv[2])
print((peak() - before) / sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """About 200 MB in bfloat16, none of its tensors large: in one file, and in shards."""
    config = json.loads((DATA / "tiny_d" / "config.json").read_text())
    config["llm_config"] |= {"num_hidden_layers": 100, "intermediate_size": 4096}
    model = MolmoActForActionReasoning(MolmoActConfig.from_dict(config)).to(torch.bfloat16)
    places = {size: tmp_path_factory.mktemp(str(size)) for size in (5_000_000_000, 50_000_000)}
    for size, place in places.items():
        model.save_pretrained(place, max_shard_bytes=size)
    return places


@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 50_000_000])
def test_loading_takes_no_second_copy_of_the_weights(deep: dict[int, Path], max_shard_bytes: int) -> None:
    command = [sys.executable, "-c", LOADING, DATA / "tiny_d", deep[max_shard_bytes]]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.9 < float(result.stdout) < 1.4
