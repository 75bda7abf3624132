"""Regions pooled from cached tokens, held to slow references written from the towers' own definitions."""

import math
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from timm import models as timm_models
from timm.models.vision_transformer import VisionTransformer

from compal.errors import InputError, MissingFeatures
from compal.pipeline import roi
from compal.pipeline.encoder import at_level, load_encoder, resolve
from compal.pipeline.regions import windows
from compal.pipeline.roi import Cells, RegionPool, Tokens, cells_in, encode_rois, seen, token_store
from compal.pipeline.towers import grid_of, image_tower
from compal.stores.items import Item
from compal.stores.rows import ImageRows, Quarantined
from compal.stores.spec import FeatureSpec
from compal.stores.store import Store

TEXT = {"vocab_size": 300, "context_length": 12, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 64, "patch_size": 16, "width": 64, "head_width": 32, "layers": 1}
COCA = {**VIT, "attentional_pool": True, "attn_pooler_queries": 5, "output_tokens": True}
CLIPA = {**VIT, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}
RESNET = {"image_size": 96, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16}
MAP = {"timm_model_name": "roi_map", "image_size": 64, "timm_pool": "map", "timm_proj": "linear"}
SIGLIP = {"timm_model_name": "test_vit3", "image_size": 160, "timm_pool": "map", "timm_proj": "none"}
AVERAGE = {"timm_model_name": "roi_average", "image_size": 64, "timm_pool": "avg", "timm_proj": "linear"}
CONVNEXT = {"timm_model_name": "test_convnext", "image_size": 160, "timm_pool": "", "timm_proj": "linear"}
BOXES = [
    (0.0, 0.0, 0.5, 0.5),
    (0.2, 0.6, 0.9, 0.95),
    (0.4, 0.4, 0.41, 0.41),
    (0.0, 0.3, 1.0, 0.7),
    (0.0, 0.0, 1.0, 1.0),
]


@timm_models.register_model
def roi_map(num_classes=0, **_):
    """The tower of SigLIP, small: attention pooling over patches alone."""
    return _vit(num_classes, class_token=False, global_pool="map")


@timm_models.register_model
def roi_average(num_classes=0, **_):
    return _vit(num_classes, class_token=True, global_pool="avg", fc_norm=True)


def _vit(num_classes, **options):
    model = VisionTransformer(64, 16, embed_dim=48, depth=1, num_heads=2, num_classes=num_classes, **options)
    model.default_cfg = {}  # which open_clip reads
    return model


class Tower:
    """An image tower with random weights, as much of an encoder as pooling asks for."""

    def __init__(self, vision, embed=48):
        torch.manual_seed(0)
        model = open_clip.CLIP(embed, CLIPVisionCfg(**vision), CLIPTextCfg(**TEXT))
        for parameter in model.visual.parameters():  # untrained towers give embeddings of 1e-4 of nearly equal rows
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2 / math.sqrt(parameter.shape[-1]) * 4)
        self.images = image_tower(model.eval().requires_grad_(False).visual)
        size = self.images.image_size
        self.tokens = self.images.states(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)))
        count, width = self.tokens.shape[1:]
        grid = grid_of(count - self.images.prefix, size)
        self.spec = FeatureSpec(
            "test",
            "seed",
            pooled_dim=embed,
            image_shape=(count, width),
            image_prefix=self.images.prefix,
            image_grid=grid,
        )

    def pool_images(self, tokens):
        return self.images.pool(tokens)


def pooled(pool, tokens, boxes):
    """The vectors of boxes of one image."""
    return pool(tokens[None], [Cells.of(boxes, pool.grid)])[0]


def chosen(box, grid):
    """The cells of a box by the definition, one at a time."""
    rows, columns = grid
    x0, y0, x1, y1 = box
    centres = [((c + 0.5) / columns, (r + 0.5) / rows) for r in range(rows) for c in range(columns)]
    inside = [i for i, (x, y) in enumerate(centres) if x0 <= x <= x1 and y0 <= y <= y1]
    return inside or [min(range(len(centres)), key=lambda i: math.dist(centres[i], ((x0 + x1) / 2, (y0 + y1) / 2)))]


def clip_vit(tower, tokens, cells):
    """The mean of the region's normed states, projected; float64."""
    mean = sum(tokens[1 + cell].double() for cell in cells) / len(cells)
    return mean @ tower.images.visual.proj.double()


def average(tower, tokens, cells):
    """The mean of the region's states, then what the trunk does behind its average, then open_clip's head."""
    visual, prefix = tower.images.visual, tower.images.prefix
    mean = sum(tokens[prefix + cell].double() for cell in cells) / len(cells)
    return visual.head.double()(visual.trunk.fc_norm.double()(mean))


def attention(tower, tokens, cells):
    """timm's latent attention pool, head by head, over the region's tokens; float64."""
    visual = tower.images.visual
    pool = visual.trunk.attn_pool.double()
    states = [tokens[tower.images.prefix + cell].double() for cell in cells]
    query = pool.q(pool.latent[0])[0]
    keys, values = zip(*(pool.kv(state).chunk(2) for state in states), strict=True)
    width = len(query) // pool.num_heads
    heads = []
    for head in range(pool.num_heads):
        part = slice(head * width, (head + 1) * width)
        logits = torch.stack([query[part] @ key[part] for key in keys]) / math.sqrt(width)
        weights = logits.softmax(0)
        heads.append(sum(weight * value[part] for weight, value in zip(weights, values, strict=True)))
    out = pool.proj(torch.cat(heads))
    out = out + pool.mlp(pool.norm(out))
    return visual.head.double()(visual.trunk.fc_norm.double()(out))


def resnet(tower, tokens, cells):
    """CLIP's attention pool over a list of cells, in float64; the mean stands first and asks."""
    pool = tower.images.visual.attnpool.double()
    own = torch.stack([tokens[cell].double() for cell in cells])
    position = pool.positional_embedding
    states = torch.cat([own.mean(0, keepdim=True) + position[:1], own + position[[1 + cell for cell in cells]]])
    query, keys, values = pool.q_proj(states[0]), pool.k_proj(states), pool.v_proj(states)
    width = len(query) // pool.num_heads
    heads = []
    for head in range(pool.num_heads):
        part = slice(head * width, (head + 1) * width)
        heads.append((keys[:, part] @ query[part] / math.sqrt(width)).softmax(0) @ values[:, part])
    return pool.c_proj(torch.cat(heads))


# vision configuration, rule, whether the pooling reads the prefix, slow reference
KINDS = {
    "clip-vit": (VIT, "class", True, clip_vit),
    "map": (MAP, "attention", False, attention),
    "siglip with a class token": (SIGLIP, "attention", True, None),
    "average": (AVERAGE, "average", False, average),
    "clipa": (CLIPA, "average", False, None),
    "coca": (COCA, "attention", True, None),
    "convnext": (CONVNEXT, "average", False, None),
    "resnet": (RESNET, "attention", False, resnet),
}


@pytest.fixture(scope="module")
def towers():
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = Tower(KINDS[kind][0])
        return made[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_the_rule_of_each_kind_of_tower_is_found_out(towers, kind):
    tower = towers(kind)
    pool = RegionPool.of(tower, tower.spec)
    _, rule, reads_prefix, _ = KINDS[kind]
    assert pool.rule == rule
    assert pool.reads_prefix == reads_prefix


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind][3]])
def test_regions_equal_a_slow_reference(towers, kind):
    tower, reference = towers(kind), KINDS[kind][3]
    pool = RegionPool.of(tower, tower.spec)
    tokens = tower.tokens[0]
    found = pooled(pool, tokens, BOXES)
    slow = Tower(KINDS[kind][0])  # of its own: the references turn it into float64
    expected = torch.stack([reference(slow, tokens, chosen(box, pool.grid)) for box in BOXES])
    assert found.dtype == torch.float32
    assert found.shape == (len(BOXES), 48)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    assert float((found[0] - found[1]).abs().max()) > 1e-3 * float(expected.abs().max())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind][1] != "class" and not KINDS[kind][2]])
def test_a_box_of_the_whole_image_is_the_towers_own_vector(towers, kind):
    tower = towers(kind)
    pool = RegionPool.of(tower, tower.spec)
    for tokens, own in zip(tower.tokens, tower.pool_images(tower.tokens), strict=True):
        found = pooled(pool, tokens, [(0.0, 0.0, 1.0, 1.0)])[0]
        torch.testing.assert_close(found, own, rtol=0, atol=1e-5 * float(own.abs().max()))


def test_a_region_hears_nothing_of_tokens_outside_it(towers):
    for kind in KINDS:
        tower = towers(kind)
        pool = RegionPool.of(tower, tower.spec)
        spoilt = tower.tokens[0].clone()
        spoilt[: pool.prefix] += 5.0
        outside = torch.from_numpy(~cells_in(BOXES[0], pool.grid))
        spoilt[pool.prefix :][outside] = tower.tokens[1, pool.prefix :][outside] * 2
        before, after = pooled(pool, tower.tokens[0], BOXES[:2]), pooled(pool, spoilt, BOXES[:2])
        scale = float(before.abs().max())
        torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-5 * scale)
        assert float((after[1] - before[1]).abs().max()) > 1e-3 * scale


def test_equal_regions_are_pooled_once_and_a_grid_comes_in_its_order(towers):
    tower = towers("clip-vit")
    pool = RegionPool.of(tower, tower.spec)
    both = pool(tower.tokens, [Cells.of(windows(1), pool.grid), Cells.of(BOXES, pool.grid)])
    alone = torch.cat([pooled(pool, tower.tokens[0], [box]) for box in windows(1)])
    torch.testing.assert_close(both[0], alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(both[1], pooled(pool, tower.tokens[1], BOXES), rtol=1e-5, atol=1e-6)
    differing = len({tuple(chosen(box, pool.grid)) for box in windows(1)})
    assert len(Cells.of(windows(1), pool.grid).masks) == differing < 100


@pytest.mark.parametrize("kind", ["map", "resnet", "average"])
def test_images_together_are_images_alone(towers, kind, monkeypatch):
    tower = towers(kind)
    pool = RegionPool.of(tower, tower.spec)
    cells = [Cells.of(BOXES, pool.grid), Cells.of(windows(2), pool.grid)]
    alone = [pool(tokens[None], [own])[0] for tokens, own in zip(tower.tokens, cells, strict=True)]
    for at_once in (roi.AT_ONCE, 1):  # one region at a time, too
        monkeypatch.setattr(roi, "AT_ONCE", at_once)
        for found, expected in zip(pool(tower.tokens, cells), alone, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_cells_of_boxes():
    assert cells_in((0, 0, 0.5, 0.5), (4, 4)).nonzero()[0].tolist() == [0, 1, 4, 5]
    assert cells_in((0.125, 0.125, 0.125001, 0.126), (4, 4)).nonzero()[0].tolist() == [0], "the edge counts"
    assert cells_in((0.3, 0.3, 0.32, 0.32), (4, 4)).nonzero()[0].tolist() == [5], "the nearest of none"
    for box in BOXES:
        for grid in ((4, 4), (7, 7), (3, 5)):
            assert cells_in(box, grid).nonzero()[0].tolist() == chosen(box, grid)
    for wrong in ((0.5, 0, 0.5, 1), (0, 0, math.nan, 1), (1.2, 0, 1.4, 1)):
        with pytest.raises(ValueError, match="is empty or outside"):
            cells_in(wrong, (4, 4))


def test_boxes_are_carried_through_the_centre_crop():
    shortest = {"size": "224x224", "resize": "shortest"}
    assert seen((640, 480), shortest) == pytest.approx((0.125, 0, 0.875, 1))
    assert seen((480, 640), shortest) == pytest.approx((0, 0.125, 1, 0.875))
    assert seen((640, 480), {"size": "224x224", "resize": "squash"}) == (0, 0, 1, 1)
    assert seen((640, 480), {"size": "224x224", "resize": "longest"}) == pytest.approx((0, -1 / 6, 1, 7 / 6))
    with pytest.raises(InputError, match="where the patches of resizing 'spiral' lie"):
        seen((640, 480), {"size": "224x224", "resize": "spiral"})
    view = seen((640, 480), shortest)
    # The left half of the crop starts at 0.125; what the crop cut away takes the nearest column.
    assert cells_in((0, 0, 0.5, 1), (2, 2), view).nonzero()[0].tolist() == [0, 2]
    assert cells_in((0.9, 0, 1, 0.5), (2, 2), view).nonzero()[0].tolist() == [1]


def test_where_a_patch_lies_is_where_the_picture_shows_it(photograph):
    """The cell of a bright spot in a preprocessed picture is the cell of its box, at every kind of resizing."""
    from PIL import Image

    from compal.pipeline.preprocess import describe, transform

    for mode in ("shortest", "longest", "squash"):
        described = describe((64, 64), mode, "bilinear", (0.5,) * 3, (0.5,) * 3)
        for size, box in (((160, 96), (0.4, 0.55, 0.5, 0.7)), ((96, 160), (0.2, 0.45, 0.35, 0.55))):
            pixels = np.zeros((size[1], size[0], 3), np.uint8)
            x0, y0, x1, y1 = (round(e * s) for e, s in zip(box, size * 2, strict=True))
            pixels[y0:y1, x0:x1] = 255
            picture = torch.as_tensor(np.asarray(transform(described)(Image.fromarray(pixels)), np.float32)).sum(0)
            brightest = F.avg_pool2d(picture[None, None], 16)[0, 0]
            cells = cells_in(box, (4, 4), seen(size, described)).reshape(4, 4)
            assert brightest.flatten().argmax().item() in cells.ravel().nonzero()[0].tolist()


# --- through stores ----------------------------------------------------------------------------------


def token_spec(tower):
    return replace(tower.spec, preprocess={"size": "64x64", "resize": "shortest"}, dtype="float32", text_dim=32)


@pytest.fixture
def cached(towers, tmp_path):
    """A store of two images' tokens, and their tower."""
    tower = towers("clip-vit")
    spec = token_spec(tower)
    store = Store.create(tmp_path / "stores" / spec.folder, spec)
    rows = ImageRows(["a", "b"], ["a.jpg", "b.jpg"], [(100, 100), (200, 100)], tower.tokens.numpy(),
                     tower.pool_images(tower.tokens).numpy())  # fmt: skip
    store.write_images("i-0", rows, [Quarantined("c", "image", "c.jpg", "empty file")])
    store.commit(["i-0"])
    return store, tower


def stored(vectors, names):
    assert len(vectors) == len(names)
    return vectors.numpy()


def items(*boxes):
    return [Item(key, "image", f"{key}.jpg", None, boxes=own) for key, own in zip("abcd", boxes, strict=False)]


def test_rows_of_a_store(cached):
    store, tower = cached
    half = (0.5, 0.0, 1.0, 1.0)
    found = Tokens(store, tower).rows(["b", "a"], [[half], [half, BOXES[0]]])
    assert [rows.shape for rows in found] == [(1, 48), (2, 48)]
    pool = RegionPool.of(tower, store.spec)
    # b is twice as wide as high: its right half is the right half of the crop, from 0.5 to 0.75 of it.
    torch.testing.assert_close(found[0], pooled(pool, tower.tokens[1], [half]))
    torch.testing.assert_close(found[1], pooled(pool, tower.tokens[0], [half, BOXES[0]]))


def test_a_part_of_pooled_boxes(cached):
    store, tower = cached
    spec = at_level(store.spec, "regions:roi", "float32")
    rows, refused = encode_rois(items((BOXES[0], BOXES[1]), (), ()), Tokens(store, tower), spec, stored)
    assert (rows.keys, rows.sizes) == (["a", "b"], [(100, 100), (200, 100)])
    assert [len(own) for own in rows.tokens] == [2, 1]
    np.testing.assert_array_equal(rows.tokens[1][0], rows.pooled[1], "without boxes the whole image is the region")
    np.testing.assert_array_equal(rows.pooled, store.pooled("image", ["a", "b"]))
    assert refused == [Quarantined("c", "image", "c.jpg", "empty file")]
    rows, refused = encode_rois(items(((0.5, 0.5, 0.5, 0.9),)), Tokens(store, tower), spec, stored)
    assert (rows.keys, rows.tokens) == ([], [])
    assert "is empty or outside" in refused[0].reason


def test_a_part_of_a_pooled_grid(cached):
    store, tower = cached
    spec = at_level(store.spec, "regions:roi-grid-70", "float32")
    rows, _ = encode_rois(items((BOXES[0],), ()), Tokens(store, tower), spec, stored)
    assert [own.shape for own in rows.tokens] == [(70, 48)] * 2
    np.testing.assert_array_equal(rows.tokens[1][-1], rows.pooled[1])
    expected = Tokens(store, tower).rows(["b"], [windows(2)[:-1]])[0]
    np.testing.assert_array_equal(rows.tokens[1][:-1], expected.numpy())


def test_images_without_tokens_are_named_with_the_command(cached):
    store, tower = cached
    spec = at_level(store.spec, "regions:roi", "float32")
    with pytest.raises(MissingFeatures, match=r"lacks the tokens of 1 of 4 images \(first: d.jpg\).*--level tokens"):
        encode_rois(items((), (), (), ()), Tokens(store, tower), spec, stored)


def test_the_token_store_is_that_of_the_same_features(cached, tmp_path):
    store, _ = cached
    spec = at_level(store.spec, "regions:roi", "float32")
    folder = tmp_path / "stores" / spec.folder
    assert token_store(spec, folder).path == store.path
    segmented = replace(spec, extra={**spec.extra, "segments": "rules 1"})
    assert token_store(segmented, folder).path == store.path
    for other in (
        replace(spec, weights="other"),
        replace(spec, preprocess={"size": "64x64", "resize": "squash"}),
        replace(spec, dtype="float16"),
        replace(spec, precision="bfloat16"),
    ):
        with pytest.raises(MissingFeatures, match=r"compal extract --backbone test --level tokens"):
            token_store(other, folder)
    with pytest.raises(MissingFeatures, match="--precision bfloat16"):
        token_store(replace(spec, precision="bfloat16"), folder)


def test_bfloat16_tokens_are_read_as_such(towers, tmp_path):
    tower = towers("clip-vit")
    spec = replace(token_spec(tower), dtype="bfloat16")
    store = Store.create(tmp_path / "store", spec)
    bits = tower.tokens.bfloat16().view(torch.uint16).numpy()
    whole = tower.pool_images(tower.tokens).bfloat16().view(torch.uint16).numpy()
    store.write_images("i-0", ImageRows(["a", "b"], ["a", "b"], [(64, 64)] * 2, bits, whole))
    store.commit(["i-0"])
    found = Tokens(store, tower).rows(["a"], [[BOXES[0]]])[0]
    pool = RegionPool.of(tower, spec)
    torch.testing.assert_close(found, pooled(pool, tower.tokens[0].bfloat16(), [BOXES[0]]))


def test_tokens_without_a_grid_are_refused(towers):
    tower = towers("clip-vit")
    with pytest.raises(InputError, match=r"no grid of patches.*--level regions"):
        RegionPool.of(tower, replace(tower.spec, image_grid=(0, 0)))


def test_an_encoder_of_another_level_pools_last_states():
    """Levels are extracted together: the encoder at hand may be one that pools the states of a block."""
    spec = resolve("shapes-vit", "block:-1")
    encoder, last = load_encoder(spec), load_encoder(resolve("shapes-vit"))
    tokens = torch.randn(1, *last.spec.image_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(roi._pooled(encoder, tokens), last.pool_images(tokens))
