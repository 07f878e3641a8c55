"""What an evaluation says is true of answers about which everything is known."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from molmoact_training.errors import DatasetError, TrainingError
from molmoact_training.evaluation.command import main, write_results
from molmoact_training.evaluation.comparison import (
    PREDICTIONS_FILE,
    REPORT_FILE,
    RESULTS_FILE,
    Candidate,
    Comparison,
    evaluate,
)
from molmoact_training.evaluation.dataset_sources import AnnotatedSource
from molmoact_training.evaluation.metrics import (
    AXES,
    GROUPS,
    Answer,
    Recording,
    Sums,
    definitions,
    differences,
    estimates,
    sums_of,
    thresholds,
    trace_distances,
)

from .evaluation_data import EPISODES, FRAMES, ROWS, Recited, make_dataset, refuse, steps_of


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "dataset")


def evaluated(dataset: Path, *actors: Recited, every: int = 1) -> Comparison:
    candidates = [Candidate(f"actor {number}", lambda actor=actor: actor) for number, actor in enumerate(actors)]
    return evaluate(candidates, lambda _: lambda: AnnotatedSource(dataset), every=every)


def value(comparison: Comparison, name: str, candidate: int = 0) -> float | None:
    return comparison.candidates[candidate].metrics[name].value


def test_recited_actions_have_no_error_and_every_bin_right(dataset):
    comparison = evaluated(dataset, Recited(dataset))
    metrics = comparison.candidates[0].metrics
    for name, estimate in metrics.items():
        if name.startswith(("l1", "mse", "critical", "trace")):
            assert estimate.value == pytest.approx(0.0, abs=1e-12), name
        elif name.startswith(("bins", "gripper")) or name == "depth/accuracy":
            assert estimate[:3] == (1.0, 1.0, 1.0), name
    assert value(comparison, "failures") == 0.0
    assert value(comparison, "passes") == 400
    compared = sum(min(ROWS, FRAMES - frame) for frame in range(FRAMES)) * EPISODES
    assert metrics["l1/x"].over == compared


def test_every_metric_is_defined_and_no_other(dataset):
    metrics = evaluated(dataset, Recited(dataset)).candidates[0].metrics
    of_one_axis = re.compile(rf"/({'|'.join([*AXES, *GROUPS])})$")
    computed = {of_one_axis.sub("" if name.startswith("bins") else "/AXIS", name) for name in metrics}
    assert computed == set(definitions())


def test_every_metric_is_explained_where_people_look_for_it():
    page = (Path(__file__).parents[2] / "docs/how-to/evaluate.md").read_text()
    assert [name for name in definitions() if f"`{name}`" not in page] == []


def test_two_arms_are_measured_apart_and_together():
    frames = np.arange(10)
    openings = np.stack([frames < 5, np.ones(10)], 1).astype(float)
    recording = Recording("0", frames, openings, 0.1)
    levels = thresholds([recording])
    assert levels == [0.5, None]
    recorded = np.zeros((3, 14))
    recorded[:, 6], recorded[:, 13] = [1.0, 1.0, 0.0], 1.0
    predicted = recorded.copy()
    predicted[:, 7] += 0.01
    predicted[:, 13] = 0.0  # of an arm whose gripper was not moved: an error, but no decision
    bins = np.zeros((3, 14), int)
    answer = Answer("0", 3, "", (9, 9), recorded, bins, predicted, bins)
    found = estimates([sums_of([answer], recording, levels)], seed=0)
    assert (found["l1/x_1"].value, found["l1/x_2"].value) == (0.0, pytest.approx(0.01))
    assert found["l1/translation"].value == pytest.approx(0.01 / 6)
    assert found["l1/gripper_2"].value == 1.0
    assert found["gripper/f1"][:4:3] == (1.0, 2.0) and "gripper/f1_opening" not in found


SHIFT = np.array([0.1, 0, 0, 0, 0, 0, 0])


def test_an_offset_is_reported_in_metres_and_radians(dataset):
    def shifted(prediction, _):
        return replace(prediction, actions=prediction.actions + SHIFT)

    comparison = evaluated(dataset, Recited(dataset, shifted))
    assert value(comparison, "l1/x") == pytest.approx(0.1 * 0.05)
    assert value(comparison, "mse/x") == pytest.approx((0.1 * 0.05) ** 2)
    assert value(comparison, "l1/translation") == pytest.approx(0.1 * 0.05 / 3)
    assert value(comparison, "l1/rx") == pytest.approx(0.0, abs=1e-12)


def test_the_best_that_bins_can_say_is_exact_in_bins(dataset):
    actor = Recited(dataset)
    actor._change = lambda it, _: replace(it, actions=actor.quantised(it.actions))
    comparison = evaluated(dataset, actor)
    assert value(comparison, "bins/exact") == 1.0
    assert 0.0 < value(comparison, "l1/x") < 0.05 / 255


def test_actions_one_bin_off_are_within_one_and_not_exact(dataset):
    actor = Recited(dataset)
    bin_width = (actor.statistics.q99 - actor.statistics.q01)[0] / 255

    def one_off(prediction, _):
        actions = actor.quantised(prediction.actions)
        actions[:, 0] -= np.where(actions[:, 0] > 0, bin_width, -bin_width)
        return replace(prediction, actions=actions)

    actor._change = one_off
    comparison = evaluated(dataset, actor)
    assert value(comparison, "bins/exact/x") == 0.0
    assert value(comparison, "bins/within_1/x") == 1.0
    assert value(comparison, "bins/exact") == pytest.approx(6 / 7)


def test_copied_depth_has_the_copy_accuracy_and_no_gain(dataset):
    actor = Recited(dataset)
    actor._change = lambda it, index: replace(it, depth_codes=actor.codes_before(index))
    comparison = evaluated(dataset, actor)
    assert value(comparison, "depth/accuracy") == value(comparison, "depth/copy")
    assert value(comparison, "depth/gain") == 0.0
    # Ten cells change from one frame to the next, ninety from 9 to 10; 19 frames have one before.
    assert value(comparison, "depth/copy") == pytest.approx(1 - (18 * 10 + 90) / 1900)


def test_copying_is_from_the_frame_before_also_when_frames_are_left_out(dataset):
    whole, part = evaluated(dataset, Recited(dataset)), evaluated(dataset, Recited(dataset), every=3)
    assert part.candidates[0].metrics["depth/copy"].over == EPISODES * 6 * 100
    assert 0.85 < value(part, "depth/copy") <= value(whole, "depth/copy") + 0.05


def test_a_hand_that_never_closes_misses_every_closing_and_every_opening_is_no_news(dataset):
    def always_open(prediction, _):
        actions = prediction.actions.copy()
        actions[:, 6] = 0.0
        return replace(prediction, actions=actions)

    comparison = evaluated(dataset, Recited(dataset, always_open))
    assert value(comparison, "gripper/f1_closing") == 0.0
    # Wherever the hand is closed it says open: right within eight rows of the opening, wrong before.
    closed = [sum(steps_of(episode)[:, 6] > 0) for episode in range(EPISODES)]
    right = sum(min(frames, ROWS - 1 + 1) for frames in closed)
    assert value(comparison, "gripper/f1_opening") == pytest.approx(2 * right / (right + sum(closed)))
    assert value(comparison, "critical_mse/gripper") > value(comparison, "mse/gripper")


def test_critical_rows_are_those_within_half_a_second_of_a_gripper_change():
    frames = np.arange(40)
    recording = Recording("0", frames, (frames < 20)[:, None].astype(float), 0.1)
    errors = np.zeros((40, 7))
    errors[15:26, 0] = 1.0  # 20 ± 5 frames

    def answer(frame: int) -> Answer:
        zeros = np.zeros((1, 7), int)
        rows = np.zeros((1, 7))
        return Answer("0", frame, "", (9, 9), rows, zeros, errors[frame : frame + 1], zeros)

    (found,) = [estimates([sums_of(map(answer, range(40)), recording, thresholds([recording]))], seed=0)]
    assert found["critical_mse/x"].value == 1.0
    assert found["critical_mse/x"].over == 11
    assert found["mse/x"].value == pytest.approx(11 / 40)


def test_replies_that_do_not_parse_are_counted_with_their_reasons_and_nowhere_else(dataset, tmp_path):
    def sometimes(prediction, index):
        return refuse(prediction, index) if index % 4 == 0 else prediction

    comparison = evaluated(dataset, Recited(dataset, sometimes))
    write_results(comparison, tmp_path / "out")
    found = json.loads((tmp_path / "out" / RESULTS_FILE).read_text())["checkpoints"][0]
    assert found["failure_reasons"] == {"action: none found": EPISODES * FRAMES // 4}
    assert found["metrics"]["failures"]["value"] == 0.25
    assert found["metrics"]["bins/exact"]["value"] == 1.0
    assert found["latency"] == {"median_s": 0.25, "p99_s": 0.25}


def test_traces_are_compared_along_their_way_in_pixels_of_the_picture():
    straight, bent = [(0, 0), (255, 0)], [(0, 0), (128, 255), (255, 0)]
    assert trace_distances(straight, [(0, 0), (64, 0), (127, 0), (191, 0), (255, 0)], (256, 256)).max() < 0.6
    assert trace_distances(straight, bent, (320, 240))[[0, 2, 4]] == pytest.approx([0, 239, 0], abs=1)
    assert trace_distances([(10, 10)], [(10, 20)], (256, 511)) == pytest.approx([20] * 5)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Episodes with a mean of their own: the interval is about them, not about their many frames."""
    random = np.random.default_rng(7)
    hits = 0
    trials = 300
    for trial in range(trials):
        episodes = []
        for mean in random.normal(1.0, 0.5, 40):
            sums = Sums()
            frames = random.integers(5, 50)
            sums.add("l1/x", float(random.normal(mean, 0.1, frames).sum()), int(frames))
            episodes.append(sums)
        found = estimates(episodes, seed=trial, resamples=400)["l1/x"]
        hits += found.low <= 1.0 <= found.high
    assert 0.90 <= hits / trials <= 0.98


def test_paired_difference_is_surer_than_two_intervals_apart():
    random = np.random.default_rng(3)
    both: list[list[Sums]] = [[], []]
    for difficulty in random.normal(1.0, 0.5, 30):
        for list_of, extra in zip(both, (0.0, 0.1), strict=True):
            list_of.append(Sums())
            list_of[-1].add("l1/x", difficulty + extra + random.normal(0, 0.01), 1)
    difference = differences(*both, seed=0)["l1/x"]
    assert difference.low > 0.08 and difference.high < 0.12
    apart = estimates(both[0], seed=0)["l1/x"]
    assert apart.high - apart.low > 5 * (difference.high - difference.low)


def test_one_episode_has_no_interval_and_the_same_seed_the_same_one(dataset):
    sums = Sums()
    sums.add("l1/x", 1.0, 2.0)
    assert estimates([sums], seed=0)["l1/x"] == (0.5, None, None, 2.0)
    first, second = (evaluated(dataset, Recited(dataset)).candidates[0].metrics for _ in range(2))
    assert first == second


def test_two_checkpoints_stand_side_by_side_with_their_difference(dataset, tmp_path):
    def shifted(prediction, _):
        return replace(prediction, actions=prediction.actions + SHIFT)

    comparison = evaluated(dataset, Recited(dataset), Recited(dataset, shifted))
    write_results(comparison, tmp_path / "out")
    found = json.loads((tmp_path / "out" / RESULTS_FILE).read_text())
    assert [one["name"] for one in found["checkpoints"]] == ["actor 0", "actor 1"]
    assert found["difference"]["l1/x"]["low"] == pytest.approx(0.005)
    report = (tmp_path / "out" / REPORT_FILE).read_text()
    assert "actor 0" in report and "<th>difference" in report
    lines = (tmp_path / "out" / PREDICTIONS_FILE).read_text().splitlines()
    assert len(lines) == 2 * EPISODES * FRAMES
    assert json.loads(lines[0])["recorded"] == json.loads(lines[0])["predicted"]


def test_report_needs_nothing_but_itself_and_shows_text_as_text(dataset, tmp_path):
    def shouting(prediction, index):
        return replace(prediction, text="<script>alert(1)</script>", actions=prediction.actions + 0.01 * (index % 7))

    write_results(evaluated(dataset, Recited(dataset, shouting)), tmp_path / "out")
    report = (tmp_path / "out" / REPORT_FILE).read_text()
    assert "<script" not in report and "&lt;script&gt;" in report
    assert "http" not in report and 'src="data:image/png;base64,' in report
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', report))


def test_worst_frames_are_shown_first(dataset, tmp_path):
    def wrong_at_one(prediction, index):
        return replace(prediction, actions=prediction.actions + (0.3 if index == 33 else 0.01 * (index % 3)))

    write_results(evaluated(dataset, Recited(dataset, wrong_at_one)), tmp_path / "out")
    report = (tmp_path / "out" / REPORT_FILE).read_text()
    cards = re.findall(r"<div class=card><p><b>episode (\d+), frame (\d+)", report)
    assert cards[0] == ("1", "13")


# Not in the first row, of which statistics are made.
LATE_NAN = np.where(np.arange(56).reshape(8, 7) == 30, np.nan, 0.0)


def spoiled(**changes):
    def edit(frame):
        return replace(frame, **changes) if (frame.episode, frame.frame) == (2, 5) else frame

    return edit


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"instruction": " "}, "episode 2, frame 5: the instruction is empty"),
        ({"images": [np.zeros((32, 48, 3), np.uint8)]}, "episode 2, frame 5: 1 pictures, expected 2"),
        (
            {"actions": LATE_NAN},
            "episode 2, frame 5: recorded actions are not finite",
        ),
        ({"depth_codes": np.zeros(3, np.uint8)}, "episode 2, frame 5: 3 depth codes, expected 100"),
    ],
)
def test_what_is_wrong_with_a_frame_is_said_before_the_first_prediction(tmp_path, dataset, changes, complaint):
    bad = make_dataset(tmp_path / "bad", spoiled(**changes))
    actor = Recited(dataset)
    with pytest.raises(DatasetError, match=complaint):
        evaluated(bad, actor)
    assert actor.asked == 0


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"cameras": ("front",)}, "cameras front, wrist, checkpoint actor 0 has front"),
        ({"frame": "end_effector"}, "frame base, checkpoint actor 0 has end_effector"),
        ({"step_period": 0.05}, "step_period 0.1, checkpoint actor 0 has 0.05"),
    ],
)
def test_checkpoint_of_another_robot_is_refused(dataset, changes, complaint):
    actor = Recited(dataset)
    actor.embodiment = replace(actor.embodiment, **changes)
    with pytest.raises(DatasetError, match=complaint):
        evaluated(dataset, actor)
    assert actor.asked == 0


def test_other_degrees_of_freedom_are_refused(dataset):
    actor = Recited(dataset)
    twice = {name: np.concatenate([getattr(actor.statistics, name)] * 2) for name in ("q01", "q99", "mask")}
    actor.statistics = replace(actor.statistics, **twice)
    with pytest.raises(DatasetError, match="actions of 7 dimensions, checkpoint actor 0 has 14"):
        evaluated(dataset, actor)


def test_checkpoint_without_conventions_is_refused(dataset):
    actor = Recited(dataset)
    actor.embodiment = None
    with pytest.raises(TrainingError, match="nothing says what actions of 'robot' mean"):
        evaluated(dataset, actor)


def test_steered_frames_are_left_out_and_counted(dataset, tmp_path):
    mixed = make_dataset(tmp_path / "mixed", lambda frame: replace(frame, steered=frame.episode == 3))
    comparison = evaluated(mixed, Recited(dataset))
    assert comparison.data["left_out"] == {"frames to be shown only with their trace": FRAMES}
    assert comparison.data["episodes"] == EPISODES - 1


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 5)), min_size=2, max_size=12), st.integers(0, 2**31))
def test_estimates_lie_between_the_episodes_they_are_made_of(pairs, seed):
    episodes = []
    for level, count in pairs:
        sums = Sums()
        sums.add("m", level * count, count)
        episodes.append(sums)
    found = estimates(episodes, seed, resamples=50)["m"]
    levels = [level for level, count in pairs if count]
    if not levels:
        assert found.value is None and found.low is None
    else:
        assert min(levels) - 1e-9 <= found.value <= max(levels) + 1e-9
        if found.low is not None:
            assert min(levels) - 1e-9 <= found.low <= found.high <= max(levels) + 1e-9
            assert not math.isnan(found.low)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().err


def test_command_names_what_is_not_there(dataset, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    assert run(capsys, "nano", "--data", dataset, "--out", tmp_path / "full")[1].endswith("or remove it\n")
    code, error = run(capsys, tmp_path, "--data", dataset, "--out", tmp_path / "out")
    assert code == 1 and str(tmp_path) in error
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    code, error = run(capsys, tmp_path / "other", "--data", dataset, "--out", tmp_path / "out")
    assert code == 1 and "llama" in error
    assert run(capsys, "a", "b", "c", "--data", dataset, "--out", tmp_path / "out")[1].count("3 checkpoints") == 1
    assert "the same checkpoint twice" in run(capsys, "a", "a", "--data", dataset, "--out", tmp_path / "out")[1]
    assert not (tmp_path / "out").exists()
