"""Plans are pure: the same items give the same parts, whatever their order or source."""

import hashlib
import random

import pytest

from compal.errors import UsageError
from compal.pipeline.plan import ExtractConfig, Nothing, part_rows, plan, sample_bytes, unique_items
from compal.stores.items import Item
from compal.stores.spec import FeatureSpec

SPEC = FeatureSpec("stub", "seed", pooled_dim=4, image_shape=(4, 6), text_dim=5, context_length=8)
SMALL = ExtractConfig(max_part_rows=8)


class Held(Nothing):
    """A store that holds some keys and refused others."""

    def __init__(self, spec, held=(), refused=()):
        super().__init__(spec)
        object.__setattr__(self, "held", set(held))
        object.__setattr__(self, "refused", refused)

    def has(self, kind, keys):
        return [key in self.held for key in keys]

    def quarantined(self):
        return self.refused


def captions(count, start=0):
    return [Item.caption(f"caption {number}", f"source {number}") for number in range(start, start + count)]


def images(count):
    return [Item.rendered(f"image {number}".encode(), lambda: None, str(number)) for number in range(count)]


def test_the_plan_depends_on_the_set_of_items_only():
    items = captions(30) + images(20)
    shuffled = random.Random(0).sample(items, len(items))
    first, second = plan(items, Nothing(SPEC), SMALL), plan(iter(shuffled), Nothing(SPEC), SMALL)
    assert first == second
    assert [len(part.items) for part in first] == [8, 8, 4, 8, 8, 8, 6]
    assert [part.kind for part in first] == ["image"] * 3 + ["text"] * 4
    assert {item.key for part in first for item in part.items} == {item.key for item in items}


def test_names_are_deterministic_and_hold_seed_spec_and_keys():
    items = captions(10)
    parts = plan(items, Nothing(SPEC), SMALL)
    names = [part.name for part in parts]
    for part in parts:
        content = "\0".join([SPEC.fingerprint, *(item.key for item in part.items)])
        assert part.name == "t-" + hashlib.sha256(content.encode()).hexdigest()[:16], "old runs could not resume"
    order = [hashlib.sha256(f"0:{item.key}".encode()).digest() for part in parts for item in part.items]
    assert order == sorted(order)
    others = [
        plan(items, Nothing(SPEC), ExtractConfig(max_part_rows=8, seed=1)),
        plan(items, Nothing(SPEC.with_dtype("float32")), SMALL),
        plan(captions(10, start=1), Nothing(SPEC), SMALL),
    ]
    for other in others:
        assert not set(names) & {part.name for part in other}


def test_two_sources_of_one_content_are_one_item():
    items = [Item.caption("a dog", "here"), Item.caption("a dog", "there"), Item.caption("a cat", "here")]
    kept = unique_items(items)
    assert [item.source for item in kept] == ["here", "here"]


def test_a_copy_without_segments_does_not_hide_them():
    segments = ((0, 5, "object"),)
    bare, rich = Item.caption("a dog", "here"), Item.caption("a dog", "there", segments)
    assert unique_items([bare, rich]) == unique_items([rich, bare]) == [rich]


def test_committed_and_quarantined_items_are_left_out():
    items = captions(4)
    store = Held(SPEC, held=[items[0].key], refused=[items[1]])
    (part,) = plan(items, store, SMALL)
    assert {item.key for item in part.items} == {items[2].key, items[3].key}
    assert plan(items[:2], store, SMALL) == []


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((196, 768), 1024), ((50, 512), 4096), ((1024, 1152), 128), ((1, 8), 8192), ((9999, 9999), 64)],
)
def test_rows_of_a_part_are_the_nearest_power_of_two(shape, rows):
    spec = FeatureSpec("stub", "seed", pooled_dim=4, image_shape=shape)
    assert part_rows("image", [], spec, ExtractConfig()) == rows
    assert part_rows("image", [], spec, ExtractConfig(max_part_rows=100)) == 64
    assert part_rows("image", [], spec, ExtractConfig(max_part_rows=3)) == 2


def test_sample_bytes_by_level():
    assert sample_bytes("image", [], SPEC) == 2 * (4 * 6 + 4)
    assert sample_bytes("text", [], SPEC) == 2 * (8 * 5 + 4)
    pooled = FeatureSpec("stub", "seed", pooled_dim=4, level="pooled", dtype="float32")
    assert sample_bytes("image", [], pooled) == sample_bytes("text", [], pooled) == 16
    regions = FeatureSpec("stub", "seed", pooled_dim=4, level="regions", dtype="float32")
    boxed = Item.rendered(b"x", lambda: None, "x", boxes=((0, 0, 1, 1), (0, 0, 0.5, 0.5)))
    assert sample_bytes("image", [boxed], regions) == 16 * (1 + 2)


@pytest.mark.parametrize("setting", ["batch_size", "workers", "part_bytes", "max_part_rows"])
def test_a_setting_below_one_is_an_error(setting):
    with pytest.raises(UsageError, match=f"{setting} must be at least 1"):
        ExtractConfig(**{setting: 0})
