"""Scorer × benchmark → saved rows, the references beside them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from .. import registry
from ..config import fingerprint
from ..errors import MissingFeatures
from . import audit, outcomes, provenance, references, results, retrieval, scoring, streamed, within
from .results import ResultRow
from .sources import Group, Sources, check

if TYPE_CHECKING:
    from ..stores.store import Store


@dataclass(frozen=True)
class Options:
    """How to score; nothing here changes a figure beyond rounding.

    device        where heads are scored
    references    which rows of `references.NAMES` to score beside them
    pairs_at_once (image, caption) pairs a head that reads tokens sees at once
    command       the command line to record; "" records sys.argv
    provenance    label → what else to record of a scorer (run, checkpoint, configuration)
    progress      called with (label, groups done, groups in all)
    rerank        score the candidates of retrieval only, by every scorer but the one that finds them
    """

    device: str = "cpu"
    references: tuple[str, ...] = references.NAMES
    pairs_at_once: int = 256
    command: str = ""
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)
    progress: Callable[[str, int, int], None] | None = None
    rerank: retrieval.Rerank | None = None


def evaluate(
    benchmark_name: str,
    sources: Sources,
    store: Store,
    scorers: dict[str, Any],
    out: Path,
    seed: int = 0,
    options: Options | None = None,
) -> list[ResultRow]:
    """Score a benchmark and save one folder per row, `out`/<benchmark>/<row>; return the rows of its table.

    scorers  label → `align` Scorer, or a function of keys (`references.KeyScorer`)
    seed     of the random row and of the bootstrap
    Scores are compared and kept in float32. Raises `UnknownName`, `InputError` (files, groups, a NaN score),
    `MissingFeatures`, `SpecMismatch`; nothing is saved for a scorer that fails.
    """
    options = options or Options()
    # Its own lists: one `Sources` may serve several splits, and each row names what was left out of its own.
    given, sources = sources, dataclasses.replace(sources, excluded={}, notes={})
    module = registry.load("benchmarks", benchmark_name)
    name = benchmark_name.rpartition(".")[2]
    metric = str(module.INFO["metric"])
    if options.rerank:
        retrieval.check(name, metric, options.rerank.index)
    sources.check_choices(name, module.INFO)
    groups = available(check(list(module.groups(sources)), metric), store, sources, name)
    beside = within.figures(module, store, sources) if "cosine" in options.references else {}
    given.excluded.update(sources.excluded)
    given.notes.update(sources.notes)
    captions = list(dict.fromkeys(key for group in groups for key in group.captions))
    rows: dict[str, tuple[str, Any]] = {
        label: ("reference", references.reference(label, store, captions, seed)) for label in options.references
    }
    rows |= {label: ("scorer", scorer) for label, scorer in scorers.items()}
    judges = {
        label: scoring.judge(label, scorer, store, options.device, options.pairs_at_once)
        for label, (_, scorer) in rows.items()
    }
    twins = audit.twins(groups, store, metric)
    shared = provenance.shared(name, module, sources, store, groups, seed, options.command) | beside
    shared["twins"] = audit.told(groups, twins, store)
    saved = []
    for order, (label, (role, scorer)) in enumerate(rows.items()):
        # Random scores depend on no backbone: the row is one for all, and so it looks at no twins.
        blind = (role, label) == ("reference", "random")
        told = provenance.describe(scorer) | options.provenance.get(label, {}) if role == "scorer" else {}
        own: dict[str, Any] = {"store": None, "twins": {}} if blind else {}
        meta = shared | {"label": label, "role": role, "order": order, "scorer": told} | own
        if role == "scorer" and options.rerank and label != options.rerank.candidates:
            saved += _reranked(groups, judges[label], store, options, meta, out)
            continue
        found = _scored(groups, judges[label], label, module.INFO, options, None if blind else twins)
        saved.append(results.save(_folder(out, meta), found, meta))
    return results.with_chance(results.row_of(folder) for folder in saved)


def _scored(
    groups: list[Group], judge: scoring.Judge, label: str, info: dict[str, Any], options: Options, twins: Any
) -> pa.Table:
    """The rows to save of one scorer."""
    metric, tell = str(info["metric"]), options.progress

    def tick(done: int) -> None:
        if tell:
            tell(label, done, len(groups))

    if metric in outcomes.MATRICES:
        parts = []
        for done, group in enumerate(groups, 1):
            if metric == "recall" and streamed.fits(group, judge):
                parts.append(streamed.ranked(group, judge))
            else:
                parts.append(outcomes.ranked(group, scoring.matrix(group, judge, label), metric))
            tick(done)
        return pa.concat_tables(parts)
    values = scoring.score_groups(groups, judge, label, tick)
    texts = scoring.text_similarities(groups, judge) if "tot" in info.get("text_metrics", ()) else None
    return outcomes.table(groups, values, metric, texts, twins)


def _reranked(
    groups: list[Group], judge: scoring.Judge, store: Store, options: Options, meta: dict[str, Any], out: Path
) -> list[Path]:
    """The folders of a scorer's rows, one for every number of candidates."""
    plan = options.rerank
    assert plan is not None
    how = {"device": options.device, "seed": meta["seed"], "progress": options.progress}
    saved = []
    for row in retrieval.reranked(groups, judge, meta["label"], store, plan, how):
        asked = {"rerank": {"k": row.facts["rerank"], "candidates": plan.candidates, "index": plan.index}}
        own = meta | {"label": row.label, "scorer": meta["scorer"] | asked, "retrieval": row.facts}
        saved.append(results.save(_folder(out, own), row.rows, own))
    return saved


def available(groups: list[Group], store: Store, sources: Sources, benchmark: str) -> list[Group]:
    """The groups whose features are in the store.

    Raises `MissingFeatures` that counts what lacks and names the command that adds it. What extraction could
    not read is in the store's quarantine; its groups are left out and listed if `sources.allow_missing`.
    """
    have = {kind: store.keys(kind) for kind in ("image", "text")}
    wanted = {
        "image": {key for group in groups for key in group.images},
        "text": {key for group in groups for key in group.captions},
    }
    lacking = {kind: wanted[kind] - have[kind] for kind in wanted}
    absent = lacking["image"] | lacking["text"]
    if not absent:
        return groups
    quarantined = {row.key: row for row in store.quarantined() if row.key in absent}
    if sources.allow_missing and len(quarantined) == len(absent):
        for group in groups:
            for key in sorted(_of(group) & absent):
                sources.excluded[group.id] = f"{quarantined[key].source}: {quarantined[key].reason}"
        whole = [group for group in groups if not _of(group) & absent]
        if whole:
            return whole
    counts = [
        f"{len(lacking[kind]):,} of {len(wanted[kind]):,} {word}"
        for kind, word in (("image", "images"), ("text", "captions"))
        if lacking[kind]
    ]
    what = f"the store {store.path} lacks {' and '.join(counts)} of benchmark '{benchmark}'"
    if quarantined:
        first = next(iter(quarantined.values()))
        what += f"; {len(quarantined):,} could not be read at extraction (first: {first.source}: {first.reason})"
    if len(quarantined) == len(absent):
        raise MissingFeatures(what, "Replace the files, or leave their rows out with --allow-missing.")
    add = f"compal extract --backbone {store.spec.backbone} --benchmark {benchmark}"
    raise MissingFeatures(what, f"Add them with `{add}` or `compal eval {benchmark} --extract`.")


def _of(group: Group) -> set[str]:
    return {*group.images, *group.captions}


def _folder(out: Path, meta: dict[str, Any]) -> Path:
    """The row's folder: its label, and 12 digits of what makes it another row than one of the same label."""
    kept = {key: meta[key] for key in ("benchmark", "split", "sample", "label", "role", "seed", "scorer")}
    kept["store"] = (meta["store"] or {}).get("fingerprint")
    slug = re.sub(r"[^a-z0-9]+", "-", meta["label"].lower()).strip("-")[:40]
    name = str(meta["benchmark"])
    return out / name / f"{slug}-{fingerprint(kept)[:12]}"
