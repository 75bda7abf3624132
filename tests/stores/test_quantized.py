"""int8 tokens: what is stored stands for what was given, as closely as the format promises, and no flip is read."""

import base64
import json
import pickle
import threading

import numpy as np
import pyarrow as pa
import pytest
import tensorstore
import zarr

from compal.errors import VerificationError
from compal.stores import quantized
from compal.stores.dtypes import NotFinite, from_bfloat16, to_bfloat16
from compal.stores.quantized import (
    QuantizedFile,
    QuantizedTokens,
    channels_of,
    open_ragged,
    open_tokens,
    quantize,
    write_ragged,
    write_tokens,
)
from compal.stores.reading import Reading


def outliers(count, tokens=5, dim=16, seed=0):
    """Tokens as those of a vision transformer: a few channels 20 times as large, one constant, one dead."""
    draw = np.random.default_rng(seed)
    values = draw.normal(draw.normal(size=dim), 1, (count, tokens, dim))
    values[..., [2, 9]] *= 20
    values[..., 4] = 0.75
    values[..., 5] = 0
    return values


def plain(values):
    """The slow reference in float64, token by token: int8, scales, mean and std."""
    flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
    mean, std = flat.mean(axis=0).astype(np.float32), flat.std(axis=0).astype(np.float32)
    codes, scales = [], []
    for token in flat:
        standard = [(x - m) / s if s > 0 else 0.0 for x, m, s in zip(token, mean.tolist(), std.tolist(), strict=True)]
        scale = max(abs(x) for x in standard) / 127
        codes.append([x / scale if scale else 0.0 for x in standard])
        scales.append(scale)
    return np.array(codes).reshape(values.shape), np.array(scales).reshape(values.shape[:-1]), np.stack([mean, std])


def read(folder, rows=None, reading=None):
    array = open_tokens(folder, "int8", reading)
    rows = np.arange(array.shape[0]) if rows is None else np.asarray(rows)
    out = np.full((len(rows), *array.shape[1:]), 99, np.float32)
    array.read_into(rows, out, np.arange(len(rows)))
    return out


def bound(values, scales, channels):
    """What the format promises, and the rounding of float32 arithmetic."""
    half = scales[..., None].astype(np.float64) * channels[1] / 2
    return half + 4e-7 * (np.abs(channels[0]) + 127 * scales[..., None] * channels[1]) + 1e-30


CASES = {
    "outlier channels": outliers(40),
    "one row": outliers(1),
    "one token of one channel": np.full((1, 1, 1), 3.5),
    "all equal": np.full((6, 2, 3), -2.25),
    "one token unlike the others": np.concatenate([np.zeros((30, 1, 4)), np.full((1, 1, 4), 60000.0)]),
    "tiny": outliers(9) * 1e-20,
    "large": outliers(9) * 1e30,
    "a small spread about a large mean": 1000 + np.random.default_rng(1).normal(size=(20, 3, 8)) / 1000,
}


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_error_is_bounded(tmp_path, values):
    values = values.astype(np.float32)
    write_tokens(tmp_path, values)
    _, _, channels = plain(values)
    stored = {name: zarr.open_array(str(tmp_path / name), mode="r")[:] for name in ("tokens", "scales", "channels")}
    np.testing.assert_allclose(stored["channels"], channels, rtol=1e-6, atol=1e-6 * np.abs(channels[1]).max())
    found = read(tmp_path)
    assert found.dtype == np.float32
    error = np.abs(found.astype(np.float64) - values)
    assert (error <= bound(values, stored["scales"], stored["channels"])).all()


def test_codes_and_scales_are_those_of_a_plain_writer():
    values = outliers(50).astype(np.float32)
    exact, scales, channels = plain(values)
    found, found_scales = quantize(values, channels_of(values))
    np.testing.assert_allclose(channels_of(values), channels, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found_scales, scales, rtol=1e-5)
    assert np.abs(found - exact).max() <= 0.5 + 1e-3
    assert np.abs(found).max(axis=-1).min() == np.abs(found).max() == 127  # every token uses the whole range


def test_constant_channels_are_exact(tmp_path):
    values = outliers(40).astype(np.float16)
    write_tokens(tmp_path, values)
    found = read(tmp_path)
    assert (found[..., 4] == 0.75).all()
    assert (found[..., 5] == 0).all()


def test_outlier_channels_do_not_cost_the_others_their_digits(tmp_path):
    """Per-token int8 without the channels' deviations loses 0.037 on such data, research says; this 0.007."""
    values = outliers(400, dim=64).astype(np.float32)
    write_tokens(tmp_path, values)
    usual = [channel for channel in range(64) if channel not in (2, 4, 5, 9)]
    error = np.linalg.norm((read(tmp_path) - values)[..., usual]) / np.linalg.norm(values[..., usual])
    naive_scale = np.abs(values).max(axis=-1, keepdims=True) / 127
    naive = np.linalg.norm((np.rint(values / naive_scale) * naive_scale - values)[..., usual])
    assert error < 0.01
    assert naive / np.linalg.norm(values[..., usual]) > 5 * error


def test_half_the_bytes(tmp_path):
    values = np.random.default_rng(0).normal(size=(20, 196, 768)).astype(np.float16)
    written = write_tokens(tmp_path, values)
    assert sum(file["bytes"] for file in written.values()) < 0.51 * values.nbytes


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_any_source_dtype(tmp_path, dtype):
    values = outliers(9)
    given = to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)
    exact = from_bfloat16(given) if dtype == "bfloat16" else given.astype(np.float32)
    write_tokens(tmp_path / "a", given)
    write_tokens(tmp_path / "b", exact)
    for name in ("tokens", "scales", "channels"):
        files = [next((tmp_path / folder / name).glob("c.*")).read_bytes() for folder in "ab"]
        assert files[0] == files[1]


@pytest.mark.parametrize("mode", ["map", "pread", "direct"])
def test_any_order_into_any_position(tmp_path, mode, monkeypatch):
    values = outliers(30).astype(np.float32)
    write_tokens(tmp_path, values)
    whole = read(tmp_path)
    monkeypatch.setattr(quantized, "READ_BYTES", 7 * 5 * 16)  # 7 samples at a time
    rows = np.random.default_rng(1).integers(0, 30, 50)
    positions = np.random.default_rng(2).permutation(51)[:50]
    out = np.full((51, 5, 16), 9, np.float32)
    open_tokens(tmp_path, "int8", Reading(mode)).read_into(rows, out, positions)
    np.testing.assert_array_equal(out[positions], whole[rows])
    untouched = set(range(51)) - set(positions.tolist())
    assert (out[list(untouched)] == 9).all()


def test_threads_read_at_once(tmp_path):
    write_tokens(tmp_path, outliers(60).astype(np.float32))
    whole, array, wrong = read(tmp_path), open_tokens(tmp_path, "int8"), []

    def work(seed):
        draw = np.random.default_rng(seed)
        out = np.empty((20, 5, 16), np.float32)
        for _ in range(50):
            rows = draw.integers(0, 60, 20)
            array.read_into(rows, out, np.arange(20))
            wrong.extend(rows[(out != whole[rows]).any(axis=(1, 2))])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_rows_that_do_not_exist(tmp_path):
    write_tokens(tmp_path, outliers(3))
    with pytest.raises(IndexError):
        read(tmp_path, [0, 3])


def test_other_zarr_readers_can_dequantize(tmp_path):
    values = outliers(12).astype(np.float32)
    write_tokens(tmp_path, values)

    def opened(name):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / name)}}
        return tensorstore.open(spec, read=True).result().read().result()

    tokens, scales, (mean, std) = opened("tokens"), opened("scales"), opened("channels")
    assert (tokens.dtype, scales.dtype, std.dtype) == (np.int8, np.float32, np.float32)
    np.testing.assert_array_equal(tokens * scales[..., None] * std + mean, read(tmp_path))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_cannot_be_quantized_names_its_row(tmp_path, bad):
    values = outliers(9).astype(np.float32)
    values[6, 1, 3] = bad
    for write in (lambda: write_tokens(tmp_path / "a", values), lambda: ragged(tmp_path / "a.arrow", list(values))):
        with pytest.raises(NotFinite) as caught:
            write()
        assert (caught.value.row, caught.value.overflow) == (6, False)


def test_values_whose_distance_is_beyond_float32(tmp_path):
    """One value of 3.4e38 among 900 of -3.4e38: 6.7e38 from the mean."""
    values = np.full((30, 3, 10), -3.4e38, np.float32)
    values[7, 1, 3] = 3.4e38
    with pytest.raises(NotFinite) as caught:
        write_tokens(tmp_path / "a", values)
    assert (caught.value.row, caught.value.overflow) == (7, True)
    with pytest.raises(NotFinite) as caught:
        ragged(tmp_path / "a.arrow", list(values))
    assert (caught.value.row, caught.value.overflow) == (7, True)


# --- damage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokens", "scales", "channels"])
def test_a_flip_anywhere_is_found_or_harmless(tmp_path, name):
    write_tokens(tmp_path, outliers(7).astype(np.float32))
    expected, found = read(tmp_path), 0
    path = next((tmp_path / name).glob("c.*"))
    raw = path.read_bytes()
    for bit in np.random.default_rng(0).choice(len(raw) * 8, 60, replace=False).tolist():
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read(tmp_path), expected)  # the padding
        except VerificationError as error:
            found += str(path) in str(error)
    assert found > 30


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("tokens", "data_type", "float16"),
        ("scales", "shape", [7, 4]),
        ("channels", "shape", [2, 15]),
        ("scales", "data_type", "uint16"),
    ],
)
def test_arrays_that_do_not_belong_together(tmp_path, name, key, value):
    write_tokens(tmp_path, outliers(7))
    path = tmp_path / name / "zarr.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(VerificationError):
        read(tmp_path)


def test_scales_that_are_missing(tmp_path):
    write_tokens(tmp_path, outliers(7))
    (tmp_path / "scales" / "zarr.json").unlink()
    with pytest.raises(VerificationError, match="scales"):
        read(tmp_path)


# --- rows of unequal length ------------------------------------------------------------------------------


def ragged(path, rows, dim=0):
    draw = np.random.default_rng(9)
    pooled = draw.integers(-64, 64, (len(rows), 4)) / 16
    return write_ragged(path, rows, pooled, dim or rows[0].shape[1]), pooled


@pytest.fixture
def rows():
    values = outliers(1, 60)[0].astype(np.float32)
    return np.split(values, [1, 5, 5 + 30, 36])


def test_ragged_rows_are_those_of_the_dense_form(tmp_path, rows):
    """The same quantization: channels over all tokens, a scale per token."""
    _, pooled = ragged(tmp_path / "t.arrow", rows)
    file = open_ragged(tmp_path / "t.arrow", "int8")
    assert isinstance(file, QuantizedFile)
    write_tokens(tmp_path / "d", np.concatenate(rows)[:, None])
    expected = np.split(read(tmp_path / "d")[:, 0], np.cumsum([len(row) for row in rows])[:-1])
    for index, row in enumerate(expected):
        assert file.row(index).dtype == np.float32
        np.testing.assert_array_equal(file.row(index), row)
    out, mask = np.full((5, 30, 16), 9, np.float32), np.ones((5, 30), bool)
    file.read_into(np.array([4, 0, 2]), out, mask, np.array([1, 3, 0]))
    for position, index in ((1, 4), (3, 0), (0, 2)):
        length = len(expected[index])
        np.testing.assert_array_equal(out[position, :length], expected[index])
        assert (out[position, length:] == 0).all()
        assert mask[position].tolist() == [True] * length + [False] * (30 - length)
    vectors = np.empty((5, 4), np.float16)
    file.pooled_into(np.arange(5), vectors, np.arange(5))
    np.testing.assert_array_equal(vectors, pooled)


def test_arrow_alone_can_dequantize(tmp_path, rows):
    ragged(tmp_path / "t.arrow", rows)
    with pa.ipc.open_file(tmp_path / "t.arrow") as reader:
        batch = reader.get_batch(0)
    mean, std = np.frombuffer(base64.b64decode(batch.schema.metadata[b"compal_channels"]), "<f4").reshape(2, 16)
    tokens, scales = (np.array(batch.column(name)[2].as_py(), np.float32) for name in ("tokens", "scales"))
    assert batch.schema.field("tokens").type == pa.list_(pa.list_(pa.int8(), 16))
    np.testing.assert_array_equal(
        tokens * scales[:, None] * std + mean, open_ragged(tmp_path / "t.arrow", "int8").row(2)
    )


def test_the_checksum_of_a_ragged_part(tmp_path, rows):
    from compal.stores.files import checksum

    written, _ = ragged(tmp_path / "t.arrow", rows)
    assert written == checksum(tmp_path / "t.arrow")


@pytest.mark.parametrize("what", ["tokens", "scales", "channels", "checksum of channels"])
def test_a_flip_in_a_ragged_part(tmp_path, rows, what):
    ragged(tmp_path / "t.arrow", rows)
    file = open_ragged(tmp_path / "t.arrow", "int8")
    raw = bytearray((tmp_path / "t.arrow").read_bytes())
    metadata = file._batch.schema.metadata
    place = {
        "tokens": file.tokens[8:12].tobytes(),
        "scales": file._scales[8:10].tobytes(),
        "channels": metadata[b"compal_channels"],
        "checksum of channels": metadata[b"compal_channels_crc32c"],
    }[what]
    places = [start for start in range(len(raw)) if raw.startswith(place, start)]
    assert places
    for start in places:  # the schema stands in the header and in the footer
        raw[start + 1] ^= 1
    (tmp_path / "t.arrow").write_bytes(raw)

    def every_row():
        damaged = open_ragged(tmp_path / "t.arrow", "int8")
        return [damaged.row(index) for index in range(5)]

    with pytest.raises(VerificationError):
        every_row()


def test_a_float_part_is_not_read_as_int8(tmp_path, rows):
    from compal.stores.ragged_writer import write_ragged as write_floats

    write_floats(tmp_path / "f.arrow", rows, np.zeros((5, 4)), "float16", 16)
    with pytest.raises(VerificationError):
        open_ragged(tmp_path / "f.arrow", "int8")


def test_a_part_without_tokens(tmp_path):
    from compal.stores.ragged_writer import write_ragged as write_floats

    write_floats(tmp_path / "p.arrow", None, np.ones((3, 4)), "float16")
    assert open_ragged(tmp_path / "p.arrow", "int8").tokens is None


def test_an_open_array_survives_pickling(tmp_path):
    write_tokens(tmp_path, outliers(5))
    array = QuantizedTokens(tmp_path, Reading("pread"))
    array._tokens = array._scales = None  # what lies below has its own rules
    assert pickle.loads(pickle.dumps(array)).shape == (5, 5, 16)
