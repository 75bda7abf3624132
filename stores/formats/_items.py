"""From named arrays back to a store: the small columns are read and checked whole, features part by part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..buffers import Array
from ..items import Segment, caption_key
from ..rows import ImageRows, TextRows, token_dim
from ..sizes import part_rows
from ..spec import FeatureSpec
from ._columns import FIELDS, MEAN, Source
from ._common import KINDS, PLURAL, Importer, Kind, check_spans, first_twice, quarantined_in, refuse, runs

LARGEST_SIZE = 1 << 31


def load_columns(source: Source, folder: Path, spec: FeatureSpec, names: Mapping[str, str]) -> Path:
    """Write the arrays of `source` as the store of `spec` below `folder`, and return the store's folder.

    `names` says for each of our names (`images.keys`) how the source calls that array. Everything is checked
    before the store is made. Raises `InputError` for what does not fit.
    """
    refused = quarantined_in(source.label, source.notes)
    found: list[Items] = []
    for kind in KINDS:
        prefix = f"{PLURAL[kind]}."
        own = {field: names[prefix + field] for field in FIELDS[kind] if prefix + field in names}
        if own:
            found.append(Items(source, spec, kind, own))
    importer = Importer(source.label, folder, spec, refused)
    for items in found:
        items.write(importer)
    return importer.finish()


class Items:
    """All items of one kind in a source. `names` maps fields (`keys`) to the source's names."""

    def __init__(self, source: Source, spec: FeatureSpec, kind: Kind, names: dict[str, str]) -> None:
        self.source, self.spec, self.kind, self.names = source, spec, kind, names
        self.captions = self._strings("captions") if kind == "text" else []
        self.keys = self._keys()
        self.count = len(self.keys)
        self.sources = self._strings("sources", self.count) if "sources" in names else self.keys
        self.offsets = self._token_offsets()
        self.lengths = self._lengths()
        self._check_features()
        if kind == "image":
            self.sizes = self._whole("sizes", (self.count, 2), [0, 0])
            if ((self.sizes < 0) | (self.sizes >= LARGEST_SIZE)).any():
                raise self._refuse(f"{names['sizes']} holds sizes that no image has")
        else:
            self.pool_index = self._whole("pool_index", (self.count,), -1)
            self.truncated = self._whole("truncated", (self.count,), 0)
            self.spans = self._whole("spans", (-1, 2), [0, 0])
            self.span_offsets = self._cuts("span_offsets", len(self.spans))
            self.segments = self._whole("segments", (-1, 2), [0, 0])
            self.segment_offsets = self._cuts("segment_offsets", len(self.segments))
            self.segment_kinds = self._strings("segment_kinds", len(self.segments)) if len(self.segments) else []

    def write(self, importer: Importer) -> None:
        """Hand all rows to the importer, one part at a time."""
        arrays = self._arrays().values()
        whole = sum(float(np.prod(shape, dtype=np.float64)) * dtype.itemsize for shape, dtype in arrays)
        for run in runs(self.count, part_rows(whole / max(1, self.count))):
            if self.kind == "image":
                importer.images(self._images(run))
            else:
                importer.texts(self._texts(run))

    def _refuse(self, what: str) -> Exception:
        return refuse(self.source.label, what)

    def _strings(self, name: str, count: int = -1) -> list[str]:
        if name not in self.names:
            raise self._refuse(f"its {PLURAL[self.kind]} have no {name}")
        values = self.source.strings(self.names[name])
        if count not in (-1, len(values)):
            raise self._refuse(f"it has {count} {PLURAL[self.kind]} and {len(values)} {name}")
        return values

    def _keys(self) -> list[str]:
        if self.kind == "text" and "keys" not in self.names:
            keys = [caption_key(text) for text in self.captions]
        else:
            keys = self._strings("keys", len(self.captions) if self.kind == "text" else -1)
        twice = first_twice(keys)
        if twice is not None:
            raise self._refuse(f"the key {twice!r} stands twice among its {PLURAL[self.kind]}")
        return keys

    def _whole(self, name: str, shape: tuple[int, ...], default: Any) -> Array:
        """A small column of integers as int64; -1 in `shape` stands for any length (none if it is absent)."""
        if name not in self.names:
            return np.full(tuple(max(0, n) for n in shape), default, np.int64)
        found, dtype = self.source.describe(self.names[name])
        fits = len(found) == len(shape) and all(n in (-1, m) for n, m in zip(shape, found, strict=False))
        if not fits or dtype.kind not in "iub":
            raise self._refuse(f"{self.names[name]} is {dtype} {found} in place of integers {shape}")
        return self.source.rows(self.names[name], 0, found[0]).astype(np.int64)

    def _cuts(self, name: str, end: int) -> Array:
        values = self._whole(name, (self.count + 1,), 0)
        if values[0] != 0 or (np.diff(values) < 0).any() or values[-1] != end:
            raise self._refuse(f"{self.names.get(name, name)} does not cut its {end} rows into {self.count} items")
        return values

    def _token_offsets(self) -> Array | None:
        """Where each item's tokens start and end, if they lie behind each other."""
        if "tokens" not in self.names or "offsets" not in self.names:
            return None
        offsets = self._cuts("offsets", self.source.describe(self.names["tokens"])[0][0])
        if (np.diff(offsets) < 1).any():
            raise self._refuse("it has items without tokens")
        return offsets

    def _lengths(self) -> Array | None:
        """How many of an item's tokens are valid, if they are padded to one length."""
        if "tokens" not in self.names or "lengths" not in self.names:
            return None
        lengths, shape = self._whole("lengths", (self.count,), 0), self.source.describe(self.names["tokens"])[0]
        if len(shape) != 3 or (lengths < 1).any() or (lengths > shape[1]).any():
            raise self._refuse(f"{self.names['lengths']} does not lie within the tokens {shape}")
        return lengths

    def _arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        names = {name: self.names.get(name, MEAN) for name in ("pooled", "tokens")}
        return {name: self.source.describe(place) for name, place in names.items() if place != MEAN}

    def _check_features(self) -> None:
        """Shapes against the spec and the number of keys, and numbers that a store can hold."""
        spec = self.spec
        found = self._arrays()
        wanted: dict[str, tuple[int, ...]] = {}
        if spec.pooled_dim and self.names.get("pooled") != MEAN:
            wanted["pooled"] = (self.count, spec.pooled_dim)
        dim = token_dim(spec, self.kind)
        if dim and self.offsets is not None:
            wanted["tokens"] = (int(self.offsets[-1]), dim)
        elif dim and self.kind == "text":
            length = found["tokens"][0][1] if len(found.get("tokens", ((),))[0]) == 3 else 0
            wanted["tokens"] = (self.count, length, dim)
        elif dim:
            wanted["tokens"] = (self.count, *spec.image_shape)
        shapes = {name: shape for name, (shape, _) in found.items()}
        if shapes != wanted:
            raise self._refuse(f"its {PLURAL[self.kind]} hold {shapes}; the keys and the spec say {wanted}")
        bits = {"bfloat16": np.dtype(np.uint16), "uint8": np.dtype(np.uint8)}.get(spec.dtype)
        for name, (_, dtype) in found.items():
            if dtype != bits and (spec.dtype == "uint8" or dtype.kind != "f" or dtype.itemsize > 8):
                what = "uint8" if spec.dtype == "uint8" else "floating-point numbers"
                raise self._refuse(f"{self.names[name]} holds {dtype}, not {what}")

    def _tokens(self, run: slice) -> Array | list[Array] | None:
        if "tokens" not in self.names:
            return None
        name = self.names["tokens"]
        if self.offsets is not None:
            start, stop = int(self.offsets[run.start]), int(self.offsets[run.stop])
            values = self.source.rows(name, start, stop)
            return list(np.split(values, self.offsets[run.start + 1 : run.stop] - start))
        values = self.source.rows(name, run.start, run.stop)
        if self.kind == "image":
            return values
        if self.lengths is None:
            return list(values)
        return [row[:length] for row, length in zip(values, self.lengths[run].tolist(), strict=True)]

    def _images(self, run: slice) -> ImageRows:
        tokens = self._tokens(run)
        sizes = [(width, height) for width, height in self.sizes[run].tolist()]
        if self.names.get("pooled") == MEAN:
            pooled = np.asarray(tokens).mean(axis=1, dtype=np.float64).astype(np.float32)
        else:
            pooled = self._pooled(run)
        return ImageRows(self.keys[run], self.sources[run], sizes, tokens, pooled)

    def _pooled(self, run: slice) -> Array:
        if not self.spec.pooled_dim:
            return np.empty((run.stop - run.start, 0), np.uint8)
        return self.source.rows(self.names["pooled"], run.start, run.stop)

    def _texts(self, run: slice) -> TextRows:
        tokens = self._tokens(run)
        tokens = list(tokens) if isinstance(tokens, np.ndarray) else tokens
        spans: list[list[tuple[int, int]]] = []
        segments: list[tuple[Segment, ...]] = []
        for item in range(run.start, run.stop):
            first, last = int(self.span_offsets[item]), int(self.span_offsets[item + 1])
            spans.append([(start, end) for start, end in self.spans[first:last].tolist()])
            first, last = int(self.segment_offsets[item]), int(self.segment_offsets[item + 1])
            pairs = zip(self.segments[first:last].tolist(), self.segment_kinds[first:last], strict=True)
            segments.append(tuple((start, end, kind) for (start, end), kind in pairs))
        if tokens is not None and "spans" not in self.names:
            spans = [[(-1, -1)] * len(row) for row in tokens]
        rows = TextRows(
            keys=self.keys[run],
            captions=self.captions[run],
            sources=self.sources[run],
            tokens=tokens,
            pooled=self._pooled(run),
            spans=spans,
            pool_index=self.pool_index[run].tolist(),
            truncated=[bool(value) for value in self.truncated[run]],
            segments=segments,
        )
        check_spans(self.source.label, rows)
        return rows
