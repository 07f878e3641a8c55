#!/usr/bin/env python3
"""Writes docs/reference/{interfaces,parameters}.md from the interface files and the nodes' parameter dataclasses.

usage, in a shell after `. ./env.sh`: scripts/generate_reference.py [--check]    (--check: say whether they are current)
"""

import sys
from pathlib import Path

from franka_bridge.parameters import BridgeParameters
from franka_sim.parameters import SimulatorParameters
from molmoact_policy.node import PolicyParameters
from molmoact_ros.parameters import Declared, declarations
from molmoact_training.evaluation.replay_node import ReplayParameters
from teleop_recorder.parameters import RecorderParameters
from teleop_recorder.teleop_node import DEVICES

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
NODES = {
    "policy": ("config/policy.yaml", PolicyParameters),
    "franka_bridge": ("config/bridge.yaml", BridgeParameters),
    "franka_sim": ("config/sim.yaml", SimulatorParameters),
    "recorder": ("config/recorder.yaml", RecorderParameters),
    "replay": ("config/replay.yaml", ReplayParameters),
    **{f"teleop_{name}": ("config/teleop.yaml", device.parameters) for name, device in DEVICES.items()},
}
GENERATED = "<!-- written by scripts/generate_reference.py; do not edit -->\n"


def parameters_page() -> str:
    """One table for each node."""
    text = f"{GENERATED}\n# Parameters\n\nUnknown names and values out of range are refused at start-up, by name.\n"
    for node, (file, parameters) in NODES.items():
        text += f"\n## {node}\n\nSet in `{file}`; `config/robots/<robot>.yaml` wins over it.\n\n"
        text += "| parameter | type | default | what it is |\n|---|---|---|---|\n"
        text += "".join(parameter_row(declared) for declared in declarations(parameters))
    return text


def parameter_row(declared: Declared) -> str:
    """The limits are part of the description."""
    limits = declared.limits
    description = limits.description
    if limits.choices is not None:
        description += f"; one of {', '.join(f'`{choice}`' for choice in limits.choices)}"
    elif limits.minimum is not None or limits.maximum is not None:
        description += f"; {declared.range()}"
    default = "" if declared.default is None else f"`{declared.default}`"
    kind = declared.type.name.lower().replace("_array", " list")
    return f"| `{declared.name}` | {kind} | {default} | {description} |\n"


def interfaces_page() -> str:
    """The topics table, which is kept by hand, and every interface file as it is."""
    text = GENERATED + "\n" + (REFERENCE / "topics.md").read_text()
    for folder, title in (("msg", "Messages"), ("srv", "Services"), ("action", "Actions")):
        text += f"\n## {title}\n"
        for file in sorted((ROOT / "src" / "molmoact_msgs" / folder).iterdir()):
            text += f"\n### molmoact_msgs/{folder}/{file.stem}\n\n```\n{file.read_text().strip()}\n```\n"
    return text


def main() -> int:
    pages = {"interfaces.md": interfaces_page(), "parameters.md": parameters_page()}
    stale = [name for name, text in pages.items() if _read(REFERENCE / name) != text]
    if sys.argv[1:] == ["--check"]:
        for name in stale:
            print(f"docs/reference/{name} is not current: run scripts/generate_reference.py", file=sys.stderr)
        return len(stale)
    for name in stale:
        (REFERENCE / name).write_text(pages[name])
    return 0


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
