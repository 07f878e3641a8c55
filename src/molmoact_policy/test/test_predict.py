"""The command that shows what a checkpoint makes of pictures, from its arguments to the files it leaves."""

import json
from pathlib import Path

import numpy as np
import pytest
from molmoact_policy import predict
from PIL import Image

DATA = Path(__file__).parent / "data"
NANO = Path(__file__).parents[1] / "checkpoints" / "nano"
FRONT, WRIST = (DATA / "scene" / f"{camera}.png" for camera in ("front", "wrist"))


def run(output: Path, *options: str, images: tuple[Path, ...] = (FRONT, WRIST)) -> int:
    arguments = ["--checkpoint", str(NANO), "--instruction", "pick up the red cube", "--dtype", "float32"]
    for image in images:
        arguments += ["--image", str(image)]
    return predict.main([*arguments, "--output", str(output), *options])


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one prediction left; the scene is one that the simulator rendered."""
    output = tmp_path_factory.mktemp("prediction")
    assert run(output, "--resize") == 0
    return output


def test_actions_are_written_in_si_units_with_everything_the_model_thought(record: Path) -> None:
    written = json.loads((record / "prediction.json").read_text())
    assert (written["unnorm_key"], written["frame"]) == ("nano", "base")
    assert len(written["actions"]) == 8 and all(len(row) == 1 for row in written["actions"])
    steps = np.array([row[0]["translation_m"] for row in written["actions"]])
    # The scene has the gripper above and beside the cube: it comes down, no more than 25 mm in a step of 0.1 s.
    assert steps.sum(axis=0)[2] < -0.02
    assert np.linalg.norm(steps, axis=1).max() < 0.04
    assert all(0.0 <= row[0]["gripper"] <= 1.0 for row in written["actions"])
    assert len(written["depth_codes"]) == 100 and 1 <= len(written["trace"]) <= 5
    assert written["text"].count("<DEPTH_START>") == 1


def test_trace_and_depth_are_written_as_pictures(record: Path) -> None:
    trace, front = (np.array(Image.open(path)) for path in (record / "trace.png", FRONT))
    assert trace.shape == front.shape
    changed = (trace != front).any(axis=-1)
    assert 0 < changed.sum() < changed.size / 10
    assert np.array(Image.open(record / "depth.png")).shape == (320, 320)


def test_actions_are_printed_with_their_units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--resize") == 0
    lines = capsys.readouterr().out.splitlines()
    header = lines.index("translation (m), rotation vector (rad) in the base frame, gripper (0 closed .. 1 open)")
    assert [line.split()[0] for line in lines[header + 1 : header + 9]] == [str(row) for row in range(8)]


def test_steered_it_repeats_the_given_trace(tmp_path: Path) -> None:
    code = run(tmp_path, "--resize", "--trace", "128,90", "60,150")
    # nano was not taught to be steered: with or without an action, the path is drawn.
    assert code in (0, 1)
    assert (tmp_path / "trace.png").exists() and not (tmp_path / "depth.png").exists()


def test_pictures_of_another_size_than_trained_are_mentioned(tmp_path: Path, capsys) -> None:
    run(tmp_path)
    assert "as --resize does" in capsys.readouterr().err


def grey(path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)


def transparent(path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(path)


def truncated(path: Path) -> None:
    path.write_bytes(FRONT.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (grey, "is of mode L, expected RGB with 8 bits"),
        (transparent, "is of mode RGBA, expected RGB"),
        (truncated, "not readable as a picture"),
        (lambda path: path.write_text("no picture"), "not readable as a picture"),
        (lambda path: None, "not readable as a picture"),
    ],
)
def test_file_that_is_no_rgb_picture_is_named(tmp_path: Path, capsys, make, complaint: str) -> None:
    make(tmp_path / "front.png")
    assert run(tmp_path / "out", images=(tmp_path / "front.png", WRIST)) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / 'front.png'}: {complaint}" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "images", "complaint"),
    [
        (("--unnorm-key", "libero"), (FRONT, WRIST), "unnorm_key 'libero' is not in norm_stats"),
        (("--trace", "1,1"), (FRONT, WRIST), "trace: 1 points, expected 2 to 5"),
        ((), (FRONT,), "images: 1 given, expected 2 (front, wrist)"),
        ((), (FRONT, WRIST, WRIST), "images: 3 given, expected 2 (front, wrist)"),
        (("--instruction", " "), (FRONT, WRIST), "instruction: is empty"),
    ],
)
def test_bad_input_is_refused_with_its_reason(tmp_path: Path, capsys, options, images, complaint: str) -> None:
    assert run(tmp_path, *options, images=images) == 1
    assert complaint in capsys.readouterr().err
