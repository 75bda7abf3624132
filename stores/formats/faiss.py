"""faiss: an exact index of the pooled embeddings by cosine for each kind, and the keys of its rows.

A folder with `images.faiss` and `texts.faiss` (IndexFlatIP over L2-normalised float32, so an inner product is
a cosine), `images.keys.json` and `texts.keys.json` (row → key), and `compal.json` with the spec. An index holds
less than a store and is not imported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import InputError
from ..dtypes import to_float32
from ..store import Store
from ._common import BLOCK_BYTES, KINDS, PLURAL, Exported, chosen, library, publishing, runs, write_notes

SUFFIX = ".faiss"


def export(store: Store, path: Path, keys: Sequence[str] | None = None) -> Exported:
    """Write an index of all items, or those of `keys`, to the new folder `path`. It is built in memory: 4 bytes
    a value. Raises `InputError` if `path` exists or the store has no pooled embeddings."""
    if not store.spec.pooled_dim:
        what = f"{store.path} keeps no pooled embeddings (level {store.spec.level}), which an index is made of"
        raise InputError(what, "Export as safetensors.")
    faiss = library("faiss")
    path, tables = Path(path), chosen(store, keys)
    dim = store.spec.pooled_dim
    with publishing(path) as staged:
        staged.mkdir()
        write_notes(staged, store, keys)
        for kind in KINDS:
            names = tables[kind].column("key").to_pylist()
            if not names:
                continue
            index = faiss.IndexFlatIP(dim)
            for run in runs(len(names), BLOCK_BYTES // (4 * dim)):
                values = to_float32(store.pooled(kind, names[run]))
                norms = np.linalg.norm(values, axis=1, keepdims=True)
                index.add(np.ascontiguousarray(values / np.where(norms > 0, norms, 1)))
            faiss.write_index(index, str(staged / f"{PLURAL[kind]}.faiss"))
            listed = json.dumps(names, ensure_ascii=False)
            (staged / f"{PLURAL[kind]}.keys.json").write_text(listed, encoding="utf-8")
    return Exported.of(path, "faiss", tables)
