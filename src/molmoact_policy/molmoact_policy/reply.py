"""What a reply says: depth codes, trace and actions.

`parse_actions`, `parse_traces` and `parse_depths` are lenient in exactly the released parser's way, which turns an
unknown symbol into the most negative action and drops a cut-off row without a word. `parse_reply` is what may move a
robot: it accepts a complete, well-formed reply or says why not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_policy.actions import BIN_OF, ActionStatistics, decode_bins
from molmoact_policy.embodiment import ROW
from molmoact_policy.errors import ReplyError
from molmoact_policy.symbols import is_ordinary_token

DEPTH_TOKENS = 100
DEPTH_CODES = 128
MAX_TRACE_POINTS = 5
TRACE_RANGE = 255
HIGHEST_BIN = 254  # bin 255 decodes to the same value

DEPTH = re.compile(r"<DEPTH_START>.*?<DEPTH_END>", re.DOTALL)
DEPTH_TOKEN = re.compile(r"<DEPTH_(\d+)>")
DEPTH_STRICT = re.compile(r"<DEPTH_START>((?:<DEPTH_\d+>)*)<DEPTH_END>")
INNERMOST = re.compile(r"\[([^\[\]]*)\]")
ONE_LEVEL = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]")
NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?")
CHUNK = re.compile(r"\[\s*(\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])*)\s*\]|(\[[^\[\]]*\])")


@dataclass(frozen=True)
class Reply:
    """A complete reply. Without its own reasoning (steered), depth_codes and traces are None."""

    depth_codes: list[int] | None
    traces: list[list[tuple[int, int]]] | None  # of two arms, left and right; the released fine-tune wording's twice
    actions: NDArray[np.float64]  # [N, D] in the dataset's units

    @property
    def trace(self) -> list[tuple[int, int]] | None:
        """The one that is shown: the first."""
        return None if self.traces is None else self.traces[0]


def parse_actions(text: str, statistics: ActionStatistics) -> NDArray[np.float64]:
    """All action rows found anywhere in the text, in order, [N, D] in the dataset's units; official semantics.

    A row is an innermost [...] group of exactly D parts that are not plain ASCII. A part that is no symbol is read as
    the most positive bin if it is an ordinary token of Qwen2's vocabulary, and as the most negative one if not.
    """
    rows = [_parts(group) for group in INNERMOST.findall(text)]
    rows = [row for row in rows if len(row) == statistics.dimensions and not all(part.isascii() for part in row)]
    bins = np.array([[_lenient_bin(part) for part in row] for row in rows], int)
    return statistics.unnormalise(decode_bins(bins.reshape(-1, statistics.dimensions)))


def parse_traces(text: str) -> list[list[list[int | float]]]:
    """All traces, each a list of [x, y]; official semantics: a bad point rejects its block, ranges are not checked."""
    traces = []
    for block in ONE_LEVEL.findall(text):
        groups = [group for group in INNERMOST.findall(block) if group.strip()] if "[" in block else [block]
        points = [_point(group) for group in groups]
        if points and all(point is not None for point in points):
            traces.append([point for point in points if point is not None])
    return traces


def parse_depths(text: str) -> list[str]:
    """All <DEPTH_START>...<DEPTH_END> strings with their tags; official semantics: the content is not looked at."""
    return DEPTH.findall(text)


def parse_reply(text: str, statistics: ActionStatistics, *, steered: bool = False, rows: int | None = None) -> Reply:
    """The reply, if all of it is there and well-formed.

    steered: the reply answers the steering prompt and need not hold depth and trace. rows: how many action rows the
    checkpoint was trained to write, when known. Raises ReplyError with the reason and the parts that did parse.
    """
    problems: list[str] = []
    depth_codes = _attempt(problems, _strict_depth, text) if not steered or parse_depths(text) else None
    traces = _attempt(problems, _strict_traces, text, statistics.dimensions // ROW) if not steered else None
    actions = _attempt(problems, _strict_actions, text, statistics, rows)
    if problems or actions is None:
        raise ReplyError("; ".join(problems), text, depth_codes, traces and traces[0])
    return Reply(depth_codes, traces, actions)


def _attempt(problems: list[str], parse: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return parse(*arguments)
    except ReplyError as error:
        problems.append(str(error))
        return None


def _strict_depth(text: str) -> list[int]:
    found = DEPTH_STRICT.findall(text)
    if len(found) != 1 or len(parse_depths(text)) != 1:
        raise ReplyError(f"depth: {len(found)} well-formed depth strings, expected 1")
    codes = [int(code) for code in DEPTH_TOKEN.findall(found[0])]
    if len(codes) != DEPTH_TOKENS:
        raise ReplyError(f"depth: {len(codes)} codes, expected {DEPTH_TOKENS}")
    if max(codes) >= DEPTH_CODES:
        raise ReplyError(f"depth: code {max(codes)} outside 0..{DEPTH_CODES - 1}")
    return codes


def _strict_traces(text: str, arms: int) -> list[list[tuple[int, int]]]:
    traces = parse_traces(text)
    if not traces:
        raise ReplyError("trace: none found")
    if len(traces) < arms:
        raise ReplyError(f"trace: {len(traces)} found, expected one for each of {arms} arms")
    for points in traces:
        if len(points) > MAX_TRACE_POINTS:
            raise ReplyError(f"trace: {len(points)} points, expected 1 to {MAX_TRACE_POINTS}")
        for x, y in points:
            if not (isinstance(x, int) and isinstance(y, int) and 0 <= x <= TRACE_RANGE and 0 <= y <= TRACE_RANGE):
                raise ReplyError(f"trace: point [{x}, {y}] outside 0..{TRACE_RANGE} or not whole")
    return [[(int(x), int(y)) for x, y in points] for points in traces]


def _strict_actions(text: str, statistics: ActionStatistics, rows: int | None) -> NDArray[np.float64]:
    start = text.find("[", _end_of_traces(text))
    if start < 0:
        raise ReplyError("action: none found")
    chunk = CHUNK.match(text, start)
    if chunk is None:
        raise ReplyError("action: the list is not closed or not well-formed (cut off?)")
    if text[chunk.end() :].strip(". \n"):
        raise ReplyError(f"action: unexpected text after it: {text[chunk.end() :].strip()[:40]!r}")
    groups = [_parts(group) for group in INNERMOST.findall(chunk.group())]
    if rows is not None and len(groups) != rows:
        raise ReplyError(f"action: {len(groups)} rows, expected {rows}")
    bins = [[_bin(part, i) for part in group] for i, group in enumerate(groups)]
    for i, row in enumerate(bins):
        if len(row) != statistics.dimensions:
            raise ReplyError(f"action: row {i} has {len(row)} values, expected {statistics.dimensions}")
    return statistics.unnormalise(decode_bins(np.array(bins)))


def _end_of_traces(text: str) -> int:
    ends = [block.end() for block in ONE_LEVEL.finditer(text) if parse_traces(block.group())]
    return max(ends, default=0)


def _bin(symbol: str, row: int) -> int:
    if symbol not in BIN_OF:
        raise ReplyError(f"action: row {row} holds {symbol[:20]!r}, which is not an action symbol")
    return BIN_OF[symbol]


def _lenient_bin(part: str) -> int:
    if part in BIN_OF:
        return BIN_OF[part]
    # The released parser takes a token's distance from the end of the vocabulary and clips it.
    return HIGHEST_BIN if is_ordinary_token(part) else 0


def _parts(group: str) -> list[str]:
    return [part.strip().strip("\"'").strip() for part in group.split(",")]


def _point(group: str) -> list[int | float] | None:
    parts = _parts(group)
    if len(parts) != 2 or not all(NUMBER.fullmatch(part) for part in parts):
        return None
    return [int(number) if (number := float(part)).is_integer() else number for part in parts]
