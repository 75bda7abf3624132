"""Units under way: what of them fills, what is published, and the report of what became of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ..stores.items import Item
from ..stores.spec import FeatureSpec
from .decode import begin_quietly
from .patience import Patience, passing_write
from .plan import Kind, Unit, batches, stretches
from .regions import view_count


@dataclass(frozen=True)
class Done:
    """What became of a unit; plain values only.

    unit             its name
    encoded          its items that a pass was made for
    quarantined      its items that cannot be read, at any level
    truncated        its captions that are longer than the context
    bytes            of the files that were written
    seconds          from the first of its batches to the last of its files
    forward_seconds  of them in passes, transfers included
    notes            what the user should know, one line each
    flops, peak      floating-point operations of its passes, and how many a second the device can do; 0 if unknown
    """

    unit: str
    kind: Kind
    encoded: int
    quarantined: int
    truncated: int
    bytes: int
    seconds: float
    forward_seconds: float
    notes: tuple[str, ...] = ()
    flops: float = 0.0
    peak: float = 0.0


@dataclass
class Under:
    """A unit under way.

    todo   names of the parts that it lacks
    parts  those that fill, by level
    left   how many of `todo` are not yet published
    """

    unit: Unit
    todo: set[str]
    started: float = 0.0
    seconds: float = 0.0
    bytes: int = 0
    flops: float = 0.0
    peak: float = 0.0
    truncated: dict[str, int] = field(default_factory=dict)
    items: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    notes: tuple[str, ...] = ()
    fillings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.left = len(self.todo)
        self._parts = {
            level: deque(part for part in parts if part.name in self.todo) for level, parts in self.unit.parts.items()
        }

    def stretches(self) -> Iterator[tuple[Sequence[Item], list[str]]]:
        """Runs of items that lie in one part of every level, and the levels that lack them."""
        for items, levels in stretches(self.unit):
            wanted = [level for level, part in levels.items() if part.name in self.todo]
            if wanted:
                yield items, wanted

    def batches(self, size: int, cropped: Callable[[str], bool]) -> Iterator[tuple[Sequence[Item], list[str]]]:
        """The stretches in batches of `size`; of fewer images where many crops of each are decoded with it."""
        for items, levels in self.stretches():
            crops = [level for level in levels if cropped(level)]
            most = max((sum(view_count(item, level) for level in crops) for item in items), default=0)
            for some in batches(items, max(1, size // most) if most > 8 else size):
                yield some, levels

    def filling(self, level: str, spec: FeatureSpec, make: Any) -> Any:
        """The part of a level that fills now."""
        self.started = self.started or time.perf_counter()
        if level not in self.fillings:
            self.fillings[level] = make(self._parts[level].popleft(), spec)
        return self.fillings[level]

    def lacks(self, level: str) -> bool:
        """Whether a part of the level is still to be begun."""
        return bool(self._parts[level])

    def seen(self, seconds: float) -> None:
        """Count the seconds of a pass."""
        self.seconds += seconds

    def filled(self, level: str, filling: Any, notes: Sequence[str]) -> None:
        """A part is full: it is about to be written, and the next one of its level begins."""
        del self.fillings[level]
        self.refused |= {item.key for item in filling.refused}
        self.items |= {item.key for item in filling.part.items}
        self.truncated[level] = self.truncated.get(level, 0) + getattr(filling, "truncated", 0)
        self.notes = tuple(notes)

    def done(self) -> Done:
        """The report, once all parts are published."""
        return Done(
            unit=self.unit.name,
            kind=self.unit.kind,
            encoded=len(self.items - self.refused),
            quarantined=len(self.refused),
            truncated=max(self.truncated.values(), default=0),
            bytes=self.bytes,
            seconds=round(time.perf_counter() - self.started, 3),
            forward_seconds=round(self.seconds, 6),
            notes=self.notes,
            flops=self.flops,
            peak=self.peak,
        )


class Writer:
    """Publishes parts in a thread, behind the forward pass, and reports units once their parts are published.

    patience  how long a share may be gone
    most      how many parts may wait; each is held in memory until it is written
    report    hears of each unit, in the caller's thread
    """

    def __init__(self, patience: Patience, most: int, report: Callable[[Done], None]) -> None:
        self._patience, self._most, self._report = patience, most, report

    def __enter__(self) -> Writer:
        self._pool = ThreadPoolExecutor(1, "write", begin_quietly)
        self._waiting: deque[tuple[Under, Future[int]]] = deque()
        return self

    def put(self, publish: Callable[[], int], what: str, under: Under) -> None:
        """Hand over a part; `publish` writes it and says how many bytes. Raises what an earlier one raised."""
        self.collect(self._most - 1)
        self._waiting.append((under, self._pool.submit(self._patience.through, publish, passing_write, what)))

    def collect(self, most: int) -> None:
        """Report what is published, and wait until no more than `most` parts are not."""
        while self._waiting and (len(self._waiting) > most or self._waiting[0][1].done()):
            under, future = self._waiting.popleft()
            under.bytes += future.result()
            under.left -= 1
            if not under.left:
                self._report(under.done())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A part that is encoded is written even if the run ends here: it need not be encoded again.
        if kind is None:
            try:
                self.collect(0)
            except BaseException as error:
                self._end(type(error), cancel=True)
                raise
        self._end(kind, cancel=False)
        while self._waiting and self._waiting[0][1].exception() is None:
            self.collect(len(self._waiting) - 1)

    def _end(self, kind: type[BaseException] | None, cancel: bool) -> None:
        if kind and not issubclass(kind, Exception):  # Ctrl-C waits for no share
            self._patience.close()
        self._pool.shutdown(wait=True, cancel_futures=cancel)
        self._patience.open()
