"""`molmoact depth-vqvae`: pictures from recordings, from an export, and a network trained on them."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from molmoact_policy.depth import DepthVQVAE
from molmoact_training.depth_command import estimated_pictures, main
from molmoact_training.depth_pictures import picture_of_depth
from molmoact_training.errors import DatasetError

_spec = importlib.util.spec_from_file_location("annotation_data", Path(__file__).parent / "annotation_data.py")
data = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(data)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return data.record(tmp_path_factory.mktemp("recordings"))


@pytest.fixture(scope="module")
def dataset(recordings, tmp_path_factory):
    return data.export(recordings, tmp_path_factory.mktemp("export") / "dataset")


def collect(source, out, *options):
    return main(["collect", str(source), "--out", str(out), *map(str, options)])


def test_recorded_depth_is_gathered_evenly_over_all_recordings(recordings, tmp_path, capsys):
    out = tmp_path / "pictures.npy"
    assert collect(recordings, out, "--count", 14) == 0
    pictures = np.load(out)
    # 61 and 76 pictures, every tenth.
    assert pictures.shape == (7 + 8, 320, 320)
    np.testing.assert_array_equal(pictures[1], picture_of_depth(data.depth_of(10)))
    np.testing.assert_array_equal(pictures[7], picture_of_depth(data.depth_of(0)))
    assert "15 depth pictures" in capsys.readouterr().out


def test_pictures_in_which_nothing_was_measured_are_left_out(tmp_path):
    def covered(samples):
        depth = [sample for sample in data.with_depth(samples) if sample.topic == data.DEPTH]
        depth[1].message.data[:] = 0
        return sorted([*samples, *depth], key=lambda sample: sample.log_ns)

    data.episodes.make_episode(tmp_path / "take", seconds=0.1, edit=covered)
    assert collect(tmp_path, tmp_path / "pictures.npy") == 0
    assert len(np.load(tmp_path / "pictures.npy")) == 3


def test_recordings_without_depth_are_refused(tmp_path, capsys):
    data.episodes.make_episode(tmp_path / "take", seconds=0.1)
    assert collect(tmp_path, tmp_path / "pictures.npy") == 1
    assert "no depth of camera front" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.npy"))


@pytest.mark.parametrize("kind", ["recordings", "dataset"])
def test_depth_is_estimated_for_the_camera_of_recordings_and_of_datasets(request, kind):
    seen = []

    def estimator(image):
        seen.append(image)
        return np.full((320, 320), len(seen), np.uint8)

    count, pictures = estimated_pictures(request.getfixturevalue(kind), "front", 10, estimator)
    assert [picture[0, 0] for picture in pictures] == list(range(1, count + 1))
    assert 10 <= count + 2 <= 13
    assert {image.shape for image in seen} == {(48, 64, 3)}
    numbers = [data.episodes.number_of(image) for image in seen]
    assert len(set(numbers)) > 4


def test_an_estimator_that_is_not_there_is_named_before_anything_is_read(recordings, tmp_path, capsys):
    assert collect(recordings, tmp_path / "pictures.npy", "--depth-model", tmp_path / "model") == 1
    assert str(tmp_path / "model") in capsys.readouterr().err


def config(tmp_path, **section):
    path = tmp_path / "preset.yaml"
    path.write_text(yaml.safe_dump({"depth_vqvae": section, "model": {}}))
    return path


def test_a_network_is_trained_on_collected_pictures_and_shown(recordings, tmp_path, capsys):
    assert collect(recordings, tmp_path / "pictures.npy", "--count", 20) == 0
    preset = config(tmp_path, hidden_dim=2, codebook_dim=8, batch=4, steps=3)
    out = tmp_path / "vqvae"
    assert main(["train", str(tmp_path / "pictures.npy"), "--config", str(preset), "--out", str(out)]) == 0
    assert DepthVQVAE.from_pretrained(out).config.hidden_dim == 2
    numbers = json.loads((out / "report.json").read_text())
    assert numbers["pictures"] == 20
    assert numbers["held_out"] == 1
    assert 1 <= numbers["codes_used"] <= 100
    page = (out / "pictures.html").read_text()
    assert page.count("<img") == 4
    assert page.count("<rect") == 128
    assert "http" not in page


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (np.zeros((4, 8, 8), np.float32), "float32"),
        (np.zeros((4, 8), np.uint8), "n, h, w"),
        (np.zeros((0, 8, 8), np.uint8), "n, h, w"),
        (None, "not readable"),
    ],
)
def test_a_file_that_holds_no_pictures_is_named(tmp_path, capsys, array, named):
    path = tmp_path / "pictures.npy"
    path.write_bytes(b"nothing") if array is None else np.save(path, array)
    assert main(["train", str(path), "--out", str(tmp_path / "vqvae")]) == 1
    said = capsys.readouterr().err
    assert named in said
    assert "pictures.npy" in said


def test_pictures_of_two_sizes_are_named(tmp_path, capsys):
    for size in (8, 9):
        np.save(tmp_path / f"{size}.npy", np.zeros((4, size, size), np.uint8))
    assert main(["train", str(tmp_path / "8.npy"), str(tmp_path / "9.npy"), "--out", str(tmp_path / "vqvae")]) == 1
    assert "9.npy" in capsys.readouterr().err


def test_a_preset_without_the_section_is_named(tmp_path, capsys):
    np.save(tmp_path / "pictures.npy", np.zeros((4, 8, 8), np.uint8))
    (tmp_path / "preset.yaml").write_text("model: {}")
    options = ["--config", str(tmp_path / "preset.yaml"), "--out", str(tmp_path / "vqvae")]
    assert main(["train", str(tmp_path / "pictures.npy"), *options]) == 1
    assert "depth_vqvae" in capsys.readouterr().err


def test_a_source_with_nothing_in_it_is_named(tmp_path):
    with pytest.raises(DatasetError, match="no recordings"):
        estimated_pictures(tmp_path, "front", 10, lambda image: image)
