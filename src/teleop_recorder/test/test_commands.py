"""`molmoact episodes` as a person types it: what it prints, what it leaves, with which exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from teleop_recorder.commands import main
from teleop_recorder.episode import METADATA, Episode, Labels
from teleop_recorder.episode_writer import RootLock
from teleop_recorder.errors import EpisodeError

from .episodes import WRIST, make_episode

CONFIG = ["--config", str(Path(__file__).parents[3] / "config" / "curation.yaml")]


@pytest.fixture
def root(tmp_path):
    """Three episodes: good ones that succeeded and failed, and a discarded one that lacks a camera."""
    make_episode(tmp_path / "ep_1", seconds=1.2)
    make_episode(tmp_path / "ep_2", seconds=1.2, outcome="failure", reason="missed", instruction="push the cube")
    make_episode(tmp_path / "ep_3", seconds=1.2, outcome="discard", edit=without_wrist)
    return tmp_path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_episode(tmp_path_factory.mktemp("tiny") / "ep", seconds=0.2)


def without_wrist(samples):
    return [sample for sample in samples if sample.topic != WRIST]


def run(capsys, *arguments):
    """(exit code, lines of stdout, stderr)."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err


def labels(directory) -> Labels:
    return Episode.open(directory).labels


# list


def test_list_has_a_line_for_each_episode_and_a_sum(root, capsys):
    code, (heading, *lines, total), _ = run(capsys, "list", root)
    assert code == 0
    assert heading.split() == ["episode", "outcome", "length", "size", "task", "instruction"]
    assert [line.split()[:4] for line in lines] == [
        ["ep_1", "success", "1.2", "s"],
        ["ep_2", "failure", "1.2", "s"],
        ["ep_3", "discard", "1.2", "s"],
    ]
    assert lines[1].endswith("pick          push the cube")
    assert total.startswith("3 episodes: 1 success, 1 failure, 1 discard; 4 s, ")


def test_list_of_one_outcome_leaves_the_others_out(root, capsys):
    code, lines, _ = run(capsys, "list", root, "--outcome", "failure")
    assert code == 0
    assert [line.split()[0] for line in lines[1:-1]] == ["ep_2"]
    assert lines[-1].startswith("1 episode: 1 failure;")


def test_list_goes_on_after_an_episode_that_cannot_be_read(root, capsys):
    (root / "ep_1" / METADATA).write_text("{")
    code, lines, errors = run(capsys, "list", root)
    assert code == 1
    assert [line.split()[0] for line in lines[1:-1]] == ["ep_2", "ep_3"]
    assert "ep_1" in errors and "not readable" in errors


@pytest.mark.parametrize("command", ["list", "show", "verify"])
def test_directory_without_episodes_is_an_error_that_names_it(tmp_path, capsys, command):
    assert run(capsys, command, tmp_path)[0] == 1
    code, _, errors = run(capsys, command, tmp_path / "nothing")
    assert code == 1
    assert f"{tmp_path / 'nothing'}: there is no such directory" in errors


# verify


def test_verify_of_good_episodes_exits_0_and_leaves_discarded_ones_out(root, capsys):
    assert run(capsys, "verify", root, *CONFIG) == (
        0,
        ["2 episodes, 0 of them with 0 defects; 1 discarded not looked at"],
        "",
    )


def test_verify_exits_1_with_one_line_for_each_defect(root, capsys):
    make_episode(root / "ep_4", seconds=1.2, edit=without_wrist, closed=False)
    code, lines, _ = run(capsys, "verify", root, "--discarded", *CONFIG)
    assert code == 1
    assert lines[:-1] == [
        f"ep_3: {WRIST}: at 0.00 s: missing topic: no message in 1.21 s",
        *(line for line in lines if line.startswith("ep_4: whole episode: at ")),
        *(line for line in lines if line.startswith("ep_4: /camera/wrist")),
    ]
    assert len(lines) == 4 or len(lines) == 5  # what is left of ep_4 may be too short as well
    assert lines[-1].startswith("4 episodes, 2 of them with ")


def test_verify_counts_an_episode_that_cannot_be_read(root, capsys):
    (root / "ep_1" / METADATA).write_text("{")
    code, lines, _ = run(capsys, "verify", root, *CONFIG)
    assert code == 1
    assert lines[0].startswith("ep_1: ") and "not readable" in lines[0]


def test_topic_of_another_type_than_the_settings_say_is_told(root, capsys, tmp_path):
    config = tmp_path / "curation.yaml"
    config.write_text(Path(CONFIG[1]).read_text().replace("pose: /current_pose ", "pose: /joint_states "))
    code, lines, _ = run(capsys, "verify", root / "ep_1", "--config", config)
    assert code == 1
    assert "/joint_states is sensor_msgs/msg/JointState, expected geometry_msgs/msg/PoseStamped" in lines[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_file_never_keeps_the_others_from_being_verified(tmp_path, tiny, capsys, data):
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(tiny, root / "ep_1")
    shutil.copytree(tiny, root / "ep_2")
    (file,) = (root / "ep_1").glob("*.mcap")
    content = bytearray(file.read_bytes())
    begin = data.draw(st.integers(0, 20_000) | st.integers(0, len(content) - 1))
    content[begin : begin + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    file.write_bytes(content)
    for command in (["list", root], ["verify", root, *CONFIG], ["show", root, *CONFIG]):
        _, lines, errors = run(capsys, *command)
        assert "ep_2" in "\n".join(lines), errors


@pytest.mark.parametrize("text", ["", "[]", "{}", "rosbag2_bagfile_information: 3", "\xff"])
def test_metadata_that_is_none_is_told_with_its_file(root, capsys, text):
    (root / "ep_1" / METADATA).write_text(text, encoding="latin-1")
    code, lines, _ = run(capsys, "verify", root, *CONFIG)
    assert code == 1
    assert lines[0].startswith(f"ep_1: {root / 'ep_1' / METADATA}: not readable: ")


def test_settings_that_do_not_exist_exit_2(root, capsys):
    code, _, errors = run(capsys, "verify", root, "--config", root / "none.yaml")
    assert code == 2
    assert f"{root / 'none.yaml'}: not readable" in errors


# relabel


def test_relabel_changes_what_is_given_and_the_index(root, capsys):
    run(capsys, "index", root)
    code, lines, _ = run(capsys, "relabel", root / "ep_2", "--outcome", "success", "--instruction", "lift it")
    assert code == 0
    assert lines == ["ep_2: success, pick: lift it"]
    assert labels(root / "ep_2") == Labels("pick", "lift it", "success", "missed")
    index = [json.loads(line) for line in (root / "episodes.jsonl").read_text().splitlines()]
    assert [(entry["episode"], entry["outcome"]) for entry in index] == [
        ("ep_1", "success"),
        ("ep_2", "success"),
        ("ep_3", "discard"),
    ]


def test_relabel_with_nothing_to_change_exits_2(root, capsys):
    assert run(capsys, "relabel", root / "ep_1")[0] == 2


def test_relabel_cannot_discard_by_the_way(root, capsys):
    assert run(capsys, "relabel", root / "ep_1", "--outcome", "discard")[0] == 2
    assert labels(root / "ep_1").outcome == "success"


def test_relabel_of_an_interrupted_episode_closes_it_first(tmp_path, capsys):
    directory = make_episode(tmp_path / "ep_1", closed=False)
    assert run(capsys, "relabel", directory, "--outcome", "success")[0] == 0
    episode = Episode.open(directory)
    assert episode.closed
    assert episode.labels.outcome == "success"


def test_episode_that_may_still_be_recorded_is_not_touched(tmp_path, capsys):
    directory = make_episode(tmp_path / "ep_1", closed=False)
    lock = RootLock(tmp_path)
    try:
        code, _, errors = run(capsys, "discard", directory, "--yes")
    finally:
        lock.release()
    assert code == 1
    assert "another recorder" in errors
    assert not Episode.open(directory).closed


# discard


@pytest.mark.parametrize("answer", ["n", "", "nonsense", None])
def test_discard_without_a_yes_discards_nothing(root, capsys, monkeypatch, answer):
    def ask(_question):
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", ask)
    code, lines, _ = run(capsys, "discard", root / "ep_1", root / "ep_2")
    assert code == 1
    assert lines[-1] == "nothing was discarded"
    assert labels(root / "ep_1").outcome == "success"


def test_discard_shows_what_it_asks_about(root, capsys, monkeypatch):
    questions = []
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "y")
    code, lines, _ = run(capsys, "discard", root / "ep_1", "--reason", "cube was glued")
    assert code == 0
    assert lines[0] == "ep_1  success  1.2 s  pick up the red cube"
    assert questions == ["Discard 1 episode for good? [y/N] "]
    assert labels(root / "ep_1") == Labels("pick", "pick up the red cube", "discard", "cube was glued")


def test_interrupted_episode_can_be_discarded(tmp_path, capsys):
    directory = make_episode(tmp_path / "ep_1", closed=False)
    assert run(capsys, "discard", directory, "--yes")[0] == 0
    assert labels(directory).outcome == "discard"


def test_discarded_episode_cannot_be_relabelled_as_a_success(root, capsys):
    code, _, errors = run(capsys, "relabel", root / "ep_3", "--outcome", "success")
    assert code == 1
    assert "ep_3: was discarded, which is for good" in errors


def test_process_that_opened_an_episode_before_it_was_discarded_cannot_bring_it_back(root, capsys):
    before = Episode.open(root / "ep_1")
    run(capsys, "discard", root / "ep_1", "--yes")
    try:
        before.label(outcome="success")
    except EpisodeError:
        pass
    assert labels(root / "ep_1").outcome == "discard"


COMMANDS = {
    "success": ["relabel", "ep", "--outcome", "success"],
    "failure": ["relabel", "ep", "--outcome", "failure", "--reason", "no"],
    "task": ["relabel", "ep", "--task", "place", "--instruction", "place it"],
    "discard": ["discard", "ep", "--yes"],
    "index": ["index", "."],
    "verify": ["verify", "ep", *CONFIG],
    "list": ["list", "."],
    "metadata lost": None,
}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.lists(st.sampled_from(list(COMMANDS)), max_size=3),
    after=st.lists(st.sampled_from(list(COMMANDS)), min_size=1, max_size=5),
)
def test_no_sequence_of_commands_makes_a_discarded_episode_anything_else(tmp_path, tiny, monkeypatch, before, after):
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(tiny, root / "ep")
    monkeypatch.chdir(root)
    for name in (*before, "discard", *after):
        if COMMANDS[name] is None:
            (root / "ep" / METADATA).unlink(missing_ok=True)
        else:
            main(COMMANDS[name])
    assert labels(root / "ep").outcome == "discard"
    main(["index", "."])
    assert json.loads((root / "episodes.jsonl").read_text())["outcome"] == "discard"


# index, and commands of other modules


def test_index_is_rebuilt_from_the_episodes_alone(root, capsys):
    (root / "episodes.jsonl").write_text("nonsense\n")
    code, lines, _ = run(capsys, "index", root)
    assert code == 0
    assert lines == [f"{root / 'episodes.jsonl'}: 3 episodes"]
    assert len((root / "episodes.jsonl").read_text().splitlines()) == 3


def test_help_names_every_command_and_loads_none_of_the_heavy_ones(capsys):
    code, lines, _ = run(capsys, "--help")
    assert code == 0
    text = "\n".join(lines)
    for name in ("list", "show", "play", "verify", "relabel", "discard", "index", "export", "import"):
        assert f"\n    {name} " in text


def test_unknown_command_exits_2(capsys):
    assert run(capsys, "delete")[0] == 2
