"""Keys as a dead-man switch, and a terminal that is put back as it was."""

import os
import pty
import termios
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import wait_for
from teleop_recorder.keyboard import ESCAPE, TOGGLE_REST_S, KeyBindings, Keyboard, Terminal, keys_in
from teleop_recorder.teleop import DeviceLost, TeleopError

BINDINGS = KeyBindings("wsadrf", "ljikqe", "g", "b", "o", "x", "z", "u")
HOLD_S = 0.15


def keyboard() -> Keyboard:
    return Keyboard(BINDINGS, HOLD_S)


def test_a_tap_moves_for_the_hold_time_and_no_longer():
    keys = keyboard()
    keys.press("w", 10.0)
    assert keys.held(10.0) and keys.held(10.14)
    assert keys.deflection(10.14).tolist() == [1, 0, 0, 0, 0, 0]
    assert not keys.held(10.16)
    assert not keys.deflection(10.16).any()


def test_repeats_keep_it_moving_until_they_end():
    keys = keyboard()
    times = 10.5 + np.arange(30) * 0.033
    for time in times:
        keys.press("f", time)
        assert keys.deflection(time + 0.03).tolist() == [0, 0, -1, 0, 0, 0]
    assert not keys.held(times[-1] + HOLD_S + 0.001)


@pytest.mark.parametrize("key", [" ", ESCAPE, "?", "W"])
def test_any_other_key_stops_at_once(key):
    keys = keyboard()
    keys.press("w", 10.0)
    keys.press(key, 10.05)
    assert not keys.held(10.05)


def test_the_later_of_two_opposite_keys_counts():
    keys = keyboard()
    keys.press("a", 10.0)
    keys.press("d", 10.05)
    assert keys.deflection(10.06).tolist() == [0, -1, 0, 0, 0, 0]


def test_gripper_key_held_down_toggles_once():
    keys = keyboard()
    taken = []
    for time in (10.0, 10.5, *(10.533 + 0.033 * np.arange(60))):
        keys.press("g", time)
        assert keys.held(time)  # a command has to reach the bridge
        taken.append(keys.take_gripper_press())
    assert taken == [True] + [False] * (len(taken) - 1)
    keys.press("g", time + TOGGLE_REST_S + 0.01)
    assert keys.take_gripper_press()


def test_episode_keys_stop_the_arm_and_are_no_repeats():
    keys = keyboard()
    keys.press("w", 10.0)
    assert keys.press("o", 10.05) == "success"
    assert not keys.held(10.05)
    assert keys.press("o", 10.55) is None
    assert [keys.press(key, 20.0) for key in "bxzu"] == ["start", "failure", "discard", "undo"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"move": "wsad"}, "move_keys"),
        ({"gripper": ""}, "gripper_key"),
        ({"undo": "w"}, "w are bound"),
        ({"turn": "ljikq"}, "turn_keys"),
    ],
)
def test_bad_bindings_are_refused_by_name(changes, word):
    with pytest.raises(TeleopError, match=word):
        replace(BINDINGS, **changes)


def test_help_names_every_key_and_the_speed():
    text = BINDINGS.help(0.1, 0.5, "base")
    assert all(key in text for key in "wsadrfljikqegboxzu") and "0.1 m/s" in text and "base" in text


@given(st.text())
def test_arrows_and_other_sequences_are_no_letters(text):
    keys = keys_in(text)
    assert all(len(key) == 1 for key in keys)
    assert keys_in("w" + ESCAPE + "[A") == ["w", ESCAPE]
    assert keys.count(ESCAPE) == (ESCAPE in text)


@given(st.lists(st.tuples(st.characters(), st.floats(0.0, 0.2)), max_size=50))
def test_no_sequence_of_keys_moves_longer_than_the_hold_time(presses):
    keys = keyboard()
    now = 0.0
    for key, pause in presses:
        now += pause
        keys.press(key, now)
        assert (np.abs(keys.deflection(now)) <= 1.0).all()
    assert not keys.held(now + HOLD_S)


@pytest.fixture
def terminal():
    """(the person's end, a Terminal, its settings before)."""
    person, program = pty.openpty()
    before = termios.tcgetattr(program)
    with os.fdopen(program, "r") as stream:
        yield person, Terminal(stream), before, program
    try:
        os.close(person)
    except OSError:
        pass  # a test has closed it


def test_terminal_gives_keys_without_waiting_for_a_line_and_is_put_back(terminal):
    person, keys, before, program = terminal
    assert keys.read() == []
    os.write(person, b"wg")
    assert wait_for(keys.read, "keys") == ["w", "g"]
    keys.close()
    assert termios.tcgetattr(program) == before


def test_closed_terminal_is_a_lost_device(terminal):
    person, keys, _, _ = terminal
    os.close(person)

    def lost() -> bool:
        try:
            keys.read()
        except DeviceLost:
            return True
        return False

    wait_for(lost, "the terminal to be lost")


def test_no_terminal_is_refused_with_what_to_do(tmp_path):
    with (tmp_path / "input").open("w+") as stream, pytest.raises(TeleopError, match="terminal of its own"):
        Terminal(stream)
