"""A scripted operator: it sees the tool, the hand and the objects, and says what a person would do in the next 0.1 s.

It has no memory. The same view gives the same step, whatever happened before, so that its clean plan from any state,
also a disturbed one, is a label a policy can learn from what can be seen. Frame: world, which is the first arm's base.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from franka_sim.errors import TaskError
from franka_sim.rotations import TOOL_DOWN, about_z, matrix_from_quaternion, matrix_from_vector, vector_from_matrix
from franka_sim.scene import OperatorConfig, SceneConfig
from franka_sim.simulation import Simulation
from franka_sim.tasks import TaskSpec

OPEN, CLOSED = 1, 0

# Where a wandering operator may go: above everything on the table, inside every workspace box and the cameras' views.
VIA_MIN, VIA_MAX = np.array([0.38, -0.22, 0.16]), np.array([0.62, 0.22, 0.34])
VIA_DETOUR_M = 0.08  # a point nearer to the straight way would be no other way
VIA_REACHED_M = 0.03
VIA_ATTEMPTS = 50
PLAN_STEPS = 150  # of the straight way; no task takes longer
MAX_VIAS = 2
WANDER_STREAM = 1  # of the seed that also lays out the scene


@dataclass(frozen=True)
class Step:
    """One step of `operator.step_period`: translation [3] m and rotation vector [3] rad (base frame), gripper 0 | 1."""

    translation: np.ndarray
    rotation: np.ndarray
    gripper: int


@dataclass(frozen=True)
class SceneView:
    """What can be seen. Rotations are matrices; objects map to (position [3], rotation [3, 3])."""

    position: np.ndarray  # [3] TCP
    rotation: np.ndarray  # [3, 3] TCP
    gripper_width: float
    objects: dict[str, tuple[np.ndarray, np.ndarray]]

    @classmethod
    def from_simulation(cls, simulation: Simulation) -> SceneView:
        """The truth at this moment, with the first arm's tool."""
        state = simulation.arm_state(0)
        objects = {
            name: (position, matrix_from_quaternion(quaternion))
            for name, (position, quaternion) in simulation.object_poses().items()
        }
        return cls(state.position, matrix_from_quaternion(state.quaternion), state.gripper_width, objects)


@dataclass(frozen=True)
class _Goal:
    """Where the tool should be going, and what the hand should be doing; `done` when nothing is left to do."""

    position: np.ndarray
    yaw: float
    gripper: int
    done: bool = False


class ScriptedOperator:
    """Solves one task of a scene; see the module's text for what it may use."""

    def __init__(self, task: TaskSpec, config: SceneConfig):
        self._task, self._scene, self._config = task, config, config.operator
        self._half = config.objects.cubes.size / 2
        self._decide = {"pick": self._pick, "place": self._place, "push": self._push}[task.kind]

    @classmethod
    def for_simulation(cls, simulation: Simulation) -> ScriptedOperator:
        """For the task of the simulation's last reset."""
        if simulation.task is None:
            raise TaskError("the simulation has no task yet: reset it first")
        return cls(simulation.task, simulation.config)

    def step(self, view: SceneView) -> Step:
        """What to do next; a step that stays put when the task is done."""
        goal = self._decide(view)
        turn = vector_from_matrix(about_z(goal.yaw) @ TOOL_DOWN @ view.rotation.T)
        config = self._config
        return Step(
            _shorten(goal.position - view.position, config.speed * config.step_period, config.slow_down),
            _shorten(turn, config.turn_speed * config.step_period, config.slow_down),
            goal.gripper,
        )

    def done(self, view: SceneView) -> bool:
        """Whether the operator has nothing left to do."""
        return self._decide(view).done

    @property
    def config(self) -> OperatorConfig:
        """The operator's settings in the scene file."""
        return self._config

    def part(self, view: SceneView) -> str | None:
        """The part of the task in which the tool may go any way; None: there is none, the operator has to do it."""
        cube, _ = view.objects[self._task.cube_name]
        if self._holds_cube(view):
            return "to the plate" if self._task.kind == "place" else None
        near = np.linalg.norm(view.position[:2] - cube[:2]) < self._config.hover
        return None if near and view.position[2] < self._config.hover else "to the object"

    def rollout(self, view: SceneView, steps: int) -> tuple[list[Step], list[np.ndarray]]:
        """The plan from a view: at most `steps` steps, fewer when the task is done before, and the TCP after each.

        Kinematic: the tool goes where it is told, the fingers move at `hand_speed`, a held or pushed cube goes along.
        """
        plan: list[Step] = []
        positions: list[np.ndarray] = []
        while len(plan) < steps and not self.done(view):
            step = self.step(view)
            view = self.imagine(view, step)
            plan.append(step)
            positions.append(view.position)
        return plan, positions

    # Tasks: each looks at the view and names a goal.

    def _pick(self, view: SceneView) -> _Goal:
        if self._holds_cube(view):
            lifted = np.array([*view.position[:2], self._config.lift_height])
            done = view.position[2] > self._config.lift_height - self._config.tolerance
            return _Goal(lifted, self._grasp_yaw(view), CLOSED, done)
        return self._grasp(view)

    def _place(self, view: SceneView) -> _Goal:
        config = self._config
        cube, _ = view.objects[self._task.cube_name]
        plate, _ = view.objects[self._task.plate_name]
        support = plate[2] + self._scene.objects.plates.height + self._half  # centre of a cube on the plate
        offset = np.linalg.norm(cube[:2] - plate[:2])
        if self._holds_cube(view):
            if offset < config.release_tolerance and cube[2] - support < config.release_height:
                return _Goal(view.position, self._grasp_yaw(view), OPEN)
            over = view.position + np.array([*(plate[:2] - cube[:2]), support + config.release_height / 2 - cube[2]])
            over[2] += self._funnel(max(offset - config.release_tolerance / 2, 0.0), config.hover)
            return self._over(view, over, CLOSED, self._grasp_yaw(view))
        if offset < 0.8 * self._scene.objects.plates.radius and abs(cube[2] - support) < config.release_height:
            away = np.array([*view.position[:2], support + config.hover])
            opened = view.gripper_width > config.open_width
            done = opened and view.position[2] > support + config.hover - config.tolerance
            return _Goal(away if opened else view.position, self._grasp_yaw(view), OPEN, done)
        return self._grasp(view)

    def _push(self, view: SceneView) -> _Goal:
        config, side = self._config, self._task.direction
        cube, _ = view.objects[self._task.cube_name]
        plate, _ = view.objects[self._task.plate_name]
        yaw = math.pi / 2  # the closed fingers' broad side pushes
        reach = self._half + config.pusher_half_thickness
        clear = self._scene.objects.plates.radius + self._half + self._scene.tasks.push.margin
        wanted = plate[1] + side * (clear + config.push_beyond)
        if side * (cube[1] - wanted) >= -config.tolerance:
            away = np.array([*view.position[:2], config.lift_height])
            return _Goal(away, yaw, CLOSED, view.position[2] > config.lift_height - config.tolerance)
        behind = side * (cube[1] - view.position[1])
        ready = (
            view.position[2] < config.push_height + config.push_slack
            and abs(view.position[0] - cube[0]) < 2 * config.align_tolerance
            and 0.5 * reach < behind < reach + 2 * config.push_gap
        )
        if ready:
            contact = np.array([cube[0], wanted - side * reach, config.push_height])
            return _Goal(contact, yaw, CLOSED)
        start = np.array([cube[0], cube[1] - side * (reach + config.push_gap), config.push_height])
        off = self._misalignment(view, start, yaw)
        start[2] += self._funnel(off, config.hover)
        if view.gripper_width > config.closed_width:
            start[2] = max(start[2], config.push_height + config.hover)
        return self._over(view, start, CLOSED, yaw)

    def _grasp(self, view: SceneView) -> _Goal:
        """Above the cube, down over it inside a funnel, close; up again and open after a miss."""
        config = self._config
        cube, _ = view.objects[self._task.cube_name]
        yaw = self._grasp_yaw(view)
        off = self._misalignment(view, cube, yaw)
        # Closing fingers centre the cube, so a grasp under way is given up later than it is begun.
        closing = view.gripper_width < config.open_width
        allowed = (2.0 if closing else 1.0) * config.align_tolerance
        if off < allowed and abs(view.position[2] - cube[2]) < 2 * config.align_tolerance:
            return _Goal(cube, yaw, CLOSED)
        above = cube.copy()
        above[2] += self._funnel(off, config.hover)
        if closing:
            above[2] = max(above[2], cube[2] + config.retry_height)
        return self._over(view, above, OPEN, yaw)

    # What the tasks share.

    def _holds_cube(self, view: SceneView) -> bool:
        cube, _ = view.objects[self._task.cube_name]
        inside = np.abs(view.rotation.T @ (cube - view.position))
        gripped = view.gripper_width < 2 * self._half + self._config.tolerance
        return bool(gripped and np.all(inside < self._config.in_hand) and view.gripper_width > self._half)

    def _grasp_yaw(self, view: SceneView) -> float:
        """The tool yaw that puts the fingers flat on the cube's sides and is nearest to the present one."""
        _, rotation = view.objects[self._task.cube_name]
        present = _yaw(view.rotation @ TOOL_DOWN)
        quarter = math.pi / 2
        # A cube that has been tipped over shows another axis; any horizontal one gives its yaw modulo a quarter turn.
        axis = rotation[:, int(np.argmin(np.abs(rotation[2])))]
        off = math.atan2(axis[1], axis[0]) - present
        return present + (off + quarter / 2) % quarter - quarter / 2

    def _misalignment(self, view: SceneView, goal: np.ndarray, yaw: float) -> float:
        """Sideways distance to a goal, m, with the yaw error counted as what it moves at a cube's edge."""
        turn = abs(_wrap(_yaw(view.rotation @ TOOL_DOWN) - yaw))
        return float(np.linalg.norm(view.position[:2] - goal[:2])) + self._half * turn

    def _funnel(self, off: float, height: float) -> float:
        """How far above its goal the tool has to be when it is `off` to the side."""
        return min(max(self._config.funnel_slope * (off - self._config.align_tolerance / 2), 0.0), height)

    def _over(self, view: SceneView, goal: np.ndarray, gripper: int, yaw: float) -> _Goal:
        """Towards the goal, but up first when the tool is too low to move sideways."""
        if view.position[2] < goal[2] - self._config.funnel_slack:
            goal = np.array([*view.position[:2], goal[2]])
        return _Goal(goal, yaw, gripper)

    def imagine(self, view: SceneView, step: Step) -> SceneView:
        """The view after a step, if everything goes to plan."""
        cube, cube_rotation = view.objects[self._task.cube_name]
        turn = matrix_from_vector(step.rotation)
        position, rotation = view.position + step.translation, turn @ view.rotation
        travel = self._config.hand_speed * self._config.step_period
        inside = np.all(np.abs(view.rotation.T @ (cube - view.position)) < self._config.in_hand)
        if step.gripper == OPEN:
            width = min(view.gripper_width + travel, self._scene.gripper.maximum_width)
        else:
            width = max(view.gripper_width - travel, 2 * self._half if inside else 0.0)
        if step.gripper == CLOSED and self._holds_cube(view):
            cube, cube_rotation = position + turn @ (cube - view.position), turn @ cube_rotation
        elif self._task.kind == "push":
            cube = self._pushed(cube, position)
        else:
            cube = self._fallen(cube, view)
        objects = {**view.objects, self._task.cube_name: (cube, cube_rotation)}
        return replace(view, position=position, rotation=rotation, gripper_width=width, objects=objects)

    def _fallen(self, cube: np.ndarray, view: SceneView) -> np.ndarray:
        """A cube that nothing holds, on what is below it."""
        support = 0.0
        if self._task.kind == "place":
            plate, _ = view.objects[self._task.plate_name]
            if math.dist(cube[:2], plate[:2]) < self._scene.objects.plates.radius:
                support = plate[2] + self._scene.objects.plates.height
        return np.array([cube[0], cube[1], support + self._half])

    def _pushed(self, cube: np.ndarray, tool: np.ndarray) -> np.ndarray:
        """The cube after a tool at this place has pushed it out of its way."""
        side, reach = self._task.direction, self._half + self._config.pusher_half_thickness
        ahead = side * (cube[1] - tool[1])
        touches = tool[2] < 2 * self._half and abs(tool[0] - cube[0]) < 2 * self._half and 0.0 < ahead < reach
        return np.array([cube[0], tool[1] + side * reach, cube[2]]) if touches else cube


class WanderingOperator:
    """The scripted operator by other ways: over points of its own choice to the object, and to the plate with it.

    Demonstrations of both kinds are what makes a policy follow a trace it is given (the paper's section G.7). Unlike
    the operator itself it remembers where it has been; the same seed wanders alike.
    """

    def __init__(self, operator: ScriptedOperator, seed: int):
        self._operator = operator
        self._rng = np.random.default_rng((seed, WANDER_STREAM))
        self._ways: dict[str, list[np.ndarray]] = {}  # the points still to come, of each part of the task

    def step(self, view: SceneView) -> Step:
        """What to do next: towards the next point, or what the operator would do when there is none left."""
        step = self._operator.step(view)
        ways = self._way(view)
        if not ways:
            return step
        if math.dist(ways[0], view.position) < VIA_REACHED_M:
            ways.pop(0)
            return self.step(view)
        config = self._operator.config
        offset = ways[0] - view.position
        if view.position[2] < VIA_MIN[2]:  # up first: what stands beside the object shall stay there
            offset[:2] = 0.0
        translation = _shorten(offset, config.speed * config.step_period, 1.0)
        return Step(translation, step.rotation, step.gripper)

    def _way(self, view: SceneView) -> list[np.ndarray]:
        """The points left of the part of the task that the view shows."""
        part = self._operator.part(view)
        if part is None:
            return []
        if part not in self._ways:
            _, straight = self._operator.rollout(view, PLAN_STEPS)
            count = self._rng.integers(1, MAX_VIAS + 1)
            self._ways[part] = [self._via(np.array([view.position, *straight])) for _ in range(count)]
        return self._ways[part]

    def _via(self, straight: np.ndarray) -> np.ndarray:
        """A point in the box of vias that is well off the straight way [N, 3], seen from above; the best there is."""
        points = self._rng.uniform(VIA_MIN, VIA_MAX, (VIA_ATTEMPTS, 3))
        off = np.linalg.norm(points[:, None, :2] - straight[None, :, :2], axis=2).min(axis=1)
        far = np.flatnonzero(off > VIA_DETOUR_M)
        return points[far[0] if far.size else np.argmax(off)]


def _shorten(vector: np.ndarray, limit: float, share: float) -> np.ndarray:
    """At most `limit` long, and only a share of the way when near, so that motion ends gently."""
    length = float(np.linalg.norm(vector))
    if length < 1e-9:
        return np.zeros(3)
    return vector * (min(limit, share * length) / length)


def _yaw(matrix: np.ndarray) -> float:
    return math.atan2(matrix[1, 0], matrix[0, 0])


def _wrap(angle: float) -> float:
    return math.remainder(angle, 2 * math.pi)
