"""The simulated world: physics at 1 kHz, an impedance controller and a hand per arm, and the task being judged.

Every public method may be called from any thread. Poses of an arm are those of its fr3_hand_tcp in its own fr3_link0;
poses of objects are in the world, which is the first arm's fr3_link0. Quaternions are x y z w.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import mujoco
import numpy as np

from franka_sim.errors import ConfigurationError, FrankaSimError
from franka_sim.gripper import Gripper, GripperState
from franka_sim.impedance import CartesianImpedance
from franka_sim.rotations import (
    TOOL_DOWN,
    about_z,
    matrix_from_quaternion,
    quaternion_from_matrix,
    vector_from_matrix,
)
from franka_sim.scene import TIMESTEP_S, SceneConfig, build_model, model_prefix
from franka_sim.tasks import Facts, TaskSpec, judge, parked, sample_layout

# franka_msgs/FrankaRobotState.robot_mode
IDLE, MOVE, REFLEX = 1, 2, 4

JUDGE_EVERY = 10  # steps
SETTLE_STEPS = 50  # objects come to rest before an episode starts
ENGAGE_POSITION_M, ENGAGE_ROTATION_RAD = 0.02, 0.1
IK_ITERATIONS, IK_TOLERANCE = 200, 1e-6


@dataclass(frozen=True)
class ArmState:
    """One arm at one moment. Poses, twist and wrench in the arm's base frame; SI units."""

    time: float
    position: np.ndarray  # [3] of the TCP
    quaternion: np.ndarray  # [4] x y z w
    linear_velocity: np.ndarray  # [3]
    angular_velocity: np.ndarray  # [3]
    q: np.ndarray  # [7]
    dq: np.ndarray  # [7]
    tau: np.ndarray  # [7] commanded, without gravity
    gripper_width: float
    robot_mode: int  # IDLE, MOVE or REFLEX
    reflex_reason: str  # "" unless in REFLEX
    target_position: np.ndarray  # [3] what the controller is asked for
    target_quaternion: np.ndarray  # [4]
    external_force: np.ndarray  # [3] N on the arm, filtered
    external_torque: np.ndarray  # [3] Nm about the TCP, filtered
    external_joint_torque: np.ndarray  # [7] Nm, as if all of it acted at the TCP


@dataclass(frozen=True)
class Outcome:
    """Whether the task has been done since the reset (its condition held long enough), and what there is to see now."""

    success: bool
    detail: str


class Simulation:
    """A scene with one arm per prefix ("" alone; "left/", "right/" for two). It has no task until `reset`."""

    def __init__(self, config: SceneConfig, arm_prefixes: tuple[str, ...] = ("",), engage_on_target: bool = False):
        """With `engage_on_target` an arm is IDLE after a reset or recovery until a target close to it arrives."""
        self.config = config
        self.arm_prefixes = tuple(arm_prefixes)
        self.model = build_model(config, self.arm_prefixes)
        self._data = mujoco.MjData(self.model)
        self._lock = threading.RLock()
        self._engage_on_target = engage_on_target
        self._arms = [_Arm(self.model, config, index, prefix) for index, prefix in enumerate(self.arm_prefixes)]
        self._objects = {name: _ObjectIds.of(self.model, name) for name in config.object_names}
        self._finger_bodies = [
            self.model.body(f"{model_prefix(prefix)}panda_{side}finger").id
            for prefix in self.arm_prefixes
            for side in ("left", "right")
        ]
        self._task: TaskSpec | None = None
        self._steps = 0
        self._clear_outcome()
        with self._lock:
            self._place_objects({})
            for arm in self._arms:
                arm.start(self._data, np.asarray(config.home.tcp), IDLE)

    @property
    def time(self) -> float:
        """Seconds of simulated time; never goes back, not even on a reset."""
        return self._steps * TIMESTEP_S

    @property
    def task(self) -> TaskSpec | None:
        """The task of the last reset."""
        return self._task

    def reset(self, task: str, seed: int) -> str:
        """Lay out the task's scene from the seed (same task and seed, same scene) and return its instruction.

        The arms start near home with open hands. Raises TaskError.
        """
        spec = TaskSpec.parse(task, self.config)
        rng = np.random.default_rng(seed)
        layout = sample_layout(spec, self.config, rng)
        spread = np.asarray(self.config.home.tcp_spread)
        with self._lock:
            mujoco.mj_resetData(self.model, self._data)
            self._place_objects(layout)
            for arm in self._arms:
                arm.start(self._data, np.asarray(self.config.home.tcp) + rng.uniform(-spread, spread), MOVE)
            self._task = spec
            for _ in range(SETTLE_STEPS):
                self._step_once()
            for arm in self._arms:
                arm.release(self._data, IDLE if self._engage_on_target else MOVE)
            self._clear_outcome()
        return spec.instruction

    def step(self, n: int = 1) -> None:
        """Advance n milliseconds: control, physics, hands and the judging of the task."""
        with self._lock:
            for _ in range(n):
                self._step_once()
                if self._task is not None and self._steps % JUDGE_EVERY == 0:
                    self._judge()

    def set_target(self, arm: int, position: np.ndarray, quaternion: np.ndarray) -> bool:
        """New target pose of an arm's TCP: [3] m and [4] x y z w in its base frame. False when the arm does not follow.

        Raises FrankaSimError when a number is not finite or the quaternion has no direction.
        """
        numbers = np.concatenate([np.asarray(position, dtype=float), np.asarray(quaternion, dtype=float)])
        if numbers.shape != (7,) or not np.all(np.isfinite(numbers)) or np.linalg.norm(numbers[3:]) < 1e-6:
            raise FrankaSimError(f"target pose {numbers.tolist()}: expected finite x y z and a quaternion x y z w")
        with self._lock:
            return self._arms[arm].set_target(self._data, numbers[:3], matrix_from_quaternion(numbers[3:]))

    def engage(self, arm: int) -> None:
        """An IDLE arm starts following, from where it is."""
        with self._lock:
            if self._arms[arm].mode == IDLE:
                self._arms[arm].release(self._data, MOVE)

    def recover(self, arm: int) -> bool:
        """End a reflex: the target becomes the measured pose. False when there was none."""
        with self._lock:
            if self._arms[arm].mode != REFLEX:
                return False
            self._arms[arm].release(self._data, IDLE if self._engage_on_target else MOVE)
            return True

    def set_gripper(self, arm: int, width: float, speed: float, force: float | None = None) -> int:
        """Move the fingers (force None) or grasp with a force in N; m and m/s. Returns the command's number."""
        with self._lock:
            return self._arms[arm].gripper.command(width, speed, force)

    def home_gripper(self, arm: int) -> int:
        """Close and open the fingers fully. Returns the command's number."""
        with self._lock:
            return self._arms[arm].gripper.home()

    def stop_gripper(self, arm: int) -> None:
        """End the running gripper command where it is."""
        with self._lock:
            self._arms[arm].gripper.stop()

    def gripper_state(self, arm: int) -> GripperState:
        """The hand's command and width."""
        with self._lock:
            return self._arms[arm].gripper.state()

    def arm_state(self, arm: int) -> ArmState:
        """State of an arm, all of one moment."""
        with self._lock:
            return self._arms[arm].state(self._data, self.time)

    def outcome(self) -> Outcome:
        """How the task stands."""
        with self._lock:
            return Outcome(self._success, self._detail)

    def object_poses(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """(position [3], quaternion [4]) in the world of every object the task put on the table."""
        with self._lock:
            return {name: self._object_pose(name) for name in self._present}

    def copy_data(self, out: mujoco.MjData | None = None) -> mujoco.MjData:
        """A copy of the state to render from in another thread, into `out` when given."""
        copy = mujoco.MjData(self.model) if out is None else out
        with self._lock:
            mujoco.mj_copyData(copy, self.model, self._data)
        return copy

    def _step_once(self) -> None:
        mujoco.mj_step1(self.model, self._data)
        for arm in self._arms:
            arm.control(self._data)
        mujoco.mj_step2(self.model, self._data)
        mujoco.mj_rnePostConstraint(self.model, self._data)
        for arm in self._arms:
            arm.watch(self._data)
        self._steps += 1

    def _object_pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        address = self._objects[name].qpos
        w, x, y, z = self._data.qpos[address + 3 : address + 7]
        return self._data.qpos[address : address + 3].copy(), np.array([x, y, z, w])

    def _place_objects(self, layout: dict) -> None:
        """Put the layout's objects on the table; the others neither fall nor touch anything."""
        self._present = tuple(layout)
        for index, (name, ids) in enumerate(self._objects.items()):
            placement = layout.get(name, parked(index))
            self._data.qpos[ids.qpos : ids.qpos + 3] = placement.position
            self._data.qpos[ids.qpos + 3 : ids.qpos + 7] = [np.cos(placement.yaw / 2), 0, 0, np.sin(placement.yaw / 2)]
            self.model.body_gravcomp[ids.body] = 0.0 if name in layout else 1.0
            for geom, contype, conaffinity in ids.contacts:
                self.model.geom_contype[geom] = contype if name in layout else 0
                self.model.geom_conaffinity[geom] = conaffinity if name in layout else 0

    def _clear_outcome(self) -> None:
        self._success = False
        self._detail = ""
        self._since: int | None = None
        self._highest_cube = -np.inf
        self._lifted: dict[str, None] = {}  # other cubes that were picked up, in order

    def _judge(self) -> None:
        assert self._task is not None
        if self._success:  # what happens afterwards is no longer part of it
            return
        holds, self._detail = judge(self._task, self.config, self._facts(self._task))
        if not holds:
            self._since = None
            return
        if self._since is None:
            self._since = self._steps
        hold_time = getattr(self.config.tasks, self._task.kind).hold_time
        if (self._steps - self._since) * TIMESTEP_S >= hold_time:
            self._success = True

    def _facts(self, task: TaskSpec) -> Facts:
        cube = self._objects[task.cube_name]
        position, _ = self._object_pose(task.cube_name)
        self._highest_cube = max(self._highest_cube, position[2])
        touching = self._bodies_touching(cube.body)
        plate = self._object_pose(task.plate_name)[0] if task.plate is not None else None
        return Facts(
            cube=position,
            plate=plate,
            cube_touches_fingers=len(touching.intersection(self._finger_bodies)),
            cube_touches_plate=task.plate is not None and self._objects[task.plate_name].body in touching,
            cube_speed=float(np.linalg.norm(self._data.qvel[cube.dof : cube.dof + 3])),
            highest_cube=self._highest_cube,
            other_cubes_lifted=self._other_cubes_lifted(task),
        )

    def _other_cubes_lifted(self, task: TaskSpec) -> tuple[str, ...]:
        lifted = self.config.objects.cubes.size / 2 + self.config.tasks.pick.lift
        for colour in task.other_cubes:
            if self._object_pose(f"{colour}_cube")[0][2] > lifted:
                self._lifted[colour] = None
        return tuple(self._lifted)

    def _bodies_touching(self, body: int) -> set[int]:
        pairs = self.model.geom_bodyid[self._data.contact.geom]  # [contacts, 2]
        return set(pairs[:, 1][pairs[:, 0] == body]) | set(pairs[:, 0][pairs[:, 1] == body])


@dataclass(frozen=True)
class _ObjectIds:
    body: int
    qpos: int
    dof: int
    contacts: tuple[tuple[int, int, int], ...]  # geom, contype, conaffinity as built

    @classmethod
    def of(cls, model: mujoco.MjModel, name: str) -> _ObjectIds:
        body = model.body(name).id
        joint = model.body_jntadr[body]
        first, count = model.body_geomadr[body], model.body_geomnum[body]
        contacts = tuple(
            (g, int(model.geom_contype[g]), int(model.geom_conaffinity[g])) for g in range(first, first + count)
        )
        return cls(body, int(model.jnt_qposadr[joint]), int(model.jnt_dofadr[joint]), contacts)


class _Arm:
    """Indices of one arm in the model, its controller and its hand. The simulation's lock is held by the caller."""

    def __init__(self, model: mujoco.MjModel, config: SceneConfig, index: int, prefix: str):
        self._model, self._config = model, config
        prefix = model_prefix(prefix)
        base = config.arms[index]
        self._base_position, self._base_rotation = np.array(base.base_position), about_z(base.base_yaw)
        joints = [model.joint(f"{prefix}panda_joint{i}") for i in range(1, 8)]
        first_qpos, first_dof = int(joints[0].qposadr[0]), int(joints[0].dofadr[0])
        self._qpos, self._dofs = slice(first_qpos, first_qpos + 7), slice(first_dof, first_dof + 7)
        self._range = model.jnt_range[joints[0].id : joints[0].id + 7]
        fingers = [model.joint(f"{prefix}panda_finger_joint{i}") for i in (1, 2)]
        self._fingers_qpos = [int(f.qposadr[0]) for f in fingers]
        self._fingers_dof = [int(f.dofadr[0]) for f in fingers]
        self._motors = [model.actuator(f"{prefix}panda_joint{i}").id for i in range(1, 8)]
        self._servo = model.actuator(f"{prefix}panda_hand").id
        self._site = model.site(f"{prefix}TCP").id
        root = model.body(f"{prefix}panda_link0").id
        self._bodies = [b for b in range(model.nbody) if _descends_from(model, b, root)]
        self._root_body = int(model.body_rootid[root])
        self._jacobian = np.zeros((6, model.nv))
        self._rest()
        self.gripper = Gripper(config.gripper)
        self.mode = IDLE
        self._reason = ""
        self._hold_q = np.asarray(config.home.posture, dtype=float)

    def start(self, data: mujoco.MjData, tcp: np.ndarray, mode: int) -> None:
        """Stand still with the tool pointing down at `tcp` (base frame) and the hand open."""
        data.qpos[self._qpos] = self._config.home.posture
        data.qvel[self._dofs] = 0.0
        data.qpos[self._fingers_qpos] = self._config.gripper.maximum_width / 2
        self._solve_kinematics(data, tcp)
        self.gripper.reset(self._config.gripper.maximum_width)
        self._rest()
        self.release(data, mode)

    def _rest(self) -> None:
        """Nothing was commanded and nothing touched yet."""
        self._controller = CartesianImpedance(self._config.control, np.asarray(self._config.home.posture))
        self._tau = np.zeros(7)
        self._force, self._torque = np.zeros(3), np.zeros(3)

    def release(self, data: mujoco.MjData, mode: int) -> None:
        """Enter `mode` with the measured pose as the target."""
        mujoco.mj_kinematics(self._model, data)
        self._controller.reset(*self._pose(data))
        self._hold_q = data.qpos[self._qpos].copy()
        self.mode, self._reason = mode, ""

    def set_target(self, data: mujoco.MjData, position: np.ndarray, rotation: np.ndarray) -> bool:
        if self.mode == REFLEX:
            return False
        if self.mode == IDLE:
            measured_position, measured_rotation = self._pose(data)
            far = np.linalg.norm(position - measured_position) > ENGAGE_POSITION_M
            if far or np.linalg.norm(vector_from_matrix(rotation @ measured_rotation.T)) > ENGAGE_ROTATION_RAD:
                return False
            self.release(data, MOVE)
        self._controller.set_target(position, rotation)
        return True

    def control(self, data: mujoco.MjData) -> None:
        """Torques and finger set point for this millisecond, after mj_step1."""
        position, rotation = self._pose(data)
        q, dq = data.qpos[self._qpos], data.qvel[self._dofs]
        coriolis = data.qfrc_bias[self._dofs] - data.qfrc_gravcomp[self._dofs]
        jacobian = self._base_jacobian(data)
        if self.mode == MOVE:
            self._tau = self._controller.torque(position, rotation, jacobian, q, dq, coriolis)
        else:
            self._tau = self._controller.hold(self._hold_q, q, dq, coriolis)
        data.ctrl[self._motors] = self._tau
        left, right = self._fingers_dof
        set_point, force = self.gripper.step(self._width(data), float(data.qvel[left] + data.qvel[right]), TIMESTEP_S)
        data.ctrl[self._servo] = set_point / 2
        self._model.actuator_forcerange[self._servo] = (-2 * force, 2 * force)  # the tendon halves it

    def state(self, data: mujoco.MjData, time: float) -> ArmState:
        position, rotation = self._pose(data)
        jacobian = self._base_jacobian(data)
        dq = data.qvel[self._dofs].copy()
        twist = jacobian @ dq
        return ArmState(
            time=time,
            position=position,
            quaternion=quaternion_from_matrix(rotation),
            linear_velocity=twist[:3],
            angular_velocity=twist[3:],
            q=data.qpos[self._qpos].copy(),
            dq=dq,
            tau=self._tau.copy(),
            gripper_width=self._width(data),
            robot_mode=self.mode,
            reflex_reason=self._reason,
            target_position=self._controller.target_position.copy(),
            target_quaternion=quaternion_from_matrix(self._controller.target_rotation),
            external_force=self._force.copy(),
            external_torque=self._torque.copy(),
            external_joint_torque=jacobian.T @ np.concatenate([self._force, self._torque]),
        )

    def watch(self, data: mujoco.MjData) -> None:
        """Update the force estimate and reflex on what the scene file calls excessive; after mj_rnePostConstraint."""
        self._estimate_force(data)
        if self.mode != MOVE:
            return
        limits = self._config.reflex
        for name, value, limit, unit in (
            ("contact force", math.hypot(*self._force), limits.contact_force, "N"),
            ("position error", self._controller.translation_error, limits.position_error, "m"),
            ("rotation error", self._controller.rotation_error, limits.rotation_error, "rad"),
        ):
            if value > limit:
                self.mode, self._reason = REFLEX, f"{name} {value:.2f} {unit}, limit {limit:.2f} {unit}"
                self._hold_q = data.qpos[self._qpos].copy()
                return

    def _estimate_force(self, data: mujoco.MjData) -> None:
        """Low-passed contact wrench on the whole arm, moved to the TCP; what the hand squeezes cancels out."""
        force, torque = np.zeros(3), np.zeros(3)
        wrench = data.cfrc_ext[self._bodies].sum(axis=0)
        if wrench.any():
            torque_at_com, world_force = wrench.reshape(2, 3)
            lever = data.subtree_com[self._root_body] - data.site_xpos[self._site]
            force = self._base_rotation.T @ world_force
            torque = self._base_rotation.T @ (torque_at_com + np.cross(lever, world_force))
        share = TIMESTEP_S / (TIMESTEP_S + self._config.reflex.force_time_constant)
        self._force += share * (force - self._force)
        self._torque += share * (torque - self._torque)

    def _pose(self, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray]:
        position = self._base_rotation.T @ (data.site_xpos[self._site] - self._base_position)
        return position, self._base_rotation.T @ data.site_xmat[self._site].reshape(3, 3)

    def _base_jacobian(self, data: mujoco.MjData) -> np.ndarray:
        mujoco.mj_jacSite(self._model, data, self._jacobian[:3], self._jacobian[3:], self._site)
        world = self._jacobian[:, self._dofs]
        return (self._base_rotation.T @ world.reshape(2, 3, 7)).reshape(6, 7)

    def _width(self, data: mujoco.MjData) -> float:
        left, right = self._fingers_qpos
        return float(data.qpos[left] + data.qpos[right])

    def _solve_kinematics(self, data: mujoco.MjData, tcp: np.ndarray) -> None:
        """Damped least squares from the posture in `data` to the tool pointing down at `tcp`."""
        for _ in range(IK_ITERATIONS):
            mujoco.mj_kinematics(self._model, data)
            mujoco.mj_comPos(self._model, data)
            position, rotation = self._pose(data)
            error = np.concatenate([tcp - position, vector_from_matrix(TOOL_DOWN @ rotation.T)])
            if np.linalg.norm(error) < IK_TOLERANCE:
                return
            jacobian = self._base_jacobian(data)
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + 1e-6 * np.eye(6), error)
            q = data.qpos[self._qpos] + step
            data.qpos[self._qpos] = np.clip(q, self._range[:, 0], self._range[:, 1])
        raise ConfigurationError(
            f"home.tcp: no posture reaches {np.round(tcp, 3).tolist()} with the tool pointing down"
        )


def _descends_from(model: mujoco.MjModel, body: int, ancestor: int) -> bool:
    while body > ancestor:
        body = int(model.body_parentid[body])
    return body == ancestor
