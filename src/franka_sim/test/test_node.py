"""The simulator as other nodes meet it: over DDS, in a process of its own, on the simulated clock."""

from __future__ import annotations

import math

import pytest
from franka_msgs.action import ErrorRecovery, Grasp, Homing, Move
from franka_msgs.msg import FrankaRobotState
from molmoact_ros.stamps import to_seconds
from processes import wait_for
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

IDLE, MOVE, REFLEX = (getattr(FrankaRobotState, f"ROBOT_MODE_{name}") for name in ("IDLE", "MOVE", "REFLEX"))

PUBLISHED = {
    "/current_pose": "geometry_msgs/msg/PoseStamped",
    "/current_twist": "geometry_msgs/msg/TwistStamped",
    "/joint_states": "sensor_msgs/msg/JointState",
    "/franka_robot_state_broadcaster/robot_state": "franka_msgs/msg/FrankaRobotState",
    "/franka_gripper/joint_states": "sensor_msgs/msg/JointState",
    "/tf": "tf2_msgs/msg/TFMessage",
    "/clock": "rosgraph_msgs/msg/Clock",
    "/franka_sim/scene_status": "molmoact_msgs/msg/SceneStatus",
    "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
    "/camera/front/color/image_raw/compressed": "sensor_msgs/msg/CompressedImage",
} | {
    f"/camera/{camera}/{stream}/{topic}": f"sensor_msgs/msg/{kind}"
    for camera in ("front", "wrist")
    for stream in ("color", "aligned_depth_to_color")
    for topic, kind in (("image_raw", "Image"), ("camera_info", "CameraInfo"))
}


@pytest.mark.parametrize("topic", PUBLISHED)
def test_topics_have_the_drivers_names_types_and_reliability(simulator, topic):
    publishers = wait_for(lambda: simulator.get_publishers_info_by_topic(topic), topic)
    assert [publisher.topic_type for publisher in publishers] == [PUBLISHED[topic]]
    assert publishers[0].qos_profile.reliability == ReliabilityPolicy.RELIABLE


def test_a_target_is_taken_from_a_reliable_topic(simulator):
    (subscription,) = simulator.get_subscriptions_info_by_topic("/target_pose")
    assert subscription.topic_type == "geometry_msgs/msg/PoseStamped"
    assert subscription.qos_profile.reliability == ReliabilityPolicy.RELIABLE


def test_joint_states_name_arm_and_fingers(simulator):
    simulator.watch(JointState, "joint_states")
    simulator.watch(JointState, "franka_gripper/joint_states")
    assert simulator.reset("pick", 1).success
    arm = [f"fr3_joint{i}" for i in range(1, 8)]
    fingers = ["fr3_finger_joint1", "fr3_finger_joint2"]
    merged, hand = simulator.next("joint_states"), simulator.next("franka_gripper/joint_states")
    assert list(merged.name) == arm + fingers
    assert list(hand.name) == fingers
    assert list(hand.position) == pytest.approx([0.04, 0.04], abs=1e-3)  # half of the width each
    assert list(merged.position[:7]) == pytest.approx(list(simulator.state.measured_joint_state.position), abs=1e-3)


def test_transforms_chain_from_the_base_to_the_measured_tool_and_to_both_cameras(simulator):
    simulator.watch(TFMessage, "/tf")
    assert simulator.reset("pick", 2).success
    parents = {t.child_frame_id: t.header.frame_id for t in simulator.next("/tf").transforms}
    for leaf in ("fr3_hand_tcp", "camera_wrist_color_optical_frame"):
        chain = [leaf]
        while chain[-1] in parents:
            chain.append(parents[chain[-1]])
        assert chain[-4:] == ["fr3_link2", "fr3_link1", "fr3_link0", "world"]
    assert parents["camera_front_color_optical_frame"] == "world"


def test_robot_state_is_in_the_frames_of_the_arm(simulator):
    state = simulator.state
    assert state.o_t_ee.header.frame_id == "fr3_link0"
    assert state.k_f_ext_hat_k.header.frame_id == "fr3_hand_tcp"
    assert state.f_t_ee.header.frame_id == "fr3_link8"
    assert state.f_t_ee.pose.position.z == pytest.approx(0.1034, abs=1e-3)


def test_an_unknown_task_is_refused_by_name_and_changes_nothing(simulator):
    assert simulator.reset("pick", 3).instruction == "pick up the red cube"
    refused = simulator.reset("juggle", 4)
    assert not refused.success
    assert "juggle" in refused.message and "pick" in refused.message
    status = simulator.next("franka_sim/scene_status")
    assert (status.task, status.seed) == ("pick", 3)


def test_an_arm_follows_its_only_publisher(simulator):
    assert simulator.reset("pick", 5).success
    publisher = simulator.target_publisher()
    try:
        simulator.wait_for_mode(MOVE)
        target = simulator.measured_pose(dz=-0.03)
        publisher.publish(target)
        goal = target.pose.position.z
        wait_for(lambda: abs(simulator.state.o_t_ee.pose.position.z - goal) < 0.005, "the arm to arrive")
    finally:
        simulator.destroy_publisher(publisher)


def test_targets_are_ignored_while_they_have_two_publishers(simulator):
    assert simulator.reset("pick", 6).success
    simulator.wait_for_mode(MOVE)
    publishers = [simulator.target_publisher(), simulator.target_publisher()]
    try:

        def stands_still() -> bool:
            before = simulator.measured_pose()
            publishers[0].publish(simulator.measured_pose(dz=-0.02))
            simulator.wait_until_simulated(simulator.state.time + 0.3)
            return abs(simulator.state.o_t_ee.pose.position.z - before.pose.position.z) < 0.003

        # The second publisher is discovered a moment after it was made.
        wait_for(stands_still, "the arm to ignore its targets")
        target = simulator.measured_pose(dz=-0.05)
        simulator.destroy_publisher(publishers.pop())
        wait_for(lambda: simulator.count_publishers("/target_pose") == 1, "the second publisher to go")

        def arrived() -> bool:
            publishers[0].publish(target)
            return abs(simulator.state.o_t_ee.pose.position.z - target.pose.position.z) < 0.005

        wait_for(arrived, "the arm to follow the remaining publisher")
    finally:
        for publisher in publishers:
            simulator.destroy_publisher(publisher)


@pytest.mark.parametrize("fault", ["frame", "nan", "quaternion"])
def test_a_malformed_target_is_ignored(simulator, fault):
    assert simulator.reset("pick", 7).success
    simulator.wait_for_mode(MOVE)
    publisher = simulator.target_publisher()
    try:
        before, target = simulator.measured_pose(), simulator.measured_pose(dz=-0.05)
        if fault == "frame":
            target.header.frame_id = "map"
        elif fault == "nan":
            target.pose.position.x = math.nan
        else:
            target.pose.orientation.x = target.pose.orientation.y = 0.0
            target.pose.orientation.z = target.pose.orientation.w = 0.0
        publisher.publish(target)
        simulator.wait_until_simulated(simulator.state.time + 0.5)
        assert simulator.state.o_t_ee.pose.position.z == pytest.approx(before.pose.position.z, abs=0.003)
        assert simulator.state.robot_mode == MOVE
    finally:
        simulator.destroy_publisher(publisher)


def test_after_a_reset_a_commanded_arm_waits_for_a_target_close_to_it(simulator):
    publisher = simulator.target_publisher()
    try:
        assert simulator.reset("pick", 8).success
        simulator.wait_for_mode(IDLE)
        publisher.publish(simulator.measured_pose(dx=0.1))
        simulator.wait_until_simulated(simulator.state.time + 0.3)
        assert simulator.state.robot_mode == IDLE
        publisher.publish(simulator.measured_pose(dx=0.005))
        simulator.wait_for_mode(MOVE)
    finally:
        simulator.destroy_publisher(publisher)


def test_a_target_out_of_reach_of_the_controller_is_a_reflex_until_recovered(simulator):
    assert simulator.reset("pick", 9).success
    simulator.wait_for_mode(MOVE)
    publisher = simulator.target_publisher()
    try:
        publisher.publish(simulator.measured_pose(dx=0.1, dz=0.6))
        simulator.wait_for_mode(REFLEX)
        assert simulator.state.current_errors.cartesian_reflex
        publisher.publish(simulator.measured_pose())
        simulator.wait_until_simulated(simulator.state.time + 0.3)
        assert simulator.state.robot_mode == REFLEX

        simulator.act(ErrorRecovery, "action_server/error_recovery", ErrorRecovery.Goal())
        simulator.wait_for_mode(IDLE)
        assert not simulator.state.current_errors.cartesian_reflex
        assert simulator.state.last_motion_errors.cartesian_reflex
        publisher.publish(simulator.measured_pose())
        simulator.wait_for_mode(MOVE)
    finally:
        simulator.destroy_publisher(publisher)


def test_a_gripper_move_takes_over_a_second_and_ends_at_its_width(simulator):
    assert simulator.reset("pick", 10).success
    start = simulator.state.time
    result, feedback = simulator.act(Move, "franka_gripper/move", Move.Goal(width=0.02, speed=0.1))
    assert result.success, result.error
    assert simulator.state.time - start > 1.0
    assert feedback[-1].current_width == pytest.approx(0.02, abs=0.002)
    assert any(0.025 < sample.current_width < 0.075 for sample in feedback)


def test_a_grasp_on_air_fails(simulator):
    assert simulator.reset("pick", 11).success
    goal = Grasp.Goal(width=0.0, speed=0.1, force=40.0)
    goal.epsilon.inner = goal.epsilon.outer = 0.08
    result, _ = simulator.act(Grasp, "franka_gripper/grasp", goal)
    assert not result.success
    assert "nothing between the fingers" in result.error


def test_homing_opens_the_hand_after_closing_it(simulator):
    assert simulator.reset("pick", 12).success
    result, feedback = simulator.act(Homing, "franka_gripper/homing", Homing.Goal())
    widths = [sample.current_width for sample in feedback]
    assert result.success, result.error
    assert min(widths) < 0.005
    assert widths[-1] == pytest.approx(0.08, abs=0.003)


@pytest.mark.parametrize(
    ("goal", "fault"),
    [
        (Move.Goal(width=0.2, speed=0.1), "width 0.2"),
        (Move.Goal(width=math.nan, speed=0.1), "width nan"),
        (Move.Goal(width=0.02, speed=0.0), "speed 0.0"),
    ],
)
def test_a_gripper_goal_that_cannot_be_done_is_aborted_by_name(simulator, goal, fault):
    result, _ = simulator.act(Move, "franka_gripper/move", goal)
    assert not result.success
    assert fault in result.error


def test_a_newer_gripper_command_replaces_the_older(simulator):
    assert simulator.reset("pick", 13).success
    older, _ = simulator.begin(Move, "franka_gripper/move", Move.Goal(width=0.0, speed=0.02))
    result, _ = simulator.act(Move, "franka_gripper/move", Move.Goal(width=0.06, speed=0.1))
    replaced = simulator.finish(older)
    assert result.success, result.error
    assert not replaced.success
    assert "newer command" in replaced.error


def test_a_stopped_gripper_command_says_so(simulator):
    assert simulator.reset("pick", 14).success
    handle, _ = simulator.begin(Move, "franka_gripper/move", Move.Goal(width=0.0, speed=0.02))
    assert simulator.call(Trigger, "franka_gripper/stop").success
    result = simulator.finish(handle)
    assert not result.success
    assert "franka_gripper/stop" in result.error


def test_stamps_are_simulated_time_when_the_simulator_is_the_clock(simulator):
    state = simulator.next("franka_robot_state_broadcaster/robot_state")
    assert to_seconds(state.header.stamp) == pytest.approx(state.time, abs=0.01)


@pytest.mark.parametrize(
    ("parameters", "fault"),
    [
        ({"scene": "/nowhere/scene.yaml"}, "/nowhere/scene.yaml"),
        ({"cameras": ["front", "ceiling"]}, "ceiling"),
    ],
)
def test_a_wrong_parameter_ends_the_node_with_its_name(start_simulator, parameters, fault):
    process = start_simulator(namespace="/other", **parameters)
    assert process.wait() == 1
    assert fault in process.output.strip().splitlines()[-1]
