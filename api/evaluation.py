"""Evaluation as a function: heads and runs on a benchmark, from cached features."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import registry
from ..errors import InputError, UnknownName
from ..workspace import Workspace
from .extraction import Ticker, asking, of_benchmark
from .stored import store_of

if TYPE_CHECKING:
    from ..align.scorer import Scorer
    from ..eval.results import ResultRow
    from ..eval.retrieval import Rerank
    from ..eval.sources import Sources
    from ..stores.store import Store


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
        found.append(Entry(label, scorer, {"checkpoint": str(path), **recipe_of(path)}))
    return found


def checkpoint(run: str, workspace: Workspace) -> Path:
    """A run id, a run folder, a shipped head (`shipped:tflocal`) or a .safetensors file → the checkpoint's file."""
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


def evaluate(
    benchmark: str,
    *,
    heads: Sequence[str] = (),
    runs: Sequence[str] = (),
    backbone: str,
    level: str = "tokens",
    sources: Sources | None = None,
    extract_missing: bool = False,
    device: str = "cpu",
    seed: int = 0,
    labels: dict[str, str] | None = None,
    references: tuple[str, ...] | None = None,
    rerank: Rerank | None = None,
    workspace: Workspace | None = None,
    progress: Ticker | None = None,
    extracting: Ticker | None = None,
) -> list[ResultRow]:
    """Score a benchmark from cached features; rows are saved below `workspace/scores`.

    extract_missing  extract what the store lacks first (the towers run for what is missing only)
    labels           other labels for heads and runs
    rerank           of retrieval: which candidates to score instead of all; `candidates` is "cosine" or a run
    Raises `MissingFeatures` naming the command that adds what is missing, and what the scorers raise.
    """
    from ..eval.score import Options
    from ..eval.score import evaluate as score
    from ..eval.sources import Sources
    from ..pipeline.stored import segmenter_of, spec_named

    workspace = workspace or Workspace.find()
    sources = sources or Sources()
    sources.check_choices(benchmark, registry.load("benchmarks", benchmark).INFO)
    spec = spec_named(backbone, level, "float16", workspace)
    if extract_missing:
        from ..pipeline.extract import extract_listing

        listing = of_benchmark(benchmark, sources, segmenter_of(spec))
        extract_listing(listing, [spec], workspace, asking(workspace), extracting)
    store = store_of(spec, workspace, benchmark)
    entries = scorers(store, heads, runs, workspace, device)
    named = {(labels or {}).get(entry.label, entry.label): entry for entry in entries}
    if rerank and rerank.named:
        finder = scorers(store, (), [rerank.candidates], workspace, device)[0]
        finder = named.setdefault(finder.label, finder)
        rerank = rerank.by(finder.label, finder.scorer, store, device)
    origins = {label: entry.origin for label, entry in named.items()}
    options = Options(device=device, provenance=origins, progress=progress, rerank=rerank)
    if references is not None:
        options = dataclasses.replace(options, references=references)
    out = workspace.path / "scores"
    return score(benchmark, sources, store, {label: e.scorer for label, e in named.items()}, out, seed, options)
