"""The files of a model on the Hugging Face hub or in a folder: found, downloaded, hashed.

A hub model is named `org/name[@REVISION]`. What it resolves to is always a commit: that of the local cache
where the cache is whole, else what the hub says today, downloaded. A spec names the commit, so that it can be
loaded on another day.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..config import canonical
from ..errors import InputError
from ..hub import is_offline, reachable
from . import checkpoints

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]*", re.ASCII)

CONFIG = "config.json"
# transformers 5 may keep the image processor inside the processor's file.
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
TOKENIZER = (*VOCABULARIES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SAFE, SAFE_INDEX, PICKLED = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_CONVERT = (
    "Load it with transformers and save it again: model.save_pretrained(folder), tokenizer.save_pretrained(folder)."
)


class Source(NamedTuple):
    """Where a model's files lie: `name` is what to call it again, `revision` its commit, "" for a plain folder."""

    folder: Path
    name: str
    revision: str


def locate(argument: str, weights: bool = True) -> Source:
    """`org/name[@REVISION]` or a folder → its files on this machine, downloaded if need be.

    Without `weights` only the configuration, the image processor and the tokenizer are asked for. Raises
    `InputError` if the name is neither, if a file is missing, or if the hub cannot be reached.
    """
    folder = Path(argument).expanduser()
    if argument and (folder.is_dir() or argument.startswith(("/", ".", "~"))):
        absolute = Path(os.path.abspath(folder))
        lacking = _lacking(absolute, weights) if absolute.is_dir() else "is not there"
        if lacking:
            raise InputError(f"model folder {absolute} {lacking}", _CONVERT)
        return Source(absolute, str(absolute), "")
    repository, at, revision = argument.partition("@")
    revision = revision if at else "main"
    if not _REPOSITORY.fullmatch(repository) or not _REVISION.fullmatch(revision) or ".." in argument:
        cure = "Examples: hf:google/siglip2-base-patch16-naflex, hf:openai/clip-vit-base-patch32@main, hf:/data/model"
        raise InputError(f"'{argument}' is no folder and no org/name[@REVISION] of the Hugging Face hub", cure)
    found = _cached(repository, revision)
    if found is None or _lacking(found, weights):
        found = _download(repository, revision, weights)
    return Source(found, f"{repository}@{found.name}", found.name)


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights: one, or the shards that an index names. Raises `InputError`."""
    index = folder / SAFE_INDEX
    if (folder / SAFE).is_file() or not index.is_file():
        return [folder / (SAFE if (folder / SAFE).is_file() else PICKLED)]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index} is no index of weights: {error!r}", "Download or save the model again.") from None
    strange = [name for name in names if not _SHARD.fullmatch(str(name))]
    if strange or not names:
        raise InputError(f"{index} names no shards of the model: {strange[:1]}", "Download or save the model again.")
    return [folder / name for name in names]


def hash_of(files: Sequence[Path]) -> str:
    """sha256 of one file, or of the canonical JSON {name: sha256} of several. Raises `InputError`."""
    if len(files) == 1:
        return checkpoints.sha256(files[0])
    return hashlib.sha256(canonical({file.name: checkpoints.sha256(file) for file in files})).hexdigest()


def tokenizer_hash(folder: Path) -> str:
    """16 hex digits of the tokenizer's files."""
    found = {name: checkpoints.sha256(folder / name) for name in sorted(TOKENIZER) if (folder / name).is_file()}
    return hashlib.sha256(canonical(found)).hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder; {} if the file is not there. Raises `InputError`."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", "Download or save the model again.") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object", "Download or save the model again.")
    return found


def _lacking(folder: Path, weights: bool) -> str:
    """What a model's folder lacks, as the end of a sentence; "" if nothing."""
    needed: list[tuple[str, ...]] = [(CONFIG,), PROCESSORS, ("tokenizer_config.json",), VOCABULARIES]
    if weights:
        needed.append((SAFE, SAFE_INDEX, PICKLED))
    for names in needed:
        if not any((folder / name).is_file() for name in names):
            return f"has no {' or '.join(names)}"
    shards = [file.name for file in weight_files(folder) if not file.is_file()] if weights else []
    return f"has no {', '.join(shards)}" if shards else ""


def _cached(repository: str, revision: str) -> Path | None:
    """The snapshot of a revision in the local cache of the hub, asked without a network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, CONFIG, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _wanted(names: Iterable[str], weights: bool) -> list[str]:
    """Of a repository's files those that are needed: safetensors where there are any."""
    names = list(names)
    wanted = [name for name in names if name in (CONFIG, *PROCESSORS, *TOKENIZER)]
    if not weights:
        return wanted
    if SAFE in names:
        return [*wanted, SAFE]
    if SAFE_INDEX in names:
        return [*wanted, SAFE_INDEX, *(name for name in names if _SHARD.fullmatch(name))]
    return [*wanted, *(name for name in names if name == PICKLED)]


def _download(repository: str, revision: str, weights: bool) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download

    name = repository if revision == "main" else f"{repository}@{revision}"
    cure = f"Run once with a network, set HF_HOME to a cache that holds {repository}, or give a folder: hf:/path"
    check_online(f"the files of {name}", constants.ENDPOINT, cure)
    try:
        listed = HfApi().model_info(repository, revision=revision, timeout=30)
        wanted = _wanted((file.rfilename for file in listed.siblings or ()), weights)
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub's own are OSErrors, those of its HTTP client are not
        reason = str(error).strip().split("\n", 1)[0][:160] or type(error).__name__
        raise InputError(f"{name} cannot be downloaded: {reason}", cure) from None
    lacking = _lacking(folder, weights)
    if lacking:
        raise InputError(f"{name} {lacking}", "Choose a dual encoder that is published for transformers.")
    return folder


def check_online(what: str, url: str, cure: str) -> None:
    """Raises `InputError` if `what` must be downloaded from `url` and cannot be: the hub's own client would
    retry for 45 s."""
    split = urlsplit(url)
    host = split.hostname or ""
    offline = is_offline()
    if offline or not reachable(host, split.port or (80 if split.scheme == "http" else 443)):
        reason = "HF_HUB_OFFLINE is set" if offline else f"{host} cannot be reached"
        raise InputError(f"{what} are not on this machine and {reason}", cure)
