"""Which samples are drawn, and that a sample is the same whoever draws it and whenever."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from molmoact_policy.processor import Processor
from molmoact_training.annotated_dataset import ALLOW_CONSTANT, Frame, Point, finish_dataset, write_shard
from molmoact_training.batches import ACTION, DEPTH, TEXT, TRACE, Batch
from molmoact_training.errors import DatasetError, PresetError
from molmoact_training.mixture import Mixture
from molmoact_training.nano_checkpoint import EMBODIMENT
from molmoact_training.presets import Augmentation, ColourJitter, Group, Kinds, Preset, Validation
from PIL import Image

from .test_sequences import frame

PRESET = Preset.from_file("nano")
DEMONSTRATIONS = Group(rate=1, frames=("demonstrations",), kinds=Kinds(reasoning=0.8, steering=0.2))


def write_dataset(directory: Path, frames: list[Frame], key: str = "nano", **settings) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    write_shard(directory, 0, frames)
    embodiment = directory / "conventions.yaml"
    embodiment.write_text(yaml.safe_dump({key: EMBODIMENT["nano"]}))
    finish_dataset(directory, key, embodiment, {"arms": frames[0].actions.shape[1] // 7, **settings})
    return directory


def frames(episodes: int, length: int = 3, **changes) -> list[Frame]:
    return [
        dataclasses.replace(frame(**changes), episode=episode, frame=index)
        for episode in range(episodes)
        for index in range(length)
    ]


@pytest.fixture(scope="module")
def processor(nano_directory: Path) -> Processor:
    return Processor.from_pretrained(nano_directory)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "demonstrations", frames(12))


def mixture(processor: Processor, data: dict[str, Path], *groups: Group, **changes) -> Mixture:
    preset = dataclasses.replace(PRESET, mixture=groups or (DEMONSTRATIONS,), data=data, **changes)
    return Mixture(preset, processor)


def drawn(source: Mixture, count: int) -> list[str]:
    return [source.sample(0, index).name for index in range(count)]


def assert_equal(first: Batch, second: Batch) -> None:
    assert first.names == second.names
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name


def test_a_batch_is_the_same_in_whatever_parts_and_by_whomever_it_is_drawn(processor, dataset) -> None:
    steering = Group(rate=1, frames=("demonstrations",), kinds=Kinds(steering=1))
    jitter = Augmentation(crop_area=0.9, colour_jitter=ColourJitter(brightness=0.2, hue=0.05))
    one, other = (mixture(processor, {"demonstrations": dataset}, steering, augmentation=jitter) for _ in range(2))
    whole = one.batch(7, 0, 6)
    other.batch(3, 0, 4)  # what was drawn before does not matter
    assert_equal(whole.rows(0, 2), other.batch(7, 0, 2))
    assert_equal(whole.rows(2, 6), other.batch(7, 2, 4))
    assert one.batch(8, 0, 6).names != whole.names


def test_the_seed_decides(processor, dataset) -> None:
    one = mixture(processor, {"demonstrations": dataset})
    other = mixture(processor, {"demonstrations": dataset}, seed=1)
    assert drawn(one, 10) != drawn(other, 10)


def test_kinds_come_at_their_shares_and_a_steered_frame_only_steers(processor, tmp_path) -> None:
    data = write_dataset(tmp_path / "d", frames(4) + frames(2, steered=True))
    group = Group(rate=1, frames=("d",), kinds=Kinds(reasoning=3, steering=1))
    kinds = Counter()
    source = mixture(processor, {"d": data}, group, validation=Validation(episodes=0, every=1, samples=0))
    for index in range(300):
        sample = source.sample(0, index)
        kinds[sample.name.rsplit("(")[-1]] += 1
    assert abs(kinds["reasoning)"] / 300 - 0.5) < 0.1  # 2 of 3 frames are not steered, 3 of 4 of those reason


def test_a_frame_of_another_way_can_follow_its_trace_without_having_to_say_it(processor, tmp_path) -> None:
    data = write_dataset(tmp_path / "d", frames(4) + frames(2, steered=True))
    sample = mixture(processor, {"d": data}, Group(rate=1, frames=("d",), kinds=Kinds(following=1))).sample(0, 0)
    assert sample.name.endswith("(following)")
    assert set(sample.kinds[sample.weights > 0]) == {TEXT, DEPTH, ACTION}
    assert TRACE in sample.kinds and len(sample.images)


def test_pointing_asks_for_every_object_of_the_first_picture(processor, tmp_path) -> None:
    points = [Point("red cube", 0, 3, 4), Point("blue plate", 0, 200, 100), Point("red cube", 1, 7, 8)]
    data = write_dataset(tmp_path / "d", frames(4, points=points))
    sample = mixture(processor, {"d": data}, Group(rate=1, frames=("d",), kinds=Kinds(pointing=1))).sample(0, 0)
    answered = processor.tokenizer.decode(sample.targets[sample.weights > 0])
    assert "[[3, 4]]" in answered and "[[200, 100]]" in answered and "[[7, 8]]" not in answered
    asked = processor.tokenizer.decode(sample.input_ids)
    assert "Point to the red cube." in asked and "Point to the blue plate." in asked


def test_a_trace_of_one_point_is_not_shown(processor, tmp_path) -> None:
    point = [np.array([[3, 4]], np.uint8)]
    data = write_dataset(tmp_path / "d", frames(4, traces=point))
    group = Group(rate=1, frames=("d",), kinds=Kinds(reasoning=0.1, steering=1))
    assert all("reasoning" in name for name in drawn(mixture(processor, {"d": data}, group), 20))


def test_groups_come_at_their_rates_and_datasets_by_the_root_of_their_size(processor, tmp_path) -> None:
    data = {
        "small": write_dataset(tmp_path / "small", frames(4)),
        "large": write_dataset(tmp_path / "large", frames(36), key="large"),
    }
    groups = (
        Group(rate=3, frames=("small", "large"), kinds=Kinds(reasoning=1)),
        Group(rate=1, frames=("small",), kinds=Kinds(depth=1)),
    )
    no_validation = Validation(episodes=0, every=1, samples=0)
    source = mixture(processor, data, *groups, validation=no_validation)
    np.testing.assert_allclose(source.rates, [0.75 / 4, 0.75 * 3 / 4, 0.25])
    counts = Counter((name.split(":")[0], "depth" in name) for name in drawn(source, 400))
    for key, rate in {("small", False): 0.1875, ("large", False): 0.5625, ("small", True): 0.25}.items():
        assert abs(counts[key] / 400 - rate) < 0.09, key


def test_held_out_episodes_are_never_trained_on_and_stay_held_out_when_more_come(processor, tmp_path) -> None:
    validation = Validation(episodes=0.3, every=1, samples=40)
    held_out = []
    for episodes in (20, 30):
        data = write_dataset(tmp_path / str(episodes), frames(episodes))
        source = mixture(processor, {"demonstrations": data}, validation=validation)
        trained = {name.split(",")[0] for name in drawn(source, 300)}
        validated = {name.split(",")[0] for batch in source.validation() for name in batch.names}
        assert validated and trained.isdisjoint(validated)
        held_out.append({source.sources[0].dataset[int(index)].episode for index in source.sources[0].validation})
    assert held_out[0] == {episode for episode in held_out[1] if episode < 20}


def test_validation_is_the_same_every_time_and_not_augmented(processor, dataset) -> None:
    augmentation = Augmentation(colour_jitter=ColourJitter(brightness=0.9))
    one = mixture(processor, {"demonstrations": dataset}, augmentation=augmentation)
    other = mixture(processor, {"demonstrations": dataset}, augmentation=None, history_dropout=None)
    batches = list(one.validation())
    assert sum(len(batch) for batch in batches) == PRESET.validation.samples
    for first, second in zip(batches, other.validation(), strict=True):
        assert_equal(first, second)


def test_each_picture_is_augmented_by_itself_after_the_trace_is_drawn(processor, tmp_path) -> None:
    grey = [np.full((40, 40, 3), 100, np.uint8)] * 2
    data = write_dataset(
        tmp_path / "d", frames(6, images=2) and [dataclasses.replace(f, images=grey) for f in frames(6)]
    )
    group = Group(rate=1, frames=("d",), kinds=Kinds(steering=1))
    bright = Augmentation(colour_jitter=ColourJitter(brightness=0.5))
    sample = mixture(processor, {"d": data}, group, augmentation=bright).sample(0, 0)
    first, second = (np.median(picture) for picture in sample.images)
    assert first != second
    assert first != pytest.approx(100 / 127.5 - 1, abs=0.01)
    plain = mixture(processor, {"d": data}, group, augmentation=None).sample(0, 0)
    lit = (np.median(sample.images[0]) + 1) / (np.median(plain.images[0]) + 1)
    line, plain_line = sample.images[0].max(), plain.images[0].max()
    assert plain_line > np.median(plain.images[0]) + 0.5  # the drawn trace
    assert line == pytest.approx(min(1.0, (plain_line + 1) * lit - 1), abs=0.05)


def test_two_arms_and_three_cameras(processor, tmp_path) -> None:
    data = write_dataset(tmp_path / "d", frames(4, arms=2, images=3))
    kinds = Kinds(reasoning=1, steering=1, depth=1, trace=1)
    source = mixture(processor, {"d": data}, Group(rate=1, frames=("d",), kinds=kinds), sequence_length=1500)
    seen = {name.rsplit("(")[-1] for name in drawn(source, 40)}
    assert seen == {"reasoning)", "steering)", "depth)", "trace)"}


def test_questions_about_pictures_are_mixed_in(processor, dataset, tmp_path) -> None:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    lines = [
        {"images": ["a.png"], "question": "What?", "answer": "dark"},
        {"images": [], "question": "1", "answer": "2"},
    ]
    (tmp_path / "web.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    groups = (
        Group(rate=0.5, frames=("demonstrations",), kinds=Kinds(reasoning=1)),
        Group(rate=0.5, questions=("web",)),
    )
    source = mixture(processor, {"demonstrations": dataset, "web": tmp_path / "web.jsonl"}, *groups)
    samples = [source.sample(0, index) for index in range(20)]
    answers = {processor.decode(s.targets[s.weights > 0].tolist()) for s in samples if s.name.startswith("web")}
    assert answers == {" dark", " 2"}
    assert len(source.batch(0, 0, 20)) == 20


def test_questions_about_one_picture_share_it_in_random_order_as_far_as_they_fit(processor, tmp_path) -> None:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    lines = [{"images": ["a.png"], "question": "Which?", "answer": str(number)} for number in range(100, 105)]
    (tmp_path / "web.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    group = Group(rate=1, questions=("web",))
    source = mixture(processor, {"web": tmp_path / "web.jsonl"}, group)
    samples = [source.sample(0, index) for index in range(10)]
    assert {s.segment_ids[s.segment_ids < 1000].max() for s in samples} == {4}
    assert len({tuple(s.targets.tolist()) for s in samples}) > 5
    length = len(samples[0].input_ids)
    assert source.batch(0, 0, 2).segment_ids is not None
    short = mixture(processor, {"web": tmp_path / "web.jsonl"}, group, sequence_length=length - 1)
    assert short.sample(0, 0).segment_ids[-1] == 3
    with pytest.raises(DatasetError, match="web: pair"):
        mixture(processor, {"web": tmp_path / "web.jsonl"}, group, sequence_length=20).sample(0, 0)


def test_statistics_of_all_datasets_go_into_the_checkpoint(processor, dataset, tmp_path) -> None:
    other = write_dataset(tmp_path / "other", frames(4), key="other")
    group = Group(rate=1, frames=("a", "b"), kinds=Kinds(reasoning=1))
    source = mixture(processor, {"a": dataset, "b": other}, group)
    assert list(source.norm_stats) == ["nano", "other"]


@pytest.mark.parametrize(
    ("changes", "kinds", "message"),
    [
        ({"depth_codes": None}, Kinds(reasoning=1), "no frame is annotated for reasoning"),
        ({"traces": None}, Kinds(reasoning=1, steering=1), "no frame is annotated for reasoning, steering"),
        ({"steered": True}, Kinds(reasoning=1), "no frame is annotated for reasoning"),
        ({"points": None}, Kinds(pointing=1), "no frame is annotated for pointing"),
        ({"points": [Point("red cube", 1, 3, 4)]}, Kinds(pointing=1), "no frame is annotated for pointing"),
        ({"instruction": " "}, Kinds(reasoning=1), "empty instruction"),
        ({"actions": np.full((8, 7), 0.5, np.float32)}, Kinds(reasoning=1), r"dimensions \[0, 1, 2, 3, 4, 5\] never"),
        ({"actions": np.full((8, 7), np.nan, np.float32)}, Kinds(reasoning=1), "not finite"),
    ],
)
def test_a_dataset_that_cannot_be_trained_on_is_named_with_the_reason(
    processor, tmp_path, changes, kinds, message
) -> None:
    others = frames(3, depth_codes=None) if "steered" in changes else []  # the statistics are of unsteered frames
    data = write_dataset(tmp_path / "bad", frames(3, **changes) + others)
    with pytest.raises(DatasetError, match=rf"d: .*bad: .*{message}"):
        mixture(processor, {"d": data}, Group(rate=1, frames=("d",), kinds=kinds))


def test_dimensions_that_are_meant_never_to_change_can_be_trained_on(processor, tmp_path) -> None:
    actions = frame().actions.copy()
    actions[:, 3:5] = 0.25
    data = write_dataset(tmp_path / "upright", frames(3, actions=actions), **{ALLOW_CONSTANT: True})
    mixture(processor, {"demonstrations": data}).sample(0, 0)


def test_a_frame_that_is_too_long_is_named_before_the_first_step(processor, tmp_path) -> None:
    look = frames(6)
    look[7] = dataclasses.replace(look[7], instruction="put it there " * 60)
    data = write_dataset(tmp_path / "d", look)
    group = Group(rate=1, frames=("d",), kinds=Kinds(reasoning=1))
    no_validation = Validation(episodes=0, every=1, samples=0)
    with pytest.raises(DatasetError, match=r"d: episode 2, frame 1 \(reasoning\): \d+ tokens .* is 512"):
        mixture(processor, {"d": data}, group, sequence_length=512, validation=no_validation)


def test_data_without_a_place_is_named(processor) -> None:
    with pytest.raises(PresetError, match="demonstrations"):
        mixture(processor, {})


def test_a_missing_directory_is_named(processor, tmp_path) -> None:
    with pytest.raises(DatasetError, match="nothing"):
        mixture(processor, {"demonstrations": tmp_path / "nothing"})


def test_two_datasets_of_one_key_that_differ_are_refused(processor, dataset, tmp_path) -> None:
    other = write_dataset(tmp_path / "other", frames(4, length=5))
    group = Group(rate=1, frames=("a", "b"), kinds=Kinds(reasoning=1))
    with pytest.raises(DatasetError, match="b: .*statistics of 'nano'"):
        mixture(processor, {"a": dataset, "b": other}, group)
