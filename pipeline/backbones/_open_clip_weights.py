"""Which weights an open_clip name means, where they lie, and whether they were trained as this model."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import open_clip

from ...errors import InputError, UnknownName
from ...hub import is_offline
from ...hub import reachable as _reachable
from .. import checkpoints

QUICK = "-quickgelu"


class Choice(NamedTuple):
    """kind: "random" (value: the seed), "tag" (a name open_clip knows) or "file" (a path)."""

    model: str
    kind: str
    value: str

    @property
    def name(self) -> str:
        """What `--backbone` takes, defaults spelled out."""
        return f"open_clip:{self.model}/{'random:' if self.kind == 'random' else ''}{self.value}"


def parse(argument: str) -> Choice:
    """`MODEL[/TAG | /PATH | /random[:SEED]]`. Raises `UnknownName` for a model or tag that does not exist."""
    model, _, weights = argument.partition("/")
    if not model:
        raise InputError("open_clip needs a model", "Example: open_clip:ViT-B-32-quickgelu/openai")
    if model not in open_clip.list_models():
        raise _unknown("open_clip model", model, open_clip.list_models(), "open_clip.list_models() lists all.")
    if weights in ("", "random") or weights.startswith("random:"):
        seed = weights.partition(":")[2] or "0"
        if not (seed.isascii() and seed.isdecimal() and int(seed) < 2**63):
            raise InputError(f"seed '{seed}' is no whole number", f"Example: open_clip:{model}/random:1")
        return Choice(model, "random", str(int(seed)))
    tag = weights.lower().replace("-", "_")
    if tag in _tags(model) or tag in _tags(_twin(model)):
        return Choice(model, "tag", tag)
    if "/" in weights or Path(weights).suffix in checkpoints.SUFFIXES or os.path.exists(weights):
        return Choice(model, "file", weights)
    cure = f"A checkpoint: open_clip:{model}//path/to/model.safetensors. Random weights: open_clip:{model}."
    raise _unknown(f"weights of {model}", weights, _tags(model), cure)


def _unknown(kind: str, name: str, known: Iterable[str], cure: str) -> UnknownName:
    """As `UnknownName.among`, but the eight nearest: all (140 models, 19 tags) would fill the screen."""
    folded = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), folded, n=8, cutoff=0.0)
    return UnknownName.among(kind, name, [folded[candidate] for candidate in near], cure)


def _tags(model: str) -> dict[str, dict[str, Any]]:
    tags = open_clip.list_pretrained_tags_by_model(model)
    return {tag: open_clip.get_pretrained_cfg(model, tag) for tag in tags}


def _twin(model: str) -> str:
    """The same architecture with the other activation."""
    return model.removesuffix(QUICK) if model.endswith(QUICK) else model + QUICK


def preprocessing(choice: Choice) -> dict[str, Any]:
    """open_clip's preprocessing keys for these weights: the tag's; for a file those in the configuration
    beside it; else what all tags of the model share; {} (open_clip's defaults) where they differ."""
    if choice.kind == "tag":
        return _tags(choice.model)[choice.value]
    if choice.kind == "file":
        beside = checkpoints.configuration(_file(choice)).get("preprocess_cfg")
        if isinstance(beside, dict):
            return beside
    keys = ("mean", "std", "interpolation", "resize_mode")
    stated = [{key: tag[key] for key in keys} for tag in _tags(choice.model).values()]
    return stated[0] if stated and all(tag == stated[0] for tag in stated) else {}


def check_activation(choice: Choice) -> dict[str, str]:
    """Whether the model has the activation its weights were trained with, as far as the weights can tell.

    Returns `quick_gelu` and `quick_gelu_known_by` for the spec. Raises `InputError` naming the right model:
    evaluated with the other activation, published CLIP fine-tunes lose up to 12 points of ImageNet accuracy
    and say nothing.
    """
    quick = bool(open_clip.get_model_config(choice.model).get("quick_gelu", False))
    trained, source = _trained_with(choice)
    if trained is not None and trained != quick:
        name = {True: "QuickGELU", False: "GELU"}
        twin = _twin(choice.model)
        right = f"Use open_clip:{twin}/{choice.value}" if twin in open_clip.list_models() else f"No model {twin} exists"
        raise InputError(
            f"weights '{choice.value}' were trained with {name[trained]} (by their {source}), "
            f"{choice.model} has {name[quick]}",
            f"{right}.",
        )
    return {"quick_gelu": str(quick).lower(), "quick_gelu_known_by": source}


def _trained_with(choice: Choice) -> tuple[bool | None, str]:
    """Whether the weights were trained with QuickGELU (None: they do not say), and what says so."""
    if choice.kind == "random":
        return None, "model name"
    if choice.kind == "tag":
        twin = _twin(choice.model)
        found = _tags(choice.model).get(choice.value) or _tags(twin)[choice.value]
        if "quick_gelu" not in found and twin not in open_clip.list_models():
            # roberta-ViT-B-32 has QuickGELU and its tag does not say so; there is nothing else it can be.
            return None, "model configuration, its only one"
        return bool(found.get("quick_gelu", False)), "tag"
    path = _file(choice)
    beside = checkpoints.configuration(path).get("model_cfg")
    if isinstance(beside, dict):
        return bool(beside.get("quick_gelu", False)), "open_clip_config.json"
    header = checkpoints.metadata(path).get("quick_gelu", "").lower()
    if header in ("true", "false"):
        return header == "true", "file's metadata"
    name = path.stem.lower().replace("-", "_")
    if "quickgelu" in name or "quick_gelu" in name:
        return True, "file's name"
    tags = {**_tags(choice.model), **_tags(_twin(choice.model))}
    named = max((tag for tag in tags if tag in name), key=len, default="")
    if named:
        return bool(tags[named].get("quick_gelu", False)), "file's name"
    return None, "model name alone; the checkpoint does not say"


def check_vocabulary(choice: Choice) -> None:
    """Raises `InputError` if a local checkpoint has another vocabulary (naming what fits), context or grid.

    open_clip itself would interpolate position embeddings in silence.
    """
    if choice.kind != "file":
        return
    path, config = _file(choice), open_clip.get_model_config(choice.model)
    found = checkpoints.shapes(path)

    def shape(*names: str) -> tuple[int, ...] | None:
        return next((found[name] for name in names if name in found), None)

    embedding = shape("token_embedding.weight", "text.token_embedding.weight")
    wanted = _text_shape(config)
    if embedding and wanted and embedding != wanted[:2]:
        fitting = [
            name for name in open_clip.list_models() if _text_shape(open_clip.get_model_config(name))[:2] == embedding
        ]
        raise InputError(
            f"{path} has {embedding[0]} token embeddings of width {embedding[1]}, "
            f"the tokenizer and text tower of {choice.model} have {wanted[0]} of width {wanted[1]}",
            f"Use {_some(fitting)}." if fitting else "Name the model it was trained as.",
        )
    positions = shape("positional_embedding", "text.positional_embedding")
    if positions and wanted and positions[0] != wanted[2]:
        raise InputError(
            f"{path} has a context of {positions[0]} tokens, {choice.model} of {wanted[2]}",
            "Name the model it was trained as.",
        )
    vision = config["vision_cfg"]
    patches = shape("visual.positional_embedding")
    if patches and "patch_size" in vision:
        side = int(vision.get("image_size", 224)) // int(vision["patch_size"])
        if patches[0] != side * side + 1:
            raise InputError(
                f"{path} has {patches[0] - 1} patch positions, {choice.model} {side * side}",
                "Name the model of the resolution it was trained at.",
            )


def _text_shape(config: dict[str, Any]) -> tuple[int, ...]:
    """(vocabulary, width, positions) of a native text tower; () for Hugging Face ones."""
    text = config["text_cfg"]
    if "hf_model_name" in text:
        return ()
    cls = int(bool(text.get("embed_cls", False)))
    return text.get("vocab_size", 49408), text.get("width", 512), text.get("context_length", 77) + cls


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" or one of {len(names) - 3} more" if len(names) > 3 else "")


def _file(choice: Choice) -> Path:
    path = Path(choice.value).expanduser()
    if not path.is_file() and Path("/", path).is_file():
        cure = f"An absolute path needs two slashes: open_clip:{choice.model}//{path}"
        raise InputError(f"no weights file {path}", cure)
    checkpoints.check_path(path)
    return path


def path_of(choice: Choice) -> Path | None:
    """The file of the weights, downloaded if need be; None for random ones. Raises `InputError`."""
    if choice.kind == "random":
        return None
    if choice.kind == "file":
        return _file(choice)
    config = _tags(choice.model)[choice.value]
    return _local_copy(config) or _download(choice, config)


def _local_copy(config: dict[str, Any]) -> Path | None:
    """The weights of a tag if this machine has them. Without a network the hub retries for 45 s."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    if "file" in config:  # a tag that points to a local file, which open_clip allows too
        return Path(config["file"])
    repository, filename = os.path.split(config.get("hf_hub", ""))
    if not repository:
        found = Path.home() / ".cache" / "clip" / os.path.basename(config["url"])
        return found if found.is_file() else None
    safe = os.path.splitext(filename)[0] + ".safetensors"
    for name in (safe, filename) if filename else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME):
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    return None


def _download(choice: Choice, config: dict[str, Any]) -> Path:
    from huggingface_hub import constants

    source = config.get("hf_hub", "").strip("/") or config["url"]
    host = urlsplit(constants.ENDPOINT if config.get("hf_hub") else config["url"]).hostname or ""
    cure = (
        f"Run once with a network, set HF_HOME to a cache that holds {source}, "
        f"or give a file: open_clip:{choice.model}//path/to/model.safetensors"
    )
    offline = is_offline()
    if offline or not _reachable(host):
        reason = "HF_HUB_OFFLINE is set" if offline else f"{host} cannot be reached"
        raise InputError(f"weights '{choice.value}' of {choice.model} are not on this machine and {reason}", cure)
    try:
        return Path(open_clip.download_pretrained(config))
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # hub errors are OSErrors, a wrong checksum a RuntimeError
        reason = str(error).strip().split("\n", 1)[0][:160]
        raise InputError(f"weights '{choice.value}' of {choice.model} cannot be downloaded: {reason}", cure) from None
