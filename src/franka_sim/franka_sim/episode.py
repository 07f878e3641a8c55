"""An episode of the scripted operator in the physics, driven the way a bridge drives a robot."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from franka_sim.operator import OPEN, SceneView, ScriptedOperator, Step
from franka_sim.rotations import matrix_from_quaternion, matrix_from_vector, quaternion_from_matrix
from franka_sim.scene import TIMESTEP_S
from franka_sim.simulation import Simulation

EPISODE_LIMIT_S = 20.0
ROWS = 4  # of a plan, before the next look
SETTLE_TIME_S = 0.25
SEGMENTS = 10  # of a step; the target moves on at each


@dataclass(frozen=True)
class Episode:
    """How it ended: success, what there was to see, and the simulated seconds it took."""

    success: bool
    detail: str
    duration: float


class StepFollower:
    """Executes steps on the first arm: targets that move on every 10 ms, and the gripper by edges."""

    def __init__(self, simulation: Simulation):
        self._simulation = simulation
        self._gripper = OPEN

    def execute(self, steps: list[Step]) -> None:
        """Steps of `operator.step_period`, anchored once at the measured pose, integrated, simulated to their end."""
        simulation = self._simulation
        state = simulation.arm_state(0)
        position, rotation = state.position, matrix_from_quaternion(state.quaternion)
        previous = state.target_position
        for step in steps:
            self._command_gripper(step.gripper)
            position = position + step.translation
            rotation = matrix_from_vector(step.rotation) @ rotation
            self._approach(previous, position, quaternion_from_matrix(rotation))
            previous = position

    def settle(self, duration: float) -> None:
        """Let the arm come to rest, as a synchronous policy does before it looks again."""
        self._simulation.step(round(duration / TIMESTEP_S))

    def _approach(self, start: np.ndarray, goal: np.ndarray, quaternion: np.ndarray) -> None:
        milliseconds = round(self._simulation.config.operator.step_period / TIMESTEP_S)
        for segment in range(1, SEGMENTS + 1):
            self._simulation.set_target(0, start + (goal - start) * segment / SEGMENTS, quaternion)
            self._simulation.step(milliseconds // SEGMENTS)

    def _command_gripper(self, wanted: int) -> None:
        if wanted == self._gripper:
            return
        self._gripper = wanted
        config = self._simulation.config.gripper
        if wanted == OPEN:
            self._simulation.set_gripper(0, config.maximum_width, config.maximum_speed)
        else:
            self._simulation.set_gripper(0, 0.0, config.maximum_speed, config.grasp_force)


def operator_episode(simulation: Simulation, hold_open: bool = False, limit: float = EPISODE_LIMIT_S) -> Episode:
    """Let the operator do the task of the last reset for at most `limit` s; `hold_open` keeps the hand from closing."""
    operator = ScriptedOperator.for_simulation(simulation)
    follower = StepFollower(simulation)
    start = simulation.time
    while not simulation.outcome().success and simulation.time - start < limit:
        view = SceneView.from_simulation(simulation)
        steps = operator.rollout(view, ROWS)[0] or [operator.step(view)]
        follower.execute([replace(step, gripper=OPEN) for step in steps] if hold_open else steps)
        follower.settle(SETTLE_TIME_S)
    outcome = simulation.outcome()
    return Episode(outcome.success, outcome.detail, simulation.time - start)
