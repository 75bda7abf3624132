"""How fast the embedded world is made: scenes, captions and 64 px pictures, on one core.

    python benchmarks/world.py            # 2,000 plain scenes and 500 quadruplets, seconds
    python benchmarks/world.py --full     # all 20,000 scenes of the pretraining split

The limit beside it is the same number of 64 × 64 × 3 pictures copied by numpy.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable

import numpy as np

from compal.world.render import render
from compal.world.splits import plain, quad


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    scenes = 20_000 if args.full else 2_000
    made = [None] * scenes
    picture = render(plain("train", 0)[0])

    def make() -> None:
        for number in range(scenes):
            made[number] = plain("train", number)

    figures = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}",
        "scenes": scenes,
        "scenes and captions, CPU s": round(seconds(make), 2),
        "pictures, CPU s": round(seconds(lambda: [render(scene) for scene, _ in made]), 2),
        "copies of a picture, CPU s": round(seconds(lambda: [picture.copy() for _ in range(scenes)]), 3),
        "500 quadruplets, CPU s": round(seconds(lambda: [quad("train", number) for number in range(500)]), 2),
    }
    if args.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<28} {value}")


if __name__ == "__main__":
    main()
