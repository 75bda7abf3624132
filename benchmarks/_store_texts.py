"""Token states of captions: ragged rows as the store keeps them, beside the same rows padded to the context."""

from __future__ import annotations

import hashlib
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from _store_limits import GB, in_turns, percentiles, ratio

from compal.stores.buffers import aligned_empty
from compal.stores.dense import open_array
from compal.stores.reading import Reading
from compal.stores.spec import FeatureSpec
from compal.stores.store import Store, TextRows
from compal.stores.writer import write_array

DIM, CONTEXT, BATCH = 512, 77, 256
# How many of 5,000 captions of COCO (val2014) have 9, 10, … tokens of CLIP's, start and end included.
COCO = dict(
    enumerate([12, 188, 709, 996, 973, 779, 549, 327, 193, 96, 54, 42, 20, 12, 9, 8, 9, 8, 6, 4, 1, 2, 1, 1], 9)
) | {39: 1}
SPEC = FeatureSpec("benchmark", "seed-1", pooled_dim=DIM, text_dim=DIM, context_length=CONTEXT)


def texts(folder: Path, captions: int, rounds: int) -> dict[str, Any]:
    """Figures of ragged texts; see the keys."""
    draw = np.random.default_rng(1)
    lengths = draw.choice(list(COCO), captions, p=np.array(list(COCO.values())) / sum(COCO.values()))
    values = draw.integers(0, 0x7C00, (int(lengths.sum()), DIM), np.uint16).view(np.float16)
    tokens = np.split(values, np.cumsum(lengths)[:-1])
    keys = [hashlib.blake2b(b"text %d" % number, digest_size=16).hexdigest() for number in range(captions)]
    store = Store.create(folder / "texts", SPEC)
    each = captions // 4
    for start in range(0, captions, each):
        here = slice(start, start + each)
        spans = [[(0, 1)] * int(length) for length in lengths[here]]
        pooled = np.zeros((len(spans), DIM), np.float16)
        names = keys[here]
        store.write_texts(f"t-{start}", TextRows(names, names, names, tokens[here], pooled, spans))
    store.commit([f"t-{start}" for start in range(0, captions, each)])

    padded = captions // 4  # enough to exceed the processor's caches
    dense = np.zeros((padded, CONTEXT, DIM), np.float16)
    for row in range(padded):
        dense[row, : lengths[row]] = tokens[row]
    write_array(folder / "padded", dense, "float16")
    array = open_array(folder / "padded", Reading("map"))
    buffer, wide = aligned_empty((BATCH * 48 * DIM,), np.float16), aligned_empty(dense[:BATCH].shape, np.float16)
    store.text_tokens(keys, aligned_empty((captions * 48 * DIM,), np.float16))
    array.read_into(np.arange(padded), dense, np.arange(padded))  # all crc32c of both are checked now

    def ragged() -> float:
        rows = draw.integers(0, captions, BATCH)
        wanted = [keys[row] for row in rows.tolist()]
        started = time.perf_counter()
        store.text_tokens(wanted, buffer)
        seconds = time.perf_counter() - started
        speeds.append(int(lengths[rows].sum()) * DIM * 2 / GB / seconds)
        return 1 / seconds

    def full() -> float:
        rows = draw.integers(0, padded, BATCH)
        started = time.perf_counter()
        array.read_into(rows, wide, np.arange(BATCH))
        return 1 / (time.perf_counter() - started)

    speeds: list[float] = []
    found = in_turns({"ragged": ragged, "padded": full}, rounds)
    # The row alone, a view; where the store has no such method, padded into the buffer.
    read_row = getattr(store, "text_row", None) or (lambda key: store.text_tokens([key], buffer))
    single = []
    for row in draw.integers(0, captions, 1000).tolist():
        started = time.perf_counter()
        read_row(keys[row])
        single.append(time.perf_counter() - started)
    row = percentiles(single, 1e6)
    size = sum(path.stat().st_size for path in (folder / "texts" / "texts").glob("*.arrow")) / captions
    wide_size = sum(path.stat().st_size for path in (folder / "padded").iterdir()) / padded
    return {
        "text_batch_gbps": round(statistics.median(speeds), 2),
        "text_row_us": row["p50"],
        "text_row_p99_us": row["p99"],
        "text_tokens_per_caption": round(float(lengths.mean()), 2),
        "ragged_bytes_per_caption": round(size),
        "padded_bytes_per_caption": round(wide_size),
        "padded_vs_ragged_bytes": round(wide_size / size, 2),
        "padded_vs_ragged_time": ratio(found, "ragged", "padded"),
    }
