"""A pairs table by number: who belongs to whom, which negatives were given, which pairs form swap groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ..errors import InputError, MissingFeatures, UnknownName
from ..stores.pairs import read_pairs
from .batches import Batch, Device, Features, FeatureTable
from .phrases import phrase_rows
from .tables import Staging


@dataclass(frozen=True, eq=False)
class Draw:
    """One batch as row numbers of a `PairTable`: unique images and captions, and who belongs to whom.

    images (I,), captions (C,) int64; positives (I, C) bool; groups (G, 4), pairs (N, 2), negatives (N, K)
    int64; scored (I, C) bool or None, phrases and further (N, M) int64 or None, told: see `Batch`.
    """

    images: np.ndarray
    captions: np.ndarray
    positives: np.ndarray
    groups: np.ndarray
    pairs: np.ndarray
    negatives: np.ndarray
    scored: np.ndarray | None = None
    phrases: np.ndarray | None = None
    further: np.ndarray | None = None
    told: Callable[[Sequence[int]], list[str]] | None = None

    def batch(
        self,
        features: FeatureTable,
        rows: slice | None = None,
        device: Device | None = None,
        staging: Staging | None = None,
    ) -> Batch:
        """The features of this draw, of all its captions and of `rows` of its images (None = all), on `device`, by
        default the table's. See `Batch.rows`; `staging` as in `FeatureTable.batch`."""
        images = self.images if rows is None else self.images[rows]
        batch = features.batch(images, self.captions, device, staging)
        batch.positives = torch.from_numpy(self.positives).to(batch.device)
        batch.groups = torch.from_numpy(self.groups).to(batch.device)
        batch.pairs = torch.from_numpy(self.pairs).to(batch.device)
        batch.negatives = torch.from_numpy(self.negatives).to(batch.device)
        if self.scored is not None:
            batch.scored = torch.from_numpy(self.scored).to(batch.device)
        if self.phrases is not None:
            batch.phrases = torch.from_numpy(self.phrases).to(batch.device)
        if self.further is not None:
            batch.further = torch.from_numpy(self.further).to(batch.device)
        batch.told, batch.rows = self.told, rows
        return batch


@dataclass(frozen=True, eq=False)
class PairTable:
    """N pairs of images and captions, each a row of its key list.

    images, captions   (N,) int64 rows
    negatives          (N + 1,) int64 starts into `negative_captions`, rows of captions
    quads              (G, 2) int64: the two pairs of each swap group
    labels             the table's own columns and the derived ones, N texts each, for the curriculum
    left_out           pairs whose image or caption is in the store's quarantine
    phrases            None: not read. Else starts into the second of these by row of a caption, and rows of captions:
                       the noun phrases of each
    store              which knows the captions as texts
    """

    path: Path
    image_keys: list[str]
    caption_keys: list[str]
    images: np.ndarray
    captions: np.ndarray
    negatives: np.ndarray
    negative_captions: np.ndarray
    quads: np.ndarray
    labels: dict[str, list[str]]
    left_out: int
    phrases: tuple[np.ndarray, np.ndarray] | None = None
    store: Features | None = field(default=None, repr=False)
    _captions_of: tuple[np.ndarray, np.ndarray] = field(init=False, repr=False)
    _paired_with: tuple[np.ndarray, np.ndarray] = field(init=False, repr=False)
    _quad_of: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        quad_of = np.full(len(self.images), -1, np.int64)
        quad_of[self.quads] = np.arange(len(self.quads))[:, None]
        object.__setattr__(self, "_quad_of", quad_of)
        images, captions = self.images, self.captions
        paired = described = _by_image(images, captions, len(self.image_keys))
        if self.phrases is not None:  # what an image's caption names is there: a phrase describes it too
            starts, rows = self.phrases
            counts = np.diff(starts)[captions]
            named = rows[_ranges(starts[captions], counts)]
            images = np.concatenate([images, np.repeat(images, counts)])
            described = _by_image(images, np.concatenate([captions, named]), len(self.image_keys))
        object.__setattr__(self, "_paired_with", paired)
        object.__setattr__(self, "_captions_of", described)

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def read(cls, path: Path, store: Features, labels: Sequence[str] = (), phrases: bool = False) -> PairTable:
        """Read a pairs table and hold it against the store; `labels` names the columns to keep as text. With `phrases`,
        find the noun phrases of the captions too, which follow them in `caption_keys`.

        Pairs in quarantine are left out and counted. Raises `MissingFeatures` for anything else that the
        store lacks, `InputError` for an empty table, for a group that is not two images × two captions, or where no
        caption has a phrase, `UnknownName` for a label that is neither a column nor derived (see `derived`).
        """
        table = read_pairs(path)
        lists = table["negatives"].combine_chunks()
        image_codes, image_keys = _codes(table["image"].combine_chunks())
        texts = pa.concat_arrays([table["caption"].combine_chunks(), lists.flatten()])
        text_codes, caption_keys = _codes(texts)
        caption_codes, negative_codes = text_codes[: len(table)], text_codes[len(table) :]
        lengths = np.asarray(lists.value_lengths().fill_null(0), dtype=np.int64)

        image_known = _known(image_keys, store, "image", path)
        caption_known = _known(caption_keys, store, "text", path)
        kept = image_known[image_codes] & caption_known[caption_codes]
        if not kept.any():
            raise InputError(f"{path} holds no pair with features", "Extract the dataset's split first.")
        owner = np.repeat(np.arange(len(table)), lengths)
        usable = kept[owner] & caption_known[negative_codes]
        counts = np.bincount(owner[usable], minlength=len(table))[kept]
        images, image_rows = np.unique(image_codes[kept], return_inverse=True)
        used = np.concatenate([caption_codes[kept], negative_codes[usable]])
        captions, caption_rows = np.unique(used, return_inverse=True)
        columns, pairs = table.filter(pa.array(kept)), int(kept.sum())
        keys = [caption_keys[code] for code in captions]
        named = phrase_rows(store, keys, np.unique(caption_rows[:pairs]), path) if phrases else None
        return cls(
            path=path,
            image_keys=[image_keys[code] for code in images],
            caption_keys=keys if named is None else named[0],
            images=image_rows,
            captions=caption_rows[:pairs],
            negatives=np.concatenate([[0], np.cumsum(counts)]),
            negative_captions=caption_rows[pairs:],
            quads=_quads(columns, image_rows, caption_rows[:pairs], path),
            labels={name: _label(name, columns, store) for name in dict.fromkeys(labels)},
            left_out=len(table) - pairs,
            phrases=None if named is None else named[1:],
            store=store,
        )

    def negatives_of(self, pair: int) -> np.ndarray:
        """Caption rows given as negatives of a pair."""
        return self.negative_captions[self.negatives[pair] : self.negatives[pair + 1]]

    def phrases_of(self, pair: int) -> np.ndarray:
        """Caption rows of the noun phrases of a pair's caption; none if they were not read."""
        if self.phrases is None:
            return self.captions[:0]
        starts, rows = self.phrases
        caption = self.captions[pair]
        return rows[starts[caption] : starts[caption + 1]]

    def further_of(self, pair: int) -> np.ndarray:
        """Caption rows of the other pairs of a pair's image, in the table's order, each once."""
        starts, ordered = self._paired_with
        image, own = self.images[pair], self.captions[pair]
        found = dict.fromkeys(ordered[starts[image] : starts[image + 1]].tolist())
        return np.array([row for row in found if row != own], dtype=np.int64)

    @cached_property
    def texts(self) -> list[str]:
        """The captions of `caption_keys`, read from the store when they are first asked for."""
        assert self.store is not None
        table = self.store.table("text").select(["key", "caption"])
        table = table.filter(pc.is_in(table["key"], value_set=pa.array(self.caption_keys, pa.string())))
        told = dict(zip(table["key"].to_pylist(), table["caption"].to_pylist(), strict=True))
        return [told[key] for key in self.caption_keys]

    def told(self, captions: np.ndarray, columns: Sequence[int]) -> list[str]:
        """As texts, those of the caption rows `captions` that stand at `columns`."""
        return [self.texts[captions[column]] for column in columns]

    def positives(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """(I, C) bool: the table pairs them, here or in any of its rows. So a caption of one image that
        stands in the batch because of another is no false negative."""
        starts, ordered = self._captions_of
        first, counts = starts[images], starts[images + 1] - starts[images]
        columns = _places(captions, ordered[_ranges(first, counts)])
        rows = np.repeat(np.arange(len(images)), counts)
        block = np.zeros((len(images), len(captions)), dtype=bool)
        block[rows[columns >= 0], columns[columns >= 0]] = True
        return block

    def draw(
        self,
        pairs: np.ndarray,
        negatives: list[np.ndarray],
        partners: np.ndarray | None = None,
        phrases: list[np.ndarray] | None = None,
        further: list[np.ndarray] | None = None,
    ) -> Draw:
        """The batch of `pairs` (n,) with the given negative captions of each, and noun phrases and further captions of
        its image where any are drawn.

        `partners` (k,): offsets in the batch; the image of pair j is scored with the caption of pair
        j + offset, its phrases and its further captions too, and with nothing else but its own. None: the whole block
        is scored.
        """
        images, rows = np.unique(self.images[pairs], return_inverse=True)
        own = self.captions[pairs]
        captions = np.unique(np.concatenate([own, *negatives, *(phrases or ()), *(further or ())]))
        columns = np.searchsorted(captions, own)
        numbers = np.unique(self._quad_of[pairs])
        quads = _places(pairs, self.quads[numbers[numbers >= 0]])
        quads = quads[(quads >= 0).all(axis=1)]
        groups = np.concatenate([rows[quads], columns[quads]], axis=1)
        positives = self.positives(images, captions)
        hard = _listed(captions, negatives)
        named, more = (None if lists is None else _listed(captions, lists) for lists in (phrases, further))
        told, own_pairs = partial(self.told, captions), np.stack([rows, columns], axis=1)
        drawn = Draw(images, captions, positives, groups, own_pairs, hard, None, named, more, told)
        if partners is None:
            return drawn
        scored = np.zeros_like(positives)
        scored[rows, columns] = True
        _mark(scored, rows, hard)
        for row, column in ((0, 3), (1, 2)):
            scored[groups[:, row], groups[:, column]] = True
        for offset in partners:
            scored[rows, np.roll(columns, -int(offset))] = True
        for listed in (each for each in (named, more) if each is not None):
            for offset in (0, *partners):
                _mark(scored, rows, np.roll(listed, -int(offset), axis=0))
        return dataclasses.replace(drawn, scored=scored)


def _by_image(images: np.ndarray, captions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts (count + 1,) into the second by image, and the captions of each image, in the order given."""
    order = np.argsort(images, kind="stable")
    return np.searchsorted(images[order], np.arange(count + 1)), captions[order]


def _ranges(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """first, first + 1, … (counts of them) of every entry, end to end."""
    # A Python loop over 256 images costs as much as a linear head's step.
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    ranges: np.ndarray = np.repeat(first, counts) + within
    return ranges


def _listed(captions: np.ndarray, lists: list[np.ndarray]) -> np.ndarray:
    """(n, longest) int64: where the entries of each list stand in the sorted `captions`, -1 = no more."""
    counts = np.array([len(one) for one in lists], dtype=np.int64)
    table = np.full((len(lists), counts.max(initial=0)), -1, np.int64)
    table[np.arange(table.shape[1]) < counts[:, None]] = np.searchsorted(
        captions, np.concatenate([captions[:0], *lists])
    )
    return table


def _mark(block: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
    """Set the entries (rows[n], columns[n, m]) of a bool block; -1 is none."""
    block[np.repeat(rows, (columns >= 0).sum(axis=1)), columns[columns >= 0]] = True


def _places(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each of `wanted` (any shape) stands in `values` (n,), in time that does not grow with the table; -1 where
    it does not."""
    if not len(values):
        return np.full(wanted.shape, -1, np.int64)
    order = np.argsort(values, kind="stable")
    at = np.searchsorted(values, wanted, side="right", sorter=order) - 1
    found: np.ndarray = np.where((at >= 0) & (values[order[at]] == wanted), order[at], -1)
    return found


def _codes(array: pa.Array) -> tuple[np.ndarray, list[str]]:
    encoded = array.dictionary_encode()
    return np.asarray(encoded.indices, dtype=np.int64), encoded.dictionary.to_pylist()


def _known(keys: list[str], store: Features, kind: str, path: Path) -> np.ndarray:
    """Whether the store holds each key; what it neither holds nor quarantined is an error."""
    held = store.keys(kind)
    known = np.array([key in held for key in keys], dtype=bool)
    refused = set() if known.all() else {entry.key for entry in store.quarantined()}
    absent = [key for key, there in zip(keys, known, strict=True) if not there and key not in refused]
    if absent:
        raise MissingFeatures(
            f"the store lacks {len(absent)} of the {len(keys)} {kind}s of {path}: {', '.join(absent[:3])}",
            f"Add them: compal extract --backbone {store.spec.backbone} --data NAME",
        )
    return known


def _quads(columns: pa.Table, images: np.ndarray, captions: np.ndarray, path: Path) -> np.ndarray:
    """(G, 2) pair numbers. A group that lost a pair to the quarantine is no group any more."""
    members: dict[str, list[int]] = {}
    for pair, name in enumerate(columns["group"].to_pylist()):
        if name:
            members.setdefault(name, []).append(pair)
    quads = [pairs for pairs in members.values() if len(pairs) > 1]
    for pairs in quads:
        if not len(pairs) == len(set(images[pairs])) == len(set(captions[pairs])) == 2:
            name = columns["group"][pairs[0]].as_py()
            raise InputError(
                f"group '{name}' of {path} is not two images × two captions",
                "A swap group is two pairs: two different images, two different captions.",
            )
    return np.array(quads, dtype=np.int64).reshape(-1, 2)


def _label(name: str, columns: pa.Table, store: Features) -> list[str]:
    """A column as text, or a derived one, of the pair's caption: `objects`, how many segments of kind
    "object" it has, and `words`, how many words."""
    if name in columns.column_names:
        return [str(value) for value in columns[name].to_pylist()]
    if name not in ("objects", "words"):
        raise UnknownName.among("column to choose pairs by", name, ["group", "category", "objects", "words"])
    table = store.table("text")
    if name == "words":
        counts = [len(caption.split()) for caption in table["caption"].to_pylist()]
    else:
        segments = table["segments"].to_pylist()
        counts = [sum(segment["kind"] == "object" for segment in found or ()) for found in segments]
    by_key = dict(zip(table["key"].to_pylist(), map(str, counts), strict=True))
    return [by_key[key] for key in columns["caption"].to_pylist()]
