"""The presets that come with the workspace hold the paper's values, and a wrong field is named."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from molmoact_training.errors import PresetError
from molmoact_training.presets import Preset, available

# Steps and batch: the paper's tables 4, 7 and 10 to 14.
PAPER = {
    "pretrain": (100_000, 512),
    "midtrain": (50_000, 256),
    "posttrain-libero-spatial": (50_000, 128),
    "posttrain-libero-object": (50_000, 128),
    "posttrain-libero-goal": (40_000, 128),
    "posttrain-libero-long": (80_000, 128),
    "posttrain-single-arm": (9_000, 64),
    "posttrain-bimanual": (9_000, 64),
    "posttrain-ood": (44_000, 64),
    "posttrain-molmoact-dataset": (15_000, 64),
    "posttrain-steerability": (11_000, 64),
}
RATES = {"pretrain": (1e-5, 1e-5, 2e-5), "midtrain": (5e-6, 5e-6, 1e-5)}  # vision, connector, language


@pytest.mark.parametrize("name", available())
def test_every_preset_is_readable(name: str) -> None:
    assert Preset.from_file(name).name == name


def test_there_is_a_preset_for_every_training_of_the_paper_for_ones_own_and_for_nano() -> None:
    assert set(available()) >= {*PAPER, "posttrain", "nano"}


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_of_the_paper_holds_its_values(name: str) -> None:
    preset = Preset.from_file(name)
    optimizer, rates = preset.optimizer, preset.optimizer.learning_rates
    assert (preset.steps, preset.batch) == PAPER[name]
    assert (rates.vision, rates.connector, rates.language) == RATES.get(name, (5e-4, 5e-4, 5e-4))
    assert (optimizer.betas, optimizer.epsilon, optimizer.weight_decay) == ((0.9, 0.95), 1e-6, 0)
    assert (optimizer.gradient_clip, optimizer.warmup_steps, optimizer.final_share) == (1.0, 200, 0.1)
    assert (preset.precision, preset.loss.z_loss) == ("bf16", 1e-4)
    assert preset.sequence_length == (2560 if name == "posttrain-bimanual" else 2304)
    if name in RATES:
        assert preset.lora is None and preset.augmentation is None and preset.train_embeddings == "all"
    else:
        assert preset.lora is not None and preset.augmentation is not None
        assert (preset.lora.rank, preset.lora.alpha, preset.lora.dropout) == (32, 16, 0)
        jitter = preset.augmentation.colour_jitter
        assert (preset.augmentation.crop_area, preset.augmentation.crop_ratio) == (0.9, "picture")
        assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.2, 0.2, 0.2, 0.05)


def test_the_pretraining_mixture_has_the_papers_rates() -> None:
    mixture = Preset.from_file("pretrain").mixture
    assert sum(group.rate for group in mixture) == pytest.approx(1)
    assert sum(group.rate for group in mixture if group.questions) == pytest.approx(0.05)
    assert [group.rate for group in mixture if group.kinds and group.kinds.reasoning] == [0.40, 0.25, 0.15]
    assert [group.rate for group in mixture if group.kinds and group.kinds.depth] == [0.15]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: Input should be greater than or equal to 1 .is 0"),
        ({"steps": True}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"stepps": 3}, "stepps: Unexpected keyword argument"),
        ({"optimizer.learning_rates.vision": -1}, "optimizer.learning_rates.vision"),
        ({"optimizer.betas": [0.9]}, "optimizer.betas"),
        ({"optimizer.epsilon": float("nan")}, "optimizer.epsilon"),
        ({"precision": "fp16"}, "precision: Input should be 'bf16' or 'fp32' .is 'fp16'"),
        ({"lora.rank": 8}, "lora.rank: lora is None"),
        ({"loss.weights.depths": 1}, "loss.weights.depths"),
        ({"batch": 33}, "micro_batch 16 does not divide batch 33"),
        ({"mixture": []}, "mixture"),
        ({"mixture": [{"rate": 1, "frames": ["a"]}]}, "mixture.0: .*kinds go with frames"),
        ({"mixture": [{"rate": 1, "frames": ["a"], "kinds": {}}]}, "mixture.0: .*all are 0"),
        ({"mixture": [{"rate": 1}]}, "mixture.0: .*either frames or questions"),
        ({"mixture": [{"rate": 0, "questions": ["a"]}]}, "mixture.0.rate"),
        ({"augmentation.crop_area": 1.2}, "augmentation.crop_area"),
        ({"data": {"elsewhere": "x"}}, "data: elsewhere not in the mixture, which has"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(changes: dict, message: str) -> None:
    with pytest.raises(PresetError, match=message):
        Preset.from_file("nano", changes)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "training: {seed: 1}")
    with pytest.raises(PresetError, match=r"mine.yaml: steps: Field required; batch: Field required"):
        Preset.from_file(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: [", "not readable as YAML"),
        ("steps: 3", "section 'training'"),
        ("training: 3", "section 'training'"),
        ("based_on: absent\ntraining: {}", "based_on: absent: no .*absent.yaml"),
        ("based_on: mine\ntraining: {}", "based on itself"),
    ],
)
def test_a_file_that_is_no_preset_is_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PresetError, match=message):
        Preset.from_file(write(tmp_path / "mine.yaml", text))


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(PresetError, match="preset nanoo: .*nano"):
        Preset.from_file("nanoo")


def test_a_preset_of_ones_own_can_be_based_on_one_of_the_workspace(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("based_on: nano\ntraining: {steps: 7}")
    mine, nano = Preset.from_file(tmp_path / "mine.yaml"), Preset.from_file("nano")
    assert (mine.name, mine.steps) == ("mine", 7)
    assert mine.optimizer == nano.optimizer


def test_a_preset_based_on_another_states_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"training": settings()}))
    changed = "based_on: base\ntraining: {steps: 7, loss: {z_loss: 0.5}, mixture: [{rate: 2, questions: [q]}]}"
    preset = Preset.from_file(write(tmp_path / "mine.yaml", changed))
    base = Preset.from_file(tmp_path / "base.yaml")
    assert (preset.steps, preset.loss.z_loss, preset.dataset_names) == (7, 0.5, ("q",))
    assert preset.loss.weights == base.loss.weights and preset.optimizer == base.optimizer


def settings() -> dict:
    """The nano preset as a mapping."""
    return {name: value for name, value in Preset.from_file("nano").as_dict().items() if name != "name"}


def test_a_preset_written_as_a_mapping_reads_back_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "nano.yaml", yaml.safe_dump({"training": settings()}))
    assert Preset.from_file(path) == Preset.from_file("nano")


def test_data_is_given_by_name_or_bare_when_there_is_one() -> None:
    assert Preset.from_file("posttrain").with_data(["some/where"]).data == {"demonstrations": Path("some/where")}
    named = Preset.from_file("posttrain").with_data(["demonstrations=a=b"])
    assert named.data == {"demonstrations": Path("a=b")}
    with pytest.raises(PresetError, match="no place given for the data bridge, bc_z"):
        Preset.from_file("pretrain").with_data(["rt_1=x", *(f"web_{n}=x" for n in ("demo", "vqa", "pointing", "lvis"))])
    with pytest.raises(PresetError, match="data 'x', expected rt_1=PATH"):
        Preset.from_file("pretrain").with_data(["x"])


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_no_value_of_any_field_is_an_error_of_another_kind(value) -> None:
    for name in ("steps", "optimizer", "loss.weights", "mixture", "lora", "validation.every", "ema"):
        try:
            Preset.from_file("nano", {name: value})
        except PresetError as error:
            assert name.split(".")[0] in str(error)
