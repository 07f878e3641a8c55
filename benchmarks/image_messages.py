"""Image message to array and back: time, and bytes allocated compared with the message itself.

The way in must allocate nothing (a view of the message), the way out one copy (the message). Writes
benchmarks/results/image_messages.json.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from molmoact_ros.images import array_to_image, image_to_array

WIDTH, HEIGHT = 640, 480
# encoding -> picture
PICTURES = {
    "rgb8": np.zeros((HEIGHT, WIDTH, 3), np.uint8),
    "bgr8": np.zeros((HEIGHT, WIDTH, 3), np.uint8),
    "mono8": np.zeros((HEIGHT, WIDTH), np.uint8),
    "16UC1": np.zeros((HEIGHT, WIDTH), np.uint16),
    "32FC1": np.zeros((HEIGHT, WIDTH), np.float32),
}


def measured(call: Callable[[], object], repetitions: int) -> dict[str, float]:
    """Time of one call in ms, and the largest number of bytes that were allocated at one moment of it."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    tracemalloc.start()
    result = call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del result
    median, p99 = np.percentile(times, (50, 99))
    return {"median_ms": round(float(median), 4), "p99_ms": round(float(p99), 4), "allocated_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "image_messages.json")
    options = parser.parse_args()
    results = {}
    for encoding, picture in PICTURES.items():
        message = array_to_image(picture, encoding)
        results[encoding] = {
            "message_bytes": len(message.data),
            "message_to_array": {
                "is_view": bool(np.shares_memory(image_to_array(message), np.frombuffer(message.data, np.uint8))),
                **measured(lambda message=message: image_to_array(message), options.repetitions),
            },
            "array_to_message": measured(
                lambda picture=picture, encoding=encoding: array_to_image(picture, encoding), options.repetitions
            ),
        }
        print(encoding, json.dumps(results[encoding]))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"width": WIDTH, "height": HEIGHT, "encodings": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
