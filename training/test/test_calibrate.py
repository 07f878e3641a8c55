"""`molmoact calibrate` on recordings and on their export: the page, clicks, pointing, and what it says."""

import base64
import importlib.util
import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from molmoact_training.calibrate import main
from molmoact_training.calibration import CameraCalibration
from molmoact_training.calibration_views import DatasetViews, FrameId, RecordingViews, Track, choose_frames
from molmoact_training.clicking import SCRIPT, Click, read_clicks, write_clicks
from molmoact_training.errors import DatasetError
from PIL import Image
from safetensors.torch import save_file
from scipy.spatial.transform import Rotation

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("annotation_data", HERE / "annotation_data.py")
data = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(data)
episodes = data.episodes

SIZE = (320, 240)
TRUE = data.CALIBRATION.resized(*SIZE)
INFO = "/camera/front/color/camera_info"


def place_at(seconds, take):
    """[3] m: all over the workspace."""
    t = 1.3 * seconds + take
    return episodes.HOME + np.array([0.15 * np.sin(2 * t), 0.2 * np.sin(3.1 * t), 0.12 * np.cos(1.7 * t) - 0.1])


def turn_at(seconds):
    t = 1.3 * seconds
    return Rotation.from_euler("xyz", [np.pi + 0.4 * np.sin(2.3 * t), 0.4 * np.cos(1.9 * t), t])


def seen(take, info=True):
    """The arm goes all over the workspace, the front camera sees a bright dot where it is, and says how it projects."""

    def edit(samples):
        store = episodes.typestore()
        for sample in samples:
            seconds = (episodes.stamp_of(sample) - episodes.START_NS) / 1e9 if hasattr(sample.message, "header") else 0
            place = place_at(seconds, take)
            if sample.topic in data.POSES:
                position, it = sample.message.pose.position, sample.message.pose.orientation
                position.x, position.y, position.z = place.tolist()
                it.x, it.y, it.z, it.w = turn_at(seconds).as_quat().tolist()
            elif sample.topic == episodes.FRONT:
                x, y = np.rint(TRUE.project([place])[0]).astype(int)
                picture = np.full((SIZE[1], SIZE[0], 3), 30, np.uint8)
                picture[y, x] = 255
                sample.message.data[:] = picture.ravel()
        if info:
            samples.insert(0, camera_info(store, samples[0].log_ns))
        return samples

    return edit


def camera_info(store, log_ns):
    k = TRUE.intrinsics
    region = store.types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    message = store.types["sensor_msgs/msg/CameraInfo"](
        header=episodes._header(store, log_ns, "camera"),
        height=k.height,
        width=k.width,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=k.matrix.ravel(),
        r=np.eye(3).ravel(),
        p=np.zeros(12),
        binning_x=0,
        binning_y=0,
        roi=region,
    )
    return episodes.Sample(INFO, log_ns, "sensor_msgs/msg/CameraInfo", message)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    root = tmp_path_factory.mktemp("recordings")
    for take in range(2):
        episodes.make_episode(root / f"take_{take}", seconds=2.0, size=SIZE, edit=seen(take))
    return root


@pytest.fixture(scope="module")
def dataset(recordings, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "dataset"
    size = f"{2 * SIZE[0]}x{2 * SIZE[1]}"
    options = ["--embodiment", "franka", "--rate", "15", "--size", size, "--jobs", "1"]
    assert data.episodes_command(["export", str(recordings), "--out", str(out), *options]) == 0
    return out


def true_clicks(root, noise=0.0, count=24):
    rng = np.random.default_rng(0)
    tracks = {track.episode: track for track in RecordingViews(root, "front", "").tracks}
    chosen = choose_frames(list(tracks.values()), count)
    pixels = TRUE.project([tracks[it.episode].positions[it.frame] for it in chosen]) + rng.normal(0, noise, (count, 2))
    return [Click(it.episode, it.frame, *pixel) for it, pixel in zip(chosen, pixels.tolist(), strict=True)]


def solve(source, *options):
    return main(["solve", str(source), *map(str, options)])


def off_by(path):
    """(m, rad) from the true camera."""
    found = CameraCalibration.from_file(path)
    turned = (found.rotation.inv() * TRUE.rotation).magnitude()
    return np.linalg.norm(np.subtract(found.position, TRUE.position)), turned


def test_the_camera_is_found_from_clicks_in_recordings(recordings, tmp_path, capsys):
    clicks = true_clicks(recordings, noise=0.5)
    clicks[5] = clicks[5]._replace(x=clicks[5].x + 60)
    write_clicks(clicks, tmp_path / "clicks.json")
    assert solve(recordings, "--clicks", tmp_path / "clicks.json", "--out", tmp_path / "front.yaml") == 0
    moved, turned = off_by(tmp_path / "front.yaml")
    assert moved < 0.02
    assert turned < np.deg2rad(1)
    said = capsys.readouterr().out
    assert "23 of 24 points agree" in said
    assert f"left out: {clicks[5].picture}: " in said
    page = (tmp_path / "front.html").read_text()
    assert page.count("<figure>") == 24
    assert page.count("left out") == 1


def test_the_camera_is_found_from_an_export_that_enlarged_the_pictures(recordings, dataset, tmp_path):
    size = TRUE.resized(2 * SIZE[0], 2 * SIZE[1])
    tracks = {track.episode: track for track in DatasetViews(dataset, "front", "").tracks}
    chosen = choose_frames(list(tracks.values()), 20)
    pixels = size.project([tracks[it.episode].positions[it.frame] for it in chosen])
    write_clicks([Click(*it, *pixel) for it, pixel in zip(chosen, pixels.tolist(), strict=True)], tmp_path / "c.json")
    out = tmp_path / "front.yaml"
    assert solve(dataset, "--clicks", tmp_path / "c.json", "--out", out, "--intrinsics", recordings) == 0
    assert off_by(out)[0] < 1e-3


def test_a_dataset_alone_does_not_say_how_its_camera_projects(dataset, tmp_path, capsys):
    write_clicks([Click(0, 0, 1, 1)], tmp_path / "clicks.json")
    assert solve(dataset, "--clicks", tmp_path / "clicks.json", "--out", tmp_path / "front.yaml") == 1
    assert "no camera_info of front" in capsys.readouterr().err


def test_a_model_that_points_takes_the_place_of_clicks(recordings, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = shutil.copytree(HERE / "data" / "pointing_model", tmp_path / "model")
    save_file({"unused": torch.zeros(1)}, model / "model.safetensors", {"format": "pt"})
    out = tmp_path / "front.yaml"
    assert solve(recordings, "--detect", model, "--out", out, "--frames", 20) == 0
    assert off_by(out)[0] < 0.02
    assert len(read_clicks(tmp_path / "front.clicks.json")) == 20
    assert "pointed at in 20 of 20" in capsys.readouterr().out


def test_a_dot_on_the_hand_is_told_from_its_origin(recordings, tmp_path, capsys):
    tracks = {track.episode: track for track in RecordingViews(recordings, "front", "").tracks}
    clicks = []
    for click in true_clicks(recordings):
        turn = Rotation.from_quat(tracks[click.episode].quaternions[click.frame])
        place = tracks[click.episode].positions[click.frame] + turn.apply([0.0, 0.02, 0.03])
        clicks.append(click._replace(x=TRUE.project([place])[0, 0], y=TRUE.project([place])[0, 1]))
    write_clicks(clicks, tmp_path / "clicks.json")
    out = tmp_path / "front.yaml"
    assert solve(recordings, "--clicks", tmp_path / "clicks.json", "--out", out, "--tool-offset") == 0
    assert off_by(out)[0] < 1e-3
    assert "clicked is 0.0 20.0 30.0 mm" in capsys.readouterr().out.replace("-0.0", "0.0")


def page_of(source, tmp_path, *options):
    assert main(["page", str(source), "--out", str(tmp_path / "click.html"), *options]) == 0
    return (tmp_path / "click.html").read_text()


def test_the_page_holds_pictures_of_the_gripper_far_apart_and_nothing_from_elsewhere(recordings, tmp_path):
    page = page_of(recordings, tmp_path, "--frames", "8")
    frames = json.loads(re.search(r"const FRAMES = (.*);", page)[1])
    assert len(frames) == 8
    for frame in frames:
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(frame["image"]))))
        assert picture.shape == (240, 320, 3)
        assert picture.max() > 150
    assert "http" not in page


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node to run the page's script")
def test_what_is_clicked_on_the_page_is_what_is_read(recordings, tmp_path):
    page = page_of(recordings, tmp_path, "--frames", "6")
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    browser = """
    const made = {};
    const element = id => made[id] ??= {id, style: {}, listeners: {}, clientWidth: 960, clientHeight: 720,
      addEventListener(kind, does) { this.listeners[kind] = does; }, click() { this.listeners.click?.({}); }};
    globalThis.document = {getElementById: element, addEventListener() {}, createElement: () => element("link")};
    globalThis.Blob = class { constructor(parts) { console.log(parts.join("")); } };
    globalThis.URL.createObjectURL = () => "";
    """
    acts = """
    element("image").listeners.click({offsetX: 1.5, offsetY: 1.5});
    element("next").click();
    element("image").listeners.click({offsetX: 480, offsetY: 360});
    element("next").click();
    element("image").listeners.click({offsetX: 5, offsetY: 5});
    element("clear").click();
    element("save").click();
    """
    done = subprocess.run(["node", "-e", browser + script + acts], capture_output=True, text=True, check=True)
    (tmp_path / "clicks.json").write_text(done.stdout)
    frames = json.loads(re.search(r"const FRAMES = (.*);", page)[1])
    assert read_clicks(tmp_path / "clicks.json") == [
        Click(frames[0]["episode"], frames[0]["frame"], 0.0, 0.0),
        Click(frames[1]["episode"], frames[1]["frame"], 159.5, 119.5),
    ]


def test_the_script_names_nothing_that_the_page_lacks(recordings, tmp_path):
    page = page_of(recordings, tmp_path, "--frames", "6")
    for name in set(re.findall(r'byId\("(\w+)"\)', SCRIPT)):
        assert f"id={name}" in page


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("episode,frame,x,y\n0,1,2,nan\n", "click 1: x is|click 1: y is 'nan'"),
        ("episode,frame,x,y\n0,1,2,3\n0,1.5,2,3\n", "click 2: frame is '1.5'"),
        ("episode,frame,x\n0,1,2\n", "y is None"),
        ("episode,frame,x,y\n0,1,2,3\n0,1,4,5\n", "more than once"),
    ],
)
def test_a_wrong_click_is_named(tmp_path, text, named):
    (tmp_path / "clicks.csv").write_text(text)
    with pytest.raises(DatasetError, match=named) as caught:
        read_clicks(tmp_path / "clicks.csv")
    assert "clicks.csv" in str(caught.value)


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"episode": true, "frame": 0, "x": 0, "y": 0}]', "[[0,0,0,0]]"])
def test_a_file_of_something_else_is_named(tmp_path, text):
    (tmp_path / "clicks.json").write_text(text)
    with pytest.raises(DatasetError, match="clicks.json"):
        read_clicks(tmp_path / "clicks.json")


@given(st.lists(st.fixed_dictionaries({name: st.floats() | st.text() for name in ("episode", "frame", "x", "y")})))
def test_whatever_is_read_as_clicks_is_numbers_or_an_error(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("clicks") / "clicks.json"
    path.write_text(json.dumps(rows))
    try:
        clicks = read_clicks(path)
    except DatasetError:
        return
    for click in clicks:
        assert all(math.isfinite(value) for value in click)
        assert min(click.episode, click.frame) >= 0


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"frame": 5000}, "frame 5000: was clicked"),
        ({"episode": 7}, "episode 7"),
        ({"x": 319.6}, "outside its 320x240"),
    ],
)
def test_a_click_that_belongs_to_no_picture_is_named(recordings, tmp_path, capsys, changed, named):
    clicks = true_clicks(recordings)
    write_clicks([clicks[0]._replace(**changed), *clicks[1:]], tmp_path / "clicks.json")
    assert solve(recordings, "--clicks", tmp_path / "clicks.json", "--out", tmp_path / "front.yaml") == 1
    assert named in capsys.readouterr().err
    assert not (tmp_path / "front.yaml").exists()


def test_a_directory_with_nothing_in_it_and_a_camera_that_is_not_there_are_named(recordings, tmp_path, capsys):
    assert main(["page", str(tmp_path), "--out", str(tmp_path / "click.html")]) == 1
    assert "no recordings" in capsys.readouterr().err
    assert main(["page", str(recordings), "--camera", "side", "--out", str(tmp_path / "click.html")]) == 1
    assert "camera side" in capsys.readouterr().err


def test_pictures_in_which_the_gripper_moves_fast_are_not_chosen():
    steps = np.where(np.arange(40) < 20, 0.001, 0.1)
    positions = np.stack([np.cumsum(steps), np.zeros(40), np.zeros(40)], 1)
    chosen = choose_frames([Track(3, positions, np.tile([0, 0, 0, 1.0], (40, 1)))], 6)
    assert len(chosen) == 6
    assert all(it.episode == 3 and it.frame < 21 for it in chosen)


def test_pictures_without_a_position_beside_them_are_not_chosen():
    positions = np.random.default_rng(0).uniform(size=(20, 3))
    positions[10:] = np.nan
    chosen = choose_frames([Track(0, positions, np.tile([0, 0, 0, 1.0], (20, 1)))], 6)
    assert all(it < FrameId(0, 10) for it in chosen)
    with pytest.raises(DatasetError, match="no picture"):
        choose_frames([Track(0, np.full((5, 3), np.nan), np.zeros((5, 4)))], 6)
