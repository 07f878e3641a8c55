"""From an observation to a prediction, or to the reason why there is none."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from molmoact_policy.actions import SYMBOLS, decode_bins, format_actions
from molmoact_policy.depth import DepthVQVAE
from molmoact_policy.embodiment import resize_image
from molmoact_policy.errors import CheckpointError, EmbodimentError, Interrupted, ObservationError, ReplyError
from molmoact_policy.images import ImageProcessor
from molmoact_policy.model import MolmoActConfig, MolmoActForActionReasoning
from molmoact_policy.policy import Observation, Policy
from molmoact_policy.processor import Processor
from molmoact_policy.prompts import format_depth, format_trace, reasoning_reply, reply_template, steering_reply
from molmoact_policy.trace import draw_trace
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

IMAGE_TOKENS = ["<im_start>", "<im_end>", "<im_patch>", "<im_col>"]
DEPTH_TOKENS = ["<DEPTH_START>", "<DEPTH_END>", *(f"<DEPTH_{code}>" for code in range(128))]
CHUNK = np.arange(56).reshape(8, 7) * 3
DEPTH, TRACE = list(range(100)), [(1, 2), (250, 30)]
REPLY = reasoning_reply(format_depth(DEPTH), format_trace(TRACE), format_actions(CHUNK))
STATISTICS = {"q01": [-0.1] * 6 + [0.0], "q99": [0.1] * 6 + [1.0]}
EMBODIMENT = {
    "frame": "base",
    "rotation": "rotation_vector",
    "translation_scale": 1.0,
    "rotation_scale": 1.0,
    "gripper_open": "high",
    "step_period": 0.1,
    "rows": 8,
    "cameras": ["front", "wrist"],
    "image_size": [40, 30],
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable character and per action symbol, and the release's special tokens."""
    words = ["<eos>", *(chr(code) for code in range(32, 127)), *SYMBOLS]
    tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=0))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in DEPTH_TOKENS])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ["<eos>", *IMAGE_TOKENS]])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> MolmoActConfig:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    return MolmoActConfig(
        vit_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "image_default_input_size": [32, 32],
            "image_patch_size": 8,
            "image_num_pos": 16,
            **heads,
        },
        adapter_config={
            "vit_layers": [-1, -2],
            "hidden_size": 16,
            "intermediate_size": 16,
            "text_hidden_size": 16,
            **heads,
        },
        llm_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "vocab_size": len(tokenizer) - len(IMAGE_TOKENS),
            "additional_vocab_size": len(IMAGE_TOKENS),
            **heads,
        },
        image_patch_id=tokenizer.convert_tokens_to_ids("<im_patch>"),
        norm_stats={"arm": {"action": STATISTICS}},
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint directory with random weights."""
    directory = tmp_path_factory.mktemp("checkpoint")
    tokenizer = build_tokenizer()
    images = ImageProcessor(max_crops=1, overlap_margins=(0, 0), base_image_input_size=(32, 32), image_patch_size=8)
    Processor(images, tokenizer).save_pretrained(directory)
    torch.manual_seed(0)
    MolmoActForActionReasoning(tiny_config(tokenizer)).save_pretrained(directory)
    DepthVQVAE(hidden_dim=2, codebook_dim=4).save_pretrained(directory / "depth_vqvae")
    (directory / "embodiment.yaml").write_text(yaml.safe_dump({"arm": EMBODIMENT}))
    return directory


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    """The same directory, to be damaged."""
    for file in saved.rglob("*"):
        target = tmp_path / file.relative_to(saved)
        target.mkdir() if file.is_dir() else target.write_bytes(file.read_bytes())
    return tmp_path


def edit_config(directory: Path, **change: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | change))


def edit_embodiment(directory: Path, **change: object) -> None:
    (directory / "embodiment.yaml").write_text(yaml.safe_dump({"arm": EMBODIMENT | change}))


class Scripted:
    """A model that has been asked, and answers with a given text; what it was asked is kept."""

    def __init__(self, model: MolmoActForActionReasoning, reply_ids: list[int]) -> None:
        self.config, self.device = model.config, model.device
        self.reply_ids = reply_ids

    def generate(self, input_ids: torch.Tensor, **asked: torch.Tensor) -> torch.Tensor:
        self.asked = asked | {"input_ids": input_ids}
        return torch.cat([input_ids, torch.tensor([self.reply_ids])], dim=1)


def scripted(directory: Path, text: str, end: bool = True, **options: object) -> Policy:
    policy = Policy.from_pretrained(directory, **{"decoder": "generate"} | options)
    ids = policy.processor.encode_reply(text)
    policy.model = Scripted(policy.model, ids if end else ids[:-1])  # type: ignore[assignment]
    return policy


def observation(**change: object) -> Observation:
    images = [np.random.default_rng(i).integers(0, 256, (60, 80, 3), np.uint8) for i in range(2)]
    return Observation(**{"images": images, "instruction": "pick up the red cube"} | change)


def test_a_complete_reply_becomes_a_prediction(saved: Path) -> None:
    prediction = scripted(saved, REPLY).act(observation())
    assert prediction.depth_codes == DEPTH
    assert prediction.trace == TRACE
    assert prediction.text.strip() == REPLY
    np.testing.assert_allclose(prediction.actions[:, :6], 0.1 * decode_bins(CHUNK[:, :6]), atol=1e-7)
    np.testing.assert_allclose(prediction.actions[:, 6], decode_bins(CHUNK[:, 6]))
    assert prediction.forward_passes == len(prediction.token_ids)


def test_a_random_model_is_refused_with_its_text(saved: Path) -> None:
    with pytest.raises(ReplyError, match="action: ") as caught:
        Policy.from_pretrained(saved, decoder="generate").act(observation())
    assert isinstance(caught.value.text, str)


@pytest.mark.parametrize("trace", [None, TRACE])
def test_decoded_strictly_even_a_random_model_replies_completely(saved: Path, trace: list | None) -> None:
    policy = Policy.from_pretrained(saved)
    for instruction in ("pick up the red cube", "open the drawer"):
        prediction = policy.act(observation(instruction=instruction, trace=trace))
        assert prediction.actions.shape == (8, 7)
        assert len(prediction.depth_codes) == (100 if trace is None else 0)
        assert prediction.forward_passes < len(prediction.token_ids)


def test_freely_decoded_a_reply_is_the_one_of_the_slow_loop(saved: Path) -> None:
    replies = []
    for decoder in ("free", "generate"):
        policy = Policy.from_pretrained(saved, decoder=decoder, dtype="float32")
        with pytest.raises(ReplyError) as caught:
            policy.act(observation())
        replies.append(caught.value.text)
    assert replies[0] == replies[1]


def test_a_reply_that_is_no_longer_wanted_is_not_finished(saved: Path) -> None:
    policy = Policy.from_pretrained(saved)
    asked = []

    def should_stop() -> bool:
        asked.append(True)
        return len(asked) > 2

    with pytest.raises(Interrupted, match="after 2 passes"):
        policy.act(observation(), should_stop)
    assert policy.act(observation()).actions.shape == (8, 7)


def test_what_was_said_before_changes_neither_reply_nor_passes_once_it_is_forgotten(saved: Path) -> None:
    policy = Policy.from_pretrained(saved)
    first = policy.act(observation())
    again = policy.act(observation())
    assert again.token_ids == first.token_ids and again.forward_passes < first.forward_passes
    policy.act(observation(instruction="open the drawer"))
    policy.forget()
    anew = policy.act(observation())
    assert (anew.token_ids, anew.forward_passes) == (first.token_ids, first.forward_passes)


def changed(seen: Observation, levels: int) -> Observation:
    """The same but for a patch of the second picture that is brighter by `levels`."""
    images = [image.copy() // 2 for image in seen.images]
    images[1][:6, :8] += np.uint8(levels)
    return replace(seen, images=images)


def test_reasoning_is_reused_until_pictures_or_task_change(saved: Path) -> None:
    policy, thorough = (Policy.from_pretrained(saved, reuse_threshold=threshold) for threshold in (5.0, None))
    first = policy.act(changed(observation(), 0))
    assert not first.reused
    little = policy.act(changed(observation(), 4))
    assert little.reused and little.forward_passes < thorough.act(changed(observation(), 4)).forward_passes
    assert (little.depth_codes, little.trace) == (first.depth_codes, first.trace)
    # Compared with the pictures that were thought about, not with those before: small steps add up.
    assert policy.act(changed(observation(), 4)).reused and not policy.act(changed(observation(), 8)).reused
    assert policy.act(changed(observation(), 4)).reused
    assert not policy.act(changed(observation(instruction="open the drawer"), 4)).reused
    assert not policy.act(changed(observation(trace=TRACE), 4)).reused
    assert policy.act(changed(observation(instruction="open the drawer"), 4)).reused
    policy.forget()
    assert not policy.act(changed(observation(instruction="open the drawer"), 4)).reused


@pytest.mark.parametrize("trace", [None, TRACE])
def test_rows_that_run_already_begin_the_reply_and_the_rest_follows_them(saved: Path, trace: list | None) -> None:
    policy = Policy.from_pretrained(saved)
    own = policy.act(observation(trace=trace))
    running = policy.statistics.unnormalise(decode_bins(CHUNK[:3]))
    reply = policy.act(observation(trace=trace, executing=running))
    np.testing.assert_allclose(reply.actions[:3], running)
    assert (reply.depth_codes, reply.trace) == (own.depth_codes, own.trace)
    whole = policy.act(observation(trace=trace, executing=own.actions))
    np.testing.assert_array_equal(whole.actions, own.actions)
    assert policy.act(observation(trace=trace, executing=running[:0])).token_ids == own.token_ids


@pytest.mark.parametrize(
    ("executing", "message"),
    [
        (np.zeros((2, 6)), r"executing: \[2, 6\], expected finite rows of 7"),
        (np.zeros(7), r"executing: \[7\]"),
        (np.full((1, 7), np.nan), "executing: "),
    ],
)
def test_rows_that_cannot_run_are_refused(saved: Path, executing: np.ndarray, message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        Policy.from_pretrained(saved).act(observation(executing=executing))


def test_what_needs_a_strict_decoder_is_refused_by_others(saved: Path) -> None:
    with pytest.raises(ValueError, match="reuse_threshold needs the decoder 'strict'"):
        Policy.from_pretrained(saved, decoder="free", reuse_threshold=1.0)
    with pytest.raises(ObservationError, match="executing: rows are given to the decoder 'strict' only"):
        Policy.from_pretrained(saved, decoder="free").act(observation(executing=np.zeros((1, 7))))


def test_an_unknown_decoder_is_refused_by_name(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"decoder is 'fast' \(strict, free, generate\)"):
        Policy.from_pretrained(saved, decoder="fast")


def test_with_a_trace_it_is_drawn_on_the_first_resized_image_and_steers(saved: Path) -> None:
    policy = scripted(saved, steering_reply(format_actions(CHUNK)))
    seen = observation(trace=TRACE)
    prediction = policy.act(seen)
    assert prediction.trace == TRACE and prediction.depth_codes == []
    first, second = (resize_image(image, (40, 30)) for image in seen.images)
    expected = policy.processor([draw_trace(first, TRACE), second], "")["images"]
    assert torch.equal(policy.model.asked["images"], expected)  # type: ignore[attr-defined]
    asked = policy.processor.tokenizer.decode(policy.model.asked["input_ids"][0])  # type: ignore[attr-defined]
    assert "trajectory of the end effector is annotated on the first image" in asked


def test_a_reply_without_its_end_is_refused(saved: Path) -> None:
    with pytest.raises(ReplyError, match="no end after") as caught:
        scripted(saved, REPLY, end=False).act(observation())
    assert caught.value.depth_codes == DEPTH and caught.value.trace == TRACE


def test_another_number_of_rows_than_the_embodiment_was_trained_with_is_refused(directory: Path) -> None:
    edit_embodiment(directory, rows=4)
    with pytest.raises(ReplyError, match="8 rows, expected 4"):
        scripted(directory, REPLY).act(observation())


def test_two_arms_have_room_for_twice_the_reply(directory: Path) -> None:
    both = {name: values * 2 for name, values in STATISTICS.items()}
    edit_config(directory, norm_stats={"arm": {"action": both}})
    chunk = np.tile(CHUNK, 2)
    traces = {name: format_trace(TRACE) for name in ("left_trace", "right_trace")}
    reply = reply_template(arms=2).format(depth=format_depth(DEPTH), action=format_actions(chunk), **traces)
    policy = scripted(directory, reply)
    assert policy.act(observation()).actions.shape == (8, 14)
    assert policy.model.asked["max_new_tokens"] == 1024  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction": "  "}, "instruction: is empty"),
        ({"instruction": "x" * 10_000}, "instruction: 10000 characters"),
        ({"instruction": "pick <im_patch> up"}, "reserved tokens <im_patch>"),
        ({"instruction": "pick <DEPTH_7> up"}, "reserved tokens <DEPTH_7>"),
        ({"images": []}, "images: none given"),
        ({"images": [np.zeros((4, 4, 3), np.uint8)]}, r"images: 1 given, expected 2 \(front, wrist\)"),
        ({"images": [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 0, 3), np.uint8)]}, r"wrist image: uint8 \[4, 0, 3\]"),
        ({"images": [np.zeros((4, 4), np.uint8)] * 2}, "front image: "),
        ({"trace": []}, "trace: 0 points"),
        ({"trace": [(1, 1)]}, "trace: 1 points"),
        ({"trace": [(1, 1)] * 6}, "trace: 6 points"),
        ({"trace": [(1, 1), (256, 0)]}, r"trace: point 1 is \(256, 0\)"),
        ({"trace": [(-1, 1), (25, 0)]}, r"trace: point 0 is \(-1, 1\)"),
        ({"trace": [(1, 1), (float("nan"), 0)]}, "trace: point 1"),
    ],
)
def test_an_observation_that_must_not_reach_the_model_is_refused(saved: Path, change: dict, message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        Policy.from_pretrained(saved).act(observation(**change))


def test_a_prompt_longer_than_the_context_is_refused(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    edit_config(directory, llm_config=config["llm_config"] | {"max_position_embeddings": 100})
    with pytest.raises(ObservationError, match="does not fit the context of 100"):
        Policy.from_pretrained(directory).act(observation())


def test_depth_codes_decode_to_a_picture_or_to_none(saved: Path, directory: Path) -> None:
    picture = Policy.from_pretrained(saved).decode_depth(DEPTH)
    assert picture is not None and picture.shape == (320, 320) and picture.dtype == np.uint8
    for file in (directory / "depth_vqvae").iterdir():
        file.unlink()
    (directory / "depth_vqvae").rmdir()
    assert Policy.from_pretrained(directory).decode_depth(DEPTH) is None


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "preprocessor_config.json", "model.safetensors", "depth_vqvae/config.json"],
)
def test_a_missing_file_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(CheckpointError, match=f"{Path(name).name}.* missing"):
        Policy.from_pretrained(directory)


def test_an_unknown_key_lists_the_known_ones(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"unnorm_key 'libero' is not in norm_stats, which has \['arm'\]"):
        Policy.from_pretrained(saved, unnorm_key="libero")


def test_statistics_that_are_not_of_arms_are_refused(directory: Path) -> None:
    edit_config(directory, norm_stats={"arm": {"action": {"q01": [0.0] * 6, "q99": [1.0] * 6}}})
    with pytest.raises(CheckpointError, match=r"for 6 degrees of freedom, expected 7 per arm"):
        Policy.from_pretrained(directory)


def test_checkpoint_without_statistics_is_refused(directory: Path) -> None:
    edit_config(directory, norm_stats={})
    with pytest.raises(CheckpointError, match=r"config\.json has no norm_stats, so its actions have no units"):
        Policy.from_pretrained(directory)


def test_statistics_and_conventions_are_checked_before_the_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="unnorm_key 'libero' is not in norm_stats"):
        Policy.from_pretrained(directory, unnorm_key="libero")
    edit_embodiment(directory, frame="world")
    with pytest.raises(EmbodimentError, match="frame is 'world'"):
        Policy.from_pretrained(directory)


def test_conventions_and_depth_decoder_may_come_from_elsewhere(directory: Path, tmp_path_factory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("embodiment.yaml", "depth_vqvae"):
        (directory / name).rename(elsewhere / name)
    without = Policy.from_pretrained(directory)
    assert without.embodiment is None and without.decode_depth(DEPTH) is None
    policy = Policy.from_pretrained(
        directory, embodiments=elsewhere / "embodiment.yaml", depth_vqvae=elsewhere / "depth_vqvae"
    )
    assert policy.embodiment is not None and policy.decode_depth(DEPTH) is not None


def test_more_ids_in_the_tokenizer_than_rows_in_the_embedding_are_refused(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    edit_config(directory, llm_config=config["llm_config"] | {"additional_vocab_size": 3})
    with pytest.raises(CheckpointError, match=r"the tokenizer goes up to id \d+, config\.json has \d+ embedding rows"):
        Policy.from_pretrained(directory)


def test_parts_that_are_not_of_one_model_are_named(directory: Path) -> None:
    ImageProcessor(base_image_input_size=(32, 32), image_patch_size=4, overlap_margins=(0, 0)).save_pretrained(
        directory
    )
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: image_patch_size is 4, config\.json has 8"):
        Policy.from_pretrained(directory)
