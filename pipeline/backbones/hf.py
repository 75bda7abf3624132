"""hf:ORG/NAME[@REVISION] or hf:/FOLDER: dual encoders of transformers (CLIP, MetaCLIP 2, SigLIP, SigLIP 2 NaFlex).

    hf:google/siglip2-base-patch16-naflex        from the hub; the spec names the commit
    hf:openai/clip-vit-base-patch32@REVISION     a commit, branch or tag
    hf:/data/model                               config.json, model.safetensors, tokenizer, preprocessor_config.json

Weights are safetensors, or `pytorch_model.bin` loaded as tensors alone. The cache of the hub is asked first; what
it lacks is downloaded once. Preprocessing is the image processor's, and refused where a spec cannot say it exactly.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...config import canonical
from ...errors import InputError
from ...hub import quietly
from ...stores.spec import FeatureSpec
from .. import checkpoints, hub_files, hub_preprocess, hub_tokenizers, preprocess
from ..encoder import at_level

if TYPE_CHECKING:
    from ..dual_encoder import DualEncoder

FAMILIES = {"clip": "CLIPModel", "metaclip_2": "MetaClip2Model", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
CITE = {
    r"^openai/clip": ("arXiv:2103.00020",),
    r"^laion/": ("arXiv:2212.07143", "arXiv:2210.08402"),
    r"metaclip-2": ("arXiv:2507.22062",),
    r"metaclip-(?!2-)": ("arXiv:2309.16671",),
    r"siglip-": ("arXiv:2303.15343",),
    r"siglip2-": ("arXiv:2502.14786",),
}
"""Papers by what ORG/NAME says; a folder names none."""
_SAVE = "Save it again with transformers: model.save_pretrained(folder)."


class _Dims(NamedTuple):
    """What the configuration says of the towers; `size` is 0 where the image processor chooses it (NaFlex)."""

    family: str
    size: int
    patch: int
    prefix: int
    image_dim: int
    text_dim: int
    pooled_dim: int
    context_length: int
    blocks: int


def spec(argument: str, level: str = "tokens", dtype: str = "float16") -> FeatureSpec:
    """The spec of a model on the hub or in a folder, from its files' hashes and configuration; builds no model.

    Raises `InputError` if files are missing and cannot be downloaded, for a model that is no dual encoder of these
    families, and for an image processor that the spec cannot say exactly.
    """
    source = _locate(argument)
    full, blocks = _full(source, hub_files.hash_of(hub_files.weight_files(source.folder)))
    return at_level(full, level, dtype, blocks, "block:-1" if full.image_prefix else "tokens")


def load(spec: FeatureSpec, device: str = "cpu") -> DualEncoder:
    """The encoder of a spec. Raises `InputError` if its files cannot be had or do not fit."""
    source = _locate(spec.backbone.partition(":")[2])
    model = _with_weights(source.folder, _config(source.folder))
    encoder = _encoder(spec, source.folder, model, device)
    encoder.check()
    return encoder


def untrained(spec: FeatureSpec, device: str = "cpu") -> DualEncoder:
    """The architecture and the tokenizer of a spec, without its weights, which need not be on this machine."""
    import torch

    source = _locate(spec.backbone.partition(":")[2], weights=False)
    today = _full(source, spec.weights)[0]
    if (today.preprocess, today.tokenizer, today.extra) != (spec.preprocess, spec.tokenizer, spec.extra):
        raise InputError(f"the files of {spec.backbone} beside its weights are not what the spec says", "Restore them.")
    config = _config(source.folder)
    with torch.random.fork_rng(devices=[]), quietly():
        model = _class(config.model_type)(config)
    return _encoder(spec, source.folder, model, device)


def _full(source: hub_files.Source, weights: str) -> tuple[FeatureSpec, int]:
    """The spec at the level tokens, and how deep both towers can be entered."""
    config = _config(source.folder)
    dims = _dims(config, source.folder)
    described, grid = hub_preprocess.describe(source.folder, dims.size, dims.patch, dims.family == "siglip2")
    side = grid or dims.size // dims.patch
    extra = {"family": dims.family, "activation": _activations(config), "config": _digest(source.folder)}
    if source.revision:
        extra["revision"] = source.revision
    if grid:
        extra["naflex"] = f"one grid of {grid} x {grid} patches; pictures are squashed to it"
    full = FeatureSpec(
        backbone=f"hf:{source.name}",
        weights=weights,
        pooled_dim=dims.pooled_dim,
        image_shape=(side * side + dims.prefix, dims.image_dim),
        image_prefix=dims.prefix,
        image_grid=(side, side),
        text_dim=dims.text_dim,
        context_length=dims.context_length,
        preprocess=described,
        tokenizer=hub_tokenizers.describe(source.folder, dims.family, dims.context_length),
        extra=extra,
    )
    return full, dims.blocks


def _digest(folder: Path) -> str:
    """16 hex digits of the configuration, heads and norms included; not of what saving it again changes."""
    found = hub_files.read_json(folder / hub_files.CONFIG)
    passing = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
    return hashlib.sha256(canonical({key: found[key] for key in found if key not in passing})).hexdigest()[:16]


def _locate(argument: str, weights: bool = True) -> hub_files.Source:
    try:
        version = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if int(version.partition(".")[0]) < 5:
        found = f"finds {version}" if version != "0" else "finds none"
        raise InputError(f"backbone hf needs transformers 5 and {found}", 'pip install -U "compal[hf]"')
    return hub_files.locate(argument, weights)


def _encoder(spec: FeatureSpec, folder: Path, model: Any, device: str) -> DualEncoder:
    from ..dual_encoder import DualEncoder
    from ..hub_towers import HubModel

    config = model.config
    dims = _dims(config, folder)
    tokenizer = hub_tokenizers.load(folder, dims.family, dims.context_length)
    grid = int(spec.preprocess["size"].partition("x")[0]) // dims.patch if dims.family == "siglip2" else 0
    towers = HubModel(model, dims.family, tokenizer.pad, grid)
    return DualEncoder(spec, towers, tokenizer, preprocess.transform(spec.preprocess), device)


def _config(folder: Path) -> Any:
    """The configuration of a model of a known family, set to attention that masks by `is_causal`."""
    from transformers import AutoConfig

    found = hub_files.read_json(folder / hub_files.CONFIG)
    family = str(found.get("model_type", ""))
    if family not in FAMILIES:
        raise InputError(
            f"{folder / hub_files.CONFIG} is of kind '{family}', which has no adapter",
            f"Known: {', '.join(FAMILIES)}. Others: open_clip:MODEL, or add one to pipeline/hub_towers.py.",
        )
    try:
        with quietly():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers checks each field in its own way
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{folder / hub_files.CONFIG} is no configuration: {reason}", _SAVE) from None
    config._attn_implementation = "sdpa"
    return config


def _dims(config: Any, folder: Path) -> _Dims:
    vision, text = config.vision_config, config.text_config
    family = str(config.model_type)
    clip = family in ("clip", "metaclip_2")
    size = 0 if family == "siglip2" else vision.image_size
    pooled = (config.projection_dim,) * 2 if clip else (vision.hidden_size, text.projection_size)
    odd = not isinstance(size, int) or not isinstance(vision.patch_size, int) or vision.num_channels != 3
    if odd or pooled[0] != pooled[1] or not (clip or getattr(vision, "vision_use_head", True)):
        what = "has towers that are not square, not of three colours, or not pooled to one width"
        raise InputError(f"{folder / hub_files.CONFIG} {what}", "Choose a dual encoder for images and texts.")
    return _Dims(
        family=family,
        size=size,
        patch=vision.patch_size,
        prefix=int(clip),
        image_dim=vision.hidden_size,
        text_dim=text.hidden_size,
        pooled_dim=pooled[0],
        context_length=text.max_position_embeddings,
        blocks=min(vision.num_hidden_layers, text.num_hidden_layers),
    )


def _activations(config: Any) -> str:
    both = (config.vision_config.hidden_act, config.text_config.hidden_act)
    return both[0] if both[0] == both[1] else ", ".join(both)


def _class(family: str) -> Any:
    import transformers

    return getattr(transformers, FAMILIES[family])


def _with_weights(folder: Path, config: Any) -> Any:
    """The model with its weights, float32. Raises `InputError` unless every parameter is in the files."""
    import torch

    files = hub_files.weight_files(folder)
    safe = files[0].suffix == ".safetensors"
    for file in files:
        checkpoints.shapes(file)  # raises for a damaged file, or one that holds more than tensors
    try:
        with quietly():
            model, report = _class(config.model_type).from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=safe,
                weights_only=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # whatever strange weights make transformers raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{files[0]} does not fit {folder / hub_files.CONFIG}: {reason}", _SAVE) from None
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        # Files of before transformers 4.31 also hold the positions' numbers.
        names = sorted(name for name in map(str, report[kind]) if not name.endswith("position_ids"))
        if names:
            what = f"{len(names)} {kind.replace('_', ' ')}, as {names[0][:120]}"
            raise InputError(f"{files[0]} does not fit {folder / hub_files.CONFIG}: {what}", _SAVE)
    return model
