"""Small recordings with depth, their export, and what is needed to annotate it; everything known about them."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from molmoact_policy.depth import DepthVQVAE
from molmoact_training.calibration import CameraCalibration, Intrinsics
from scipy.spatial.transform import Rotation
from teleop_recorder.commands import main as episodes_command

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("episodes", ROOT / "src/teleop_recorder/test/episodes.py")
episodes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(episodes)

DEPTH = "/camera/front/aligned_depth_to_color/image_raw"
SECONDS, RATE, SIZE = 2.0, 10, (64, 48)
INSTRUCTIONS = ("pick up the red cube", "push it <left> & right")
POSES = (episodes.POSE, episodes.TARGET)
# Looks at where the arm moves, from the front and above.
_FORWARD = np.array([-0.8, 0.0, -0.6])
_RIGHT = np.array([0.0, 1.0, 0.0])
CALIBRATION = CameraCalibration(
    Intrinsics(640, 480, 500.0, 500.0, 319.5, 239.5),
    (1.3, 0.0, 0.9),
    tuple(Rotation.from_matrix(np.stack([_RIGHT, np.cross(_FORWARD, _RIGHT), _FORWARD], 1)).as_quat().tolist()),
)


def depth_of(number: int) -> np.ndarray:
    """uint16 [H, W] mm: something near in front of a wall, the farther right the later; holes as a sensor has them."""
    width, height = SIZE
    depth = np.full((height, width), 1500, np.uint16)
    left = number % 60
    depth[10:40, left : left + 6] = 400
    depth[:5] = 0
    return depth


def with_depth(samples):
    """A depth picture beside every picture of the front camera."""
    kind = "sensor_msgs/msg/Image"
    colour = [sample for sample in samples if sample.topic == episodes.FRONT]
    depth = []
    for number, sample in enumerate(colour):
        message = replace(
            sample.message,
            encoding="16UC1",
            step=2 * SIZE[0],
            data=depth_of(number).view(np.uint8).ravel(),
        )
        depth.append(episodes.Sample(DEPTH, sample.log_ns + 1000, kind, message))
    return sorted([*samples, *depth], key=lambda sample: sample.log_ns)


def tilting(samples):
    """The hand also turns about the other axes, so that no dimension of the actions is constant."""
    for sample in samples:
        if sample.topic in POSES:
            t = (episodes.stamp_of(sample) - episodes.START_NS) / 1e9
            it = sample.message.pose.orientation
            tilt = Rotation.from_euler("xyz", [0.2 * np.sin(2 * t), 0.1 * np.cos(3 * t), 0.0])
            it.x, it.y, it.z, it.w = (tilt * Rotation.from_quat([it.x, it.y, it.z, it.w])).as_quat().tolist()
    return samples


def two_arms(samples):
    """Every topic of the arm twice, under left/ and right/; the right one is 0.2 m further to the right."""
    found = []
    for sample in tilting(samples):
        if sample.topic not in (*POSES, episodes.GRIPPER, episodes.JOINTS):
            found.append(sample)
            continue
        found.append(sample._replace(topic=f"/left{sample.topic}"))
        message = sample.message
        if sample.topic in POSES:
            pose = message.pose
            message = replace(message, pose=replace(pose, position=replace(pose.position, y=pose.position.y - 0.2)))
        found.append(sample._replace(topic=f"/right{sample.topic}", message=message))
    return found


def record(root: Path) -> Path:
    """Two episodes with depth."""
    for number, instruction in enumerate(INSTRUCTIONS):
        episodes.make_episode(
            root / f"take_{number}",
            seconds=SECONDS + number * 0.5,
            instruction=instruction,
            edit=lambda samples: with_depth(tilting(samples)),
        )
    return root


def export(recordings: Path, out: Path, *more: str) -> Path:
    options = ["--embodiment", "franka", "--rate", str(RATE), "--size", f"{SIZE[0]}x{SIZE[1]}", "--jobs", "1", *more]
    assert episodes_command(["export", str(recordings), "--out", str(out), *options]) == 0
    return out


def save_vqvae(directory: Path) -> Path:
    """Untrained, but its codes say something about the picture."""
    torch.manual_seed(3)
    vqvae = DepthVQVAE(hidden_dim=4, codebook_dim=8)
    with torch.no_grad():
        pictures = torch.rand(16, 1, 320, 320).cumsum(3) / 160
        vectors = vqvae.encoder(pictures).permute(0, 2, 3, 1).flatten(0, 2)
        vqvae._vq_vae._embedding.copy_(vectors[torch.randperm(len(vectors))[:128]])
    vqvae.save_pretrained(directory)
    return directory


def edit_yaml(path: Path, **changes: object) -> None:
    """Of the only entry of a file {key: {field: value}}."""
    content = yaml.safe_load(path.read_text())
    (entry,) = content.values()
    entry.update(changes)
    path.write_text(yaml.safe_dump(content))
