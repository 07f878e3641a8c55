"""Child processes that start, live and end together. No ROS in here."""

from __future__ import annotations

import ctypes
import os
import re
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

# From SIGINT to SIGTERM: time for a node to stop the arm smoothly and to close its files.
INTERRUPT_TIMEOUT_S = 8.0
# From SIGTERM to SIGKILL.
TERMINATE_TIMEOUT_S = 3.0
# How late an exit can be noticed.
POLL_PERIOD_S = 0.1
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Lines kept of each process to find the error that ended it.
KEPT_LINES = 50

_ROS_PREFIX = re.compile(r"^\[(ERROR|FATAL)\](\s*\[[^\]]*\])*:?\s*")
_PYTHON_ERROR = re.compile(r"^[\w.]*(Error|Exception|Interrupt|Exit)\b.*")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Command:
    """What to run. `name` goes before every line of its output."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)  # added to the parent's own
    finishes: bool = False  # that it ends, with exit code 0, is no failure


class Interrupted(Exception):
    """The user or the system asked this process to end; the message is the signal's name."""


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Raise :class:`Interrupted` in the main thread on the first SIGINT, SIGTERM or SIGHUP, and ignore further ones.

    The end is bounded in time, so an impatient second Ctrl-C must not cut it short and leave processes behind.
    """

    def interrupt(number: int, _frame: object) -> None:
        for other in ENDING_SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(signal.Signals(number).name)

    previous = {number: signal.signal(number, interrupt) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Supervisor:
    """Runs commands, hands their output on line by line, and notices the first one that ends.

    Every child is the leader of its own process group, so that a Ctrl-C in the terminal reaches it once, from here,
    and is sent SIGTERM by the kernel if this process dies without a chance to stop it.

    Args:
        commands: What to run, in this order.
        output: Called with the command's name and one line of its output, from one thread. An OSError it raises is
            ignored: a full disk or a closed terminal is no reason to lose control of the robot.
    """

    def __init__(self, commands: Sequence[Command], output: Callable[[str, str], None]) -> None:
        self._commands = commands
        self._output = output
        self._children: list[_Child] = []
        self._selector = selectors.DefaultSelector()
        self._stopping = threading.Event()
        self._gone = threading.Event()
        self._failed = threading.Event()
        self._failure: str | None = None
        self._finished: str | None = None
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def failure(self) -> str | None:
        """Which process ended first, and why; None while all run, and when it had finished."""
        return self._failure

    @property
    def finished(self) -> str | None:
        """Which process ended first because its work was done; None while all run, and after a failure."""
        return self._finished

    def start(self) -> None:
        """Start every command.

        Raises:
            OSError: a program cannot be executed; what was started before it is stopped.
        """
        try:
            for command in self._commands:
                child = _Child(command)
                self._children.append(child)
                self._selector.register(child.stdout, selectors.EVENT_READ, child)
        except BaseException:  # an Interrupted as well
            with _uninterrupted():
                self._signal_until_gone()
            raise
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> str | None:
        """Wait until a process has ended; its reason, or None after `timeout_s`."""
        self._failed.wait(timeout_s)
        return self._failure

    def stop(self) -> None:
        """SIGINT to all, SIGTERM to those that are left, then SIGKILL. Returns when no process is left.

        For the main thread, whose signals it holds back. Stopping again does nothing.
        """
        if self._gone.is_set():
            return
        self._stopping.set()
        with _uninterrupted():
            self._signal_until_gone()
        self._gone.set()
        if self._thread.is_alive():
            self._thread.join()
        for child in self._children:
            child.stdout.close()
        self._selector.close()

    def _signal_until_gone(self) -> None:
        for number, timeout_s in (
            (signal.SIGINT, INTERRUPT_TIMEOUT_S),
            (signal.SIGTERM, TERMINATE_TIMEOUT_S),
            (signal.SIGKILL, TERMINATE_TIMEOUT_S),
        ):
            for child in self._children:
                child.signal(number)
            deadline = time.monotonic() + timeout_s
            while time.monotonic() < deadline:
                if not any(child.group_exists() for child in self._children):
                    return
                time.sleep(POLL_PERIOD_S / 4)

    def _watch(self) -> None:
        while not self._gone.is_set():
            for key, _ in self._selector.select(POLL_PERIOD_S):
                if not self._pass_on(key.data):
                    self._selector.unregister(key.fileobj)
            for child in self._children:
                if child.returncode is not None and not self._failed.is_set() and not self._stopping.is_set():
                    self._pass_on(child)
                    if child.finishes and child.returncode == 0:
                        self._finished = f"{child.name} has finished"
                    else:
                        self._failure = child.epitaph()
                    self._failed.set()
        for child in self._children:
            self._pass_on(child)

    def _pass_on(self, child: _Child) -> bool:
        """Hand on what `child` wrote; False at the end of its output."""
        lines, is_open = child.read_lines()
        for line in lines:
            try:
                self._output(child.name, line)
            except OSError:
                pass
        return is_open


class _Child:
    def __init__(self, command: Command) -> None:
        parent = os.getpid()

        def die_with_parent() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

        self.name = command.name
        self.finishes = command.finishes
        self._process = subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **command.environment},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        assert self._process.stdout is not None
        self.stdout = self._process.stdout
        os.set_blocking(self.stdout.fileno(), False)
        self._partial = b""
        self._last_lines: deque[str] = deque(maxlen=KEPT_LINES)

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def read_lines(self) -> tuple[list[str], bool]:
        """What can be read without waiting, and whether more may come."""
        is_open = True
        while True:
            try:
                data = os.read(self.stdout.fileno(), 65536)
            except BlockingIOError:
                break
            if not data:
                is_open = False
                break
            self._partial += data
        *complete, self._partial = self._partial.split(b"\n")
        if not is_open and self._partial:
            complete.append(self._partial)
            self._partial = b""
        lines = [line.decode(errors="replace").rstrip("\r") for line in complete]
        self._last_lines.extend(line for line in lines if line.strip())
        return lines, is_open

    def signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass

    def group_exists(self) -> bool:
        """Whether the process or one it started in its group is left."""
        self._process.poll()  # reaps it: a zombie would keep the group alive
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def epitaph(self) -> str:
        """How the process ended and the last error it wrote, in one line."""
        code = self._process.poll()
        assert code is not None
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        error = last_error(self._last_lines)
        return f"{self.name} {how}" + (f": {error}" if error and code != 0 else "")


def last_error(lines: Sequence[str]) -> str:
    """Why a program ended: the last error it logged, else its last exception, else its last line."""
    for line in reversed(lines):
        if _ROS_PREFIX.match(line):
            return _ROS_PREFIX.sub("", line)
    for line in reversed(lines):
        if _PYTHON_ERROR.match(line):
            return line
    return lines[-1] if lines else ""
