"""The interfaces declared here are those a real robot speaks.

A type hash other than the publisher's is another type to every tool, and other fields read nonsense.
`data/robot_interfaces.json` holds fields, constants, defaults and type hashes (REP 2016) of the released packages.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
from ament_index_python.packages import get_package_share_directory
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

SOURCES = Path(__file__).parents[1] / "src" / "robot_interfaces"
RELEASED = json.loads((Path(__file__).parent / "data" / "robot_interfaces.json").read_text())
SECTIONS = {"msg": ("",), "srv": ("_Request", "_Response"), "action": ("_Goal", "_Result", "_Feedback")}


def definition_file(interface: str) -> Path:
    """Where an interface such as `franka_msgs/action/Grasp` is declared."""
    package, kind, name = interface.split("/")
    return SOURCES / package / kind / f"{name}.{kind}"


def declared_interfaces() -> dict[str, list[str]]:
    """The lines, without comments, of every message; services and actions give one for each of their sections."""
    declared = {}
    for kind, suffixes in SECTIONS.items():
        for file in SOURCES.glob(f"*/{kind}/*.{kind}"):
            lines = [line.partition("#")[0].strip() for line in file.read_text().splitlines()]
            sections = "\n".join(line for line in lines if line).split("---")
            for suffix, section in zip(suffixes, sections, strict=True):
                declared[f"{file.parents[1].name}/{kind}/{file.stem}{suffix}"] = section.strip().splitlines()
    return declared


DECLARED = declared_interfaces()
SERVICES = sorted(name.removesuffix("_Response") for name in DECLARED if name.endswith("_Response"))


@pytest.fixture(scope="module")
def types_from_text():
    """Every declared interface, parsed from its text by a second implementation of the type hash."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for name, fields in DECLARED.items():
        # An empty structure of ROS 2 carries one placeholder byte.
        text = "\n".join(fields) or "uint8 structure_needs_at_least_one_member"
        store.register({key: value for key, value in get_types_from_msg(text, name).items() if key not in store.types})
    return store


def test_every_released_message_is_declared():
    assert set(RELEASED) == {name for name in DECLARED if "/srv/" not in name}


@pytest.mark.parametrize("name", RELEASED)
def test_fields_constants_and_defaults_are_those_released(name):
    def normalised(lines):
        return [line.replace(" = ", "=").split() for line in lines]

    assert normalised(DECLARED[name]) == normalised(RELEASED[name]["fields"])


@pytest.mark.parametrize("name", RELEASED)
def test_declared_type_hash_is_the_released_one(name, types_from_text):
    assert types_from_text.hash_rihs01(name) == RELEASED[name]["rihs01"]


@pytest.mark.parametrize("name", RELEASED)
def test_built_type_hash_is_the_released_one(name):
    package, kind, message = name.split("/")
    description = Path(get_package_share_directory(package)) / kind / f"{message.partition('_')[0]}.json"
    hashes = {entry["type_name"]: entry["hash_string"] for entry in json.loads(description.read_text())["type_hashes"]}
    assert hashes[name] == RELEASED[name]["rihs01"]


@pytest.mark.parametrize("name", SERVICES)
def test_service_answers_with_success_and_error(name):
    assert DECLARED[f"{name}_Response"] == ["bool success", "string error"]


@pytest.mark.parametrize("name", SERVICES)
def test_service_can_be_used_from_python(name):
    package, kind, service = name.split("/")
    getattr(import_module(f"{package}.{kind}"), service).Request()
