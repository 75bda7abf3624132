"""Captions cut into segments by a segmenter, each caption once: what is known lies in the store.

A segmenter is a file of `pipeline/segmenters` (or a dotted module path) with `version(argument) -> str` and
`segment(captions, argument) -> list of ((start, end, kind), …)`; kinds are "object", "phrase", "attribute" and
"relation". At levels of rung regions it shapes the features and is part of the spec; elsewhere its segments are
notes on the captions, kept in a table beside them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from .. import registry
from ..errors import InputError
from ..stores.items import Item, Segment, noun_phrases

AT_ONCE = 4096  # captions handed to a segmenter together: spaCy runs its models on batches of them
KINDS = ("object", "phrase", "attribute", "relation")
OWN = "dataset"


@dataclass(frozen=True)
class Segmenter:
    """A segmenter ready to use: its name without an argument, its version with all that shapes its segments."""

    name: str
    version: str
    _segment: Callable[[Sequence[str]], list[tuple[Segment, ...]]]

    @property
    def title(self) -> str:
        """What a spec says of it."""
        return f"{self.name} {self.version}"

    def __call__(self, captions: Sequence[str]) -> list[tuple[Segment, ...]]:
        """The segments of each caption. Raises `InputError` for spans that are no part of it or unknown kinds."""
        found = self._segment(captions)
        if len(found) != len(captions):
            raise InputError(f"segmenter '{self.name}' answered {len(found)} of {len(captions)} captions")
        for caption, segments in zip(captions, found, strict=True):
            for start, end, kind in segments:
                if not (0 <= start < end <= len(caption) and caption[start:end].strip()) or kind not in KINDS:
                    what = f"segmenter '{self.name}' gave ({start}, {end}, '{kind}') for {caption!r}"
                    raise InputError(what, f"Spans lie in the caption; kinds are {', '.join(KINDS)}.")
        return found


def load(name: str) -> Segmenter:
    """A segmenter by name, with an argument if it takes one: `rules`, `spacy:en_core_web_trf`.

    Raises `UnknownName`, and `InputError` if what it needs is not installed.
    """
    part, argument = registry.split_argument(name)
    module = registry.load("segmenters", part)
    return Segmenter(part.replace("-", "_"), module.version(argument), lambda some: module.segment(some, argument))


def segmented(items: Iterable[Item], segmenter: str, *stores: Path, keep: bool = True) -> Iterator[Item]:
    """The items in their order, captions without segments with those of the segmenter; "dataset" changes nothing.

    stores  folders of stores, whose tables of this segmenter's segments are read first
    keep    whether each of these tables then gets what it lacks
    Raises what `load` raises.
    """
    if segmenter in ("", OWN):
        yield from items
        return
    chosen = load(segmenter)
    cache = _Cache(stores, chosen)
    remaining = iter(items)
    while batch := list(islice(remaining, AT_ONCE)):
        bare = {item.key: str(item.content) for item in batch if _lacks_segments(item)}
        found = cache.of(bare)
        for item in batch:
            segments = found[item.key] if _lacks_segments(item) else ()
            yield dataclasses.replace(item, segments=segments) if segments else item
    if keep:
        cache.save()


def with_phrases(items: Iterable[Item]) -> Iterator[Item]:
    """The items in their order, behind them the noun phrases of the captions among them, each once, as captions.

    Raises `InputError` where there are captions and none has a segment that names something.
    """
    present, phrases, captions = set(), dict[str, Item](), 0
    for item in items:
        if item.kind == "text":
            captions += 1
            present.add(item.key)
            for phrase in noun_phrases(str(item.content), item.segments):
                found = Item.caption(phrase, f"phrases/{item.source}")
                phrases.setdefault(found.key, found)
        yield item
    if captions and not phrases:
        what = f"--phrases: none of the {captions:,} captions comes with a segment that names something"
        raise InputError(what, "Have them found: --segments rules, or --segments spacy.")
    yield from (item for key, item in phrases.items() if key not in present)


def _lacks_segments(item: Item) -> bool:
    return item.kind == "text" and not item.segments and isinstance(item.content, str) and bool(item.content.strip())


class _Cache:
    """The segments of captions by key, computed where no table of the stores has them."""

    def __init__(self, stores: Sequence[Path], segmenter: Segmenter) -> None:
        from ..stores.segments import read_segments

        self._segmenter = segmenter
        # A segmenter's name in a file's: that of a module of another package has dots.
        self._name = re.sub(r"\W", "_", segmenter.name)
        self._tables = {store: read_segments(store, self._name, segmenter.version) for store in stores}
        self._known = {key: found for table in reversed(self._tables.values()) for key, found in table.items()}
        self._asked: dict[str, tuple[Segment, ...]] = {}

    def of(self, captions: dict[str, str]) -> dict[str, tuple[Segment, ...]]:
        """Key → segments of captions by key."""
        new = {key: text for key, text in captions.items() if key not in self._known}
        self._known |= zip(new, self._segmenter(list(new.values())) if new else (), strict=True)
        found = {key: self._known[key] for key in captions}
        self._asked |= found
        return found

    def save(self) -> None:
        """Once, at the end: a table is written whole each time. A store that is yet to be made gets it next time."""
        from ..stores.segments import add_segments

        for store, table in self._tables.items():
            lacking = {key: found for key, found in self._asked.items() if key not in table}
            if lacking and (store / "spec.json").is_file():
                add_segments(store, self._name, self._segmenter.version, lacking)
