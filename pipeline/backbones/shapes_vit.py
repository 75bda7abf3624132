"""shapes-vit[:FOLDER]: the small dual encoder trained on the embedded world; 64 px, bilinear, mean and std 0.5.

A folder holds `model.safetensors` and `config.json`: open_clip's `embed_dim`, `vision_cfg`, `text_cfg` and,
if set, `quick_gelu`, plus `words`, the vocabulary of the word-level tokenizer (without it CLIP's byte pairs
are used).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config import canonical
from ...errors import InputError
from ...registry import ROOT
from ...stores.spec import FeatureSpec
from .. import checkpoints, preprocess
from ..encoder import at_level

if TYPE_CHECKING:
    from ..dual_encoder import DualEncoder
    from ..tokenizers import CaptionTokenizer

FOLDER = ROOT / "assets" / "shapes_vit"


def spec(argument: str = "", level: str = "tokens", dtype: str = "float16") -> FeatureSpec:
    """The spec of the shipped encoder, or of the one in the folder `argument`. Imports no torch.

    Raises `InputError` if a file is missing or the configuration is not one.
    """
    folder, config = _read(argument)
    vision, text = config["vision_cfg"], config["text_cfg"]
    size, side = int(vision["image_size"]), int(vision["image_size"]) // int(vision["patch_size"])
    words = hashlib.sha256(canonical(config.get("words"))).hexdigest()[:16]
    name = {"name": "compal.words", "words": words} if config.get("words") else {"name": "open_clip.SimpleTokenizer"}
    full = FeatureSpec(
        backbone=f"shapes-vit:{argument}" if argument else "shapes-vit",
        weights=checkpoints.sha256(folder / "model.safetensors"),
        pooled_dim=int(config["embed_dim"]),
        image_shape=(side * side + 1, int(vision["width"])),
        image_prefix=1,
        image_grid=(side, side),
        text_dim=int(text["width"]),
        context_length=int(text["context_length"]),
        preprocess=preprocess.describe((size, size), "squash", "bilinear", (0.5,) * 3, (0.5,) * 3),
        tokenizer={**name, "context_length": str(text["context_length"])},
        extra={"config": _digest(config)},
    )
    return at_level(full, level, dtype, _blocks(config), dense="block:-1")


def load(spec: FeatureSpec, device: str = "cpu") -> DualEncoder:
    """The encoder of a spec. Raises `InputError` if weights, configuration and words do not fit."""
    encoder = untrained(spec, device)
    folder, _ = _read(spec.backbone.partition(":")[2])
    checkpoints.load_into(encoder.model, folder / "model.safetensors", str(folder / "config.json"))
    encoder.check()
    return encoder


def untrained(spec: FeatureSpec, device: str = "cpu") -> DualEncoder:
    """The encoder of a spec as it is initialised. Raises `InputError` if the configuration is no longer the spec's."""
    import open_clip
    import torch

    from ..dual_encoder import DualEncoder

    folder, config = _read(spec.backbone.partition(":")[2])
    if _digest(config) != spec.extra["config"]:
        raise InputError(f"{folder / 'config.json'} is not what the spec says", "Restore it.")
    tokenizer = _tokenizer(folder, config)
    try:
        with torch.random.fork_rng(devices=[]):
            model = open_clip.CLIP(
                config["embed_dim"],
                vision_cfg=open_clip.CLIPVisionCfg(**config["vision_cfg"]),
                text_cfg=open_clip.CLIPTextCfg(**config["text_cfg"]),
                quick_gelu=bool(config.get("quick_gelu", False)),
            )
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise InputError(f"{folder / 'config.json'} is no open_clip model configuration: {error}") from None
    return DualEncoder(spec, model, tokenizer, preprocess.transform(spec.preprocess), device)


def _digest(config: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(config)).hexdigest()[:16]


def _tokenizer(folder: Path, config: dict[str, Any]) -> CaptionTokenizer:
    import open_clip

    from ..tokenizers import BytePairs, Words
    from ..words import WordTokenizer

    context, size = config["text_cfg"]["context_length"], config["text_cfg"].get("vocab_size", 49408)
    if not config.get("words"):
        return BytePairs(open_clip.SimpleTokenizer(context_length=context))
    tokenizer = WordTokenizer(config["words"], context)
    if tokenizer.vocab_size != size:
        raise InputError(
            f"{folder / 'config.json'} lists {len(config['words'])} words, its tower has {size} embeddings",
            f"It must have words + 4 = {tokenizer.vocab_size}: the end is the highest id.",
        )
    return Words(tokenizer)


def _blocks(config: dict[str, Any]) -> int:
    """Layers of the shallower tower; twelve where open_clip's default stands."""
    return min(int(config[part].get("layers", 12)) for part in ("vision_cfg", "text_cfg"))


def _read(argument: str) -> tuple[Path, dict[str, Any]]:
    folder = Path(argument).expanduser() if argument else FOLDER
    path = folder / "config.json"
    for needed in (path, folder / "model.safetensors"):
        if not needed.is_file():
            raise InputError(
                f"shapes-vit has no file {needed}", "Install compal whole, or name a folder: shapes-vit:/path"
            )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        # Everything that `spec` reads, so that it fails here or not at all.
        for part, key in (("vision_cfg", "image_size"), ("vision_cfg", "patch_size"), ("vision_cfg", "width"),
                          ("text_cfg", "width"), ("text_cfg", "context_length")):  # fmt: skip
            int(config[part][key])
        int(config["embed_dim"])
        _blocks(config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no open_clip model configuration: {error!r}", "See pipeline/backbones/shapes_vit.py."
        ) from None
    return folder, config
