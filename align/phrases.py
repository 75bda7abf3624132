"""Noun phrases of a table's captions: captions themselves, by key, so that equal phrases are one row.

They are what a caption's segments of kind "object" and "phrase" say: segments of the store's text table, or where a
caption has none there, those that a segmenter left in a table beside the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError, MissingFeatures
from ..stores.items import Segment, caption_key, noun_phrases
from ..stores.segments import noted
from .batches import Features


def phrase_rows(
    store: Features, keys: Sequence[str], captions: np.ndarray, path: Path
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The noun phrases of `captions`, rows of the caption keys `keys` (C,) of the pairs table `path`.

    Returns the keys with those of further phrases behind them; starts (C + 1,) int64 into the third by caption row; and
    rows of phrases, int64. Phrases in the store's quarantine are left out. Raises `InputError` if no caption has a
    phrase, `MissingFeatures` if the store lacks any.
    """
    found = _phrases(store, [keys[row] for row in captions])
    wanted = dict.fromkeys(key for phrases in found for key in phrases)
    command = f"compal extract --backbone {store.spec.backbone} --data NAME --level {store.spec.level} --phrases"
    if not wanted:
        raise InputError(f"no caption of {path} has noun phrases in the store", f"Add them: {command} --segments rules")
    held, refused = store.keys("text"), {entry.key for entry in store.quarantined()}
    absent = [key for key in wanted if key not in held and key not in refused]
    if absent:
        raise MissingFeatures(
            f"the store lacks {len(absent)} of the {len(wanted)} noun phrases of {path}: {', '.join(absent[:3])}",
            f"Add them: {command}",
        )
    rows = {key: row for row, key in enumerate(keys)}
    for key in wanted:
        if key in held:
            rows.setdefault(key, len(rows))
    kept = [[rows[key] for key in phrases if key in held] for phrases in found]
    counts = np.zeros(len(keys), np.int64)
    counts[captions] = [len(phrases) for phrases in kept]  # `captions` ascend, and so do the starts
    starts = np.concatenate([[0], np.cumsum(counts)])
    return list(rows), starts, np.array([row for phrases in kept for row in phrases], dtype=np.int64)


def _phrases(store: Features, keys: Sequence[str]) -> list[list[str]]:
    """The keys of the phrases of each caption, in order. Where several segmenters left segments, those of the first by
    name that found any and whose phrases the store has."""
    table = store.table("text").select(["key", "caption", "segments"])
    table = table.filter(pc.is_in(table["key"], value_set=pa.array(list(keys), pa.string())))
    segments: dict[str, list[Segment]] = {}
    texts: dict[str, str] = {}
    for row in table.to_pylist():
        texts[row["key"]] = row["caption"]
        segments[row["key"]] = [(one["start"], one["end"], one["kind"]) for one in row["segments"] or ()]
    notes = noted(store.path) if any(not segments.get(key) for key in keys) else []
    held = store.keys("text")
    found = []
    for key in keys:
        candidates = [segments[key]] if segments.get(key) else [list(note[key]) for note in notes if key in note]
        named = [[caption_key(text) for text in noun_phrases(texts[key], one)] for one in candidates]
        there = [phrases for phrases in named if held.issuperset(phrases)] or named
        found.append(next((phrases for phrases in there if phrases), []))
    return found
