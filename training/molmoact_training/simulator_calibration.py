"""Writes the calibration of a simulated camera, exactly as its scene has it; a real one's is found by calibrating."""

from __future__ import annotations

import argparse
from pathlib import Path

from franka_sim.cameras import RgbdCamera
from franka_sim.scene import SceneConfig
from franka_sim.simulation import Simulation
from scipy.spatial.transform import Rotation

from molmoact_training.calibration import CameraCalibration, Intrinsics

SIZE = (640, 480)


def simulator_calibration(scene: SceneConfig, camera: str) -> CameraCalibration:
    """Of a camera that does not move, in the first arm's base frame. Raises ConfigurationError for an unknown name."""
    simulation = Simulation(scene)
    simulation.reset("pick", 0)  # any task: nothing has a pose before
    view = RgbdCamera(simulation.model, camera, *SIZE)
    position, rotation = view.pose(simulation.copy_data())
    k = view.intrinsics
    return CameraCalibration(
        Intrinsics(k.width, k.height, k.fx, k.fy, k.cx, k.cy),
        tuple(position.tolist()),
        tuple(Rotation.from_matrix(rotation).as_quat().tolist()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scene", type=Path, required=True, help="config/scenes/tabletop.yaml")
    parser.add_argument("--camera", default="front")
    parser.add_argument("--out", type=Path, required=True, help="calibration file")
    arguments = parser.parse_args()
    simulator_calibration(SceneConfig.load(arguments.scene), arguments.camera).save(arguments.out)


if __name__ == "__main__":
    main()
