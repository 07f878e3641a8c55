"""3Dconnexion SpaceMouse over HID: its reports, and how to find one.

Axes as the device sends them: x to the right, y towards the person, z down; rotations about those. Full scale is 350.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from teleop_recorder.teleop import DeviceLost, TeleopError

FULL_SCALE = 350
TRANSLATION, ROTATION, BUTTONS = 1, 2, 3  # report numbers
REPORT_SIZE = 64

CONNEXION, LOGITECH = 0x256F, 0x046D
# Logitech makes other things as well; these are its 3D mice. Whatever else 3Dconnexion sells is one.
LOGITECH_PRODUCTS = {
    0xC603: "SpaceMouse Plus XT",
    0xC605: "CADman",
    0xC606: "SpaceMouse Classic",
    0xC621: "SpaceBall 5000",
    0xC623: "SpaceTraveler",
    0xC625: "SpacePilot",
    0xC626: "SpaceNavigator",
    0xC627: "SpaceExplorer",
    0xC628: "SpaceNavigator for Notebooks",
    0xC629: "SpacePilot Pro",
    0xC62B: "SpaceMouse Pro",
}
MULTI_AXIS_CONTROLLER = (0x01, 0x08)  # HID usage page and usage
UNKNOWN_USAGE = (0, 0)  # some builds of hidapi do not tell


@dataclass(frozen=True)
class SpaceMouseState:
    """Deflections x, y, z, and about x, y, z, -1 .. 1; buttons as bits, the first is 1."""

    axes: tuple[float, ...] = (0.0,) * 6
    buttons: int = 0

    def pressed(self, button: int) -> bool:
        """Whether button number `button`, from 0, is down."""
        return bool(self.buttons >> button & 1)


def parse_report(state: SpaceMouseState, report: bytes) -> SpaceMouseState:
    """The state after a report. Reports of other kinds (battery, ...), or too short, change nothing.

    Older devices send translation and rotation in two reports, newer ones both in the first.
    """
    if not report:
        return state
    number, content = report[0], report[1:]
    if number == TRANSLATION and len(content) >= 12:
        return replace(state, axes=_numbers(content, 6))
    if number == TRANSLATION and len(content) >= 6:
        return replace(state, axes=(*_numbers(content, 3), *state.axes[3:]))
    if number == ROTATION and len(content) >= 6:
        return replace(state, axes=(*state.axes[:3], *_numbers(content, 3)))
    if number == BUTTONS and content:
        return replace(state, buttons=int.from_bytes(content[:4], "little"))
    return state


def find(devices: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first SpaceMouse among what hidapi enumerates, None when there is none."""
    for device in devices:
        known = device["vendor_id"] == CONNEXION or (
            device["vendor_id"] == LOGITECH and device["product_id"] in LOGITECH_PRODUCTS
        )
        usage = (device.get("usage_page", 0), device.get("usage", 0))
        if known and usage in (MULTI_AXIS_CONTROLLER, UNKNOWN_USAGE):
            return device
    return None


class SpaceMouse:
    """An open device. Raises TeleopError when hidapi or a device is missing, or may not be opened."""

    def __init__(self, hid: ModuleType | None = None) -> None:
        hid = hid or _hidapi()
        found = find(hid.enumerate())
        if found is None:
            raise TeleopError("no SpaceMouse found: plug one in, or its receiver (lsusb shows 256f:… or 046d:…)")
        self.name = found.get("product_string") or "SpaceMouse"
        self._device = hid.device()
        try:
            self._device.open_path(found["path"])
        except OSError as error:
            raise TeleopError(
                f"{self.name}: {error}: this user may not open it, see the udev rule in docs/how-to/teleoperate.md"
            ) from error
        self._device.set_nonblocking(True)
        self._state = SpaceMouseState()

    def read(self) -> tuple[SpaceMouseState, bool]:
        """(the state, whether a report has come since the last call). Raises DeviceLost when it was unplugged."""
        heard = False
        try:
            while report := self._device.read(REPORT_SIZE):
                self._state = parse_report(self._state, bytes(report))
                heard = True
        except (OSError, ValueError) as error:
            raise DeviceLost(f"{self.name} was unplugged: {error}") from error
        return self._state, heard

    def close(self) -> None:
        self._device.close()


def _numbers(content: bytes, count: int) -> tuple[float, ...]:
    raw = struct.unpack_from(f"<{count}h", content)
    return tuple(min(max(value / FULL_SCALE, -1.0), 1.0) for value in raw)


def _hidapi() -> ModuleType:
    try:
        import hid
    except ImportError as error:
        raise TeleopError(f"the library hidapi is missing ({error}): pip install hidapi") from error
    return hid
