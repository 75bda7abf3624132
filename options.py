"""The options of the command line, each once: help, default and unit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import __version__


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


def _option(panel: str, help_text: str, *names: str, **more: object) -> object:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **more)  # type: ignore[arg-type, call-overload]


WHAT, OUTPUT, MACHINE = "What", "Output", "Machine"

Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]
Json = Annotated[bool, _option(OUTPUT, "Print one JSON document instead of text.", "--json")]
Work = Annotated[
    Path | None,
    typer.Option("--work", help="Workspace folder.", show_default="compal.toml, $COMPAL_HOME, ./compal-work"),
]

Backbone = Annotated[
    str,
    typer.Option("--backbone", "-b", help="Frozen encoder; see `compal ls backbones`.", show_default="last used"),
]
Data = Annotated[
    str,
    typer.Option("--data", "-d", help="Dataset NAME[:ROOT], or a table or folder by path.", show_default="last used"),
]
Splits = Annotated[
    list[str] | None,
    _option(WHAT, "Split; repeat for several.", "--split", show_default="what fitting needs"),
]
Benchmark = Annotated[str, _option(WHAT, "Extract a benchmark's images and captions instead.")]
Root = Annotated[Path | None, _option(WHAT, "The benchmark's files.")]
Images = Annotated[Path | None, _option(WHAT, "The benchmark's photographs, if not below --root.")]
AllowMissing = Annotated[bool, _option(WHAT, "Leave out and list items without a photograph.", "--allow-missing")]
Level = Annotated[str, _option(WHAT, "Where the ladder is cut: pooled, tokens or regions.")]
Dtype = Annotated[str, _option(WHAT, "On disk: float16 or float32.")]
Limit = Annotated[int | None, _option(WHAT, "Take only the first so many.", min=1)]

Recipe = Annotated[str, typer.Argument(help="Recipe name (`compal ls recipes`) or a TOML file.")]
Settings = Annotated[
    list[str] | None, _option(WHAT, "Override a setting; repeat for several.", "--set", metavar="KEY=VALUE")
]
Name = Annotated[str, _option(WHAT, "Name of the run's folder.", show_default="recipe and a hash")]
Resume = Annotated[bool, _option(WHAT, "Go on with a run that was stopped.", "--resume")]

Judge = Annotated[str, typer.Argument(help="Benchmark; see `compal ls benchmarks`.")]
Runs = Annotated[list[str] | None, _option(WHAT, "Run id, checkpoint, or shipped:NAME; repeat for several.", "--run")]
Heads = Annotated[list[str] | None, _option(WHAT, "Training-free head: cosine, maxsim; repeat.", "--head")]
Part = Annotated[str | None, _option(WHAT, "One split or subset of it.")]
ExtractFirst = Annotated[bool, _option(WHAT, "Extract first what the cache lacks.", "--extract")]
ByCategory = Annotated[bool, _option(OUTPUT, "A column per category.", "--by-category")]
Format = Annotated[str, _option(OUTPUT, "table, md, csv, latex or json.", "--format")]
Seed = Annotated[int, _option(OUTPUT, "Of the random row and the bootstrap.")]
ScoresPath = Annotated[Path | None, typer.Argument(help="Folder of scores.", show_default="WORKSPACE/scores")]
Drop = Annotated[list[str] | None, _option(OUTPUT, "Row to leave out; repeat for several.")]

Device = Annotated[str, _option(MACHINE, "torch device: cpu, cuda, cuda:1, mps.")]
BatchSize = Annotated[int, _option(MACHINE, "Images or captions per forward pass.", min=1)]
Workers = Annotated[int, _option(MACHINE, "Decoding threads.", min=1)]
DryRun = Annotated[bool, _option(OUTPUT, "Say what would be done, in rows and bytes.", "--dry-run")]

Kind = Annotated[
    str, typer.Argument(help="backbones, datasets, heads, losses, recipes, benchmarks, stores or runs; all if none.")
]
StoreName = Annotated[str, typer.Argument(help="Path, or the beginning of a name in the workspace.")]
Deep = Annotated[bool, typer.Option(help="Also checksum every sample and check every value.")]
