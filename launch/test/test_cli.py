from __future__ import annotations

from importlib.metadata import EntryPoint

from molmoact_bringup import cli

seen: list[list[str]] = []


def record(arguments: list[str]) -> int:
    seen.append(arguments)
    return 7


def test_subcommand_gets_the_rest_of_the_line_and_gives_the_exit_code(monkeypatch):
    entry = EntryPoint("other", "ignored:ignored", cli.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: record)
    monkeypatch.setattr(cli, "commands", lambda: {"other": entry})
    assert cli.main(["other", "a:=b", "--help"]) == 7
    assert seen == [["a:=b", "--help"]]


def test_own_subcommands_are_registered():
    assert {"up", "demo"} <= set(cli.commands())


def test_unknown_subcommand_is_named_with_the_known_ones(capsys):
    assert cli.main(["fly"]) == 2
    error = capsys.readouterr().err
    assert "unknown command 'fly'" in error and "up" in error
