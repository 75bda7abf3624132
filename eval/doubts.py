"""What a reader should not take at face value: results below chance beyond their interval, and the likely cause."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .results import ResultRow
from .sources import headline

SHARE = 0.01
"""Items that tie or look the same are named as a cause from this share on."""


@dataclass(frozen=True)
class Doubt:
    """A headline of a row that lies below chance beyond its interval."""

    who: str
    metric: str
    value: float
    chance: float
    cause: str


def told(rows: Iterable[ResultRow]) -> list[str]:
    """A sentence for all rows that are doubted for the same reason."""
    found: dict[tuple[str, float, str], list[Doubt]] = {}
    for doubt in (doubt for row in rows for doubt in doubts(row)):
        found.setdefault((doubt.metric, doubt.chance, doubt.cause), []).append(doubt)
    return [
        f"{', '.join(f'{doubt.who}: {metric} {doubt.value:.1f}' for doubt in same)} "
        f"{'lie' if len(same) > 1 else 'lies'} below chance ({level:.1f}) beyond "
        f"{'their intervals' if len(same) > 1 else 'its interval'}: {cause}"
        for (metric, level, cause), same in found.items()
    ]


def doubts(row: ResultRow) -> list[Doubt]:
    """What is doubted of a row; [] for chance and random, which are chance, and for ties of the text-only row where
    telling images apart is asked, which it cannot do."""
    if row.role == "chance" or (row.role, row.label) == ("reference", "random"):
        return []
    chance = row.meta.get("chance", {})
    found = []
    for metric in headline(row.meta) if "metric" in row.meta else ():
        estimate, level = row.overall.metrics.get(metric), chance.get(metric)
        if estimate is None or estimate.value is None or estimate.high is None or level is None:
            continue
        if estimate.high >= level or (row.label == "text-only" and _blind(row, metric)):
            continue
        who = f"{row.label} ({row.backbone})" if row.backbone else row.label
        found.append(Doubt(who, metric, estimate.value, level, _cause(row, metric, estimate.high, level)))
    return found


def _blind(row: ResultRow, metric: str) -> bool:
    return row.meta.get("metric") in ("quads", "recall", "classification") or metric == "t2i"


def _cause(row: ResultRow, metric: str, high: float, level: float) -> str:
    """The first of the known causes that the row's own counts support."""
    n, tied, twins = row.overall.n, row.overall.ties or 0, row.overall.twins or 0
    half = row.overall.if_tied.get("half", {}).get(metric)
    if twins >= max(1, SHARE * n):
        cut = (row.meta.get("twins") or {}).get("cut", 0)
        context = (row.meta.get("twins") or {}).get("context", 0)
        why = f"{cut:,} are cut at its context of {context} tokens" if cut else "its tokenizer makes them equal"
        return f"{twins:,} of {n:,} items hold a right and a wrong candidate that the encoder cannot tell apart ({why})"
    if tied >= max(1, SHARE * n):
        rest = f"; with ties broken by tossing {half:.1f}" if half is not None else ""
        return f"{tied:,} of {n:,} items are ties, which are misses{rest}: a scorer that saturates or ignores a side"
    if row.meta.get("metric") == "quads":
        return (
            "one caption is preferred for both images, or one image for both captions, as where what tells them apart "
            "is not seen; all comparisons wrong would be swapped captions"
        )
    if row.overall.metrics[metric].value is not None and high < level / 2:
        return "wrong answers are preferred: right and wrong captions swapped, or a distance given for a similarity"
    if row.label == "text-only":
        return "the wrong captions are worded more like the rest than the right ones are"
    return (
        "no ties, so it prefers what is wrong: check the activation (QuickGELU) and the preprocessing of the weights, "
        "and that a head was fitted on this backbone; or the benchmark was made against such encoders"
    )


def ties_told(row: ResultRow) -> str:
    """One sentence on what the ties of a row are worth under every rule; "" where there is none to tell."""
    if row.role == "chance" or not row.overall.ties or row.label == "text-only" or not row.overall.if_tied:
        return ""
    parts = []
    for metric in row.overall.if_tied.get("half", {}):
        strict = row.overall.metrics[metric].value
        rules = [(name, row.overall.if_tied[name].get(metric)) for name in ("half", "win")]
        told = ", ".join(f"{name} {value:.1f}" for name, value in rules if value is not None)
        parts.append(f"{metric} {row.rule} {strict:.1f}, {told}" if strict is not None else f"{metric} {told}")
    twins = row.overall.twins
    same = f", {twins:,} of them between candidates that the encoder cannot tell apart" if twins else ""
    return f"Ties of {row.label}: {row.overall.ties:,}{same}; {'; '.join(parts)}"
