"""What `--dtype` means for an extraction."""

import numpy as np
import pytest

from compal.errors import UnknownName, UsageError
from compal.pipeline.encoder import load_encoder, resolve
from compal.pipeline.extract import extract
from compal.stores.dtypes import from_bfloat16, to_bfloat16
from compal.stores.items import Item
from compal.stores.store import Store


@pytest.fixture
def items(tmp_path, photograph):
    found = [Item.caption(text, text) for text in ("a red cube", "two balls left of a cup", "a")]
    for number in range(3):
        photograph(number).save(tmp_path / f"{number}.png")
        found.append(Item.image_file(tmp_path / f"{number}.png"))
    return found


def features(store, items):
    images = [item.key for item in items if item.kind == "image"]
    texts = [item.key for item in items if item.kind == "text"]
    found = [store.pooled("image", images), store.pooled("text", texts)]
    if store.spec.level == "tokens":
        found.append(store.image_tokens(images))
    return [*found, store.text_tokens(texts)[0]] if store.spec.level != "pooled" else found


@pytest.mark.parametrize("level", ["tokens", "regions", "pooled"])
def test_bfloat16_is_float32_rounded_once(tmp_path, items, level, small):
    if level == "regions":
        items = [Item.caption(item.content, "", ((0, 1, "object"),)) if item.kind == "text" else item for item in items]
    stores = []
    for dtype in ("float32", "bfloat16"):
        spec = resolve("open_clip:small/random:0", level, dtype)
        extract(items, spec, tmp_path / dtype)
        stores.append(features(Store.open(tmp_path / dtype), items))
    for exact, rounded in zip(*stores, strict=True):
        assert rounded.dtype == np.uint16
        np.testing.assert_array_equal(from_bfloat16(rounded), from_bfloat16(to_bfloat16(exact)))


def test_int8_is_cast_and_not_extracted(tmp_path, items, small):
    spec = resolve("open_clip:small/random:0", "tokens", "int8")
    with pytest.raises(UsageError, match="compal store cast STORE --dtype int8"):
        extract(items, spec, tmp_path / "s")
    with pytest.raises(UsageError, match="compal store cast"):
        load_encoder(spec)


def test_a_dtype_that_does_not_exist():
    with pytest.raises(UnknownName, match="Did you mean 'bfloat16'"):
        resolve("shapes-vit", "tokens", "bfloat")
