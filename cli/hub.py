"""`compal push-hub`: a run or a store as a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, UnknownName
from . import options
from .store import find_workspace, store_path

if TYPE_CHECKING:
    from ..publish.bundle import Bundle
    from ..publish.cards import Facts
    from ..workspace import Workspace


def push_hub(
    what: options.Publishable,
    repository: options.Repository,
    licence: options.Licence = "",
    private: options.Private = False,
    revision: options.Branch = "",
    message: options.CommitMessage = "",
    may: options.IMay = False,
    dry_run: options.Dry = False,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Publish a fitted head (or the towers a run tuned) or a store on the Hugging Face hub, with a card from the run.

    A head comes with its whole configuration, its provenance without places of this machine, and the scores saved of
    it; a store in the layout that `compal store pull --remote hf://datasets/ORG/NAME` reads. One commit: all or
    nothing. A card that the repository's owner wrote stays. The token is that of HF_TOKEN or `hf auth login`.

    Example: compal push-hub tflocal-1a2b3c4d ORG/tflocal-shapes --licence apache-2.0 --dry-run

    Example: compal push-hub shapes-vit ORG/shapes-features --licence apache-2.0 --private
    """
    from ..console import publishing
    from ..publish import cards, hub

    workspace = find_workspace(work)
    hub.check_repository(repository)
    bundle, facts = _bundle(what, repository, licence, workspace, work)
    if not dry_run:
        hub.check_shareable(facts, licence, may)
    card = cards.card(facts, bundle, workspace)
    if dry_run:
        publishing.show_plan(bundle, card, repository, facts.restricted, as_json)
        return
    publishing.show_pushed(hub.push(bundle, card, repository, private, revision, message), as_json)


def _bundle(what: str, repository: str, licence: str, workspace: Workspace, work: Path | None) -> tuple[Bundle, Facts]:
    """The files of a run or of a store, and what its card is written from. Raises `UnknownName`."""
    from ..publish import bundle, cards

    said = licence or "other"
    for folder in (workspace.runs / what, Path(what)):
        if (folder / "provenance.json").is_file():
            return bundle.of_run(folder, workspace), cards.facts_of_run(folder, repository, said, workspace)
    try:
        path = store_path(what, work)
    except UnknownName:
        known = [path.name for path in (*workspace.list_runs(), *workspace.list_stores())]
        raise UnknownName.among("run or store", what, known, "Make one: compal fit, compal extract") from None
    if not (path / "spec.json").is_file():
        raise InputError(f"{path} is neither a run nor a store", "Name one: compal ls runs, compal ls stores")
    return bundle.of_store(path), cards.facts_of_store(path, repository, said)
