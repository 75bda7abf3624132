"""The one loop from items to a store: plan, ask the remotes, decode, encode, write, commit.

Every part is complete or absent, so a run that is killed goes on where it was by starting again, and ends in
the same bytes. Nothing that is computed becomes visible to readers before the one commit at the end.
"""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Protocol

import torch

from .. import registry
from ..errors import CompalError, SpecMismatch
from ..stores.items import Item, Pair
from ..stores.pairs import write_pairs
from ..stores.rows import Quarantined
from ..stores.spec import FeatureSpec
from ..stores.store import Store
from ..workspace import Remote, Workspace
from .decode import Decoder
from .encoder import Encoder, load_encoder
from .forward import Forward, encode_images, encode_texts
from .plan import (
    KINDS,
    ExtractConfig,
    Kind,
    Known,
    Nothing,
    PlannedPart,
    batches,
    plan,
    sample_bytes,
    unique_items,
)

__all__ = [
    "ExtractConfig",
    "Preview",
    "Progress",
    "Summary",
    "extract",
    "extract_dataset",
    "preview",
    "splits",
]


class Progress(Protocol):
    """Hears how many of the planned items of a kind, "image" or "text", are done, quarantined ones too; and
    of "pull" how many bytes have come from a remote."""

    def __call__(self, kind: str, done: int, total: int, /) -> None: ...


@dataclass(frozen=True)
class Summary:
    """What an extraction did.

    store            the store's folder
    images, texts    how many this run encoded
    reused           how many of the wanted items were in the store before
    quarantined      the wanted items that cannot be read, found now or before
    truncated        how many of the captions encoded now were longer than the context
    seconds          of the whole run, wall clock
    forward_seconds  of the forward passes, transfers included
    pulled           how many of the wanted items came from remotes
    saved_seconds    of forward passes that those took where they were computed
    notes            remotes that could not be asked and why, one line each
    """

    store: Path
    images: int
    texts: int
    reused: int
    quarantined: list[Quarantined]
    truncated: int
    seconds: float
    forward_seconds: float
    pulled: int = 0
    saved_seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preview:
    """What an extraction would do: new parts, rows and bytes (ragged rows estimated), and what is there."""

    store: Path
    parts: int
    images: int
    texts: int
    reused: int
    bytes: int


def extract(
    items: Iterable[Item],
    spec: FeatureSpec,
    folder: Path,
    config: ExtractConfig | None = None,
    progress: Progress | None = None,
    encoder: Encoder | None = None,
) -> Summary:
    """Make the store in `folder` hold the features of `items`, and say what was done.

    `encoder` is loaded from the spec if none is given and something is left to encode. Unreadable items are
    listed in the quarantine and stop nothing. What `config.remotes` hold is pulled instead of computed; one that
    fails is named in the summary's notes. Raises `SpecMismatch` if the folder holds features of another
    spec, `InputError` for features that are not finite, a full or read-only disk, no memory; complete parts
    are kept in every case, and on KeyboardInterrupt too.
    """
    started = time.perf_counter()
    config = config or ExtractConfig()
    wanted = unique_items(items)
    store = Store.create(folder, spec)
    parts = _plan_and_recover(wanted, store, config)
    asked = _ask(config.remotes, [part for part in parts if not store.part_done(part.name)], store, progress)
    if asked.pulled:
        store = Store.open(folder)
        parts = plan(wanted, store, config)
    todo = [part for part in parts if not store.part_done(part.name)]
    counts = _Counts(parts, todo, progress)
    if todo:
        forward = Forward(encoder or load_encoder(spec, config.device), spec, config.device, config.batch_size)
        _encode(todo, store, forward, config, counts)
    store.commit(part.name for part in parts)
    wanted_keys = {item.key for item in wanted}
    quarantined = [item for item in store.quarantined() if item.key in wanted_keys]
    return Summary(
        store=store.path,
        images=counts.encoded["image"],
        texts=counts.encoded["text"],
        reused=len(wanted) - len(quarantined) - sum(counts.encoded.values()) - asked.pulled,
        quarantined=quarantined,
        truncated=counts.truncated,
        seconds=time.perf_counter() - started,
        forward_seconds=forward.seconds if todo else 0.0,
        pulled=asked.pulled,
        saved_seconds=asked.saved_seconds,
        notes=tuple(asked.notes),
    )


@dataclass
class _Asked:
    """What the remotes gave; the fields are those of the summary."""

    pulled: int = 0
    saved_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def _ask(remotes: Sequence[Remote], todo: Sequence[PlannedPart], store: Store, progress: Progress | None) -> _Asked:
    """Pull the parts that hold items of `todo` from remotes that have a store of this spec."""
    asked, left = _Asked(), {item.key for part in todo for item in part.items}
    for remote in remotes if left else ():
        from ..stores.remotes.transfer import offers, pull

        try:
            if not offers(remote, store.spec.folder):
                continue
            pulled = pull(remote, store.spec.folder, store.path, left, progress)
        except CompalError as error:
            asked.notes.append(f"remote '{remote.name}' was not used: {error}")
            pulled = None
        here = Store.open(store.path)
        if pulled is None:  # what had come whole before the remote failed is used
            here.commit(here.uncommitted())
        keys = list(left)
        there = set(itertools.compress(keys, here.has("image", keys) | here.has("text", keys)))
        asked.pulled += len(there)
        asked.saved_seconds += pulled.saved_seconds if pulled else 0.0
        left -= there | {item.key for item in here.quarantined()}
        if not left:
            break
    return asked


def _plan_and_recover(wanted: Sequence[Item], store: Store, config: ExtractConfig) -> list[PlannedPart]:
    """The plan, after making complete parts of an interrupted run with another plan part of the store."""
    parts = plan(wanted, store, config)
    left = store.uncommitted()
    if set(left) <= {part.name for part in parts}:
        return parts
    store.commit(left)
    return plan(wanted, store, config)


def _encode(
    todo: Sequence[PlannedPart], store: Store, forward: Forward, config: ExtractConfig, counts: _Counts
) -> None:
    """Encode and write each part. Decoding runs ahead of the forward pass, writing behind it."""
    images = [part for part in todo if part.kind == "image"]
    texts = [part for part in todo if part.kind == "text"]
    size = config.batch_size
    with _Writer() as writer:
        if images:
            regions, pinned = forward.spec.level == "regions", forward.device.type == "cuda"
            with Decoder(forward.encoder.preprocess, config.workers, regions, pinned) as decoder:
                decoded = decoder.decode(batch for part in images for batch in batches(part.items, size))
                for part in images:
                    own, before = itertools.islice(decoded, -(-len(part.items) // size)), forward.seconds
                    rows, refused = encode_images(part, own, forward, counts.tick("image"))
                    writer.put(store.write_images, part.name, rows, refused, _provenance(forward, before))
                    counts.encoded["image"] += len(rows.keys)
        for part in texts:
            before = forward.seconds
            text_rows, refused = encode_texts(part, forward, counts.tick("text"))
            writer.put(store.write_texts, part.name, text_rows, refused, _provenance(forward, before))
            counts.encoded["text"] += len(text_rows.keys)
            counts.truncated += sum(text_rows.truncated)


def _provenance(forward: Forward, before: float) -> dict[str, str | int | float]:
    """What was at work on a part, and for how long: a teammate who pulls it saves that."""
    seconds = round(forward.seconds - before, 3)
    return {**forward.provenance, "forward_seconds": seconds, "hardware": _hardware(forward.device)}


@cache
def _hardware(device: torch.device) -> str:
    """The name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor that does not say
        return platform.processor() or platform.machine()


class _Counts:
    """What was done, for the progress and the summary."""

    def __init__(self, parts: Sequence[PlannedPart], todo: Sequence[PlannedPart], progress: Progress | None) -> None:
        self.encoded: dict[Kind, int] = {"image": 0, "text": 0}
        self.truncated = 0
        self._total = {kind: sum(len(part.items) for part in parts if part.kind == kind) for kind in self.encoded}
        left = {kind: sum(len(part.items) for part in todo if part.kind == kind) for kind in self.encoded}
        self._done = {kind: self._total[kind] - left[kind] for kind in self.encoded}
        self._progress = progress

    def tick(self, kind: Kind) -> Callable[[int], None]:
        """A function that adds to what is done of a kind."""

        def add(count: int) -> None:
            self._done[kind] += count
            if self._progress:
                self._progress(kind, self._done[kind], self._total[kind])

        return add


class _Writer:
    """Writes one part while the next one is encoded; at most two parts are in memory."""

    def __enter__(self) -> _Writer:
        self._pool = ThreadPoolExecutor(1, "write")
        self._last: Future[None] | None = None
        return self

    def put(self, write: Callable[..., None], *arguments: object) -> None:
        """Wait for the part before, raising what it raised, and hand over this one."""
        if self._last:
            self._last.result()
        self._last = self._pool.submit(write, *arguments)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A part that is encoded is written even if the run ends here: it need not be encoded again.
        self._pool.shutdown(wait=True)
        if self._last and kind is None:
            self._last.result()


def preview(items: Iterable[Item], spec: FeatureSpec, folder: Path, config: ExtractConfig | None = None) -> Preview:
    """What `extract` would do, without writing anything. Raises `SpecMismatch` as `extract` does."""
    config = config or ExtractConfig()
    wanted = unique_items(items)
    store: Known = Nothing(spec)
    done: Callable[[str], bool] = lambda _: False
    if (folder / "spec.json").is_file():
        opened = Store.open(folder)
        store, done = opened, opened.part_done
    if store.spec != spec:
        raise SpecMismatch(f"{folder} holds features of another spec", f"Use the folder {spec.folder}.")
    parts = [part for part in plan(wanted, store, config) if not done(part.name)]
    rows = {kind: [item for part in parts if part.kind == kind for item in part.items] for kind in KINDS}
    return Preview(
        store=folder,
        parts=len(parts),
        images=len(rows["image"]),
        texts=len(rows["text"]),
        reused=len(wanted) - len(rows["image"]) - len(rows["text"]),
        bytes=sum(len(some) * sample_bytes(kind, some, spec) for kind, some in rows.items()),
    )


def extract_dataset(
    data: str,
    split: str,
    spec: FeatureSpec,
    workspace: Workspace,
    config: ExtractConfig | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Extract one split of a dataset, `NAME[:ROOT]`, into the workspace's store of `spec`, and write its
    table of pairs, `workspace.pairs_path(data, split)`. Pairs of quarantined items are left out of the table.

    `limit` takes the first images only. Raises `UnknownName` for a dataset or split that does not exist, and
    what the dataset and `extract` raise.
    """
    name, root = workspace.dataset(data)
    dataset = registry.load("datasets", name)
    folder = workspace.find_store(spec)
    summary = extract(dataset.items(root, split, limit), spec, folder, config, progress)
    refused = {item.key for item in summary.quarantined}
    write_pairs(workspace.pairs_path(data, split), _without(dataset.pairs(root, split, limit), refused))
    return summary


def _without(pairs: Iterable[Pair], refused: set[str]) -> Iterator[Pair]:
    for pair in pairs:
        if not {pair.image, pair.caption} & refused:
            yield replace(pair, negatives=tuple(key for key in pair.negatives if key not in refused))


def splits(data: str, workspace: Workspace) -> list[str]:
    """The splits of a dataset, `NAME[:ROOT]`: those of its root if it can tell, else those of its INFO."""
    name, root = workspace.dataset(data)
    dataset = registry.load("datasets", name)
    return list(dataset.splits(root) if hasattr(dataset, "splits") else dataset.INFO["splits"])
