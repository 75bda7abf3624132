"""A store read by key: what is in it, its arrays, and batches for a head or a loop of your own.

python examples/read_store.py [BACKBONE]
"""

from __future__ import annotations

import sys

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

import compal
from compal.align.batches import join


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Pooled embeddings (N, E) as they are stored, in float32 and of length 1."""
    full = vectors.astype(np.float32)
    found: NDArray[np.float32] = full / np.linalg.norm(full, axis=1, keepdims=True)
    return found


def main(backbone: str) -> float:
    """Print what a few captions and images hold; return the mean cosine of the pairs read."""
    store = compal.open_store(backbone)
    print(store)
    spec = store.spec
    print(f"level {spec.level}, weights {spec.weights[:12]}, grid {spec.image_grid} after {spec.image_prefix} tokens")

    # Keys are hashes of content. The tables say what they stand for.
    captions = store.table("text")
    print(captions.select(["key", "caption", "source"]).slice(0, 3).to_pylist())
    named = captions.filter(pc.match_substring(captions["caption"], "red"))
    print(f"{named.num_rows:,} of {captions.num_rows:,} captions say red")

    texts = captions["key"].to_pylist()[:8]
    images = store.table("image")["key"].to_pylist()[:8]
    patches = store.image_tokens(images)  # (8, P, D) in the stored dtype; any order, duplicates allowed
    words, mask = store.text_tokens(texts)  # (8, L, D), (8, L) bool: padded to the longest of these
    print(f"patches {patches.shape} {patches.dtype}, words {words.shape}, {mask.sum(1).tolist()} of them real")

    # The reader fills a buffer of yours: what a loop should do, as fresh memory costs more than the read.
    buffer = store.image_buffer(8)
    store.image_tokens(images[::-1], out=buffer)
    assert np.array_equal(buffer[0], patches[-1])

    image, text = (unit(vectors) for vectors in (store.pooled("image", images), store.pooled("text", texts)))
    cosine = float((image * text).sum(1).mean())

    batch = join(store, images, texts)  # what heads take: float32 tensors and masks
    assert batch.images is not None
    print(f"a batch of {batch.shape[0]} images × {batch.shape[1]} captions, patches {tuple(batch.images.shape)}")
    return cosine


if __name__ == "__main__":
    print(f"mean cosine {main(sys.argv[1] if len(sys.argv) > 1 else ''):.3f}")
