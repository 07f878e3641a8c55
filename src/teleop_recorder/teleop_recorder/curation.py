"""What is shown, played and expected of an episode: config/curation.yaml."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

from teleop_recorder.errors import ConfigurationError

SECTION = "curation"


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """Of one topic: its least mean rate in Hz, the longest gap in s, and the frame of its headers (None: any)."""

    rate: float
    gap: float
    frame: str | None = None


@dataclass(frozen=True, kw_only=True)
class Curation:
    """The entries of the file, which explains them; m, rad, s."""

    cameras: tuple[str, ...]
    pose: str
    gripper: str
    required: Mapping[str, Requirement]
    shortest: float
    camera_tolerance: float
    clock_tolerance: float
    frozen_time: float
    frozen_motion: float
    fastest_linear: float
    fastest_angular: float
    idle_distance: float
    idle_angle: float
    idle_width: float
    play: tuple[str, ...]

    @classmethod
    def from_file(cls, path: str | Path) -> Curation:
        """Raises ConfigurationError naming the file and the entry that is missing, unknown, or of the wrong kind."""
        path = Path(path)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigurationError(f"{path}: not readable: {error}") from error
        if not isinstance(content, dict) or not isinstance(content.get(SECTION), dict):
            raise ConfigurationError(f"{path}: expected a mapping '{SECTION}'")
        where = f"{path}: {SECTION}"
        entries = _entries(cls, content[SECTION], where)
        required = entries["required"]
        if not isinstance(required, dict):
            raise ConfigurationError(f"{where}.required: {required!r}, expected a mapping of topics")
        entries["required"] = {
            str(topic): Requirement(**_entries(Requirement, rule, f"{where}.required.{topic}"))
            for topic, rule in required.items()
        }
        return cls(**entries)


def shipped_settings() -> Path:
    """curation.yaml of the launch package. Raises ConfigurationError where that is not installed."""
    try:
        return Path(get_package_share_directory("molmoact_bringup")) / "config" / "curation.yaml"
    except PackageNotFoundError:
        raise ConfigurationError("package molmoact_bringup is not installed: pass --config") from None


def _entries(kind: type, given: Any, where: str) -> dict[str, Any]:
    """Checked values for the fields of the dataclass `kind`."""
    if not isinstance(given, dict):
        raise ConfigurationError(f"{where}: {given!r}, expected a mapping")
    known = {field.name: field for field in fields(kind)}
    if unknown := [name for name in given if name not in known]:
        raise ConfigurationError(f"{where}.{unknown[0]}: unknown, expected some of {', '.join(known)}")
    if missing := [name for name, field in known.items() if name not in given and field.default is MISSING]:
        raise ConfigurationError(f"{where}.{missing[0]}: missing")
    return {name: _checked(str(known[name].type), value, f"{where}.{name}") for name, value in given.items()}


def _checked(kind: str, value: Any, where: str) -> Any:
    if kind == "float":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise ConfigurationError(f"{where}: {value!r}, expected a number of at least 0")
        return float(value)
    if kind.startswith("tuple"):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigurationError(f"{where}: {value!r}, expected a list of topics")
        return tuple(value)
    if kind.startswith("str") and not isinstance(value, str):
        raise ConfigurationError(f"{where}: {value!r}, expected text")
    return value
