"""The one loop from a dataset's captions to a table of negatives: list, generate, sieve, write.

Whatever the method, nothing is written that equals its caption, stands twice, or is a true caption of the same
image; what was dropped, and why captions have no negative, is counted and kept with the table.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import __version__, registry
from ..config import apply_settings, fingerprint, from_dict, to_dict
from ..errors import InputError
from ..stores.items import caption_key
from ..workspace import Workspace
from . import listing, negatives_table
from .negatives._contract import Around, Caption, Negative
from .negatives._text import plain
from .negatives_table import Row


@dataclass(frozen=True)
class Request:
    """What is asked for.

    method    name of a file in pipeline/negatives, or a dotted module
    data      NAME[:ROOT], and its `split`
    settings  KEY=VALUE strings over the method's defaults
    seed      of all draws
    limit     the first so many images only
    """

    method: str
    data: str
    split: str
    settings: tuple[str, ...] = ()
    seed: int = 0
    limit: int | None = None


@dataclass(frozen=True)
class Plan:
    """What a run would do: the file it writes, whether that is there already, and an estimate of the cost."""

    path: Path
    exists: bool
    captions: int
    estimate: dict[str, object]


class Negation:
    """A request, resolved: the method is loaded, its settings are checked, the captions are listed.

    Raises `UnknownName` for a method, dataset, split or setting that does not exist, `UsageError` for a wrong
    value, `InputError` for a dataset without captions, and what the dataset and the method raise.
    """

    def __init__(self, request: Request, workspace: Workspace) -> None:
        self.request, self.workspace = request, workspace
        self._method: ModuleType = registry.load("negatives", request.method)
        self.config: Any = from_dict(self._method.Config, apply_settings({}, list(request.settings)))
        self._refused = Counter[str]()
        with listing.use(workspace.path / "listing.sqlite"):  # the images' keys are hashes of whole files
            self.captions = captions_of(request, workspace, lambda why: self._refused.update([why]))
        if not self.captions:
            raise InputError(f"{request.data} has no caption in the split {request.split}", "Choose another split.")
        self._around = Around(workspace, request.data, request.split)
        self._provenance: dict[str, str] = _optional(self._method, "provenance", self.config, self._around) or {}
        self.path = negatives_table.folder(workspace) / f"{self._name()}.parquet"

    def _name(self) -> str:
        """Equal inputs give an equal name."""
        request, kept = self.request, to_dict(self.config)
        for field in getattr(self._method, "TRANSPORT", ()):
            kept.pop(field, None)
        digest = hashlib.sha256()
        for caption in self.captions:
            digest.update(" ".join((caption.key, *sorted(caption.images), "\n")).encode())
        inputs = [self._method.INFO["version"], kept, request.seed, self._provenance, digest.hexdigest()]
        self.identity = fingerprint([request.method, *inputs])
        data = Path(registry.split_argument(request.data)[0]).name
        parts = (data, request.split, request.method)
        return "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.") for part in parts) + f"-{self.identity[:12]}"

    def plan(self) -> Plan:
        """What `run` would do. Writes nothing and asks nobody."""
        estimate = _optional(self._method, "estimate", self.captions, self.config, self.request.seed, self._around)
        return Plan(self.path, self.path.is_file(), len(self.captions), estimate or {})

    def run(self, tick: Callable[[int, int], None] = lambda done, total: None) -> Path:
        """Write the table, unless it is there, and return its path. `tick` hears how many captions are done.

        Raises `InputError` if a file of other inputs has the name, and what the method raises.
        """
        if self.path.is_file():
            if negatives_table.read(self.path).meta.get("identity") != self.identity:
                raise InputError(f"{self.path} was made from other inputs", "Rename it; a table is never overwritten.")
            return self.path
        meta, counts = self._meta(), _Counts(self.captions)
        around = Around(
            self.workspace, self.request.data, self.request.split, counts.missed,
            lambda done: tick(done, len(self.captions)),
        )  # fmt: skip
        found = self._method.generate(self.captions, self.config, self.request.seed, around)
        negatives_table.write(self.path, self._rows(found, counts, meta), meta)
        return self.path

    def _rows(self, found: Iterator[Negative], counts: _Counts, meta: dict[str, Any]) -> Iterator[Row]:
        """The rows; `meta` has its counts when the last one has come."""
        for negative in counts.sieve(found):
            caption = self.captions[negative.caption]
            yield (caption.key, caption.text, negative.text, negative.type, self.request.method, negative.detail)
        meta["counts"] = counts.summary() | {"unreadable": dict(self._refused.most_common())}

    def _meta(self) -> dict[str, Any]:
        request = self.request
        name, _ = self.workspace.dataset(request.data)
        dataset = registry.load("datasets", name).INFO
        return {
            "identity": self.identity,
            "method": request.method,
            "source": self._method.INFO.get("source", ""),
            "method_version": self._method.INFO["version"],
            "config": to_dict(self.config),
            "seed": request.seed,
            "compal": __version__,
            "data": request.data,
            "split": request.split,
            "limit": request.limit,
            "dataset_revision": str(dataset.get("revision", "")),
            "dataset_licence": str(dataset.get("licence", "")),
            "licence": self._method.INFO.get("licence", ""),
            "provenance": self._provenance,
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": " ".join(sys.argv),
        }


def _optional(method: ModuleType, name: str, *arguments: Any) -> Any:
    function = getattr(method, name, None)
    return function(*arguments) if function else None


def captions_of(
    request: Request, workspace: Workspace, refuse: Callable[[str], None] = lambda why: None
) -> list[Caption]:
    """The captions of a split, each text once with all its images, in the dataset's order. `refuse` is told why of each
    one that an extraction puts into quarantine: it has no features, so that negatives of it serve nothing."""
    from .decode import Unreadable, read_caption

    name, root = workspace.dataset(request.data)
    dataset = registry.load("datasets", name)
    texts: dict[str, str] = {}
    seen: set[str] = set()
    for item in dataset.items(root, request.split, request.limit):
        if item.kind == "text" and item.key not in seen:
            seen.add(item.key)
            try:
                texts[item.key] = read_caption(item)
            except Unreadable as error:
                refuse(str(error))
    images: dict[str, list[str]] = defaultdict(list)
    for pair in dataset.pairs(root, request.split, request.limit):
        images[pair.caption].append(pair.image)
    return [Caption(key, text, tuple(dict.fromkeys(images[key]))) for key, text in texts.items()]


class _Counts:
    """Sieves what a method yields, and counts."""

    def __init__(self, captions: Sequence[Caption]) -> None:
        self._captions = captions
        # Hashes stand for texts: 12 million captions take 0.5 GB so, and a collision is rarer than one in 10^10 runs.
        self._plain = [hash(plain(caption.text)) for caption in captions]
        self._true: dict[str, set[int]] = defaultdict(set)
        for caption, text in zip(captions, self._plain, strict=True):
            for image in caption.images:
                self._true[image].add(text)
        self._all = set(self._plain)
        self._why: dict[int, str] = {}
        self._dropped: Counter[str] = Counter()
        self._with: set[int] = set()
        self._in_dataset = 0

    def missed(self, index: int, why: str) -> None:
        """The caption has no negative."""
        self._why[index] = why

    def sieve(self, found: Iterator[Negative]) -> Iterator[Negative]:
        """What may be kept."""
        current, seen = -1, set[int]()
        for raw in found:
            negative = Negative(*raw)
            if negative.caption != current:
                current, seen = negative.caption, {self._plain[negative.caption]}
            text = hash(plain(negative.text))
            why = self._problem(negative, text, seen)
            if why:
                self._dropped[why] += 1
                self._why.setdefault(negative.caption, f"only {why}")
                continue
            seen.add(text)
            self._with.add(negative.caption)
            self._in_dataset += text in self._all
            yield negative

    def _problem(self, negative: Negative, text: int, seen: set[int]) -> str:
        caption = self._captions[negative.caption]
        if not plain(negative.text):
            return "empty"
        if text == self._plain[negative.caption]:
            return "the caption itself"
        if text in seen:
            return "another negative of the caption"
        if any(text in self._true[image] for image in caption.images):
            return "a true caption of the image"
        try:
            caption_key(negative.text)
        except UnicodeEncodeError:
            return "not Unicode"
        return ""

    def summary(self) -> dict[str, Any]:
        """Captions, those with a negative, why others have none, what was dropped, what the dataset says itself."""
        why = Counter(
            self._why.get(index, "nothing was generated")
            for index in range(len(self._captions))
            if index not in self._with
        )
        return {
            "captions": len(self._captions),
            "with_negatives": len(self._with),
            "without": dict(why.most_common()),
            "dropped": dict(self._dropped.most_common()),
            "in_dataset": self._in_dataset,
        }
