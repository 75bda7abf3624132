"""A worker: units of items through decoding, the towers and the writer, each ahead of or behind the next.

    decoding threads → pinned batches → forward pass → copies to the host → parts in memory → writing thread

Every part is complete or absent, so whoever is killed loses no more than the parts that were being filled, and two
workers that do the same unit by accident leave it in the store once.
"""

from __future__ import annotations

import itertools
import os
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import InputError, UsageError
from ..stores.manifest import Part, read_done
from ..stores.spec import FeatureSpec
from ..stores.store import Store
from ..workspace import Workspace
from .captions import Captions, captions_of, segment_texts
from .decode import DecodedBatch, Decoder, Wanted, begin_quietly
from .encoder import Encoder, load_encoder
from .filling import Filling, FillingImages, FillingTexts, named
from .forward import Array, Flight, Forward, Levels, plain, taken
from .job import Job
from .patience import Patience
from .plan import PlannedPart, Unit, batches
from .regions import is_dense, source_of
from .units import Done, Under, Writer

if TYPE_CHECKING:
    from .roi import Tokens

__all__ = ["Done", "Tick", "Worker", "hardware"]

Tick = Callable[[str, int], None]
REDUCED = "reduced"  # spec.preprocess["jpeg"] of features from JPEGs decoded at a reduced scale


class Worker:
    """Does units of a job in this process.

    encoder  loaded from the job's specs for the first unit if none is given
    device   torch device; the configuration's if none is given
    """

    def __init__(self, job: Job, encoder: Encoder | None = None, device: str = "") -> None:
        self.job = job
        asked = device or job.config.device
        self._device, self._encoder = "cpu" if asked == "auto" else asked, encoder
        self._stores = {spec.level: Store.open(folder) for spec, folder in zip(job.specs, job.folders, strict=True)}
        self._specs = {spec.level: spec for spec in job.specs}
        self._patience = Patience(job.config.patience, job.listing.roots if job.listing else ())
        self._forward: Forward | None = None
        self._tokens: dict[str, Tokens | None] = {}
        self._flops = self._peak = 0.0

    def run(
        self,
        units: Iterable[Unit],
        report: Callable[[Done], None],
        tick: Tick | None = None,
        claim: Callable[[Unit], bool] = lambda unit: True,
    ) -> None:
        """Encode and publish what the stores lack of the units; nothing is committed.

        report  hears of each unit once its parts are published, in their order
        tick    hears of each batch: its kind and its number of items, quarantined ones too
        claim   asked for each unit shortly before its turn; False leaves it to others

        Parts that are done are skipped. Raises `InputError` for features that are not finite, a full or read-only
        disk, no memory for one item, a share that stays away. Complete parts are kept in every case, and on
        KeyboardInterrupt too.
        """
        self._tick = tick or (lambda kind, count: None)
        wanted = (under for unit in units if (under := self._begin(unit)) and claim(unit))
        around = Workspace.around(self.job.folders[0])
        try:
            with around.used(), Writer(self._patience, 2 * len(self._specs), report) as self._writer:
                for kind, some in itertools.groupby(wanted, key=lambda under: under.unit.kind):
                    self._ready()
                    if kind == "image":
                        self._images(self._pool_cached(some))
                    else:
                        self._texts(some)
        except MemoryError:
            what = "there is no memory for a part"
            raise InputError(what, "Close other programs or lower --workers: complete parts are kept.") from None

    def _begin(self, unit: Unit) -> Under | None:
        """The unit with what it still lacks; None if it lacks nothing."""
        todo = {
            part.name
            for level, parts in unit.parts.items()
            for part in parts
            if not self._stores[level].part_done(part.name)
        }
        return Under(unit, todo) if todo else None

    def _ready(self) -> Forward:
        if self._forward is None:
            from .probe import batch_size_for, flops_of_an_image, peak_flops

            specs = list(self._specs.values())
            encoder = self._encoder or load_encoder(plain(richest(specs)), self._device)
            if torch.device(self._device).type == "cuda":
                self._flops = flops_of_an_image(encoder)  # before compilation, which hides the operations
            self._optimise(encoder)
            self._forward = Forward(encoder, specs, self._device, self.job.config.batch_size or 1)
            if self._forward.device.type == "cuda":
                self._peak = peak_flops(hardware(str(self._forward.device)), self._forward.precision)
            if self.job.config.batch_size is None:
                self._forward.batch_size = batch_size_for(self._forward, self.job.items)
        return self._forward

    def _optimise(self, encoder: Encoder) -> None:
        """Compile the towers if asked; lay out the convolutions of a tower of them as a GPU's kernels want it."""
        compiled = self.job.config.compile
        if not hasattr(encoder, "optimise"):
            if compiled:
                raise UsageError(f"backbone {encoder.spec.backbone} cannot be compiled", "Leave --compile out.")
            return
        blocks = getattr(getattr(encoder, "images", None), "blocks", 1)
        if compiled or (not blocks and self._device.startswith("cuda")):
            encoder.optimise(compile=compiled, channels_last=not blocks)

    # --- images --------------------------------------------------------------------------------------

    def _images(self, units: Iterable[Under]) -> None:
        forward = self._ready()
        asked: deque[tuple[Under, list[str]]] = deque()

        def wanted() -> Iterator[Wanted]:
            for under in units:
                for items, levels in under.batches(forward.batch_size, self._cropped):
                    asked.append((under, levels))
                    yield Wanted(items, [self._specs[level] for level in levels if self._cropped(level)])

        # On a GPU a batch is collected once the next one is on its way.
        depth = 1 if forward.device.type == "cuda" else 0
        flying: deque[_Flying] = deque()
        side = _side(self._specs.values())
        pinned = forward.device.type == "cuda"
        workers = self.job.config.workers or decoders(forward.device)
        with Decoder(forward.encoder.preprocess, workers, pinned, side, self._patience) as decoder:
            for batch in decoder.decode(wanted()):
                flying.append(self._launch(batch, *asked.popleft()))
                while len(flying) > depth:
                    self._land(flying.popleft())
            while flying:
                self._land(flying.popleft())

    def _pool_cached(self, units: Iterable[Under]) -> Iterator[Under]:
        """The units that are left once regions of cached tokens are pooled, which takes no pixels."""
        for under in units:
            for level, parts in under.unit.parts.items():
                if self._specs[level].rung != "regions" or self._cropped(level):
                    continue
                left = [part for part in parts if part.name in under.todo]
                tokens = self._cached(level, left)
                if tokens is None:
                    continue
                for part in left:
                    self._pool_part(under, level, tokens)
                    under.todo.discard(part.name)
            if under.todo:
                yield under
            else:
                self._tick("image", len(under.unit.items))

    def _cached(self, level: str, parts: Sequence[PlannedPart]) -> Tokens | None:
        """The cached states that a level of pooled regions is made of. A dense one without them, or with others'
        images, goes through the towers: None."""
        from .roi import Tokens, state_store, token_store

        forward, spec = self._ready(), self._specs[level]
        dense = is_dense(level)
        if level not in self._tokens:
            store = (state_store if dense else token_store)(spec, self._stores[level].path)
            self._tokens[level] = Tokens(store, forward.encoder, dense) if store else None
        tokens = self._tokens[level]
        held = tokens and (not dense or all(tokens.hold(part.items) for part in parts))
        return tokens if held else None

    def _pool_part(self, under: Under, level: str, tokens: Tokens) -> None:
        from .roi import FillingPooled

        forward = self._ready()
        filling = under.filling(level, self._specs[level], FillingPooled)
        started = forward.seconds
        filling.pool(tokens, forward)
        filling.seconds = forward.seconds - started
        under.seen(filling.seconds)
        self._put_if_full(under, level, filling)

    def _cropped(self, level: str) -> bool:
        return self._specs[level].rung == "regions" and not source_of(level).pooled

    def _launch(self, batch: DecodedBatch, under: Under, levels: list[str]) -> _Flying:
        forward = self._ready()
        started = forward.seconds
        whole, crops = None, {}
        if batch.items:
            names = [named(item) for item in batch.items]
            whole = forward.images(batch.pixels, levels, names)
            for level, cut in batch.crops.items():
                owners = [name for name, count in zip(names, cut.counts, strict=True) for _ in range(count)]
                crops[level] = forward.images(cut.pixels, [level], owners) if owners else None
        return _Flying(batch, under, levels, whole, crops, forward.seconds - started)

    def _land(self, flying: _Flying) -> None:
        forward, batch, under = self._ready(), flying.batch, flying.under
        started = forward.seconds
        features = flying.whole.result() if flying.whole else {}
        vectors = {level: crops.result()[level][1] if crops else None for level, crops in flying.crops.items()}
        seconds = flying.seconds + forward.seconds - started
        under.seen(seconds)
        if any(self._specs[level].rung != "pixels" for level in flying.levels):
            crops = sum(len(cut.pixels) for cut in batch.crops.values())
            under.flops += self._flops * (len(batch.items) + crops)
        under.peak = self._peak
        for level in flying.levels:
            filling = under.filling(level, self._specs[level], self._filling_images)
            regions = _per_image(batch, level, vectors[level]) if level in vectors else None
            filling.add(batch, features.get(level, (None, None)), regions)
            filling.shares(seconds, len(flying.levels))
            self._put_if_full(under, level, filling)
        self._tick("image", len(batch.items) + len(batch.refused))

    def _filling_images(self, part: PlannedPart, spec: FeatureSpec) -> FillingImages:
        if not is_dense(spec.level):
            return FillingImages(part, spec)
        from .dense import FillingDense
        from .roi import cast_by

        forward = self._ready()
        encoder: Any = forward.encoder
        return FillingDense(part, spec, cast_by(forward, spec), encoder.images.image_size)

    # --- texts ---------------------------------------------------------------------------------------

    def _texts(self, units: Iterable[Under]) -> None:
        """Captions of equal length go together; tokenizing runs one stretch ahead."""
        forward = self._ready()
        tokenize = getattr(forward.encoder, "tokenize", None)
        ahead: deque[tuple[Under, list[str], Future[Captions]]] = deque()
        with ThreadPoolExecutor(1, "tokenize", begin_quietly) as pool:
            for under in units:
                for items, levels in under.stretches():
                    cut = all(self._specs[level].rung == "regions" for level in levels)
                    ahead.append((under, levels, pool.submit(captions_of, items, tokenize, cut)))
                    if len(ahead) > 1:
                        self._encode_texts(*ahead.popleft())
            while ahead:
                self._encode_texts(*ahead.popleft())

    def _encode_texts(self, under: Under, levels: list[str], prepared: Future[Captions]) -> None:
        forward = self._ready()
        captions = prepared.result()
        started = forward.seconds
        if captions.refused:
            self._tick("text", len(captions.refused))
        found = self._columns(captions, levels) if captions.items else {}
        regions: dict[str, Array] | None = None
        if captions.items and any(self._specs[level].rung == "regions" for level in levels):
            regions = self._segments(captions, levels, found)
        seconds = forward.seconds - started
        under.seen(seconds)
        for level in levels:
            filling = under.filling(level, self._specs[level], FillingTexts)
            for item, reason in captions.refused:
                filling.refuse(item, reason)
            if captions.items:
                filling.add(captions.items, found[level], regions)
            filling.seen += len(captions.items) + len(captions.refused)
            filling.shares(seconds, len(levels))
            self._put_if_full(under, level, filling)

    def _columns(self, captions: Captions, levels: list[str]) -> dict[str, Any]:
        """What is stored of the captions at each level, in their order."""
        forward = self._ready()
        found: dict[str, Any] = {}
        names = [named(item) for item in captions.items]
        texts = [str(item.content) for item in captions.items]
        done: list[int] = []
        while len(done) < len(texts):
            rows = captions.order[len(done) : len(done) + forward.batch_size]
            some = [texts[row] for row in rows] if captions.tokens is None else taken(captions.tokens, rows)
            columns = forward.texts(some, levels, [names[row] for row in rows]).result()
            found = {level: found[level].joined(columns[level]) if done else columns[level] for level in levels}
            done += rows
            self._tick("text", len(rows))
        return {level: found[level].put_back(captions.order) for level in levels}

    def _segments(self, captions: Captions, levels: list[str], found: dict[str, Any]) -> dict[str, Array]:
        """The pooled vectors of all segments by their text. Equal strings of a part are encoded once: captions of
        one world share most of their segments."""
        forward = self._ready()
        level = next(level for level in levels if self._specs[level].rung == "regions")
        vectors = dict(zip((str(item.content) for item in captions.items), found[level].pooled, strict=True))
        names: dict[str, str] = {}
        for item in captions.items:
            for text in segment_texts(item):
                if text not in vectors:
                    names.setdefault(text, named(item))
        order = sorted(names, key=lambda text: (len(text), text))
        for some in batches(order, forward.batch_size):
            columns = forward.texts(list(some), [level], [names[text] for text in some]).result()[level]
            vectors.update(zip(some, columns.pooled, strict=True))
        return vectors

    # --- writing -------------------------------------------------------------------------------------

    def _put_if_full(self, under: Under, level: str, filling: Filling) -> None:
        if not filling.full:
            return
        forward = self._ready()
        store, part = self._stores[level], filling.part
        under.filled(level, filling, forward.notes)
        write: Any = store.write_images if part.kind == "image" else store.write_texts
        record = {
            **forward.provenance,
            "forward_seconds": round(filling.seconds, 3),
            "levels": filling.levels,
            "hardware": hardware(str(forward.device)),
        }

        def publish() -> int:
            write(part.name, filling.rows(), filling.refused, record)  # type: ignore[attr-defined]
            return Part.of_done(store.path, read_done(store.path, part.name)).bytes

        self._writer.put(publish, f"write part {part.name} of {store.path}", under)


@dataclass
class _Flying:
    """A batch of images whose features may still be on their way."""

    batch: DecodedBatch
    under: Under
    levels: list[str]
    whole: Flight[Levels] | None
    crops: dict[str, Flight[Levels] | None]
    seconds: float


def _per_image(batch: DecodedBatch, level: str, vectors: Array | None) -> list[Array]:
    """The vectors of the crops of each readable image."""
    counts = batch.crops[level].counts
    if vectors is None:
        return [np.empty(0)] * len(counts)
    return np.split(vectors, list(itertools.accumulate(counts))[:-1])


def richest(specs: Sequence[FeatureSpec]) -> FeatureSpec:
    """The spec whose encoder knows most of the others' levels too."""
    rank = ("tokens", "block", "regions", "pooled", "pixels")
    return min(specs, key=lambda spec: rank.index(spec.rung))


def _side(specs: Iterable[FeatureSpec]) -> int:
    """The short side in pixels that a JPEG keeps at least; 0 decodes it whole."""
    for spec in specs:
        if spec.preprocess.get("jpeg", "").startswith(REDUCED):
            return 2 * max(map(int, spec.preprocess["size"].split("x")))
    return 0


def decoders(device: torch.device) -> int:
    """How many threads decode: beside a forward pass on the processor two, which fill the gaps that it leaves;
    beside one on a GPU as many as this process has cores."""
    return max(1, min(2 if device.type == "cpu" else 32, cores()))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def hardware(device: str) -> str:
    """The name of the GPU, or of the processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor that does not say
        return platform.processor() or platform.machine()
