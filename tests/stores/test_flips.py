"""1,000 single-bit flips anywhere in stores of every kind: each is found, or shown to change nothing.

`verify` finds a flip, or all values are what they were. A reader that checks what it touches first gives an
error or the values as they were, however it reads.
"""

import os
import random

import numpy as np
import pytest
import tensorstore
import zarr

from compal.errors import CompalError
from compal.stores.reading import Reading
from compal.stores.store import Store
from compal.stores.verify import verify
from compal.stores.writer import write_array

FLIPS = int(os.environ.get("COMPAL_FLIPS", "1000"))
KINDS = ["bfloat16", "float32", "int8", "pixels", "pooled", "regions", "tokens"]
MODES = ["map", "pread", "direct"]


def flips(draw, root, count):
    """(file, byte, bit): half of them spread over the files, half over the bytes."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    for number in range(count):
        path = draw.choice(files) if number % 2 else draw.choices(files, sizes)[0]
        yield path, draw.randrange(path.stat().st_size), draw.randrange(8)


def flip(path, at, bit):
    with open(path, "r+b") as file:
        file.seek(at)
        value = file.read(1)[0]
        file.seek(at)
        file.write(bytes([value ^ (1 << bit)]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found_or_changes_nothing(whole_stores, damageable, values_of, kind):
    expected, root = whole_stores[kind][1], damageable(kind)
    draw, harmless, found = random.Random(kind), [], 0
    for number, (path, at, bit) in enumerate(flips(draw, root, -(-FLIPS // len(KINDS)))):
        place = (path.relative_to(root).as_posix(), at, bit)
        flip(path, at, bit)
        problems = verify(root)
        try:
            same = values_of(root, Reading(MODES[number % 3])) == expected
        except CompalError:
            same = None
        flip(path, at, bit)
        assert same is not False, f"{place}: other values without an error"
        assert problems or same, f"{place}: an error at read, and nothing that verify finds"
        found += bool(problems)
        if not problems:
            harmless.append(place)
    assert found >= 0.95 * FLIPS / len(KINDS), harmless
    assert verify(root) == []
    assert values_of(root) == expected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_of_a_part_is_found_at_first_touch(whole_stores, damageable, values_of, kind, mode):
    """Flips in the files of a part alone; what none of them changes is padding, which nobody reads."""
    expected, root = whole_stores[kind][1], damageable(kind)
    draw, silent, errors = random.Random(f"{kind} {mode}"), [], 0
    files = [
        path for path in sorted(root.rglob("*")) if path.is_file() and path.parent.name not in ("done", "manifests")
    ]
    files = [path for path in files if path.parent != root and path != root / "images" / "i-0" / "zarr.json"]
    for number in range(60):
        path = files[number % len(files)]
        at, bit = draw.randrange(path.stat().st_size), draw.randrange(8)
        flip(path, at, bit)
        try:
            same = values_of(root, Reading(mode)) == expected
            assert same, (path, at, bit)
            silent.append((path.relative_to(root).as_posix(), at))
        except CompalError:
            errors += 1
        flip(path, at, bit)
    assert errors >= 20
    assert all(is_padding(root / file, at) for file, at in silent), silent


def is_padding(path, at):
    """Bytes of a shard behind a sample and its crc32c, and what Arrow writes around its columns."""
    if path.suffix == ".arrow":
        return True  # the values were compared; schema text, padding and footer say nothing about them
    index = np.frombuffer(path.read_bytes(), np.uint8)
    shard = path.name.startswith("c.")
    if not shard:
        return False
    count = {"tokens": 4, "pooled": 1, "scales": 1, "channels": 1}[path.parent.name]
    pairs = index[-16 * count - 4 : -4].view("<u8").reshape(count, 2).astype(int)
    return not any(offset <= at < offset + length for offset, length in pairs) and at < len(index) - 16 * count - 4


# --- other readers ---------------------------------------------------------------------------------------

ARRAYS = {  # dtype on disk, shape, rows to a chunk, rows to a shard
    "float16 samples": ("float16", (7, 3, 8), 1, 0),
    "float16 samples on pages": ("float16", (3, 50, 512), 1, 0),
    "float32 samples, ragged last shard": ("float32", (7, 3, 8), 1, 4),
    "bfloat16 bits": ("bfloat16", (5, 3, 8), 1, 0),
    "int8": ("int8", (5, 3, 8), 1, 0),
    "pooled, ragged last chunk and shard": ("float16", (11, 6), 2, 8),
    "pooled in one chunk": ("float32", (9, 6), 1024, 0),
}


def others(folder):
    """The array in `folder` as zarr-python and as tensorstore read it."""
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    theirs = tensorstore.open(spec, read=True).result()
    array = zarr.open_array(str(folder), mode="r")
    last = array.shape[0] - 1
    return array[:], theirs.read().result(), array[last], theirs[last].read().result()


@pytest.mark.parametrize("case", ARRAYS.values(), ids=ARRAYS)
def test_zarr_python_and_tensorstore_read_every_kind_of_array(tmp_path, case):
    dtype, shape, chunk_rows, shard_rows = case
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    if dtype == "int8":
        values = (values * 30).astype(np.int8)
    write_array(tmp_path / "a", values, dtype, chunk_rows, shard_rows=shard_rows)
    if dtype == "bfloat16":
        import torch

        values = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    expected = values.astype(np.float16) if dtype == "float16" else values
    for found, want in zip(others(tmp_path / "a"), (expected, expected, expected[-1], expected[-1]), strict=True):
        assert found.dtype == want.dtype
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("kind", ["bfloat16", "float32", "int8", "pooled", "tokens"])
def test_they_read_every_array_of_a_store(whole_stores, kind):
    root = whole_stores[kind][0]
    store = Store.open(root)
    arrays = sorted(path.parent for path in root.glob("images/*/*/zarr.json"))
    assert len(arrays) == {"pooled": 1, "int8": 4}.get(kind, 2)
    keys = [f"image-{number}" for number in range(4)]
    for folder in arrays:
        one, two, *_ = others(folder)
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
        if folder.name == "pooled":
            np.testing.assert_array_equal(one, store.pooled("image", keys))
        if folder.name == "tokens" and kind != "int8":
            np.testing.assert_array_equal(one, store.image_tokens(keys))
    if kind == "int8":
        codes, scales, channels = (
            others(root / "images" / "i-0" / name)[0] for name in ("tokens", "scales", "channels")
        )
        mean, std = channels
        by_hand = codes.astype(np.float32) * scales[..., None] * std + mean
        np.testing.assert_allclose(by_hand, store.image_tokens(keys), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["bfloat16", "tokens"])
def test_they_find_a_flipped_bit_too(damageable, kind):
    root = damageable(kind)
    folder = root / "images" / "i-0" / "tokens"
    flip(folder / "c.0.0.0", 5, 3)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(str(folder), mode="r")[0]
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    with pytest.raises(ValueError, match="Digest mismatch"):
        tensorstore.open(spec, read=True).result()[0].read().result()
