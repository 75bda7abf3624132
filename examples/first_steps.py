"""The three stages from Python, and a report: extract → fit → evaluate → report on the embedded world.

    python examples/first_steps.py                              # two minutes on two cores
    python examples/first_steps.py --limit 20 --steps 5         # only to see that it runs

Everything lies in ./compal-work, or where compal.toml says. What is there already is taken as it is.
"""

from __future__ import annotations

import argparse
import sys

import compal


def told(what: str, done: int, total: int) -> None:
    """A progress callback; compal itself prints nothing."""
    if done == total:
        print(f"{what}: {done:,}", file=sys.stderr)


def main(limit: int, steps: int, groups: int) -> compal.Report:
    """Fit on `limit` quadruplets of each split for so many steps; judge on so many groups of each category."""
    for summary in compal.extract("shapes-vit", "shapes", limit=limit, progress=told):
        print(summary)

    settings = {"optim.steps": steps, "data.batch_size": 32, "validation.every": steps}
    run = compal.fit("tflocal-shapes", settings=settings, resume=True)
    print(run)

    report = compal.evaluate(
        "shapes", split="in_domain", limit=groups, runs=[run, "shipped:tflocal"], labels={run.run_dir.name: "mine"},
        extract_missing=True, progress=told,
    )  # fmt: skip
    print(report)
    print(report.compare("cosine", others=("mine", "tflocal")))
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=400, help="quadruplets of each split to fit on")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--groups", type=int, default=40, help="quadruplets of each category to judge")
    arguments = parser.parse_args()
    main(arguments.limit, arguments.steps, arguments.groups).html("report.html")
