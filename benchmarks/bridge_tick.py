"""How evenly the bridge ticks while the system runs, and what a tick costs.

Two measurements. The core alone, in this process: the time of one tick at rest and while a chunk is executed. And the
node: simulator and bridge as processes, both colour cameras subscribed as the policy does, a chunk twice a second; the
bridge's own figures are read from /diagnostics. Writes benchmarks/results/bridge_tick.json.
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
import yaml
from ament_index_python.packages import get_package_prefix
from diagnostic_msgs.msg import DiagnosticArray
from franka_bridge.arbitration import ArmSetup, Mode, RobotMode
from franka_bridge.bridge import Bridge
from franka_bridge.chunk import ArmFrames, ArmSteps, Chunk
from franka_bridge.gripper import GripperThresholds
from franka_bridge.limits import Limits, Timeouts
from franka_bridge.poses import Pose, quaternion_log, quaternion_multiply
from molmoact_msgs.msg import ActionChunk, ArmActions, BridgeStatus, CartesianDelta
from molmoact_msgs.srv import SetMode
from molmoact_ros.qos import LATCHED
from molmoact_ros.stamps import duration_from_seconds
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Image
from std_msgs.msg import String

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "config"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
# The bridge keeps the last ten seconds of its ticks: what it reports after this long is all of the running system.
WARM_UP_S = 12.0
CHUNK_PERIOD_S = 0.5
TASK = "move back and forth"
CORE_TICKS = 4000


def bridge_parameters() -> dict:
    values: dict = {}
    for name in ("bridge.yaml", "robots/sim.yaml"):
        values |= yaml.safe_load((CONFIG / name).read_text())["franka_bridge"]["ros__parameters"]
    return values


def core_cost(executing: bool) -> dict:
    """Microseconds of one tick of the core for one arm, which is where its target was a tick ago."""
    values = bridge_parameters()
    period = 1.0 / values["rate"]
    home = Pose.of(values["home_position"], values["home_quaternion"])
    setup = ArmSetup("fr3", ArmFrames("base", "tool"), home, GripperThresholds(0.3, 0.7))
    bridge = Bridge([setup], Limits.from_values(values), Timeouts.from_values(values), period)
    bridge.on_task(TASK)
    now_ns, measured, costs = 10**18, home, []
    for tick in range(CORE_TICKS):
        now_ns += round(period * 1e9)
        if executing and tick and tick % round(CHUNK_PERIOD_S / period) == 0:
            bridge.set_mode("", Mode.POLICY, now_ns)
            bridge.on_chunk(core_chunk(tick, now_ns), now_ns)
        began = time.perf_counter_ns()
        bridge.arms["fr3"].on_pose(now_ns, measured)
        bridge.arms["fr3"].on_robot_state(now_ns, RobotMode.MOVE)
        targets = bridge.advance(now_ns, now_ns)
        costs.append((time.perf_counter_ns() - began) / 1e3)
        measured = targets[-1].pose
    return {"median": round(float(np.median(costs)), 1), "p99": round(float(np.percentile(costs, 99)), 1)}


def core_chunk(sequence: int, now_ns: int) -> Chunk:
    direction = 1.0 if (sequence // 100) % 2 else -1.0
    translations = np.tile([0.02 * direction, 0.005, 0.0], (4, 1))
    steps = ArmSteps("fr3", translations, np.tile([0.0, 0.0, 0.05 * direction], (4, 1)), np.ones(4))
    return Chunk(sequence, "base", now_ns, now_ns, 100_000_000, (steps,), TASK)


def pose_operation_cost() -> dict:
    """Microseconds of the rotation from one orientation to another, written out and through scipy."""
    a, b = np.array([1.0, 0.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0, 0.0])
    repeats = 2000
    began = time.perf_counter()
    for _ in range(repeats):
        quaternion_log(quaternion_multiply(a, b))
    middle = time.perf_counter()
    for _ in range(repeats):
        (Rotation.from_quat(a) * Rotation.from_quat(b)).as_rotvec()
    ended = time.perf_counter()
    return {
        "franka_bridge.poses": round((middle - began) / repeats * 1e6, 1),
        "scipy": round((ended - middle) / repeats * 1e6, 1),
    }


class Operator(Node):
    """Hands the arm over, sends chunks, looks at the cameras, and remembers what the bridge reports."""

    def __init__(self) -> None:
        super().__init__("bridge_tick")
        self.status: BridgeStatus | None = None
        self.ticks: dict[str, float] = {}
        self.frames = 0
        self._sequence = 0
        self._chunks = self.create_publisher(ActionChunk, "action_chunk", 10)
        self._task = self.create_publisher(String, "task", LATCHED)
        self._task.publish(String(data=TASK))
        self._set_mode = self.create_client(SetMode, "set_mode")
        self.create_subscription(BridgeStatus, "bridge_status", self._on_status, 10)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        for camera in ("front", "wrist"):
            self.create_subscription(Image, f"camera/{camera}/color/image_raw", self._on_frame, 2)

    def hand_over(self) -> bool:
        """Ask for POLICY; whether it was granted."""
        if not self._set_mode.wait_for_service(1.0):
            return False
        answer = self._set_mode.call(SetMode.Request(mode=BridgeStatus.POLICY))
        return answer.success

    def send_chunk(self) -> None:
        self._sequence += 1
        delta = CartesianDelta(gripper=1.0)
        delta.translation.x = 0.02 if self._sequence % 2 else -0.02
        now = self.get_clock().now().to_msg()
        chunk = ActionChunk(
            sequence=self._sequence,
            observation_stamp=now,
            start=now,
            step_period=duration_from_seconds(0.1),
            arms=[ArmActions(arm="fr3", steps=[delta] * 4)],
            instruction=TASK,
        )
        chunk.header.frame_id = "fr3_link0"
        self._chunks.publish(chunk)

    def _on_status(self, status: BridgeStatus) -> None:
        self.status = status

    def _on_frame(self, message: Image) -> None:
        self.frames += 1

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == "franka_bridge: tick":
                self.ticks = {value.key: float(value.value) for value in status.values}


def start(package: str, *arguments: str) -> subprocess.Popen:
    executable = Path(get_package_prefix(package)) / f"lib/{package}/{package}"
    return subprocess.Popen([str(executable), "--ros-args", *arguments])


def measure_node(seconds: float) -> dict:
    """The bridge's own figures after `seconds` of motion beside the simulator with both cameras."""
    robot = ["--params-file", str(CONFIG / "robots/sim.yaml")]
    scene = f"scene:={CONFIG / 'scenes/tabletop.yaml'}"
    processes = [
        start("franka_sim", "--params-file", str(CONFIG / "sim.yaml"), "-p", scene),
        start("franka_bridge", "--params-file", str(CONFIG / "bridge.yaml"), *robot),
    ]
    rclpy.init()
    operator, executor = Operator(), SingleThreadedExecutor()
    executor.add_node(operator)
    spinner = threading.Thread(target=executor.spin, daemon=True)
    spinner.start()
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not operator.hand_over():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the bridge does not hand over the arm: {operator.status}")
            time.sleep(0.1)
        began, frames = time.monotonic(), operator.frames
        while time.monotonic() < began + WARM_UP_S + seconds:
            operator.send_chunk()
            time.sleep(CHUNK_PERIOD_S)
        elapsed = time.monotonic() - began
        return {
            **operator.ticks,
            "camera_frames_per_s": round((operator.frames - frames) / elapsed, 1),
            "chunks_accepted": operator.status.chunks_accepted,
            "chunks_refused": operator.status.chunks_refused,
            "mode_at_the_end": Mode(operator.status.mode).name,
        }
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGINT)
        for process in processes:
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        executor.shutdown()
        spinner.join()
        operator.destroy_node()
        rclpy.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the running system, after warming up")
    parser.add_argument("--output", type=Path, default=HERE / "results/bridge_tick.json")
    arguments = parser.parse_args()
    report = {
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "nominal_period_ms": 1e3 / bridge_parameters()["rate"],
        "core_tick_us": {"at_rest": core_cost(executing=False), "executing_chunks": core_cost(executing=True)},
        "rotation_between_two_poses_us": pose_operation_cost(),
        "node": measure_node(arguments.seconds),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    json.dump(report, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
