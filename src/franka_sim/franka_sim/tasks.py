"""The tasks: what each puts on the table, what it is called in words, and when the physics say it is done.

Left and right are the robot's: left is +y of its base frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from franka_sim.errors import TaskError
from franka_sim.scene import PARKING, Area, SceneConfig

KINDS = ("pick", "place", "push")
SIDES = ("left", "right")
LAYOUT_ATTEMPTS = 1000


@dataclass(frozen=True)
class TaskSpec:
    """One task: `kind` pick | place | push, the cube, and the plate (place, push) and side (push) that go with it.

    other_cubes: the colours of the cubes that stand beside it and are not asked for.
    """

    kind: str
    cube: str
    plate: str | None
    side: str | None
    other_cubes: tuple[str, ...]
    instruction: str

    @classmethod
    def parse(cls, text: str, config: SceneConfig) -> TaskSpec:
        """From "pick", "pick:blue", "pick:blue:green" (with a green one beside it), "place:red:blue", "push:red:left".

        What is left out is the scene file's default. Raises TaskError naming what the scene does not have.
        """
        kind, *given = text.strip().split(":")
        if kind not in KINDS:
            raise TaskError(f"task {text!r}: {kind!r} is not one of {', '.join(KINDS)}")
        task = getattr(config.tasks, kind)
        accepted = len(task.defaults) + (kind == "pick")
        if len(given) > accepted:
            raise TaskError(f"task {text!r}: {len(given)} arguments, at most {accepted} expected")
        arguments = [*given, *task.defaults[len(given) :]]
        colours = config.objects.cubes.colours
        cube = _one_of(text, "cube", arguments[0], colours)
        others = tuple(colour for colour in colours if colour != cube)[: task.other_cubes]
        plate = side = None
        if kind == "pick" and len(given) > 1:
            others = (_one_of(text, "other cube", given[1], tuple(colour for colour in colours if colour != cube)),)
        if kind == "place":
            plate = _one_of(text, "plate", arguments[1], config.objects.plates.colours)
        if kind == "push":
            plate, side = task.plate, _one_of(text, "side", arguments[1], SIDES)
        instruction = task.instruction.format(cube=cube, plate=plate, side=side)
        return cls(kind, cube, plate, side, others, instruction)

    @property
    def cube_name(self) -> str:
        """The cube's name among the scene's objects."""
        return f"{self.cube}_cube"

    @property
    def plate_name(self) -> str:
        """The plate's name among the scene's objects."""
        return f"{self.plate}_plate"

    @property
    def direction(self) -> float:
        """+1 for left (+y), -1 for right."""
        return 1.0 if self.side == "left" else -1.0


@dataclass(frozen=True)
class Placement:
    """Where an object stands: position [3] m in the world (cubes: centre; dishes: foot) and yaw rad."""

    position: np.ndarray
    yaw: float


@dataclass(frozen=True)
class Facts:
    """What the physics say about the task's objects, world frame."""

    cube: np.ndarray  # [3] centre
    plate: np.ndarray | None  # [3] foot
    cube_touches_fingers: int  # how many fingers
    cube_touches_plate: bool
    cube_speed: float  # m/s
    highest_cube: float  # m, centre, since the reset
    other_cubes_lifted: tuple[str, ...] = ()  # colours of those that were picked up since the reset


def sample_layout(spec: TaskSpec, config: SceneConfig, rng: np.random.Generator) -> dict[str, Placement]:
    """Placements of the objects the task uses; drawn again until no two are closer than the task's separation.

    Which of its cubes is asked for makes no difference: "pick:red:blue" and "pick:blue:red" look the same.
    """
    task = getattr(config.tasks, spec.kind)
    half = config.objects.cubes.size / 2
    cubes = [colour for colour in config.objects.cubes.colours if colour in (spec.cube, *spec.other_cubes)]
    wanted: list[tuple[str, Area, float, float]] = []
    if spec.plate is not None:
        wanted.append((spec.plate_name, task.plate_area, 0.0, 0.0))
    wanted += [(f"{colour}_cube", task.cube_area, half, task.cube_yaw) for colour in cubes]
    bowls = config.objects.bowls.colours[: task.other_bowls]
    wanted += [(f"{colour}_bowl", task.cube_area, 0.0, 0.0) for colour in bowls]
    for _ in range(LAYOUT_ATTEMPTS):
        placements = {name: _draw(area, height, yaw, rng) for name, area, height, yaw in wanted}
        if _separated(list(placements.values()), task.separation):
            return placements
    raise TaskError(f"tasks.{spec.kind}: no room for {len(wanted)} objects {task.separation} m apart")


def parked(index: int) -> Placement:
    """Where object number `index` waits, out of everybody's sight."""
    return Placement(PARKING + np.array([0.0, 0.3 * index, 0.0]), 0.0)


def judge(spec: TaskSpec, config: SceneConfig, facts: Facts) -> tuple[bool, str]:
    """(whether the task's condition holds at this moment, what there is to see, for a person to read)."""
    holds, detail = {"pick": _judge_pick, "place": _judge_place, "push": _judge_push}[spec.kind](spec, config, facts)
    if facts.other_cubes_lifted:
        detail += f"; the {' and the '.join(facts.other_cubes_lifted)} cube was lifted"
    return bool(holds), detail


def _judge_pick(spec: TaskSpec, config: SceneConfig, facts: Facts) -> tuple[bool, str]:
    lifted = facts.cube[2] - config.objects.cubes.size / 2
    held = facts.cube_touches_fingers == 2
    detail = f"{spec.cube} cube {100 * lifted:.0f} cm above the table, {'held' if held else 'not held'}"
    return held and lifted >= config.tasks.pick.lift, detail


def _judge_place(spec: TaskSpec, config: SceneConfig, facts: Facts) -> tuple[bool, str]:
    assert facts.plate is not None
    offset = math.dist(facts.cube[:2], facts.plate[:2])
    released = facts.cube_touches_fingers == 0
    at_rest = facts.cube_touches_plate and facts.cube_speed < 0.02
    detail = (
        f"{spec.cube} cube {100 * offset:.0f} cm from the middle of the {spec.plate} plate, "
        f"{'on it' if facts.cube_touches_plate else 'not on it'}, {'released' if released else 'held'}"
    )
    return offset < config.objects.plates.radius and at_rest and released, detail


def _judge_push(spec: TaskSpec, config: SceneConfig, facts: Facts) -> tuple[bool, str]:
    assert facts.plate is not None
    half = config.objects.cubes.size / 2
    lifted = facts.highest_cube > half + 0.015
    beside = spec.direction * (facts.cube[1] - facts.plate[1])
    goal = config.objects.plates.radius + half + config.tasks.push.margin
    on_table = abs(facts.cube[2] - half) < 0.005
    detail = (
        f"{spec.cube} cube {100 * beside:.0f} cm to the {spec.side} of the plate's middle, {100 * goal:.0f} cm wanted"
    )
    if lifted:
        detail += "; it was lifted, not pushed"
    return beside >= goal and on_table and not lifted and facts.cube_speed < 0.02, detail


def _one_of(text: str, what: str, name: str, known: tuple[str, ...]) -> str:
    if name not in known:
        raise TaskError(f"task {text!r}: {what} {name!r} is not in the scene ({', '.join(known)})")
    return name


def _draw(area: Area, height: float, yaw: float, rng: np.random.Generator) -> Placement:
    (x_from, x_to), (y_from, y_to) = area
    position = np.array([rng.uniform(x_from, x_to), rng.uniform(y_from, y_to), height])
    return Placement(position, rng.uniform(-yaw, yaw))


def _separated(placements: list[Placement], separation: float) -> bool:
    return all(
        math.dist(a.position[:2], b.position[:2]) >= separation
        for i, a in enumerate(placements)
        for b in placements[:i]
    )
