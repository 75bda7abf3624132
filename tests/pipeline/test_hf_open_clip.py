"""The same weights through open_clip and through transformers: the same tokens, the same pooled embeddings."""

import json

import open_clip
import pytest
import torch
from timm import models as timm_models
from timm.layers import GELUTanh
from timm.models.vision_transformer import VisionTransformer

from compal.pipeline.backbones import open_clip as backbone
from compal.pipeline.dual_encoder import DualEncoder
from compal.pipeline.encoder import resolve
from compal.pipeline.hub_towers import HubModel

transformers = pytest.importorskip("transformers")
EXACT = {"atol": 1e-5, "rtol": 1e-5}
END, CONTEXT = 299, 12
TEXT = {"context_length": CONTEXT, "vocab_size": 300, "width": 32, "heads": 2, "layers": 2}
HUB_TEXT = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2,
    "num_hidden_layers": 2, "max_position_embeddings": CONTEXT, "bos_token_id": 0, "eos_token_id": END,
}  # fmt: skip
HUB_VISION = {
    "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 3,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 3},
    "text_cfg": TEXT,
    "quick_gelu": True,
}
TANH = {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}}
SIGLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "timm_model_name": "siglip_of_tanh", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {**TEXT, **TANH, "no_causal_mask": True, "pool_type": "last", "proj_bias": True,
                 "hf_tokenizer_name": "nowhere", "tokenizer_kwargs": {"clean": "canonicalize"}},
    "custom_text": True,
}  # fmt: skip


@timm_models.register_model
def siglip_of_tanh(num_classes=0, **_):
    """timm's `vit_base_patch16_siglip_224`, smaller."""
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=num_classes,
        class_token=False, global_pool="map", act_layer=GELUTanh,
    )  # fmt: skip


def renamed(state, source, target, names):
    return {
        f"{target}{new}.{kind}": state[f"{source}{old}.{kind}"]
        for old, new in names.items()
        for kind in ("weight", "bias")
        if f"{source}{old}.{kind}" in state
    }


def thirds(weight, bias, target):
    """A joint projection of queries, keys and values → three."""
    found = {}
    for name, rows, shift in zip("qkv", weight.chunk(3), bias.chunk(3), strict=True):
        found |= {f"{target}self_attn.{name}_proj.weight": rows, f"{target}self_attn.{name}_proj.bias": shift}
    return found


def native_blocks(state, source, target, layers):
    """open_clip's transformer → transformers' encoder."""
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
             "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip
    found = {}
    for index in range(layers):
        old, new = (f"{source}transformer.resblocks.{index}.", f"{target}encoder.layers.{index}.")
        found |= renamed(state, old, new, names)
        found |= thirds(state[f"{old}attn.in_proj_weight"], state[f"{old}attn.in_proj_bias"], new)
    return found


def clip_state(state):
    """The state dict of open_clip's CLIP as `CLIPModel` names it."""
    found = {
        "logit_scale": state["logit_scale"],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "visual_projection.weight": state["visual.proj"].T,
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_projection.weight": state["text_projection"].T,
    }
    found |= renamed(state, "visual.", "vision_model.", {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"})
    found |= renamed(state, "", "text_model.", {"ln_final": "final_layer_norm"})
    return found | native_blocks(state, "visual.", "vision_model.", 3) | native_blocks(state, "", "text_model.", 2)


def siglip_state(state):
    """The state dict of open_clip's SigLIP as `SiglipModel` names it."""
    trunk, pool = "visual.trunk.", "visual.trunk.attn_pool."
    attention = "vision_model.head.attention."
    found = {
        "logit_scale": state["logit_scale"].reshape(1),
        "logit_bias": torch.zeros(1),
        "vision_model.embeddings.position_embedding.weight": state[f"{trunk}pos_embed"][0],
        "vision_model.head.probe": state[f"{pool}latent"],
        f"{attention}in_proj_weight": torch.cat([state[f"{pool}q.weight"], state[f"{pool}kv.weight"]]),
        f"{attention}in_proj_bias": torch.cat([state[f"{pool}q.bias"], state[f"{pool}kv.bias"]]),
        "text_model.embeddings.token_embedding.weight": state["text.token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["text.positional_embedding"],
    }
    names = {"patch_embed.proj": "embeddings.patch_embedding", "norm": "post_layernorm",
             "attn_pool.proj": "head.attention.out_proj", "attn_pool.norm": "head.layernorm",
             "attn_pool.mlp.fc1": "head.mlp.fc1", "attn_pool.mlp.fc2": "head.mlp.fc2"}  # fmt: skip
    found |= renamed(state, trunk, "vision_model.", names)
    blocks = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj",
              "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}  # fmt: skip
    for index in range(3):
        old, new = f"{trunk}blocks.{index}.", f"vision_model.encoder.layers.{index}."
        found |= renamed(state, old, new, blocks)
        found |= thirds(state[f"{old}attn.qkv.weight"], state[f"{old}attn.qkv.bias"], new)
    found |= renamed(state, "text.", "text_model.", {"ln_final": "final_layer_norm", "text_projection": "head"})
    return found | native_blocks(state, "text.", "text_model.", 2)


def hub_clip():
    config = transformers.CLIPConfig(text_config=HUB_TEXT, vision_config=HUB_VISION, projection_dim=24)
    return transformers.CLIPModel(config)


def hub_siglip():
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=HUB_TEXT, vision_config=HUB_VISION))


KINDS = {"clip": (CLIP, clip_state, hub_clip), "siglip": (SIGLIP, siglip_state, hub_siglip)}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """The same weights as an encoder of open_clip's model and of transformers'."""
    config, convert, build = KINDS[request.param]
    folder = tmp_path_factory.mktemp("configurations")
    (folder / f"same-{request.param}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    spec = resolve(f"open_clip:same-{request.param}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = backbone._build(open_clip.get_model_config(f"same-{request.param}"), request.param)
        for parameter in model.parameters():  # so that no zero-initialised branch hides a mistake
            parameter.data += 0.05 * torch.randn_like(parameter)
    hub = build()
    hub.load_state_dict({name: value.contiguous() for name, value in convert(model.state_dict()).items()}, strict=True)
    ours = DualEncoder(spec, model, None, lambda image: image)
    return ours, DualEncoder(spec, HubModel(hub, request.param), None, lambda image: image)


def token_ids():
    """Captions of 5, 8 and 12 tokens ended by the highest id, padded by 0."""
    ids = torch.randint(3, END, (3, CONTEXT), generator=torch.Generator().manual_seed(3))
    lengths = [5, 8, 12]
    for row, length in zip(ids, lengths, strict=True):
        row[length - 1] = END
        row[length:] = 0
    return ids, lengths


@torch.no_grad()
def test_images_are_the_same_at_every_depth(pair):
    one, other = pair
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    levels = ["tokens", "block:-1", "block:-3"]
    ours, theirs = one.images_at(pixels, levels), other.images_at(pixels, levels)
    for level in levels:
        torch.testing.assert_close(theirs[level].tokens, ours[level].tokens, **EXACT)
        torch.testing.assert_close(theirs[level].pooled, ours[level].pooled, **EXACT)
    assert float((ours["tokens"].pooled[0] - ours["tokens"].pooled[1]).abs().max()) > 1e-2
    cached = ours["tokens"].tokens.clone()
    torch.testing.assert_close(other.pool_images(cached), one.pool_images(cached), **EXACT)


@torch.no_grad()
def test_texts_are_the_same_at_every_depth(pair):
    one, other = pair
    ids, lengths = token_ids()
    from compal.pipeline.tokenizers import frame

    levels = ["tokens", "block:-1", "block:-2"]
    ours, theirs = (encoder.texts_at(frame(ids, lengths), levels) for encoder in pair)
    for level in levels:
        assert theirs[level].pool_index == ours[level].pool_index
        for mine, hub in zip(ours[level].tokens, theirs[level].tokens, strict=True):
            torch.testing.assert_close(hub, mine, **EXACT)
        torch.testing.assert_close(theirs[level].pooled, ours[level].pooled, **EXACT)
    assert float((ours["tokens"].pooled[0] - ours["tokens"].pooled[1]).abs().max()) > 1e-2
    cached, index = ours["tokens"].tokens, ours["tokens"].pool_index
    torch.testing.assert_close(other.pool_texts(cached, index), one.pool_texts(cached, index), **EXACT)


def test_the_adapters_hold_to_both_models_own(pair):
    for encoder in pair:
        encoder.check()


@torch.no_grad()
def test_last_hidden_state_of_clip_images_is_not_what_is_stored(pair):
    """There transformers leaves out the norm that the pooled token gets: a store of those would not pool again."""
    one, other = pair
    hub = other.model.model
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    stored = one.images_at(pixels, ["tokens"])["tokens"].tokens
    apart = float((hub.vision_model(pixels).last_hidden_state - stored).abs().max())
    assert apart > 1e-2 if isinstance(hub, transformers.CLIPModel) else apart < 1e-5
