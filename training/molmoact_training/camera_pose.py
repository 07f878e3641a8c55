"""Where a camera stands, from points of the end effector that are known in the base frame and seen in its pictures.

Perspective-n-point by RANSAC, which leaves out what does not fit, then least squares over what does.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from molmoact_training.calibration import CameraCalibration, Intrinsics
from molmoact_training.errors import DatasetError

LEAST_POINTS = 6
# Standard deviation along the thinnest direction of the points: with less they lie in a plane, as far as pixels tell.
LEAST_THICKNESS_M = 0.01
# Standard deviation of the end effector's orientation: with less an offset of the tool looks like one of the camera.
LEAST_TURN_RAD = 0.15
THRESHOLD_PX = 8.0
# A tool point that is off by a few centimetres must not make good points look wrong before it is estimated.
OFFSET_ALLOWANCE_PX = 40.0
RANSAC_ITERATIONS = 2000
RANSAC_CONFIDENCE = 0.9999
REFINEMENTS = 10  # of which points fit; two or three are usual


@dataclass(frozen=True)
class CameraPose:
    """What was found. n points.

    errors: [n] pixels between where a point was seen and where it should be (infinite: behind the camera). fits: [n]
    whether a point was used. tool_offset: m, of the point that was clicked in the end effector's frame.
    position_sd, rotation_sd: a standard deviation of the camera's place (m, worst direction) and orientation (rad).
    """

    calibration: CameraCalibration
    errors: NDArray[np.float64]
    fits: NDArray[np.bool_]
    tool_offset: tuple[float, float, float]
    position_sd: float
    rotation_sd: float

    def points(self, positions: NDArray[np.float64], quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
        """The points [n, 3] m that were clicked, of an end effector at positions [n, 3] m, quaternions [n, 4]."""
        return positions + Rotation.from_quat(quaternions).apply(self.tool_offset)


def find_camera(
    positions: NDArray[np.float64],
    quaternions: NDArray[np.float64],
    pixels: NDArray[np.float64],
    intrinsics: Intrinsics,
    threshold: float = THRESHOLD_PX,
    estimate_offset: bool = False,
) -> CameraPose:
    """The camera that sees the end effector's positions [n, 3] m (quaternions [n, 4] x y z w) at pixels [n, 2].

    threshold: pixels; what is farther off is left out. estimate_offset: what was clicked is a point fixed to the end
    effector, but not its origin. Raises DatasetError when the points are too few, in a plane or a line, do not agree
    with any camera, or do not turn enough for an offset.
    """
    _check_spread(positions, "the points")
    turns = Rotation.from_quat(quaternions)
    if estimate_offset:
        _check_turns(turns)
    first = threshold + (OFFSET_ALLOWANCE_PX if estimate_offset else 0.0)
    camera, fits = _ransac(positions, pixels, intrinsics, first)
    parameters = np.concatenate([camera, np.zeros(3)])
    free = slice(0, 9 if estimate_offset else 6)

    def residuals(values: NDArray[np.float64], used: NDArray[np.bool_]) -> NDArray[np.float64]:
        whole = parameters.copy()
        whole[free] = values
        seen = _project(whole, positions[used], turns[used], intrinsics)
        return (seen - pixels[used]).ravel()

    solved = None
    for round_number in range(REFINEMENTS):
        _check_fits(fits, first if solved is None else threshold)
        # What is far off pulls less while it is not yet known who fits.
        loss = "soft_l1" if round_number == 0 and estimate_offset else "linear"
        solved = least_squares(residuals, parameters[free], args=(fits,), x_scale="jac", loss=loss)
        parameters[free] = solved.x
        errors = _errors(parameters, positions, turns, pixels, intrinsics)
        before, fits = fits, errors <= threshold
        if (fits == before).all():
            break
    assert solved is not None
    _check_fits(fits, threshold)
    _check_spread(positions[fits], "the points that agree")
    position_sd, rotation_sd = _uncertainty(solved.jac, solved.fun, parameters)
    offset = parameters[6:]
    return CameraPose(
        _calibration(parameters, intrinsics),
        errors,
        fits,
        (float(offset[0]), float(offset[1]), float(offset[2])),
        position_sd,
        rotation_sd,
    )


def spread_out(positions: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Up to `count` indices of positions [n, 3] that lie as far from each other as they can, in ascending order."""
    chosen = [int(np.linalg.norm(positions - positions.mean(0), axis=1).argmax())]
    distances = np.linalg.norm(positions - positions[chosen[0]], axis=1)
    while len(chosen) < count and distances.max() > 0:
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(positions - positions[chosen[-1]], axis=1))
    return np.sort(np.array(chosen, np.int64))


def _check_spread(positions: NDArray[np.float64], what: str) -> None:
    if len(positions) < LEAST_POINTS:
        raise DatasetError(f"{what}: {len(positions)}, expected at least {LEAST_POINTS}, well spread")
    deviations = np.linalg.svd(positions - positions.mean(0), compute_uv=False) / np.sqrt(len(positions))
    if deviations[1] < LEAST_THICKNESS_M:
        raise DatasetError(f"{what} lie on a line ({_mm(deviations)}): expected some on all sides")
    if deviations[2] < LEAST_THICKNESS_M:
        raise DatasetError(
            f"{what} lie in a plane ({_mm(deviations)}): expected some above and below it: lift the gripper"
        )


def _mm(deviations: NDArray[np.float64]) -> str:
    return "spread " + " x ".join(f"{1000 * deviation:.0f}" for deviation in deviations) + " mm"


def _check_turns(turns: Rotation) -> None:
    # The offset's part along the axis that everything turns about stays unknown, hence the second-largest direction.
    angles = (turns.mean().inv() * turns).as_rotvec()
    deviations = np.linalg.svd(angles, compute_uv=False) / np.sqrt(len(angles))
    if deviations[1] < LEAST_TURN_RAD:
        raise DatasetError(
            f"the end effector turns by {np.rad2deg(deviations[0]):.0f} and {np.rad2deg(deviations[1]):.0f} degrees "
            f"about two axes, expected at least {np.rad2deg(LEAST_TURN_RAD):.0f}: the tool's offset cannot be told "
            "from the camera's place"
        )


def _check_fits(fits: NDArray[np.bool_], threshold: float) -> None:
    if fits.sum() < LEAST_POINTS:
        raise DatasetError(
            f"no camera sees {LEAST_POINTS} of the {len(fits)} points within {threshold:g} pixels (at most "
            f"{fits.sum()}): are these the intrinsics and the arm of this camera, and the episodes of these points?"
        )


def _ransac(
    positions: NDArray[np.float64], pixels: NDArray[np.float64], intrinsics: Intrinsics, threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Rotation vector and translation [6] from the base into the optical frame, and which points fit."""
    cv2.setRNGSeed(0)
    found, turn, shift, inliers = cv2.solvePnPRansac(
        positions,
        pixels,
        intrinsics.matrix,
        np.array(intrinsics.distortion),
        iterationsCount=RANSAC_ITERATIONS,
        reprojectionError=threshold,
        confidence=RANSAC_CONFIDENCE,
        flags=cv2.SOLVEPNP_SQPNP,
    )
    fits = np.zeros(len(positions), bool)
    if found and inliers is not None:
        fits[inliers.ravel()] = True
        return np.concatenate([turn.ravel(), shift.ravel()]), fits
    return np.zeros(6), fits


def _project(
    parameters: NDArray[np.float64], positions: NDArray[np.float64], turns: Rotation, intrinsics: Intrinsics
) -> NDArray[np.float64]:
    """Pixels [n, 2] of the tool points; parameters [9]: base to optical frame (6), offset of the tool (3)."""
    points = positions + turns.apply(parameters[6:])
    seen, _ = cv2.projectPoints(
        points, parameters[:3], parameters[3:6], intrinsics.matrix, np.array(intrinsics.distortion)
    )
    return np.asarray(seen, np.float64).reshape(-1, 2)


def _errors(
    parameters: NDArray[np.float64],
    positions: NDArray[np.float64],
    turns: Rotation,
    pixels: NDArray[np.float64],
    intrinsics: Intrinsics,
) -> NDArray[np.float64]:
    """[n] pixels; infinite for points behind the camera, which `_project` mirrors."""
    distances = np.linalg.norm(_project(parameters, positions, turns, intrinsics) - pixels, axis=1)
    points = positions + turns.apply(parameters[6:])
    ahead = Rotation.from_rotvec(parameters[:3]).apply(points)[:, 2] + parameters[5] > 0
    return np.where(ahead & np.isfinite(distances), distances, np.inf)


def _calibration(parameters: NDArray[np.float64], intrinsics: Intrinsics) -> CameraCalibration:
    to_base = Rotation.from_rotvec(parameters[:3]).inv()
    x, y, z = (-to_base.apply(parameters[3:6])).tolist()
    qx, qy, qz, qw = to_base.as_quat(canonical=True).tolist()
    return CameraCalibration(intrinsics, (x, y, z), (qx, qy, qz, qw))


def _uncertainty(
    jacobian: NDArray[np.float64], residuals: NDArray[np.float64], parameters: NDArray[np.float64]
) -> tuple[float, float]:
    """(m, rad) from the residuals' own size."""
    freedom = max(len(residuals) - jacobian.shape[1], 1)
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * float(residuals @ residuals) / freedom
    # The camera's place is -R^T t: how it follows the six parameters, by differences.
    place = np.zeros((3, len(covariance)))
    for i in range(6):
        step = np.zeros(9)
        step[i] = 1e-6
        place[:, i] = (_place(parameters + step) - _place(parameters - step)) / 2e-6
    position = np.sqrt(np.linalg.eigvalsh(place @ covariance @ place.T)[-1].clip(0))
    rotation = np.sqrt(np.linalg.eigvalsh(covariance[:3, :3])[-1].clip(0))
    return float(position), float(rotation)


def _place(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    return -Rotation.from_rotvec(parameters[:3]).inv().apply(parameters[3:6])
