"""The pooled embedding recomputed from cached states is the model's own, for every kind of tower open_clip has.

Small models of each family (tests/support/families.py), random weights, float32. The tolerance is relative to the
largest component.
"""

from pathlib import Path

import families
import pytest
import torch
from families import FAMILIES, apart, pictures, token_ids

from compal.errors import InputError
from compal.pipeline import towers
from compal.pipeline.backbones import open_clip as backbone
from compal.pipeline.dual_encoder import DualEncoder
from compal.pipeline.tokenizers import frame

EXACT = 1e-5
PAGE = Path(__file__).parents[2] / "docs" / "guides" / "backbones.md"
# Families whose towers are one of the others': their texts alone differ.
TEXT_ONLY = {"RoBERTa texts", "XLM-R texts", "mT5 texts", "NLLB texts"}


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory):
    families.register(tmp_path_factory.mktemp("configurations"))


@pytest.fixture(scope="module")
def encoders():
    return {}


@pytest.fixture
def encoder(request, encoders):
    """The encoder of a small model, built once for the module."""
    if request.param not in encoders:
        encoders[request.param] = families.build(request.param)
    return encoders[request.param]


every_family = pytest.mark.parametrize("encoder", FAMILIES, indirect=True)


def of(*names):
    return pytest.mark.parametrize("encoder", names, indirect=True)


def family(request):
    return request.node.callspec.params["encoder"]


def shown(encoder, level):
    return encoder.images_at(pictures(encoder), [level])[level]


def read(encoder, level, ids, lengths):
    return encoder.texts_at(frame(ids, lengths), [level])[level]


@every_family
@torch.no_grad()
def test_pooled_from_every_level_is_the_models_own(encoder, request):
    images, (ids, lengths) = pictures(encoder), token_ids(encoder)
    own_image = encoder.model.encode_image(encoder.scaled(images), normalize=False)
    own_text = encoder.model.encode_text(ids, normalize=False)
    for own in (own_image, own_text):
        assert apart(own[1:2], own[0:1]) > 10 * EXACT, "the test would not notice a constant"
    assert apart(shown(encoder, "pooled").pooled, own_image) <= EXACT
    assert apart(read(encoder, "pooled", ids, lengths).pooled, own_text) <= EXACT
    found = families.levels(family(request))
    assert "tokens" in found
    assert "pixels" in found
    for level in found:
        assert max(families.errors(encoder, level)) <= EXACT, level


@every_family
def test_features_have_the_shapes_the_spec_says(encoder, request):
    name = family(request)
    for level in families.levels(name):
        spec = backbone.spec(f"{families.slug(name)}/random", level=level)
        again = DualEncoder(spec, encoder.model, None, encoder.transform)
        features, texts = again.encode_images(pictures(encoder)), again.encode_token_ids(*token_ids(encoder))
        assert tuple(features.tokens.shape[1:]) == spec.image_shape
        assert all(rows.shape[1] == spec.text_dim for rows in texts.tokens)
        assert all(len(rows) == len(spans) for rows, spans in zip(texts.tokens, texts.spans, strict=True))
        if level == "pixels":
            assert (features.pooled, texts.pooled, spec.pooled_dim) == (None, None, 0)
            assert features.tokens.dtype == texts.tokens[0].dtype == torch.uint8
        else:
            assert features.pooled.shape[1] == texts.pooled.shape[1] == spec.pooled_dim
            assert (spec.image_shape[0], spec.image_prefix) == (FAMILIES[name].tokens, FAMILIES[name].prefix)
            assert spec.image_grid[0] * spec.image_grid[1] + spec.image_prefix == FAMILIES[name].tokens
        again.check()


@every_family
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(encoder, request):
    images, (ids, lengths) = pictures(encoder), token_ids(encoder)
    for level in families.levels(family(request)):
        together, texts = shown(encoder, level), read(encoder, level, ids, lengths)
        for row in range(3):
            alone = encoder.images_at(images[row : row + 1], [level])[level]
            text = read(encoder, level, ids[row : row + 1], lengths[row : row + 1])
            assert apart(alone.tokens[0].float(), together.tokens[row].float()) <= EXACT
            assert apart(text.tokens[0].float(), texts.tokens[row].float()) <= EXACT
            if level != "pixels":
                assert apart(alone.pooled[0], together.pooled[row]) <= EXACT
                assert apart(text.pooled[0], texts.pooled[row]) <= EXACT


@every_family
@torch.no_grad()
def test_several_levels_of_one_pass_are_those_of_each_alone(encoder, request):
    levels = ["pooled", "regions", *families.levels(family(request))]
    images, (ids, lengths) = pictures(encoder), token_ids(encoder)
    together, texts = encoder.images_at(images, levels), encoder.texts_at(frame(ids, lengths), levels)
    assert set(together) == set(texts) == set(levels)
    for level in levels:
        alone, text = shown(encoder, level), read(encoder, level, ids, lengths)
        for one, other in ((together[level].tokens, alone.tokens), (together[level].pooled, alone.pooled)):
            assert (one is None and other is None) or torch.equal(one, other)
        assert (texts[level].spans, texts[level].pool_index) == (text.spans, text.pool_index)
        for one, other in zip(texts[level].tokens or (), text.tokens or (), strict=True):
            assert torch.equal(one, other)


@of("CLIP ViT", "SigLIP", "EVA02")
def test_several_levels_take_one_pass_and_deep_ones_alone_less(encoder):
    calls = []
    hooks = [block.register_forward_hook(lambda *_: calls.append(1)) for block in encoder.images.modules]
    encoder.images_at(pictures(encoder), ["tokens", "pooled", "block:-1", "block:-2"])
    assert len(calls) == encoder.images.blocks
    encoder.images.enter(encoder.scaled(pictures(encoder)), 2)
    assert len(calls) == 2 * encoder.images.blocks - 2
    for hook in hooks:
        hook.remove()


@every_family
@torch.no_grad()
def test_patches_are_the_models_own_map_row_by_row(encoder, request):
    """Against `forward_intermediates`, whose maps are channels first: of the last states, and of those that enter
    the last block, which left the one before it."""
    visual, pixels = encoder.model.visual, encoder.scaled(pictures(encoder))
    if FAMILIES[family(request)].config["vision_cfg"].get("timm_model_name") == "small_fastvit":
        maps = [visual.trunk.forward_features(pixels)]  # its intermediates end before the last convolution
    elif type(visual).__name__ == "ModifiedResNet":
        maps = visual.forward_intermediates(pixels, indices=1, intermediates_only=True)["image_intermediates"]
    else:
        # CoCa's and CLIPA's last states come before the final norm, which is not the width of CoCa's patches.
        normed = getattr(encoder.images, "normed", True) and encoder.images.blocks > 0
        options = {"intermediates_only": True, "output_fmt": "NCHW"}
        last = visual.forward_intermediates(pixels, indices=1, normalize_intermediates=normed, **options)
        maps = last["image_intermediates"]
        if encoder.images.blocks:
            before = visual.forward_intermediates(pixels, indices=[encoder.images.blocks - 2], **options)
            states = encoder.images.enter(pixels, 1)[:, encoder.images.prefix :]
            assert torch.equal(states, before["image_intermediates"][0].flatten(2).transpose(1, 2))
    states = encoder.images.states(pixels)[:, FAMILIES[family(request)].prefix :]
    # Hierarchical trunks norm their map once more before the head pools it: the place of a patch is held here,
    # its values by the pooled embedding.
    own = maps[-1].flatten(2).transpose(1, 2)
    assert own.shape == states.shape
    if encoder.images.blocks:
        assert torch.equal(states, own)
    else:
        near = torch.nn.functional.normalize(own[0] - own[0].mean(0), dim=1)
        ours = torch.nn.functional.normalize(states[0] - states[0].mean(0), dim=1)
        places = (ours @ near.T).argmax(dim=1)
        assert torch.equal(places, torch.arange(len(places)))


@of("CLIP ViT", "SigLIP", "PE-Core", "ConvNeXt", "Swin", "CLIP ResNet", "MobileCLIP-S")
@torch.no_grad()
def test_a_change_in_one_corner_moves_that_corner_most(encoder):
    size = encoder.images.image_size[0]
    base = torch.zeros(1, 3, size, size)
    changed = base.clone()
    changed[:, :, : size // 4, -size // 4 :] = 1  # top right
    moved = (encoder.encode_images(changed).tokens - encoder.encode_images(base).tokens)[0].norm(dim=1)
    patches = moved[encoder.spec.image_prefix :].unflatten(0, encoder.spec.image_grid)
    rows, columns = encoder.spec.image_grid
    half = (slice(0, (rows + 1) // 2), slice(columns // 2, columns))
    assert patches[half].max() == patches.max()
    assert patches[0, -1] > patches[-1, 0]


VALID = [5, 8, 12]
FULL = [12, 12, 12]


@pytest.mark.parametrize(
    ("encoder", "stored", "pooled", "deep"),
    [
        ("CLIP ViT", VALID, [4, 7, 11], VALID),  # the end token
        ("MetaCLIP 2", VALID, [4, 7, 11], VALID),
        ("MobileCLIP-S", VALID, [4, 7, 11], FULL),
        ("SigLIP", [6, 9, 12], [5, 8, 11], FULL),  # the last position: a pad, unless the caption fills the context
        ("CLIPA", [6, 9, 12], [5, 8, 11], FULL),
        ("CoCa", [6, 9, 13], [5, 8, 12], FULL),  # an appended CLS, which has no id
        ("RoBERTa texts", VALID, [-1, -1, -1], VALID),
        ("NLLB texts", VALID, [0, 0, 0], VALID),
    ],
    indirect=["encoder"],
)
def test_what_is_kept_of_a_caption(encoder, stored, pooled, deep):
    """Valid tokens and the pooled one; deeper, all that the rest of the tower needs."""
    ids, lengths = token_ids(encoder)
    features = read(encoder, "tokens", ids, lengths)
    assert [len(tokens) for tokens in features.tokens] == stored
    assert features.pool_index == pooled
    for level in ["pixels", *(["block:-2"] if encoder.texts.blocks else [])]:
        features = read(encoder, level, ids, lengths)
        assert [len(tokens) for tokens in features.tokens] == deep
        assert all(spans[length:] == [(-1, -1)] * (len(spans) - length)
                   for spans, length in zip(features.spans, lengths, strict=True))  # fmt: skip
        wanted = {"SigLIP": [11] * 3, "CLIPA": [11] * 3, "CoCa": [-1] * 3}
        if len(set(deep)) == 1:
            expected = next((wanted[name] for name in wanted if encoder.spec.backbone.startswith(
                f"open_clip:{families.slug(name)}")), pooled)  # fmt: skip
            assert features.pool_index == expected


@every_family
@torch.no_grad()
def test_padding_is_dropped_only_where_that_is_exact(encoder):
    """Other pads change the states of words exactly in the towers that are said to attend to padding."""
    ids, lengths = token_ids(encoder)
    if type(encoder.texts).__name__ == "HubTexts":
        return  # padding is what the mask says it is
    others = ids.clone()
    for row, length in zip(others, lengths, strict=True):
        row[length + 1 :] = 7  # CoCa sees the first
    one, two = (encoder.texts.states(given) for given in (ids, others))
    seen = max(apart(a[:length], b[:length]) for a, b, length in zip(one, two, lengths, strict=True))
    masked = encoder.texts.cls  # CoCa's ids make the mask: other ids are no padding
    assert (seen > EXACT) == (encoder.texts.attends and not masked)
    assert encoder.texts.trims == (not encoder.texts.attends)


@of("ConvNeXt")
def test_a_fresh_encoder_pools_cached_tokens_without_having_seen_an_image(encoder):
    tokens, pooled = encoder.encode_images(pictures(encoder))
    fresh = DualEncoder(encoder.spec, encoder.model, None, encoder.transform)
    assert apart(fresh.pool_images(tokens), pooled) <= EXACT


@of("CLIP ViT", "SigLIP", "PE-Core", "ConvNeXt", "CoCa")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_pooling_is_float32_under_autocast(encoder, dtype):
    ids, lengths = token_ids(encoder)
    with torch.autocast("cpu", dtype=dtype):
        images, texts = shown(encoder, "tokens"), read(encoder, "tokens", ids, lengths)
    assert images.pooled.dtype == texts.pooled.dtype == torch.float32
    assert apart(images.pooled, shown(encoder, "tokens").pooled) > 1e-6, "nothing was cast"
    # What the store keeps gives what it keeps beside it.
    assert torch.equal(encoder.pool_images(images.tokens), images.pooled)
    assert torch.equal(encoder.pool_texts(texts.tokens, texts.pool_index), texts.pooled)


@of("CLIP ViT", "ConvNeXt", "RoBERTa texts", "SigLIP")
@torch.no_grad()
def test_no_images_and_no_captions_are_no_features(encoder, request):
    for level in families.levels(family(request)):
        texts = encoder.texts_at(frame(torch.zeros(0, 12, dtype=torch.int64), []), [level, "pooled"])
        assert texts[level].tokens == []
        assert tuple(texts["pooled"].pooled.shape) == (0, 64 if "SigLIP" not in family(request) else 48)
        assert len(encoder.pool_texts_of(level, [], [])) == 0


@of("CLIP ViT")
def test_a_tower_that_computes_otherwise_is_refused(encoder, monkeypatch):
    spec = backbone.spec(f"{families.slug('CLIP ViT')}/random", level="block:-1")
    again = DualEncoder(spec, encoder.model, None, encoder.transform)
    again.check()
    monkeypatch.setattr(again.images, "leave", lambda states, k: states)
    with pytest.raises(InputError, match=r"image block:-1 of .* do not give its own image embedding"):
        again.check()
    monkeypatch.setattr(encoder.images, "pool", lambda tokens: tokens.mean(dim=1))
    with pytest.raises(InputError, match="do not give its own image embedding"):
        encoder.check()


def test_an_unknown_tower_is_refused():
    with pytest.raises(InputError, match="no adapter"):
        towers.image_tower(torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match="no adapter"):
        towers.text_tower(torch.nn.Linear(1, 1))


@of("ConvNeXt", "CLIP ResNet")
def test_a_tower_without_uniform_blocks_is_not_entered(encoder):
    with pytest.raises(InputError, match="no uniform blocks"):
        encoder.images.enter(torch.zeros(1, 3, *encoder.images.image_size), 1)
    with pytest.raises(InputError, match="no uniform blocks"):
        encoder.images.leave(torch.zeros(1, 4, 8), 1)


def test_grid_follows_the_aspect_of_the_image():
    assert towers.grid_of(196, (224, 224)) == (14, 14)
    assert towers.grid_of(98, (112, 224)) == (7, 14)
    with pytest.raises(InputError, match="do not fill a grid"):
        towers.grid_of(7, (64, 64))


def test_the_page_lists_the_families_that_are_tested_and_what_they_have():
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    listed = {cells[0]: cells for cells in rows if len(cells) == 7 and cells[0] not in ("family", "---")}
    assert set(listed) == set(FAMILIES)
    assert len(set(listed) - TEXT_ONLY) >= 10
    for name, (_, models, image, text, padding, levels, error) in listed.items():
        known = FAMILIES[name]
        assert (models, image, text, padding) == (known.models, *known.pooling, known.padding)
        assert levels == families.described(name)
        assert float(error) <= EXACT
