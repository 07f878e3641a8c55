"""Multimodal question-answer pairs to mix into training: a JSONL file beside the images it names.

    {"images": ["images/0001.jpg"], "question": "What is on the table?", "answer": "A red cube."}

Paths are relative to the file; a pair may have no image, or several.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from molmoact_training.errors import DatasetError

FIELDS = ("images", "question", "answer")


class QuestionAnswer(NamedTuple):
    """images: uint8 RGB [H, W, 3] each."""

    images: list[NDArray[np.uint8]]
    question: str
    answer: str


class _Pair(NamedTuple):
    images: tuple[Path, ...]
    question: str
    answer: str


class QuestionAnswers:
    """The pairs of a file; images are decoded when they are asked for. Safe to share by fork."""

    def __init__(self, path: str | Path) -> None:
        """Checks every line and the header of every image. Raises DatasetError naming file and line at fault."""
        self.path = Path(path)
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{self.path}: not readable: {error}") from error
        self._pairs = [
            _pair(line, self.path.parent, f"{self.path}:{number}")
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
        if not self._pairs:
            raise DatasetError(f"{self.path}: has no question-answer pairs, expected one JSON object in a line")

        together: dict[Any, list[int]] = {}
        for index, pair in enumerate(self._pairs):
            together.setdefault(pair.images or index, []).append(index)
        self.groups = list(together.values())  # pairs that show the same images, which training shows once

    def __len__(self) -> int:
        return len(self._pairs)

    def text(self, index: int) -> tuple[str, str]:
        """Question and answer of a pair, without decoding its images."""
        return self._pairs[index].question, self._pairs[index].answer

    def __getitem__(self, index: int) -> QuestionAnswer:
        """Raises DatasetError naming an image that cannot be decoded, although its header could be read."""
        pair = self._pairs[index]
        return QuestionAnswer([_decoded(path) for path in pair.images], pair.question, pair.answer)


def _pair(line: str, directory: Path, where: str) -> _Pair:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: not readable as JSON: {error}") from error
    if not isinstance(content, dict) or sorted(content) != sorted(FIELDS):
        found = sorted(content) if isinstance(content, dict) else content
        raise DatasetError(f"{where}: {found!r}, expected an object with {', '.join(FIELDS)}")
    for name in ("question", "answer"):
        if not (isinstance(content[name], str) and content[name].strip()):
            raise DatasetError(f"{where}: {name} is {content[name]!r}, expected text")
    return _Pair(_images(content["images"], directory, where), content["question"], content["answer"])


def _images(names: Any, directory: Path, where: str) -> tuple[Path, ...]:
    if not (isinstance(names, list) and all(isinstance(name, str) and name for name in names)):
        raise DatasetError(f"{where}: images is {names!r}, expected a list of paths")
    paths = tuple(directory / name for name in names)
    for path in paths:
        try:
            with Image.open(path):
                pass
        except (OSError, ValueError) as error:
            raise DatasetError(f"{where}: {path}: not readable as an image: {error}") from error
    return paths


def _decoded(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not readable as an image: {error}") from error
