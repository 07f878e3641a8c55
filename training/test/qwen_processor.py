"""Processors of the tests: the release's with Qwen's tokenizer, and one for the tiny models of 256 ids."""

import importlib.util
import string
import sys
from functools import cache
from pathlib import Path

from molmoact_policy.images import ImageProcessor
from molmoact_policy.processor import Processor
from molmoact_policy.tokenizer import add_released_tokens
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

POLICY_TESTS = Path(__file__).parents[2] / "src/molmoact_policy/test"
STYLES = {"d": "siglip2", "o": "clip"}
TINY_CROPS = {"d": 44, "o": 40}


@cache
def released_processor(family: str) -> Processor:
    """The release's processor of family "d" or "o"; both with Qwen's tokenizer, as the fixtures were made."""
    spec = importlib.util.spec_from_file_location("molmoact_policy_test_qwen", POLICY_TESTS / "qwen.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return Processor(ImageProcessor(STYLES[family]), module.released_tokenizer())


def tiny_processor(family: str) -> Processor:
    """For the tiny models: one id for each ASCII character and depth code, image tokens from 256 on."""
    characters = ["<eos>", "<unk>", *string.printable[:95]]
    backend = Tokenizer(models.WordLevel({text: index for index, text in enumerate(characters)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    add_released_tokens(tokenizer, 256)
    crop = TINY_CROPS[family]
    images = ImageProcessor(
        STYLES[family], max_multi_image_crops=8, base_image_input_size=(crop, crop), image_patch_size=4
    )
    return Processor(images, tokenizer)
