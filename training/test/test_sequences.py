"""Samples against the official training preprocessor's, and what their tokens count."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from molmoact_policy.actions import SYMBOLS, ActionStatistics, decode_bins, encode_bins, format_actions
from molmoact_policy.model import MolmoActForActionReasoning
from molmoact_policy.prompts import format_depth, format_trace, reply_template
from molmoact_policy.reply import parse_reply
from molmoact_policy.trace import draw_trace
from molmoact_training.annotated_dataset import Frame
from molmoact_training.batches import ACTION, DEPTH, KIND_NAMES, TEXT, TRACE, Batch, Sample, collate
from molmoact_training.errors import DatasetError
from molmoact_training.presets import Hiding, HistoryDropout, Loss, Preset, TokenWeights
from molmoact_training.sequences import Question, SequenceWriter, pictures_of

from .qwen_processor import POLICY_TESTS, released_processor, tiny_processor

DATA = Path(__file__).parent / "data"
GOLDEN = np.load(DATA / "token_batches.npz")
TEXTS = json.loads((DATA / "token_batches.json").read_text())
MESSAGES = [("Who?", "me"), ("Where is it now?", "On the mat"), ("What?", "A cat")]

PRESET = Preset.from_file("nano", {"sequence_length": 4096, "loss.weights": {}})
RNG = np.random.default_rng(0)
STATISTICS = ActionStatistics.from_norm_stats({"k": {"action": {"q01": [-0.1] * 7, "q99": [0.1] * 7}}})
TWO_ARMS = ActionStatistics.from_norm_stats({"k": {"action": {"q01": [-0.1] * 14, "q99": [0.1] * 14}}})
TRACES = [np.array([[0, 255], [10, 20], [7, 128]], np.uint8), np.array([[200, 1], [3, 4]], np.uint8)]


def base(height: int, width: int) -> np.ndarray:
    """The picture the fixtures were made with."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)


def frame(arms: int = 1, images: int = 2, **changes) -> Frame:
    whole = Frame(
        episode=3,
        frame=4,
        instruction="stack blocks",
        images=[base(48, 64)] * images,
        actions=RNG.uniform(-0.1, 0.1, (8, 7 * arms)).astype(np.float32),
        depth_codes=RNG.integers(0, 128, 100).astype(np.uint8),
        traces=TRACES[:arms],
    )
    return dataclasses.replace(whole, **changes)


def plain(prompt: str, answer: str) -> Question:
    return Question(prompt, "{answer}", {"answer": answer})


def golden_case(family: str, name: str) -> tuple[Sample, dict[str, np.ndarray]]:
    """Our sample of a recorded case, and the official arrays."""
    writer = SequenceWriter(PRESET, released_processor(family))
    pictures, questions = [base(240, 320)], [plain(TEXTS["question"], TEXTS["answer"])]
    if name == "two_img":
        pictures.append(base(256, 256)[::-1])
    if name == "multi_message":
        questions = [plain(*message) for message in MESSAGES]
    ours = writer.sample(name, pictures, [writer.message(question) for question in questions])
    prefix = f"{family}_{name}__"
    return ours, {key[len(prefix) :]: GOLDEN[key] for key in GOLDEN if key.startswith(prefix)}


@pytest.mark.parametrize("family", ["d", "o"])
@pytest.mark.parametrize("name", ["two_img", "one_img_list_traj", "multi_message"])
def test_a_sample_equals_the_official_training_preprocessors(family: str, name: str) -> None:
    ours, official = golden_case(family, name)
    assert ours.input_ids.tolist() == official["input_tokens"].tolist()
    assert ours.targets.tolist() == official["target_tokens"].tolist()
    assert ours.position_ids.tolist() == official["position_ids"].tolist()
    np.testing.assert_allclose(ours.weights, official["loss_masks"], rtol=1e-6)
    if "subsegment_ids" in official:
        assert ours.segment_ids.tolist() == official["subsegment_ids"].tolist()
    # The official second crop of a small picture is its first once more: here both are the first.
    patches = official["images_shape"][1]
    index = official["pooled_patches_idx"]
    once = np.where(index < 0, -1, index // (2 * patches) * patches + index % patches)
    assert ours.pooled_patches_idx.tolist() == once.tolist()
    assert ours.images.shape == (official["images_shape"][0] // 2, *official["images_shape"][1:])


@pytest.mark.parametrize("family", ["d", "o"])
def test_a_crop_that_is_there_twice_is_encoded_once_with_the_same_features(family: str) -> None:
    directory = POLICY_TESTS / f"data/tiny_{family}"
    model = MolmoActForActionReasoning.from_pretrained(directory, dtype=torch.float32)
    processor = tiny_processor(family)
    pictures = [base(40, 60), base(150, 30), base(34, 34)]  # the first has a grid of several crops
    sample = SequenceWriter(PRESET, processor).sample("x", pictures, [_message(processor)])
    whole = processor([pictures], "x")
    assert len(sample.images) == whole["images"].shape[1] - 2
    once = torch.from_numpy(sample.images)[None], torch.from_numpy(sample.pooled_patches_idx)[None]
    with torch.inference_mode():
        expected = model.image_features(whole["images"], whole["pooled_patches_idx"])
        torch.testing.assert_close(model.image_features(*once), expected, rtol=1e-4, atol=1e-3)


def _message(processor):
    return SequenceWriter(PRESET, processor).message(plain("x", "y"))


def spelled(sample: Sample, kind: int, family: str = "d") -> str:
    tokenizer = released_processor(family).tokenizer
    return tokenizer.decode(sample.targets[(sample.weights > 0) & (sample.kinds == kind)])


def without_frame(text: str) -> str:
    """Symbols one after another, without brackets and commas."""
    return text.translate(str.maketrans("", "", "[], "))


def written(frame: Frame, kind: str, statistics: ActionStatistics = STATISTICS, preset: Preset = PRESET) -> Sample:
    writer = SequenceWriter(preset, released_processor("d"))
    return writer.sample("x", pictures_of(frame, kind), writer.messages(frame, kind, statistics))


@pytest.mark.parametrize("wording", ["released", "finetune"])
@pytest.mark.parametrize("arms", [1, 2])
@pytest.mark.parametrize("images", [1, 2, 3])
def test_a_reasoning_sample_asks_for_depth_trace_and_action_and_answers_them(wording, arms, images) -> None:
    look = frame(arms, images)
    statistics = STATISTICS if arms == 1 else TWO_ARMS
    preset = dataclasses.replace(PRESET, wording=wording)
    sample = written(look, "reasoning", statistics, preset)
    action = format_actions(encode_bins(statistics.normalise(look.actions)))
    traces = [format_trace(trace.tolist()) for trace in look.traces]
    fields = {"trace": traces[0]} if arms == 1 else {"left_trace": traces[0], "right_trace": traces[1]}
    expected = reply_template(arms=arms, wording=wording).format(
        depth=format_depth(look.depth_codes.tolist()), action=action, **fields
    )
    tokenizer = released_processor("d").tokenizer
    assert tokenizer.decode(sample.targets[sample.weights > 0]) == f" {expected}<|endoftext|>"
    shown = tokenizer.decode(sample.input_ids[sample.weights == 0])
    assert shown.count("<im_start>") == 2 * images
    assert shown.count("stack blocks") == 2


def actions_of(bins) -> np.ndarray:
    """Actions [rows, 7] that are written as these bins."""
    return STATISTICS.unnormalise(decode_bins(np.array(bins).reshape(-1, 7))).astype(np.float32)


def test_every_answer_token_is_of_the_kind_of_what_it_spells() -> None:
    look = frame(actions=actions_of(range(252)))  # with commas some symbols end in a token of both
    sample = written(look, "reasoning")
    assert spelled(sample, DEPTH) == format_depth(look.depth_codes.tolist())[len("<DEPTH_START>") : -len("<DEPTH_END>")]
    assert spelled(sample, TRACE) == "".join(str(number) for number in TRACES[0].ravel())
    assert without_frame(spelled(sample, ACTION)) == "".join(SYMBOLS[:252])
    template = spelled(sample, TEXT)
    assert template.startswith(" The depth map of the first image is <DEPTH_START><DEPTH_END>. The trajectory")
    assert template.endswith("]].<|endoftext|>")


def test_tokens_count_what_the_preset_says_and_the_first_row_more() -> None:
    weights = {"text": 0.5, "depth": 0.25, "trace": 3.0, "action": 2.0, "first_row": 4.0}
    preset = Preset.from_file("nano", {"sequence_length": 2304, "loss.weights": weights})
    look = frame()
    sample = written(look, "reasoning", preset=preset)
    for kind in (TEXT, DEPTH, TRACE):
        counted = sample.weights[(sample.kinds == kind) & (sample.weights > 0)]
        assert set(counted.tolist()) == {weights[KIND_NAMES[kind]]}
    actions = sample.kinds == ACTION
    first = sample.targets[actions & (sample.weights == 8.0)]
    row = format_actions(encode_bins(STATISTICS.normalise(look.actions))[0])
    assert without_frame(released_processor("d").tokenizer.decode(first)) == without_frame(row)
    assert set(sample.weights[actions].tolist()) == {8.0, 2.0}


def test_actions_as_tokens_are_read_as_the_same_reply_and_count_the_same() -> None:
    look = frame(arms=2)
    preset = dataclasses.replace(PRESET, action_encoding="token", loss=Loss(z_loss=0, weights=TokenWeights(action=3)))
    sample = written(look, "reasoning", TWO_ARMS, preset)
    actions = (sample.weights > 0) & (sample.kinds == ACTION)
    assert actions.sum() == 8 * 14
    assert set(sample.weights[actions].tolist()) == {3.0}
    said = released_processor("d").with_action_encoding("token").decode(sample.targets[sample.weights > 0].tolist())
    expected = TWO_ARMS.unnormalise(decode_bins(encode_bins(TWO_ARMS.normalise(look.actions))))
    np.testing.assert_allclose(parse_reply(said, TWO_ARMS, rows=8).actions, expected)


def test_a_steering_sample_shows_the_traces_on_the_first_picture_and_answers_the_action_only() -> None:
    look = frame(arms=2, images=3)
    shown = pictures_of(look, "steering")
    assert (shown[0] == draw_trace(draw_trace(look.images[0], TRACES[0]), TRACES[1])).all()
    assert all((ours == theirs).all() for ours, theirs in zip(shown[1:], look.images[1:], strict=True))
    sample = written(look, "steering", TWO_ARMS)
    assert spelled(sample, DEPTH) == "" == spelled(sample, TRACE)
    assert (sample.kinds[sample.weights > 0] == ACTION).any()


@pytest.mark.parametrize(("kind", "there", "absent"), [("depth", DEPTH, TRACE), ("trace", TRACE, DEPTH)])
def test_an_auxiliary_sample_shows_one_picture_and_answers_one_thing(kind: str, there: int, absent: int) -> None:
    sample = written(frame(images=3), kind)
    kinds = sample.kinds[sample.weights > 0]
    assert (kinds == there).any() and not (kinds == absent).any() and not (kinds == ACTION).any()
    assert (sample.input_ids == released_processor("d").image_patch_id).sum() == 2 * 14 * 14


def test_a_sample_that_is_too_long_is_named_with_its_length() -> None:
    writer = SequenceWriter(dataclasses.replace(PRESET, sequence_length=100), released_processor("d"))
    with pytest.raises(DatasetError, match=r"episode 7: 4\d\d tokens \(\d+ of 1 images\), sequence_length is 100"):
        writer.sample("episode 7", [base(240, 320)], [writer.message(plain("Who?", "me"))])


def test_two_arms_and_three_cameras_fit_the_presets_sequence_length() -> None:
    """With the symbols that take most tokens, five points of three digits and a long instruction."""
    longest = max(range(255), key=lambda number: len(released_processor("d").encode_reply(SYMBOLS[number])))
    normalised = np.full((8, 14), decode_bins(longest), np.float32)
    look = frame(
        arms=2,
        instruction="put the green can, the red cup and the banana into the yellow plate one after another",
        actions=TWO_ARMS.unnormalise(normalised).astype(np.float32),
        traces=[np.full((5, 2), 255, np.uint8)] * 2,
    )
    look = dataclasses.replace(look, images=[base(240, 320)] * 3)
    sample = written(look, "reasoning", TWO_ARMS, Preset.from_file("posttrain-bimanual"))
    assert len(sample.input_ids) > 2304  # the paper's length would not do


def test_hidden_history_changes_what_is_read_and_never_what_is_to_be_said() -> None:
    sample = written(frame(), "reasoning")
    writer = SequenceWriter(PRESET, released_processor("d"))
    seen = set()
    for seed in range(30):
        hiding = Hiding(whole_part=0.3, largest_share=0.5)
        settings = HistoryDropout(depth=hiding, trace=hiding, action=hiding)
        hidden = writer.hide_history(sample, settings, np.random.default_rng(seed))
        changed = np.flatnonzero(hidden.input_ids != sample.input_ids)
        assert set(hidden.input_ids[changed].tolist()) <= {writer.hidden_id}
        assert (sample.weights[changed - 1] > 0).all()
        assert TEXT not in sample.kinds[changed - 1]
        for name in ("targets", "weights", "kinds", "position_ids"):
            assert (getattr(hidden, name) == getattr(sample, name)).all()
        seen |= {kind for kind in (DEPTH, TRACE, ACTION) if (sample.kinds[changed - 1] == kind).sum()}
    assert seen == {DEPTH, TRACE, ACTION}


def test_only_the_parts_that_are_named_are_hidden() -> None:
    sample = written(frame(), "reasoning")
    writer = SequenceWriter(PRESET, released_processor("d"))
    hidden = writer.hide_history(sample, HistoryDropout(action=Hiding(whole_part=1.0)), np.random.default_rng(0))
    changed = np.flatnonzero(hidden.input_ids != sample.input_ids)
    assert changed.tolist() == (np.flatnonzero((sample.kinds[:-1] == ACTION) & (sample.weights[:-1] > 0)) + 1).tolist()


def test_a_batch_pads_on_the_right_with_nothing_that_counts() -> None:
    short, long = written(frame(images=1), "trace"), written(frame(images=2), "reasoning")
    batch = collate([short, long], released_processor("d").pad_id)
    length = len(short.input_ids)
    assert batch.input_ids.shape[1] == len(long.input_ids)
    assert batch.input_ids[0, :length].tolist() == short.input_ids.tolist()
    assert (batch.input_ids[0, length:] == released_processor("d").pad_id).all()
    assert not batch.weights[0, length:].any()
    assert (batch.pooled_patches_idx[0, len(short.pooled_patches_idx) :] == -1).all()
    assert batch.segment_ids is None and batch.image_masks is None


def test_part_of_a_batch_is_the_same_samples() -> None:
    samples = [written(frame(images=images), "reasoning") for images in (1, 2, 3)]
    part = collate(samples, 0).rows(1, 3)
    assert isinstance(part, Batch) and len(part) == 2
    assert part.input_ids[0, : len(samples[1].input_ids)].tolist() == samples[1].input_ids.tolist()
