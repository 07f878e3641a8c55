from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from molmoact_bringup.supervisor import Command, Supervisor, last_error

# Long enough for a slow machine; a test that passes never waits for it.
PATIENCE_S = 20.0


def python(name: str, code: str) -> Command:
    return Command(name, (sys.executable, "-c", code))


def wait_until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.02)


def exists(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


SLEEPER = "import os, time; print(os.getpid()); time.sleep(600)"
STUBBORN = (
    "import os, signal, time\n"
    "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
    "print(os.getpid()); time.sleep(600)"
)


class Output:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, name: str, line: str) -> None:
        self.lines.append((name, line))

    def pid_of(self, name: str) -> int:
        wait_until(lambda: any(source == name for source, _ in self.lines))
        return int(next(line for source, line in self.lines if source == name))


def test_every_line_comes_with_the_name_of_its_process():
    output = Output()
    with Supervisor([python("a", "print('one'); print('two', end='')"), python("b", SLEEPER)], output) as system:
        system.wait(PATIENCE_S)
    assert [line for name, line in output.lines if name == "a"] == ["one", "two"]


def test_first_process_to_end_is_the_reason_with_its_last_error():
    failing = python(
        "policy", "import sys; print('[ERROR] [12.3] [policy]: checkpoint: not found'); print('bye'); sys.exit(3)"
    )
    with Supervisor([python("sim", SLEEPER), failing], Output()) as system:
        assert system.wait(PATIENCE_S) == "policy exited with code 3: checkpoint: not found"


def test_clean_exit_of_one_process_ends_the_system_too():
    with Supervisor([python("sim", SLEEPER), python("policy", "print('done')")], Output()) as system:
        assert system.wait(PATIENCE_S) == "policy exited with code 0"


@pytest.mark.parametrize(("code", "finished"), [(0, "replay has finished"), (1, None)])
def test_a_process_whose_work_has_an_end_finishes_the_system_only_when_it_ends_well(code, finished):
    work = Command("replay", (sys.executable, "-c", f"raise SystemExit({code})"), finishes=True)
    with Supervisor([python("policy", SLEEPER), work], Output()) as system:
        failure = system.wait(PATIENCE_S)
    assert system.finished == finished
    assert failure == (None if finished else "replay exited with code 1")


def test_killed_process_is_reported_with_its_signal():
    output = Output()
    with Supervisor([python("sim", SLEEPER)], output) as system:
        os.kill(output.pid_of("sim"), signal.SIGKILL)
        assert "sim was killed by SIGKILL" in (system.wait(PATIENCE_S) or "")


def test_stop_leaves_no_process_even_one_that_ignores_signals(monkeypatch):
    monkeypatch.setattr("molmoact_bringup.supervisor.INTERRUPT_TIMEOUT_S", 0.3)
    monkeypatch.setattr("molmoact_bringup.supervisor.TERMINATE_TIMEOUT_S", 0.3)
    output = Output()
    with Supervisor([python("good", SLEEPER), python("stubborn", STUBBORN)], output) as system:
        pids = [output.pid_of(name) for name in ("good", "stubborn")]
    assert not any(exists(pid) for pid in pids)
    assert system.failure is None


def test_stop_ends_grandchildren_as_well():
    output = Output()
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPER!r}])"
    with Supervisor([python("parent", nested)], output):
        grandchild = output.pid_of("parent")
    assert not exists(grandchild)


def test_program_that_cannot_start_stops_those_before_it():
    output = Output()
    system = Supervisor([python("sim", SLEEPER), Command("ghost", ("/nonexistent/program",))], output)
    with pytest.raises(OSError, match="nonexistent"):
        system.start()
    assert not any(child.group_exists() for child in system._children)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_process_is_left_when_the_parent_is_signalled(number):
    parent_code = (
        "import sys\n"
        "from molmoact_bringup.supervisor import *\n"
        f"children = [Command('child', (sys.executable, '-c', {SLEEPER!r}))]\n"
        "with interrupted_by_signals():\n"
        "    try:\n"
        "        with Supervisor(children, lambda name, line: print(line, flush=True)) as system: system.wait()\n"
        "    except Interrupted as interruption:\n"
        "        print(interruption, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.send_signal(number)
        rest = parent.stdout.read()
        parent.wait(PATIENCE_S)
    wait_until(lambda: not exists(child))
    if number != signal.SIGKILL:
        assert signal.Signals(number).name in rest.splitlines()


def test_output_that_cannot_be_written_does_not_end_the_system():
    seen: list[str] = []

    def full_disk(_name: str, line: str) -> None:
        seen.append(line)
        raise OSError(28, "No space left on device")

    with Supervisor([python("chatty", "import time\nwhile True: print('x'); time.sleep(0.02)")], full_disk) as system:
        wait_until(lambda: len(seen) >= 3)
        assert system.failure is None


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["[ERROR] [1.2] [policy]: first", "[ERROR] [1.3] [policy]: second", "[INFO] [1.4] [policy]: bye"], "second"),
        (["Traceback (most recent call last):", "ValueError: no such thing", "bye"], "ValueError: no such thing"),
        (["hello", "the end"], "the end"),
        ([], ""),
    ],
)
def test_last_error_is_the_logged_one_then_the_exception_then_the_last_line(lines, error):
    assert last_error(lines) == error
