"""Image trunks of timm made small, registered with timm by name: importing this is enough."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm import models as timm_models
from timm.layers import HybridEmbed
from timm.models.eva import Eva
from timm.models.fastvit import FastVit, RepConditionalPosEnc
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from timm.models.vitamin import GeGluMlp, MbConvStages, VitCfg, VitConvCfg

SIXTEEN = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 2}


def _known(model: Any) -> Any:
    model.default_cfg = {}  # which open_clip reads
    return model


@timm_models.register_model
def small_siglip(num_classes=0, global_pool="map", **_):
    """timm's `vit_base_patch16_siglip_256`, smaller."""
    return VisionTransformer(**SIXTEEN, num_classes=num_classes, global_pool=global_pool, class_token=False)


@timm_models.register_model
def small_pe_core(num_classes=0, **_):
    """timm's `vit_pe_core_tiny_patch16_384`, smaller."""
    return Eva(
        **SIXTEEN, num_classes=num_classes, global_pool="map", attn_type="rope", use_pre_transformer_norm=True,
        use_rot_pos_emb=True, ref_feat_shape=(4, 4), rope_grid_offset=1.0, rope_grid_indexing="xy",
        attn_pool_num_heads=2, attn_pool_mlp_ratio=4.0,
    )  # fmt: skip


@timm_models.register_model
def small_pe_core_bare(num_classes=0, **_):
    """timm's `vit_pe_core_gigantic_patch14_448`, smaller: no CLS token."""
    return Eva(
        **SIXTEEN, num_classes=num_classes, global_pool="map", attn_type="rope", use_pre_transformer_norm=True,
        use_rot_pos_emb=True, ref_feat_shape=(4, 4), rope_grid_offset=1.0, rope_grid_indexing="xy",
        attn_pool_num_heads=2, attn_pool_mlp_ratio=4.0, class_token=False,
    )  # fmt: skip


@timm_models.register_model
def small_eva02(num_classes=0, global_pool="token", **_):
    """timm's `eva02_base_patch16_clip_224`, smaller."""
    return Eva(
        **SIXTEEN, num_classes=num_classes, global_pool=global_pool, qkv_fused=False, mlp_ratio=4 * 2 / 3,
        swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True, ref_feat_shape=(4, 4),
    )  # fmt: skip


@timm_models.register_model
def small_mobileclip_b(num_classes=0, global_pool="token", **_):
    """timm's `vit_base_mci_224`, smaller."""
    stem = ConvStem(channels=(12, 12, 48), stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0, act_layer=torch.nn.GELU)
    size = {**SIXTEEN, "patch_size": 1}
    embed = partial(HybridEmbed, backbone=stem, proj=False)
    return VisionTransformer(
        **size, num_classes=num_classes, global_pool=global_pool, no_embed_class=True, embed_layer=embed
    )


@timm_models.register_model
def small_timm_clip(num_classes=0, global_pool="token", **_):
    """timm's `vit_large_patch14_clip_224`, smaller."""
    return VisionTransformer(**SIXTEEN, num_classes=num_classes, global_pool=global_pool, pre_norm=True)


@timm_models.register_model
def small_vitamin(num_classes=0, global_pool="avg", **_):
    """timm's `vitamin_small_224`, smaller."""
    convolutions = VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6)
    config = VitCfg(embed_dim=(16, 32, 48), depths=(1, 1, 1), stem_width=16, conv_cfg=convolutions, head_type="1d")
    embed = partial(HybridEmbed, backbone=MbConvStages(cfg=config), proj=False)
    size = {**SIXTEEN, "patch_size": 1}
    return _known(
        VisionTransformer(
            **size, num_classes=num_classes, global_pool=global_pool, class_token=False, mlp_layer=GeGluMlp,
            mlp_ratio=2.0, embed_layer=embed,
        )
    )  # fmt: skip


@timm_models.register_model
def small_fastvit(num_classes=0, global_pool="avg", **_):
    """timm's `fastvit_mci0`, smaller."""
    return FastVit(
        layers=(1, 1, 1, 1), embed_dims=(16, 32, 64, 128), mlp_ratios=(3, 3, 3, 3), lkc_use_act=True,
        se_downsamples=(False, False, True, True), token_mixers=("repmixer", "repmixer", "repmixer", "attention"),
        pos_embs=(None, None, None, partial(RepConditionalPosEnc, spatial_shape=(7, 7))),
        num_classes=num_classes, global_pool=global_pool,
    )  # fmt: skip


@timm_models.register_model
def small_swin(num_classes=0, **_):
    """timm's Swin, smaller: the trunk whose map has its channels last."""
    return _known(
        SwinTransformer(
            img_size=64, window_size=4, embed_dim=16, depths=(1, 1, 1), num_heads=(1, 2, 4),
            num_classes=num_classes, global_pool="avg",
        )
    )  # fmt: skip
