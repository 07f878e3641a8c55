"""Message definitions as the machine has them installed, for the schemas of a bag."""

from __future__ import annotations

import importlib
import struct
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from teleop_recorder.errors import DefinitionError

_CDR_HEADER_BYTES = 4


def installed_typestore() -> Typestore:
    """The messages of ROS 2 Jazzy, to which :func:`add_installed_type` adds others."""
    return get_typestore(Stores.ROS2_JAZZY)


def add_installed_type(typestore: Typestore, name: str) -> None:
    """Make `typestore` know the message `name` ("molmoact_msgs/msg/ActionChunk") and every message inside it.

    Raises:
        DefinitionError: there is no .msg file for one of them in the ament index.
    """
    if name in typestore.fielddefs:
        return
    types = get_types_from_msg(_definition_file(name).read_text(encoding="utf-8"), name)
    for _, (_, fields) in types.items():
        for _, description in fields:
            for nested in _message_names(description):
                add_installed_type(typestore, nested)
    typestore.register(types)


def message_class(name: str) -> type:
    """The Python class of the message `name`.

    Raises:
        DefinitionError: its package has no Python code on this machine.
    """
    package, kind, message = name.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.{kind}"), message)
    except (ImportError, AttributeError) as error:
        raise DefinitionError(f"message type {name}: {error}") from error


def begins_with_stamp(typestore: Typestore, name: str) -> bool:
    """Whether the first thing in the message `name` is a time, of its own or of its header."""
    _, fields = typestore.fielddefs[name]
    if not fields:
        return False
    kind, content = fields[0][1]
    if kind != Nodetype.NAME:
        return False
    return content == "builtin_interfaces/msg/Time" or begins_with_stamp(typestore, str(content))


def leading_stamp(message: bytes) -> int:
    """The time (ns) at the beginning of a serialized message that `begins_with_stamp`."""
    seconds, nanoseconds = struct.unpack_from("<iI", message, _CDR_HEADER_BYTES)
    return seconds * 10**9 + nanoseconds


def _definition_file(name: str) -> Path:
    package, kind, message = name.split("/")
    try:
        path = Path(get_package_share_directory(package)) / kind / f"{message}.msg"
    except PackageNotFoundError:
        raise DefinitionError(f"message type {name}: package '{package}' is not installed") from None
    if not path.is_file():
        raise DefinitionError(f"message type {name}: {path} does not exist")
    return path


def _message_names(description: tuple) -> list[str]:
    """Names of messages in a field description of rosbags, (node type, content); arrays hold another description."""
    kind, content = description
    if kind == Nodetype.NAME:
        return [content]
    if kind in (Nodetype.ARRAY, Nodetype.SEQUENCE):
        return _message_names(content[0])
    return []
