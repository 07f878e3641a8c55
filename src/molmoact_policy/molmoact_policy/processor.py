"""Pictures and a prompt to model inputs: image tokens, chat wrapper and tokenizer of one checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Tokenizer

from molmoact_policy.checkpoint import CONFIG, locate, read_json
from molmoact_policy.errors import CheckpointError
from molmoact_policy.images import ImageProcessor
from molmoact_policy.prompts import chat
from molmoact_policy.symbols import SYMBOLS

Image: TypeAlias = NDArray[np.uint8]

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
BPE_FILES = ("vocab.json", "merges.txt")
QWEN2_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
SEPARATOR = ", "
# The longest first: some symbols begin with another.
SYMBOL = re.compile("|".join(sorted(map(re.escape, SYMBOLS), key=len, reverse=True)))
IMAGE_TOKENS = ("<im_start>", "<im_patch>", "<im_col>", "<im_end>")


class Processor:
    """Sequence = BOS, image tokens, wrapped prompt. BOS is the tokenizer's own or, if it has none, its EOS.

    action_encoding: "text", the release's way, spells an action symbol like any other text; "token" writes it as the
    one token of that spelling, without the ", " between two: half the tokens of a reply. The text of a reply, to be
    written or read, is the same for both.
    """

    def __init__(
        self, image_processor: ImageProcessor, tokenizer: PreTrainedTokenizerBase, action_encoding: str = "text"
    ) -> None:
        """Raises CheckpointError when the tokenizer lacks a token that is needed."""
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.action_encoding = action_encoding
        self.eos_id = tokenizer.eos_token_id
        if self.eos_id is None:
            raise CheckpointError(f"the tokenizer has no eos_token, which {TOKENIZER_CONFIG} should name")
        self.bos_id = self.eos_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in IMAGE_TOKENS if token not in vocabulary]
        if missing:
            raise CheckpointError(f"the tokenizer lacks {', '.join(missing)}")
        self._symbol_of: dict[int, str] = {}  # by id, where a symbol is a token of its own
        if action_encoding == "token":
            lacking = sum(symbol not in vocabulary for symbol in SYMBOLS)
            if lacking:
                raise CheckpointError(
                    f"action_encoding is 'token', but {lacking} of the {len(SYMBOLS)} action symbols are no tokens of "
                    "the tokenizer, expected 'text'"
                )
            self._symbol_of = {vocabulary[symbol]: symbol for symbol in SYMBOLS}
        elif action_encoding != "text":
            raise CheckpointError(f"action_encoding is {action_encoding!r}, expected 'text' or 'token'")
        self._id_of = {symbol: number for number, symbol in self._symbol_of.items()}
        self._start, self.image_patch_id, self._column, self._end = (vocabulary[token] for token in IMAGE_TOKENS)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Processor:
        """preprocessor_config.json and the tokenizer of a checkpoint: tokenizer.json or, for Qwen2's, vocab.json and
        merges.txt, with tokenizer_config.json; how actions are encoded from config.json, if there is one. Raises
        CheckpointError naming what is missing or not readable.
        """
        directory = locate(directory)
        image_processor = ImageProcessor.from_pretrained(directory)
        tokenizer = _read_tokenizer(directory)
        config = read_json(directory, CONFIG) if (directory / CONFIG).is_file() else {}
        try:
            return cls(image_processor, tokenizer, config.get("action_encoding", "text"))
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint {directory}: {error}") from error

    def with_action_encoding(self, action_encoding: str) -> Processor:
        """The same for another encoding of the actions. Raises CheckpointError as the constructor does."""
        return Processor(self.image_processor, self.tokenizer, action_encoding)

    def save_pretrained(self, directory: Path) -> None:
        self.image_processor.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)

    def __call__(self, images: Sequence[Image] | Sequence[Sequence[Image]], prompt: str) -> dict[str, Tensor]:
        """One observation to a batch of one: input_ids and attention_mask [1, S], images [1, crops, patches, pixels],
        pooled_patches_idx [1, tokens, slots] and image_masks [1, crops, patches]; without images, the first two.

        Several images, or images given nested ([[image]]), are each preceded by the text "Image 1", "Image 2", ...; one
        image in a flat list is not: the pretraining checkpoints' way. `prompt` is the bare question.
        """
        nested = len(images) > 0 and isinstance(images[0], (list, tuple))
        pictures: Any = images[0] if nested else images
        numbered = nested or len(pictures) > 1
        processed = [self.image_processor(picture, multi_image=numbered) for picture in pictures]

        ids = [*self.image_prefix(processed, numbered=numbered), *self.encode_prompt(prompt)]
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
        return inputs | (self.join(processed) if processed else {})

    def image_prefix(self, processed: Sequence[dict[str, NDArray[Any]]], *, numbered: bool) -> list[int]:
        """Ids before the prompt: BOS and what the image processor made of each picture, "Image 1" first if numbered."""
        ids = [self.bos_id]
        for number, arrays in enumerate(processed, start=1):
            if numbered:
                ids += self._encode(f"Image {number}")
            ids += self.image_tokens(arrays["image_grids"])
        return ids

    def encode_prompt(self, prompt: str) -> list[int]:
        """Ids of the bare question in its chat wrapper."""
        return self._encode(chat(prompt))

    def image_tokens(self, grids: NDArray[np.int64]) -> list[int]:
        """Ids of one image: for each pooled grid (rows, columns), its rows of patches, each closed by a column."""
        ids: list[int] = []
        for rows, columns in grids.tolist():
            ids += [self._start, *([self.image_patch_id] * columns + [self._column]) * rows, self._end]
        return ids

    def encode_reply(self, reply: str) -> list[int]:
        """The ids training puts after the prompt: one space, the reply, EOS."""
        return self.reply_tokens(reply)[0]

    def reply_tokens(self, reply: str) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode_reply`, and for each id which characters [start, end) of the reply it spells; EOS spells none."""
        text = " " + reply
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for start, end in self._pieces(text):
            if text[start:end] in self._id_of:
                ids.append(self._id_of[text[start:end]])
                spans.append((start, end))
                continue
            encoded = self.tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True)
            ids += encoded["input_ids"]
            spans += [(start + first, start + last) for first, last in encoded["offset_mapping"]]
        spans = [(max(start - 1, 0), end - 1) for start, end in spans]
        return [*ids, self.eos_id], [*spans, (len(reply), len(reply))]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids; depth tokens are ordinary tokens and stay, EOS and padding go."""
        if self.action_encoding == "text":
            return self._decode(ids)
        text = ""
        for is_symbol, run in groupby(ids, key=self._symbol_of.__contains__):
            if is_symbol:
                text += SEPARATOR.join(self._symbol_of[number] for number in run)
            else:
                text += self._decode(list(run))
        return text

    def _pieces(self, text: str) -> Iterator[tuple[int, int]]:
        """Where the text is to be cut: symbols that are tokens, without what separates them, and what is between."""
        end = 0
        for match in SYMBOL.finditer(text) if self._id_of else ():
            if text[end : match.start()] not in ("", SEPARATOR):
                yield end, match.start()
            yield match.span()
            end = match.end()
        if end < len(text):
            yield end, len(text)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    @staticmethod
    def join(processed: list[dict[str, NDArray[Any]]]) -> dict[str, Tensor]:
        """The pictures of one observation one after another, as a batch of one."""
        indices = []
        patches = 0
        for arrays in processed:
            # Empty slots (-1) move on too, as in the release and its training: after the first picture they point at
            # the last patch of the picture before.
            indices.append(arrays["pooled_patches_idx"] + patches)
            patches += arrays["images"].shape[0] * arrays["images"].shape[1]
        joined = {name: np.concatenate([arrays[name] for arrays in processed]) for name in ("images", "image_masks")}
        joined["pooled_patches_idx"] = np.concatenate(indices).astype(np.int64)
        return {name: torch.from_numpy(array).unsqueeze(0) for name, array in joined.items()}


def _read_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    settings = read_json(directory, TOKENIZER_CONFIG) if (directory / TOKENIZER_CONFIG).is_file() else {}
    # Not AutoTokenizer: it would take the class from config.json, which only this package knows.
    if (directory / TOKENIZER_FILE).is_file():
        return _load(PreTrainedTokenizerFast, directory, (TOKENIZER_FILE, TOKENIZER_CONFIG))
    missing = [name for name in (*BPE_FILES, TOKENIZER_CONFIG) if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(
            f"checkpoint {directory}: {TOKENIZER_FILE} is missing; without it {', '.join(missing)} would be needed"
        )
    # These files do not say how text is split before it is merged. For Qwen2 that is known from the class.
    if settings.get("tokenizer_class") not in QWEN2_CLASSES:
        raise CheckpointError(
            f"checkpoint {directory}: {TOKENIZER_FILE} is missing; {' and '.join(BPE_FILES)} suffice for "
            f"{QWEN2_CLASSES[0]} only, {TOKENIZER_CONFIG} has tokenizer_class {settings.get('tokenizer_class')!r}"
        )
    tokenizer = _load(Qwen2Tokenizer, directory, (*BPE_FILES, TOKENIZER_CONFIG))
    _check_added_tokens(directory, tokenizer, settings)
    return tokenizer


def _load(reader: type[PreTrainedTokenizerBase], directory: Path, files: tuple[str, ...]) -> PreTrainedTokenizerBase:
    try:
        return reader.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception for a malformed file
        raise CheckpointError(f"checkpoint {directory}: {', '.join(files)}: tokenizer not readable: {error}") from error


def _check_added_tokens(directory: Path, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> None:
    """Raises CheckpointError when added tokens are not where they were: transformers appends them to what it finds."""
    for number, token in settings.get("added_tokens_decoder", {}).items():
        found = tokenizer.convert_tokens_to_ids(token["content"])
        if found != int(number):
            raise CheckpointError(
                f"checkpoint {directory}: {token['content']} gets id {found}, {TOKENIZER_CONFIG} has {number}: "
                f"{BPE_FILES[0]} is not this tokenizer's"
            )
