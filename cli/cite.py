"""`compal cite`: what to cite for what was used."""

from __future__ import annotations

from . import options
from .store import find_workspace


def cite(
    names: options.Citable = None,
    fmt: options.CiteFormat = "bibtex",
    out: options.NewText = None,
    as_json: options.Json = False,
    work: options.Work = None,
) -> None:
    """Give BibTeX of the methods, encoders, data and software that a run, a row of scores, a store or a part used.

    Found from the provenance that is saved with each. What is named may be a run, a store, a folder or label of scores,
    a checkpoint, a recipe, benchmark, dataset, backbone, head or loss; without a name, all that the workspace scored.
    Goes to stdout, or to --out, a new file.

    Example: compal cite tflocal

    Example: compal cite sugarcrepe siglip2 --format text
    """
    from ..errors import InputError
    from ..publish.cite import cited, render
    from ..workspace import write_atomically

    text = render(cited(names or (), find_workspace(work)), "json" if as_json else fmt)
    if out is None:
        print(text, end="")
        return
    if out.exists():
        raise InputError(f"{out} exists", "Name another file, or remove this one.")
    write_atomically(out, text)
    print(out)
