"""Token layout, prompts and chat wrapper against the official processor's outputs."""

import json
from pathlib import Path

import numpy as np
import pytest
from molmoact_policy.errors import CheckpointError
from molmoact_policy.images import ImageProcessor
from molmoact_policy.processor import Processor
from molmoact_policy.prompts import (
    chat,
    format_depth,
    format_trace,
    reasoning_prompt,
    reasoning_reply,
    steering_prompt,
    steering_reply,
)
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "processor_cases.json").read_text())
STYLES = {"d": "siglip2", "o": "clip"}


class RecordedTokenizer:
    """The recorded ids of the recorded texts, in place of a vocabulary of 150,000 words."""

    bos_token_id = None
    eos_token_id = CASES["bos_used"]
    pad_token_id = None

    def __init__(self, case: dict) -> None:
        ids = case["input_ids"]
        last_image_token = max(i for i, token in enumerate(ids) if token == CASES["special_ids_7b_d"]["<im_end>"])
        self.texts = {
            "Image 1": [1906, 220, 16],
            "Image 2": [1906, 220, 17],
            case["text_after_template"]: ids[last_image_token + 1 :],
        }

    def get_vocab(self) -> dict[str, int]:
        return CASES["special_ids_7b_d"]

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return self.texts[text]


@pytest.mark.parametrize("name", CASES["cases"])
def test_sequence_equals_the_official_one(name: str) -> None:
    case = CASES["cases"][name]
    family, _, arrangement = name.partition("_")
    qvga = np.array(Image.open(DATA / "images" / "qvga_320x240.png").convert("RGB"))
    pictures = [qvga, qvga[:, :256].copy()] if arrangement == "two_images_nested" else [qvga]
    images = pictures if arrangement == "one_image_flat" else [pictures]
    prompt = reasoning_prompt("pick up the red block", 1 if arrangement == "one_image_flat" else 2)
    assert chat(prompt) == case["text_after_template"]

    processor = Processor(ImageProcessor(STYLES[family]), RecordedTokenizer(case))  # type: ignore[arg-type]
    inputs = processor(images, prompt)
    assert inputs["input_ids"].tolist() == [case["input_ids"]]
    assert {key: list(value.shape) for key, value in inputs.items()} == case["shapes"]
    indices = inputs["pooled_patches_idx"][0]
    assert int(indices.sum()) == case["pooled_patches_idx_sum"]
    assert [indices[0].tolist(), indices[-1].tolist()] == case["pooled_first_last"]


def test_several_images_mean_the_same_nested_or_not() -> None:
    case = CASES["cases"]["d_two_images_nested"]
    processor = Processor(ImageProcessor(), RecordedTokenizer(case))  # type: ignore[arg-type]
    pictures = [np.zeros((8, 8, 3), np.uint8)] * 2
    prompt = reasoning_prompt("pick up the red block")
    assert processor(pictures, prompt)["input_ids"].tolist() == processor([pictures], prompt)["input_ids"].tolist()


def test_prompts_equal_the_official_ones() -> None:
    recorded = json.loads((DATA / "eval_cases.json").read_text())
    assert reasoning_prompt("t", images=1) == recorded["prompt_plain"]
    assert steering_prompt("t", images=1) == recorded["prompt_steer"]
    assert "annotated on the first image" in steering_prompt("t", images=2)


def test_replies_have_the_released_wording() -> None:
    depth, trace = format_depth([3, 127]), format_trace([(1, 2), (30, 40)])
    assert depth == "<DEPTH_START><DEPTH_3><DEPTH_127><DEPTH_END>"
    assert trace == "[[1, 2], [30, 40]]"
    assert reasoning_reply(depth, trace, "[a]") == (
        f"The depth map of the first image is {depth}. The trajectory of the end effector in the first image is "
        f"{trace}. Based on these information, along with other images from different camera views as additional "
        "information, the action that the robot should take is [a]."
    )
    assert steering_reply("[a]").endswith("the action that the robot should take is [a].")


def build_tokenizer(*tokens: str) -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<eos>", *tokens])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def test_a_saved_processor_reads_back(tmp_path: Path) -> None:
    tokenizer = build_tokenizer("<im_start>", "<im_patch>", "<im_col>", "<im_end>", "User:", "Assistant:", "go")
    saved = Processor(ImageProcessor(base_image_input_size=(56, 56), max_crops=1, overlap_margins=(0, 0)), tokenizer)
    saved.save_pretrained(tmp_path)
    loaded = Processor.from_pretrained(tmp_path)
    pictures = [np.zeros((5, 6, 3), np.uint8)]
    assert loaded(pictures, "go")["input_ids"].tolist() == saved(pictures, "go")["input_ids"].tolist()
    assert loaded.encode_reply("go") == [*tokenizer.encode("go"), loaded.eos_id]


def test_missing_files_and_tokens_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json is missing"):
        Processor.from_pretrained(tmp_path)
    ImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        Processor.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer not readable"):
        Processor.from_pretrained(tmp_path)
    build_tokenizer("<im_start>", "<im_col>").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="lacks <im_patch>, <im_end>"):
        Processor.from_pretrained(tmp_path)
