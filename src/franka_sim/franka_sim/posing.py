"""A scene posed as a view says, without physics: to render states that a plan only imagines."""

from __future__ import annotations

import mujoco
import numpy as np

from franka_sim.errors import FrankaSimError
from franka_sim.operator import SceneView
from franka_sim.rotations import quaternion_from_matrix, vector_from_matrix
from franka_sim.simulation import Simulation

ITERATIONS, TOLERANCE, DAMPING = 60, 1e-4, 1e-5


class PosedScene:
    """Renders-only copies of a simulation's state in which the first arm and the objects are where a view has them."""

    def __init__(self, simulation: Simulation):
        model = simulation.model
        self._simulation, self._model = simulation, model
        joints = [model.joint(f"panda_joint{i}") for i in range(1, 8)]
        self._arm = np.array([int(joint.qposadr[0]) for joint in joints])
        self._dofs = np.array([int(joint.dofadr[0]) for joint in joints])
        self._limits = np.array([model.jnt_range[joint.id] for joint in joints])
        self._fingers = [int(model.joint(f"panda_finger_joint{i}").qposadr[0]) for i in (1, 2)]
        self._site = model.site("TCP").id
        self._jacobian = np.zeros((6, model.nv))
        self._data = simulation.copy_data()

    def reset(self) -> None:
        """Start from the simulation's present state: which objects its reset put there, the arm's posture."""
        self._simulation.copy_data(self._data)

    def pose(self, view: SceneView) -> mujoco.MjData:
        """The data to render, valid until the next call. Raises FrankaSimError when the tool cannot get there."""
        data = self._data
        data.qpos[self._fingers] = view.gripper_width / 2
        for name, (position, rotation) in view.objects.items():
            address = int(self._model.jnt_qposadr[self._model.body_jntadr[self._model.body(name).id]])
            x, y, z, w = quaternion_from_matrix(rotation)
            data.qpos[address : address + 7] = [*position, w, x, y, z]
        self._reach(view.position, view.rotation)
        return data

    def _reach(self, position: np.ndarray, rotation: np.ndarray) -> None:
        data, model = self._data, self._model
        for _ in range(ITERATIONS):
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            turned = data.site_xmat[self._site].reshape(3, 3)
            off = np.concatenate([position - data.site_xpos[self._site], vector_from_matrix(rotation @ turned.T)])
            if np.linalg.norm(off) < TOLERANCE:
                mujoco.mj_camlight(model, data)
                return
            mujoco.mj_jacSite(model, data, self._jacobian[:3], self._jacobian[3:], self._site)
            jacobian = self._jacobian[:, self._dofs]
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + DAMPING * np.eye(6), off)
            data.qpos[self._arm] = np.clip(data.qpos[self._arm] + step, self._limits[:, 0], self._limits[:, 1])
        raise FrankaSimError(f"no posture reaches {np.round(position, 3).tolist()}")
