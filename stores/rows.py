"""Rows on their way into a store: what a writer hands over, checked against the spec, and their tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import InputError, VerificationError
from .buffers import Array
from .files import RESTORE
from .items import Segment
from .spec import FeatureSpec

SPAN = pa.struct([pa.field("start", pa.int32(), nullable=False), pa.field("end", pa.int32(), nullable=False)])
SEGMENT = pa.struct([*SPAN, pa.field("kind", pa.string(), nullable=False)])
IMAGE_SCHEMA = pa.schema([("key", pa.string()), ("source", pa.string()), ("width", pa.int32()), ("height", pa.int32())])
TEXT_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("caption", pa.string()),
        ("spans", pa.list_(SPAN)),
        ("pool_index", pa.int32()),
        ("truncated", pa.bool_()),
        ("segments", pa.list_(SEGMENT)),
    ]
)
QUARANTINED = ("key", "kind", "source", "reason")
SCHEMAS = {"image": IMAGE_SCHEMA, "text": TEXT_SCHEMA}


@dataclass
class ImageRows:
    """N images.

    keys, sources  N content keys, and where each comes from
    sizes          (width, height) in pixels before preprocessing
    tokens         (N, P, D), or for regions N arrays of (R_i, D), or None at the pooled level; at level pixels
                   (N, H, 3 · W) uint8, the rows of the preprocessed picture
    pooled         (N, E); (N, 0) at level pixels
    """

    keys: list[str]
    sources: list[str]
    sizes: list[tuple[int, int]]
    tokens: Array | Sequence[Array] | None
    pooled: Array


@dataclass
class TextRows:
    """N captions.

    keys, sources  N content keys, and where each comes from
    captions       the exact text
    tokens         N arrays of (L_i, D), valid tokens only, or None where none are kept; at level pixels (L_i, 4)
                   uint8, each token id as 4 bytes, little endian
    pooled         (N, E); (N, 0) at level pixels
    spans          the (start, end) characters of each token, (-1, -1) for special tokens
    pool_index     which stored token the tower pools, -1 if none
    truncated      whether the caption was longer than the context
    segments       (start, end, kind) character spans of objects and relations
    """

    keys: list[str]
    captions: list[str]
    sources: list[str]
    tokens: Sequence[Array] | None
    pooled: Array
    spans: list[list[tuple[int, int]]] = field(default_factory=list)
    pool_index: list[int] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    segments: list[tuple[Segment, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Columns left out: no spans, nothing pooled by index, nothing truncated, no segments."""
        count = len(self.keys)
        self.spans = self.spans or [[] for _ in range(count)]
        self.pool_index = self.pool_index or [-1] * count
        self.truncated = self.truncated or [False] * count
        self.segments = self.segments or [()] * count


@dataclass(frozen=True)
class Quarantined:
    """An item that could not be read, and why."""

    key: str
    kind: str
    source: str
    reason: str


def quarantined_of(done: dict[str, Any]) -> list[Quarantined]:
    """The quarantined items that a done file lists. Raises `VerificationError` if the list is malformed."""
    try:
        return [Quarantined(*(str(entry[name]) for name in QUARANTINED)) for entry in done["quarantined"]]
    except (KeyError, TypeError):
        raise VerificationError(f"the done file of part {done.get('part')} is damaged", RESTORE) from None


def image_dim(spec: FeatureSpec) -> int:
    """D of an image token; 0 if none are kept. Regions are pooled vectors unless the spec says otherwise."""
    dim = spec.image_shape[-1] if spec.image_shape else 0
    return dim or (spec.pooled_dim if spec.ragged_images else 0)


def token_dim(spec: FeatureSpec, kind: str) -> int:
    """D of a token of a kind; 0 if none are kept."""
    return spec.text_dim if kind == "text" else image_dim(spec)


def is_ragged(spec: FeatureSpec, kind: str) -> bool:
    """Whether items of a kind have unequal numbers of tokens."""
    return kind == "text" or spec.ragged_images


def check_images(rows: ImageRows, spec: FeatureSpec, quarantined: Iterable[Quarantined]) -> None:
    """Raises `InputError` if the rows do not fit the spec or each other, or a key stands twice."""
    count = len(rows.keys)
    _check_keys(rows.keys, rows.sources, "image", quarantined)
    _equal_lengths(count, sources=rows.sources, sizes=rows.sizes, pooled=rows.pooled)
    _check_pooled(rows.pooled, spec, "image")
    dim = image_dim(spec)
    if not count:
        return
    _check_kept(dim, rows.tokens, spec, "image")
    if dim == 0 or rows.tokens is None:
        if (dim == 0) != (rows.tokens is None):
            raise InputError(f"image tokens {'expected by' if dim else 'given against'} level {spec.level}")
    elif spec.ragged_images:
        _check_ragged(rows.tokens, dim, (rows.keys, rows.sources), "image")
    elif not isinstance(rows.tokens, np.ndarray) or rows.tokens.shape != (count, *spec.image_shape):
        shape = getattr(rows.tokens, "shape", type(rows.tokens).__name__)
        raise InputError(f"image tokens are {shape}, the spec says {(count, *spec.image_shape)}")


def check_texts(rows: TextRows, spec: FeatureSpec, quarantined: Iterable[Quarantined]) -> None:
    """Raises `InputError` if the rows do not fit the spec or each other, or a key stands twice."""
    count = len(rows.keys)
    _check_keys(rows.keys, rows.sources, "text", quarantined)
    _equal_lengths(count, sources=rows.sources, captions=rows.captions, pooled=rows.pooled)
    _equal_lengths(count, spans=rows.spans, pool_index=rows.pool_index, truncated=rows.truncated)
    _equal_lengths(count, segments=rows.segments)
    _check_pooled(rows.pooled, spec, "text")
    if not count:
        return
    _check_kept(spec.text_dim, rows.tokens, spec, "text")
    if (spec.text_dim == 0) != (rows.tokens is None):
        raise InputError(f"text tokens {'missing' if spec.text_dim else 'given'}, the spec has {spec.text_dim}")
    if rows.tokens is None:
        return
    _check_ragged(rows.tokens, spec.text_dim, (rows.keys, rows.sources), "text")
    for key, tokens, spans, pool in zip(rows.keys, rows.tokens, rows.spans, rows.pool_index, strict=True):
        if len(tokens) != len(spans) or not -1 <= pool < len(tokens):
            raise InputError(
                f"caption {key} has {len(tokens)} tokens, {len(spans)} spans, and pools token {pool}",
                "The backbone must give one span per stored token.",
            )


def spans_inside(caption: str, spans: Iterable[tuple[int, int]], segments: Iterable[tuple[int, int]]) -> bool:
    """Whether the (start, end) of tokens and of segments lie in their caption; special tokens are at (-1, -1)."""
    size = len(caption)
    tokens = (span for span in spans if span != (-1, -1))
    return all(0 <= start <= end <= size for start, end in (*tokens, *segments))


def _check_keys(keys: list[str], sources: list[str], kind: str, quarantined: Iterable[Quarantined]) -> None:
    counts = Counter([*keys, *(item.key for item in quarantined)])
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        where = dict(zip(keys, sources, strict=False)).get(twice[0], "")
        raise InputError(f"{kind} {twice[0]} ({where}) stands twice in one part", "Plan each key once.")
    if not all(isinstance(key, str) and key for key in counts):
        raise InputError(f"an empty key among the {kind}s of a part")


def _equal_lengths(count: int, **columns: Any) -> None:
    for name, column in columns.items():
        if len(column) != count:
            raise InputError(f"{count} keys but {len(column)} {name}")


def _check_pooled(pooled: Array, spec: FeatureSpec, kind: str) -> None:
    if pooled.ndim != 2 or (len(pooled) and pooled.shape[1] != spec.pooled_dim):
        raise InputError(f"pooled {kind} embeddings are {pooled.shape}, the spec says (N, {spec.pooled_dim})")


def _check_kept(dim: int, tokens: Array | Sequence[Array] | None, spec: FeatureSpec, kind: str) -> None:
    """Bytes are stored as they are given: no other number is cast to one, or wraps around."""
    if not dim and not spec.pooled_dim:
        raise InputError(f"the spec keeps neither tokens nor pooled embeddings of {kind}s")
    blocks = [tokens] if isinstance(tokens, np.ndarray) else tokens or []
    other = next((block.dtype for block in blocks if block.dtype != np.uint8), None)
    if spec.dtype == "uint8" and other is not None:
        raise InputError(f"{kind} tokens are {other} at level {spec.level}, which stores uint8")


def _check_ragged(tokens: Any, dim: int, names: tuple[list[str], list[str]], kind: str) -> None:
    _equal_lengths(len(names[0]), tokens=tokens)
    for key, source, row in zip(*names, tokens, strict=True):
        if row.ndim != 2 or row.shape[1] != dim or not len(row):
            raise InputError(f"{kind} {key} ({source}) has tokens {row.shape}, the spec says (1 or more, {dim})")


def image_table(rows: ImageRows) -> pa.Table:
    """The table beside a part of images; row i of the table is row i of the arrays."""
    columns = {
        "key": rows.keys,
        "source": rows.sources,
        "width": [width for width, _ in rows.sizes],
        "height": [height for _, height in rows.sizes],
    }
    return pa.table(columns, schema=IMAGE_SCHEMA)


def image_rows(columns: dict[str, list[Any]], tokens: Array | Sequence[Array] | None, pooled: Array) -> ImageRows:
    """From the columns of `image_table`, as lists, and the arrays beside it."""
    sizes = list(zip(columns["width"], columns["height"], strict=True))
    return ImageRows(columns["key"], columns["source"], sizes, tokens, pooled)


def text_rows(columns: dict[str, list[Any]], tokens: Sequence[Array] | None, pooled: Array) -> TextRows:
    """From the columns of `text_table`, as lists, and the arrays beside it."""
    return TextRows(
        keys=columns["key"],
        captions=columns["caption"],
        sources=columns["source"],
        tokens=tokens,
        pooled=pooled,
        spans=[[(span["start"], span["end"]) for span in spans] for spans in columns["spans"]],
        pool_index=columns["pool_index"],
        truncated=columns["truncated"],
        segments=[tuple((one["start"], one["end"], one["kind"]) for one in row) for row in columns["segments"]],
    )


def text_table(rows: TextRows) -> pa.Table:
    """The table beside a part of captions."""
    names = ("start", "end", "kind")
    columns = {
        "key": rows.keys,
        "source": rows.sources,
        "caption": rows.captions,
        "spans": [[dict(zip(names, span, strict=False)) for span in spans] for spans in rows.spans],
        "pool_index": rows.pool_index,
        "truncated": rows.truncated,
        "segments": [[dict(zip(names, one, strict=True)) for one in segments] for segments in rows.segments],
    }
    return pa.table(columns, schema=TEXT_SCHEMA)
