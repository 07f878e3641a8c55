"""The questions a checkpoint was trained with, word for word, and the answers training writes for them.

Sources: the release's HF and vLLM tests, LIBERO and SimplerEnv evaluation and fine-tune loader; the multi-view answer
from the model card. Wording counts: a checkpoint knows only these. What the release did not publish, the auxiliary
question about the trace and all that is about two arms, is worded here in the manner of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

DEPTH_START = "<DEPTH_START>"
DEPTH_END = "<DEPTH_END>"

# The released multi-view checkpoints' answer (model card); then the same for two arms.
RELEASED_REPLIES = (
    "The depth map of the first image is {depth}. The trajectory of the end effector in the first image is {trace}. "
    "Based on these information, along with other images from different camera views as additional information, the "
    "action that the robot should take is {action}.",
    "The depth map of the first image is {depth}. The trajectory of the left end effector in the first image is "
    "{left_trace}. The trajectory of the right end effector in the first image is {right_trace}. Based on these "
    "information, along with other images from different camera views as additional information, the action that the "
    "robot should take is {action}.",
)
# The released fine-tune loader's: worded for two arms, with one arm's trace twice.
FINETUNE_REPLIES = (
    "The depth map of the image is {depth}. The trajectory of the left end effector is {trace}. The trajectory of the "
    "right end effector is {trace}. Based on this information, the action that the robot should take is {action}.",
    "The depth map of the image is {depth}. The trajectory of the left end effector is {left_trace}. The trajectory of "
    "the right end effector is {right_trace}. Based on this information, the action that the robot should take is "
    "{action}.",
)
WORDINGS = {"released": RELEASED_REPLIES, "finetune": FINETUNE_REPLIES}  # by number of arms - 1
STEERING_REPLY = (
    "Based on the image and the annotated trajectory of the end effector, the action that the robot should take is "
    "{action}."
)

# How the prompts name the traces of one arm, and of two: the latter is ours.
ARMS_ASKED = (
    "what is the trajectory of the end effector",
    "what are the trajectories of the left and the right end effector",
)
ARMS_NOTICED = (
    ("the trajectory of the end effector is", "the trajectory"),
    ("the trajectories of the left and the right end effector are", "the trajectories"),
)


def chat(prompt: str) -> str:
    """The chat wrapper of training and inference; the answer follows after one space and ends with EOS."""
    return f"User: {prompt} Assistant:"


def reasoning_prompt(instruction: str, images: int = 2, arms: int = 1) -> str:
    """Asks for depth, trace and action. `images`: how many pictures are shown; 1 is the wording of pretraining."""
    opening = (
        f"The task is {instruction}. What is the action that the robot should take. To figure out the action that the "
        f"robot should take to {instruction}, let's think through it step by step. "
    )
    asked = ARMS_ASKED[arms - 1]
    followed = "trajectory of the end effector" if arms == 1 else "trajectories of the end effectors"
    if images == 1:
        return opening + (
            f"First, what is the depth map for this image? Second, {asked}? Based on the depth map of the image and "
            f"the {followed}, what is the action that the robot should take?"
        )
    return opening + (
        f"First, what is the depth map for the first image? Second, {asked} in the first image? Based on the depth map "
        f"of the first image and the {followed} in the first image, along with other images from different camera "
        "views as additional information, what is the action that the robot should take?"
    )


def steering_prompt(instruction: str, images: int = 2, arms: int = 1) -> str:
    """Asks for the action only, along the trace of each arm that is drawn on the (first) image."""
    noticed, followed = ARMS_NOTICED[arms - 1]
    if images == 1:
        return (
            f"The task is {instruction}. Notice that {noticed} annotated on the image. Based on {followed} annotated "
            "on the image, what is the action that the robot should take?"
        )
    return (
        f"The task is {instruction}. Notice that {noticed} annotated on the first image. Based on {followed} annotated "
        "on the image, along with other images from different camera views as additional information, what is the "
        "action that the robot should take?"
    )


def depth_prompt(instruction: str) -> str:
    """The auxiliary depth question of pretraining (paper, figure 15)."""
    return f"The task is {instruction}. What is the depth map for the image?"


def depth_reply(depth: str) -> str:
    """The answer to `depth_prompt`."""
    return f"The depth map of the image is {depth}"


def trace_prompt(instruction: str, arms: int = 1) -> str:
    """The auxiliary question about the trace; the wording is ours."""
    return f"The task is {instruction}. W{ARMS_ASKED[arms - 1][1:]} in the image?"


def trace_template(arms: int = 1) -> str:
    """The answer to `trace_prompt`, with the fields of `reply_template`; the wording is ours."""
    if arms == 1:
        return "The trajectory of the end effector in the image is {trace}"
    return (
        "The trajectory of the left end effector in the image is {left_trace}. The trajectory of the right end "
        "effector in the image is {right_trace}"
    )


def pointing_prompt(name: str) -> str:
    """Asks where an object is in the (first) image, as Molmo is asked to point; answered by `format_trace`."""
    return f"Point to the {name}."


def reply_template(steered: bool = False, *, arms: int = 1, wording: str = "released") -> str:
    """The answer to `reasoning_prompt` or `steering_prompt` as a format string: the one description of a reply.

    Its fields, in this order, are {depth}, {trace} (of two arms {left_trace} and {right_trace}) and {action}; of a
    steering reply {action} only. They take the texts of `format_depth`, `format_trace` and `actions.format_actions`.
    wording: one of WORDINGS. Two arms are worded in the manner of each, which is ours. Raises ValueError for a wording
    that is none.
    """
    if wording not in WORDINGS:
        raise ValueError(f"wording is {wording!r} ({', '.join(WORDINGS)})")
    if steered:
        return STEERING_REPLY
    return WORDINGS[wording][arms - 1]


def reasoning_reply(depth: str, trace: str, action: str) -> str:
    """The answer of the released multi-view checkpoints to `reasoning_prompt`."""
    return reply_template().format(depth=depth, trace=trace, action=action)


def finetune_reasoning_reply(depth: str, trace: str, action: str) -> str:
    """The released fine-tune loader's answer to `reasoning_prompt`."""
    return reply_template(wording="finetune").format(depth=depth, trace=trace, action=action)


def steering_reply(action: str) -> str:
    """The released fine-tune loader's answer to `steering_prompt`."""
    return STEERING_REPLY.format(action=action)


def format_depth(codes: Sequence[int]) -> str:
    """Depth codes 0..127, row by row, as text: one LLM token per code and two around them."""
    return DEPTH_START + "".join(f"<DEPTH_{code}>" for code in codes) + DEPTH_END


def format_trace(points: Sequence[tuple[int, int]]) -> str:
    """Points (x right, y down, 0..255) as text: [[x, y], [x, y]]."""
    return "[" + ", ".join(f"[{x}, {y}]" for x, y in points) + "]"
