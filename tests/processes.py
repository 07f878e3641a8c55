"""Real processes for system tests: started, waited for, and never left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ament_index_python.packages import get_package_prefix

# From SIGINT to SIGKILL: a node needs some of it to stop the arm smoothly.
STOP_TIMEOUT_S = 15.0
# Generous, because a test machine may be busy; nothing waits longer than its condition takes.
WAIT_TIMEOUT_S = 60.0
POLL_PERIOD_S = 0.02

_MARK = "MOLMOACT_TEST_PROCESS"

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, timeout_s: float = WAIT_TIMEOUT_S) -> T:
    """The first true value of `condition`.

    Raises:
        AssertionError: naming `what`, when there was none within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(POLL_PERIOD_S)
    return value


class TestProcess:
    """A running command, its standard output and error in one file.

    Args:
        name: for messages.
        command: program and arguments.
        log: where the output goes.
        environment: added to this process's own.
    """

    __test__ = False  # not a test class, whatever its name

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.poll()

    def wait_for_output(self, pattern: str, timeout_s: float = WAIT_TIMEOUT_S) -> re.Match[str]:
        """The first match of the regular expression `pattern` in its output.

        Raises:
            AssertionError: it ended without writing that, or did not write it in time. The message holds its output.
        """

        def written() -> re.Match[str] | None:
            ended = self.returncode is not None  # asked first: what it wrote before its end must not be missed
            match = re.search(pattern, self.output)
            assert match or not ended, f"{self.name} ended with {self.returncode} before {pattern!r}:\n{self.output}"
            return match

        try:
            return wait_for(written, f"{pattern!r} from {self.name}", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output}") from None

    def wait(self, timeout_s: float = WAIT_TIMEOUT_S) -> int:
        """Its exit status, once it has ended by itself.

        Raises:
            AssertionError: it still runs after `timeout_s`.
        """
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {timeout_s:g} s:\n{self.output}") from None

    def signal(self, number: int) -> None:
        """Send one signal to the process itself, none to its children."""
        self._process.send_signal(number)

    def stop(self) -> int:
        """SIGINT, and SIGKILL if that does not end it in time; its exit status."""
        self.signal(signal.SIGINT)
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


class Processes:
    """The processes of one test. Leaving the context ends them all, and every descendant in whatever session.

    Args:
        directory: for the logs.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mark = uuid.uuid4().hex
        self._started: list[TestProcess] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            if process.returncode is None:
                process.signal(signal.SIGINT)
        for process in self._started:
            process.stop()
        left = self.descendants()
        for pid in left:
            _kill(pid)
        assert not left, f"processes left behind: {left}"

    def start(
        self, command: Sequence[str], name: str | None = None, environment: Mapping[str, str] | None = None
    ) -> TestProcess:
        """Start `command`; `environment` is added to this process's own."""
        name = name or Path(command[0]).name
        log = self._directory / f"{len(self._started)}_{name}.log"
        process = TestProcess(name, command, log, {**(environment or {}), _MARK: self._mark})
        self._started.append(process)
        return process

    def start_module(self, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> TestProcess:
        """Start `python -m module arguments`."""
        return self.start([sys.executable, "-m", module, *arguments], module, environment)

    def start_node(
        self,
        package: str,
        executable: str,
        *,
        parameters: Mapping[str, object] | None = None,
        parameter_files: Sequence[Path] = (),
        remappings: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> TestProcess:
        """Start an installed node as `ros2 run` does. `parameters` win over `parameter_files`."""
        command = [str(Path(get_package_prefix(package)) / "lib" / package / executable), "--ros-args"]
        for file in parameter_files:
            command += ["--params-file", str(file)]
        for name, value in (parameters or {}).items():
            command += ["-p", f"{name}:={json.dumps(value)}"]  # JSON is YAML in which a string stays a string
        for source, target in (remappings or {}).items():
            command += ["-r", f"{source}:={target}"]
        return self.start(command, executable, environment)

    def descendants(self) -> list[int]:
        """Process ids of everything that runs because of this test."""
        mark = f"{_MARK}={self._mark}".encode()
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _has_mark(entry, mark)]


def _has_mark(process: Path, mark: bytes) -> bool:
    try:
        return mark in (process / "environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or belongs to somebody else
        return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
