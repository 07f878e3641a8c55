from pathlib import Path

import numpy as np
import pytest
import yaml
from franka_sim.operator import Step
from franka_sim.scene import SceneConfig
from molmoact_policy.images import ImageProcessor
from molmoact_training.demonstrations import DemonstrationRecorder, Sample, chunk_of, inverse_depth_picture, write_shard
from molmoact_training.nano_checkpoint import build_image_processor
from molmoact_training.samples import SampleShards

ROOT = Path(__file__).parents[2]
CONFIG = yaml.safe_load((ROOT / "config/training/nano.yaml").read_text())


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    processor: ImageProcessor = build_image_processor(CONFIG["model"])
    scene = SceneConfig.load(ROOT / "config/scenes/tabletop.yaml")
    recorder = DemonstrationRecorder(scene, CONFIG["demonstrations"] | {"keep_fraction": 0.3}, processor, (320, 240))
    return list(recorder.episode("pick:red", CONFIG["demonstrations"]["first_seed"]))


def test_samples_hold_what_the_policy_will_see_and_should_write(samples):
    assert len(samples) > 3
    for sample in samples:
        assert sample.pixels.shape == (2, 64, 1200) and sample.pixels.dtype == np.uint8
        assert sample.actions.shape == (8, 7) and np.all(np.isfinite(sample.actions))
        assert np.linalg.norm(sample.actions[:, :3], axis=1).max() <= 0.0251
        assert sample.trace.shape == (5, 2)
        assert sample.instruction == "pick up the red cube"


def test_the_trace_passes_the_red_cube(samples):
    """The operator goes down to the cube before it lifts it, so some trace point lies on red pixels of a picture."""
    front = samples[0].pixels[0].reshape(8, 8, 20, 20, 3).transpose(0, 2, 1, 3, 4).reshape(160, 160, 3).astype(int)
    red = (front[..., 0] > 120) & (front[..., 1] < 80) & (front[..., 2] < 80)
    rows, columns = np.nonzero(red)
    cube = np.array([columns.mean(), rows.mean()]) * 255 / 159
    assert np.linalg.norm(samples[0].trace - cube, axis=1).min() < 20


def test_a_finished_plan_is_filled_up_with_standing_still():
    step = Step(np.array([0.01, 0.0, 0.0]), np.zeros(3), 0)
    chunk = chunk_of([step], rows=3)
    assert chunk.tolist() == [pytest.approx([0.01, 0, 0, 0, 0, 0, 0]), [0.0] * 7, [0.0] * 7]


def test_near_is_bright_in_the_depth_picture():
    depth = np.full((48, 64), 1.0, np.float32)
    depth[:, :32] = 0.4
    picture = inverse_depth_picture(depth, 20)
    assert picture[:, 0].min() == 255 and picture[:, -1].max() == 0


def test_shards_give_back_what_was_written(samples, tmp_path):
    write_shard(samples[:2], tmp_path / "shard_00000")
    write_shard(samples[2:3], tmp_path / "shard_00001")
    shards = SampleShards(tmp_path)
    assert len(shards) == 3
    assert np.array_equal(shards.get("pixels", 2), samples[2].pixels)
    assert str(shards.get("instruction", 1)) == samples[1].instruction


def test_missing_shards_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no shards"):
        SampleShards(tmp_path / "nowhere")
