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
    reply_template,
    steering_prompt,
    steering_reply,
    trace_prompt,
    trace_template,
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


def test_two_arms_are_asked_for_in_the_same_words_but_for_what_there_are_two_of() -> None:
    for images in (1, 2):
        reasoning = reasoning_prompt("t", images, arms=2)
        assert "what are the trajectories of the left and the right end effector" in reasoning
        singular = reasoning.replace(
            "what are the trajectories of the left and the right end effector",
            "what is the trajectory of the end effector",
        ).replace("trajectories of the end effectors", "trajectory of the end effector")
        assert singular == reasoning_prompt("t", images)
        steering = steering_prompt("t", images, arms=2)
        assert steering.startswith(
            "The task is t. Notice that the trajectories of the left and the right end effector are annotated on the "
        )
        assert steering.endswith(steering_prompt("t", images)[-40:])


def test_the_auxiliary_trace_question_is_answered_with_the_trace_alone() -> None:
    assert trace_prompt("t") == "The task is t. What is the trajectory of the end effector in the image?"
    assert trace_template().format(trace="[[1, 2]]") == "The trajectory of the end effector in the image is [[1, 2]]"
    assert trace_prompt("t", arms=2) == (
        "The task is t. What are the trajectories of the left and the right end effector in the image?"
    )
    assert trace_template(arms=2).count("{") == 2


def test_an_unknown_wording_is_refused() -> None:
    with pytest.raises(ValueError, match="wording is 'mine' \\(released, finetune\\)"):
        reply_template(wording="mine")
