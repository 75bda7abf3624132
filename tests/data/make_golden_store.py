"""Write `golden_store`, a store of format 1 that every later version must read.

Run once per format, by hand: `python tests/data/make_golden_store.py`. The values are formulas, repeated in
`tests/stores/test_golden.py`; never regenerate the store to make that test pass.
"""

import json
import shutil
from pathlib import Path

import numpy as np

from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Quarantined, Store, TextRows

FOLDER = Path(__file__).with_name("golden_store")
SPEC = FeatureSpec(
    backbone="golden",
    weights="formula",
    pooled_dim=4,
    image_shape=(3, 8),
    image_prefix=1,
    image_grid=(1, 2),
    text_dim=5,
    context_length=6,
    preprocess={"size": "4x6"},
    tokenizer={"name": "words"},
)


def image_rows(*numbers):
    """tokens[i, p, d] = i + p / 8 + d / 64, pooled[i, e] = -i - e / 4."""
    index, token, channel = np.ix_(numbers, range(3), range(8))
    pooled = -np.array(numbers)[:, None] - np.arange(4) / 4
    keys = [f"image-{number}" for number in numbers]
    return ImageRows(
        keys, [f"{key}.png" for key in keys], [(6, 4)] * len(keys), index + token / 8 + channel / 64, pooled
    )


def text_rows(*numbers):
    """Caption i has i + 1 tokens, tokens[t, d] = i + t / 4 - d / 16, pooled[e] = i / 2 + e."""
    words = ["a", "red", "cube"]
    return TextRows(
        keys=[f"text-{number}" for number in numbers],
        captions=["a red cube"] * len(numbers),
        sources=["golden"] * len(numbers),
        tokens=[n + np.arange(n + 1)[:, None] / 4 - np.arange(5) / 16 for n in numbers],
        pooled=np.array([[n / 2 + e for e in range(4)] for n in numbers]),
        spans=[[("a red cube".index(w), "a red cube".index(w) + len(w)) for w in words[: n + 1]] for n in numbers],
        pool_index=list(numbers),
        truncated=[n == 1 for n in numbers],
        segments=[((2, 10, "object"),)] * len(numbers),
    )


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    store = Store.create(FOLDER, SPEC)
    store.write_images("i-0", image_rows(0, 1, 2), [Quarantined("image-9", "image", "9.png", "truncated file")])
    store.write_texts("t-0", text_rows(2, 0, 1))
    store.commit(["i-0", "t-0"])
    store.write_images("i-1", image_rows(3))
    store.commit(["i-1"])
    shutil.rmtree(FOLDER / ".staging")
    for path in (FOLDER / "done").iterdir():
        done = json.loads(path.read_bytes())
        done["written"] = {}  # host and time say nothing here
        path.write_text(json.dumps(done, sort_keys=True, separators=(",", ":")))


if __name__ == "__main__":
    main()
