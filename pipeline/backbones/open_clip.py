"""open_clip:MODEL[/TAG | /PATH | /random[:SEED]]: any open_clip model; a bare MODEL is random, seed 0.

    open_clip:ViT-B-32-quickgelu/openai        a tag, downloaded once from the Hugging Face hub
    open_clip:ViT-B-32-quickgelu//data/ft.pt   a checkpoint (.safetensors, .bin, .pt, .pth), tensors only
    open_clip:ViT-B-32-quickgelu               random weights; the spec says `weights = "random:0"`

Weights and model must agree on activation and vocabulary, or it is an error that names the right model.
Preprocessing is the tag's, else that of the `open_clip_config.json` beside the checkpoint, else what all
tags of the model share.
"""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from ...config import canonical
from ...errors import InputError
from ...stores.spec import FeatureSpec
from .. import checkpoints, preprocess
from ..dense import reads_or_why
from ..dual_encoder import DualEncoder
from ..encoder import at_level
from ..tokenizers import BytePairs, CaptionTokenizer, HubTokenizer
from ..towers import grid_of, image_tower, text_tower
from . import _open_clip_weights as weights

CITE = {
    r"/openai|^[^/]+$": ("arXiv:2103.00020",),
    r"laion": ("arXiv:2212.07143", "arXiv:2210.08402"),
    r"datacomp|commonpool": ("arXiv:2304.14108",),
    r"metaclip(?!-?_?2|.*worldwide)": ("arXiv:2309.16671",),
    r"worldwide|metaclip[-_]?2": ("arXiv:2507.22062",),
    r"SigLIP(?!-?2)": ("arXiv:2303.15343",),
    r"SigLIP-?2": ("arXiv:2502.14786",),
    r"^PE-": ("arXiv:2504.13181",),
    r"dfn": ("arXiv:2309.17425",),
    r"^EVA": ("arXiv:2303.15389",),
    r"^coca": ("arXiv:2205.01917",),
    r"^MobileCLIP-": ("arXiv:2311.17049",),
    r"^ViTamin": ("arXiv:2404.02132",),
}
"""Papers by what MODEL/TAG says; a family that is not here names none."""


class _Dims(NamedTuple):
    image_shape: tuple[int, int]
    image_prefix: int
    image_grid: tuple[int, int]
    image_size: tuple[int, int]
    text_dim: int
    pooled_dim: int
    context_length: int
    blocks: int
    dense: str


def spec(argument: str, level: str = "tokens", dtype: str = "float16") -> FeatureSpec:
    """The spec of `MODEL[/WEIGHTS]`. Builds no weights; downloads a tag, since its hash is part of the spec.

    Raises `UnknownName` for a model or tag that does not exist; `InputError` if activation or vocabulary do
    not match the weights, or the weights cannot be had.
    """
    choice = weights.parse(argument)
    activation = weights.check_activation(choice)
    path = weights.path_of(choice)
    weights.check_vocabulary(choice)
    config = open_clip.get_model_config(choice.model)
    dims = _dims(canonical(config), choice.model)
    full = FeatureSpec(
        backbone=choice.name,
        weights=checkpoints.sha256(path) if path else f"random:{choice.value}",
        pooled_dim=dims.pooled_dim,
        image_shape=dims.image_shape,
        image_prefix=dims.image_prefix,
        image_grid=dims.image_grid,
        text_dim=dims.text_dim,
        context_length=dims.context_length,
        preprocess=_preprocessing(choice, dims.image_size),
        tokenizer=_tokenizer_strings(config, dims.context_length),
        extra=activation,
    )
    return at_level(full, level, dtype, dims.blocks, dims.dense)


def load(spec: FeatureSpec, device: str = "cpu") -> DualEncoder:
    """The encoder of a spec. Raises `InputError` if its weights or tokenizer cannot be had or do not fit."""
    encoder = untrained(spec, device)
    choice = weights.parse(spec.backbone.partition(":")[2])
    path = weights.path_of(choice)
    if path is not None:
        checkpoints.load_into(encoder.model, path, choice.model)
    encoder.check()
    return encoder


def untrained(spec: FeatureSpec, device: str = "cpu") -> DualEncoder:
    """The encoder of a spec as it is initialised: its own weights are neither read nor asked for."""
    choice = weights.parse(spec.backbone.partition(":")[2])
    tokenizer = _tokenizer(choice.model)
    config = open_clip.get_model_config(choice.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(choice.value) if choice.kind == "random" else 0)
        model = _build(config, choice.model)
    return DualEncoder(spec, model, tokenizer, preprocess.transform(spec.preprocess), device)


def _build(config: dict[str, Any], name: str) -> Any:
    """An untrained model, as `open_clip.create_model` builds it (which warns that it is untrained)."""
    config = copy.deepcopy(config)
    config["vision_cfg"]["timm_model_pretrained"] = False
    native = "hf_model_name" not in config["text_cfg"]
    if not native:
        config["text_cfg"]["hf_model_pretrained"] = False
    custom = config.pop("custom_text", False) or not native
    kind = open_clip.CLIP if not custom else open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    try:
        return kind(**config).eval()
    except (RuntimeError, OSError, ImportError, ValueError) as error:
        if native:
            raise
        reason = str(error).strip().split("\n", 1)[0][:120]
        raise InputError(
            f"the text tower of {name} cannot be built: {reason}",
            f"pip install transformers, and cache {config['text_cfg']['hf_model_name']} from the hub.",
        ) from None


@lru_cache(maxsize=32)
def _dims(config: bytes, name: str) -> _Dims:
    """Shapes from a forward pass on the meta device: nothing is initialised, the largest model takes 2 s."""
    with torch.device("meta"), torch.no_grad():
        model = _build(json.loads(config), name)
        images, texts = image_tower(model.visual), text_tower(model)
        tokens = images.states(torch.empty(1, 3, *images.image_size))
        pooled = images.pool(tokens)
    patches = tokens.shape[1] - images.prefix
    return _Dims(
        image_shape=(tokens.shape[1], tokens.shape[2]),
        image_prefix=images.prefix,
        image_grid=grid_of(patches, images.image_size),
        image_size=images.image_size,
        text_dim=texts.width,
        pooled_dim=pooled.shape[1],
        context_length=texts.context_length,
        blocks=min(images.blocks, texts.blocks),
        dense=reads_or_why(images),
    )


def _preprocessing(choice: weights.Choice, size: tuple[int, int]) -> dict[str, str]:
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    merged = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), weights.preprocessing(choice)))
    return preprocess.describe(
        size, merged.resize_mode, merged.interpolation, merged.mean, merged.std, merged.fill_color
    )


def _tokenizer_strings(config: dict[str, Any], context_length: int) -> dict[str, str]:
    text = config["text_cfg"]
    hub = text.get("hf_tokenizer_name")
    options = {key: str(value) for key, value in (text.get("tokenizer_kwargs") or {}).items()}
    options.setdefault("clean", "whitespace" if hub else "lower")
    name = f"hf-hub:{hub}" if hub else "open_clip.SimpleTokenizer"
    return {"name": name, "context_length": str(context_length), **options}


def _tokenizer(model: str) -> CaptionTokenizer:
    """The tokenizer that the model's configuration names. Raises `InputError` if it cannot be had."""
    hub = open_clip.get_model_config(model)["text_cfg"].get("hf_tokenizer_name")
    try:
        tokenizer = open_clip.get_tokenizer(model)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n", 1)[0][:120]
        raise InputError(
            f"the tokenizer {hub} of {model} cannot be loaded: {reason}",
            "pip install transformers, and run once with a network or set HF_HOME to a cache that holds it.",
        ) from None
    if not isinstance(tokenizer, SimpleTokenizer | HFTokenizer):
        kind = type(tokenizer).__name__
        raise InputError(f"tokenizers of kind {kind} ({model}) have no adapter", "See pipeline/tokenizers.py.")
    return BytePairs(tokenizer) if isinstance(tokenizer, SimpleTokenizer) else HubTokenizer(tokenizer)
