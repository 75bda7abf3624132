"""What every benchmark owes: INFO, groups over its own items, constant scorer at 0, unknown names refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compal import registry
from compal.errors import UnknownName
from compal.eval import metrics, results
from compal.eval.references import random_scores
from compal.eval.sources import METRICS, Sources, check, sample_fingerprint

DATA = Path(__file__).parents[1] / "data"
NAMES = registry.names("benchmarks")


def paint(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.frombuffer(hashlib.sha512(path.name.encode()).digest() * 3, np.uint8).reshape(8, 8, 3)
    Image.fromarray(pixels).save(path, format="PNG")


def sugarcrepe(root: Path) -> None:
    shutil.copytree(DATA / "sugarcrepe", root, dirs_exist_ok=True)
    for file in root.glob("*.json"):
        for row in json.loads(file.read_text()).values():
            paint(root / "val2017" / row["filename"])


def bivlc(root: Path) -> None:
    lines = ["image,caption,negative_caption,negative_image,type,subtype"]
    for number in range(3):
        lines.append(f"pos_{number}.png,a dog {number},a cat {number},neg_{number}.png,swap,obj")
        paint(root / "images" / f"pos_{number}.png")
        paint(root / "images" / f"neg_{number}.png")
    (root / "rows.csv").write_text("\n".join(lines) + "\n")


def winoground(root: Path) -> None:
    lines = []
    for number in range(3):
        images = {f"image_{side}": f"ex_{number}_{side}" for side in (0, 1)}
        captions = {f"caption_{side}": f"caption {side} of {number}" for side in (0, 1)}
        lines.append(json.dumps({"id": number, **images, **captions}))
        for name in images.values():
            paint(root / "images" / f"{name}.png")
    (root / "examples.jsonl").write_text("\n".join(lines) + "\n")


# A benchmark without an entry here must need no files.
FILES = {"sugarcrepe": sugarcrepe, "bivlc": bivlc, "winoground": winoground}


def test_known_benchmarks_were_collected():
    assert {"shapes", "sugarcrepe", "bivlc", "winoground"} <= set(NAMES)


@pytest.fixture(params=NAMES)
def benchmark(request, tmp_path: Path):
    """(module, sources) of each benchmark, small."""
    name = request.param
    if name in FILES:
        FILES[name](tmp_path)
        return registry.load("benchmarks", name), Sources(root=tmp_path)
    return registry.load("benchmarks", name), Sources(limit=2)


def test_info_says_what_a_reader_must_know(benchmark):
    info = benchmark[0].INFO
    for field in ("title", "metric", "citation", "licence", "url"):
        assert isinstance(info[field], str)
        assert info[field].strip()
    assert info["metric"] in METRICS
    # Benchmarks on files say which to put where: their errors end with it.
    assert info.get("files") or benchmark[1].root is None
    names = set(metrics.quads(np.zeros((0, 2, 2)))) if info["metric"] == "quads" else {"accuracy"}
    if info["metric"] != "recall":
        assert set(info["chance"]) == names - {"n", "ties"}
    assert all(0 < value < 100 for value in info["chance"].values())


def test_groups_fit_their_metric_and_refer_to_items(benchmark):
    module, sources = benchmark
    groups = check(list(module.groups(sources)), module.INFO["metric"])
    items = list(module.items(sources))
    kinds = {kind: {item.key for item in items if item.kind == kind} for kind in ("image", "text")}
    assert {key for group in groups for key in group.images} <= kinds["image"]
    assert {key for group in groups for key in group.captions} <= kinds["text"]
    assert all(item.source for item in items)


def test_groups_are_the_same_twice(benchmark):
    module, sources = benchmark
    one, other = (sample_fingerprint(module.groups(sources)) for _ in range(2))
    assert one == other


def test_pools_and_averages_name_categories(benchmark):
    module, sources = benchmark
    pools, averages = getattr(module, "POOLS", {}), getattr(module, "AVERAGES", {})
    known = {member for members in pools.values() for member in members}
    assert not set(pools) & known
    for members in averages.values():
        assert set(members) <= set(pools) | known | {group.category for group in module.groups(sources)}


def summary(module, groups, values):
    meta = {
        "metric": module.INFO["metric"],
        "ks": module.INFO.get("ks", (1,)),
        "pools": {},
        "averages": {},
        "seed": 0,
    }
    return results.summarise(results.table(groups, values, meta["metric"]), meta)[0]


def test_a_constant_scorer_scores_nothing(benchmark):
    module, sources = benchmark
    groups = list(module.groups(sources))
    cells = sum(len(group.images) * len(group.captions) for group in groups)
    found = summary(module, groups, np.ones(cells, np.float32))
    assert {estimate.value for estimate in found.metrics.values()} == {0.0}
    assert found.ties == found.n > 0


def test_a_perfect_scorer_scores_everything(benchmark):
    module, sources = benchmark
    groups = list(module.groups(sources))
    truth = np.array([value for group in groups for row in group.truth for value in row], np.float32)
    found = summary(module, groups, truth)
    assert {estimate.value for estimate in found.metrics.values()} == {100.0}
    assert found.ties == 0


def test_random_scores_are_within_their_interval_of_chance(benchmark):
    """On copies of the groups under other keys, 1,200 quads in all, so that small excerpts suffice."""
    module, sources = benchmark
    originals = list(module.groups(sources))
    cells = sum(len(group.images) * len(group.captions) for group in originals)
    groups = [
        dataclasses.replace(
            group,
            id=f"{group.id}/{copy}",
            images=tuple(f"{key}/{copy}" for key in group.images),
            captions=tuple(f"{key}/{copy}" for key in group.captions),
        )
        for group in originals
        for copy in range(-(-4800 // cells))
    ]
    score_keys = random_scores(0)
    values = [
        score_keys(group.images, group.captions, np.indices(np.shape(group.truth)).reshape(2, -1).T) for group in groups
    ]
    found = summary(module, groups, np.concatenate(values))
    for name, chance in module.INFO["chance"].items():
        estimate = found.metrics[name]
        # A 95 % interval misses once in 20; twice its half width misses once in 10,000.
        spread = estimate.high - estimate.low
        assert estimate.value == pytest.approx(chance, abs=spread)


def test_an_unknown_split_is_refused(benchmark):
    module, sources = benchmark
    wrong = dataclasses.replace(sources, split="no-such-split")
    with pytest.raises(UnknownName):
        list(module.groups(wrong)) if "splits" in module.INFO else wrong.check_split("it", module.INFO)


def test_an_unknown_benchmark_names_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'sugarcrepe'"):
        registry.load("benchmarks", "sugarcrape")
