"""What a simulated second costs without ROS: physics with control for one and two arms, a 640x480 picture per camera.

Costs are CPU time of this process, so that other work on the machine distorts them little; 1 kHz needs more than 1000
steps per second. Writes benchmarks/results/simulator_core.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from franka_sim.cameras import RgbdCamera
from franka_sim.scene import SceneConfig
from franka_sim.simulation import Simulation

HERE = Path(__file__).resolve().parent
ARMS = {"one arm": ("",), "two arms": ("left/", "right/")}
SIZE = (640, 480)
BLOCK = 100  # steps per call


def cpu_seconds(work: Callable[[], object], repetitions: int) -> float:
    """Mean CPU time of one call, after one to warm up."""
    work()
    start = time.process_time()
    for _ in range(repetitions):
        work()
    return (time.process_time() - start) / repetitions


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scene", type=Path, default=HERE.parent / "config/scenes/tabletop.yaml")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--output", type=Path, default=HERE / "results/simulator_core.json")
    arguments = parser.parse_args()
    scene = SceneConfig.load(arguments.scene)
    result: dict[str, dict[str, float]] = {"steps_per_cpu_second": {}, "frame_cpu_ms": {}}
    for name, prefixes in ARMS.items():
        simulation = Simulation(scene, prefixes)
        simulation.reset("place", 0)
        cost = cpu_seconds(partial(simulation.step, BLOCK), arguments.steps // BLOCK) / BLOCK
        result["steps_per_cpu_second"][name] = round(1.0 / cost)
    simulation = Simulation(scene)
    simulation.reset("place", 0)
    data = simulation.copy_data()
    for name in scene.cameras:
        with RgbdCamera(simulation.model, name, *SIZE) as camera:
            for what, render in (("colour", camera.colour), ("colour and depth", camera.render)):
                cost = cpu_seconds(partial(render, data), arguments.frames)
                result["frame_cpu_ms"][f"{name}, {what}"] = round(1000 * cost, 2)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
