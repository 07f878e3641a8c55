"""Actions as the model writes them: 256 bins, one symbol each, and the statistics that give them units.

A row is [x, y, z, rotation 3, gripper] per arm, 7 or 14 values. What they mean on a robot is in embodiment.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from molmoact_policy.errors import CheckpointError
from molmoact_policy.symbols import SYMBOLS

__all__ = [
    "BIN_OF",
    "SYMBOLS",
    "ActionStatistics",
    "decode_bins",
    "encode_bins",
    "format_actions",
    "released_preprocessing",
    "statistics_of",
]

BIN_OF = {symbol: number for number, symbol in enumerate(SYMBOLS)}

# 256 edges make 255 cells; bin 255 is the single value 1.0 and decodes like bin 254.
EDGES = np.linspace(-1.0, 1.0, len(SYMBOLS))
CENTRES = (EDGES[:-1] + EDGES[1:]) / 2.0

GRIPPER = 6


@dataclass(frozen=True)
class ActionStatistics:
    """Range of each action dimension in one dataset: the 1st and 99th percentile, and which dimensions they scale.

    q01, q99: float32 [D] in the dataset's units; mask: bool [D], False where the normalised value is the action itself.
    The last dimension (gripper) is never scaled, whatever the file says: the released parser forces it.
    """

    key: str
    q01: NDArray[np.float32]
    q99: NDArray[np.float32]
    mask: NDArray[np.bool_]

    @property
    def dimensions(self) -> int:
        """Degrees of freedom of one action row."""
        return len(self.q01)

    @classmethod
    def from_norm_stats(cls, norm_stats: Mapping[str, Any], key: str | None = None) -> ActionStatistics:
        """The entry of `config.norm_stats`; key None when there is only one. Raises CheckpointError (a ValueError)."""
        if key is None:
            if len(norm_stats) != 1:
                raise CheckpointError(f"unnorm_key is not given, and norm_stats has {list(norm_stats)}: choose one")
            key = next(iter(norm_stats))
        if key not in norm_stats:
            raise CheckpointError(f"unnorm_key {key!r} is not in norm_stats, which has {list(norm_stats)}")
        try:
            return cls._from_action(key, norm_stats[key]["action"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"norm_stats[{key!r}]['action']: {error!s}") from error

    @classmethod
    def _from_action(cls, key: str, action: Mapping[str, Any]) -> ActionStatistics:
        dim = len(action["q01"])
        for name, values in action.items():
            if len(values) != dim:
                raise ValueError(f"{name} has {len(values)} values, expected {dim} as in q01")
        mask = np.array(action.get("mask", [True] * dim), np.bool_)
        mask[-1:] = False
        q01, q99 = (np.array(action[name], np.float32) for name in ("q01", "q99"))
        if dim == 0 or not (np.isfinite(q01).all() and np.isfinite(q99).all()):
            raise ValueError("q01 and q99 are empty or not finite")
        return cls(key, q01, q99, mask)

    def unnormalise(self, values: ArrayLike) -> NDArray[np.float64]:
        """[..., D] in -1..1 to the dataset's units."""
        values = np.asarray(values, np.float64)
        return np.where(self.mask, 0.5 * (values + 1) * (self.q99 - self.q01) + self.q01, values)

    def normalise(self, actions: ArrayLike) -> NDArray[np.float64]:
        """[..., D] in the dataset's units to -1..1: what `unnormalise` takes back, but for clipping."""
        actions = np.asarray(actions, np.float64)
        span = np.where(self.q99 > self.q01, self.q99 - self.q01, np.inf)  # a dimension that never changes becomes 0
        scaled = np.where(np.isinf(span), 0.0, 2 * (actions - self.q01) / span - 1)
        return np.where(self.mask, scaled, actions).clip(-1, 1)


def released_preprocessing(actions: ArrayLike, statistics: ActionStatistics) -> NDArray[np.float32]:
    """[..., D] in the dataset's units to what the released preprocessing encodes; its own parser does not undo this.

    The first six dimensions are scaled to -1..1, the gripper is inverted (1 - a), what follows stays as it is.
    """
    actions = np.asarray(actions, np.float32)
    normalised = actions.copy()
    low, high = statistics.q01[:GRIPPER], statistics.q99[:GRIPPER]
    scaled = 2 * (actions[..., :GRIPPER] - low) / (high - low + np.float32(1e-8)) - 1
    normalised[..., :GRIPPER] = np.where(np.isclose(high, low), 0, scaled.clip(-1, 1))
    normalised[..., GRIPPER] = 1 - actions[..., GRIPPER]
    return normalised


def encode_bins(values: ArrayLike) -> NDArray[np.int64]:
    """Normalised values to bins 0..255; values outside -1..1 are clipped."""
    return np.digitize(np.clip(values, -1.0, 1.0), EDGES) - 1


def decode_bins(bins: ArrayLike) -> NDArray[np.float64]:
    """Bins to the centres of their cells in -1..1."""
    return CENTRES[np.clip(bins, 0, len(CENTRES) - 1)]


def format_actions(bins: ArrayLike) -> str:
    """Bins [D] or [N, D] as the model writes them: [s, s, ...] or [[s, ...], ...]."""
    bins = np.asarray(bins)
    parts = [SYMBOLS[number] for number in bins] if bins.ndim == 1 else [format_actions(row) for row in bins]
    return "[" + ", ".join(parts) + "]"


def statistics_of(actions: ArrayLike) -> dict[str, Any]:
    """The `action` entry of norm_stats for all frames [N, D] of a dataset."""
    actions = np.asarray(actions, np.float32)
    mask = [True] * actions.shape[1]
    mask[-1] = False
    values = {
        "mean": actions.mean(0),
        "std": actions.std(0),
        "min": actions.min(0),
        "max": actions.max(0),
        "q01": np.quantile(actions, 0.01, axis=0),
        "q99": np.quantile(actions, 0.99, axis=0),
    }
    return {name: value.tolist() for name, value in values.items()} | {"mask": mask}
