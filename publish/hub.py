"""Runs and stores as repositories of the Hugging Face hub, and runs of the hub as runs.

A push is one commit: what cannot be sent whole is not seen. Weights and shards go up first, and those that are there
already are not sent again, so that an interrupted push goes on where it was. The token is the environment's (HF_TOKEN)
or that of `hf auth login`; it is never printed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, RemoteError, UsageError
from ..hub import is_offline
from . import cards
from .bundle import WEIGHTS, Bundle

LOGIN = "Set HF_TOKEN to a token that may write, or log in: hf auth login"
AGAIN = "Run the same command again: what arrived is not sent again."
CARD = "README.md"


@dataclass(frozen=True)
class Pushed:
    """A push: where it is, and what it sent; `card` is False where the repository's own card was kept."""

    url: str
    commit: str
    kind: str
    files: int
    bytes: int
    card: bool


def check_repository(name: str) -> str:
    """`ORG/NAME`. Raises `UsageError` for what the hub does not take as one."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"'{name}' is no repository: {_line(error)}", "Give ORG/NAME.") from None
    if name.count("/") != 1:
        raise UsageError(f"'{name}' names no owner", "Give ORG/NAME.")
    return name


def check_shareable(facts: cards.Facts, licence: str, allowed: bool) -> None:
    """Raises `UsageError` without a licence, and for features of data that may not simply be passed on."""
    told = "; ".join(f"{name}: {said}" for name, said in facts.data.items())
    if not licence:
        raise UsageError("under which licence is not said", f"Add --licence, such as apache-2.0 or cc-by-4.0 ({told}).")
    if facts.restricted and not allowed:
        told = "; ".join(f"{name}: {said}" for name, said in facts.restricted.items())
        raise UsageError(
            f"what this was made of may not simply be passed on ({told})",
            "If you have the right to publish it, add --i-may.",
        )


def push(
    bundle: Bundle, card: str, repository: str, private: bool = False, revision: str = "", message: str = ""
) -> Pushed:
    """Create the repository where it is not there, and commit all files at once.

    Raises `RemoteError` if the hub refuses or does not answer; nothing of the push is then to be seen.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    _online()
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="compal")
    branch = revision or None
    with _answers(repository):
        api.create_repo(repository, repo_type=bundle.kind, private=private or None, exist_ok=True)
        if branch:
            api.create_branch(repository, branch=branch, repo_type=bundle.kind, exist_ok=True)
        own = _own_card(api, repository, bundle.kind, branch)
        files: dict[str, Path | bytes] = {**bundle.files, **({} if own else {CARD: card.encode()})}
        operations = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        said = message or f"{bundle.name}, by compal"
        done = api.create_commit(repository, operations, commit_message=said, repo_type=bundle.kind, revision=branch)
    size = sum(bundle.sizes().values()) + (0 if own else len(card.encode()))
    return Pushed(str(done.repo_url), done.oid, bundle.kind, len(files), size, not own)


def _own_card(api: Any, repository: str, kind: str, branch: str | None) -> bool:
    """Whether the repository has a card that its owner wrote: it stays."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        path = api.hf_hub_download(repository, CARD, repo_type=kind, revision=branch, force_download=True)
    except EntryNotFoundError:
        return False
    return cards.MARK not in Path(path).read_text(encoding="utf-8")


def fetch(name: str) -> Path:
    """The folder of a run on the hub, `ORG/NAME[@REVISION]`: as it was cached, else downloaded once.

    Raises `InputError` if it is no run of compal's, `RemoteError` if the hub refuses or does not answer.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    check_repository(repository)
    patterns = ["*.toml", "*.json", "*.jsonl", "checkpoints/*.safetensors", "towers/*", CARD]
    with _answers(repository):
        folder = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=patterns,
            local_files_only=is_offline(),
            endpoint=os.environ.get("HF_ENDPOINT") or None,
        )
    if not (Path(folder) / WEIGHTS).is_file():
        raise InputError(
            f"hf:{repository} is no run of compal: it has no {WEIGHTS}", "Name one: compal push-hub makes it."
        )
    return Path(folder)


def _online() -> None:
    if is_offline():
        raise RemoteError("the hub may not be asked: HF_HUB_OFFLINE is set", "Unset it, or add --dry-run.")


@contextlib.contextmanager
def _answers(repository: str) -> Iterator[None]:
    """The hub's refusals and the network's as one line each."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        yield
    except LocalEntryNotFoundError as error:
        raise RemoteError(f"{repository} is not cached and the hub cannot be reached: {_line(error)}", LOGIN) from None
    except RepositoryNotFoundError:
        raise RemoteError(f"{repository} is not there, or not for you to see", LOGIN) from None
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", 0)
        cure = LOGIN if code in (401, 403) else AGAIN
        raise RemoteError(f"the hub refused {repository} ({code}): {_line(error)}", cure) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise RemoteError(f"the hub does not answer for {repository}: {_line(error)}", AGAIN) from None
    except Exception as error:
        # The hub's client goes through httpx, in whichever of its versions.
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        raise RemoteError(f"the hub does not answer for {repository}: {_line(error)}", AGAIN) from None


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
