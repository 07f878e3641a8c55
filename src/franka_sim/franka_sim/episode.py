"""An episode of the scripted operator in the physics, driven the way a bridge drives a robot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from franka_sim.operator import OPEN, SceneView, ScriptedOperator
from franka_sim.rotations import matrix_from_quaternion, matrix_from_vector, quaternion_from_matrix
from franka_sim.scene import TIMESTEP_S
from franka_sim.simulation import Simulation

EPISODE_LIMIT_S = 20.0
SEGMENTS = 10  # of a step; the target moves on at each


@dataclass(frozen=True)
class Episode:
    """How it ended: success, what there was to see, and the simulated seconds it took."""

    success: bool
    detail: str
    duration: float


class StepFollower:
    """Applies 0.1 s steps to the first arm: moving targets from the measured pose, the gripper by edges."""

    def __init__(self, simulation: Simulation):
        self._simulation = simulation
        self._gripper = OPEN

    def apply(self, translation: np.ndarray, rotation: np.ndarray, gripper: float) -> None:
        """One step (m, rad, base frame; gripper open above one half), simulated to its end."""
        simulation = self._simulation
        state = simulation.arm_state(0)
        self._command_gripper(int(gripper > 0.5))
        start = state.target_position
        goal = state.position + translation
        goal_rotation = matrix_from_vector(rotation) @ matrix_from_quaternion(state.quaternion)
        quaternion = quaternion_from_matrix(goal_rotation)
        milliseconds = round(simulation.config.operator.step_period / TIMESTEP_S)
        for segment in range(1, SEGMENTS + 1):
            simulation.set_target(0, start + (goal - start) * segment / SEGMENTS, quaternion)
            simulation.step(milliseconds // SEGMENTS)

    def _command_gripper(self, wanted: int) -> None:
        if wanted == self._gripper:
            return
        self._gripper = wanted
        config = self._simulation.config.gripper
        if wanted == OPEN:
            self._simulation.set_gripper(0, config.maximum_width, config.maximum_speed)
        else:
            self._simulation.set_gripper(0, 0.0, config.maximum_speed, config.grasp_force)


def operator_episode(simulation: Simulation, hold_open: bool = False) -> Episode:
    """Let the operator do the task of the last reset; `hold_open` keeps the hand from closing."""
    operator = ScriptedOperator.for_simulation(simulation)
    follower = StepFollower(simulation)
    start = simulation.time
    while not simulation.outcome().success and simulation.time - start < EPISODE_LIMIT_S:
        step = operator.step(SceneView.from_simulation(simulation))
        follower.apply(step.translation, step.rotation, OPEN if hold_open else step.gripper)
    outcome = simulation.outcome()
    return Episode(outcome.success, outcome.detail, simulation.time - start)
