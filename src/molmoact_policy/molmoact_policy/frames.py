"""Which images belong together: the newest frame of every camera, taken at nearly the same moment and not too old."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from molmoact_policy.errors import ObservationError

# Enough to find, for the newest frame of a camera at 5 Hz, the frame of one at 30 Hz taken beside it.
FRAMES_KEPT = 8
SECOND = 1_000_000_000  # ns


@dataclass(frozen=True)
class Frame:
    """One image as it came; `stamp` in ns of the node's clock."""

    stamp: int
    message: Any


class FrameBuffer:
    """The last frames of every camera, in the order the checkpoint saw them in training. Thread-safe.

    Args:
        cameras: Names, in that order.
        sync_tolerance: s; largest distance between the stamps of one observation.
        max_image_age: s; largest age of an image that may reach the model.
    """

    def __init__(self, cameras: Sequence[str], sync_tolerance: float, max_image_age: float) -> None:
        self._frames: dict[str, deque[Frame]] = {camera: deque(maxlen=FRAMES_KEPT) for camera in cameras}
        self._sync_tolerance = sync_tolerance
        self._max_image_age = max_image_age
        self._lock = threading.Lock()

    def add(self, camera: str, stamp: int, message: Any) -> None:
        with self._lock:
            frames = self._frames[camera]
            # A clock that jumped back (a simulation that was reset, a bag that starts again): the old frames are void.
            if frames and stamp < frames[-1].stamp:
                frames.clear()
            frames.append(Frame(stamp, message))

    def clear(self) -> None:
        with self._lock:
            for frames in self._frames.values():
                frames.clear()

    def ages(self, now: int) -> dict[str, float | None]:
        """Age of every camera's newest image at `now` (ns), s; None before the first."""
        with self._lock:
            return {
                camera: (now - frames[-1].stamp) / SECOND if frames else None for camera, frames in self._frames.items()
            }

    def newest(self, now: int, not_before: int = 0) -> tuple[Frame, ...] | None:
        """The newest frames that belong together, in the order of the cameras; None while frames stamped
        `not_before` or later (ns) have yet to come.

        Raises ObservationError naming the camera whose images are missing, too old, from the future, or out of sync.
        """
        self._refuse_missing_or_old(now)
        with self._lock:
            # The camera that is behind decides; of the others the frame taken closest to its newest one counts.
            chosen = self._closest_to(min(frames[-1].stamp for frames in self._frames.values()))
        if min(frame.stamp for frame in chosen.values()) < not_before:
            return None
        self._refuse_out_of_sync(chosen)
        return tuple(chosen.values())

    def beside(self, moment: int) -> tuple[Frame, ...]:
        """The frames taken closest to `moment` (ns), before it or after, in the order of the cameras: for recordings,
        where what comes after is known as well.

        Raises ObservationError naming the camera whose images are missing, too far from `moment`, or out of sync.
        """
        self._refuse_missing(moment)
        with self._lock:
            chosen = self._closest_to(moment)
        for camera, frame in chosen.items():
            apart = abs(frame.stamp - moment) / SECOND
            if apart > self._max_image_age:
                raise ObservationError(
                    f"{camera} camera: closest image is {apart:.3f} s away, at most {self._max_image_age} s allowed"
                )
        self._refuse_out_of_sync(chosen)
        return tuple(chosen.values())

    def _closest_to(self, moment: int) -> dict[str, Frame]:
        return {
            camera: min(frames, key=lambda frame: abs(frame.stamp - moment)) for camera, frames in self._frames.items()
        }

    def _refuse_missing(self, now: int) -> dict[str, float]:
        """The ages, none of which is None."""
        ages = {}
        for camera, age in self.ages(now).items():
            if age is None:
                raise ObservationError(f"{camera} camera: no image yet")
            ages[camera] = age
        return ages

    def _refuse_missing_or_old(self, now: int) -> None:
        for camera, age in self._refuse_missing(now).items():
            if age > self._max_image_age:
                raise ObservationError(
                    f"{camera} camera: newest image is {age:.3f} s old, at most {self._max_image_age} s allowed"
                )
            if age < -self._max_image_age:
                raise ObservationError(
                    f"{camera} camera: newest image is stamped {-age:.3f} s in the future; are the clocks synchronised?"
                )

    def _refuse_out_of_sync(self, chosen: dict[str, Frame]) -> None:
        first = min(chosen, key=lambda camera: chosen[camera].stamp)
        last = max(chosen, key=lambda camera: chosen[camera].stamp)
        apart = (chosen[last].stamp - chosen[first].stamp) / SECOND
        if apart > self._sync_tolerance:
            raise ObservationError(
                f"{first} camera: image taken {apart:.3f} s before the {last} camera's, "
                f"at most {self._sync_tolerance} s allowed"
            )
