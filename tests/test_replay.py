"""A recorded bag through a policy node over DDS, and what is made of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from franka_sim.cameras import RgbdCamera
from franka_sim.scene import SceneConfig
from franka_sim.simulation import Simulation
from molmoact_training.evaluation.command import main as evaluate
from molmoact_training.evaluation.comparison import PREDICTIONS_FILE, REPORT_FILE, RESULTS_FILE
from processes import Processes
from systems import START_TIMEOUT_S, nano_checkpoint

ROOT = Path(__file__).parents[1]
SECONDS = 2.0
EVERY = 8


@pytest.fixture(scope="module")
def episodes() -> ModuleType:
    """The recordings that teleop_recorder is tested with."""
    spec = importlib.util.spec_from_file_location("episodes", ROOT / "src/teleop_recorder/test/episodes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scenes() -> list[dict[str, np.ndarray]]:
    """Pictures the checkpoint knows what to do with: {camera: uint8 [240, 320, 3]} of three scenes."""
    simulation = Simulation(SceneConfig.load(ROOT / "config/scenes/tabletop.yaml"))
    found = []
    for seed in range(3):
        simulation.reset("pick:red", seed)
        found.append({})
        for name in ("front", "wrist"):
            with RgbdCamera(simulation.model, name, 320, 240) as camera:
                found[-1][name] = camera.colour(simulation.copy_data())
    return found


def showing(scenes: list[dict[str, np.ndarray]]):
    """The scenes one after another in the place of a recording's pictures."""

    def edit(samples):
        begin = samples[0].log_ns
        for sample in samples:
            if sample.topic.startswith("/camera"):
                scene = scenes[int((sample.log_ns - begin) / 1e9 / SECONDS * len(scenes)) % len(scenes)]
                sample.message.data = scene[sample.topic.split("/")[2]].ravel()
        return samples

    return edit


def up(processes: Processes, *arguments: str):
    program = [sys.executable, "-m", "molmoact_bringup.local", "replay", *arguments]
    return processes.start(program, "replay", {"OMP_NUM_THREADS": "1"})


def predictions(out: Path) -> dict[tuple[str, int], dict]:
    lines = [json.loads(line) for line in (out / PREDICTIONS_FILE).read_text().splitlines()]
    return {(line["episode"], line["frame"]): line for line in lines}


def test_replay_through_the_graph_gives_the_answers_of_the_checkpoint_itself(processes, tmp_path, episodes, scenes):
    checkpoint = nano_checkpoint()
    # The second one is stamped as the first: for the policy, time goes on all the same.
    for name in ("a", "b"):
        episodes.make_episode(tmp_path / "bags" / name, seconds=SECONDS, size=(320, 240), edit=showing(scenes))
    system = up(processes, f"bag:={tmp_path / 'bags'}", f"out:={tmp_path / 'live'}", f"every:={EVERY}")
    assert system.wait(START_TIMEOUT_S) == 0, system.output
    assert "stopped (replay has finished)" in system.output
    options = ["--data", str(tmp_path / "bags"), "--out", str(tmp_path / "offline"), "--every", str(EVERY)]
    assert evaluate([checkpoint, *options]) == 0
    live, offline = (predictions(tmp_path / name) for name in ("live", "offline"))
    assert live.keys() == offline.keys() and len(live) == 2 * 3
    assert len({line["text"] for line in live.values()}) == 3
    assert any(line["predicted"] is not None for line in live.values())
    for key, line in live.items():
        for field in ("recorded", "text", "error", "predicted_trace", "predicted_codes", "compared_rows"):
            assert line[field] == offline[key][field], (key, field)
        if line["predicted"] is not None:
            assert np.allclose(line["predicted"], offline[key]["predicted"])
    found = [json.loads((tmp_path / name / RESULTS_FILE).read_text()) for name in ("live", "offline")]
    for name, estimate in found[0]["checkpoints"][0]["metrics"].items():
        if name == "passes":  # how many there are depends on what was looked at before; a graph may look once more
            continue
        assert estimate == pytest.approx(found[1]["checkpoints"][0]["metrics"][name]), name
    assert (tmp_path / "live" / REPORT_FILE).read_text().startswith("<!doctype html>")


def test_replay_ends_with_the_reason_when_the_recording_lacks_a_camera(processes, tmp_path, episodes):
    nano_checkpoint()

    def without_wrist(samples):
        return [sample for sample in samples if not sample.topic.startswith(episodes.WRIST)]

    episodes.make_episode(tmp_path / "bag", seconds=1.0, edit=without_wrist)
    system = up(processes, f"bag:={tmp_path / 'bag'}", f"out:={tmp_path / 'live'}")
    assert system.wait(START_TIMEOUT_S) == 1
    assert "camera wrist: there is no /camera/wrist/color/image_raw" in system.output.splitlines()[-1]
    assert not (tmp_path / "live").exists()
