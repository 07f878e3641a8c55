"""A node that logs its lifecycle and fails where its parameter `fail` says; started by test_node.py as a process."""

import sys
from dataclasses import dataclass

from molmoact_ros.node import ConfigurationError, ManagedNode, run
from molmoact_ros.parameters import parameter

STEPS = ("", "configure", "crash", "activate", "callback", "worker", "stop")


@dataclass(frozen=True)
class ExampleParameters:
    rate: float = parameter(10.0, "how often it ticks, Hz", minimum=0.0, maximum=100.0)
    count: int = parameter(1, "how many", minimum=0)
    arms: tuple[str, ...] = parameter(("left", "right"), "names of the arms")
    weights: tuple[float, ...] = parameter((), "one for each arm", minimum=0.0)
    timeout: float | None = parameter(None, "s; not set: none", minimum=0.0)
    fail: str = parameter("", "where to fail", choices=STEPS)


class ExampleNode(ManagedNode):
    p: ExampleParameters

    def __init__(self, **kwargs) -> None:
        super().__init__("example", ExampleParameters, **kwargs)
        self.events: list[str] = []

    def note(self, event: str) -> None:
        self.events.append(event)
        self.get_logger().info(event)

    def fail_at(self, step: str, error: type[Exception] = RuntimeError) -> None:
        if self.p.fail == step:
            raise error(f"told to fail at {step}")

    def set_up(self) -> None:
        self.note("set up")
        self.create_timer(0.01, lambda: self.fail_at("callback"))
        self.fail_at("configure", ConfigurationError)
        self.fail_at("crash")

    def start(self) -> None:
        self.note("start")
        self.fail_at("activate", ConfigurationError)
        self.spawn("worker", self.work)

    def work(self, stop) -> None:
        self.fail_at("worker")
        stop.wait()

    def stop(self, reason: str) -> None:
        self.note(f"stop: {reason}")
        self.fail_at("stop")

    def tear_down(self) -> None:
        self.note("tear down")


if __name__ == "__main__":
    sys.exit(run(ExampleNode))
