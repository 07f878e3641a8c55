"""Named errors of the safety layer; every message names the thing at fault, what it was and what was expected."""

from __future__ import annotations

from enum import Enum


class BridgeError(Exception):
    """Base of this package's errors."""


class LimitError(BridgeError):
    """A limit is missing, not a number, or contradicts another one. The message begins with the limit's name."""


class MotionError(BridgeError):
    """The trajectory generator found no motion from the present state; the arm must be stopped."""


class RequestRefused(BridgeError):
    """An operator's request (mode, recovery, release) cannot be granted now; the message says why."""


class Refusal(Enum):
    """Why a chunk was not accepted. The value names the counter `refused_<value>` of BridgeStatus."""

    NOT_FINITE = "not_finite"
    UNKNOWN_ARM = "unknown_arm"
    WRONG_FRAME = "wrong_frame"
    STALE = "stale"
    OUT_OF_ORDER = "out_of_order"
    EMPTY = "empty"
    WRONG_TASK = "wrong_task"
    DELTA_TOO_LARGE = "delta_too_large"
    WRONG_MODE = "wrong_mode"
    # A malformed chunk of any other kind; BridgeStatus has no counter of its own for it, `chunks_refused` includes it.
    MALFORMED = "malformed"


class ChunkRefused(BridgeError):
    """A chunk breaks a rule and is dropped as a whole.

    Attributes: `refusal`, the rule it broke.
    """

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(f"{refusal.value}: {message}")
        self.refusal = refusal
