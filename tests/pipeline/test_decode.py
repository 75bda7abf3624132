"""Every image becomes RGB pixels or a reason; crops and segments are where they say."""

import errno
import io
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compal.errors import InputError
from compal.pipeline import decode
from compal.pipeline.decode import Decoder, Unreadable, Wanted, open_image, read_caption
from compal.pipeline.regions import crop_square, image_views, text_spans, views
from compal.stores.items import Item
from compal.stores.spec import FeatureSpec

PHOTO = Path(__file__).parent.parent / "data" / "coco" / "val2017" / "000000422836.jpg"


def to_tensor(image):
    """(3, 4, 4) float32."""
    return torch.from_numpy(np.array(image.resize((4, 4)), np.float32)).permute(2, 0, 1)


def saved(path, image, **options):
    image.save(path, **options)
    return Item.image_file(path)


def reason(item):
    with pytest.raises(Unreadable) as caught:
        open_image(item)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_photograph():
    image = open_image(Item.image_file(PHOTO))
    assert (image.mode, image.size) == ("RGB", (320, 240))
    assert np.asarray(image).std() > 20


@pytest.mark.parametrize(
    ("mode", "colour", "ending", "expected"),
    [
        ("L", 77, "png", (77, 77, 77)),
        ("LA", (77, 0), "png", (77, 77, 77)),
        ("RGBA", (10, 20, 30, 0), "png", (10, 20, 30)),
        ("CMYK", (0, 255, 255, 0), "tiff", (255, 0, 0)),
        ("1", 1, "png", (255, 255, 255)),
        ("I;16", 257 * 9, "png", (9, 9, 9)),
        ("I", 257 * 9, "tiff", (9, 9, 9)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, colour, ending, expected):
    item = saved(tmp_path / f"image.{ending}", Image.new(mode, (6, 5), colour))
    image = open_image(item)
    assert (image.mode, image.size, image.getpixel((3, 3))) == ("RGB", (6, 5), expected)


def test_a_palette_with_transparency(tmp_path):
    image = Image.new("P", (6, 5), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    item = saved(tmp_path / "palette.png", image, transparency=bytes([255, 0]))
    assert open_image(item).getpixel((0, 0)) == (10, 20, 30)


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    item = saved(tmp_path / "turned.jpg", Image.new("RGB", (6, 4)), exif=exif)
    assert open_image(item).size == (6, 4)


def test_reasons(tmp_path):
    data = PHOTO.read_bytes()
    files = {
        "truncated.jpg": data[: len(data) // 2],
        "header.jpg": data[:30],
        "text.jpg": b"not an image",
        "empty.jpg": b"",
    }
    reasons = {}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        reasons[name] = reason(Item.image_file(tmp_path / name))
    assert "truncated" in reasons["truncated.jpg"]
    assert reasons["text.jpg"] == "not an image that Pillow can read"
    assert reasons["empty.jpg"] == "empty file"
    assert reasons["header.jpg"]
    assert reason(Item.image_file(tmp_path / "missing.jpg")) == "no such file"
    assert reason(Item.image_file(tmp_path)).startswith("cannot be read")


def test_a_file_that_changed_since_it_was_listed(tmp_path):
    item = saved(tmp_path / "image.png", Image.new("RGB", (6, 5)))
    saved(tmp_path / "image.png", Image.new("RGB", (6, 5), (1, 2, 3)))
    assert "changed" in reason(item)


def png_of(width, height):
    """A PNG whose header promises a size it does not hold."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(bytes(100))
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, pixels))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (60_000, 60_000)])
def test_decompression_bombs_are_refused_before_they_are_decoded(tmp_path, width, height):
    (tmp_path / "bomb.png").write_bytes(png_of(width, height))
    items = [Item.image_file(tmp_path / "bomb.png")]
    with Decoder(to_tensor, workers=1) as decoder:
        (batch,) = decoder.decode([Wanted(items)])
    assert batch.refused == [(items[0], "too large: more than 89,478,485 pixels")]


def test_strips_are_refused(tmp_path):
    assert "too narrow" in reason(saved(tmp_path / "strip.png", Image.new("RGB", (5000, 3))))


def test_rendered_images():
    pixels = np.full((5, 6, 3), 7, np.uint8)
    assert open_image(Item.rendered(b"a", lambda: pixels, "a")).getpixel((5, 4)) == (7, 7, 7)
    for wrong in (pixels.astype(np.float32), pixels[..., :2], pixels[0], None):
        with pytest.raises(InputError, match=r"the renderer of b made .*uint8"):
            open_image(Item.rendered(b"b", lambda wrong=wrong: wrong, "b"))


def test_a_renderer_whose_file_is_gone_or_damaged_goes_to_the_quarantine(tmp_path):
    """A crop is cut from a file when it is decoded; a process without descriptors says nothing of that file."""
    gone = Item.rendered(b"crop", lambda: (tmp_path / "gone.jpg").read_bytes(), "gone")
    assert reason(gone) == "cannot be read: No such file or directory"

    def starved():
        raise OSError(errno.EMFILE, "Too many open files")

    with pytest.raises(InputError, match=r"cannot read crop: Too many open files"):
        open_image(Item.rendered(b"crop", starved, "crop"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [("", "empty"), (" \n\t", "empty"), (None, "nothing"), (3.5, "float"), ("\ud800", "Unicode")],
)
def test_captions_that_are_none(content, expected):
    with pytest.raises(Unreadable, match=expected):
        read_caption(Item("key", "text", "source", content))


def numbered(count):
    return [Item.rendered(str(n).encode(), lambda n=n: np.full((4, 4, 3), n, np.uint8), str(n)) for n in range(count)]


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_come_in_order_without_the_unreadable_ones(tmp_path, workers):
    items = numbered(10)
    items[4] = Item.image_file(tmp_path / "missing.jpg", "missing")
    with Decoder(to_tensor, workers) as decoder:
        batches = list(decoder.decode(map(Wanted, [items[:3], items[3:6], items[6:]])))
    assert [[int(pixels.mean()) for pixels in batch.pixels] for batch in batches] == [
        [0, 1, 2],
        [3, 5],
        [6, 7, 8, 9],
    ]
    assert [[item.source for item in batch.items] for batch in batches][1] == ["3", "5"]
    assert batches[1].refused == [(items[4], "no such file")]
    assert batches[0].pixels.dtype == torch.float32
    assert batches[0].sizes == [(4, 4)] * 3


def test_decoding_ahead_is_bounded():
    begun = []

    def render(number):
        begun.append(number)
        return np.zeros((4, 4, 3), np.uint8)

    items = [Item.rendered(str(n).encode(), lambda n=n: render(n), str(n)) for n in range(50)]
    with Decoder(to_tensor, workers=2) as decoder:
        next(decoder.decode(Wanted([item]) for item in items))
    assert len(begun) <= 4


def test_workers_leave_the_callers_threads_alone():
    before = torch.get_num_threads()
    seen = []
    item = Item.rendered(b"x", lambda: seen.append(torch.get_num_threads()) or np.zeros((4, 4, 3), np.uint8), "x")
    with Decoder(to_tensor, workers=1) as decoder:
        list(decoder.decode([Wanted([item])]))
    assert seen == [1]
    assert torch.get_num_threads() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def gradient(width, height):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, x * 0], axis=-1).astype(np.uint8))


def corners(image):
    """(left, top, right, bottom) of a crop of `gradient`, inclusive."""
    return (*image.getpixel((0, 0))[:2], *image.getpixel((image.width - 1, image.height - 1))[:2])


def test_crops_are_square_with_a_margin_and_stay_inside():
    image = gradient(100, 100)
    assert corners(crop_square(image, (0.4, 0.4, 0.6, 0.6), margin=0.0)) == (40, 40, 59, 59)
    assert corners(crop_square(image, (0.4, 0.4, 0.6, 0.6), margin=0.1)) == (38, 38, 61, 61)
    assert corners(crop_square(image, (0.4, 0.45, 0.6, 0.55), margin=0.0)) == (40, 40, 59, 59)
    assert corners(crop_square(image, (0.0, 0.9, 0.2, 1.0), margin=0.0)) == (0, 80, 19, 99)
    assert crop_square(image, (0, 0, 1, 1)).size == (100, 100)
    assert crop_square(gradient(200, 50), (0, 0, 0.5, 1)).size == (50, 50)
    assert crop_square(image, (0.5, 0.5, 0.501, 0.501)).size == (1, 1)


@pytest.mark.parametrize("box", [(0.5, 0.5, 0.5, 0.6), (0.6, 0, 0.5, 1), (1.5, 0, 2, 1), (0, 0, float("nan"), 1)])
def test_impossible_boxes(box):
    with pytest.raises(ValueError, match="empty or outside"):
        crop_square(gradient(10, 10), box)


def test_views_are_the_boxes_then_the_whole():
    image = gradient(100, 100)
    views = image_views(image, [(0, 0, 0.2, 0.2), (0.5, 0.5, 1, 1)])
    assert [view.size for view in views] == [(28, 28), (70, 70), (100, 100)]
    assert image_views(image, []) == [image]


def test_text_spans():
    text = "a red cube left of a ball"
    segments = ((0, 10, "object"), (11, 18, "relation"), (19, 25, "object"))
    assert text_spans(Item.caption(text, segments=segments)) == [(0, 10), (19, 25)], (
        "a clause about two objects is no region"
    )
    assert text_spans(Item.caption(text)) == [(0, 25)]
    for wrong in ((5, 5, "object"), (-1, 4, "object"), (20, 26, "object"), (1, 2, "object")):
        with pytest.raises(ValueError, match="segment"):
            text_spans(Item.caption(text, segments=(wrong,)))


def test_regions_fill_one_row_a_view(tmp_path):
    boxes = ((0.0, 0.0, 0.5, 0.5),)
    buffer = io.BytesIO()
    gradient(40, 40).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    good = Item.image_file(tmp_path / "a.png", boxes=boxes)
    bad = Item.rendered(b"bad", lambda: np.zeros((4, 4, 3), np.uint8), "bad", boxes=((0.5, 0.5, 0.5, 0.5),))
    plain = Item.rendered(b"plain", lambda: np.zeros((4, 4, 3), np.uint8), "plain")
    spec = FeatureSpec("stub", "none", 3, level="regions")
    with Decoder(to_tensor, workers=2) as decoder:
        (batch,) = decoder.decode([Wanted([good, bad, plain], [spec])])
    assert [item.key for item in batch.items] == [good.key, bad.key, plain.key], "the whole image can be read"
    crops = batch.crops["regions"]
    assert (crops.counts, crops.pixels.shape, list(crops.refused)) == ([1, 0, 0], (1, 3, 4, 4), [1])
    assert crops.pixels[0].mean() < batch.pixels[0].mean()


def test_crops_follow_the_images_that_can_be_read(tmp_path):
    item = Item.rendered(b"g", lambda: np.asarray(gradient(40, 40)), "g", boxes=((0.0, 0.0, 0.5, 0.5),))
    specs = [FeatureSpec("stub", "none", 3, level=level) for level in ("regions", "regions:grid-18")]
    with Decoder(to_tensor, workers=2) as decoder:
        (batch,) = decoder.decode([Wanted([Item.image_file(tmp_path / "none.png"), item], specs)])
    assert [len(batch.items), len(batch.refused)] == [1, 1]
    for spec in specs:
        expected = torch.stack([to_tensor(view) for view in views(open_image(item), item, spec)])
        torch.testing.assert_close(batch.crops[spec.level].pixels, expected[:-1])
        torch.testing.assert_close(batch.pixels, expected[-1:])


def test_pillow_limit_is_ours():
    assert Image.MAX_IMAGE_PIXELS == decode.MAX_PIXELS
