"""What the simulator keeps up with on this machine: physics, states and both cameras at 640x480, seen by a subscriber.

For each load a simulator is started, watched from this process for some seconds and stopped. A frame counts as lost
when the stamps of two received frames are more than one and a half periods apart. Writes
benchmarks/results/simulator_rates.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import rclpy
from ament_index_python.packages import get_package_prefix
from franka_msgs.msg import FrankaRobotState
from molmoact_ros.qos import qos_profile
from molmoact_ros.stamps import to_nanoseconds
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "config"
CAMERAS = ("front", "wrist")
FRAME_RATE_HZ = 30.0
ROBOT_STATE = "franka_robot_state_broadcaster/robot_state"
START_TIMEOUT_S = 30.0
WARM_UP_S = 2.0

# load -> image topics that are subscribed
LOADS = {
    "no camera": (),
    "colour": tuple(f"camera/{camera}/color/image_raw" for camera in CAMERAS),
    "colour and depth": tuple(
        f"camera/{camera}/{topic}/image_raw" for camera in CAMERAS for topic in ("color", "aligned_depth_to_color")
    ),
}


class Watcher:
    """Stamps and times of receipt, ns, of the robot state and of some image topics."""

    def __init__(self, node: Node, image_topics: tuple[str, ...]) -> None:
        self.simulated: list[float] = []  # s, the simulator's own clock
        self.received: dict[str, list[tuple[int, int]]] = {topic: [] for topic in (ROBOT_STATE, *image_topics)}
        self._node = node
        self._subscriptions = [
            node.create_subscription(FrankaRobotState, ROBOT_STATE, self._on_state, qos_profile("reliable", 10))
        ]
        for topic in image_topics:
            self._subscriptions.append(
                node.create_subscription(Image, topic, self._recorder(topic), qos_profile("reliable", 10))
            )

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def clear(self) -> None:
        self.simulated.clear()
        for samples in self.received.values():
            samples.clear()

    def complete(self) -> bool:
        return all(self.received.values())

    def _on_state(self, message: FrankaRobotState) -> None:
        self._recorder(ROBOT_STATE)(message)
        self.simulated.append(message.time)

    def _recorder(self, topic: str):
        def record(message) -> None:
            self.received[topic].append((to_nanoseconds(message.header.stamp), time.time_ns()))

        return record

    def report(self) -> dict:
        states = np.array(self.received[ROBOT_STATE], dtype=np.int64)  # [samples, (stamp, receipt)]
        elapsed = (states[-1, 0] - states[0, 0]) / 1e9
        return {
            "real_time_factor": round((self.simulated[-1] - self.simulated[0]) / elapsed, 4),
            "robot_state": _stream(states),
            "cameras": {
                topic: _stream(np.array(samples, dtype=np.int64), FRAME_RATE_HZ)
                for topic, samples in self.received.items()
                if topic != ROBOT_STATE
            },
        }


def _stream(samples: np.ndarray, nominal_hz: float | None = None) -> dict:
    """Rate of the stamps, latency from stamp to receipt and, at a known rate, what is missing; [samples, 2] ns."""
    periods = np.diff(samples[:, 0]) / 1e9
    latencies = (samples[:, 1] - samples[:, 0]) / 1e6
    report = {
        "rate_hz": round(float(1.0 / periods.mean()), 2),
        "period_ms_p1_p99": [round(float(p), 2) for p in np.percentile(1e3 * periods, [1, 99])],
        "latency_ms_median_p99": [round(float(p), 2) for p in np.percentile(latencies, [50, 99])],
    }
    if nominal_hz is not None:
        report["frames"] = len(samples)
        report["frames_lost"] = int(np.maximum(np.rint(periods * nominal_hz) - 1, 0).sum())
    return report


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_simulator() -> subprocess.Popen:
    executable = Path(get_package_prefix("franka_sim")) / "lib/franka_sim/franka_sim"
    scene = CONFIG / "scenes/tabletop.yaml"
    command = [executable, "--ros-args", "--params-file", CONFIG / "sim.yaml", "-p", f"scene:={scene}"]
    return subprocess.Popen(list(map(str, command)))


def measure(node: Node, image_topics: tuple[str, ...], seconds: float) -> dict:
    """One load: start the simulator, wait until every stream flows, watch, stop it."""
    watcher = Watcher(node, image_topics)
    simulator = start_simulator()
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not watcher.complete():
            if simulator.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"no data from the simulator (exit status {simulator.poll()})")
            time.sleep(0.05)
        time.sleep(WARM_UP_S)
        watcher.clear()
        cpu, start, load = _cpu_seconds(simulator.pid), time.monotonic(), os.getloadavg()[0]
        time.sleep(seconds)
        used = (_cpu_seconds(simulator.pid) - cpu) / (time.monotonic() - start)
        return {**watcher.report(), "simulator_cpu_cores": round(used, 3), "load_average_before": round(load, 2)}
    finally:
        simulator.send_signal(signal.SIGINT)
        simulator.wait()
        watcher.close()


def main() -> None:
    """Measure every load and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--output", type=Path, default=HERE / "results/simulator_rates.json")
    arguments = parser.parse_args()
    rclpy.init()
    node = Node("simulator_rates")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinner = threading.Thread(target=executor.spin)
    spinner.start()
    try:
        results = {load: measure(node, LOADS[load], arguments.seconds) for load in arguments.loads}
    finally:
        executor.shutdown()
        spinner.join()
        rclpy.shutdown()
    report = {
        "machine": {"cores": os.cpu_count(), "simulator_niceness": os.nice(0)},
        "seconds": arguments.seconds,
        "loads": results,
    }
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
