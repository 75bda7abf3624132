"""What goes wrong in a night: no memory, a share that is gone, a full disk, damaged images, dead threads."""

import dataclasses
import errno
import io
import os
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compal.errors import InputError, UsageError
from compal.pipeline import decode, filling, probe
from compal.pipeline.decode import Decoder, read_image
from compal.pipeline.encoder import ImageFeatures, TextFeatures
from compal.pipeline.extract import extract
from compal.pipeline.forward import Forward, out_of_memory
from compal.pipeline.patience import Patience, passing_write
from compal.pipeline.plan import ExtractConfig
from compal.stores import parts
from compal.stores.items import FileSlice, Item
from compal.stores.spec import FeatureSpec
from compal.stores.store import Store
from compal.stores.verify import verify

PHOTO = Path(__file__).parent.parent / "data" / "coco" / "val2017" / "000000422836.jpg"
SPEC = FeatureSpec("stub", "none", 3, image_shape=(4, 3), image_grid=(2, 2), text_dim=3, context_length=6)
SMALL = ExtractConfig(batch_size=8, max_part_rows=16, patience=5.0)


class Stub:
    """Patch means of an image, word lengths of a caption; `most` at once is what there is memory for."""

    def __init__(self, most=10**9, error=None):
        self.spec, self.most, self.sizes = SPEC, most, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def preprocess(self, image):
        return torch.from_numpy(np.array(image.resize((2, 2)), np.uint8)).permute(2, 0, 1)

    def _take(self, count):
        self.sizes.append(count)
        if count > self.most:
            raise self.error

    def encode_images(self, pixels):
        self._take(len(pixels))
        tokens = (pixels.float() / 255).flatten(2).transpose(1, 2)
        return ImageFeatures(tokens, tokens.mean(1))

    def encode_texts(self, captions):
        self._take(len(captions))
        tokens = [torch.tensor([[float(len(word))] * 3 for word in caption.split()]) for caption in captions]
        pooled = torch.stack([one.mean(0) for one in tokens])
        return TextFeatures(
            tokens, pooled, [[(0, 1)] * len(t) for t in tokens], [0] * len(tokens), [False] * len(tokens)
        )


def images(count):
    return [
        Item.rendered(b"%d" % n, lambda n=n: np.full((6, 6, 3), n % 251, np.uint8), f"image {n}") for n in range(count)
    ]


def files(folder, count=20):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 2 * number, 0)).save(folder / f"{number}.png")
    return [Item.image_file(folder / f"{number}.png") for number in range(count)]


def run(items, folder, encoder=None, config=SMALL):
    encoder = encoder or Stub()
    return extract(items, SPEC, folder, config, encoder=encoder), encoder


def rows(folder, items):
    store = Store.open(folder)
    return store.image_tokens([item.key for item in items if item.kind == "image"])


# --- no memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_a_batch_that_finds_no_memory_is_halved_until_it_does(tmp_path, error):
    items = images(40) + [Item.caption(f"caption {'x' * n}") for n in range(10)]
    summary, encoder = run(items, tmp_path / "a", Stub(3, error))
    assert encoder.sizes[:4] == [8, 4, 2, 2]
    assert max(encoder.sizes[2:]) == 2
    assert any("no memory for a batch of 4: the batch size is 2 since" in note for note in summary.notes)
    run(items, tmp_path / "b")
    np.testing.assert_array_equal(rows(tmp_path / "a", items), rows(tmp_path / "b", items))
    assert verify(tmp_path / "a") == []


def test_no_memory_for_one_is_an_error_and_other_errors_are_theirs(tmp_path):
    with pytest.raises(InputError, match=r"cpu has no memory for a batch of 1\. Choose another --device"):
        run(images(3), tmp_path / "a", Stub(0))
    with pytest.raises(RuntimeError, match="size mismatch"):
        run(images(3), tmp_path / "b", Stub(0, RuntimeError("size mismatch")))
    assert not out_of_memory(RuntimeError("size mismatch"))


def test_no_memory_for_a_part_is_one_line(tmp_path, monkeypatch):
    def none(*_):
        raise MemoryError

    monkeypatch.setattr(filling.np, "empty", none)
    with pytest.raises(InputError, match="no memory for a part"):
        run(images(3), tmp_path)


# --- the probe ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "count", "expected"),
    [
        (lambda size: 1.0 * size, 10**6, 8),  # no gain
        (lambda size: 1.0 + 0.001 * size, 10**9, 64),  # the largest of a processor
        (lambda size: 1.0 + 0.1 * size if size <= 16 else None, 10**9, 16),  # no memory beyond
        (lambda size: 1.0 + 0.001 * size, 1000, 8),  # a longer probe would cost more than a hundredth
        (lambda size: pytest.fail("probed"), 100, 64),  # small
    ],
)
def test_the_probe_doubles_while_it_pays(monkeypatch, seconds, count, expected):
    monkeypatch.setattr(probe, "seconds_of_a_batch", lambda forward, size: seconds(size))
    assert probe.batch_size_for(Forward(Stub(), [SPEC], "cpu", 1), count) == expected


def test_a_batch_size_of_none_is_found(tmp_path):
    config = ExtractConfig(batch_size=None, max_part_rows=1024)
    summary, encoder = run(images(600), tmp_path, config=config)
    assert summary.images == 600
    assert encoder.sizes[0] == 8, "the probe came first"
    assert probe.seconds_of_a_batch(Forward(Stub(4), [SPEC], "cpu", 1), 8) is None


# --- a share that is gone -----------------------------------------------------------------------------


def failing(monkeypatch, owner, name, error, times):
    """`owner.name` fails so many times, then works; a store's own files can be read all the time."""
    plain, left = getattr(owner, name), [times]

    def action(path):
        if left[0] and getattr(path, "suffix", "") != ".json":
            left[0] -= 1
            raise error
        return plain(path)

    monkeypatch.setattr(owner, name, action)
    return left


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN])
def test_images_are_read_once_the_share_is_back(tmp_path, monkeypatch, number):
    items = files(tmp_path / "data")
    left = failing(monkeypatch, Path, "read_bytes", OSError(number, "the share"), 4)
    summary, _ = run(items, tmp_path / "store")
    assert (left, summary.images, summary.quarantined) == ([0], 20, [])


def test_a_folder_that_is_gone_for_a_while_is_waited_for(tmp_path):
    items = files(tmp_path / "data")
    patience = Patience(10.0)
    assert read_image(items[0], patience)[1] == (8, 8)
    (tmp_path / "data").rename(tmp_path / "away")
    threading.Timer(0.4, lambda: (tmp_path / "away").rename(tmp_path / "data")).start()
    assert read_image(items[1], patience)[1] == (8, 8)
    (tmp_path / "mount").mkdir()
    rooted = Patience(0.2, [tmp_path / "mount"])
    with pytest.raises(InputError, match=r"cannot read .* for 0 s: No such file.*Bring the share back"):
        read_image(Item("0" * 32, "image", "x.png", tmp_path / "mount" / "x.png"), rooted)


def test_a_file_that_is_missing_is_not_waited_for(tmp_path):
    items = [*files(tmp_path / "data"), Item.image_file(tmp_path / "gone" / "x.png")]
    (tmp_path / "data" / "3.png").unlink()
    started = time.monotonic()
    summary, _ = run(items, tmp_path / "store")
    assert time.monotonic() - started < SMALL.patience
    assert [item.reason for item in summary.quarantined] == ["no such file"] * 2


def test_patience_ends_in_one_line_and_keeps_complete_parts(tmp_path, monkeypatch):
    items = files(tmp_path / "data", 40)
    plain, read = Path.read_bytes, []

    def gone(path):
        read.append(path.suffix)
        if path.suffix == ".png" and read.count(".png") > 30:
            raise OSError(errno.EHOSTDOWN, "Host is down")
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", gone)
    config = ExtractConfig(batch_size=8, max_part_rows=16, patience=0.3, workers=1)
    with pytest.raises(InputError, match=r"cannot read .*: Host is down\. Bring the share back, then run again"):
        run(items, tmp_path / "store", config=config)
    monkeypatch.undo()
    store = Store.open(tmp_path / "store")
    assert len(store.uncommitted()) == 1
    summary, encoder = run(items, tmp_path / "store")
    assert (sum(encoder.sizes), summary.quarantined) == (24, [])
    assert verify(tmp_path / "store") == []


@pytest.mark.parametrize(
    ("number", "cure"), [(errno.EMFILE, "ulimit -n"), (errno.ENOMEM, "Close other"), (errno.EACCES, "the right")]
)
def test_what_says_nothing_of_a_file_ends_the_run(tmp_path, monkeypatch, number, cure):
    items = files(tmp_path / "data")
    failing(monkeypatch, Path, "read_bytes", OSError(number, os.strerror(number)), 1)
    with pytest.raises(InputError, match=f"cannot read .*png: {os.strerror(number)}.*{cure}"):
        run(items, tmp_path / "store")
    summary, _ = run(items, tmp_path / "store")
    assert (summary.images + summary.reused, summary.quarantined) == (20, [])


def test_no_memory_to_decode_is_not_a_damaged_image(tmp_path, monkeypatch):
    items = files(tmp_path / "data")
    failing(monkeypatch, decode, "_to_rgb", MemoryError(), 1)
    with pytest.raises(InputError, match=r"no memory to decode .*png\. Close other programs"):
        run(items, tmp_path / "store")
    summary, _ = run(items, tmp_path / "store")
    assert (summary.images + summary.reused, summary.quarantined) == (20, [])


def test_parts_wait_for_a_share_that_went_as_the_images_ended(tmp_path, monkeypatch):
    """The decoder's end stops nobody else's waiting."""
    patience = Patience(5.0)
    with Decoder(lambda image: torch.zeros(3, 2, 2), workers=1, patience=patience):
        left = iter([OSError(errno.ESTALE, "gone")] * 2)
        waiting = threading.Thread(target=lambda: done.append(patience.through(act, passing_write, "write")))

        def act():
            for error in left:
                raise error
            return "written"

        done = []
        waiting.start()
        time.sleep(0.05)
    waiting.join()
    assert done == ["written"]


def test_items_of_the_quarantine_are_tried_again_when_asked(tmp_path, monkeypatch):
    items = files(tmp_path / "data")
    retry = dataclasses.replace(SMALL, retry=True)
    failing(monkeypatch, decode, "_to_rgb", ValueError("a passing fault"), 20)
    summary, _ = run(items, tmp_path / "store")
    assert (summary.images, len(summary.quarantined)) == (0, 20)
    assert run(items, tmp_path / "store")[0].images == 0, "nobody asked"
    for refused in (20, 3, 0):  # tried as often as asked, in vain too
        failing(monkeypatch, decode, "_to_rgb", ValueError("a passing fault"), refused)
        summary, _ = run(items, tmp_path / "store", config=retry)
        assert len(summary.quarantined) == refused
    assert (summary.images, summary.reused) == (3, 17)
    assert Store.open(tmp_path / "store").quarantined() == []
    assert verify(tmp_path / "store") == []
    assert run(items, tmp_path / "store", config=retry)[0].images == 0


def test_parts_are_written_once_the_share_is_back(tmp_path, monkeypatch):
    left = failing(monkeypatch, parts, "sync_tree", OSError(errno.ESTALE, "Stale file handle"), 3)
    summary, _ = run(images(20), tmp_path)
    assert (left, summary.images) == ([0], 20)
    assert verify(tmp_path) == []


def test_a_full_disk_is_one_line_at_once(tmp_path, monkeypatch):
    calls = []

    def full(stage):
        calls.append(stage)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(parts, "sync_tree", full)
    with pytest.raises(InputError, match=r"cannot write part .*No space left.*Free space"):
        run(images(40), tmp_path)
    monkeypatch.undo()
    summary, encoder = run(images(40), tmp_path)
    assert (sum(encoder.sizes), summary.images + summary.reused) == (24, 40)
    assert verify(tmp_path) == []


# --- threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("a bug"), SystemExit(3)])
def test_a_thread_that_dies_ends_the_run(tmp_path, error):
    def die():
        raise error

    items = [*images(20), Item.rendered(b"dead", die, "dead")]
    with pytest.raises(type(error)):
        run(items, tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("decode", "write", "tokenize"))]


def test_threads_that_cannot_start_end_the_run(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no thread")

    monkeypatch.setattr(decode, "begin_quietly", broken)
    with pytest.raises(RuntimeError):
        run(images(20), tmp_path)


# --- damaged images -----------------------------------------------------------------------------------


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sized(png, width, height):
    """A PNG whose header says another size."""
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def test_eight_kinds_of_damage(tmp_path):
    photo = Image.open(PHOTO)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    deep = Image.fromarray(np.full((9, 9), 257 * 40, np.uint16))
    kinds = {
        "truncated.jpg": (PHOTO.read_bytes()[:9000], "damaged image"),
        "zero.jpg": (b"", "empty file"),
        "cmyk.jpg": (encoded(photo.convert("CMYK"), "JPEG"), (320, 240)),
        "deep.png": (encoded(deep, "PNG"), (9, 9)),
        "animated.gif": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), (9, 9)),
        "turned.jpg": (encoded(photo, "JPEG", exif=exif), (320, 240)),
        "one.png": (encoded(Image.new("RGB", (1, 1)), "PNG"), (1, 1)),
        "huge.png": (sized(encoded(Image.new("RGB", (9, 9)), "PNG"), 20_000, 20_000), "too large"),
        "wrong.png": (encoded(photo, "JPEG"), (320, 240)),
        "text.jpg": (b"<html>404</html>", "not an image"),
    }
    for name, (data, _) in kinds.items():
        (tmp_path / name).write_bytes(data)
    items = [Item.image_file(tmp_path / name) for name in kinds]
    bytes_of = [Item.caption("fine"), Item("k" * 32, "text", "latin", "caf\udce9")]
    summary, _ = run([*items, *bytes_of], tmp_path / "store")
    reasons = {item.source: item.reason for item in summary.quarantined}
    table = Store.open(tmp_path / "store").table("image").to_pylist()
    sizes = {row["source"]: (row["width"], row["height"]) for row in table}
    for name, (_, expected) in kinds.items():
        if isinstance(expected, str):
            assert expected in reasons.pop(name)
        else:
            assert sizes.pop(name) == expected
    assert reasons == {"latin": "caption is not valid Unicode"}
    assert sizes == {}
    first = rows(tmp_path / "store", [items[list(kinds).index("animated.gif")]])
    np.testing.assert_array_equal(first[0, 0], [1, 0, 0])


def test_an_image_inside_a_tar(tmp_path):
    data = PHOTO.read_bytes()
    (tmp_path / "x.tar").write_bytes(b"0" * 512 + data + b"0" * 99)
    held = FileSlice(tmp_path / "x.tar", 512, len(data))
    item = Item.image_bytes(held.read(), held, "x.tar/a.jpg")
    assert item.key == Item.image_file(PHOTO).key
    assert read_image(item)[1] == (320, 240)
    with pytest.raises(decode.Unreadable, match="cannot be read"):
        read_image(Item.image_bytes(data, FileSlice(tmp_path / "x.tar", 512, 10**6), "x"))


# --- JPEGs at reduced scale ---------------------------------------------------------------------------


def test_reduced_jpegs_stay_within_their_tolerance(tmp_path, small):
    """Of 255, the mean over a picture's pixels."""
    from compal.pipeline.encoder import load_encoder, resolve

    encoder = load_encoder(resolve("open_clip:small/random"))
    folder = PHOTO.parent
    for path in sorted(folder.glob("*.jpg")):
        item = Item.image_file(path)
        whole, size = read_image(item)
        reduced, same = read_image(item, side=64)
        assert size == same == whole.size
        assert 64 <= min(reduced.size) < min(whole.size)
        apart = (encoder.preprocess(whole).float() - encoder.preprocess(reduced).float()).abs()
        assert apart.mean() < 2.0
    assert read_image(Item.image_file(PHOTO), side=240)[0].size == (320, 240), "not below what is asked"


def test_settings_that_make_no_sense():
    with pytest.raises(UsageError, match="patience"):
        ExtractConfig(patience=-1.0)
    with pytest.raises(UsageError, match="processes"):
        ExtractConfig(processes=-1)


# --- FLOPs --------------------------------------------------------------------------------------------


def test_flops_of_an_image_are_those_of_the_tower_by_hand(small):
    """2 per multiply and add: the patch convolution, a block's four projections, its MLP and its two attention
    products, and the projection to the embedding; of 5 tokens of 32 channels."""
    from compal.pipeline.encoder import load_encoder, resolve

    patches, tokens, width, embedded = 4, 5, 32, 24
    patching = 2 * patches * (16 * 16 * 3) * width
    block = 2 * tokens * width * (4 * width + 8 * width) + 4 * tokens * tokens * width
    encoder = load_encoder(resolve("open_clip:small/random"))
    found = probe.flops_of_an_image(encoder)
    assert found == pytest.approx(patching + block + 2 * width * embedded, rel=0.02)
    assert next(encoder.model.parameters()).device.type == "cpu"
    assert probe.flops_of_an_image(Stub()) == 0.0


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "float16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "float32", 19.5e12),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("NVIDIA Unheard 9000", "bfloat16", 0.0),
    ],
)
def test_peaks_by_name(name, precision, expected):
    assert probe.peak_flops(name, precision) == expected
