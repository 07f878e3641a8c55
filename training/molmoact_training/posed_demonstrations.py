"""Demonstrations of the scripted operator in posed scenes: what nano is pre-trained on, as an annotated dataset.

Every frame is one look at the scene: both cameras as the policy will see them, depth codes of the front camera's depth,
where the gripper will go (the trace) and the operator's clean plan from here (the chunk). What is *executed* is that
plan with noise, so that the plan is also shown from places a policy gets to by its own mistakes (DART, Laskey et al.
2017). Execution is kinematic: the operator's own idea of the world, rendered. Physics enters in the recorded
demonstrations, and where the policy is evaluated.

Some episodes go another way than their instruction asks for: over points of the operator's choice, or to the other
cube. Their frames are `steered`: only a drawn trace explains them, and so the policy learns to go where a trace goes.
Half of them show the trace as it was drawn at the start, because a person's trace stays while the arm follows it.

What is seen before anything has been touched is also labelled with what would be done if the other cube, or the other
side, were asked for: only the words tell the two frames apart. Every frame has the points of the cubes and plates in
its pictures, for pointing.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from franka_sim.cameras import RgbdCamera
from franka_sim.errors import FrankaSimError
from franka_sim.operator import CLOSED, SceneView, ScriptedOperator, Step, WanderingOperator
from franka_sim.posing import PosedScene
from franka_sim.rotations import TOOL_DOWN
from franka_sim.scene import SceneConfig
from franka_sim.simulation import Simulation
from franka_sim.tasks import SIDES, TaskSpec
from molmoact_policy.depth import DepthVQVAE
from molmoact_policy.embodiment import EMBODIMENT_FILE, Embodiment
from molmoact_policy.trace import subsample_trace
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from molmoact_training.annotated_dataset import (
    ALLOW_CONSTANT,
    ANNOTATION_FILE,
    Frame,
    Point,
    finish_dataset,
    shard_path,
    write_shard,
)
from molmoact_training.depth_pictures import picture_of_depth
from molmoact_training.depth_vqvae import WEIGHTS_FILE, VQVAESettings, encode_pictures, train_vqvae

CAMERA_SIZE = (640, 480)
POINTED_AT = ("_cube", "_plate")
DEPTH_PICTURE_SIZE = 160  # pixels: what a few thousand of them leave of the memory
LOWEST_TCP_M = 0.008  # above the table, whatever the noise says
MOVED_M = 1e-3
HAND_CLEAR_M = 0.06  # above the table: the fingertips of a hand that high are above every cube
BESIDE_M = 0.06  # sideways from a cube's middle, within which a lower hand would touch it
PLAN_STEPS = 200  # longer than any episode's plan
STRAIGHT, OTHER_CUBE, WANDERING = "straight", "other_cube", "wandering"
EPISODE_STREAM, TASK_STREAM = 1, 2  # of the seed that also lays out the scene


@dataclass(frozen=True)
class Look:
    """A frame whose depth is still a picture, and the same look when something else is asked for, where that can be."""

    frame: Frame
    otherwise: Frame | None
    depth: NDArray[np.uint8]  # [size, size], relative inverse depth, near = bright


class PosedDemonstrations:
    """Runs the operator through posed scenes and yields looks. Owns its simulation and renderers: one per process."""

    def __init__(self, scene: SceneConfig, config: dict[str, Any], embodiment: Embodiment):
        self.config = config
        self.scene = scene
        self.embodiment = embodiment
        self.sim = Simulation(scene)
        self.posed = PosedScene(self.sim)
        self.front, self.wrist = (RgbdCamera(self.sim.model, name, *CAMERA_SIZE) for name in ("front", "wrist"))

    def episode(self, seed: int) -> Iterator[Look]:
        """Looks of one episode, until the operator is done, the episode has had its steps or nothing can get there."""
        rng = np.random.default_rng([seed, EPISODE_STREAM])
        task, intention = self._task_and_intention(np.random.default_rng([seed, TASK_STREAM]))
        instruction = self.sim.reset(task, seed)
        self.posed.reset()
        try:
            yield from self._looks(seed, instruction, _intended(task, intention), intention == WANDERING, rng)
        except FrankaSimError:  # the noise has taken the tool where the arm cannot reach
            return

    def _task_and_intention(self, rng: np.random.Generator) -> tuple[str, str]:
        """The scene's task with every argument, and what the operator means to do in it."""
        shares, objects = self.config["tasks"], self.scene.objects
        kind = str(rng.choice(list(shares), p=np.array(list(shares.values())) / sum(shares.values())))
        cube, other = rng.permutation(objects.cubes.colours)[:2]
        second = {"pick": other, "place": rng.choice(objects.plates.colours), "push": rng.choice(SIDES)}[kind]
        steered = self.config["steered"]
        other_cube = steered[OTHER_CUBE] if kind == "pick" else 0.0
        shares = [1.0 - other_cube - steered[WANDERING], other_cube, steered[WANDERING]]
        return f"{kind}:{cube}:{second}", str(rng.choice([STRAIGHT, OTHER_CUBE, WANDERING], p=shares))

    def _looks(
        self, seed: int, instruction: str, task: str, wandering: bool, rng: np.random.Generator
    ) -> Iterator[Look]:
        config = self.config
        spec = TaskSpec.parse(task, self.scene)
        operator = ScriptedOperator(spec, self.scene)
        planner = WanderingOperator(operator, seed) if wandering else operator
        steered = wandering or task_instruction(task, self.scene) != instruction
        asked_otherwise = None if steered else _asked_otherwise(task, self.scene)
        view = start = self._start(SceneView.from_simulation(self.sim), spec, rng)
        drawn = self._look(view, planner, operator, None).frame.traces if steered else None
        for first in range(0, config["steps_limit"], config["rows_executed"]):
            if operator.done(view):
                return
            steps, _ = _plan(planner, operator, view, config["rows_executed"])
            for number, step in enumerate(self._perturbed(steps, view, operator, rng), first):
                stage = "early" if number < config["early_steps"] else "late"
                if rng.random() < config["keep_fraction"][stage]:
                    look = self._look(view, planner, operator, asked_otherwise if _alike(view, start) else None)
                    if drawn is not None and rng.random() < 0.5:
                        look = replace(look, frame=replace(look.frame, traces=drawn))
                    yield _numbered(look, seed, number, instruction, steered)
                if wandering:
                    planner.step(view)  # it remembers which points it has been to
                view = operator.imagine(view, step)

    def _look(
        self,
        view: SceneView,
        planner: ScriptedOperator | WanderingOperator,
        operator: ScriptedOperator,
        asked_otherwise: TaskSpec | None,
    ) -> Look:
        data = self.posed.pose(view)
        front, depth = self.front.render(data)
        wrist = self.wrist.colour(data)
        images = [self.embodiment.picture(np.ascontiguousarray(image)) for image in (front, wrist)]
        points = [point for number in range(2) for point in self._points(view, data, number)]
        frame = replace(self._labelled(view, planner, operator, data, images), points=points)
        otherwise = None
        if asked_otherwise is not None:
            other_operator = ScriptedOperator(asked_otherwise, self.scene)
            otherwise = self._labelled(view, other_operator, other_operator, data, images)
            otherwise = replace(otherwise, instruction=asked_otherwise.instruction, points=points)
        return Look(frame, otherwise, picture_of_depth(depth, DEPTH_PICTURE_SIZE))

    def _labelled(
        self,
        view: SceneView,
        planner: ScriptedOperator | WanderingOperator,
        operator: ScriptedOperator,
        data: Any,
        images: list[NDArray[np.uint8]],
    ) -> Frame:
        plan, path = _plan(planner, operator, view, PLAN_STEPS)
        trace = trace_of(np.array([view.position, *path]), self.front, data)
        actions = chunk_of(plan or [operator.step(view)], self.config["chunk_rows"])
        return Frame(0, 0, "", images, actions, traces=[trace])

    def _points(self, view: SceneView, data: Any, image: int) -> Iterator[Point]:
        """Of the cubes and plates whose middle is in one of the pictures."""
        camera = (self.front, self.wrist)[image]
        for name, (position, _) in view.objects.items():
            x, y = np.array(camera.project(position, data)) * _trace_scale(camera)
            if name.endswith(POINTED_AT) and 0.0 <= x <= 255.0 and 0.0 <= y <= 255.0:
                yield Point(name.replace("_", " "), image, round(x), round(y))

    def _start(self, view: SceneView, task: TaskSpec, rng: np.random.Generator) -> SceneView:
        """Home, somewhere else over the table, or at the objects, in the midst of the task."""
        config = self.config
        if rng.random() >= config["start_probability"]:
            return view
        turn = Rotation.from_rotvec([0.0, 0.0, rng.normal(0.0, config["start_yaw"])]).as_matrix()
        view = replace(view, rotation=turn @ view.rotation)
        if rng.random() < config["start_at_objects"]:
            return self._at_objects(view, task, rng)
        spread = np.asarray(config["start_spread"])
        return replace(view, position=np.asarray(config["start_centre"]) + rng.uniform(-spread, spread))

    def _at_objects(self, view: SceneView, task: TaskSpec, rng: np.random.Generator) -> SceneView:
        """The tool around the plate with the cube in its hand, when that is to be placed; or around the cube, the hand
        open or (most often when it is to be pushed) closed.
        """
        settings = self.config["at_objects"]
        held = task.kind == "place" and rng.random() < settings["held"]
        middle = view.objects[task.plate_name if held else task.cube_name][0]
        low, high = settings["height"]
        while True:
            around = middle[:2] + rng.uniform(-settings["spread"], settings["spread"], 2)
            position = np.array([*around, rng.uniform(low, high)])
            if held or position[2] > HAND_CLEAR_M or not _beside_a_cube(view, position):
                break
        width = 0.0 if rng.random() < settings["closed"][task.kind] else view.gripper_width
        if not held:
            return replace(view, position=position, gripper_width=width)
        cube = self.scene.objects.cubes.size
        slipped = rng.uniform(-settings["slip"], settings["slip"], 3)
        pose = (position + slipped, view.rotation @ TOOL_DOWN)
        objects = {**view.objects, task.cube_name: pose}
        return replace(view, position=position, gripper_width=cube, objects=objects)

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


def task_instruction(task: str, scene: SceneConfig) -> str:
    return TaskSpec.parse(task, scene).instruction


def _alike(view: SceneView, other: SceneView) -> bool:
    """Whether every object still stands where it stood."""
    return all(np.allclose(view.objects[name][0], other.objects[name][0], atol=MOVED_M) for name in view.objects)


def _beside_a_cube(view: SceneView, position: NDArray[np.float64]) -> bool:
    """Whether a hand that low would be in a cube."""
    cubes = [cube for name, (cube, _) in view.objects.items() if name.endswith("_cube")]
    return any(np.linalg.norm(cube[:2] - position[:2]) < BESIDE_M for cube in cubes)


def _numbered(look: Look, episode: int, number: int, instruction: str, steered: bool) -> Look:
    frame = replace(look.frame, episode=episode, frame=number, instruction=instruction, steered=steered)
    otherwise = look.otherwise and replace(look.otherwise, episode=episode, frame=number)
    return replace(look, frame=frame, otherwise=otherwise)


def _asked_otherwise(task: str, scene: SceneConfig) -> TaskSpec | None:
    """What else the same scene may be asked for: the other cube, the other side; None where there is only one."""
    kind, cube, second = task.split(":")
    if kind == "place":
        return None
    other = f"pick:{second}:{cube}" if kind == "pick" else f"push:{cube}:{next(s for s in SIDES if s != second)}"
    return TaskSpec.parse(other, scene)


def _intended(task: str, intention: str) -> str:
    """The task the operator does: with the other cube, the same scene is asked for the other of its cubes."""
    if intention != OTHER_CUBE:
        return task
    kind, cube, other = task.split(":")
    return f"{kind}:{other}:{cube}"


def _plan(
    planner: ScriptedOperator | WanderingOperator, operator: ScriptedOperator, view: SceneView, steps: int
) -> tuple[list[Step], list[NDArray[np.float64]]]:
    """At most `steps` clean steps from a view, and the TCP after each; what the planner remembers stays as it is."""
    planner = copy.deepcopy(planner)
    plan: list[Step] = []
    positions: list[NDArray[np.float64]] = []
    while len(plan) < steps and not operator.done(view):
        plan.append(planner.step(view))
        view = operator.imagine(view, plan[-1])
        positions.append(view.position)
    return plan, positions


def trace_of(path: NDArray[np.float64], camera: RgbdCamera, data: Any) -> NDArray[np.uint8]:
    """Positions [n, 3] in the base frame -> the trace [1..5, 2] on `camera`'s picture (paper, section 3.2)."""
    pixels = np.array([camera.project(point, data) for point in subsample_trace(list(path))])
    return np.clip(np.rint(pixels * _trace_scale(camera)), 0, 255).astype(np.uint8)


def _trace_scale(camera: RgbdCamera) -> NDArray[np.float64]:
    """[2], from pixels of a camera to a trace's 0..255."""
    return 255.0 / np.array([camera.intrinsics.width - 1, camera.intrinsics.height - 1])


def chunk_of(plan: list[Step], rows: int) -> NDArray[np.float32]:
    """The first `rows` steps [rows, 7]; a shorter plan ends by standing still with the gripper as it is.

    To hundredths of a millimetre and of a milliradian: a hand that stays upright would otherwise turn by rounding
    errors, and those would be stretched to the whole range of bins.
    """
    chunk = [np.concatenate([step.translation, step.rotation, [step.gripper]]) for step in plan[:rows]]
    stand_still = np.concatenate([np.zeros(6), [chunk[-1][6]]])
    return np.array(chunk + [stand_still] * (rows - len(chunk)), np.float32).round(5)


def _demonstrations(config: dict[str, Any], scene_file: Path, checkpoint: Path) -> PosedDemonstrations:
    embodiment = Embodiment.from_file(checkpoint / EMBODIMENT_FILE)
    return PosedDemonstrations(SceneConfig.load(scene_file), config["demonstrations"], embodiment)


def posed_pictures(config: dict[str, Any], scene_file: Path, checkpoint: Path) -> NDArray[np.uint8]:
    """Depth pictures to train the VQVAE on, [maps, size, size]: of the first episodes that make enough of them."""
    demonstrations = _demonstrations(config, scene_file, checkpoint)
    pictures: list[NDArray[np.uint8]] = []
    seed = config["demonstrations"]["first_seed"]
    while len(pictures) < config["depth_vqvae"]["maps"]:
        pictures.extend(look.depth for look in demonstrations.episode(seed))
        seed += 1
    return np.stack(pictures[: config["depth_vqvae"]["maps"]])


def write_shards(
    shards: list[int], config: dict[str, Any], scene_file: Path, checkpoint: Path, vqvae: Path, out: Path
) -> None:
    """Worker: writes the given shards that are not there yet."""
    demonstrations = _demonstrations(config, scene_file, checkpoint)
    encoder = DepthVQVAE.from_pretrained(vqvae)
    settings = config["demonstrations"]
    for shard in shards:
        if shard_path(out, shard).exists():
            continue
        first = settings["first_seed"] + shard * settings["episodes_per_shard"]
        seeds = range(first, first + settings["episodes_per_shard"])
        looks = [look for seed in seeds for look in demonstrations.episode(seed)]
        codes = encode_pictures(encoder, np.stack([look.depth for look in looks]))
        frames = [
            replace(frame, depth_codes=code)
            for look, code in zip(looks, codes, strict=True)
            for frame in (look.frame, look.otherwise)
            if frame is not None
        ]
        write_shard(out, shard, frames)
        print(f"{shard_path(out, shard).name}: {len(frames)} frames", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="config/training/nano.yaml")
    parser.add_argument("--scene", type=Path, required=True, help="config/scenes/tabletop.yaml")
    parser.add_argument("--checkpoint", type=Path, required=True, help="untrained checkpoint: its embodiment")
    parser.add_argument("--vqvae", type=Path, required=True, help="the depth VQVAE; trained first if it is not there")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--section", help="of the config: what replaces settings of `demonstrations`")
    arguments = parser.parse_args()
    config = yaml.safe_load(arguments.config.read_text())
    if arguments.section:
        config["demonstrations"] |= config[arguments.section]
    if not (arguments.vqvae / WEIGHTS_FILE).exists():
        pictures = posed_pictures(config, arguments.scene, arguments.checkpoint)
        train_vqvae(pictures, VQVAESettings.from_dict(config["depth_vqvae"]), arguments.vqvae)
    settings = config["demonstrations"]
    shards = list(range(-(-settings["episodes"] // settings["episodes_per_shard"])))
    workers = max(1, multiprocessing.cpu_count())
    context = multiprocessing.get_context("spawn")
    common = (config, arguments.scene, arguments.checkpoint, arguments.vqvae, arguments.out)
    processes = [
        context.Process(target=write_shards, args=(shards[worker::workers], *common)) for worker in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("posing demonstrations failed: see above")
    if not (arguments.out / ANNOTATION_FILE).exists():
        # The hand is always upright.
        described = {"arms": 1, ALLOW_CONSTANT: True, **settings}
        finish_dataset(arguments.out, "nano", arguments.checkpoint / EMBODIMENT_FILE, described)


if __name__ == "__main__":
    main()
