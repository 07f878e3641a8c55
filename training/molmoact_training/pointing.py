"""Where the gripper is in a picture, by Molmo-7B-D-0924 (paper, section 3.2; the rules are the release's).

Molmo's own code, which comes with its weights, needs transformers 4.46 to 4.53, and this workspace has a newer one. So
Molmo runs in a process of its own (`pointing_worker.py`), in whatever Python environment is named.
"""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from molmoact_training.errors import TrainingError

WORKER = Path(__file__).with_name("pointing_worker.py")
STOP_TIMEOUT_S = 10.0  # after its input ends; then it is killed
# One point. Several are written as <points x1= y1= ...>, which are no single gripper.
_POINT = re.compile(r'<point\s+x="\s*(\d+(?:\.\d+)?)\s*"\s+y="\s*(\d+(?:\.\d+)?)\s*"')


def parse_point(text: str, size: tuple[int, int]) -> tuple[float, float] | None:
    """The first single point of Molmo's answer as a whole pixel (x, y) of a picture of `size` (width, height).

    None where it names no single point, or one outside the picture: it counts in percent, 0..100.
    """
    found = _POINT.search(text)
    if found is None:
        return None
    percent = float(found[1]), float(found[2])
    if max(percent) > 100.0:
        return None
    return float(round(percent[0] / 100 * size[0])), float(round(percent[1] / 100 * size[1]))


class MolmoPointer:
    """Points at what a prompt asks for; a context manager, as it holds a process with the model in it.

    directory: Molmo-7B-D-0924 as it was downloaded, with its code. python: of the environment to run it in; None: this
    one. Raises TrainingError naming both when the model does not load.
    """

    def __init__(self, directory: Path, python: Path | None = None) -> None:
        if not (directory / "config.json").is_file():
            raise TrainingError(f"{directory}: has no config.json: expected Molmo-7B-D-0924 with its code")
        self._where = f"{directory} in {python or sys.executable}"
        try:
            self._process = subprocess.Popen(
                [str(python or sys.executable), str(WORKER), str(directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise TrainingError(f"{python}: cannot be started: {error}") from error
        self._read()

    def __call__(self, image: NDArray[np.uint8], prompt: str) -> tuple[float, float] | None:
        """RGB uint8 [H, W, 3] -> pixel (x, y), None where there is no single point. Raises TrainingError."""
        return parse_point(self.answer(image, prompt), (image.shape[1], image.shape[0]))

    def answer(self, image: NDArray[np.uint8], prompt: str) -> str:
        """What Molmo says about RGB uint8 [H, W, 3], greedy, at most 448 tokens. Raises TrainingError."""
        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG", compress_level=1)
        request = {"image": base64.b64encode(png.getvalue()).decode(), "prompt": prompt}
        stdin: IO[str] = self._process.stdin  # type: ignore[assignment]
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
        except (OSError, ValueError) as error:  # it has died, or was closed
            raise TrainingError(f"{self._where}: has ended: {error}") from error
        return str(self._read()["text"])

    def close(self) -> None:
        """End the process."""
        try:
            self._process.communicate(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def __enter__(self) -> MolmoPointer:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        stdout: IO[str] = self._process.stdout  # type: ignore[assignment]
        line = stdout.readline()
        reply = json.loads(line) if line else {"error": "ended without a word"}
        if "error" in reply:
            self.close()
            raise TrainingError(
                f"{self._where}: {reply['error']} (the code of Molmo-7B-D-0924 needs transformers 4.46 to 4.53: name "
                "the Python of an environment that has it)"
            )
        return reply
