"""Evaluation as a function: heads and runs on a benchmark, from cached features."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import registry
from ..errors import InputError, UnknownName, UsageError
from ..workspace import Workspace
from .choices import Features, Place, Run, listed, store_named, workspace_of
from .extraction import Ticker, asking, of_benchmark
from .stored import store_of

if TYPE_CHECKING:
    from ..align.scorer import Scorer
    from ..eval.results import ResultRow
    from ..eval.retrieval import Rerank
    from ..eval.sources import Sources
    from ..stores.spec import FeatureSpec
    from ..stores.store import Store
    from .reporting import Report


@dataclass(frozen=True)
class Entry:
    """One row to score: its label and the scorer's origin."""

    label: str
    scorer: Scorer
    origin: dict[str, Any] = field(default_factory=dict)


def scorers(store: Store, heads: Sequence[str], runs: Sequence[str], workspace: Workspace, device: str) -> list[Entry]:
    """Training-free heads by name, and fitted ones by run id or by a checkpoint's path.

    Raises `UnknownName` for a head or run that does not exist, `InputError` for a head that must be fitted
    first, `SpecMismatch` for a checkpoint of another backbone.
    """
    if not heads and not runs:
        return []  # the references need no torch, whose import takes longer than scoring them
    from ..align.checkpoint import load_scorer
    from ..align.scorer import Dims, build_head
    from ..eval.provenance import recipe_of

    found = []
    for head in heads:
        scorer = build_head(head, {}, Dims.of(store.spec)).to(device)
        if scorer.trainable:
            raise InputError(f"head '{head}' must be fitted before it can score", f"Fit it: compal fit {head}")
        found.append(Entry(head, scorer))
    for run in runs:
        path = checkpoint(run, workspace)
        scorer = load_scorer(path, store.spec, device)
        label = path.stem if path.parent.name != "checkpoints" else path.parent.parent.name
        if run.startswith("hf:"):  # its folder in the hub's cache is a commit
            label = run.removeprefix("hf:").partition("@")[0].rpartition("/")[2]
        found.append(Entry(label, scorer, {"checkpoint": str(path), **recipe_of(path)}))
    return found


def checkpoint(run: str, workspace: Workspace) -> Path:
    """A run id, a run folder, a shipped head (`shipped:tflocal`), a run on the Hugging Face hub (`hf:ORG/NAME`, with
    `@REVISION`) or a .safetensors file → the checkpoint's file.

    Raises `UnknownName`, and what `publish.hub.fetch` raises."""
    if run.startswith("hf:"):
        from ..publish import hub

        return hub.fetch(run.removeprefix("hf:")) / "checkpoints" / "best.safetensors"
    if run.startswith("shipped:"):
        shipped = registry.ROOT / "assets" / "heads" / f"{run.removeprefix('shipped:')}.safetensors"
        if not shipped.is_file():
            known = [f"shipped:{path.stem}" for path in shipped.parent.glob("*.safetensors")]
            raise UnknownName.among("shipped head", run, known)
        return shipped
    for folder in (workspace.runs / run, Path(run)):
        if (folder / "checkpoints" / "best.safetensors").is_file():
            return folder / "checkpoints" / "best.safetensors"
    if run.endswith(".safetensors") and Path(run).is_file():
        return Path(run)
    raise UnknownName.among("run", run, [path.name for path in workspace.list_runs()], "Fit one: compal fit tflocal")


def open_scorer(
    head: Run, backbone: Features = "", *, level: str = "tokens", device: str = "cpu", workspace: Place = None
) -> Scorer:
    """A head over the features of a store, ready to score: `scorer.score(batch)` (I, C) float32, `score_pairs`,
    `alignment`; `align.batches.join(store, images, captions)` makes batches.

    head      a training-free head by name (cosine, maxsim, …), or a fitted one: a run by id or folder, what `fit`
              returned, `shipped:NAME`, or a .safetensors file
    backbone  whose features it reads, or their store; "" is the backbone used last
    level     of the store: pooled, tokens, block:-K or regions
    device    where it scores: cpu, cuda, cuda:1, mps
    Raises `UnknownName` for a head or run that does not exist, `InputError` for a head that must be fitted first,
    `SpecMismatch` for one that was fitted on other features, `MissingFeatures` without a store.
    """
    workspace = workspace_of(workspace)
    store, spec, _ = store_named(backbone, level, "float16", workspace)
    name = named(head)
    free = isinstance(head, str) and (head in registry.names("heads") or _dotted(head))
    (entry,) = scorers(
        store or store_of(spec, workspace), [name] if free else [], [] if free else [name], workspace, device
    )
    return entry.scorer.eval()


def _dotted(name: str) -> bool:
    return "." in name and "/" not in name and not name.endswith(".safetensors")


def named(run: Run) -> str:
    """A run as `checkpoint` takes it."""
    return os.fspath(run) if isinstance(run, str | os.PathLike) else str(run.run_dir)


def evaluate(
    benchmark: str,
    *,
    heads: str | Iterable[str] = (),
    runs: Run | Iterable[Run] = (),
    backbone: Features = "",
    level: str = "tokens",
    root: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    variant: str | None = None,
    allow_missing: bool = False,
    sources: Sources | None = None,
    extract_missing: bool = False,
    rerank: Rerank | int | str | None = None,
    candidates: str = "cosine",
    index: str = "flat",
    device: str = "cpu",
    seed: int = 0,
    labels: Mapping[str, str] | None = None,
    references: Sequence[str] | None = None,
    remember: bool = True,
    workspace: Place = None,
    progress: Ticker | None = None,
    extracting: Ticker | None = None,
) -> Report:
    """Score a benchmark from cached features, beside chance, random, text-only and cosine; the rows are saved below
    `workspace/scores`.

    benchmark      by name (`compal eval --list`)
    heads          training-free heads by name: cosine, maxsim, …
    runs           fitted heads: run ids, run folders, what `fit` returned, `shipped:NAME`, .safetensors files
    backbone       whose features, or their store; "" is the backbone used last
    level          where the ladder was cut: pooled, tokens or regions
    root, images   the benchmark's files (by default where compal.toml says), and its photographs if not below them
    split, limit   one split of it, the first so many groups of every category
    variant        a known erratum or rival form to read instead of the corrected default
    allow_missing  leave out and list items without a photograph
    sources        all of these as one value instead
    extract_missing  extract what the store lacks first (the towers run for what is missing only)
    rerank         of retrieval: score so many candidates of every query only ("10:100" for several), which
                   `candidates` ("cosine" or a run) finds by an `index` (flat, ivf, hnsw)
    device         where heads are scored: cpu, cuda, cuda:1, mps
    seed           of the random row and of the bootstrap
    labels         other labels for heads and runs
    references     which of random, text-only and cosine stand beside; all by default
    remember       the backbone is the one used last from now on
    progress, extracting  called with (what, done, in all) while scoring and while extracting

    Returns the rows, each with percentages and 95 % intervals by metric (`row.overall.metrics["group"].value`),
    overall and by category; a notebook shows them as a table.

    Raises `MissingFeatures` naming the command that adds what is missing, `UnknownName` for a benchmark, a split, a
    head or a run that does not exist, `InputError` for files that are not there and for a head that must be fitted
    first, `SpecMismatch` for a run of another backbone.
    """
    from ..eval.retrieval import Rerank, planned
    from ..eval.sources import Sources
    from .reporting import Report

    workspace = workspace_of(workspace)
    who: list[str] = listed(heads)
    several: list[Any] = [runs] if hasattr(runs, "run_dir") else listed(runs)
    fitted = [named(run) for run in several]
    asked: dict[str, Any] = {
        "root": Path(root) if root is not None else None, "images": Path(images) if images is not None else None,
        "split": split, "limit": limit, "variant": variant, "allow_missing": allow_missing or None,
    }  # fmt: skip
    if sources is not None and any(value is not None for value in asked.values()):
        raise UsageError("sources says where and what a benchmark is read", "Give root, split, limit, … or sources.")
    if sources is None:
        asked |= {"root": asked["root"] or workspace.root_for(benchmark), "allow_missing": allow_missing}
        sources = Sources(**asked)
    if not isinstance(rerank, Rerank):
        rerank = planned(benchmark, str(rerank or ""), candidates, index, bool(who or fitted))
    store, spec, name = store_named(backbone, level, "float16", workspace)
    if store is not None and extract_missing and not name:
        raise UsageError(f"{store.path} is no store of this workspace, so nothing is added", "Drop extract_missing.")
    rows = _scored(
        benchmark, store if store is not None and not name else spec, sources, workspace, heads=who, runs=fitted,
        extract_missing=extract_missing, device=device, seed=seed, labels=labels, references=references,
        rerank=rerank, progress=progress, extracting=extracting,
    )  # fmt: skip
    if remember:
        workspace.remember(name)
    return Report(rows)


def _scored(
    benchmark: str,
    features: FeatureSpec | Store,
    sources: Sources,
    workspace: Workspace,
    *,
    heads: Sequence[str] = (),
    runs: Sequence[str] = (),
    extract_missing: bool = False,
    device: str = "cpu",
    seed: int = 0,
    labels: Mapping[str, str] | None = None,
    references: Sequence[str] | None = None,
    rerank: Rerank | None = None,
    progress: Ticker | None = None,
    extracting: Ticker | None = None,
) -> list[ResultRow]:
    """`evaluate`, once everything is chosen."""
    from ..eval.score import Options
    from ..eval.score import evaluate as score
    from ..pipeline.stored import segmenter_of
    from ..stores.store import Store

    sources.check_choices(benchmark, registry.load("benchmarks", benchmark).INFO)
    if isinstance(features, Store):
        store = features
    else:
        if extract_missing:
            from ..pipeline.extract import extract_listing

            listing = of_benchmark(benchmark, sources, segmenter_of(features))
            extract_listing(listing, [features], workspace, asking(workspace), extracting)
        store = store_of(features, workspace, benchmark)
    entries = scorers(store, heads, runs, workspace, device)
    by_label = {(labels or {}).get(entry.label, entry.label): entry for entry in entries}
    if rerank and rerank.named:
        finder = scorers(store, (), [rerank.candidates], workspace, device)[0]
        finder = by_label.setdefault(finder.label, finder)
        rerank = rerank.by(finder.label, finder.scorer, store, device)
    origins = {label: entry.origin for label, entry in by_label.items()}
    options = Options(device=device, provenance=origins, progress=progress, rerank=rerank)
    if references is not None:
        options = dataclasses.replace(options, references=tuple(references))
    out = workspace.path / "scores"
    return score(benchmark, sources, store, {label: e.scorer for label, e in by_label.items()}, out, seed, options)
