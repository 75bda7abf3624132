"""Scorer × benchmark → saved rows. Groups are scored in chunks, so memory holds one chunk's features.

A scorer is a head of `align` (`score_pairs(batch, pairs)`) or a function of keys, as `references` makes them.
torch is imported when a head is scored.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from .. import registry
from ..config import fingerprint
from ..errors import InputError, MissingFeatures, SpecMismatch, UsageError
from . import references, results
from .references import KeyScorer, Pairs
from .results import ResultRow
from .sources import KS, Group, Sources, check, headline, sample_fingerprint

if TYPE_CHECKING:
    from ..stores.store import Store

# Features of one chunk: 64 MiB hold 436 images of CLIP ViT-B/32 tokens in float32.
BUDGET_BYTES = 64 << 20


@dataclass(frozen=True)
class Options:
    """How to score; nothing here changes a figure beyond rounding.

    device        where heads are scored
    references    which rows of `references.NAMES` to score beside them
    pairs_at_once (image, caption) pairs a head that reads tokens sees at once
    command       the command line to record; "" records sys.argv
    provenance    label → what else to record of a scorer (run, checkpoint, configuration)
    progress      called with (label, groups done, groups in all)
    """

    device: str = "cpu"
    references: tuple[str, ...] = references.NAMES
    pairs_at_once: int = 256
    command: str = ""
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)
    progress: Callable[[str, int, int], None] | None = None


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
    sources.check_choices(name, module.INFO)
    groups = available(check(list(module.groups(sources)), metric), store, sources, name)
    given.excluded.update(sources.excluded)
    given.notes.update(sources.notes)
    captions = list(dict.fromkeys(key for group in groups for key in group.captions))
    rows: dict[str, tuple[str, Any]] = dict.fromkeys(options.references, ("reference", None))
    rows |= {label: ("scorer", scorer) for label, scorer in scorers.items()}
    for label, scorer in scorers.items():
        _fits(label, scorer, store)
    shared = _shared(name, module, sources, store, groups, seed, options)
    saved = []
    for order, (label, (role, own)) in enumerate(rows.items()):
        scorer = own if role == "scorer" else references.reference(label, store, captions, seed)
        values = score_groups(groups, scorer, store, label, options)
        # Random scores depend on no backbone: the row is one for all.
        of_store = None if (role, label) == ("reference", "random") else shared["store"]
        told = describe(own) | (options.provenance.get(label, {}) if role == "scorer" else {})
        meta = shared | {"label": label, "role": role, "order": order, "store": of_store, "scorer": told}
        saved.append(results.save(_folder(out, meta), results.table(groups, values, metric), meta))
    return results.with_chance(results.row_of(folder) for folder in saved)


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


def score_groups(groups: list[Group], scorer: Any, store: Store, label: str, options: Options) -> NDArray[np.float32]:
    """The I × C scores of every group, row-major, end to end, float32. Raises `InputError` naming the first
    group with a NaN, and for a scorer that answers another number of scores."""
    score, at_once = _as_key_scorer(scorer, store, options)
    rows = _rows_at_once(store)
    values = np.empty(sum(len(group.images) * len(group.captions) for group in groups), np.float32)
    end = done = 0
    for chunk in _chunks(groups, at_once, rows):
        start = end
        for images, captions, pairs, where in _calls(chunk, at_once, rows):
            found = np.asarray(score(images, captions, pairs), np.float32)
            if found.shape != (len(pairs),):
                raise InputError(f"scorer '{label}' gave {found.shape} scores for {len(pairs)} pairs")
            values[start + where] = found
        end = start + sum(len(group.images) * len(group.captions) for group in chunk)
        done += len(chunk)
        if options.progress:
            options.progress(label, done, len(groups))
    bad = np.flatnonzero(np.isnan(values))
    if len(bad):
        ends = np.cumsum([len(group.images) * len(group.captions) for group in groups])
        group = groups[int(np.searchsorted(ends, bad[0], side="right"))]
        raise InputError(
            f"scorer '{label}' gave NaN for {len(bad):,} pairs (first: group '{group.id}', {group.source})"
        )
    return values


def _rows_at_once(store: Store) -> int:
    spec = store.spec
    image = int(np.prod(spec.image_shape))
    text = spec.context_length * spec.text_dim
    return max(2, BUDGET_BYTES // (4 * max(image, text, spec.pooled_dim, 1)))


def _chunks(groups: list[Group], pairs: int, rows: int) -> Iterator[list[Group]]:
    """Runs of groups of at most so many pairs, images and captions; a larger group is alone."""
    chunk: list[Group] = []
    filled = 0
    for group in groups:
        size = max(
            len(group.images) * len(group.captions),
            pairs * max(len(group.images), len(group.captions)) // rows,
        )
        if chunk and filled + size > pairs:
            yield chunk
            chunk, filled = [], 0
        chunk.append(group)
        filled += size
    if chunk:
        yield chunk


Call = tuple[list[str], list[str], Pairs, NDArray[np.int64]]


def _calls(chunk: list[Group], pairs: int, rows: int) -> Iterator[Call]:
    """What to ask the scorer for a chunk: image keys, caption keys, pairs, and where the answers go."""
    group = chunk[0]
    if len(chunk) == 1 and len(group.images) * len(group.captions) > pairs:
        yield from _tiles(group, max(1, min(int(pairs**0.5), rows)))
        return
    images = {key: number for number, key in enumerate(dict.fromkeys(k for g in chunk for k in g.images))}
    captions = {key: number for number, key in enumerate(dict.fromkeys(k for g in chunk for k in g.captions))}
    asked = [(images[image], captions[caption]) for g in chunk for image in g.images for caption in g.captions]
    yield list(images), list(captions), np.array(asked, np.int64).reshape(-1, 2), np.arange(len(asked))


def _tiles(group: Group, side: int) -> Iterator[Call]:
    """A large group as squares of its score matrix."""
    for top in range(0, len(group.images), side):
        images = list(group.images[top : top + side])
        for left in range(0, len(group.captions), side):
            captions = list(group.captions[left : left + side])
            pairs = np.indices((len(images), len(captions))).reshape(2, -1).T
            where = (top + pairs[:, 0]) * len(group.captions) + left + pairs[:, 1]
            yield images, captions, pairs, where


def _needs(scorer: Any) -> str:
    return str(getattr(scorer, "needs", "tokens"))


def _fits(label: str, scorer: Any, store: Store) -> None:
    if hasattr(scorer, "score_pairs") and _needs(scorer) == "tokens" and not store.spec.keeps_tokens:
        raise SpecMismatch(
            f"'{label}' reads tokens, {store.path} holds pooled embeddings only", "Extract --level tokens."
        )
    if not hasattr(scorer, "score_pairs") and not callable(scorer):
        raise UsageError(f"'{label}' is neither a head nor a function of keys: {type(scorer).__name__}")


def _as_key_scorer(scorer: Any, store: Store, options: Options) -> tuple[KeyScorer, int]:
    """The scorer as a function of keys, and how many pairs to ask of it at once."""
    # What reads pooled embeddings makes no joint tokens: a thousand times more pairs fit.
    if not hasattr(scorer, "score_pairs"):
        return cast(KeyScorer, scorer), 1024 * options.pairs_at_once
    pairs_at_once = options.pairs_at_once * (1024 if _needs(scorer) == "pooled" else 1)
    import torch

    from ..align.batches import join

    def score(images: Sequence[str], captions: Sequence[str], pairs: Pairs) -> NDArray[np.float32]:
        training = bool(getattr(scorer, "training", False))
        if training:
            scorer.eval()
        try:
            with torch.inference_mode():
                batch = join(store, images, captions, options.device, cast(Any, _needs(scorer)))
                asked = torch.from_numpy(np.ascontiguousarray(pairs)).to(options.device)
                scores = scorer.score_pairs(batch, asked)
                return cast("NDArray[np.float32]", scores.float().cpu().numpy())
        finally:
            if training:
                scorer.train()

    return score, pairs_at_once


def describe(scorer: Any) -> dict[str, Any]:
    """What identifies a scorer: its class, its configuration and a hash of its weights."""
    if scorer is None:
        return {}
    facts: dict[str, Any] = {"class": f"{type(scorer).__module__}.{type(scorer).__qualname__}"}
    config = getattr(scorer, "config", None)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        facts["config"] = dataclasses.asdict(config)
    state = scorer.state_dict() if hasattr(scorer, "state_dict") else {}
    if state:
        digest = hashlib.sha256()
        for name, tensor in sorted(state.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        facts["weights"] = digest.hexdigest()
    return facts


def _folder(out: Path, meta: dict[str, Any]) -> Path:
    """The row's folder: its label, and 12 digits of what makes it another row than one of the same label."""
    kept = {key: meta[key] for key in ("benchmark", "split", "sample", "label", "role", "seed", "scorer")}
    kept["store"] = (meta["store"] or {}).get("fingerprint")
    slug = re.sub(r"[^a-z0-9]+", "-", meta["label"].lower()).strip("-")[:40]
    name = str(meta["benchmark"])
    return out / name / f"{slug}-{fingerprint(kept)[:12]}"


def _shared(
    name: str,
    module: ModuleType,
    sources: Sources,
    store: Store,
    groups: list[Group],
    seed: int,
    options: Options,
) -> dict[str, Any]:
    """The provenance that all rows of one evaluation share."""
    info = module.INFO
    return {
        "benchmark": name,
        "split": sources.split or "",
        "title": info["title"],
        "metric": info["metric"],
        "chance": info["chance"],
        "ks": list(info.get("ks", (1, 5) if info["metric"] == "classification" else KS)),
        "headline": list(headline(info)),
        "variant": sources.variant or "",
        "revision": info["revision"],
        "tie_rule": info["tie_rule"],
        "pools": {pool: list(members) for pool, members in getattr(module, "POOLS", {}).items()},
        "averages": {average: list(members) for average, members in getattr(module, "AVERAGES", {}).items()},
        "citation": info["citation"],
        "licence": info["licence"],
        "size": info.get("size") if sources.split is None else None,
        "limit": sources.limit,
        "groups": len(groups),
        "sample": sample_fingerprint(groups)[:16],
        "excluded": dict(sources.excluded),
        "notes": list(sources.notes),
        "store": {
            "path": str(store.path),
            "fingerprint": store.spec.fingerprint,
            "manifest": store.manifest,
            "backbone": store.spec.backbone,
            "level": store.spec.level,
            "dtype": store.spec.dtype,
        },
        "seed": seed,
        "command": options.command or " ".join(sys.argv),
        "commit": commit(),
        "versions": _versions(),
        "written": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("compal", "numpy", "pyarrow", "torch"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the checkout this code lies in, "+" added if files differ from it; None outside one."""
    if not (registry.ROOT / ".git").exists():
        return None
    try:
        answers = [
            subprocess.run(
                ["git", "-C", str(registry.ROOT), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return answers[0] + ("+" if answers[1] else "")
