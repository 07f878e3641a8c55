"""Every prompt and answer, word for word as the release has it."""

import json
from pathlib import Path

import pytest
from molmoact_policy.prompts import (
    chat,
    depth_prompt,
    depth_reply,
    finetune_reasoning_reply,
    format_depth,
    format_trace,
    reasoning_prompt,
    reasoning_reply,
    steering_prompt,
    steering_reply,
)

EVALUATION = json.loads((Path(__file__).parent / "data" / "eval_cases.json").read_text())

# The released texts for the task "put the bowl in the sink".
REASONING_ONE_IMAGE = (
    "The task is put the bowl in the sink. What is the action that the robot should take. To figure out the action "
    "that the robot should take to put the bowl in the sink, let's think through it step by step. First, what is the "
    "depth map for this image? Second, what is the trajectory of the end effector? Based on the depth map of the image "
    "and the trajectory of the end effector, what is the action that the robot should take?"
)
REASONING_SEVERAL_IMAGES = (
    "The task is put the bowl in the sink. What is the action that the robot should take. To figure out the action "
    "that the robot should take to put the bowl in the sink, let's think through it step by step. First, what is the "
    "depth map for the first image? Second, what is the trajectory of the end effector in the first image? Based on "
    "the depth map of the first image and the trajectory of the end effector in the first image, along with other "
    "images from different camera views as additional information, what is the action that the robot should take?"
)
STEERING_ONE_IMAGE = (
    "The task is put the bowl in the sink. Notice that the trajectory of the end effector is annotated on the image. "
    "Based on the trajectory annotated on the image, what is the action that the robot should take?"
)
STEERING_SEVERAL_IMAGES = (
    "The task is put the bowl in the sink. Notice that the trajectory of the end effector is annotated on the first "
    "image. Based on the trajectory annotated on the image, along with other images from different camera views as "
    "additional information, what is the action that the robot should take?"
)


@pytest.mark.parametrize(
    ("images", "reasoning", "steering"),
    [
        (1, REASONING_ONE_IMAGE, STEERING_ONE_IMAGE),
        (2, REASONING_SEVERAL_IMAGES, STEERING_SEVERAL_IMAGES),
        (3, REASONING_SEVERAL_IMAGES, STEERING_SEVERAL_IMAGES),
    ],
)
def test_prompts_are_the_released_ones_for_so_many_images(images: int, reasoning: str, steering: str) -> None:
    assert reasoning_prompt("put the bowl in the sink", images=images) == reasoning
    assert steering_prompt("put the bowl in the sink", images=images) == steering


def test_two_images_are_the_default() -> None:
    assert reasoning_prompt("put the bowl in the sink") == REASONING_SEVERAL_IMAGES
    assert steering_prompt("put the bowl in the sink") == STEERING_SEVERAL_IMAGES


def test_prompts_equal_those_recorded_from_the_released_evaluation() -> None:
    assert reasoning_prompt("t", images=1) == EVALUATION["prompt_plain"]
    assert steering_prompt("t", images=1) == EVALUATION["prompt_steer"]


def test_an_instruction_goes_in_as_it_is() -> None:
    instruction = "  Pick up {the} 100 % RED cube.\n"
    assert reasoning_prompt(instruction, images=1).count(instruction) == 2
    assert steering_prompt(instruction, images=1).count(instruction) == 1


def test_the_auxiliary_depth_question_and_its_answer() -> None:
    assert depth_prompt("put the bowl in the sink") == (
        "The task is put the bowl in the sink. What is the depth map for the image?"
    )
    assert depth_reply(format_depth([3, 127])) == (
        "The depth map of the image is <DEPTH_START><DEPTH_3><DEPTH_127><DEPTH_END>"
    )


def test_the_chat_wrapper() -> None:
    assert chat("go") == "User: go Assistant:"


def test_depth_and_trace_as_text() -> None:
    assert format_depth([3, 127]) == "<DEPTH_START><DEPTH_3><DEPTH_127><DEPTH_END>"
    assert format_trace([(1, 2), (30, 40)]) == "[[1, 2], [30, 40]]"
    assert format_trace([(0, 255)]) == "[[0, 255]]"


def test_the_answer_of_the_released_multi_view_checkpoints() -> None:
    assert reasoning_reply("<D>", "[[1, 2]]", "[a]") == (
        "The depth map of the first image is <D>. The trajectory of the end effector in the first image is [[1, 2]]. "
        "Based on these information, along with other images from different camera views as additional information, "
        "the action that the robot should take is [a]."
    )


def test_the_answers_of_the_released_fine_tune_loader() -> None:
    assert finetune_reasoning_reply("<D>", "[[1, 2]]", "[a]") == (
        "The depth map of the image is <D>. The trajectory of the left end effector is [[1, 2]]. The trajectory of the "
        "right end effector is [[1, 2]]. Based on this information, the action that the robot should take is [a]."
    )
    assert steering_reply("[a]") == (
        "Based on the image and the annotated trajectory of the end effector, the action that the robot should take is "
        "[a]."
    )
