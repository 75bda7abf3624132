"""The pooled embedding recomputed from our tokens is the model's own, for every kind of tower open_clip has.

Small models of each code path, random weights, float32. The tolerance is relative to the largest component, as
some untrained towers give embeddings of 1e-4.
"""

import json

import open_clip
import pytest
import torch
from timm import models as timm_models
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer

from compal.errors import InputError
from compal.pipeline import towers
from compal.pipeline.backbones import open_clip as backbone
from compal.pipeline.dual_encoder import DualEncoder

EXACT = 1e-5
END = 299
TEXT = {"vocab_size": 300, "context_length": 12, "width": 32, "heads": 2, "layers": 2}
SIGLIP_TEXT = {
    **TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True,
    "hf_tokenizer_name": "nowhere", "tokenizer_kwargs": {"clean": "canonicalize"},
}  # fmt: skip
VIT = {"image_size": 64, "patch_size": 16, "width": 64, "head_width": 32, "layers": 2}
MULTIMODAL = {"width": 32, "context_length": 12, "vocab_size": 300, "layers": 1, "heads": 2}


def timm(name: str, size: int, pool: str, timm_proj: str | None) -> dict[str, object]:
    return {"timm_model_name": name, "image_size": size, "timm_pool": pool, "timm_proj": timm_proj}


@timm_models.register_model
def small_pe_core(num_classes=0, **_):
    """timm's `vit_pe_core_tiny_patch16_384`, smaller."""
    return Eva(
        img_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=2, num_classes=num_classes, global_pool="map",
        attn_type="rope", use_pre_transformer_norm=True, use_rot_pos_emb=True, ref_feat_shape=(4, 4),
        rope_grid_offset=1.0, rope_grid_indexing="xy", attn_pool_num_heads=2, attn_pool_mlp_ratio=4.0,
    )  # fmt: skip


@timm_models.register_model
def small_swin(num_classes=0, **_):
    """timm's Swin, smaller: the trunk whose map has its channels last."""
    model = SwinTransformer(
        img_size=64, window_size=4, embed_dim=16, depths=(1, 1, 1), num_heads=(1, 2, 4),
        num_classes=num_classes, global_pool="avg",
    )  # fmt: skip
    model.default_cfg = {}  # which open_clip reads
    return model


# name: (model configuration, tokens of an image, prefix tokens)
MODELS = {
    "clip-vit": ({"vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True}, 17, 1),
    "clipa": (
        {
            "vision_cfg": {**VIT, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
            "text_cfg": {**TEXT, "pool_type": "last", "no_causal_mask": True},
        },
        17,
        1,
    ),
    "metaclip2": ({"vision_cfg": VIT, "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": END}}, 17, 1),
    "clip-resnet": (
        {
            "vision_cfg": {"image_size": 96, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16},
            "text_cfg": TEXT,
        },
        9,
        0,
    ),
    "coca": (
        {
            "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_queries": 5, "output_tokens": True},
            "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
            "multimodal_cfg": MULTIMODAL,
            "custom_text": True,
        },
        17,
        1,
    ),
    "siglip": (
        {
            "vision_cfg": timm("test_vit3", 160, "map", timm_proj="none"),
            "text_cfg": SIGLIP_TEXT,
            "custom_text": True,
            "embed_dim": 96,
        },
        101,
        1,
    ),
    "siglip-unprojected": (
        {
            "vision_cfg": timm("test_vit", 160, "map", timm_proj="none"),
            "text_cfg": {**SIGLIP_TEXT, "width": 64, "proj_type": "none", "proj_bias": False},
            "custom_text": True,
        },
        101,
        1,
    ),
    "pe-core": ({"vision_cfg": timm("small_pe_core", 64, "map", timm_proj=None), "text_cfg": TEXT}, 17, 1),
    "eva02": ({"vision_cfg": timm("eva02_tiny_patch14_224", 224, "token", timm_proj=None), "text_cfg": TEXT}, 257, 1),
    "mobileclip-b": (
        {"vision_cfg": timm("test_vit", 160, "token", timm_proj=None), "text_cfg": TEXT, "custom_text": True},
        101,
        1,
    ),
    "mobileclip-s": (
        {
            "vision_cfg": timm("fastvit_t8", 256, "avg", timm_proj=None),
            "text_cfg": {**TEXT, "no_causal_mask": True},
            "custom_text": True,
        },
        64,
        0,
    ),
    "convnext": ({"vision_cfg": timm("test_convnext", 160, "", timm_proj="linear"), "text_cfg": TEXT}, 25, 0),
    "convnext-mlp": (
        {"vision_cfg": timm("test_convnext", 160, "", timm_proj="mlp"), "text_cfg": TEXT},
        25,
        0,
    ),
    "swin": ({"vision_cfg": timm("small_swin", 64, "", timm_proj="linear"), "text_cfg": TEXT}, 16, 0),
}


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory):
    """The small models, known to open_clip by name as its own are."""
    folder = tmp_path_factory.mktemp("configurations")
    for name, (config, _, _) in MODELS.items():
        (folder / f"small-{name}.json").write_text(json.dumps({"embed_dim": 64, **config}))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def encoders():
    return {}


@pytest.fixture
def encoder(request, encoders):
    """The encoder of a small model, built once for the module."""
    name = request.param
    if name not in encoders:
        spec = backbone.spec(f"small-{name}/random")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = backbone._build(open_clip.get_model_config(f"small-{name}"), name)
            for parameter in model.parameters():  # so that no zero-initialised branch hides a mistake
                parameter.data += 0.02 * torch.randn_like(parameter)
        encoders[name] = DualEncoder(spec, model, None, lambda image: image)
    return encoders[name]


def pixels(encoder, count=3):
    """Coarse coloured checks: white noise would average out to the same embedding for every image."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.interpolate(coarse, size=encoder.images.image_size, mode="bilinear")


def token_ids(context=12):
    """Three captions of 5, 8 and 12 tokens ended by the highest id, padded by 0."""
    ids = torch.randint(3, END, (3, context), generator=torch.Generator().manual_seed(3))
    lengths = [5, 8, 12]
    for row, length in zip(ids, lengths, strict=True):
        row[length - 1] = END
        row[length:] = 0
    return ids, lengths


def apart(ours, own):
    return float((ours - own).abs().max() / own.abs().max())


every_model = pytest.mark.parametrize("encoder", MODELS, indirect=True)


@every_model
@torch.no_grad()
def test_pooled_images_from_cached_tokens_are_the_models_own(encoder):
    images = pixels(encoder)
    own = encoder.model.encode_image(images, normalize=False)
    tokens, pooled = encoder.encode_images(images)
    assert apart(own[1:2], own[0:1]) > 1e-3, "the test would not notice a constant"
    assert apart(pooled, own) <= EXACT
    assert apart(encoder.pool_images(tokens.clone()), own) <= EXACT


@every_model
@torch.no_grad()
def test_pooled_texts_from_cached_tokens_are_the_models_own(encoder):
    ids, lengths = token_ids()
    own = encoder.model.encode_text(ids, normalize=False)
    features = encoder.encode_token_ids(ids, lengths)
    assert apart(own[1:2], own[0:1]) > 1e-3, "the test would not notice a constant"
    assert apart(features.pooled, own) <= EXACT
    cached = [tokens.clone() for tokens in features.tokens]
    assert apart(encoder.pool_texts(cached, features.pool_index), own) <= EXACT


@every_model
def test_features_have_the_shapes_the_spec_says(encoder, request):
    _, tokens, prefix = MODELS[request.node.callspec.params["encoder"]]
    spec = encoder.spec
    features = encoder.encode_images(pixels(encoder, 1))
    assert tuple(features.tokens.shape[1:]) == spec.image_shape
    assert (spec.image_shape[0], spec.image_prefix) == (tokens, prefix)
    assert spec.image_grid[0] * spec.image_grid[1] + spec.image_prefix == tokens
    texts = encoder.encode_token_ids(*token_ids())
    assert all(rows.shape[1] == spec.text_dim for rows in texts.tokens)
    assert features.pooled.shape[1] == texts.pooled.shape[1] == spec.pooled_dim
    assert spec.context_length == 12
    encoder.check()


@every_model
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(encoder):
    images, (ids, lengths) = pixels(encoder), token_ids()
    together, texts = encoder.encode_images(images), encoder.encode_token_ids(ids, lengths)
    for row in range(3):
        alone = encoder.encode_images(images[row : row + 1])
        assert apart(alone.pooled[0], together.pooled[row]) <= EXACT
        assert apart(alone.tokens[0], together.tokens[row]) <= EXACT
        text = encoder.encode_token_ids(ids[row : row + 1], lengths[row : row + 1])
        assert apart(text.pooled[0], texts.pooled[row]) <= EXACT
        assert apart(text.tokens[0], texts.tokens[row]) <= EXACT


@pytest.mark.parametrize(
    ("encoder", "stored", "pooled"),
    [
        ("clip-vit", [5, 8, 12], [4, 7, 11]),  # the end token
        ("metaclip2", [5, 8, 12], [4, 7, 11]),
        ("mobileclip-s", [5, 8, 12], [4, 7, 11]),
        ("siglip", [6, 9, 12], [5, 8, 11]),  # the last position: a pad, unless the caption fills the context
        ("coca", [6, 9, 13], [5, 8, 12]),  # an appended CLS
    ],
    indirect=["encoder"],
)
def test_valid_tokens_and_the_pooled_one_are_kept(encoder, stored, pooled):
    features = encoder.encode_token_ids(*token_ids())
    assert [len(tokens) for tokens in features.tokens] == stored
    assert [len(spans) for spans in features.spans] == stored
    assert features.pool_index == pooled


@pytest.mark.parametrize(
    ("encoder", "trims"),
    [("clip-vit", True), ("metaclip2", True), ("siglip", False), ("coca", False), ("mobileclip-s", False)],
    indirect=["encoder"],
)
def test_padding_is_left_out_only_where_that_is_exact(encoder, trims):
    assert encoder.texts.trims is trims


@pytest.mark.parametrize("encoder", ["clip-vit", "convnext", "swin", "clip-resnet", "mobileclip-s"], indirect=True)
@torch.no_grad()
def test_patches_are_row_by_row(encoder):
    """A change in one corner moves the token of that corner most."""
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


@pytest.mark.parametrize("encoder", ["convnext"], indirect=True)
def test_a_fresh_encoder_pools_cached_tokens_without_having_seen_an_image(encoder):
    tokens, pooled = encoder.encode_images(pixels(encoder))
    fresh = DualEncoder(encoder.spec, encoder.model, None, encoder.transform)
    assert apart(fresh.pool_images(tokens), pooled) <= EXACT


class FakeHub(torch.nn.Module):
    """The parts of a Hugging Face encoder that open_clip's HFTextEncoder uses."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(300, 32)
        self.mix = torch.nn.Linear(32, 32)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None]
        states = self.embedding(input_ids)
        mean = (states * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return towers._HiddenStates(torch.tanh(self.mix(states) + mean))


@pytest.mark.parametrize("pooler", ["MeanPooler", "ClsLastHiddenStatePooler"])
@torch.no_grad()
def test_hugging_face_text_towers(pooler):
    from open_clip import hf_model

    text = hf_model.HFTextEncoder.__new__(hf_model.HFTextEncoder)
    torch.nn.Module.__init__(text)
    text.transformer, text.pooler = FakeHub(), getattr(hf_model, pooler)()
    text.config = type("Config", (), {"pad_token_id": 0})()
    text.context_length, text.output_tokens = 12, False
    text.proj = torch.nn.Linear(32, 16, bias=False)
    ids, lengths = token_ids()
    tower = towers.text_tower(type("Model", (), {"text": text})())
    states = tower.states(ids)
    tokens = [rows[:length] for rows, length in zip(states, lengths, strict=True)]
    assert apart(tower.pool(tokens, tower.pooled_position(ids)), text(ids)) <= EXACT


@pytest.mark.parametrize("encoder", ["clip-vit"], indirect=True)
def test_a_tower_that_computes_otherwise_is_refused(encoder, monkeypatch):
    monkeypatch.setattr(encoder.images, "pool", lambda tokens: tokens.mean(dim=1))
    with pytest.raises(InputError, match="do not give its own image embedding"):
        encoder.check()


def test_an_unknown_tower_is_refused():
    with pytest.raises(InputError, match="no adapter"):
        towers.image_tower(torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match="no adapter"):
        towers.text_tower(torch.nn.Linear(1, 1))


def test_grid_follows_the_aspect_of_the_image():
    assert towers.grid_of(196, (224, 224)) == (14, 14)
    assert towers.grid_of(98, (112, 224)) == (7, 14)
    with pytest.raises(InputError, match="do not fill a grid"):
        towers.grid_of(7, (64, 64))
