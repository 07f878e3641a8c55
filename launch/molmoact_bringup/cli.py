"""The ``molmoact`` command: a front for the subcommands that packages register as ``molmoact.commands`` entry points.

Each entry point is a function that takes the arguments after the subcommand's name and returns an exit code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

GROUP = "molmoact.commands"


def commands() -> dict[str, EntryPoint]:
    """Subcommands of every installed package, by name."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code (2 for an unknown subcommand)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    known = commands()
    usage = f"usage: molmoact {{{', '.join(known)}}} …"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return 0 if arguments else 2
    if arguments[0] not in known:
        print(f"molmoact: unknown command '{arguments[0]}'\n{usage}", file=sys.stderr)
        return 2
    return known[arguments[0]].load()(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
