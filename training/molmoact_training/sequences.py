"""From a frame or a question to a token sequence: prompts, answers, and what each answer token counts.

Kinds of sample of a frame (paper, sections 3 and 4): reasoning (depth, trace and action are asked for), steering (the
trace is drawn on the first picture, the action is asked for), and the auxiliary ones that ask for depth or trace alone,
or to point to each of the objects in the first picture, as Molmo does. Ours is following: a reply whose trace is not
what the words ask for, and so is given and not to be said. What moves the arm in it can only be known from the trace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from string import Formatter
from typing import Any

import numpy as np
from molmoact_policy.actions import ActionStatistics, encode_bins, format_actions
from molmoact_policy.embodiment import ROW
from molmoact_policy.processor import Processor
from molmoact_policy.prompts import (
    depth_prompt,
    depth_reply,
    format_depth,
    format_trace,
    pointing_prompt,
    reasoning_prompt,
    reply_template,
    steering_prompt,
    trace_prompt,
    trace_template,
)
from molmoact_policy.trace import draw_trace
from numpy.typing import NDArray

from molmoact_training.annotated_dataset import Frame, Point
from molmoact_training.batches import ACTION, DEPTH, KIND_NAMES, SHARED, TEXT, TRACE, Sample
from molmoact_training.errors import DatasetError
from molmoact_training.presets import HistoryDropout, Preset

HIDDEN_TOKEN = "|<EXTRA_TOKENS_0>|"  # a filler of the release's vocabulary that no text holds

# What in the text of a field is of the field's kind; the rest of it, brackets and commas, is template.
VARIABLE = {
    DEPTH: re.compile(r"<DEPTH_\d+>"),
    TRACE: re.compile(r"\d+"),
    ACTION: re.compile(r"[^\[\], ]+"),
}
FIELD_KINDS = {"depth": DEPTH, "trace": TRACE, "left_trace": TRACE, "right_trace": TRACE, "action": ACTION}


@dataclass(frozen=True)
class Question:
    """A prompt and its answer: a format string and the texts of its fields."""

    prompt: str
    template: str
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Message:
    """A question as tokens. prompt, reply: ids, EOS included; kinds, weights: of the reply's ids."""

    prompt: NDArray[np.int64]
    reply: NDArray[np.int64]
    kinds: NDArray[np.int64]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        """Tokens that are read; the last one of the reply is only said."""
        return len(self.prompt) + len(self.reply) - 1


class SequenceWriter:
    """Writes samples for one checkpoint's processor as a preset wants them."""

    def __init__(self, preset: Preset, processor: Processor) -> None:
        """Raises CheckpointError when the tokenizer cannot encode actions as the preset says."""
        self.preset = preset
        self.processor = processor.with_action_encoding(preset.action_encoding)
        self.hidden_id = processor.tokenizer.convert_tokens_to_ids(HIDDEN_TOKEN)
        self._prompt_ids = lru_cache(maxsize=4096)(self._encode_prompt)

    def messages(self, frame: Frame, kind: str, statistics: ActionStatistics) -> list[Message]:
        """All that a frame asks and answers as one kind of sample, in tokens; what the kind needs must be annotated."""
        messages = [self.message(question) for question in self.questions(frame, kind, statistics)]
        if kind != "following":
            return messages
        return [replace(one, weights=np.where(one.kinds == TRACE, np.float32(0), one.weights)) for one in messages]

    def questions(self, frame: Frame, kind: str, statistics: ActionStatistics) -> list[Question]:
        """All that a frame asks and answers as one kind of sample; what the kind needs must be annotated.

        Only pointing has more than one question.
        """
        if kind != "pointing":
            return [self._question(frame, kind, statistics)]
        return [
            Question(pointing_prompt(point.object), "{trace}", {"trace": format_trace([(point.x, point.y)])})
            for point in first_image_points(frame)
        ]

    def _question(self, frame: Frame, kind: str, statistics: ActionStatistics) -> Question:
        images, arms = len(frame.images), statistics.dimensions // ROW
        depth = "" if frame.depth_codes is None else format_depth(frame.depth_codes.tolist())
        traces = [format_trace(trace.tolist()) for trace in frame.traces or ()]
        names = ("trace",) if arms == 1 else ("left_trace", "right_trace")
        action = format_actions(encode_bins(statistics.normalise(frame.actions)))
        fields = {"depth": depth, "action": action} | dict(zip(names, traces, strict=False))
        instruction, wording = frame.instruction, self.preset.wording
        if kind == "steering":
            return Question(steering_prompt(instruction, images, arms), reply_template(steered=True), fields)
        if kind == "depth":
            return Question(depth_prompt(instruction), depth_reply("{depth}"), fields)
        if kind == "trace":
            return Question(trace_prompt(instruction, arms), trace_template(arms), fields)
        return Question(reasoning_prompt(instruction, images, arms), reply_template(arms=arms, wording=wording), fields)

    def message(self, question: Question) -> Message:
        """The question in tokens, with kind and weight of every token of the answer."""
        text, kinds, first_row = _spell(question)
        ids, spans = self.processor.reply_tokens(text)
        # A token may hold the end of a value and the comma after it: it is of the value's kind.
        token_kinds = np.max([kind * _touches(spans, kinds == kind) for kind in VARIABLE], axis=0)
        settings = self.preset.loss.weights
        by_kind = np.array([getattr(settings, name) for name in KIND_NAMES], np.float32)
        weights = by_kind[token_kinds]
        weights[_touches(spans, first_row & (kinds == ACTION))] *= np.float32(settings.first_row)
        return Message(self._prompt_ids(question.prompt), np.array(ids, np.int64), token_kinds, weights)

    def sample(
        self,
        name: str,
        pictures: Sequence[NDArray[np.uint8]],
        messages: Sequence[Message],
        extra: Sequence[Message] = (),
    ) -> Sample:
        """Pictures, then the messages, each of which sees the pictures and itself; then `extra` ones while they fit.

        Every message's tokens count 1 / sqrt(messages), as in the release. Raises DatasetError, with the name, for a
        sample that is longer than the preset's sequence_length: nothing of it is cut.
        """
        numbered = len(pictures) > 1
        process = self.processor.image_processor
        processed = [process(picture, multi_image=numbered, once=True) for picture in pictures]
        prefix = np.array(self.processor.image_prefix(processed, numbered=numbered), np.int64)
        limit = self.preset.sequence_length
        length = len(prefix) + sum(len(message) for message in messages)
        if length > limit:
            raise DatasetError(
                f"{name}: {length} tokens ({len(prefix)} of {len(pictures)} images), sequence_length is {limit}"
            )
        lengths = length + np.cumsum([len(message) for message in extra])
        messages = [*messages, *extra[: int((lengths <= limit).sum())]]
        return Sample(name=name, **_sequence(prefix, messages), **_images(processed, self.processor))

    def hide_history(self, sample: Sample, settings: HistoryDropout, rng: np.random.Generator) -> Sample:
        """The sample with answer tokens hidden from what comes after them; what is to be said stays the same.

        Without it the model learns to read the demonstrated depth codes and earlier rows before it learns to look at
        the picture, and is lost when it has to go by its own: few of a reply's tokens cannot be guessed from the
        demonstrated ones before them.
        """
        shares = np.zeros(len(KIND_NAMES))
        for kind, hiding in ((DEPTH, settings.depth), (TRACE, settings.trace), (ACTION, settings.action)):
            whole = rng.random() < hiding.whole_part
            shares[kind] = 1.0 if whole else rng.random() * hiding.largest_share
        kinds = np.zeros_like(sample.kinds)  # of the inputs: TEXT for what is not a variable part of an answer
        kinds[1:] = sample.kinds[:-1] * (sample.weights[:-1] > 0)
        hidden = rng.random(len(kinds)) < shares[kinds]
        fields = vars(sample) | {"input_ids": np.where(hidden, self.hidden_id, sample.input_ids)}
        return Sample(**fields)

    def _encode_prompt(self, prompt: str) -> NDArray[np.int64]:
        return np.array(self.processor.encode_prompt(prompt), np.int64)


def pictures_of(frame: Frame, kind: str) -> list[NDArray[np.uint8]]:
    """The pictures a kind of sample shows: all of them, with the traces drawn for steering, or the first alone."""
    if kind == "steering":
        first = frame.images[0]
        for trace in frame.traces or ():
            first = draw_trace(first, trace)
        return [first, *frame.images[1:]]
    return [frame.images[0]] if kind in ("depth", "trace") else list(frame.images)


def first_image_points(frame: Frame) -> list[Point]:
    """The points of the first image."""
    return [point for point in frame.points or () if point.image == 0]


def _spell(question: Question) -> tuple[str, NDArray[np.int64], NDArray[np.bool_]]:
    """The answer's text and, for each character, its kind and whether it is of the first row of actions."""
    text = ""
    spans = []
    for literal, name, _, _ in Formatter().parse(question.template):
        text += literal
        if name is None:
            continue
        field, kind = question.fields[name], FIELD_KINDS.get(name, TEXT)
        matches = VARIABLE[kind].finditer(field) if kind in VARIABLE else ()
        spans += [(kind, len(text) + match.start(), len(text) + match.end()) for match in matches]
        text += field
    kinds = np.full(len(text), TEXT, np.int64)
    for kind, start, end in spans:
        kinds[start:end] = kind
    first_row = np.zeros(len(kinds), np.bool_)
    actions = [start for kind, start, _ in spans if kind == ACTION]
    if actions:
        first_row[actions[0] : text.index("]", actions[0])] = True
    return text, kinds, first_row


def _touches(spans: Sequence[tuple[int, int]], characters: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which spans [start, end) hold one of the characters that are marked."""
    before = np.concatenate([[0], np.cumsum(characters)])
    starts, ends = np.array(spans).T
    return before[ends] > before[starts]


def _sequence(prefix: NDArray[np.int64], messages: Sequence[Message]) -> dict[str, Any]:
    """Token fields of a sample. Positions go on from the pictures anew in every message."""
    parts: list[dict[str, Any]] = []
    share = np.float32(1 / np.sqrt(len(messages)))
    for number, message in enumerate(messages):
        unread = len(message.prompt) - 1
        tokens = np.concatenate([message.prompt, message.reply])
        parts.append(
            {
                "input_ids": tokens[:-1],
                "targets": tokens[1:],
                "position_ids": len(prefix) + np.arange(len(tokens) - 1),
                "segment_ids": np.full(len(tokens) - 1, number),
                "weights": np.concatenate([np.zeros(unread, np.float32), message.weights * share]),
                "kinds": np.concatenate([np.full(unread, TEXT), message.kinds]),
            }
        )
    shared = {
        "input_ids": prefix,
        "targets": np.append(prefix[1:], parts[0]["input_ids"][:1]),
        "position_ids": np.arange(len(prefix)),
        "segment_ids": np.full(len(prefix), SHARED),
        "weights": np.zeros(len(prefix), np.float32),
        "kinds": np.full(len(prefix), TEXT),
    }
    return {name: np.concatenate([shared[name], *(part[name] for part in parts)]) for name in shared}


def _images(processed: list[dict[str, NDArray[Any]]], processor: Processor) -> dict[str, Any]:
    """Picture fields of a sample."""
    if processed:
        return {name: tensor[0].numpy() for name, tensor in processor.join(processed).items()}
    settings = processor.image_processor
    patches, values = settings.crop_patches**2, settings.patch_size**2 * 3
    return {
        "images": np.empty((0, patches, values), np.float32),
        "image_masks": np.empty((0, patches), np.float32),
        "pooled_patches_idx": np.empty((0, np.prod(settings.pooling_size)), np.int64),
    }
