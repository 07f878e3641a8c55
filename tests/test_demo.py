"""`molmoact demo` as somebody runs it: one episode, a full disk, an impatient user, a broken checkpoint."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import cv2
import pytest
from molmoact_msgs.msg import BridgeStatus
from processes import Processes, TestProcess, wait_for
from rosbags.rosbag2 import Reader
from systems import START_TIMEOUT_S, Latest, nano_checkpoint


def start_demo(processes: Processes, out: Path, *arguments: str) -> TestProcess:
    return processes.start_module("molmoact_bringup.demo", "--out", str(out), *arguments)


def summary_of(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def test_episode_leaves_a_summary_a_bag_and_a_video(processes, tmp_path):
    nano_checkpoint()
    demo = start_demo(processes, tmp_path / "run", "--episodes", "1", "--seed", "4000", "--timeout", "20")
    assert demo.wait(START_TIMEOUT_S) == 0, demo.output
    assert "1/1" in demo.output and "seed 4000" in demo.output

    summary = summary_of(tmp_path / "run")
    assert summary["complete"] and summary["seeds"] == [4000]
    assert summary["episodes"][0]["outcome"] in ("success", "failure")
    assert summary["episodes"][0]["chunks"] > 0
    assert summary["limit_violations"]["total"] == 0 < summary["limit_violations"]["targets_checked"]
    assert summary["chunk_latency_ms"]["count"] > 0
    assert summary["rates_hz"]["/camera/front/color/image_raw"] > 0
    assert set(summary["refusals"]) >= {"not_finite", "stale", "wrong_task"}

    with Reader(tmp_path / "run" / "bag") as bag:
        recorded = {connection.topic: connection.msgcount for connection in bag.connections}
    for topic in ("/target_pose", "/action_chunk", "/reasoning", "/camera/wrist/color/image_raw/compressed"):
        assert recorded[topic] > 0, topic

    video = cv2.VideoCapture(str(tmp_path / "run" / "front.mp4"))
    assert video.isOpened() and video.get(cv2.CAP_PROP_FRAME_COUNT) > 10
    video.release()


def test_broken_checkpoint_ends_the_demo_with_the_reason_of_the_policy(processes, tmp_path):
    (tmp_path / "empty").mkdir()
    demo = start_demo(processes, tmp_path / "run", "--checkpoint", str(tmp_path / "empty"))
    assert demo.wait(START_TIMEOUT_S) == 1
    reason = summary_of(tmp_path / "run")["ended"]
    assert "policy exited with code 1" in reason and "config.json" in reason
    assert reason in demo.output
    assert "Traceback" not in demo.output
    assert processes.descendants() == []


def test_interrupt_holds_the_arm_and_still_writes_the_summary(processes, tmp_path, ros_node):
    nano_checkpoint()
    status = Latest(ros_node, BridgeStatus, "bridge_status")
    demo = start_demo(processes, tmp_path / "run", "--episodes", "3", "--no-video")
    wait_for(
        lambda: status.message and status.message.mode == BridgeStatus.POLICY,
        "the policy to be in control",
        START_TIMEOUT_S,
    )
    demo.signal(signal.SIGINT)
    assert demo.wait(60.0) == 1
    assert summary_of(tmp_path / "run")["ended"] == "interrupted by SIGINT"
    wait_for(lambda: status.message.mode != BridgeStatus.POLICY, "the arm to hold")
    assert processes.descendants() == []


def test_full_disk_ends_the_demo_with_the_arm_holding(processes, tmp_path, ros_node):
    nano_checkpoint()
    disk = tmp_path / "disk"
    disk.mkdir()
    # Two MiB more than a bag leaves free; seen by the demo and its children only.
    mount = f"mount -t tmpfs -o size=102m tmpfs {disk}"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "sh", "-c", mount], check=False).returncode:
        pytest.skip("a disk of its own takes user namespaces")
    status = Latest(ros_node, BridgeStatus, "bridge_status")
    run = f"{mount} && exec python -m molmoact_bringup.demo --no-video --out {disk}/run"
    demo = processes.start(["unshare", "-rm", "sh", "-c", run], "demo")
    assert demo.wait(START_TIMEOUT_S) == 1, demo.output
    assert "the disk is full" in demo.output
    assert "Traceback" not in demo.output
    wait_for(lambda: status.message.mode != BridgeStatus.POLICY, "the arm to hold")
    assert processes.descendants() == []
