"""Sequences against the official processor's, and tokenizers as checkpoints bring them."""

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from molmoact_policy.actions import SYMBOLS, format_actions
from molmoact_policy.config import MolmoActConfig
from molmoact_policy.errors import CheckpointError
from molmoact_policy.images import ImageProcessor
from molmoact_policy.processor import IMAGE_TOKENS, Processor
from molmoact_policy.prompts import chat, format_depth, format_trace, reasoning_prompt, reasoning_reply
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .qwen import merges, ranks, released_tokenizer, spell

DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "processor_cases.json").read_text())
STYLES = {"d": "siglip2", "o": "clip"}


# Sizes of the recorded pictures; what they show does not change the sequence.
QVGA, SQUARE = np.zeros((240, 320, 3), np.uint8), np.zeros((256, 256, 3), np.uint8)
IMAGES = {"two_images_nested": [[QVGA, SQUARE]], "one_image_nested": [[QVGA]], "one_image_flat": [QVGA]}


@pytest.fixture(scope="module")
def released() -> PreTrainedTokenizerFast:
    return released_tokenizer()


@pytest.mark.parametrize("name", CASES["cases"])
def test_sequence_equals_the_official_one(name: str, released: PreTrainedTokenizerFast) -> None:
    case = CASES["cases"][name]
    family, _, arrangement = name.partition("_")
    prompt = reasoning_prompt("pick up the red block", 1 if arrangement == "one_image_flat" else 2)
    assert chat(prompt) == case["text_after_template"]

    inputs = Processor(ImageProcessor(STYLES[family]), released)(IMAGES[arrangement], prompt)
    assert inputs["input_ids"].tolist() == [case["input_ids"]]
    assert inputs["attention_mask"].tolist() == [[1] * len(case["input_ids"])]
    assert {key: list(value.shape) for key, value in inputs.items()} == case["shapes"]
    indices = inputs["pooled_patches_idx"][0]
    assert int(indices.sum()) == case["pooled_patches_idx_sum"]
    assert [indices[0].tolist(), indices[-1].tolist()] == case["pooled_first_last"]


def test_several_images_mean_the_same_nested_or_not(released: PreTrainedTokenizerFast) -> None:
    processor = Processor(ImageProcessor(), released)
    prompt = reasoning_prompt("pick up the red block")
    flat, nested = processor([QVGA, SQUARE], prompt), processor([[QVGA, SQUARE]], prompt)
    assert flat["input_ids"].tolist() == nested["input_ids"].tolist()


def test_without_images_there_is_only_the_question(released: PreTrainedTokenizerFast) -> None:
    inputs = Processor(ImageProcessor(), released)([], "hello")
    assert {key: value.tolist() for key, value in inputs.items()} == {
        "input_ids": [[151643, 1474, 25, 23811, 21388, 25]],
        "attention_mask": [[1] * 6],
    }


def settings_of_transformers_4_52(tokenizer: PreTrainedTokenizerFast) -> dict:
    """tokenizer_config.json as the released code's version of transformers writes it."""
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = tokenizer.added_tokens_decoder
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(number): {flag: getattr(token, flag) for flag in flags} for number, token in added.items()
        },
        "additional_special_tokens": [
            str(token) for number, token in added.items() if token.special and number >= 151_665
        ],
        "auto_map": {"AutoProcessor": "processing_molmoact.MolmoActProcessor"},
        "bos_token": None,
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "extra_special_tokens": {},
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "processor_class": "MolmoActProcessor",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@pytest.fixture(scope="module")
def bpe_directory(released: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer is vocab.json and merges.txt."""
    directory = tmp_path_factory.mktemp("bpe")
    ImageProcessor().save_pretrained(directory)
    write_json(directory / "config.json", {"model_type": "molmoact", "transformers_version": "4.52.4"})
    write_json(directory / "tokenizer_config.json", settings_of_transformers_4_52(released))
    write_json(directory / "vocab.json", {spell(token): rank for token, rank in ranks().items()})
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges()), ""]
    (directory / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def json_directory(
    released: PreTrainedTokenizerFast, bpe_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same checkpoint with tokenizer.json instead."""
    directory = tmp_path_factory.mktemp("json")
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        shutil.copy(bpe_directory / name, directory)
    released.backend_tokenizer.save(str(directory / "tokenizer.json"))
    return directory


TEXT = (
    "It's  20 °C\r\n\n in the café (cafe\u0301): 立方体 🤖 don't\t<DEPTH_START><DEPTH_7><DEPTH_END> "
    f"{SYMBOLS[3]}, {SYMBOLS[200]} <|fim_prefix|> [[12, 255], [0, 3]] "
)


@pytest.mark.parametrize("files", ["json_directory", "bpe_directory"])
def test_a_tokenizer_written_by_transformers_4_52_is_read(
    files: str, released: PreTrainedTokenizerFast, request: pytest.FixtureRequest
) -> None:
    loaded = Processor.from_pretrained(request.getfixturevalue(files))
    expected = Processor(ImageProcessor(), released)
    assert loaded.tokenizer.get_vocab() == released.get_vocab()
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (151_643, 151_643, 151_643)
    assert loaded([], TEXT)["input_ids"].tolist() == expected([], TEXT)["input_ids"].tolist()
    reply = expected.encode_reply(TEXT)
    assert loaded.encode_reply(TEXT) == reply
    assert loaded.decode(reply) == expected.decode(reply) == " " + unicodedata.normalize("NFC", TEXT)


def test_a_tokenizer_read_from_vocab_and_merges_is_saved_whole(bpe_directory: Path, tmp_path: Path) -> None:
    read = Processor.from_pretrained(bpe_directory)
    read.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    assert Processor.from_pretrained(tmp_path).encode_reply(TEXT) == read.encode_reply(TEXT)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("merges.txt", None, r"tokenizer\.json is missing; without it merges\.txt would be needed"),
        ("vocab.json", None, r"tokenizer\.json is missing; without it vocab\.json would be needed"),
        ("tokenizer_config.json", None, r"without it tokenizer_config\.json would be needed"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json: not readable as JSON"),
        ("tokenizer_config.json", '{"tokenizer_class": "GPT2Tokenizer"}', "tokenizer_class 'GPT2Tokenizer'"),
        ("tokenizer_config.json", '{"tokenizer_class": "Qwen2Tokenizer", "eos_token": null}', "has no eos_token"),
        ("tokenizer_config.json", '{"tokenizer_class": "Qwen2Tokenizer"}', "lacks <im_start>"),
        ("vocab.json", '{"a": 0', r"vocab\.json, merges\.txt, tokenizer_config\.json: tokenizer not readable"),
        ("vocab.json", '{"a": 0}', r"vocab\.json, merges\.txt, tokenizer_config\.json: tokenizer not readable"),
    ],
)
def test_a_wrong_or_missing_tokenizer_file_is_named(
    bpe_directory: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    directory = shutil.copytree(bpe_directory, tmp_path / "checkpoint")
    (directory / name).unlink() if content is None else (directory / name).write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        Processor.from_pretrained(directory)
    assert str(directory) in str(caught.value)


def test_added_tokens_that_would_move_are_refused(bpe_directory: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(bpe_directory, tmp_path / "checkpoint")
    vocabulary = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    write_json(directory / "vocab.json", vocabulary | {"one word more": len(vocabulary)})
    with pytest.raises(CheckpointError, match=r"gets id 151644, tokenizer_config\.json has 151643: vocab\.json"):
        Processor.from_pretrained(directory)


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
    with pytest.raises(CheckpointError, match=r"tokenizer\.json.*: tokenizer not readable"):
        Processor.from_pretrained(tmp_path)
    build_tokenizer().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"no eos_token, which tokenizer_config\.json should name"):
        Processor.from_pretrained(tmp_path)
    build_tokenizer("<im_start>", "<im_col>").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="lacks <im_patch>, <im_end>"):
        Processor.from_pretrained(tmp_path)


def test_actions_as_tokens_halve_the_reply_and_read_back_as_the_same_text(released: PreTrainedTokenizerFast) -> None:
    text, token = (Processor(ImageProcessor(), released, encoding) for encoding in ("text", "token"))
    chunk = np.random.default_rng(0).integers(0, 256, (8, 7))
    reply = reasoning_reply(format_depth(range(100)), format_trace([(0, 255), (17, 4)] * 2), format_actions(chunk))
    ids = token.encode_reply(reply)
    assert len(ids) < 0.6 * len(text.encode_reply(reply))
    assert token.decode(ids) == " " + reply == text.decode(text.encode_reply(reply))
    symbols = set(released.convert_tokens_to_ids(list(SYMBOLS)))
    assert [number for number in ids if number in symbols] == released.convert_tokens_to_ids(
        [SYMBOLS[number] for number in chunk.ravel()]
    )


@settings(deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=14), min_size=1, max_size=9))
def test_any_chunk_survives_as_tokens_and_spans_say_where_its_symbols_are(
    released: PreTrainedTokenizerFast, rows: list[list[int]]
) -> None:
    processor = Processor(ImageProcessor(), released, "token")
    reply = f"is [{', '.join(format_actions(row) for row in rows)}]."
    ids, spans = processor.reply_tokens(reply)
    assert processor.decode(ids) == " " + reply
    spelled = [reply[start:end] for start, end in spans if reply[start:end] in SYMBOLS]
    assert spelled == [SYMBOLS[number] for row in rows for number in row]
    assert len(ids) == len(spans)


def test_actions_as_tokens_need_a_tokenizer_that_has_them() -> None:
    with pytest.raises(CheckpointError, match="256 of the 256 action symbols"):
        Processor(ImageProcessor(), build_tokenizer(*IMAGE_TOKENS)).with_action_encoding("token")
    with pytest.raises(CheckpointError, match="action_encoding is 'words'"):
        Processor(ImageProcessor(), build_tokenizer(*IMAGE_TOKENS)).with_action_encoding("words")


def test_the_encoding_of_actions_comes_from_the_checkpoints_config(
    released: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    Processor(ImageProcessor(), released).save_pretrained(tmp_path)
    assert Processor.from_pretrained(tmp_path).action_encoding == "text"
    MolmoActConfig(action_encoding="token").save_pretrained(tmp_path)
    assert Processor.from_pretrained(tmp_path).action_encoding == "token"
