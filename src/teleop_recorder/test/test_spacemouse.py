"""Reports of 3D mice, and finding one, without a device."""

import struct
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from teleop_recorder.spacemouse import (
    FULL_SCALE,
    SpaceMouse,
    SpaceMouseState,
    find,
    parse_report,
)
from teleop_recorder.teleop import DeviceLost, TeleopError

AT_REST = SpaceMouseState()
COMPACT = {
    "vendor_id": 0x256F,
    "product_id": 0xC635,
    "usage_page": 1,
    "usage": 8,
    "path": b"/dev/hidraw0",
    "product_string": "Compact",
}


def report(number: int, *values: int) -> bytes:
    return bytes([number]) + struct.pack(f"<{len(values)}h", *values)


def test_translation_and_rotation_come_in_two_reports():
    state = parse_report(AT_REST, report(1, 350, -175, 0))
    state = parse_report(state, report(2, 0, 35, -350))
    assert state.axes == (1.0, -0.5, 0.0, 0.0, 0.1, -1.0)


def test_newer_devices_send_all_six_axes_in_one_report():
    assert parse_report(AT_REST, report(1, 350, 0, -350, 175, 0, 70)).axes == (1.0, 0.0, -1.0, 0.5, 0.0, 0.2)


def test_buttons_are_bits_and_leave_the_axes_alone():
    state = parse_report(SpaceMouseState((0.5,) * 6), bytes([3, 0b10, 0]))
    assert (state.pressed(0), state.pressed(1)) == (False, True)
    assert state.axes == (0.5,) * 6
    assert parse_report(state, bytes([3, 0, 0])).buttons == 0
    assert parse_report(AT_REST, bytes([3, 0, 0, 0, 0x40])).pressed(30)


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01\x00\x01", b"\x03", b"\x17\x64", b"\x02\x00\x01\x02\x03\x04"])
def test_reports_of_other_kinds_or_cut_short_change_nothing(data):
    state = SpaceMouseState((0.1,) * 6, 1)
    assert parse_report(state, data) == state


@given(st.binary(max_size=64))
def test_no_report_gives_more_than_full_deflection(data):
    state = parse_report(AT_REST, data)
    assert len(state.axes) == 6 and all(-1.0 <= value <= 1.0 for value in state.axes)


@given(st.lists(st.integers(-FULL_SCALE, FULL_SCALE), min_size=6, max_size=6))
def test_axes_keep_order_and_sign(values):
    assert parse_report(AT_REST, report(1, *values)).axes == tuple(value / FULL_SCALE for value in values)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, True),
        ({"usage_page": 0, "usage": 0}, True),  # a build of hidapi that does not tell
        ({"vendor_id": 0x046D, "product_id": 0xC626}, True),  # SpaceNavigator
        ({"vendor_id": 0x046D, "product_id": 0xC52B}, False),  # a receiver of ordinary mice
        ({"usage_page": 1, "usage": 6}, False),  # the keyboard in a SpaceMouse Enterprise
        ({"vendor_id": 0x1234}, False),
    ],
)
def test_only_3d_mice_are_found(changes, found):
    assert (find([COMPACT | changes]) is not None) == found


class FakeDevice:
    """The far side of hidapi."""

    def __init__(self, reports, refuses=False):
        self.reports, self.refuses, self.unplugged, self.closed = list(reports), refuses, False, False

    def open_path(self, path):
        if self.refuses:
            raise OSError("open failed")

    def set_nonblocking(self, value):
        assert value

    def read(self, size):
        if self.unplugged:
            raise OSError("read error")
        return list(self.reports.pop(0)) if self.reports else []

    def close(self):
        self.closed = True


def fake_hidapi(device, devices=(COMPACT,)):
    return SimpleNamespace(enumerate=lambda: list(devices), device=lambda: device)


def test_reading_takes_all_reports_that_have_come():
    device = FakeDevice([report(1, 350, 0, 0), bytes([3, 1]), report(1, 175, 0, 0)])
    mouse = SpaceMouse(fake_hidapi(device))
    state, heard = mouse.read()
    assert heard and state.axes[0] == 0.5 and state.pressed(0)
    assert mouse.read() == (state, False)
    mouse.close()
    assert device.closed


def test_unplugged_device_is_lost_by_name():
    device = FakeDevice([])
    mouse = SpaceMouse(fake_hidapi(device))
    device.unplugged = True
    with pytest.raises(DeviceLost, match="Compact was unplugged"):
        mouse.read()


def test_missing_device_and_missing_right_to_open_it_say_what_to_do():
    with pytest.raises(TeleopError, match="plug one in"):
        SpaceMouse(fake_hidapi(FakeDevice([]), devices=()))
    with pytest.raises(TeleopError, match="udev"):
        SpaceMouse(fake_hidapi(FakeDevice([], refuses=True)))
