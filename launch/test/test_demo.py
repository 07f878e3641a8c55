from __future__ import annotations

import json

import pytest
from molmoact_bringup import demo
from molmoact_bringup.errors import ConfigurationError, SystemFailure
from molmoact_bringup.operator import Episode
from teleop_recorder.recorder import TopicCount


def episode(seed: int, outcome: str) -> Episode:
    return Episode("pick", seed, "pick up the red cube", outcome, "because", 7.5, 15.0, 12)


@pytest.fixture
def run(tmp_path):
    return demo.Run(["pick"], "nano", [1000, 1001, 1002], 30.0, tmp_path, "2026-01-01T00-00-00")


def test_summary_is_written_even_when_nothing_was_run(run):
    run.ended = "policy exited with code 1: checkpoint nano: not found"
    demo.report(run, no_video=False)
    summary = json.loads((run.directory / "summary.json").read_text())
    assert summary["ended"] == run.ended and not summary["complete"]
    assert summary["success_rate"] is None and summary["episodes"] == []


def test_summary_of_an_interrupted_run_counts_the_episodes_that_were_run(run, capsys):
    run.episodes = [episode(1000, "success"), episode(1001, "failure")]
    run.topics = {"/action_chunk": TopicCount(received=11, written=11, first_ns=0, last_ns=5_000_000_000)}
    run.ended = "interrupted by SIGINT"
    demo.report(run, no_video=True)
    summary = json.loads((run.directory / "summary.json").read_text())
    assert summary["success_rate"] == 0.5
    assert [entry["seed"] for entry in summary["episodes"]] == [1000, 1001]
    assert summary["real_time_factor"] == 0.5
    assert summary["rates_hz"] == {"/action_chunk": 2.0}
    assert any("has no index" in problem for problem in summary["problems"])


def test_failure_of_the_system_is_the_exit_code_and_the_reason(tmp_path, monkeypatch, capsys):
    def fail(run: demo.Run) -> None:
        raise SystemFailure("policy exited with code 1: checkpoint: not found")

    monkeypatch.setattr(demo, "run_episodes", fail)
    assert demo.main(["--out", str(tmp_path / "out"), "--episodes", "2"]) == 1
    assert "checkpoint: not found" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["seeds"] == [1000, 1001]


def test_results_of_another_run_are_not_overwritten(tmp_path):
    (tmp_path / "summary.json").touch()
    with pytest.raises(ConfigurationError, match="is not empty"):
        demo.create_directory(tmp_path)


def test_directory_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert demo.main(["--out", str(tmp_path / "file" / "out")]) == 1
    assert "file/out: cannot be created: Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--episodes", "0"],
        ["--episodes", "ten"],
        ["--seed", "-1"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--task", "fly"],
    ],
)
def test_arguments_out_of_range_start_nothing(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        demo.main(arguments)
    assert exit_.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_progress_is_one_line_with_the_rate_so_far(run, capsys):
    run.episodes = [episode(1000, "success"), episode(1001, "failure")]
    demo.show_progress(run)
    assert capsys.readouterr().out == "  2/3 ✗ pick seed 1001    7.5 s  1/2 =  50%  because\n"


def test_node_log_shows_what_went_wrong_and_keeps_everything(tmp_path, capsys):
    with (tmp_path / "log.txt").open("w") as file:
        log = demo.NodeLog(file)
        log("policy", "[INFO] [1.0] [policy]: ready")
        log("policy", "[ERROR] [1.0] [policy]: no image")
    assert capsys.readouterr().out == "  [policy] [ERROR] [1.0] [policy]: no image\n"
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2
