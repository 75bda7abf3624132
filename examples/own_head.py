"""A head of your own, from its file to a fair comparison: `heads/top_patches.py` and its recipe.

    python examples/own_head.py

A head outside the project goes by its dotted module path, here `heads.top_patches`; Python finds it because this
script's folder is where it looks first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import compal

HERE = Path(__file__).parent


def main(limit: int, steps: int, groups: int) -> compal.Report:
    """Two seeds of the head on `limit` quadruplets, judged on so many groups of each category."""
    compal.extract("shapes-vit", "shapes", limit=limit)
    runs = [
        compal.fit(
            HERE / "heads" / "top_patches.toml",
            settings={"optim.steps": steps, "validation.every": steps, "seed": seed},
            name=f"top-patches-s{seed}",
            resume=True,
        )
        for seed in (0, 1)
    ]
    report = compal.evaluate("shapes", split="in_domain", limit=groups, runs=runs, extract_missing=True)
    print(compal.report(report, seeds=True))
    found = report.compare("cosine", others=[run.run_dir.name for run in runs])
    for one in found:
        gap = one.difference
        print(
            f"{one.other}: {gap.value:+.1f} points [{gap.low:+.1f}, {gap.high:+.1f}] on {one.metric}, p {one.holm:.3f}"
        )
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=400, help="quadruplets of each split to fit on")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--groups", type=int, default=40, help="quadruplets of each category to judge")
    arguments = parser.parse_args()
    main(arguments.limit, arguments.steps, arguments.groups)
