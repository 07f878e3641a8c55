"""The network against the official code's outputs on random weights, and its own checkpoint files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from molmoact_policy.checkpoint import official_shapes
from molmoact_policy.config import VisionConfig
from molmoact_policy.errors import CheckpointError
from molmoact_policy.images import ImageProcessor
from molmoact_policy.model import MolmoActConfig, MolmoActForActionReasoning
from molmoact_policy.processor import Processor
from molmoact_policy.vision import Attention, VisionTransformer
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
TOLERANCE = {"rtol": 0, "atol": 1e-4}


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


@pytest.mark.parametrize("case_name", [name for name, pictures in PICTURES.items() if pictures])
def test_pictures_become_the_recorded_inputs(family: str, case_name: str) -> None:
    recorded = load_file(DATA / family / "cases.safetensors")
    made = pixels(family, case_name)
    assert torch.equal(made["pooled_patches_idx"], recorded[f"{case_name}.pooled_patches_idx"].long())
    assert torch.equal(made["image_masks"], recorded[f"{case_name}.recorded_masks"])
    sample = made["images"].flatten()[::16]
    torch.testing.assert_close(sample, recorded[f"{case_name}.recorded_images"], rtol=0, atol=1e-6)


def test_logits_equal_the_official_ones(model: MolmoActForActionReasoning, case: dict[str, torch.Tensor]) -> None:
    check_logits(model, case, "logits")


def check_up_to_rounding(ours: torch.Tensor, official: torch.Tensor) -> None:
    """For values of up to 200, of which 1e-4 is less than their rounding: threads and CPUs add up in different orders.

    With two threads and AVX-512, as the records were made, features agree to the bit. One thread is up to 1.6e-4 off,
    other instruction sets up to 3.7e-4, and the records themselves are 3.2e-4 from what double precision gives.
    """
    torch.testing.assert_close(ours, official, rtol=0, atol=4e-6 * official.abs().max().item())


@torch.inference_mode()
def test_vision_features_equal_the_official_ones(
    model: MolmoActForActionReasoning, image_case: dict[str, torch.Tensor]
) -> None:
    if "vit_features" in image_case:
        tapped = model.vision_backbone.encode(image_case["images"])
        torch.testing.assert_close(tapped[:, :, ::8], image_case["vit_features"], **TOLERANCE)
    features = model.image_features(image_case["images"], image_case["pooled_patches_idx"])
    check_up_to_rounding(features[::4], image_case["image_features"])


@torch.inference_mode()
def test_image_features_in_double_precision_differ_by_no_more_than_the_official_rounding(
    family: str, image_case: dict[str, torch.Tensor]
) -> None:
    config = json.loads((DATA / family / "config.json").read_text())
    for part in ("vit_config", "adapter_config"):
        config[part]["float32_attention"] = False  # scores in the model's dtype
    exact = MolmoActForActionReasoning.from_pretrained(
        DATA / family, config=MolmoActConfig.from_dict(config), dtype=torch.float32
    ).double()
    features = exact.image_features(image_case["images"].double(), image_case["pooled_patches_idx"])
    torch.testing.assert_close(features[::4], image_case["image_features"].double(), rtol=0, atol=3.3e-4)


@torch.inference_mode()
def test_hidden_states_equal_the_official_ones(
    model: MolmoActForActionReasoning, image_case: dict[str, torch.Tensor]
) -> None:
    positions = image_case["positions"].long()
    real = image_case["attention_mask"][:, positions].bool()
    hidden = model(**inputs(image_case), output_hidden_states=True).hidden_states
    for ours, official in zip(hidden[:-1], image_case["llm_hidden"][:-1], strict=True):
        check_up_to_rounding(ours[:, positions][real], official[real])
    normed = hidden[-1][:, positions][real]
    torch.testing.assert_close(normed, image_case["llm_hidden"][-1][real], **TOLERANCE)


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


@pytest.mark.parametrize("case_name", [name for name, pictures in PICTURES.items() if pictures])
@torch.inference_mode()
def test_the_padding_embedding_of_training_gives_the_official_features(case_name: str) -> None:
    config = MolmoActConfig.from_dict(
        json.loads((DATA / "tiny_o" / "config.json").read_text()) | {"use_pad_embed": True}
    )
    model = MolmoActForActionReasoning.from_pretrained(DATA / "tiny_o", config=config, dtype=torch.float32)
    case = load_case("tiny_o", case_name)
    features = model.image_features(case["images"], case["pooled_patches_idx"], case["image_masks"])
    check_up_to_rounding(features[::4], case["image_features_withmask"])


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


ODD_VISION = {
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "image_default_input_size": [12, 20],
    "image_patch_size": 4,
    "image_num_pos": 17,
    "use_cls_token": True,
}
ODD_ADAPTER = {
    "vit_layers": [0, 2],
    "hidden_size": 14,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 5,
    "intermediate_size": 22,
    "text_hidden_size": 24,
    "image_padding_embed": "pad_and_partial_pad",
}
ODD_LANGUAGE = {
    "hidden_size": 24,
    "intermediate_size": 26,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 10,
    "vocab_size": 37,
    "additional_vocab_size": 5,
}
LANGUAGES = {"qwen2": {}, "olmo2": {"qkv_bias": False, "norm_after": True, "use_qk_norm": True}}
ODD_PATCH_ID = 40


def odd_model(language: str = "qwen2", **vision: Any) -> MolmoActForActionReasoning:
    """Sizes that no release has: heads that do not fill the width, shared keys and values, a grid that is no square."""
    config = MolmoActConfig(
        ODD_VISION | vision, dict(ODD_ADAPTER), ODD_LANGUAGE | LANGUAGES[language], image_patch_id=ODD_PATCH_ID
    )
    model = MolmoActForActionReasoning(config).eval()
    randomise(model)
    return model


def randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3, generator=generator)


def odd_inputs() -> dict[str, torch.Tensor]:
    """Two rows with two crops of 3 x 5 patches; the second row has one pooled token less."""
    generator = torch.Generator().manual_seed(6)
    pooled = torch.randint(0, 30, (2, 3, 4), generator=generator)
    pooled[0, 0, 2:] = -1
    pooled[1, 2] = -1
    ids = torch.tensor([[1, 40, 40, 40, 7, 38], [1, 40, 40, 9, 36, 0]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "images": torch.randn(2, 2, 15, 48, generator=generator),
        "pooled_patches_idx": pooled,
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_tensors_follow_heads_and_widths_that_differ(language: str) -> None:
    model = odd_model(language)
    given = odd_inputs()
    shapes = official_shapes(model)
    llm, vit, pooling = "model.transformer.blocks.0", "model.vision_backbone.image_vit", "image_pooling_2d"
    assert shapes[f"{llm}.self_attn.att_proj.weight"] == [(3 + 2 * 1) * 10, 24]
    assert shapes[f"{llm}.self_attn.attn_out.weight"] == [24, 30]
    assert shapes["model.transformer.wte.new_embedding"] == [5, 24]
    assert shapes[f"{vit}.transformer.resblocks.0.attention.wq.weight"] == [18, 20]
    assert shapes[f"{vit}.transformer.resblocks.0.attention.wk.weight"] == [6, 20]
    assert f"{vit}.transformer.resblocks.3.attention.wq.weight" not in shapes  # above the highest tap
    assert shapes[f"model.vision_backbone.{pooling}.wv.weight"] == [10, 40]
    assert shapes[f"model.vision_backbone.{pooling}.wo.weight"] == [14, 20]
    with torch.inference_mode():
        assert model.vision_backbone.encode(given["images"]).shape == (2, 2, 15, 40)
        assert model.image_features(given["images"], given["pooled_patches_idx"]).shape == (5, 24)
        assert model(**given).logits.shape == (2, 6, 37)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_saved_model_of_odd_sizes_gives_the_same_logits(language: str, tmp_path: Path) -> None:
    model = odd_model(language)
    model.save_pretrained(tmp_path, max_shard_bytes=20_000)
    again = MolmoActForActionReasoning.from_pretrained(tmp_path)
    with torch.inference_mode():
        assert torch.equal(again(**odd_inputs()).logits, model(**odd_inputs()).logits)


@pytest.mark.parametrize("language", LANGUAGES)
def test_generation_with_a_cache_is_the_most_likely_token_again_and_again(language: str) -> None:
    model = odd_model(language)
    given = {name: value[:1] for name, value in odd_inputs().items()}
    generated = model.generate(**given, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    for _ in range(6):
        with torch.inference_mode():
            best = model(**given).logits[:, -1:].argmax(-1)
        given["input_ids"] = torch.cat([given["input_ids"], best], dim=1)
        given["attention_mask"] = torch.ones_like(given["input_ids"])
    assert generated.tolist() == given["input_ids"].tolist()


def test_taps_count_from_the_first_layer_or_from_the_last() -> None:
    config = VisionConfig(**ODD_VISION)
    towers = [VisionTransformer(config, taps).eval() for taps in ([0, 2], [-4, -2], [2, 0])]
    for tower in towers:
        randomise(tower)
    patches = odd_inputs()["images"][0]
    with torch.inference_mode():
        first, last, swapped = (tower(patches) for tower in towers)
    assert torch.equal(first, last)
    assert torch.equal(first, swapped.roll(20, dims=-1))  # the order is the configured one
    assert not torch.equal(first, swapped)


@torch.inference_mode()
def test_shared_keys_and_values_are_those_of_each_group_of_heads() -> None:
    shared = Attention(8, 11, num_heads=6, num_key_value_heads=2, head_dim=3, float32_scores=True)
    randomise(shared)
    own = Attention(8, 11, num_heads=6, num_key_value_heads=6, head_dim=3, float32_scores=True)
    weights = shared.state_dict()
    for name in ("wk.weight", "wk.bias", "wv.weight", "wv.bias"):
        weights[name] = weights[name].unflatten(0, (2, 3)).repeat_interleave(3, dim=0).flatten(0, 1)
    own.load_state_dict(weights)
    queries, keys_values = torch.randn(2, 1, 8), torch.randn(2, 5, 8)
    torch.testing.assert_close(shared(queries, keys_values), own(queries, keys_values))


@pytest.mark.parametrize("size", [[16, 16], [12, 20], [24, 24], [8, 40]])
@torch.inference_mode()
def test_a_position_table_for_another_grid_is_resized_bicubically(size: list[int]) -> None:
    tower = odd_model(image_default_input_size=size).vision_backbone.image_vit
    rows, columns = size[0] // 4, size[1] // 4
    class_position, grid = tower.positional_embedding[:1], tower.positional_embedding[1:]
    # Pillow's bicubic filter is the antialiased one.
    channels = [Image.fromarray(channel) for channel in grid.T.reshape(-1, 4, 4).numpy()]
    resized = [np.array(channel.resize((columns, rows), Image.Resampling.BICUBIC)).ravel() for channel in channels]
    expected = torch.cat([class_position, torch.from_numpy(np.stack(resized, axis=1))])
    torch.testing.assert_close(tower._positions(), expected, rtol=0, atol=1e-5)
