"""What every benchmark owes: INFO, groups over its own items, constant scorer at 0, unknown names refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import layouts
import numpy as np
import parts
import pytest

from compal import registry
from compal.errors import UnknownName
from compal.eval import results
from compal.eval.references import random_scores
from compal.eval.sources import KS, METRICS, TIE_RULES, Sources, check, headline, sample_fingerprint

NAMES = parts.names("benchmarks")


def test_known_benchmarks_were_collected():
    assert {"shapes", "sugarcrepe", "bivlc", "winoground"} <= set(registry.names("benchmarks"))


@pytest.fixture(params=NAMES)
def benchmark(request, tmp_path: Path):
    """(module, sources) of each benchmark, small."""
    name, root = registry.split_argument(request.param)
    if root:
        return registry.load("benchmarks", name), Sources(root=Path(root))
    if layouts.exists(name):
        layouts.write(name, tmp_path)
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
    assert info["revision"].strip()
    assert info["tie_rule"] in TIE_RULES
    assert all(sentence.strip() and " " not in name for name, sentence in info.get("variants", {}).items())
    assert set(info.get("text_metrics", ())) <= ({"tot"} if info["metric"] == "positives" else set())


FIGURES = {
    "pairs": {"accuracy"},
    "quads": {"i2t", "t2i", "group"},
    "positives": {"itt", "p1_neg", "p2_neg"},
    "classification": {"top1", "top5", "mean_per_class"},
}


def test_chance_and_headline_are_of_metrics_that_are_scored(benchmark):
    """Chance may be left out of retrieval and classification: it follows from the groups there."""
    module, sources = benchmark
    info = module.INFO
    if info["metric"] == "recall":
        names = {f"{way}_r@{k}" for way in ("i2t", "t2i") for k in info.get("ks", KS)}
    else:
        names = FIGURES[info["metric"]] | set(info.get("text_metrics", ()))
        names |= {name for group in module.groups(sources) for name, _ in group.sets}
    if info["metric"] in ("recall", "classification"):
        assert set(info["chance"]) <= names
    else:
        assert set(info["chance"]) == names
    assert set(headline(info)) <= names
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
    cells = sum(group.right().size for group in groups)
    found = summary(module, groups, np.ones(cells, np.float32))
    assert {estimate.value for estimate in found.metrics.values()} == {0.0}
    assert found.ties == found.n > 0


def test_a_perfect_scorer_scores_everything(benchmark):
    module, sources = benchmark
    groups = list(module.groups(sources))
    truth = np.concatenate([group.right().ravel() for group in groups]).astype(np.float32)
    found = summary(module, groups, truth)
    assert {estimate.value for estimate in found.metrics.values()} == {100.0}
    assert found.ties == 0


def test_random_scores_are_within_their_interval_of_chance(benchmark):
    """On copies of the groups under other keys, 1,200 quads in all, so that small excerpts suffice."""
    module, sources = benchmark
    originals = list(module.groups(sources))
    cells = sum(group.right().size for group in originals)
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
        score_keys(group.images, group.captions, np.indices(group.right().shape).reshape(2, -1).T) for group in groups
    ]
    found = summary(module, groups, np.concatenate(values))
    of_texts = module.INFO.get("text_metrics", ())  # between captions, of which a table of image scores knows nothing
    for name, chance in module.INFO["chance"].items():
        if name in of_texts:
            continue
        estimate = found.metrics[name]
        # A 95 % interval misses once in 20; twice its half width misses once in 10,000.
        spread = estimate.high - estimate.low
        assert estimate.value == pytest.approx(chance, abs=spread)


def test_an_unknown_split_is_refused(benchmark):
    module, sources = benchmark
    wrong = dataclasses.replace(sources, split="no-such-split")
    with pytest.raises(UnknownName):
        list(module.groups(wrong)) if "splits" in module.INFO else wrong.check_choices("it", module.INFO)


def test_an_unknown_benchmark_names_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'sugarcrepe'"):
        registry.load("benchmarks", "sugarcrape")


def test_an_unknown_variant_is_refused(benchmark):
    module, sources = benchmark
    with pytest.raises(UnknownName, match="no-such-variant"):
        dataclasses.replace(sources, variant="no-such-variant").check_choices("it", module.INFO)
