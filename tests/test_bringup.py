"""The whole simulated system: started, ended, and with one of its nodes failing."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import replace
from pathlib import Path

from action_msgs.msg import GoalStatus
from molmoact_msgs.action import RunTask
from molmoact_msgs.msg import BridgeStatus
from molmoact_msgs.srv import SetMode
from molmoact_ros.actions import ActionClient
from processes import Processes, TestProcess, wait_for
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from systems import START_TIMEOUT_S, Latest, call, nano_checkpoint, nodes_of_the_graph, start_node, wait_until_active


def start_system(processes: Processes, *arguments: str) -> TestProcess:
    return processes.start_module("molmoact_bringup.local", "robot:=sim", "use_sim_time:=true", *arguments)


def pid_of(processes: Processes, executable: str) -> int:
    """Of the one node started from `lib/<package>/<executable>`."""

    def found() -> list[int]:
        command = f"/{executable}".encode()
        return [
            pid
            for pid in processes.descendants()
            if any(part.endswith(command) for part in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:2])
        ]

    return wait_for(found, f"process {executable}")[0]


def test_system_starts_and_ends_on_ctrl_c_without_leaving_a_process(processes, ros_node):
    nano_checkpoint()
    chunks = ActionClient(ros_node, RunTask, "run_task")
    status = Latest(ros_node, BridgeStatus, "bridge_status")
    system = start_system(processes)
    wait_for(chunks.server_is_ready, "the policy", START_TIMEOUT_S)
    wait_for(lambda: status.message, "the bridge", START_TIMEOUT_S)
    assert status.message.mode == BridgeStatus.HOLD
    system.signal(signal.SIGINT)
    assert system.wait(START_TIMEOUT_S) == 0, system.output
    assert "stopped (SIGINT)" in system.output
    assert processes.descendants() == []


def test_killed_policy_leaves_the_arm_holding_and_ends_the_system_with_its_reason(processes, ros_node):
    nano_checkpoint()
    status = Latest(ros_node, BridgeStatus, "bridge_status")
    system = start_system(processes, "instruction:=pick up the red cube")
    set_mode = ros_node.create_client(SetMode, "set_mode")
    wait_for(lambda: status.message, "the bridge", START_TIMEOUT_S)
    wait_for(
        lambda: call(set_mode, SetMode.Request(mode=BridgeStatus.POLICY)).success, "the bridge to let the policy act"
    )
    wait_for(lambda: status.message.chunks_accepted > 0, "a chunk", START_TIMEOUT_S)
    os.kill(pid_of(processes, "policy"), signal.SIGKILL)
    assert system.wait(START_TIMEOUT_S) == 1, system.output
    assert "policy was killed by SIGKILL" in system.output
    wait_for(
        lambda: status.message.mode != BridgeStatus.POLICY and status.message.reason, "the arm to hold with a reason"
    )
    assert processes.descendants() == []


def test_second_system_in_the_domain_is_refused_before_it_moves_anything(processes, ros_node):
    nano_checkpoint()
    status = Latest(ros_node, BridgeStatus, "bridge_status")
    start_system(processes)
    wait_for(lambda: status.message, "the bridge", START_TIMEOUT_S)
    second = start_system(processes)
    assert second.wait(START_TIMEOUT_S) == 1
    # Whichever node discovery finds first: one is enough to refuse.
    assert re.search(r"already has .*/(franka_sim|franka_bridge|policy)", second.output), second.output
    assert status.message.mode == BridgeStatus.HOLD, status.message.reason


def test_camera_that_stops_ends_the_task_by_its_name(processes, ros_node):
    nano_checkpoint()
    graph = nodes_of_the_graph()
    start_node(processes, graph["franka_sim"])
    patient = {**graph["policy"].parameters, "max_bad_replies": 1000}  # the camera shall end the task, nothing else
    policy = replace(graph["policy"], parameters=patient)
    start_node(processes, policy, {"camera/wrist/color/image_raw": "relay/wrist"})
    relay = ros_node.create_publisher(Image, "relay/wrist", 10)
    wrist = ros_node.create_subscription(
        Image, "camera/wrist/color/image_raw", relay.publish, qos_profile_sensor_data, raw=True
    )
    chunk_client = ActionClient(ros_node, RunTask, "run_task")
    wait_until_active(ros_node, "policy")
    wait_for(chunk_client.server_is_ready, "the policy")
    sent = chunk_client.send_goal_async(RunTask.Goal(instruction="pick up the red cube"))
    wait_for(sent.done, "the goal to be answered")
    ros_node.destroy_subscription(wrist)
    result = sent.result().get_result_async()
    wait_for(result.done, "the task to end")
    assert result.result().status == GoalStatus.STATUS_ABORTED
    assert "wrist" in result.result().result.reason
