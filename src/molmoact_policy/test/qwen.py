"""The tokenizer of Qwen2.5 from the vocabulary in the PyPI package dashscope.

Run as a program it writes the package's own copy of the ordinary vocabulary.
"""

import base64
import lzma
from functools import cache
from importlib.metadata import distribution
from itertools import pairwise
from pathlib import Path

from molmoact_policy.tokenizer import add_released_tokens
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
SPECIAL = (
    END_OF_TEXT,
    *(f"<|{name}|>" for name in ("im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end")),
    *(f"<|{name}|>" for name in ("quad_start", "quad_end", "vision_start", "vision_end")),
    *(f"<|{name}|>" for name in ("vision_pad", "image_pad", "video_pad")),
)
ORDINARY = (
    "<tool_call>",
    "</tool_call>",
    *(f"<|{name}|>" for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")),
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def ranks() -> dict[bytes, int]:
    """Token -> rank of the 151,643 ordinary tokens, in rank order."""
    path = Path(str(distribution("dashscope").locate_file("dashscope/resources/qwen.tiktoken")))
    return {base64.b64decode(token): int(rank) for token, rank in map(str.split, path.read_text().splitlines())}


@cache
def alphabet() -> list[str]:
    """The character that stands for each byte in byte-level BPE: printable ones for themselves, then from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def spell(token: bytes) -> str:
    return "".join(alphabet()[byte] for byte in token)


def last_merge(token: bytes) -> tuple[bytes, bytes]:
    """The two tokens that are joined last: what remains when only pairs of a lower rank than `token` are."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks().get(left + right, len(ranks())) for left, right in pairwise(parts)]
        first = pairs.index(min(pairs))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts[0], parts[1]


@cache
def merges() -> list[tuple[str, str]]:
    """Spellings of the two halves of each token of several bytes, in rank order: the lines of Qwen's merges.txt."""
    return [(spell(left), spell(right)) for left, right in (last_merge(token) for token in ranks() if len(token) > 1)]


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """A new one of Qwen2.5-7B: 151,643 ordinary and 22 added tokens."""
    vocabulary = {spell(token): rank for token, rank in ranks().items()}
    backend = Tokenizer(models.BPE(vocabulary, merges()))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, normalized=False) for token in ORDINARY])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


def released_tokenizer() -> PreTrainedTokenizerFast:
    """A new one of MolmoAct-7B-D."""
    tokenizer = qwen_tokenizer()
    add_released_tokens(tokenizer, vocab_size=152_064)
    return tokenizer


def write_vocabulary(path: Path) -> None:
    text = "".join(f"{spell(token)}\n" for token in ranks())
    path.write_bytes(lzma.compress(text.encode(), preset=6 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    write_vocabulary(Path(__file__).parents[1] / "molmoact_policy" / "qwen2_vocabulary.txt.xz")
