"""Small benchmarks on disk, and a real store that holds features for any benchmark."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compal import registry
from compal.eval.sources import Sources
from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Quarantined, Store, TextRows

DATA = Path(__file__).parents[1] / "data"
SPEC = FeatureSpec(
    backbone="random:8",
    weights="seed-0",
    pooled_dim=8,
    image_shape=(3, 4),
    image_prefix=1,
    image_grid=(1, 2),
    text_dim=4,
    context_length=5,
    dtype="float32",
)


def paint(path: Path) -> Path:
    """A photograph that differs from every other: 8 × 8 pixels from its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.frombuffer(hashlib.sha512(path.name.encode()).digest() * 3, np.uint8).reshape(8, 8, 3)
    Image.fromarray(pixels).save(path, format="PNG")
    return path


def vectors(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Features from a key."""
    return np.random.default_rng(int(hashlib.sha256(key.encode()).hexdigest()[:8], 16)).normal(size=shape)


@pytest.fixture
def sugarcrepe(tmp_path: Path) -> Path:
    """20 official rows and a painted photograph for each name."""
    root = tmp_path / "sugarcrepe"
    shutil.copytree(DATA / "sugarcrepe", root)
    for file in root.glob("*.json"):
        for row in json.loads(file.read_text()).values():
            paint(root / "val2017" / row["filename"])
    return root


@pytest.fixture
def winoground(tmp_path: Path) -> Path:
    root = tmp_path / "winoground"
    rows = [
        {
            "id": number,
            "image_0": f"ex_{number}_img_0",
            "image_1": f"ex_{number}_img_1.png",
            "caption_0": f"a red cube {number} left of a blue ball",
            "caption_1": f"a blue cube {number} left of a red ball",
            "collapsed_tag": ("Object", "Relation")[number % 2],
        }
        for number in range(4)
    ]
    for row in rows:
        paint(root / "images" / f"{row['image_0']}.png")
        paint(root / "images" / row["image_1"])
    (root / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def bivlc_rows(tmp_path: Path) -> list[dict[str, str]]:
    """Rows whose images are files; two rows share the positive photograph."""
    kinds = [("replace", "obj"), ("swap", "att"), ("swap", "obj"), ("add", "att"), ("add", "att")]
    rows = [
        {
            "image": f"pos_{max(number, 1)}.png",
            "caption": f"A dog, number {number}.",
            "negative_caption": f"A cat, number {number}.",
            "negative_image": f"neg_{number}.png",
            "type": kind,
            "subtype": subtype,
        }
        for number, (kind, subtype) in enumerate(kinds)
    ]
    for row in rows:
        paint(tmp_path / "painted" / row["image"])
        paint(tmp_path / "painted" / row["negative_image"])
    return rows


@pytest.fixture
def bivlc(tmp_path: Path, bivlc_rows: list[dict[str, str]]) -> Path:
    root = tmp_path / "bivlc"
    shutil.copytree(tmp_path / "painted", root / "images")
    with open(root / "test.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, bivlc_rows[0])
        writer.writeheader()
        writer.writerows(bivlc_rows)
    return root


def fill(folder: Path, benchmark: str, sources: Sources, without=(), spec: FeatureSpec = SPEC) -> Store:
    """A store with features of all items but those `without`, which it has in quarantine."""
    store = Store.create(folder, spec)
    found = list(registry.load("benchmarks", benchmark).items(sources))
    missing = [Quarantined(i.key, i.kind, i.source, "truncated file") for i in found if i.key in without]
    images = [item for item in found if item.kind == "image" and item.key not in without]
    texts = [item for item in found if item.kind == "text" and item.key not in without]
    keys = [item.key for item in images]
    pixels = ImageRows(
        keys=keys,
        sources=[item.source for item in images],
        sizes=[(8, 8)] * len(keys),
        tokens=np.stack([vectors(key, spec.image_shape) for key in keys]).astype("f4")
        if spec.level == "tokens"
        else None,
        pooled=np.stack([vectors(key, (8,)) for key in keys]).astype("f4"),
    )
    store.write_images("i-0", pixels, missing)
    keys = [item.key for item in texts]
    lengths = [2 + number % 4 for number in range(len(keys))]
    words = TextRows(
        keys=keys,
        sources=[item.source for item in texts],
        captions=[str(item.content) for item in texts],
        tokens=[vectors(key, (n, 4)).astype("f4") for key, n in zip(keys, lengths, strict=True)]
        if spec.level == "tokens"
        else None,
        pooled=np.stack([vectors(key, (8,)) for key in keys]).astype("f4"),
        spans=[[(0, 1)] * n for n in lengths],
        pool_index=[0] * len(keys),
        truncated=[False] * len(keys),
        segments=[()] * len(keys),
    )
    store.write_texts("t-0", words)
    store.commit(["i-0", "t-0"])
    return store


@pytest.fixture
def filled(tmp_path: Path):
    """`filled(benchmark, sources, without=keys)` → a store in its own folder."""
    made = iter(range(100))
    return lambda benchmark, sources, **how: fill(tmp_path / f"store{next(made)}", benchmark, sources, **how)
