"""Node parameters as a frozen dataclass: typed, described, range-checked, refused by name when wrong.

    @dataclass(frozen=True)
    class Parameters:
        rate: float = parameter(100.0, "control rate, Hz", minimum=1.0, maximum=1000.0)
        arms: tuple[str, ...] = parameter(("fr3",), "names of the arms")
        timeout: float | None = parameter(None, "s; not set: wait for ever", minimum=0.0)

Types are bool, int, float, str and tuples of those. `None` is the only "not set".
"""

from __future__ import annotations

import array
import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from molmoact_ros.errors import ConfigurationError

_METADATA = "molmoact_ros"

_SCALARS = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
}
_ARRAYS = {
    bool: Parameter.Type.BOOL_ARRAY,
    int: Parameter.Type.INTEGER_ARRAY,
    float: Parameter.Type.DOUBLE_ARRAY,
    str: Parameter.Type.STRING_ARRAY,
}
_WORDS = {
    Parameter.Type.NOT_SET: "nothing",
    Parameter.Type.BOOL: "true or false",
    Parameter.Type.INTEGER: "an integer",
    Parameter.Type.DOUBLE: "a number with a decimal point",
    Parameter.Type.STRING: "text",
    Parameter.Type.BYTE_ARRAY: "a list of bytes",
    Parameter.Type.BOOL_ARRAY: "a list of true or false",
    Parameter.Type.INTEGER_ARRAY: "a list of integers",
    Parameter.Type.DOUBLE_ARRAY: "a list of numbers with a decimal point",
    Parameter.Type.STRING_ARRAY: "a list of text",
}


@dataclasses.dataclass(frozen=True)
class _Limits:
    description: str
    minimum: float | None
    maximum: float | None
    choices: tuple[Any, ...] | None


def parameter(
    default: Any,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A dataclass field that is a ROS parameter. Limits hold for every element of a list."""
    limits = _Limits(description, minimum, maximum, choices)
    return dataclasses.field(default=default, metadata={_METADATA: limits})


@dataclasses.dataclass(frozen=True)
class Declared:
    """One parameter of a dataclass: its ROS type and its limits."""

    name: str
    type: Parameter.Type
    default: Any
    limits: _Limits

    def complaint(self, given: Parameter) -> str | None:
        """Why this value cannot be taken; None when it can."""
        if given.type_ != self.type:
            return (
                f"parameter '{self.name}': {given.value!r} is {_WORDS[given.type_]}, "
                f"expected {_WORDS[self.type]} ({self.limits.description})"
            )
        values = given.value if self.type in _ARRAYS.values() else (given.value,)
        return next((text for text in map(self._complaint_about_value, values) if text), None)

    def _complaint_about_value(self, value: Any) -> str | None:
        limits = self.limits
        if limits.choices is not None and value not in limits.choices:
            return f"parameter '{self.name}': {value!r} is not one of {', '.join(map(str, limits.choices))}"
        if isinstance(value, float) and math.isnan(value):
            return f"parameter '{self.name}': nan is not a number"
        below = limits.minimum is not None and value < limits.minimum
        above = limits.maximum is not None and value > limits.maximum
        if below or above:
            return f"parameter '{self.name}': {value!r} is outside {self.range()} ({limits.description})"
        return None

    def range(self) -> str:
        low = "-inf" if self.limits.minimum is None else str(self.limits.minimum)
        high = "inf" if self.limits.maximum is None else str(self.limits.maximum)
        return f"{low} .. {high}"

    def descriptor(self) -> ParameterDescriptor:
        limits = self.limits
        choices = "" if limits.choices is None else "one of " + ", ".join(map(str, limits.choices))
        descriptor = ParameterDescriptor(description=limits.description, additional_constraints=choices)
        if limits.minimum is None and limits.maximum is None:
            return descriptor
        if self.type == Parameter.Type.DOUBLE:
            low = -math.inf if limits.minimum is None else float(limits.minimum)
            high = math.inf if limits.maximum is None else float(limits.maximum)
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        elif self.type == Parameter.Type.INTEGER:
            low = -(2**63) if limits.minimum is None else int(limits.minimum)
            high = 2**63 - 1 if limits.maximum is None else int(limits.maximum)
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
        else:
            descriptor.additional_constraints = f"each within {self.range()}"
        return descriptor

    def declare(self, node: Node) -> None:
        # Declared by type and set afterwards: an empty list as default has no type of its own.
        node.declare_parameter(self.name, self.type, self.descriptor())
        if self.default is not None and node.get_parameter_or(self.name).type_ == Parameter.Type.NOT_SET:
            node.set_parameters([Parameter(self.name, self.type, self.default)])

    def value(self, node: Node) -> Any:
        value = node.get_parameter_or(self.name).value
        return tuple(value) if isinstance(value, (list, tuple, array.array)) else value


class ParameterSet:
    """The parameters of one node: declared at construction, changeable until frozen, read as one dataclass.

    Raises ConfigurationError for an override that is unknown, of the wrong type, out of range or no choice.
    """

    def __init__(self, node: Node, parameters_type: type) -> None:
        self._node = node
        self._type = parameters_type
        self._declared = {declared.name: declared for declared in declarations(parameters_type)}
        self._frozen = False
        # rclpy shows overrides of undeclared parameters nowhere else, and ignores them without a word.
        self._refuse_bad_overrides(node._parameter_overrides.values())
        for declared in self._declared.values():
            declared.declare(node)
        node.add_on_set_parameters_callback(self._on_set)

    def freeze(self) -> Any:
        """Refuse changes from now on and return the current values as an instance of the dataclass."""
        self._frozen = True
        return self._type(**{name: declared.value(self._node) for name, declared in self._declared.items()})

    def thaw(self) -> None:
        self._frozen = False

    def _refuse_bad_overrides(self, overrides: Iterable[Parameter]) -> None:
        for given in overrides:
            if given.name in self._declared:
                complaint = self._declared[given.name].complaint(given)
                if complaint:
                    raise ConfigurationError(complaint)
            elif not self._node.has_parameter(given.name):
                raise ConfigurationError(f"parameter '{given.name}' is unknown{self._suggestion(given.name)}")

    def _suggestion(self, name: str) -> str:
        close = difflib.get_close_matches(name, self._declared, n=1)
        return f": did you mean '{close[0]}'?" if close else f" (known: {', '.join(sorted(self._declared))})"

    def _on_set(self, changes: list[Parameter]) -> SetParametersResult:
        for given in changes:
            declared = self._declared.get(given.name)
            if declared is None:
                continue
            complaint = declared.complaint(given)
            if self._frozen:
                complaint = f"parameter '{given.name}' can only be changed while the node is unconfigured"
            if complaint:
                return SetParametersResult(successful=False, reason=complaint)
        return SetParametersResult(successful=True)


def declarations(parameters_type: type) -> list[Declared]:
    """The parameters a dataclass declares, in its order."""
    hints = typing.get_type_hints(parameters_type)
    return [
        Declared(field.name, _ros_type(hints[field.name]), field.default, field.metadata[_METADATA])
        for field in dataclasses.fields(parameters_type)
    ]


def _ros_type(hint: Any) -> Parameter.Type:
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return _ros_type(next(argument for argument in arguments if argument is not type(None)))
    return _ARRAYS[arguments[0]] if typing.get_origin(hint) is tuple else _SCALARS[hint]
