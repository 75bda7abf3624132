"""Small models of each family of dual encoders: real code paths, random weights, the table of docs/guides/backbones.md.

`python tests/support/families.py` (with the folder above the repository's package on the path) measures them and
prints the table.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
import small_trunks  # noqa: F401 - timm knows them by name from here on
import torch

from compal.errors import InputError
from compal.pipeline.backbones import open_clip as backbone
from compal.pipeline.dual_encoder import DualEncoder
from compal.pipeline.tokenizers import frame

END = 299
TEXT = {"vocab_size": 300, "context_length": 12, "width": 32, "heads": 2, "layers": 3}
SIGLIP_TEXT = {
    **TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True,
    "hf_tokenizer_name": "nowhere", "tokenizer_kwargs": {"clean": "canonicalize"},
}  # fmt: skip
VIT = {"image_size": 64, "patch_size": 16, "width": 64, "head_width": 32, "layers": 3}
MULTIMODAL = {"width": 32, "context_length": 12, "vocab_size": 300, "layers": 1, "heads": 2}


@dataclass(frozen=True)
class Family:
    """One family: a small configuration of it, what its states look like, and what the page says of it.

    tokens, prefix  of an image
    models          which of open_clip's models it stands for
    pooling         of images, of texts
    padding         what follows a caption, and whether it matters
    """

    config: dict[str, Any]
    tokens: int
    prefix: int
    models: str
    pooling: tuple[str, str]
    padding: str


def trunk(name: str, pool: str, proj: str | None, size: int = 64) -> dict[str, Any]:
    """A `vision_cfg` of a timm trunk."""
    return {"timm_model_name": name, "image_size": size, "timm_pool": pool, "timm_proj": proj}


END_OF_TEXT = "the end's state (highest id)"
UNSEEN = "after the end, unseen behind a causal mask"
SEEN = "to the full context, and attended to"
MASKED = "masked"
CLS, MAP, MEAN = "CLS, norm, projection", "attention (MAP)", "mean of patches"
HUB_VISION = {"vision_cfg": VIT, "custom_text": True}


def hub(name: str) -> dict[str, Any]:
    """A `text_cfg` of a Hugging Face tower; `register` puts the folder of its configuration before the name."""
    return {"hf_model_name": name, "hf_tokenizer_name": "nowhere", "hf_pooler_type": "mean_pooler"}


FAMILIES = {
    "CLIP ViT": Family(
        {"vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True}, 17, 1,
        "ViT-{B-32,B-16,L-14,H-14,g-14,bigG-14}, their QuickGELU twins: openai, laion, datacomp, DFN, MetaCLIP",
        (CLS, END_OF_TEXT), UNSEEN,
    ),
    "CLIP ResNet": Family(
        {
            "vision_cfg": {"image_size": 96, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16},
            "text_cfg": TEXT,
        }, 9, 0,
        "RN50, RN101, RN50x4, RN50x16, RN50x64", ("attention of the mean over the map", END_OF_TEXT), UNSEEN,
    ),
    "MetaCLIP 2": Family(
        {"vision_cfg": VIT, "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": END}}, 17, 1,
        "ViT-{H,bigG}-14-worldwide", (CLS, "the first end-of-sentence id's state"), UNSEEN,
    ),
    "CLIPA": Family(
        {
            "vision_cfg": {**VIT, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
            "text_cfg": {**TEXT, "pool_type": "last", "no_causal_mask": True},
        }, 17, 1,
        "ViT-{L,H,bigG}-14-CLIPA", (f"{MEAN}, norm, projection", "the last position, a pad"), SEEN,
    ),
    "CoCa": Family(
        {
            "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_queries": 5, "output_tokens": True},
            "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
            "multimodal_cfg": MULTIMODAL,
            "custom_text": True,
        }, 17, 1,
        "coca_ViT-{B-32,L-14}", ("attention, norm, projection", "a CLS appended after the padding"),
        "masked but for one pad; the mask is made of the ids",
    ),
    "SigLIP": Family(
        {
            "vision_cfg": trunk("small_siglip", "map", "none"),
            "text_cfg": {**SIGLIP_TEXT, "width": 48, "heads": 2},
            "custom_text": True,
            "embed_dim": 48,
        }, 16, 0,
        "ViT-*-SigLIP", (MAP, "the last position, a pad"), SEEN,
    ),
    "SigLIP 2": Family(
        {
            "vision_cfg": trunk("small_siglip", "map", "none"),
            "text_cfg": {
                **SIGLIP_TEXT, "mlp_ratio": 3.7362, "norm_kwargs": {"eps": 1e-6},
                "act_kwargs": {"approximate": "tanh"},
            },
            "custom_text": True,
            "embed_dim": 48,
        }, 16, 0,
        "ViT-*-SigLIP2, of fixed size (the text of gopt is narrower than its images)",
        (MAP, "the last position, a pad"), SEEN,
    ),
    "SigLIP, a CLS and no projection": Family(
        {
            "vision_cfg": trunk("test_vit", "map", "none", 160),
            "text_cfg": {**SIGLIP_TEXT, "width": 64, "proj_type": "none", "proj_bias": False},
            "custom_text": True,
            "embed_dim": 64,
        }, 101, 1,
        "none of open_clip's; what its configuration allows", (MAP, "the last position, a pad"), SEEN,
    ),
    "PE-Core": Family(
        {"vision_cfg": trunk("small_pe_core", "map", None), "text_cfg": TEXT, "custom_text": True}, 17, 1,
        "PE-Core-{T-16-384,S-16-384,B-16,L-14-336}", (f"{MAP} with the CLS, head", END_OF_TEXT), UNSEEN,
    ),
    "PE-Core G": Family(
        {"vision_cfg": trunk("small_pe_core_bare", "map", None), "text_cfg": TEXT, "custom_text": True}, 16, 0,
        "PE-Core-bigG-14-448", (f"{MAP}, head", END_OF_TEXT), UNSEEN,
    ),
    "EVA02": Family(
        {"vision_cfg": trunk("small_eva02", "token", None), "text_cfg": TEXT, "custom_text": True}, 17, 1,
        "EVA02-{B-16,L-14,L-14-336,E-14,E-14-plus}, EVA01-g-14", ("CLS, head", END_OF_TEXT), UNSEEN,
    ),
    "MobileCLIP-B": Family(
        {"vision_cfg": trunk("small_mobileclip_b", "token", None), "text_cfg": TEXT, "custom_text": True}, 17, 1,
        "MobileCLIP-B, MobileCLIP2-B", ("CLS, head", END_OF_TEXT), UNSEEN,
    ),
    "MobileCLIP2-L": Family(
        {
            "vision_cfg": trunk("small_timm_clip", "token", None),
            "text_cfg": {**TEXT, "no_causal_mask": True},
            "custom_text": True,
        }, 17, 1,
        "MobileCLIP2-L-14", ("CLS, head", END_OF_TEXT), SEEN,
    ),
    "MobileCLIP-S": Family(
        {
            "vision_cfg": trunk("small_fastvit", "avg", None, 128),
            "text_cfg": {**TEXT, "no_causal_mask": True},
            "custom_text": True,
        }, 16, 0,
        "MobileCLIP-{S1,S2}, MobileCLIP2-{S0,S2,S3,S4}", (f"{MEAN}, head", END_OF_TEXT), SEEN,
    ),
    "ViTamin": Family(
        {"vision_cfg": trunk("small_vitamin", "", "linear"), "text_cfg": TEXT, "custom_text": True}, 16, 0,
        "ViTamin-{S,B,L,L2,XL}, vit_medium_patch16_gap_256", (f"{MEAN}, projection", END_OF_TEXT), UNSEEN,
    ),
    "ConvNeXt": Family(
        {"vision_cfg": trunk("test_convnext", "", "linear", 160), "text_cfg": TEXT}, 25, 0,
        "convnext_*, but for large_d", (f"{MEAN}, norm, projection", END_OF_TEXT), UNSEEN,
    ),
    "ConvNeXt, MLP": Family(
        {"vision_cfg": trunk("test_convnext", "", "mlp", 160), "text_cfg": TEXT}, 25, 0,
        "convnext_{large_d,large_d_320}", (f"{MEAN}, norm, MLP", END_OF_TEXT), UNSEEN,
    ),
    "Swin": Family(
        {"vision_cfg": trunk("small_swin", "", "linear"), "text_cfg": TEXT}, 16, 0,
        "swin_base_patch4_window7_224", (f"{MEAN}, projection", END_OF_TEXT), UNSEEN,
    ),
    "RoBERTa texts": Family(
        {**HUB_VISION, "text_cfg": hub("roberta")}, 17, 1,
        "roberta-ViT-B-32", (CLS, "mean of valid tokens, projection"), MASKED,
    ),
    "XLM-R texts": Family(
        {**HUB_VISION, "text_cfg": {**hub("xlm-roberta"), "hf_proj_type": "mlp"}}, 17, 1,
        "xlm-roberta-{base-ViT-B-32,large-ViT-H-14}", (CLS, "mean of valid tokens, MLP"), MASKED,
    ),
    "mT5 texts": Family(
        {**HUB_VISION, "text_cfg": hub("mt5")}, 17, 1,
        "mt5-{base-ViT-B-32,xl-ViT-H-14}", (CLS, "mean of valid tokens, projection"), MASKED,
    ),
    "NLLB texts": Family(
        {**HUB_VISION, "text_cfg": {**hub("m2m_100"), "hf_pooler_type": "cls_pooler"}}, 17, 1,
        "nllb-clip-{base,large}", (CLS, "the first token's state, projection"), MASKED,
    ),
}  # fmt: skip
_HUB = {
    "roberta": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64},
    "mt5": {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 3, "num_decoder_layers": 1, "num_heads": 2},
    "m2m_100": {
        "d_model": 32, "encoder_layers": 3, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    },
}  # fmt: skip


def slug(name: str) -> str:
    """A family's name as open_clip knows its small model."""
    return "small-" + "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def register(folder: Path) -> None:
    """Make the small models known to open_clip by name, as its own are; their files go into `folder`."""
    models = folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    for name, config in {**_HUB, "xlm-roberta": _HUB["roberta"]}.items():
        (folder / name).mkdir(exist_ok=True)
        whole = {"model_type": name, "vocab_size": 300, "max_position_embeddings": 20, "pad_token_id": 1, **config}
        (folder / name / "config.json").write_text(json.dumps(whole))
    for name, family in FAMILIES.items():
        config = {"embed_dim": 64, **family.config}
        text = dict(config["text_cfg"])
        if "hf_model_name" in text:
            text["hf_model_name"] = str(folder / text["hf_model_name"])
        (models / f"{slug(name)}.json").write_text(json.dumps({**config, "text_cfg": text}))
    open_clip.add_model_config(models)


def build(name: str) -> DualEncoder:
    """The encoder of a family at the level "tokens", without a tokenizer. Asks for `register` first."""
    spec = backbone.spec(f"{slug(name)}/random")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = backbone._build(open_clip.get_model_config(slug(name)), name)
        for parameter in model.parameters():  # so that no zero-initialised branch hides a mistake
            parameter.data += 0.02 * torch.randn_like(parameter)
    return DualEncoder(spec, model, None, lambda image: image)


def pictures(encoder: DualEncoder, count: int = 3) -> torch.Tensor:
    """Coarse coloured checks (B, 3, H, W) uint8: white noise would average out to one embedding for all."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    smooth = torch.nn.functional.interpolate(coarse, size=encoder.images.image_size, mode="bilinear")
    return (128 + 64 * smooth).clamp(0, 255).to(torch.uint8)


def token_ids(encoder: DualEncoder, lengths: tuple[int, ...] = (5, 8, 12)) -> tuple[torch.Tensor, list[int]]:
    """Captions ended by the highest id and padded as the tower pads, in a context of 12."""
    ids = torch.randint(3, END, (len(lengths), 12), generator=torch.Generator().manual_seed(3))
    for row, length in zip(ids, lengths, strict=True):
        row[length - 1] = END
        row[length:] = encoder.texts.pad
    return ids, list(lengths)


@lru_cache
def levels(name: str) -> tuple[str, ...]:
    """The levels of a family that keep tokens, blocks down to the second last."""
    found = []
    for level in ("tokens", "block:-1", "block:-2", "pixels"):
        try:
            backbone.spec(f"{slug(name)}/random", level=level)
            found.append(level)
        except InputError:
            continue
    return tuple(found)


def apart(ours: torch.Tensor, own: torch.Tensor) -> float:
    """The largest difference, relative to the largest component: some untrained towers give 1e-4."""
    return float((ours - own).abs().max() / own.abs().max())


@torch.no_grad()
def errors(encoder: DualEncoder, level: str) -> tuple[float, float]:
    """How far pooled images and texts recomputed from a level are from the model's own."""
    images, (ids, lengths) = pictures(encoder), token_ids(encoder)
    own = encoder.model.encode_image(encoder.scaled(images), normalize=False)
    tokens = encoder.images_at(images, [level])[level].tokens
    image = apart(encoder.pool_images_of(level, tokens.clone()), own)
    texts = encoder.texts_at(frame(ids, lengths), [level])[level]
    cached = [rows.clone() for rows in texts.tokens]
    text = apart(
        encoder.pool_texts_of(level, cached, texts.pool_index), encoder.model.encode_text(ids, normalize=False)
    )
    return image, text


def described(name: str) -> str:
    """The levels of a family as the page writes them."""
    return ", ".join(["pooled", *levels(name), "regions"]).replace("block:-1, block:-2", "block:-K")


def row(name: str) -> str:
    """The page's row of a family: what is true of it, and the error measured here, rounded up."""
    family, encoder = FAMILIES[name], build(name)
    found = levels(name)
    worst = max(max(errors(encoder, level)) for level in found)
    power = 10 ** math.floor(math.log10(worst or 1.0))
    reached = f"{math.ceil(worst / power) * power:.0e}" if worst else "0"
    cells = [name, family.models, *family.pooling, family.padding, described(name), reached]
    return "| " + " | ".join(cells) + " |"


def table(folder: Path) -> str:
    """The table of docs/guides/backbones.md."""
    register(folder)
    head = ["family", "models", "image pooling", "text pooling", "padding of texts", "levels", "error"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *(row(name) for name in FAMILIES)])


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as temporary:
        print(table(Path(temporary)))
