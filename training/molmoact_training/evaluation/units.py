"""Action rows in SI units: for each arm translation (m), rotation vector (rad) and opening (0 closed .. 1 open)."""

from __future__ import annotations

import numpy as np
from molmoact_policy.embodiment import ROW, Delta, Embodiment
from numpy.typing import ArrayLike, NDArray


def to_si(embodiment: Embodiment, actions: ArrayLike) -> NDArray[np.float64]:
    """Rows [N, 7 · A] of A arms in the units of `embodiment`, in SI units."""
    actions = np.asarray(actions, np.float64)
    arms = [embodiment.to_deltas(part) for part in np.split(actions, actions.shape[1] // ROW, axis=1)]
    return np.concatenate([_rows(deltas) for deltas in arms], axis=1)


def from_si(embodiment: Embodiment, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """What `to_si` takes back."""
    parts = np.split(rows, rows.shape[1] // ROW, axis=1)
    return np.concatenate([embodiment.from_deltas(_deltas(part)) for part in parts], axis=1)


def _rows(deltas: list[Delta]) -> NDArray[np.float64]:
    rows = [(*delta.translation, *delta.rotation, delta.gripper) for delta in deltas]
    return np.array(rows, np.float64).reshape(-1, ROW)


def _deltas(rows: NDArray[np.float64]) -> list[Delta]:
    return [Delta(row[:3], row[3:6], float(row[6])) for row in rows]
