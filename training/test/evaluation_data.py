"""A small annotated dataset with everything known about it, and policies that answer from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from molmoact_policy.actions import decode_bins, encode_bins
from molmoact_policy.errors import ReplyError
from molmoact_policy.policy import Observation, Prediction
from molmoact_training.annotated_dataset import AnnotatedDataset, Frame, finish_dataset, write_shard

ROWS, EPISODES, FRAMES = 8, 4, 20
EMBODIMENT = """\
robot:
  frame: base
  rotation: rpy
  translation_scale: 0.05
  rotation_scale: 0.5
  gripper_open: low
  step_period: 0.1
  rows: 8
  image_size: [48, 32]
  cameras: [front, wrist]
  confirmed: true
"""


def make_dataset(directory: Path, edit: Callable[[Frame], Frame] = lambda frame: frame) -> Path:
    """Episodes whose hand closes after frame 7 + episode and opens after frame 16, with codes that change by ten cells
    from frame to frame; `edit` spoils it."""
    directory.mkdir()
    (directory / "robot.yaml").write_text(EMBODIMENT)
    for episode in range(EPISODES):
        steps = steps_of(episode)
        frames = [frame_of(episode, number, steps) for number in range(FRAMES)]
        write_shard(directory, episode, map(edit, frames))
    finish_dataset(directory, "robot", directory / "robot.yaml", {"arms": 1})
    return directory


def steps_of(episode: int) -> np.ndarray:
    """[FRAMES, 7] in the dataset's units; gripper 1 is closed."""
    steps = np.random.default_rng(episode).uniform(-0.5, 0.5, (FRAMES, 7)).astype(np.float32)
    steps[:, 6] = [7 + episode <= number < 16 for number in range(FRAMES)]
    return steps


def frame_of(episode: int, number: int, steps: np.ndarray) -> Frame:
    codes = np.zeros(100, np.uint8)
    codes[: 10 * (number % 10)] = 1 + number // 10
    return Frame(
        episode,
        number,
        f"pick up cube {episode}",
        [np.full((32, 48, 3), 10 * episode + number, np.uint8), np.zeros((32, 48, 3), np.uint8)],
        steps[np.minimum(number + np.arange(ROWS), FRAMES - 1)],
        codes,
        [np.array([(10 * number, 20), (200, 100 + episode)], np.uint8)],
    )


class Recited:
    """Answers with what the dataset says, changed by `change`; it knows the frame by the pictures' order."""

    depth_vqvae = None

    def __init__(self, directory: Path, change: Callable[[Prediction, int], Prediction] = lambda it, _: it) -> None:
        self._data = AnnotatedDataset(directory)
        self.statistics = self._data.statistics
        self.embodiment = self._data.embodiment
        self._change = change
        self._row_of = {
            (row.instruction, int(row.images[0].mean())): index
            for index, row in enumerate(self._data[index] for index in range(len(self._data)))
        }
        self.asked = 0

    def forget(self) -> None: ...

    def act(self, observation: Observation) -> Prediction:
        self.asked += 1
        index = self._row_of[observation.instruction, int(observation.images[0].mean())]
        row = self._data[index]
        prediction = Prediction(
            depth_codes=row.depth_codes.tolist(),
            trace=[(int(x), int(y)) for x, y in row.traces[0]],
            actions=row.actions.astype(np.float64),
            text="as recorded",
            token_ids=[0],
            latency=0.25,
            forward_passes=400,
        )
        return self._change(prediction, index)

    def codes_before(self, index: int) -> list[int]:
        """Those of the frame before in the episode, its own at the begin."""
        row = self._data[index]
        return (self._data[index - 1] if row.frame else row).depth_codes.tolist()

    def quantised(self, actions: np.ndarray) -> np.ndarray:
        """What the best reply in bins can say."""
        return self.statistics.unnormalise(decode_bins(encode_bins(self.statistics.normalise(actions))))


def refuse(_prediction: Prediction, _index: int) -> Prediction:
    raise ReplyError("action: none found", "nonsense")
