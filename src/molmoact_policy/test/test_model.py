"""The network against the official code's outputs on random weights, and its own checkpoint files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from molmoact_policy.checkpoint import official_shapes
from molmoact_policy.errors import CheckpointError
from molmoact_policy.images import ImageProcessor
from molmoact_policy.model import MolmoActConfig, MolmoActForActionReasoning
from molmoact_policy.processor import Processor
from PIL import Image
from safetensors.torch import load_file, save_file

DATA = Path(__file__).parent / "data"
FAMILIES = {"tiny_d": ("siglip2", 44), "tiny_o": ("clip", 40)}
PICTURES = {
    "one_image": ["C"],
    "one_small_image": ["A"],
    "two_images": ["CB"],
    "batch_leftpad": ["C", "A"],
    "text_only": [],
}
TOLERANCE = {"rtol": 1e-5, "atol": 1e-4}


def pixels(family: str, case: str) -> dict[str, torch.Tensor]:
    """What the image processor makes of a case's pictures; rows of a batch padded with -1."""
    style, crop = FAMILIES[family]
    processor = ImageProcessor(
        style, 8, max_multi_image_crops=8, base_image_input_size=(crop, crop), image_patch_size=4
    )
    rows = []
    for names in PICTURES[case]:
        pictures = [np.array(Image.open(DATA / family / f"image_{name}.png").convert("RGB")) for name in names]
        rows.append(Processor.join([processor(picture, multi_image=len(names) > 1) for picture in pictures]))
    if not rows:
        return {}
    return {
        name: torch.nn.utils.rnn.pad_sequence([row[name][0] for row in rows], batch_first=True, padding_value=-1)
        for name in rows[0]
    }


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, family: str) -> MolmoActForActionReasoning:
    return MolmoActForActionReasoning.from_pretrained(
        DATA / family, dtype=torch.float32, attn_implementation=request.param
    )


@pytest.fixture(scope="module", params=PICTURES)
def case(request: pytest.FixtureRequest, family: str) -> dict[str, torch.Tensor]:
    return load_case(family, request.param)


@pytest.fixture(scope="module", params=[name for name, pictures in PICTURES.items() if pictures])
def image_case(request: pytest.FixtureRequest, family: str) -> dict[str, torch.Tensor]:
    return load_case(family, request.param)


def load_case(family: str, name: str) -> dict[str, torch.Tensor]:
    """Inputs of the model and, under their own names, the recorded outputs."""
    stored = load_file(DATA / family / "cases.safetensors")
    recorded = {key.removeprefix(f"{name}."): value for key, value in stored.items() if key.startswith(f"{name}.")}
    return recorded | pixels(family, name)


def inputs(case: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = ("input_ids", "attention_mask", "images", "pooled_patches_idx", "image_masks")
    return {name: case[name] if name.startswith("image") else case[name].long() for name in names if name in case}


@torch.inference_mode()
def check_logits(model: MolmoActForActionReasoning, case: dict[str, torch.Tensor], recorded: str) -> None:
    positions = case["positions"].long()
    real = case["attention_mask"][:, positions].bool()  # what padded queries give is nobody's business
    logits = model(**inputs(case)).logits[:, positions]
    torch.testing.assert_close(logits[real], case[recorded][real], **TOLERANCE)


def test_logits_equal_the_official_ones(model: MolmoActForActionReasoning, case: dict[str, torch.Tensor]) -> None:
    check_logits(model, case, "logits")


def test_image_features_equal_the_official_ones(
    model: MolmoActForActionReasoning, image_case: dict[str, torch.Tensor]
) -> None:
    with torch.inference_mode():
        features = model.image_features(image_case["images"], image_case["pooled_patches_idx"])
    # They reach 160: one thread adds up in another order than several do.
    torch.testing.assert_close(features[::4], image_case["image_features"], rtol=1e-5, atol=3e-4)


def test_greedy_generation_equals_the_official_one(
    model: MolmoActForActionReasoning, case: dict[str, torch.Tensor]
) -> None:
    generated = model.generate(**inputs(case), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert generated[:, case["input_ids"].shape[1] :].tolist() == case["generated_ids"].tolist()


@pytest.mark.parametrize("case_name", [name for name, pictures in PICTURES.items() if pictures])
@pytest.mark.parametrize(
    ("variant_of", "setting", "recorded"),
    [
        ("tiny_d", {"image_injection": "replace"}, "logits_vllm_style_replace"),
        ("tiny_o", {"image_injection": "replace"}, "logits_vllm_style_replace"),
        ("tiny_o", {"use_pad_embed": True}, "logits_training_style_withmask"),
    ],
)
def test_variants_of_the_released_code_are_options(
    variant_of: str, setting: dict[str, Any], recorded: str, case_name: str
) -> None:
    config = MolmoActConfig.from_dict(json.loads((DATA / variant_of / "config.json").read_text()) | setting)
    model = MolmoActForActionReasoning.from_pretrained(DATA / variant_of, config=config, dtype=torch.float32)
    check_logits(model, load_case(variant_of, case_name), recorded)


def test_an_id_of_minus_one_is_read_as_zero(model: MolmoActForActionReasoning) -> None:
    with torch.inference_mode():
        padded, zero = (model(input_ids=torch.tensor([[first, 5, 6]])).logits for first in (-1, 0))
    assert torch.equal(padded, zero)


def test_features_and_patch_tokens_must_be_as_many(model: MolmoActForActionReasoning) -> None:
    ids = torch.tensor([[1, model.config.image_patch_id, 2]])
    with pytest.raises(ValueError, match="2 image features for 1 <im_patch> tokens"):
        model.merge_image_features(ids, torch.zeros(2, 64))


def test_gradients_reach_every_part_through_merged_embeddings(family: str) -> None:
    model = MolmoActForActionReasoning.from_pretrained(DATA / family, dtype=torch.float32).train()
    stored = load_file(DATA / family / "cases.safetensors")
    ids = stored["one_small_image.input_ids"].long()
    arrays = pixels(family, "one_small_image")
    with torch.autocast("cpu", torch.bfloat16):
        features = model.image_features(arrays["images"], arrays["pooled_patches_idx"])
        hidden = model.language_model(inputs_embeds=model.merge_image_features(ids, features)).last_hidden_state
        loss = model.lm_head(hidden[:, -4:]).float().logsumexp(-1).mean()
    loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == (["vision_backbone.pad_embed"] if family == "tiny_o" else [])


@pytest.mark.parametrize("name", ["state_dict_7b_d.json", "state_dict_7b_o.json"])
def test_real_size_has_exactly_the_official_keys_and_shapes(name: str) -> None:
    recorded = json.loads((DATA / name).read_text())
    with torch.device("meta"):
        model = MolmoActForActionReasoning(MolmoActConfig.from_dict(recorded["_config"]))
    assert official_shapes(model) == recorded["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == recorded["_params"]["params_total"]


@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 300_000])
def test_saving_writes_the_official_tensors_again(family: str, tmp_path: Path, max_shard_bytes: int) -> None:
    MolmoActForActionReasoning.from_pretrained(DATA / family).save_pretrained(tmp_path, max_shard_bytes=max_shard_bytes)
    saved = {key: value for file in tmp_path.glob("*.safetensors") for key, value in load_file(file).items()}
    official = load_file(DATA / family / "model.safetensors")
    assert saved.keys() == official.keys()
    assert all(torch.equal(saved[key], official[key]) for key in official)
    assert len(list(tmp_path.glob("*.safetensors"))) == (1 if max_shard_bytes > 1_000_000 else len(shards(tmp_path)))
    again = MolmoActForActionReasoning.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, official["lm_head.weight"])


def shards(directory: Path) -> set[str]:
    return set(json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"].values())


def copy_with(family: str, directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """The checkpoint with its tensors changed."""
    tensors = load_file(DATA / family / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text((DATA / family / "config.json").read_text())
    return directory


def test_the_training_codes_key_layout_loads_too(family: str, tmp_path: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            training = key.removeprefix("model.").replace("self_attn.", "").replace("mlp.", "")
            tensors[training.replace("lm_head", "transformer.ff_out")] = tensors.pop(key)

    model = MolmoActForActionReasoning.from_pretrained(copy_with(family, tmp_path, rename))
    reference = MolmoActForActionReasoning.from_pretrained(DATA / family)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))


def test_weights_are_converted_while_loading(family: str) -> None:
    model = MolmoActForActionReasoning.from_pretrained(DATA / family, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.language_model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lm_head.weight"), "1 missing: lm_head.weight"),
        (lambda t: t.update({"model.extra": torch.zeros(2)}), "1 unexpected: model.extra"),
        (
            lambda t: t.update({"lm_head.weight": torch.zeros(3, 64)}),
            r"1 mis-shaped: lm_head.weight \[3, 64\], expected \[256, 64\]",
        ),
        (lambda t: t.update({"lm_head.weight": t["lm_head.weight"].half()}), "F16: lm_head.weight"),
        (lambda t: t.update({k: v.double() for k, v in t.items()}), "found F64"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path: Path, change, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        MolmoActForActionReasoning.from_pretrained(copy_with("tiny_d", tmp_path, change))


def test_a_truncated_weight_file_is_named(tmp_path: Path) -> None:
    directory = copy_with("tiny_d", tmp_path, lambda tensors: None)
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a complete safetensors file"):
        MolmoActForActionReasoning.from_pretrained(directory)


def test_missing_directories_files_and_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        MolmoActForActionReasoning.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        MolmoActForActionReasoning.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((DATA / "tiny_d" / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        MolmoActForActionReasoning.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "part.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"missing files: part\.safetensors"):
        MolmoActForActionReasoning.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"model_type": "llava"}, "model_type 'llava'"),
        ({"architectures": ["LlavaForConditionalGeneration"]}, "LlavaForConditionalGeneration"),
        ({"llm_config": {"qkv_bias": True, "norm_after": True}}, "neither Qwen2"),
        ({"image_injection": "multiply"}, "image_injection is 'multiply'"),
    ],
)
def test_a_configuration_of_another_model_is_refused(tmp_path: Path, setting: dict, message: str) -> None:
    directory = copy_with("tiny_d", tmp_path, lambda tensors: None)
    config = json.loads((directory / "config.json").read_text()) | setting
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        MolmoActForActionReasoning.from_pretrained(directory)
