"""What recording costs and loses: three cameras, two depth streams and a 1 kHz state topic, as a laboratory has them.

The recorder runs as its own process, the streams are published by two others (cameras, state), each message counted in
its stamp. Afterwards the bag is compared with what was published: a message counts as lost when its number is missing
between the first and the last that were recorded. Writes benchmarks/results/recording.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from ament_index_python.packages import get_package_prefix
from molmoact_msgs.srv import StartEpisode, StopEpisode
from molmoact_ros.images import array_to_image
from molmoact_ros.qos import qos_profile
from molmoact_ros.stamps import from_nanoseconds
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState
from teleop_recorder.definitions import leading_stamp
from teleop_recorder.episode import STATUS_TOPIC, Episode

HERE = Path(__file__).resolve().parent
CAMERA_HZ, STATE_HZ = 30, 1000
HEIGHT, WIDTH = 480, 640
COLOUR = [f"camera_{number}/color/image_raw" for number in range(3)]
DEPTH = [f"camera_{number}/aligned_depth_to_color/image_raw" for number in range(2)]
STATE = "joint_states"
RATES = {**dict.fromkeys(COLOUR + DEPTH, CAMERA_HZ), STATE: STATE_HZ}
# What goes into the stamps counts periods from here, so that a number can be read back from a stamp.
EPOCH_NS = 10**18
START_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 120.0
MEMORY_PERIOD_S = 0.5
# Buffers fill while a recording begins; growth is counted from then on.
WARM_UP_S = 5.0


def publish(topics: list[str], rate_hz: int, stop: Event) -> None:
    """A process: every topic at one rate until `stop`; late ticks are made up for, as a driver's queue does."""
    rclpy.init()
    node = Node(f"source_at_{rate_hz}")
    messages = {topic: _message(topic) for topic in topics}
    publishers = {
        topic: node.create_publisher(type(message), topic, qos_profile("reliable", depth=50 if rate_hz < 100 else 1000))
        for topic, message in messages.items()
    }
    number, began = 0, time.monotonic()
    while not stop.is_set():
        number += 1
        time.sleep(max(0.0, began + number / rate_hz - time.monotonic()))
        for topic, message in messages.items():
            message.header.stamp = from_nanoseconds(EPOCH_NS + number * 10**9 // rate_hz)
            publishers[topic].publish(message)
    rclpy.shutdown()


def _message(topic: str) -> Image | JointState:
    random = np.random.default_rng(0)
    if topic in COLOUR:
        return array_to_image(random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), "rgb8")
    if topic in DEPTH:
        return array_to_image(random.integers(0, 2000, (HEIGHT, WIDTH), np.uint16), "16UC1")
    return JointState(name=[f"joint_{n}" for n in range(7)], position=[0.0] * 7, velocity=[0.0] * 7, effort=[0.0] * 7)


def start_recorder(root: Path) -> subprocess.Popen:
    executable = Path(get_package_prefix("teleop_recorder")) / "lib/teleop_recorder/recorder"
    topics = [f"{topic} {rate / 2} Hz" for topic, rate in RATES.items()]
    command = [
        executable,
        "--ros-args",
        "-p",
        f"topics:={json.dumps(topics)}",
        "-p",
        f"directory:={json.dumps(str(root))}",
    ]
    return subprocess.Popen(list(map(str, command)))


def call(node: Node, kind: Any, name: str, request: Any) -> Any:
    client = node.create_client(kind, name)
    if not client.wait_for_service(START_TIMEOUT_S):
        sys.exit(f"service {name} is not there")
    done = threading.Event()
    future = client.call_async(request)
    future.add_done_callback(lambda _: done.set())
    if not done.wait(ANSWER_TIMEOUT_S):
        sys.exit(f"service {name} did not answer")
    return future.result()


def start_episode(node: Node) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        answer = call(node, StartEpisode, "start_episode", StartEpisode.Request(task="benchmark"))
        if answer.success:
            return answer.episode
        if time.monotonic() > deadline:
            sys.exit(answer.message)
        time.sleep(0.2)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Without what is shared with other processes: the middleware's segments."""
    pages, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
    return (pages - shared) * os.sysconf("SC_PAGE_SIZE") / 2**20


def losses(directory: Path) -> dict[str, Any]:
    """Of each topic: messages recorded, and numbers missing between the first and the last of them."""
    numbers: dict[str, list[int]] = {f"/{topic}": [] for topic in RATES}
    episode = Episode.open(directory)
    for message in episode.messages(list(numbers)):
        stamp_ns = leading_stamp(message.data) - EPOCH_NS
        numbers[message.topic].append(round(stamp_ns * RATES[message.topic[1:]] / 1e9))
    _, status = episode.decoded(STATUS_TOPIC)[-1]
    return {
        "topics": {
            topic: {"recorded": len(of), "lost": max(of) - min(of) + 1 - len(of), "twice": len(of) - len(set(of))}
            for topic, of in numbers.items()
        },
        "duration_s": round(episode.duration_s, 2),
        "written_mb_per_s": round(episode.size / 1e6 / episode.duration_s, 1),
        "dropped_by_its_own_count": int(sum(status.dropped)),
        "outcome": episode.labels.outcome,
        "reason": episode.labels.reason,
        "events": list(status.events),
    }


def measure(node: Node, seconds: float, root: Path) -> dict[str, Any]:
    """One episode of so many seconds."""
    recorder = start_recorder(root)
    try:
        name = start_episode(node)
        cpu, began = cpu_seconds(recorder.pid), time.monotonic()
        memory: list[tuple[float, float]] = []
        while (elapsed := time.monotonic() - began) < seconds:
            memory.append((elapsed, resident_mib(recorder.pid)))
            time.sleep(MEMORY_PERIOD_S)
        used = (cpu_seconds(recorder.pid) - cpu) / (time.monotonic() - began)
        stopped = time.monotonic()
        answer = call(node, StopEpisode, "stop_episode", StopEpisode.Request(outcome="success"))
        if not answer.success:
            print(answer.message, file=sys.stderr)
        closing_s = time.monotonic() - stopped
    finally:
        recorder.send_signal(signal.SIGINT)
        recorder.wait()
    steady = np.array([entry for entry in memory if entry[0] >= WARM_UP_S])
    result = losses(root / name)
    lost = sum(topic["lost"] for topic in result["topics"].values())
    return {
        "lost": lost,
        "recorder_cpu_share_of_one_core": round(used, 3),
        "memory_mib": {
            "median": round(float(np.median(steady[:, 1])), 1),
            "largest": round(float(steady[:, 1].max()), 1),
            "growth_per_minute": round(float(60.0 * np.polyfit(steady[:, 0], steady[:, 1], 1)[0]), 2),
        },
        "closing_s": round(closing_s, 2),
        **result,
    }


def main() -> None:
    """Publish, record, compare, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument(
        "--directory", type=Path, help="where to record, on the disk to be measured; deleted afterwards"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results/recording.json")
    arguments = parser.parse_args()
    if arguments.seconds < 2 * WARM_UP_S:
        parser.error(f"--seconds {arguments.seconds}: expected {2 * WARM_UP_S} or more")
    load = os.getloadavg()[0]
    processes = multiprocessing.get_context("spawn")
    stop = processes.Event()
    sources = [
        processes.Process(target=publish, args=(COLOUR + DEPTH, CAMERA_HZ, stop)),
        processes.Process(target=publish, args=([STATE], STATE_HZ, stop)),
    ]
    root = Path(tempfile.mkdtemp(prefix="recording_", dir=arguments.directory))
    for source in sources:
        source.start()
    rclpy.init()
    node = Node("recording_benchmark")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinner = threading.Thread(target=executor.spin)
    spinner.start()
    try:
        result = measure(node, arguments.seconds, root)
    finally:
        stop.set()
        for source in sources:
            source.join()
        executor.shutdown()
        spinner.join()
        rclpy.shutdown()
        shutil.rmtree(root)
    report = {
        "machine": {"cores": os.cpu_count(), "load_average_before": round(load, 2)},
        "streams_hz": RATES,
        "seconds": arguments.seconds,
        **result,
    }
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
