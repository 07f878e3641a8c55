"""Demonstrations of the scripted operator, labelled from the simulator, as shards of training samples.

Every sample is one look at the scene: both cameras as the policy will see them, the front camera's depth, where the
gripper will go (the trace) and the operator's clean plan from here (the chunk). What is *executed* is that plan with
noise, so that the plan is also shown from places a policy gets to by its own mistakes (DART, Laskey et al. 2017).
Execution is kinematic: the operator's own idea of the world, rendered. Physics enters where the policy is evaluated.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import yaml
from franka_sim.cameras import RgbdCamera
from franka_sim.operator import CLOSED, SceneView, ScriptedOperator, Step
from franka_sim.posing import PosedScene
from franka_sim.scene import SceneConfig
from franka_sim.simulation import Simulation
from molmoact_policy.embodiment import resize_image
from molmoact_policy.images import ImageProcessor
from molmoact_policy.trace import draw_trace
from PIL import Image
from scipy.spatial.transform import Rotation

TRACE_POINTS = 5  # paper, section 3.2
CAMERA_SIZE = (640, 480)
LOWEST_TCP_M = 0.008  # above the table, whatever the noise says
PLAN_STEPS = 120  # longer than any episode's plan
DEPTH_RANGE_M = (0.3, 3.0)  # of a D435


@dataclass(frozen=True)
class Sample:
    """One look at the scene with its labels."""

    pixels: np.ndarray  # uint8 [cameras, patches, patch * patch * 3]
    depth: np.ndarray  # uint8 [size, size], relative inverse depth, near = bright
    actions: np.ndarray  # float32 [rows, 7]: m, rotation vector in rad (base frame), gripper 0 closed .. 1 open
    trace: np.ndarray  # uint8 [TRACE_POINTS, 2], x right and y down, 0..255 across the front image
    instruction: str
    steered: bool  # the trace is drawn on the front image
    seed: int


def inverse_depth_picture(depth: np.ndarray, size: int) -> np.ndarray:
    """Depth [H, W] in metres -> uint8 [size, size], min-max of the inverse depth, as the release feeds its VQVAE."""
    inverse = 1.0 / np.clip(depth, *DEPTH_RANGE_M)
    scaled = (inverse - inverse.min()) / (inverse.max() - inverse.min() + 1e-8) * 255.0
    return np.asarray(Image.fromarray(scaled.astype(np.uint8)).resize((size, size), Image.Resampling.BILINEAR))


def trace_of(path: np.ndarray, camera: RgbdCamera, data) -> np.ndarray:
    """Positions [n, 3] in the base frame -> the trace [TRACE_POINTS, 2] on `camera`'s picture (paper, section 3.2)."""
    chosen = path[np.linspace(0, len(path) - 1, TRACE_POINTS).astype(int)]
    pixels = np.array([camera.project(point, data) for point in chosen])
    scaled = pixels * 255.0 / (camera.intrinsics.width - 1, camera.intrinsics.height - 1)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


class DemonstrationRecorder:
    """Runs the operator through posed scenes and yields samples. Owns its simulation and renderers: one per process."""

    def __init__(self, scene: SceneConfig, config: dict, processor: ImageProcessor, image_size: tuple[int, int]):
        self.config = config
        self.processor = processor
        self.image_size = image_size
        self.sim = Simulation(scene)
        self.posed = PosedScene(self.sim)
        self.front = RgbdCamera(self.sim.model, "front", *CAMERA_SIZE)
        self.wrist = RgbdCamera(self.sim.model, "wrist", *CAMERA_SIZE)

    def episode(self, task: str, seed: int) -> Iterator[Sample]:
        """Samples of one episode, until the operator is done or the episode has had its steps."""
        config = self.config
        rng = np.random.default_rng([seed, 1])
        instruction = self.sim.reset(task, seed)
        self.posed.reset()
        operator = ScriptedOperator.for_simulation(self.sim)
        view = self._start(SceneView.from_simulation(self.sim), rng)
        for _ in range(0, config["steps_limit"], config["rows_executed"]):
            plan, _ = operator.rollout(view, config["rows_executed"])
            if not plan:
                return
            for step in self._perturbed(plan, view, operator, rng):
                if rng.random() < config["keep_fraction"]:
                    yield self._sample(view, operator, instruction, seed, rng)
                view = operator.imagine(view, step)

    def _sample(
        self, view: SceneView, operator: ScriptedOperator, instruction: str, seed: int, rng: np.random.Generator
    ) -> Sample:
        plan, path = operator.rollout(view, PLAN_STEPS)
        data = self.posed.pose(view)
        front, depth = self.front.render(data)
        front, wrist = (self._resized(image) for image in (front, self.wrist.colour(data)))
        trace = trace_of(np.array([view.position, *path]), self.front, data)
        steered = bool(rng.random() < self.config["steered_fraction"])
        if steered:
            front = draw_trace(front, trace.tolist())
        return Sample(
            pixels=np.stack([self._pixels(front), self._pixels(wrist)]),
            depth=inverse_depth_picture(depth, self.processor.crop_size),
            actions=chunk_of(plan or [operator.step(view)], self.config["chunk_rows"]),
            trace=trace,
            instruction=instruction,
            steered=steered,
            seed=seed,
        )

    def _start(self, view: SceneView, rng: np.random.Generator) -> SceneView:
        """Home, or somewhere else over the table."""
        config = self.config
        if rng.random() >= config["start_probability"]:
            return view
        spread = np.asarray(config["start_spread"])
        turn = Rotation.from_rotvec([0.0, 0.0, rng.normal(0.0, config["start_yaw"])]).as_matrix()
        position = np.asarray(config["start_centre"]) + rng.uniform(-spread, spread)
        return replace(view, position=position, rotation=turn @ view.rotation)

    def _resized(self, image: np.ndarray) -> np.ndarray:
        return resize_image(np.ascontiguousarray(image), self.image_size)

    def _pixels(self, image: np.ndarray) -> np.ndarray:
        """An image's one crop as bytes [patches, values]; the processor's floats are exactly these / 255 * 2 - 1."""
        crop = self.processor(image)["images"][0]
        return np.rint((crop + 1.0) * 127.5).astype(np.uint8)

    def _perturbed(
        self, steps: list[Step], view: SceneView, operator: ScriptedOperator, rng: np.random.Generator
    ) -> list[Step]:
        """What is executed of a plan: noise on every step, now and then a shove or a hand that closes too early."""
        noise = self.config["noise"]
        shoved = view.position[2] > noise["burst_above"] and rng.random() < noise["burst_probability"]
        shove = rng.normal(0.0, noise["burst"], 3) / len(steps) if shoved else np.zeros(3)
        early_grasp = rng.random() < noise["early_grasp_probability"]
        executed = []
        height = view.position[2]
        for step in steps:
            translation = step.translation + shove + rng.normal(0.0, noise["step"], 3)
            translation[2] = max(translation[2], LOWEST_TCP_M - height)
            height += translation[2]
            turn = step.rotation + np.array([0.0, 0.0, rng.normal(0.0, noise["yaw"])])
            executed.append(Step(translation, turn, CLOSED if early_grasp else step.gripper))
        return executed


def chunk_of(plan: list[Step], rows: int) -> np.ndarray:
    """The first `rows` steps [rows, 7]; a shorter plan ends by standing still with the gripper as it is."""
    chunk = [np.concatenate([step.translation, step.rotation, [step.gripper]]) for step in plan[:rows]]
    stand_still = np.concatenate([np.zeros(6), [chunk[-1][6]]])
    return np.array(chunk + [stand_still] * (rows - len(chunk)), np.float32)


def write_shard(samples: list[Sample], directory: Path) -> None:
    """One .npy file per field; the directory appears only when it is complete, so that an interrupted run can go on."""
    partial = directory.with_suffix(".partial")
    partial.mkdir(parents=True, exist_ok=True)
    for field in fields(Sample):
        np.save(
            partial / f"{field.name}.npy", np.stack([np.asarray(getattr(sample, field.name)) for sample in samples])
        )
    partial.rename(directory)


def record_shards(shards: list[int], config: dict, scene_file: Path, checkpoint: Path, out: Path) -> None:
    """Worker: records the given shards that are not there yet."""
    embodiment = yaml.safe_load((checkpoint / "embodiment.yaml").read_text())["nano"]
    recorder = DemonstrationRecorder(
        SceneConfig.load(scene_file),
        config,
        ImageProcessor.from_pretrained(checkpoint),
        tuple(embodiment["image_size"]),
    )
    tasks = list(config["tasks"])
    shares = np.array(list(config["tasks"].values())) / sum(config["tasks"].values())
    for shard in shards:
        directory = out / f"shard_{shard:05d}"
        if directory.exists():
            continue
        samples: list[Sample] = []
        for episode in range(config["episodes_per_shard"]):
            seed = config["first_seed"] + shard * config["episodes_per_shard"] + episode
            task = str(np.random.default_rng([seed, 2]).choice(tasks, p=shares))
            samples.extend(recorder.episode(task, seed))
        write_shard(samples, directory)
        print(f"{directory.name}: {len(samples)} samples", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="config/training/nano.yaml")
    parser.add_argument("--scene", type=Path, required=True, help="config/scenes/tabletop.yaml")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="untrained checkpoint: image processor and embodiment"
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    config = yaml.safe_load(arguments.config.read_text())["demonstrations"]
    shards = list(range(-(-config["episodes"] // config["episodes_per_shard"])))
    arguments.out.mkdir(parents=True, exist_ok=True)
    workers = max(1, multiprocessing.cpu_count())
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(
            target=record_shards,
            args=(shards[worker::workers], config, arguments.scene, arguments.checkpoint, arguments.out),
        )
        for worker in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("recording demonstrations failed: see above")


if __name__ == "__main__":
    main()
