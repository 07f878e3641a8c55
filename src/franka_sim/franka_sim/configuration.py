"""YAML into frozen dataclasses, strictly: an unknown, missing or ill-typed key names itself and its file."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from franka_sim.errors import ConfigurationError

T = TypeVar("T")


def load_yaml(cls: type[T], path: str | Path) -> T:
    """Read `path` into the dataclass `cls`; ConfigurationError naming file and key on anything wrong."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not YAML ({error})") from error
    return _convert(cls, content, f"{path}: ")


def _convert(expected: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `expected`; `where` is the file and key path for messages."""
    if dataclasses.is_dataclass(expected):
        return _convert_dataclass(expected, value, where)
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise _mismatch(where, value, "a mapping")
        return {str(key): _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    return _convert_scalar(expected, value, where)


def _convert_dataclass(cls: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _mismatch(where, value, "a mapping")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    separator = "" if where.endswith(" ") else "."
    for key in value:
        if key not in fields:
            raise ConfigurationError(f"{where}{separator}{key}: unknown key (known: {', '.join(fields)})")
    hints = typing.get_type_hints(cls)
    converted = {}
    for name, field in fields.items():
        if name in value:
            converted[name] = _convert(hints[name], value[name], f"{where}{separator}{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigurationError(f"{where}{separator}{name}: missing")
    try:
        return cls(**converted)
    except ValueError as error:
        raise ConfigurationError(f"{where.rstrip(': ')}: {error}") from error


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _mismatch(where, value, "a list")
    if arguments[-1] is Ellipsis:
        kinds = (arguments[0],) * len(value)
    elif len(value) != len(arguments):
        raise ConfigurationError(f"{where}: has {len(value)} entries, expected {len(arguments)}")
    else:
        kinds = arguments
    return tuple(_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _convert_scalar(expected: type, value: Any, where: str) -> Any:
    if expected is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise _mismatch(where, value, "a finite number")
        return float(value)
    if expected is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if expected in (str, bool) and isinstance(value, expected):
        return value
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
    raise _mismatch(where, value, names[expected])


def _mismatch(where: str, value: Any, expected: str) -> ConfigurationError:
    return ConfigurationError(f"{where.rstrip(': ')}: is {value!r}, expected {expected}")
