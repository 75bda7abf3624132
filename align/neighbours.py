"""An index over vectors by inner product, through faiss: exact, an inverted file or a graph; its GPU build where there
is one. Hard negatives are mined with it, and candidates of retrieval are found with it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ..errors import InputError

Kind = Literal["flat", "ivf", "hnsw"]
MARGIN = 8  # looked at beyond what is asked, so that rounding inside faiss decides no place
GPU_NEIGHBOURS = 2048  # faiss's limit on a GPU
LISTS_READ = 32  # of an inverted file, as in `compal negatives --method mined`
LINKS, BUILD, LOOK = 32, 80, 128  # of HNSW: links a node, candidates when building and at least when searching


class Neighbours:
    """An index over `vectors` (C, E) float32: (B, E) queries to (B, n) rows, -1 where the index found no more.

    most   the most neighbours that will be asked for
    seed   of the lists of an inverted file
    Equal arguments give equal rows on a CPU. Raises `InputError` without faiss.
    """

    def __init__(self, vectors: np.ndarray, kind: Kind, seed: int, most: int) -> None:
        faiss = import_faiss()
        count, width = vectors.shape
        if kind == "ivf":
            lists = max(1, min(int(4 * count**0.5), count // 39))  # faiss asks for 39 points a list
            self.index: Any = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
            self.index.cp.seed = seed % 2**31
            self.index.nprobe = LISTS_READ
            self.index.train(vectors)
        elif kind == "hnsw":
            self.index = faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
            self.index.hnsw.efConstruction, self.index.hnsw.efSearch = BUILD, max(LOOK, most)
        else:
            self.index = faiss.IndexFlatIP(width)
        if kind != "hnsw" and most <= GPU_NEIGHBOURS and gpus() > 0:
            self._resources = faiss.StandardGpuResources()  # must outlive the index
            self.index = faiss.index_cpu_to_gpu(self._resources, 0, self.index)
        # Threads insert into a graph in whatever order they come, and its links depend on that order.
        threads = faiss.omp_get_max_threads()
        try:
            if kind == "hnsw":
                faiss.omp_set_num_threads(1)
            self.index.add(vectors)
        finally:
            faiss.omp_set_num_threads(threads)

    def __call__(self, queries: np.ndarray, neighbours: int) -> np.ndarray:
        found: np.ndarray = self.index.search(queries, neighbours)[1]
        return found


def ranked(queries: np.ndarray, vectors: np.ndarray, found: np.ndarray) -> np.ndarray:
    """`found` (B, n) by descending inner product in float64, ties by row, -1 last."""
    scores = np.einsum("be,bne->bn", queries, vectors[found], dtype=np.float64)
    scores[found < 0] = -np.inf
    order = np.lexsort((found, -scores), axis=1)
    return np.take_along_axis(found, order, axis=1)


def import_faiss(what: str = "data.mined") -> Any:
    """The module, its CPU or its GPU build. Raises `InputError` where there is neither: `what` needs it."""
    try:
        import faiss
    except ImportError:
        raise InputError(f"{what} needs faiss", 'Install it: pip install "compal[mining]"') from None
    return faiss


def gpus() -> int:
    """How many GPUs faiss sees; 0 for its CPU build, or without it."""
    try:
        import faiss
    except ImportError:
        return 0
    return int(getattr(faiss, "get_num_gpus", int)())
