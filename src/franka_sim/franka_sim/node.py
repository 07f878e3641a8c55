"""The simulator as a ROS node: paced physics, and what the drivers of the real robot and cameras would publish."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import mujoco
from builtin_interfaces.msg import Time
from molmoact_msgs.msg import SceneStatus
from molmoact_msgs.srv import ResetScene
from molmoact_ros.diagnostics import OK, WARN, DiagnosticsPublisher, Status
from molmoact_ros.node import ConfigurationError, ManagedNode, run
from molmoact_ros.qos import qos_profile
from molmoact_ros.stamps import from_seconds
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rosgraph_msgs.msg import Clock
from tf2_msgs.msg import TFMessage

from franka_sim import errors
from franka_sim.arm_interface import ArmInterface
from franka_sim.camera_publisher import CameraPublisher
from franka_sim.pacing import Pacer, Periodic
from franka_sim.parameters import SimulatorParameters, require_length
from franka_sim.scene import TIMESTEP_S, SceneConfig, SensorConfig, model_prefix
from franka_sim.simulation import Simulation
from franka_sim.transforms import WORLD, FrameTree, object_transforms

# How often the physics thread wakes: rarer saves switches, oftener makes stamps more even.
PHYSICS_TICK_S = 0.002
# Simulated time waits for a camera no longer than this: a camera that hangs shall not look like a dead simulator.
CAMERA_TIMEOUT_S = 1.0
STATUS_RATE_HZ = 10.0
# Simulated time slower than this share of what was asked for is worth a warning.
SLOW_SHARE = 0.97


@dataclass(frozen=True)
class Episode:
    """What was asked for when the scene was laid out."""

    task: str
    seed: int
    instruction: str


class SimulatorNode(ManagedNode):
    """Arms, hands and cameras of one scene. It moves while active; deactivated, the world stands still."""

    p: SimulatorParameters

    def __init__(self, **kwargs) -> None:
        super().__init__("franka_sim", SimulatorParameters, **kwargs)

    # Lifecycle

    def set_up(self) -> None:
        require_length("arm_prefixes", self.p.arm_prefixes, "arms", self.p.arms)
        if self.p.scene is None:
            raise ConfigurationError("parameter 'scene': not set, expected the path of a scene file")
        try:
            config = SceneConfig.load(self.p.scene)
            self._simulation = Simulation(config, self.p.arm_prefixes, engage_on_target=True)
            self._lay_out(self.p.task, self.p.seed)
            self._create_interfaces()
        except errors.FrankaSimError as error:
            raise ConfigurationError(str(error)) from error

    def start(self) -> None:
        for arm in self._arms:
            arm.forget_targets()
        self._pacer = Pacer(self.p.real_time_factor, TIMESTEP_S)
        self._physics = self.spawn("physics", self._run_physics)

    def stop(self, reason: str) -> None:
        for arm in self._arms:
            arm.interrupt(f"the simulator stops: {reason}")
        self._physics.stop()

    # Interfaces

    def _create_interfaces(self) -> None:
        self._tf = self.create_publisher(TFMessage, "/tf", qos_profile("reliable", depth=100))
        self._tf_data = mujoco.MjData(self._simulation.model)
        self._clock_publisher = (
            self.create_publisher(Clock, "/clock", qos_profile("reliable")) if self.p.publish_clock else None
        )
        # The truth, for the scripted operator; not in /tf, where nothing of it would be on a real robot.
        self._objects = self.create_publisher(TFMessage, "franka_sim/objects", qos_profile("reliable"))
        self._status = self.create_publisher(SceneStatus, "franka_sim/scene_status", qos_profile("reliable", depth=10))
        self._cameras = [
            CameraPublisher(self, self._simulation, settings, self._sensor(settings.name), seed=index)
            for index, settings in enumerate(self.p.camera_settings())
        ]
        self._frames = FrameTree(self._simulation.model, self.p.arm_prefixes, self.p.cameras)
        self._arms = [
            ArmInterface(self, self._simulation, self._frames, index, name) for index, name in enumerate(self.p.arms)
        ]
        self.create_service(
            ResetScene, "franka_sim/reset", self._reset, callback_group=MutuallyExclusiveCallbackGroup()
        )
        DiagnosticsPublisher(self, self._report)

    def _sensor(self, camera: str) -> SensorConfig:
        """A camera on a hand is in the scene file once, and in the model once per arm, with the arm's prefix."""
        config = self._simulation.config
        for name in (camera, *(camera.removeprefix(model_prefix(prefix)) for prefix in self.p.arm_prefixes)):
            if name in config.cameras:
                return config.sensors[config.cameras[name].sensor]
        raise ConfigurationError(f"parameter 'cameras': '{camera}' is not in the scene ({', '.join(config.cameras)})")

    def _reset(self, request: ResetScene.Request, response: ResetScene.Response) -> ResetScene.Response:
        if not self.active:
            response.message = "the simulator is not active"
            return response
        for arm in self._arms:
            arm.interrupt("the scene was reset")
        try:
            self._lay_out(request.task, request.seed)
        except errors.TaskError as error:
            response.message = str(error)
            return response
        for arm in self._arms:
            arm.forget_targets()
        response.success, response.instruction = True, self._episode.instruction
        response.message = f"{request.task}, seed {request.seed}"
        return response

    def _lay_out(self, task: str, seed: int) -> None:
        self._episode = Episode(task, seed, self._simulation.reset(task, seed))

    def _report(self) -> list[Status]:
        if not self.active:
            return [Status("physics", WARN, "not active")]
        return [
            self._physics_status(),
            *(Status(f"arm {arm.name}", values={"targets_ignored": arm.targets_ignored}) for arm in self._arms),
            *(
                Status(
                    f"camera {camera.settings.name}",
                    values={"rate_hz": camera.rate.rate(time.monotonic()), "skipped": camera.skipped},
                )
                for camera in self._cameras
            ),
        ]

    def _physics_status(self) -> Status:
        asked, achieved = self.p.real_time_factor, self._pacer.achieved
        slow = achieved < SLOW_SHARE * asked
        return Status(
            "physics",
            WARN if slow else OK,
            f"{achieved:.2f} times real time, {asked:.2f} asked for",
            {"real_time_factor": achieved, "simulated_time_s": self._simulation.time},
        )

    # Physics

    def _run_physics(self, stop: threading.Event) -> None:
        schedule = self._schedule()
        while not stop.is_set():
            for arm in self._arms:
                arm.follow()
            for _ in range(self._pacer.steps_due(time.monotonic())):
                self._simulation.step()
                self._publish_due(schedule)
            stop.wait(PHYSICS_TICK_S)

    def _schedule(self) -> list[tuple[Periodic, Callable[[Time], None]]]:
        """What is published when, in this order when several things are due at one moment."""
        events: list[tuple[float, float, Callable[[Time], None]]] = []  # rate, phase
        if self._clock_publisher is not None:
            events.append((self.p.clock_rate, 0.0, self._publish_clock))
        events += [
            *((self.p.state_rate, 0.0, arm.publish_state) for arm in self._arms),
            *((self.p.joint_state_rate, 0.0, arm.publish_joints) for arm in self._arms),
            *((self.p.gripper_state_rate, 0.0, arm.publish_fingers) for arm in self._arms),
            (self.p.joint_state_rate, 0.0, self._publish_transforms),
            (self.p.joint_state_rate, 0.0, self._publish_objects),
            *self._camera_events(),
            (STATUS_RATE_HZ, 0.0, self._publish_status),
        ]
        now = self._steps()
        return [(Periodic(rate, TIMESTEP_S, now, phase), publish) for rate, phase, publish in events]

    def _camera_events(self) -> list[tuple[float, float, Callable[[Time], None]]]:
        """Cameras take turns within a period, as free-running ones do: no two pictures are rendered at once.

        The pause after a round is longer than those in it, so that the pictures closest to each other are of one round.
        """
        turns = len(self._cameras) + 1
        return [
            (camera.settings.rate, 1.0 - index / turns, self._offer_to(camera))
            for index, camera in enumerate(self._cameras)
        ]

    def _publish_due(self, schedule: list[tuple[Periodic, Callable[[Time], None]]]) -> None:
        steps = self._steps()
        due = [publish for event, publish in schedule if event.take(steps)]
        if due:
            stamp = from_seconds(self._simulation.time) if self.p.publish_clock else self.get_clock().now().to_msg()
            for publish in due:
                publish(stamp)

    def _steps(self) -> int:
        return round(self._simulation.time / TIMESTEP_S)

    def _offer_to(self, camera: CameraPublisher) -> Callable[[Time], None]:
        def offer(stamp: Time) -> None:
            # On the wall clock a late frame is lost, as on a busy machine with real cameras. Simulated time can wait.
            if self.p.publish_clock and not camera.wait(CAMERA_TIMEOUT_S):
                self.get_logger().warning(f"camera '{camera.settings.name}': no frame for {CAMERA_TIMEOUT_S} s")
            camera.offer(stamp)

        return offer

    def _publish_clock(self, stamp: Time) -> None:
        self._clock_publisher.publish(Clock(clock=stamp))

    def _publish_transforms(self, stamp: Time) -> None:
        self._simulation.copy_data(self._tf_data)
        self._tf.publish(self._frames.message(self._tf_data, stamp))

    def _publish_objects(self, stamp: Time) -> None:
        if self._objects.get_subscription_count() > 0:
            self._objects.publish(object_transforms(self._simulation.object_poses(), stamp))

    def _publish_status(self, stamp: Time) -> None:
        for arm in self._arms:
            arm.engage_unless_commanded()
        episode = self._episode  # before the outcome: a success must never be put down to the scene that comes next
        outcome = self._simulation.outcome()
        message = SceneStatus(
            task=episode.task,
            instruction=episode.instruction,
            seed=episode.seed,
            success=outcome.success,
            detail=outcome.detail,
        )
        message.header.stamp, message.header.frame_id = stamp, WORLD
        self._status.publish(message)


def main() -> None:
    sys.exit(run(SimulatorNode))


if __name__ == "__main__":
    main()
