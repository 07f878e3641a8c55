"""Presets: everything a training run is set by, read from YAML and checked before anything starts.

A file may say `based_on: OTHER` and then only what differs: mappings are merged, everything else is replaced. Units and
sources of the values stand in config/training/*.yaml.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from pydantic import ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from molmoact_training.errors import PresetError

CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False)

Count = Annotated[int, Strict(), Field(ge=1)]
Size = Annotated[int, Strict(), Field(ge=0)]
Switch = Annotated[bool, Strict()]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LearningRates:
    """Peaks of the three parameter groups; 0 keeps a group as it is (paper, table 4)."""

    vision: Weight
    connector: Weight  # pooling, projector, padding embedding, embeddings of the image tokens
    language: Weight


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Optimizer:
    """AdamW: linear warm-up from 0, then a cosine down to `final_share` of the peak at the last step."""

    learning_rates: LearningRates
    betas: tuple[Share, Share]
    epsilon: Positive
    weight_decay: Weight
    gradient_clip: Positive  # norm of each group by itself
    warmup_steps: Size
    final_share: Share


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LoRA:
    """Adapters on every linear layer. Each is scaled by alpha / rank."""

    rank: Count
    alpha: Positive
    dropout: Share


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TokenWeights:
    """What a token of each kind counts in the loss; text is the template, brackets and EOS, and every answer in words.

    first_row: a factor on the first row of actions, which is what moves the arm next.
    """

    text: Weight = 1.0
    depth: Weight = 1.0
    trace: Weight = 1.0
    action: Weight = 1.0
    first_row: Weight = 1.0


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SoftLabels:
    """Standard deviation, in bins, of the normal distribution around the right bin that is taught in its place."""

    action: Positive
    trace: Positive


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Loss:
    z_loss: Weight
    weights: TokenWeights = dataclasses.field(default_factory=TokenWeights)
    soft_labels: SoftLabels | None = None  # only where every bin is one token


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Hiding:
    """whole_part: how often all of it is hidden; otherwise a share between 0 and largest_share."""

    whole_part: Share = 0.0
    largest_share: Share = 0.0


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class HistoryDropout:
    """Hides reply tokens from what comes after them, for each of depth, trace and actions by itself."""

    depth: Hiding = Hiding()
    trace: Hiding = Hiding()
    action: Hiding = Hiding()


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ColourJitter:
    """Largest change to either side: factors 1 ± brightness, contrast and saturation; hue in turns of the circle."""

    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Augmentation:
    """Random crop, then colour, of each camera's picture by itself (paper, tables 7 and 10 to 14).

    crop_area: share of the picture's area that is kept, None: no crop. crop_ratio "picture" keeps the picture's own
    ratio of sides, as the paper prints it; "square" is what the released code does.
    """

    crop_area: Annotated[float, Field(gt=0, le=1)] | None = None
    crop_ratio: Literal["picture", "square"] = "picture"
    colour_jitter: ColourJitter | None = None


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Kinds:
    """Shares of the kinds of sample made of a frame: see molmoact_training.sequences."""

    reasoning: Weight = 0.0
    steering: Weight = 0.0
    depth: Weight = 0.0
    trace: Weight = 0.0
    pointing: Weight = 0.0
    following: Weight = 0.0


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Group:
    """Datasets that are drawn from at one rate; inside it, each in proportion to the square root of its size.

    frames: names of annotated datasets, `kinds` is what is made of them. questions: names of question-answer files.
    """

    rate: Positive
    frames: tuple[str, ...] = ()
    kinds: Kinds | None = None
    questions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.frames) == bool(self.questions):
            raise ValueError("expected either frames or questions")
        if bool(self.frames) != (self.kinds is not None):
            raise ValueError("kinds go with frames")
        if self.kinds is not None and not any(vars(self.kinds).values()):
            raise ValueError("kinds: all are 0")


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Validation:
    """Held-out episodes: figures every `every` steps over `samples` samples, and `decoded` whole replies."""

    episodes: Annotated[float, Field(ge=0, lt=1)]  # share of each dataset's episodes that is never trained on
    every: Count
    samples: Size
    decoded: Size = 0


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Checkpoints:
    every: Count
    keep: Count  # the newest
    keep_every: Count | None = None  # steps whose checkpoints stay for good


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Preset:
    """One training run.

    batch: samples of a step over all processes, micro_batch: those a process passes through the model at once.
    sequence_length: tokens of a sample, at most. lora None: every weight is trained. train_embeddings: which of the
    token embeddings and the head are trained in full beside adapters; "auto": both when the depth tokens are new to the
    checkpoint. ema: decay of the averaged weights, None: no average. data: where the datasets of the mixture are.
    """

    name: str
    seed: Size
    steps: Count
    batch: Count
    micro_batch: Count
    sequence_length: Count
    precision: Literal["bf16", "fp32"]
    attention: Literal["sdpa", "eager"]
    gradient_checkpointing: Switch
    wording: Literal["released", "finetune"]
    action_encoding: Literal["text", "token"]
    optimizer: Optimizer
    lora: LoRA | None
    train_embeddings: Literal["auto", "all", "head", "none"]
    ema: Annotated[float, Field(gt=0, lt=1)] | None
    loss: Loss
    residual_dropout: Annotated[float, Field(ge=0, lt=1)]
    history_dropout: HistoryDropout | None
    augmentation: Augmentation | None
    mixture: Annotated[tuple[Group, ...], Field(min_length=1)]
    validation: Validation
    checkpoints: Checkpoints
    data: dict[str, Path] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} does not divide batch {self.batch}")
        unknown = sorted(set(self.data) - set(self.dataset_names))
        if unknown:
            raise ValueError(
                f"data: {', '.join(unknown)} not in the mixture, which has {', '.join(self.dataset_names)}"
            )

    @classmethod
    def from_file(cls, name: str | Path, changes: Mapping[str, Any] | None = None) -> Preset:
        """The `training` section of a YAML file, or of config/training/NAME.yaml.

        changes: values to replace by dotted name, {"optimizer.warmup_steps": 50}. Raises PresetError naming the file
        and the field at fault.
        """
        path = find(name)
        content = _merged(path, seen=())
        for dotted, value in (changes or {}).items():
            _replace(content, dotted, value)
        try:
            return TypeAdapter(cls).validate_python({"name": path.stem} | content)
        except ValidationError as error:
            raise PresetError(f"{path}: {_described(error)}") from error

    @property
    def dataset_names(self) -> tuple[str, ...]:
        """Every dataset of the mixture, in order."""
        return tuple(dict.fromkeys(name for group in self.mixture for name in (*group.frames, *group.questions)))

    def with_data(self, given: Sequence[str]) -> Preset:
        """The preset with the places of its datasets: NAME=PATH for each, or one bare PATH when there is only one.

        Raises PresetError for a name that is not in the mixture and for a dataset without a place.
        """
        data = dict(self.data)
        for text in given:
            name, equals, path = text.partition("=")
            if not equals and len(self.dataset_names) == 1:
                name, path = self.dataset_names[0], text
            if name not in self.dataset_names or not path:
                expected = ", ".join(f"{name}=PATH" for name in self.dataset_names)
                raise PresetError(f"preset {self.name}: data {text!r}, expected {expected}")
            data[name] = Path(path)
        missing = [name for name in self.dataset_names if name not in data]
        if missing:
            raise PresetError(f"preset {self.name}: no place given for the data {', '.join(missing)}")
        return dataclasses.replace(self, data=data)

    def as_dict(self) -> dict[str, Any]:
        """Every setting as JSON can hold it, to be written beside a run and compared when it goes on."""
        return TypeAdapter(type(self)).dump_python(self, mode="json")


def directory() -> Path:
    """Where the presets that come with the workspace are. Raises PresetError where it is not built."""
    try:
        return Path(get_package_share_directory("molmoact_bringup")) / "config" / "training"
    except PackageNotFoundError as error:
        raise PresetError("presets by name are those of a built workspace, which this is not: give a file") from error


def available() -> list[str]:
    """Names of the presets that come with the workspace."""
    return sorted(path.stem for path in directory().glob("*.yaml"))


def find(name: str | Path) -> Path:
    """The file of a preset given by path or by name. Raises PresetError listing the names there are."""
    path = Path(name)
    if path.is_file():
        return path
    named = directory() / f"{name}.yaml"
    if named.is_file():
        return named
    raise PresetError(f"preset {name}: no such file, and none of {', '.join(available())}")


def _merged(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise PresetError(f"{path}: based on itself through {', '.join(str(other) for other in seen)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PresetError(f"{path}: not readable as YAML: {error}") from error
    section = content.get("training") if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise PresetError(f"{path}: expected a mapping with the section 'training'")
    if "based_on" not in content:
        return section
    return _over(_merged(_base(path, content["based_on"]), (*seen, path)), section)


def _base(path: Path, name: Any) -> Path:
    """The file that a preset is based on: beside it, or one that comes with the workspace."""
    beside = path.parent / f"{name}.yaml"
    base = beside if beside.is_file() else directory() / f"{name}.yaml"
    if not base.is_file():
        raise PresetError(f"{path}: based_on: {name}: no {beside}, and none of {', '.join(available())}")
    return base


def _over(base: Any, changes: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    return base | {name: _over(base.get(name), value) for name, value in changes.items()}


def _replace(content: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        inner = content.get(parent)
        if not isinstance(inner, dict):
            raise PresetError(f"{dotted}: {parent} is {inner!r}, which has no fields to change")
        content = inner
    content[last] = value


def _described(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "training"
        given = problem["input"]
        shown = "" if isinstance(given, (dict, list)) or problem["type"] == "missing" else f" (is {given!r})"
        problems.append(f"{where}: {problem['msg']}{shown}")
    return "; ".join(problems)
