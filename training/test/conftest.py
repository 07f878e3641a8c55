"""A nano checkpoint that knows nothing yet, and samples for it."""

from pathlib import Path

import pytest
import torch
import yaml
from molmoact_policy.model import MolmoActForActionReasoning
from molmoact_policy.processor import Processor
from molmoact_training.batches import Sample
from molmoact_training.nano_checkpoint import create
from molmoact_training.presets import Preset
from molmoact_training.sequences import SequenceWriter, pictures_of

CONFIG = Path(__file__).parents[2] / "config/training/nano.yaml"


@pytest.fixture(scope="session")
def nano_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint."""
    directory = tmp_path_factory.mktemp("nano")
    create(yaml.safe_load(CONFIG.read_text())["model"], directory)
    return directory


@pytest.fixture(scope="session")
def nano(nano_directory: Path) -> tuple[MolmoActForActionReasoning, Processor, list[Sample]]:
    """Model, processor, and one reasoning and one steering sample."""
    from .test_sequences import STATISTICS, frame

    processor = Processor.from_pretrained(nano_directory)
    writer = SequenceWriter(Preset.from_file("nano"), processor)
    samples = [
        writer.sample(kind, pictures_of(look, kind), writer.messages(look, kind, STATISTICS))
        for kind, look in (("reasoning", frame()), ("steering", frame()))
    ]
    return MolmoActForActionReasoning.from_pretrained(nano_directory, dtype=torch.float32), processor, samples
