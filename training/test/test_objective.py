"""The loss against a plain computation of what the release's training code defines."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from molmoact_policy.actions import SYMBOLS
from molmoact_policy.model import MolmoActForActionReasoning
from molmoact_training.batches import ACTION, TRACE, collate
from molmoact_training.errors import PresetError
from molmoact_training.objective import Objective, soft_labels
from molmoact_training.presets import Loss, Preset, SoftLabels
from molmoact_training.sequences import SequenceWriter

from .qwen_processor import POLICY_TESTS, tiny_processor
from .test_sequences import base, plain

PRESET = dataclasses.replace(Preset.from_file("nano", {"sequence_length": 2304}), loss=Loss(z_loss=1e-4))
QUESTIONS = [plain("Who is it?", "me"), plain("Where?", "it is on the mat, [[1, 2]]"), plain("And?", "a cat")]
PICTURES = [base(30, 52), base(47, 41)]


@pytest.fixture(params=["d", "o"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, family: str) -> MolmoActForActionReasoning:
    directory = POLICY_TESTS / f"data/tiny_{family}"
    return MolmoActForActionReasoning.from_pretrained(
        directory, dtype=torch.float32, variant="training", attn_implementation=request.param
    )


def writer(family: str) -> SequenceWriter:
    return SequenceWriter(PRESET, tiny_processor(family))


def plain_loss(model: MolmoActForActionReasoning, family: str, pictures, question) -> torch.Tensor:
    """Sum of cross-entropy and z-loss over the answer and EOS of one question alone, through the policy's processor."""
    processor = tiny_processor(family)
    inputs = processor(pictures, question.prompt)
    answer = processor.encode_reply(question.fields["answer"])
    prompt = inputs["input_ids"][0]
    ids = torch.cat([prompt, torch.tensor(answer[:-1], dtype=torch.int64)])[None]
    pixels = {name: inputs[name] for name in ("images", "pooled_patches_idx", "image_masks")}
    logits = model(input_ids=ids, **pixels).logits[0, len(prompt) - 1 :].double()
    z = logits.logsumexp(-1).square().sum()
    return F.cross_entropy(logits, torch.tensor(answer), reduction="sum") + 1e-4 * z


@torch.inference_mode()
def test_the_loss_equals_a_plain_computation(model: MolmoActForActionReasoning, family: str) -> None:
    sequences = writer(family)
    cases = [(PICTURES[:1], QUESTIONS[0]), (PICTURES, QUESTIONS[1])]
    samples = [sequences.sample("x", pictures, [sequences.message(question)]) for pictures, question in cases]
    sums = Objective(model, PRESET, tiny_processor(family))(collate(samples, 0))
    expected = sum(plain_loss(model, family, *case) for case in cases)
    answers = sum(len(question.fields["answer"]) + 2 for _, question in cases)  # a space before, EOS after
    assert sums.weight.item() == answers
    assert sums.loss.item() == pytest.approx(expected.item(), rel=1e-5)


@torch.inference_mode()
def test_messages_share_the_pictures_and_do_not_see_each_other(model: MolmoActForActionReasoning, family: str) -> None:
    sequences = writer(family)
    messages = [sequences.message(question) for question in QUESTIONS]
    sample = sequences.sample("x", PICTURES, messages)
    single = sequences.sample("x", PICTURES, messages[:1])
    sums = Objective(model, PRESET, tiny_processor(family))(collate([sample, single], 0))
    alone = [plain_loss(model, family, PICTURES, question).item() for question in QUESTIONS]
    assert sums.loss.item() == pytest.approx(sum(alone) / 3**0.5 + alone[0], rel=1e-5)


@torch.inference_mode()
def test_sums_of_any_split_add_up_to_those_of_the_whole(model: MolmoActForActionReasoning, family: str) -> None:
    sequences = writer(family)
    samples = [
        sequences.sample("x", PICTURES[:count], [sequences.message(question) for question in chosen])
        for count, chosen in [(1, QUESTIONS[:1]), (2, QUESTIONS), (0, QUESTIONS[1:2]), (2, QUESTIONS[2:])]
    ]
    objective = Objective(model, PRESET, tiny_processor(family))
    whole = objective(collate(samples, 0))
    parts = [objective(collate(part, 0)) for part in (samples[:1], samples[1:3], samples[3:])]
    assert sum(part.loss for part in parts).item() == pytest.approx(whole.loss.item(), rel=1e-5)
    assert sum(part.weight for part in parts).item() == pytest.approx(whole.weight.item(), rel=1e-6)
    for name, (total, count) in whole.report.items():
        assert sum(part.report[name][1] for part in parts) == count, name
        assert sum(part.report[name][0] for part in parts).item() == pytest.approx(total.item(), rel=1e-4), name


def test_the_padding_embedding_counts_in_training() -> None:
    """A picture that is not square leaves padding in family O's crop; its loss depends on how that is embedded."""
    directory = POLICY_TESTS / "data/tiny_o"
    sequences = writer("o")
    batch = collate([sequences.sample("x", PICTURES[:1], [sequences.message(QUESTIONS[0])])], 0)
    assert batch.image_masks is not None
    losses = []
    for variant in ("training", "hf"):
        model = MolmoActForActionReasoning.from_pretrained(directory, dtype=torch.float32, variant=variant)
        with torch.inference_mode():
            losses.append(Objective(model, PRESET, tiny_processor("o"))(batch).loss.item())
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


def test_only_answers_have_gradients_through_their_targets(family: str) -> None:
    directory = POLICY_TESTS / f"data/tiny_{family}"
    model = MolmoActForActionReasoning.from_pretrained(directory, dtype=torch.float32)
    sequences = writer(family)
    sample = sequences.sample("x", [], [sequences.message(plain("ab", "zz"))])
    Objective(model, PRESET, tiny_processor(family))(collate([sample], 0)).loss.backward()
    z, space, b = (tiny_processor(family).tokenizer.convert_tokens_to_ids(text) for text in ("z", " ", "b"))
    pull = model.lm_head.weight.grad @ torch.nn.functional.normalize(model.lm_head.weight.grad[z], dim=0)
    assert pull[z].abs() > 10 * pull[b].abs()
    assert model.lm_head.weight.grad[space].norm() > 0


def test_soft_labels_are_a_normal_distribution_over_the_bins_around_the_right_one() -> None:
    labels = soft_labels(2.5)
    assert labels.shape == (256, 256)
    np.testing.assert_allclose(labels.sum(-1).numpy(), 1, rtol=1e-6)
    assert (labels.argmax(-1) == torch.arange(256)).all()
    ratio = (labels[100, 105] / labels[100, 100]).item()
    assert ratio == pytest.approx(np.exp(-0.5 * (5 / 2.5) ** 2), rel=1e-5)
    assert labels[0, 1] > labels[100, 101]  # at the edge there is only one side


def test_soft_labels_need_one_token_per_bin() -> None:
    settings = dataclasses.replace(PRESET, loss=Loss(z_loss=0, soft_labels=SoftLabels(action=2, trace=2)))
    model = MolmoActForActionReasoning.from_pretrained(POLICY_TESTS / "data/tiny_d", dtype=torch.float32)
    with pytest.raises(PresetError, match="soft_labels"):
        Objective(model, settings, tiny_processor("d"))


@torch.inference_mode()
def test_soft_labels_teach_the_neighbours_of_the_right_bin(nano) -> None:
    """Against cross-entropy with probabilities, which torch defines; hard labels where no bin is soft."""
    model, processor, samples = nano
    batch = collate(samples, 0)
    preset = Preset.from_file("nano", {"loss.z_loss": 0.0})
    sums = Objective(model, preset, processor)(batch)
    logits = model(
        input_ids=batch.input_ids, images=batch.images, pooled_patches_idx=batch.pooled_patches_idx
    ).logits.double()
    answers = batch.targets * (batch.weights > 0)  # image tokens have no row in the head
    probabilities = F.one_hot(answers, logits.shape[-1]).double()
    vocabulary = processor.tokenizer.get_vocab()
    soft, numbers = preset.loss.soft_labels, [str(number) for number in range(256)]
    for kind, texts, width in ((ACTION, SYMBOLS, soft.action), (TRACE, numbers, soft.trace)):
        ids = torch.tensor([vocabulary[text] for text in texts])
        for row, column in ((batch.kinds == kind) & (batch.weights > 0)).nonzero().tolist():
            right = (ids == batch.targets[row, column]).nonzero().item()
            probabilities[row, column] = 0
            probabilities[row, column, ids] = soft_labels(width)[right].double()
    losses = F.cross_entropy(logits.transpose(1, 2), probabilities.transpose(1, 2), reduction="none")
    assert sums.loss.item() == pytest.approx((losses * batch.weights).sum().item(), rel=1e-4)
    assert sums.report["action_error_bins"][1] > 0 < sums.report["trace_error_bins"][1]


def test_bf16_autocast_takes_samples_of_several_messages(family: str) -> None:
    directory = POLICY_TESTS / f"data/tiny_{family}"
    sequences = writer(family)
    batch = collate([sequences.sample("x", PICTURES, [sequences.message(question) for question in QUESTIONS])], 0)
    losses = []
    for attention in ("sdpa", "eager"):
        model = MolmoActForActionReasoning.from_pretrained(
            directory, dtype=torch.float32, attn_implementation=attention
        )
        with torch.autocast("cpu", torch.bfloat16):
            sums = Objective(model, PRESET, tiny_processor(family))(batch)
        sums.loss.backward()
        losses.append(sums.loss.item() / sums.weight.item())
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
