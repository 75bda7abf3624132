"""Where regions come from: the dataset's boxes, the grid, cached tokens; and each through an extraction."""

import dataclasses
import math

import numpy as np
import pytest
from PIL import Image

from compal.errors import InputError, MissingFeatures, UnknownName
from compal.pipeline import regions, segments
from compal.pipeline.encoder import at_level, load_encoder, resolve
from compal.pipeline.extract import extract
from compal.pipeline.plan import ExtractConfig
from compal.pipeline.regions import (
    GRIDS,
    LEVELS,
    boxes_of,
    describe,
    image_views,
    region_count,
    regions_of,
    source_of,
    text_spans,
    view_count,
    views,
    windows,
)
from compal.stores.items import Item
from compal.stores.spec import LEVEL
from compal.stores.store import Store
from compal.world.items import caption, picture
from compal.world.splits import quads


@pytest.fixture(scope="module")
def world():
    """Four quadruplets of the embedded world: 8 pictures with boxes, 8 captions with segments."""
    found = []
    for quad in quads("validation", 4):
        for scene, told in zip(quad.scenes, quad.captions, strict=True):
            found += [picture(scene, "shapes"), caption(told, "shapes")]
    return found


def some_image(boxes=()):
    return Item("k", "image", "k", None, boxes=tuple(boxes))


def test_every_level_is_one_that_a_spec_may_have():
    assert set(LEVELS) == {
        "regions", "regions:grid", "regions:grid-70", "regions:grid-34", "regions:grid-18",
        "regions:roi", "regions:roi-grid", "regions:roi-grid-70", "regions:roi-grid-34", "regions:roi-grid-18",
        "regions:dense", "regions:dense-roi",
        "regions:dense-grid", "regions:dense-grid-70", "regions:dense-grid-34", "regions:dense-grid-18",
    }  # fmt: skip
    assert all(LEVEL.fullmatch(level) for level in LEVELS)
    with pytest.raises(UnknownName, match=r"no level 'regions:grid-71'.*regions:grid-70"):
        source_of("regions:grid-71")


def test_the_grid_is_as_described():
    for count, smallest in GRIDS.items():
        assert len(windows(smallest)) == count
        assert windows(smallest) == windows(1)[239 - count :], "coarser grids are the finer ones without small windows"
    assert windows(1)[-1] == (0.0, 0.0, 1.0, 1.0)
    sides = [round((x1 - x0) * 7) for x0, _, x1, _ in windows(1)]
    assert sides == sorted(sides)
    assert [sides.count(size) for size in range(1, 8)] == [169, 36, 16, 9, 4, 4, 1]
    for size in range(1, 8):
        own = [box for box, side in zip(windows(1), sides, strict=True) if side == size]
        edges = sorted({box[0] for box in own})
        assert edges == sorted({box[1] for box in own})
        assert edges[0] == 0
        assert max(box[2] for box in own) == max(box[3] for box in own) == pytest.approx(1)
        steps = np.diff(edges)
        if len(steps):
            np.testing.assert_allclose(steps, steps[0])
            assert steps[0] <= size / 14 + 1e-9, "neighbours overlap by half or more"
        if len(steps) > 1:
            assert (1 - size / 7) / (len(steps) - 1) > size / 14 + 1e-9, "and no window could be spared"
        assert all(x1 - x0 == pytest.approx(size / 7) == pytest.approx(y1 - y0) for x0, y0, x1, y1 in own)


def test_fingerprints_of_boxes_stay_as_they_were():
    assert describe("regions") == {"regions": regions.DESCRIPTION}
    assert regions.DESCRIPTION == (
        "square crops of the boxes, margin 0.2, clamped; object segments as texts; the whole where there is none"
    )
    assert resolve("shapes-vit", "regions").fingerprint[:16] == "70ce6fb49c604b80"


def test_each_source_has_a_description_of_its_own():
    told = {level: describe(level)["regions"] for level in LEVELS}
    assert len(set(told.values())) == len(LEVELS)
    assert "239" in told["regions:grid"] or "k = 1 to 7" in told["regions:grid"]
    specs = {level: resolve("shapes-vit", level) for level in LEVELS}
    assert len({spec.fingerprint for spec in specs.values()}) == len(LEVELS)
    assert {spec.rung for spec in specs.values()} == {"regions"}
    assert specs["regions:roi"].image_shape == (0, specs["regions"].pooled_dim)


def test_a_segmenter_is_part_of_the_spec():
    assert describe("regions", "dataset") == describe("regions")
    assert describe("regions:grid", "rules")["segments"] == "rules 1"
    with pytest.raises(UnknownName, match=r"no segmenter 'rule'.*Did you mean 'rules'"):
        describe("regions", "rule")


def test_views_and_regions_are_counted_before_they_are_made(photograph):
    image = photograph(0, (90, 70))
    spec = resolve("shapes-vit", "regions")
    for level in LEVELS:
        for boxes in ((), ((0.1, 0.1, 0.5, 0.6),), ((0.1, 0.1, 0.5, 0.6), (0.0, 0.0, 1.0, 1.0))):
            item = some_image(boxes)
            if not source_of(level).pooled:
                made = views(image, item, dataclasses.replace(spec, level=level))
                assert len(made) == view_count(item, level)
                assert made[-1] is image, "the whole image comes last"
            if source_of(level).each:  # their number is the tower's: tests/pipeline/test_dense.py
                assert boxes_of(item, level) == ()
                assert regions_of(list(range(5)), level) == list(range(4)), "the whole image is none of them"
                continue
            kept = regions_of(list(range(view_count(item, level))), level)
            smallest = source_of(level).smallest
            expected = len(windows(smallest)) if smallest else max(1, len(boxes))
            assert len(kept) == region_count(item, level) == expected
            assert kept == list(range(len(kept))), "in the order of the views"


def test_windows_of_a_square_image_are_cut_exactly():
    values = np.arange(70 * 70 * 3, dtype=np.uint32).astype(np.uint8).reshape(70, 70, 3)
    spec = dataclasses.replace(resolve("shapes-vit", "regions"), level="regions:grid")
    made = views(Image.fromarray(values), some_image([(0, 0, 0.1, 0.1)]), spec)
    assert len(made) == 239
    for (x0, y0, x1, _), crop in zip(windows(1), made, strict=True):
        left, top = (math.floor(edge * 70 + 0.5) for edge in (x0, y0))
        side = round((x1 - x0) * 70)
        assert crop.size == (side, side)
        shifts = [values[top + dy : top + dy + side, left + dx : left + dx + side] for dy in (-1, 0) for dx in (-1, 0)]
        assert any(np.array_equal(np.asarray(crop), cut) for cut in shifts), "to the nearest pixel"


def test_windows_of_other_images_are_squares_that_hold_the_cell(photograph):
    image = photograph(0, (140, 70))
    spec = dataclasses.replace(resolve("shapes-vit", "regions"), level="regions:grid")
    made = views(image, some_image(), spec)
    assert {crop.size for crop in made[:169]} == {(20, 20)}, "1/7 of the longer side"
    assert made[-2].size == (70, 70), "no larger than the image"


def test_boxes_keep_their_margin_and_windows_have_none(photograph):
    image = photograph(0, (100, 100))
    box = (0.4, 0.4, 0.6, 0.6)
    assert image_views(image, [box])[0].size == (28, 28)
    spec = resolve("shapes-vit", "regions")
    assert views(image, some_image([box]), spec)[0].size == (28, 28)
    for wrong in ((0.5, 0.5, 0.5, 0.6), (2.0, 0.0, 3.0, 1.0)):
        with pytest.raises(ValueError, match="is empty or outside"):
            views(image, some_image([wrong]), spec)


def test_segments_that_name_something_are_encoded():
    text = "a red cube left of grass"
    item = Item.caption(
        text, segments=((0, 10, "object"), (19, 24, "phrase"), (0, 24, "relation"), (2, 5, "attribute"))
    )
    assert text_spans(item) == [(0, 10), (19, 24)]
    assert text_spans(Item.caption(text)) == [(0, len(text))]
    assert text_spans(Item.caption(text, segments=((0, 24, "relation"),))) == [(0, len(text))]
    with pytest.raises(ValueError, match="segment"):
        text_spans(Item.caption(text, segments=((0, 99, "object"),)))


# --- through an extraction ---------------------------------------------------------------------------


def stored(root, level, items, **config):
    spec = resolve("shapes-vit", level, "float32")
    summary = extract(items, spec, root / spec.folder, ExtractConfig(workers=1, **config))
    return Store.open(root / spec.folder), summary


def images_of(items):
    return [item for item in items if item.kind == "image"]


@pytest.fixture(scope="module")
def root(tmp_path_factory, world):
    folder = tmp_path_factory.mktemp("stores")
    stored(folder, "tokens", world)
    return folder


def test_the_grid_is_encoded_window_by_window(root, world):
    items = images_of(world)[:3]
    store, summary = stored(root, "regions:grid-18", items, batch_size=7)
    assert summary.images == 3
    found, mask = store.image_regions([item.key for item in items])
    assert mask.sum(1).tolist() == [18] * 3
    encoder = load_encoder(store.spec)
    for rows, item in zip(found, items, strict=True):
        image = Image.fromarray(item.content())
        crops = views(image, item, store.spec)
        expected = [encoder.encode_images(encoder.preprocess(crop)[None]).pooled[0].numpy() for crop in crops]
        np.testing.assert_allclose(rows, np.stack(expected), rtol=1e-4, atol=1e-4)
    whole = store.pooled("image", [item.key for item in items])
    np.testing.assert_array_equal(found[:, -1], whole)


def test_pooled_regions_never_run_the_image_tower(root, world, monkeypatch):
    from compal.pipeline.dual_encoder import DualEncoder

    def never(*_):
        raise AssertionError("the image tower ran")

    monkeypatch.setattr(DualEncoder, "encode_images", never)
    monkeypatch.setattr(DualEncoder, "images_at", never)
    monkeypatch.setattr(DualEncoder, "check", lambda _: None)  # which runs it once, on noise
    unseen = [dataclasses.replace(item, content=never) if item.kind == "image" else item for item in world]
    for level in ("regions:roi", "regions:roi-grid-18"):
        store, summary = stored(root, level, unseen)
        assert (summary.images, summary.texts, summary.quarantined) == (8, 8, [])
        keys = [item.key for item in images_of(world)]
        counts = store.image_regions(keys)[1].sum(1).tolist()
        assert counts == [region_count(item, level) for item in images_of(world)]


def test_pooled_boxes_are_means_of_their_patches(root, world):
    store, _ = stored(root, "regions:roi", world)
    spec = resolve("shapes-vit", "tokens", "float32")
    tokens = Store.open(root / spec.folder)
    encoder = load_encoder(spec)
    projection = encoder.model.visual.proj.detach().double().numpy()
    rows, columns = spec.image_grid
    for item in images_of(world):
        states = tokens.image_tokens([item.key])[0][spec.image_prefix :].reshape(rows, columns, -1).astype(np.float64)
        found = store.image_regions([item.key])[0][0]
        for vector, (x0, y0, x1, y1) in zip(found, item.boxes, strict=True):
            inside = [
                states[row, column]
                for row in range(rows)
                for column in range(columns)
                if x0 <= (column + 0.5) / columns <= x1 and y0 <= (row + 0.5) / rows <= y1
            ]
            expected = np.mean(inside, axis=0) @ projection
            np.testing.assert_allclose(vector, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(
        store.pooled("image", [world[0].key]), tokens.pooled("image", [world[0].key]), "the tower's own"
    )


def test_pooled_regions_need_the_tokens(tmp_path, world):
    with pytest.raises(MissingFeatures, match=r"has none of shapes-vit.*compal extract --backbone shapes-vit --level"):
        stored(tmp_path, "regions:roi", world)
    stored(tmp_path, "tokens", world[:2])
    with pytest.raises(MissingFeatures, match="lacks the tokens of 7 of 8 images"):
        stored(tmp_path, "regions:roi", world)


def test_texts_are_the_same_at_every_source(root, world):
    texts = [item for item in world if item.kind == "text"]
    one, other = (stored(root, level, world)[0] for level in ("regions", "regions:roi"))
    keys = [item.key for item in texts]
    for mine, theirs in zip(one.text_tokens(keys), other.text_tokens(keys), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_segmenters_segments_are_what_is_encoded(tmp_path):
    plain = [Item.caption("a red circle left of a blue star"), Item.caption("grass")]
    spec = resolve("shapes-vit", "regions", "float32", segmenter="rules")
    assert spec.extra["segments"] == "rules 1"
    extract(segments.segmented(plain, "rules"), spec, tmp_path / "store", ExtractConfig(workers=1))
    store = Store.open(tmp_path / "store")
    assert store.text_tokens([item.key for item in plain])[1].sum(1).tolist() == [2, 1]
    encoder = load_encoder(spec)
    expected = encoder.encode_texts(["a red circle", "a blue star"]).pooled.numpy()
    np.testing.assert_allclose(store.text_tokens([plain[0].key])[0][0], expected, rtol=1e-4, atol=1e-5)


def test_a_level_of_another_backbone_is_refused_by_name():
    spec = resolve("shapes-vit", "tokens")
    with pytest.raises(UnknownName, match="no level 'regions:boxes'"):
        at_level(spec, "regions:boxes", "float16")
    assert boxes_of(some_image([(0, 0, 1, 1)]), "regions:roi") == ((0, 0, 1, 1),)
    with pytest.raises(InputError, match="no level 'tokens'"):
        source_of("tokens")


def test_known_items_with_other_regions_are_refused(tmp_path, world):
    config = ExtractConfig(max_part_rows=8)
    bare = [dataclasses.replace(item, boxes=(), segments=()) for item in world]
    for level in ("regions", "regions:grid-18"):
        spec = resolve("random:4x8", level)
        extract(bare, spec, tmp_path / level, config)
        if level == "regions":
            with pytest.raises(InputError, match=r"8 images .* other regions, first .*: 1, not 4 .*--work FOLDER"):
                extract(world, spec, tmp_path / level, config)
        told = [item for item in world if item.kind == "text"]
        with pytest.raises(InputError, match=r"8 texts are stored with other regions"):
            extract(told, spec, tmp_path / level, config)
        extract([item for item in world if item.kind == "image"] if "grid" in level else bare, spec, tmp_path / level)
    other = resolve("random:4x8", "regions")
    extract(world, other, tmp_path / "other", config)
    assert extract(bare, other, tmp_path / "other", config).reused == len(world)
    assert extract(world, other, tmp_path / "other", config).reused == len(world)
