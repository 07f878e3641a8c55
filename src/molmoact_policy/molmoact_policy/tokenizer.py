"""What the release adds to the tokenizer of its language model."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from molmoact_policy.prompts import DEPTH_END, DEPTH_START

DEPTH_TOKENS = (DEPTH_START, DEPTH_END, *(f"<DEPTH_{code}>" for code in range(128)))
ADDED_IMAGE_TOKENS = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>", "<im_low>")


def add_released_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Depth tokens, fillers up to `vocab_size` (the rows of the language model's head), image tokens: in this order.

    Depth tokens are ordinary: the model writes them, and they survive `decode(skip_special_tokens=True)`. The ids of
    the image tokens lie behind the head's rows, so the model cannot write them. Raises ValueError, before anything is
    added, when there is no room for the depth tokens.
    """
    fillers = vocab_size - len(tokenizer) - len(DEPTH_TOKENS)
    if fillers < 0:
        raise ValueError(
            f"vocab_size is {vocab_size}, expected at least {len(tokenizer)} tokens of the tokenizer and "
            f"{len(DEPTH_TOKENS)} for depth"
        )
    _add(tokenizer, DEPTH_TOKENS)
    _add(tokenizer, [f"|<EXTRA_TOKENS_{index}>|" for index in range(fillers)], special=True)
    _add(tokenizer, ADDED_IMAGE_TOKENS, special=True)


def _add(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str], *, special: bool = False) -> None:
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=special) for token in tokens], special)
