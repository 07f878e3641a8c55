"""How old an observation is when the bridge has its chunk, what the cameras lose, how even the bridge's ticks are.

Runs the simulated system as `molmoact up` does and lets the policy act on one scene after another. Times of receipt
are the middleware's, so this process being busy does not count. The model's own time is taken off. A camera's frame
counts as published when its camera_info has come, which is too small to be lost with the picture. Writes
benchmarks/results/latency.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from molmoact_bringup.analysis import distribution
from molmoact_bringup.domain import choose_domain, private_domains
from molmoact_bringup.errors import BringupError
from molmoact_bringup.graph import Deployment, single_arm
from molmoact_bringup.local import config_directory, dds_environment, start_locally
from molmoact_bringup.operator import Operator
from molmoact_bringup.supervisor import interrupted_by_signals
from molmoact_msgs.msg import ActionChunk, Reasoning
from molmoact_ros.qos import qos_profile
from molmoact_ros.stamps import duration_to_nanoseconds, to_nanoseconds
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image

CAMERAS = ("front", "wrist")
# Enough for every picture that arrives while this process is busy otherwise.
DEPTH = 200
# A pause of the target's stream this long is a node starting or ending, no late tick.
LONGEST_TICK_MS = 1000.0


class Observer:
    """Collects stamps and times of receipt, in ns. `node` hears what the bridge hears, and no picture before it."""

    def __init__(self, node: Node) -> None:
        self.chunks: dict[int, tuple[int, int]] = {}  # sequence -> observation, receipt
        self.model: dict[int, int] = {}  # sequence -> duration
        self.targets: list[int] = []  # publication
        node.create_subscription(ActionChunk, "action_chunk", self._on_chunk, DEPTH)
        node.create_subscription(Reasoning, "reasoning", self._on_reasoning, DEPTH)
        node.create_subscription(PoseStamped, "target_pose", self._on_target, DEPTH, raw=True)

    def _on_chunk(self, message: ActionChunk, info: dict[str, int]) -> None:
        self.chunks[message.sequence] = (to_nanoseconds(message.observation_stamp), info["received_timestamp"])

    def _on_reasoning(self, message: Reasoning) -> None:
        self.model[message.sequence] = duration_to_nanoseconds(message.latency)

    def _on_target(self, _message: bytes, info: dict[str, int]) -> None:
        self.targets.append(info["source_timestamp"])


class FrameObserver:
    """Collects the stamps of frames, in ns. A participant of its own, for its pictures not to delay what is timed."""

    def __init__(self, domain: int) -> None:
        self.frames: dict[str, dict[str, set[int]]] = {camera: {"info": set(), "image": set()} for camera in CAMERAS}
        self._context = Context()
        rclpy.init(args=[], context=self._context, domain_id=domain)
        self._node = Node("frame_observer", context=self._context)
        reliable = qos_profile("reliable", DEPTH)
        for camera, stamps in self.frames.items():
            topic = f"camera/{camera}/color"
            info, image = _stamp_collector(stamps["info"]), _raw_stamp_collector(stamps["image"])
            self._node.create_subscription(CameraInfo, f"{topic}/camera_info", info, reliable)
            self._node.create_subscription(Image, f"{topic}/image_raw", image, reliable, raw=True)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)


def _stamp_collector(stamps: set[int]) -> Callable[[CameraInfo], None]:
    return lambda message: stamps.add(to_nanoseconds(message.header.stamp))


def _raw_stamp_collector(stamps: set[int]) -> Callable[[bytes], None]:
    """The stamp is the first field of an image: 4 bytes of CDR header, then sec and nanosec."""

    def collect(message: bytes) -> None:
        sec, nanosec = np.frombuffer(message, np.uint32, count=2, offset=4)
        stamps.add(int(sec) * 10**9 + int(nanosec))

    return collect


def frame_losses(stamps: dict[str, set[int]]) -> dict[str, Any]:
    """Pictures that did not come though they were published, between the first and the last that came."""
    published, received = stamps["info"], stamps["image"]
    if len(received) < 2:
        return {"published": len(published), "received": len(received), "lost": None, "rate_hz": None}
    first, last = min(received), max(received)
    expected = {stamp for stamp in published if first <= stamp <= last}
    return {
        "published": len(expected),
        "received": len(received),
        "lost": len(expected - received),
        "rate_hz": round((len(received) - 1) * 1e9 / (last - first), 2),
    }


def measure(checkpoint: str, episodes: int, seconds: float, log: Path) -> dict[str, Any]:
    """Run the system and return the results."""
    config = config_directory()
    nodes = single_arm(Deployment(checkpoint=checkpoint), config)
    domain = choose_domain(os.environ, private_domains())
    environment = dds_environment(config, domain, simulated=True)
    os.environ.update(environment)
    with (
        log.open("w") as file,
        start_locally(nodes, environment, lambda name, line: _write(file, name, line)) as system,
    ):
        operator = Operator(domain, use_sim_time=False, alarm=lambda: system.failure)
        try:
            operator.wait_until_ready()
            rate = operator.parameters_of("franka_bridge")["rate"]
            observer = Observer(operator.node)
            with closing(FrameObserver(domain)) as cameras:
                for seed in range(episodes):
                    print(operator.run_episode("pick", seed, seconds), flush=True)
        finally:
            operator.close()
    return results(observer, cameras.frames, rate)


def results(observer: Observer, frames: dict[str, dict[str, set[int]]], tick_rate: float) -> dict[str, Any]:
    """What was measured, in ms."""
    total = {sequence: (received - observed) / 1e6 for sequence, (observed, received) in observer.chunks.items()}
    ticks = np.diff(observer.targets) / 1e6
    return {
        "observation_to_chunk_ms": distribution(list(total.values())),
        "observation_to_chunk_without_model_ms": distribution(
            [value - observer.model[sequence] / 1e6 for sequence, value in total.items() if sequence in observer.model]
        ),
        "model_ms": distribution([value / 1e6 for value in observer.model.values()]),
        "bridge_tick_ms": {"nominal": 1e3 / tick_rate, **distribution(ticks[ticks < LONGEST_TICK_MS].tolist())},
        "frames": {camera: frame_losses(stamps) for camera, stamps in frames.items()},
        "machine": {"cpus": os.cpu_count(), "load_average": os.getloadavg()},
    }


def _write(file: Any, name: str, line: str) -> None:
    file.write(f"[{name}] {line}\n")


def main() -> int:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each episode")
    parser.add_argument("--out", type=Path, default=here / "results" / "latency.json")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with interrupted_by_signals():
        try:
            found = measure(options.checkpoint, options.episodes, options.seconds, options.out.with_suffix(".log"))
        except BringupError as error:
            print(f"latency: {error}", file=sys.stderr)
            return 1
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
