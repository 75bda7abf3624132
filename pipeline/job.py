"""A job: what is extracted, where it goes and how, as plain data that any process or machine can act on."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from .. import registry
from ..config import from_dict, to_dict
from ..errors import UsageError
from ..stores.items import Item, Pair
from ..stores.spec import FeatureSpec
from . import listing as listings
from .patience import Patience
from .plan import ExtractConfig
from .regions import LEVELS

# What in a root is no folder: a pattern, or a file of rows or images.
_NO_FOLDER = re.compile(r"[*?\[{]|\.(csv|jsonl?|parquet|arrow|tar)$")


@dataclass(frozen=True)
class Listing:
    """How to list the items again elsewhere: those of a dataset, or of a benchmark.

    data           NAME[:ROOT], its root absolute; "" for a benchmark
    split, limit   as the dataset or the benchmark takes them
    segments       the segmenter of captions without segments, for the process that plans; "" or "dataset" for none
    benchmark      its name; "" for a dataset
    root, images   folders of the benchmark's files and photographs, "" for none
    allow_missing  whether items without a photograph are left out
    variant        form of the benchmark that is not its default; "" for that
    negatives      tables of `compal negatives`, whose captions are extracted and paired too
    phrases        whether the noun phrases of the captions are extracted too
    """

    data: str = ""
    split: str = ""
    limit: int | None = None
    segments: str = ""
    benchmark: str = ""
    root: str = ""
    images: str = ""
    allow_missing: bool = False
    negatives: tuple[str, ...] = ()
    phrases: bool = False
    variant: str = ""

    def items(self) -> Iterator[Item]:
        """The items as they are, without the segments of a segmenter and noun phrases: captions travel in the plan."""
        return self._of_benchmark() if self.benchmark else self._of_dataset()

    def segmented(self, items: Iterable[Item], *stores: Path, keep: bool = True) -> Iterator[Item]:
        """Items with the segments of the segmenter, behind them the noun phrases if these are asked for; see
        `segments.segmented` and `segments.with_phrases`."""
        from .segments import segmented, with_phrases

        found = segmented(items, self.segments, *stores, keep=keep)
        return with_phrases(found) if self.phrases else found

    def _of_benchmark(self) -> Iterator[Item]:
        module = registry.load("benchmarks", self.benchmark)
        root, images = (Path(text) if text else None for text in (self.root, self.images))
        there = [folder for folder in self.roots if os.path.exists(folder)]

        def listed() -> list[Item]:
            # The benchmark's own word for where its files are: rooms below the evaluation do not import it.
            chosen = self.split or None, self.limit, self.variant or None
            sources = module.Sources(root, images, self.allow_missing, *chosen)
            try:
                return list(module.items(sources))
            finally:
                for folder in there:
                    if not os.path.exists(folder):  # what was missing then is not missing
                        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(folder))

        return iter(listings.patiently(self.root or self.images or None, listed))

    def _of_dataset(self) -> Iterator[Item]:
        name, root = registry.split_argument(self.data)
        dataset = registry.load("datasets", name)
        place = Path(root) if root else None
        items: Iterator[Item] = listings.patiently(self._inside, lambda: dataset.items(place, self.split, self.limit))
        if not self.negatives:
            return items
        from .negatives_table import read, with_negatives

        return with_negatives(items, (), [read(Path(table)) for table in self.negatives])[0]

    def pairs(self) -> Iterator[Pair]:
        """The pairs of the dataset's split."""
        name, root = registry.split_argument(self.data)
        dataset = registry.load("datasets", name)
        place = Path(root) if root else None
        pairs: Iterator[Pair] = listings.patiently(self._inside, lambda: dataset.pairs(place, self.split, self.limit))
        if not self.negatives:
            return pairs
        from .negatives_table import read, with_negatives

        return with_negatives((), pairs, [read(Path(table)) for table in self.negatives])[1]

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders that the items lie in: one that is gone is a network share that is gone."""
        root, *options = re.split(r"\?(?=\w+=)", self.data.partition(":")[2], maxsplit=1)
        named = (root, dict(parse_qsl("".join(options))).get("images", ""), self.root, self.images)
        return tuple(_folder(text) for text in named if text)

    @property
    def _inside(self) -> Path | None:
        return self.roots[0] / "annotations" if self.roots else None

    def patience(self, config: ExtractConfig) -> Patience:
        """How long a share may be gone, `config.patience` seconds, while the items are listed or read."""
        return Patience(config.patience, self.roots)


def _folder(text: str) -> Path:
    """The folder that a root names, or that its files lie in."""
    parts = Path(text).expanduser().parts
    return Path(*itertools.takewhile(lambda part: not _NO_FOLDER.search(part), parts))


@dataclass(frozen=True)
class Job:
    """What a worker is told. Raises `UsageError`, or `UnknownName` for the engine, if it cannot be done.

    specs    one for each level; equal but for what a level changes
    folders  of their stores
    config   how to extract
    listing  how to list the items again; None where the items were given as objects
    items    how many there are to encode
    """

    specs: tuple[FeatureSpec, ...]
    folders: tuple[Path, ...]
    config: ExtractConfig
    listing: Listing | None = None
    items: int = 0

    def __post_init__(self) -> None:
        if not self.specs or len(self.specs) != len(self.folders):
            raise UsageError("a job needs as many folders as specs, and at least one")
        levels = [spec.level for spec in self.specs]
        if len(set(levels)) < len(levels):
            raise UsageError(f"levels {', '.join(levels)}: one stands twice", "Name each level once.")
        passes = {(spec.backbone, spec.weights, spec.precision) for spec in self.specs if spec.rung != "pixels"}
        if len(passes) > 1:
            raise UsageError("the levels of one pass must share their backbone and precision")
        if "." not in self.config.engine:
            registry.path("engines", self.config.engine)
        pooled = [level for level in levels if level in LEVELS and LEVELS[level].pooled and not LEVELS[level].dense]
        if pooled and self.config.through:
            what = f"level {pooled[0]} is pooled from the store of tokens, which workers behind a remote do not see"
            raise UsageError(what, "Extract it without --through.")

    def to_json(self) -> dict[str, Any]:
        """Plain values only. Remotes stay behind: only the process that plans asks them."""
        return {
            "specs": [dataclasses.asdict(spec) for spec in self.specs],
            "folders": [str(folder) for folder in self.folders],
            "config": to_dict(dataclasses.replace(self.config, remotes=(), through=None)),
            "listing": to_dict(self.listing) if self.listing else None,
            "items": self.items,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Job:
        """The inverse of `to_json`."""
        config = dict(data["config"])
        size = config.pop("batch_size", None)  # a probe's None is left out of the JSON
        return cls(
            tuple(FeatureSpec.from_json(spec) for spec in data["specs"]),
            tuple(Path(folder) for folder in data["folders"]),
            dataclasses.replace(from_dict(ExtractConfig, config), batch_size=size),
            from_dict(Listing, data["listing"]) if data["listing"] else None,
            int(data["items"]),
        )
