from pathlib import Path

import pytest
import torch
from franka_sim.scene import SceneConfig
from franka_sim.tasks import TaskSpec
from molmoact_policy.actions import SYMBOLS
from molmoact_policy.tokenizer import DEPTH_TOKENS
from molmoact_training.nano_checkpoint import VOCABULARY_SIZE, build_tokenizer, place_numbers, place_patches

SCENE = Path(__file__).parents[2] / "config/scenes/tabletop.yaml"


def test_every_action_bin_and_depth_code_is_one_token():
    tokenizer = build_tokenizer(images=2)
    for token in [*SYMBOLS, *DEPTH_TOKENS]:
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1, token


def test_image_tokens_follow_the_vocabulary_so_that_the_head_cannot_write_them():
    tokenizer = build_tokenizer(images=2)
    assert tokenizer.convert_tokens_to_ids("<im_start>") == VOCABULARY_SIZE
    assert tokenizer.convert_tokens_to_ids("<DEPTH_127>") < VOCABULARY_SIZE


@pytest.mark.parametrize("text", ["", "pick up the red cube", "Ärger — 立方体 \n\t <im_start", "[[1, 2], [3"])
def test_any_text_survives_the_tokenizer(text):
    tokenizer = build_tokenizer(images=2)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("task", ["pick:yellow", "place:green:red", "push:blue:left", "push:red:right"])
def test_every_word_of_an_instruction_is_one_token(task):
    tokenizer = build_tokenizer(images=2)
    instruction = TaskSpec.parse(task, SceneConfig.load(SCENE)).instruction
    assert len(tokenizer.encode(instruction, add_special_tokens=False)) == len(instruction.split())


def test_patches_start_at_places_that_are_alike_where_they_are_near():
    table = torch.nn.Parameter(torch.zeros(64, 192))
    place_patches(table)
    places = table.detach().view(8, 8, 192)
    assert places.std() == pytest.approx(1.0, rel=0.01)
    for neighbour in (places[4, 5], places[5, 4]):
        assert (places[4, 4] - neighbour).norm() < (places[4, 4] - places[7, 7]).norm()
    assert torch.pdist(table.detach()).min() > 1.0


def test_numbers_start_alike_where_they_are_near_and_other_rows_stay():
    torch.manual_seed(0)
    start = 0.02 * torch.randn(300, 192)
    table = torch.nn.Parameter(start.clone())
    place_numbers(table, range(20, 276))
    numbers = table.detach()[20:276]
    assert numbers.std() == pytest.approx(start.std().item(), rel=0.01)
    assert all(
        (one - two).norm() < (one - far).norm()
        for one, two, far in zip(numbers, numbers[1:], numbers[9:], strict=False)
    )
    assert torch.equal(table[:20], start[:20]) and torch.equal(table[276:], start[276:])
