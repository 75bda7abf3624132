"""Dense projection (MaskCLIP) against slow references, in float64 and written from the towers' own definitions."""

import dataclasses
import math
from dataclasses import replace

import families
import hub_models
import numpy as np
import open_clip
import pytest
import torch

from compal.errors import InputError, UsageError
from compal.eval.benchmarks import shapes
from compal.eval.sources import Sources
from compal.pipeline import dense
from compal.pipeline.backbones import hf
from compal.pipeline.dense import DensePool, reads, reads_or_why
from compal.pipeline.dual_encoder import DualEncoder
from compal.pipeline.encoder import load_encoder, resolve
from compal.pipeline.extract import extract_levels
from compal.pipeline.job import Job
from compal.pipeline.plan import ExtractConfig
from compal.pipeline.regions import LEVELS, is_dense, region_count, states_of, windows
from compal.pipeline.roi import cells_in, state_store
from compal.stores.store import Store

DENSE = [level for level in LEVELS if is_dense(level)]
# As they were before there were dense levels: what is cached stays found.
KNOWN = {
    "pooled": ("8de572f94e01d4ee", "608aafc5beedc65a"),
    "tokens": ("ebb3ff90773d53a5", "627b7f5a84f8a010"),
    "block:-1": ("412e53c28adbfcc1", "6f8d2298cdfcd998"),
    "pixels": ("7c559a83764b7ad3", "e65708923efc11d6"),
    "regions": ("70ce6fb49c604b80", "996f28cd60c83998"),
    "regions:grid": ("2b0d5b090b351c4b", "636a8239fdb8481e"),
    "regions:grid-70": ("efee4879984fcabc", "6def659228e2032d"),
    "regions:grid-34": ("ef51999a87fcd7b0", "e9eb43f414ab6757"),
    "regions:grid-18": ("87be13d90669e76e", "0bde13c59176b69a"),
    "regions:roi": ("95478fcaa3f8e016", "efe4f8fc2bed4803"),
    "regions:roi-grid": ("a97555ccc694f2ea", "7f009ea898b18de3"),
    "regions:roi-grid-70": ("3d57fa1cf2d5efd2", "47d3429b97747f88"),
    "regions:roi-grid-34": ("0489a13ba0f357ba", "7c858e41ac1bd7ba"),
    "regions:roi-grid-18": ("20a736808e9377aa", "2ab960ec9147762b"),
}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """The encoder of a small model of a family, by name."""
    families.register(tmp_path_factory.mktemp("families"))
    made = {}

    def make(name):
        if name not in made:
            made[name] = families.build(name)
        return made[name]

    return make


def entering(block, run):
    """What enters a block in a pass of the whole model, (B, P, D) float64."""
    seen = []
    handle = block.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        run()
    handle.remove()
    return seen[0].double()


def linear(states, weight, bias=None):
    """A linear map, one output at a time."""
    found = torch.stack([(states * row).sum(-1) for row in weight.double()], -1)
    return found if bias is None else found + bias.double()


def normed(states, norm):
    """Layer norm from its formula."""
    mean = states.mean(-1, keepdim=True)
    spread = ((states - mean) ** 2).mean(-1, keepdim=True)
    return (states - mean) / (spread + norm.eps).sqrt() * norm.weight.double() + norm.bias.double()


def maskclip(visual, states):
    """MaskCLIP of open_clip's ViT, the table's words: `ln_1(x)`, the V slice of `attn.in_proj`, `attn.out_proj`,
    `ln_post`, `proj`; no residual, no MLP. States (B, P, D) with the CLS first → (B, n, E)."""
    block, width = visual.transformer.resblocks[-1], states.shape[-1]
    weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
    values = linear(normed(states[:, 1:], block.ln_1), weight[2 * width : 3 * width], bias[2 * width : 3 * width])
    out = linear(values, block.attn.out_proj.weight, block.attn.out_proj.bias)
    return linear(normed(out, visual.ln_post), visual.proj.T)


def eva(visual, states):
    block = visual.trunk.blocks[-1]
    attention = block.attn
    values = linear(normed(states[:, 1:], block.norm1), attention.v_proj.weight, attention.v_proj.bias)
    out = linear(normed(values, attention.norm), attention.proj.weight, attention.proj.bias)
    return linear(normed(out, visual.trunk.norm), visual.trunk.head.weight, visual.trunk.head.bias)


def timm_clip(visual, states):
    block, width = visual.trunk.blocks[-1], states.shape[-1]
    weight, bias = block.attn.qkv.weight[2 * width :], block.attn.qkv.bias[2 * width :]
    out = linear(linear(normed(states[:, 1:], block.norm1), weight, bias), block.attn.proj.weight, block.attn.proj.bias)
    return linear(normed(out, visual.trunk.norm), visual.trunk.head.weight, visual.trunk.head.bias)


def mapped(visual, states, prefix=0):
    """A patch as the only key of timm's attention pooling: its value, and the MLP behind it."""
    pool, width = visual.trunk.attn_pool, states.shape[-1]
    values = linear(states[:, prefix:], pool.kv.weight[width:], pool.kv.bias[width:])
    out = linear(values, pool.proj.weight, pool.proj.bias)
    hidden = linear(normed(out, pool.norm), pool.mlp.fc1.weight, pool.mlp.fc1.bias)
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return out + linear(hidden, pool.mlp.fc2.weight, pool.mlp.fc2.bias)


def pe_core(visual, states):
    head = visual.trunk.head
    return linear(mapped(visual, states, 1), head.weight, head.bias)


def resnet(visual, states):
    pool = visual.attnpool
    return linear(linear(states, pool.v_proj.weight, pool.v_proj.bias), pool.c_proj.weight, pool.c_proj.bias)


def clipa(visual, states):
    return linear(normed(states[:, 1:], visual.ln_post), visual.proj.T)


REFERENCES = {
    "CLIP ViT": ("block:-1", maskclip), "MetaCLIP 2": ("block:-1", maskclip), "EVA02": ("block:-1", eva),
    "MobileCLIP-B": ("block:-1", timm_clip), "MobileCLIP2-L": ("block:-1", timm_clip), "SigLIP": ("tokens", mapped),
    "PE-Core": ("tokens", pe_core), "CLIP ResNet": ("tokens", resnet), "CLIPA": ("tokens", clipa),
}  # fmt: skip


def close(found, expected):
    expected = expected.detach()
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5 * scale)
    assert float((expected - expected.mean(1, keepdim=True)).abs().max()) > 1e-2 * scale, "patches differ"


@pytest.mark.parametrize("name", REFERENCES)
def test_each_family_is_its_slow_reference(family, name):
    encoder, (level, reference) = family(name), REFERENCES[name]
    assert reads(encoder.images) == level
    # In float32, so that states are not rounded on their way.
    encoder = DualEncoder(replace(encoder.spec, dtype="float32"), encoder.model, None, encoder.transform)
    pixels = families.pictures(encoder)
    found = encoder.images_at(pixels, ["regions:dense", level])
    visual, scaled = encoder.model.visual, encoder.scaled(pixels)
    if level == "block:-1":
        states = entering(encoder.images.modules[-1], lambda: encoder.model.encode_image(scaled))
    else:
        states = found[level].tokens.double()
    close(found["regions:dense"].tokens, reference(visual, states))


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "shapes-vit"])
def test_clip_is_maskclip(name):
    backbone = name if name == "shapes-vit" else f"open_clip:{name}"
    encoder = load_encoder(resolve(backbone, "regions:dense", dtype="float32"))
    visual = encoder.model.visual
    if name == "shapes-vit":
        own = visual
    else:  # a second model of the same seed, made by open_clip itself
        torch.manual_seed(0)
        own = open_clip.create_model(name).eval().visual
    pixels = families.pictures(encoder, 2)
    states = entering(own.transformer.resblocks[-1], lambda: own(encoder.scaled(pixels)))
    found = encoder.encode_images(pixels)
    close(found.tokens, maskclip(own, states))
    torch.testing.assert_close(found.pooled, encoder.model.encode_image(encoder.scaled(pixels)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_the_hubs_towers_too(tmp_path, name):
    model = hub_models.save(name, tmp_path / name)
    encoder = load_encoder(resolve(f"hf:{tmp_path / name}", "regions:dense", dtype="float32"))
    pixels = families.pictures(encoder)
    tower = model.vision_model
    with torch.no_grad():
        run = tower(encoder.scaled(pixels), output_hidden_states=True)
    if name == "clip":
        layer = tower.encoder.layers[-1]
        states, attention = run.hidden_states[-2].double()[:, 1:], layer.self_attn
        values = linear(normed(states, layer.layer_norm1), attention.v_proj.weight, attention.v_proj.bias)
        out = linear(values, attention.out_proj.weight, attention.out_proj.bias)
        expected = linear(normed(out, tower.post_layernorm), model.visual_projection.weight)
    else:
        states, head = run.last_hidden_state.double(), tower.head
        width = states.shape[-1]
        values = linear(states, head.attention.in_proj_weight[2 * width :], head.attention.in_proj_bias[2 * width :])
        out = linear(values, head.attention.out_proj.weight, head.attention.out_proj.bias)
        hidden = linear(normed(out, head.layernorm), head.mlp.fc1.weight, head.mlp.fc1.bias)
        hidden = torch.nn.functional.gelu(hidden, approximate="tanh")
        expected = out + linear(hidden, head.mlp.fc2.weight, head.mlp.fc2.bias)
    close(encoder.encode_images(pixels).tokens, expected)
    assert hf.spec(str(tmp_path / name), "regions:dense").layer == ("-1" if name == "clip" else "last")


@pytest.mark.parametrize("name", [name for name in families.FAMILIES if "texts" not in name and name != "CoCa"])
def test_patches_are_alone_and_images_too(family, name):
    """Of every family: a batch changes nothing, a state is heard at its own patch and nowhere else."""
    encoder = family(name)
    level = reads(encoder.images)
    states = encoder.images_at(families.pictures(encoder), [level])[level].tokens
    prefix, grid = encoder.images.prefix, encoder.spec.image_grid
    spec = replace(encoder.spec, image_shape=tuple(states.shape[1:]), image_prefix=prefix, image_grid=grid)
    pool = DensePool.of(encoder, spec)
    maps = pool.maps(states)
    scale = float(maps.abs().max())
    torch.testing.assert_close(pool.maps(states[1:2])[0], maps[1], rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(pool.maps(states), maps, rtol=0, atol=0)
    changed = states.clone()
    changed[:, :prefix] += 1
    changed[:, prefix + 3] = states[:, prefix] * 2
    apart = (pool.maps(changed) - maps).abs().amax((0, 2))
    assert apart[3] > 1e-3 * scale
    assert float(torch.cat([apart[:3], apart[4:]]).max()) <= 1e-5 * scale
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(pool.maps(states), maps, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["Block", "EvaBlock", "EvaBlockPostNorm"])
def test_what_a_block_adds_to_a_patch_alone(kind):
    """With scaled layers, and with norms behind the attention (EVA02-E)."""
    from timm.models import eva as timm_eva
    from timm.models import vision_transformer

    torch.manual_seed(0)
    scaled = {} if kind == "EvaBlockPostNorm" else {"init_values": 0.3}
    block = getattr(vision_transformer if kind == "Block" else timm_eva, kind)(48, 2, qkv_bias=True, **scaled).eval()
    for parameter in block.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    block.requires_grad_(False)
    patches = torch.randn(2, 5, 48)
    found = dense._values(block, patches)
    for parameter in block.mlp.fc2.parameters():
        parameter.zero_()
    if kind == "EvaBlockPostNorm":
        block.norm2.bias.zero_()
    for own, row in zip(found.flatten(0, 1), patches.flatten(0, 1), strict=True):
        torch.testing.assert_close(own, block(row[None, None])[0, 0] - row, rtol=1e-4, atol=1e-5)


def test_where_the_mean_is_the_pooling_dense_patches_average_to_the_image(family):
    encoder = family("MobileCLIP-S")
    found = encoder.images_at(families.pictures(encoder), ["regions:dense"])["regions:dense"]
    assert families.apart(found.tokens.mean(1), found.pooled) < 1e-3  # states are rounded to float16


def test_families_without_one_say_why(family):
    with pytest.raises(InputError, match=r"no level 'regions:dense': its attention pooling answers a captioner"):
        resolve(f"open_clip:{families.slug('CoCa')}", "regions:dense")
    with pytest.raises(InputError, match=r"random:49x64 has no level 'regions:dense-roi': its tokens are drawn"):
        resolve("random", "regions:dense-roi")
    with pytest.raises(InputError, match="answers a captioner"):
        reads(family("CoCa").images)

    class Odd:
        visual = type("V", (), {"trunk": type("T", (), {"global_pool": "token"})(), "head": None})()
        blocks = 0

    assert reads_or_why(Odd()) == "it pools a CLS and has no last block to enter"


def test_a_tower_that_pools_otherwise_than_it_seems_is_refused(family, monkeypatch):
    encoder = family("CLIP ViT")
    monkeypatch.setattr("compal.pipeline.dense.reads", lambda _: "tokens")
    with pytest.raises(InputError, match="pools by 'class', which its dense projection does not know"):
        DensePool.of(encoder, encoder.spec)


def test_fingerprints_of_other_levels_stay_and_dense_ones_are_their_own():
    backbones = ("shapes-vit", "open_clip:ViT-B-32-quickgelu")
    assert {*KNOWN, *DENSE} >= set(LEVELS)
    for level, known in KNOWN.items():
        assert tuple(resolve(name, level).fingerprint[:16] for name in backbones) == known, level
    prints = [resolve("shapes-vit", level).fingerprint[:16] for level in DENSE]
    assert len({*prints, *(one for one, _ in KNOWN.values())}) == len(DENSE) + len(KNOWN)
    spec = resolve("shapes-vit", "regions:dense")
    assert (spec.image_grid, spec.image_shape, spec.layer, states_of(spec)) == ((8, 8), (0, 64), "-1", "block:-1")
    assert "MaskCLIP" in spec.extra["regions"]


# --- through stores ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    return list(shapes.items(Sources(split="in_domain", limit=1)))


def run(items, root, *levels, backbone="shapes-vit", encoder=None, **config):
    specs = tuple(resolve(backbone, level) for level in levels)
    folders = tuple(root / spec.folder for spec in specs)
    extract_levels(items, Job(specs, folders, ExtractConfig(batch_size=7, workers=1, **config)), encoder=encoder)
    return [Store.open(folder) for folder in folders]


def keys_of(items):
    return [item.key for item in {item.key: item for item in items if item.kind == "image"}.values()]


def test_one_pass_and_cached_states_give_the_same(world, tmp_path, monkeypatch):
    names = ("regions:dense", "regions:dense-roi", "regions:dense-grid-18")
    passed = run(world, tmp_path / "passed", "tokens", *names)[1:]
    run(world, tmp_path / "cached", "block:-1")

    def never(*_):
        raise AssertionError("the image tower ran")

    with monkeypatch.context() as patched:
        patched.setattr(DualEncoder, "images_at", never)
        patched.setattr(DualEncoder, "check", lambda _: None)
        cached = run(world, tmp_path / "cached", *names)
    keys = keys_of(world)
    for one, two in zip(passed, cached, strict=True):
        (left, mask), (right, other) = one.image_regions(keys), two.image_regions(keys)
        np.testing.assert_array_equal(mask, other)
        np.testing.assert_allclose(left.astype(float), right.astype(float), rtol=2e-3, atol=2e-3)
        assert (left == right).mean() > 0.99, "but for the last bit of float16"
        np.testing.assert_allclose(
            one.pooled("image", keys).astype(float), two.pooled("image", keys).astype(float), atol=2e-3
        )
    assert passed[0].image_regions(keys)[1].sum(1).tolist() == [64] * len(keys)


def test_boxes_and_windows_are_means_of_their_patches(world, tmp_path):
    each, boxes, grid = run(world, tmp_path, "regions:dense", "regions:dense-roi", "regions:dense-grid-18")
    images = {item.key: item for item in world if item.kind == "image"}
    for key, item in images.items():
        patches = each.image_regions([key])[0][0].astype(np.float64)
        for store, places in ((boxes, item.boxes), (grid, windows(4)[:-1])):
            found = store.image_regions([key])[0][0].astype(np.float64)
            expected = np.stack([patches[cells_in(box, (8, 8))].mean(0) for box in places])
            np.testing.assert_allclose(found[: len(places)], expected, atol=4e-3 * np.abs(expected).max())
        whole = grid.image_regions([key])[0][0][-1]
        np.testing.assert_array_equal(whole, grid.pooled("image", [key])[0], "the last window is the whole image")
        assert len(found) == region_count(item, "regions:dense-grid-18") == 18
    assert region_count(next(iter(images.values())), "regions:dense", 64) == 64


def test_levels_of_one_command_share_the_pass_and_take_their_states_from_it(world, tmp_path, monkeypatch):
    counted = []
    known = DualEncoder.images_at

    def images_at(self, pixels, levels):
        counted.append((len(pixels), tuple(levels)))
        return known(self, pixels, levels)

    monkeypatch.setattr(DualEncoder, "images_at", images_at)
    encoder = load_encoder(resolve("shapes-vit"))
    counted.clear()
    run(world, tmp_path / "a", "tokens", "regions:dense", encoder=encoder)
    count = len(keys_of(world))
    assert sum(size for size, _ in counted) == count
    assert {levels for _, levels in counted} == {("tokens", "regions:dense")}
    counted.clear()
    run(world, tmp_path / "b", "regions:dense", "block:-1", encoder=encoder)
    assert {levels for _, levels in counted} == {("block:-1",)}
    assert sum(size for size, _ in counted) == count


def test_images_that_the_cache_lacks_go_through_the_tower(world, tmp_path):
    keys = keys_of(world)
    some = [item for item in world if item.key in keys[:4]]
    run(some, tmp_path, "block:-1")
    (store,) = run(world, tmp_path, "regions:dense")
    (alone,) = run(world, tmp_path / "alone", "regions:dense")
    left, right = store.image_regions(keys)[0], alone.image_regions(keys)[0]
    np.testing.assert_allclose(left.astype(float), right.astype(float), rtol=2e-3, atol=2e-3)


def test_no_boxes_are_the_whole_image_and_bad_ones_are_refused(world, tmp_path):
    images = [item for item in world if item.kind == "image"][:3]
    images = [
        dataclasses.replace(images[0], boxes=()),
        dataclasses.replace(images[1], boxes=((0.5, 0.5, 0.5, 0.9),)),
        images[2],
    ]
    (passed,) = run(images, tmp_path / "passed", "regions:dense-roi")
    run(images, tmp_path / "cached", "block:-1")
    (cached,) = run(images, tmp_path / "cached", "regions:dense-roi")
    for store in (passed, cached):
        (refused,) = store.quarantined()
        assert (refused.key, "is empty or outside" in refused.reason) == (images[1].key, True)
        rows, mask = store.image_regions([images[0].key])
        assert mask.sum() == 1
        np.testing.assert_array_equal(rows[0, 0], store.pooled("image", [images[0].key])[0])
        assert store.image_regions([images[2].key])[1].sum() == len(images[2].boxes)


def test_states_are_found_beside_the_store_and_only_those_of_the_same_features(world, tmp_path):
    (blocks, tokens) = run(world[:2], tmp_path, "block:-1", "tokens")
    spec = resolve("shapes-vit", "regions:dense")
    assert state_store(spec, tmp_path / spec.folder).path == blocks.path
    roi_spec = resolve("shapes-vit", "regions:roi")
    assert state_store(roi_spec, tmp_path / roi_spec.folder).path == tokens.path
    for other in (replace(spec, weights="other"), replace(spec, dtype="float32"), replace(spec, precision="bfloat16")):
        assert state_store(other, tmp_path / other.folder) is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_other_dtypes(world, tmp_path, dtype):
    spec = resolve("shapes-vit", "regions:dense-grid-18", dtype=dtype)
    extract_levels(world[:4], Job((spec,), (tmp_path / spec.folder,), ExtractConfig(batch_size=4)))
    store = Store.open(tmp_path / spec.folder)
    assert store.image_regions(keys_of(world[:4]))[1].sum(1).tolist() == [18] * len(keys_of(world[:4]))


def test_behind_a_remote_dense_levels_are_passes_and_pooled_ones_are_refused(tmp_path):
    from compal.workspace import Remote

    config = ExtractConfig(engine="ray", through=Remote("r", str(tmp_path)))
    Job((resolve("shapes-vit", "regions:dense"),), (tmp_path,), config)
    with pytest.raises(UsageError, match="regions:roi is pooled from the store of tokens"):
        Job((resolve("shapes-vit", "regions:roi"),), (tmp_path,), config)
