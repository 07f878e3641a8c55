"""``molmoact teleop DEVICE [name:=value …]``: one of the teleop nodes, with the settings of config/teleop.yaml."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ament_index_python.packages import get_package_share_directory

from teleop_recorder.teleop_node import DEVICES, run_device

USAGE = f"usage: molmoact teleop {{{','.join(DEVICES)}}} [name:=value …]   (parameters, as in config/teleop.yaml)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code (2 for an unknown device or argument)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if not arguments or arguments[0] not in DEVICES or not all(":=" in text for text in arguments[1:]):
        print(USAGE, file=sys.stderr)
        return 2
    device, *parameters = arguments
    ros = ["--ros-args", "--params-file", str(settings_file())]
    for parameter in parameters:
        ros += ["-p", parameter]
    return run_device(device, ros)


def settings_file() -> Path:
    """The installed config/teleop.yaml."""
    return Path(get_package_share_directory("molmoact_bringup")) / "config" / "teleop.yaml"
