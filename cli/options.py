"""The options of the command line, each once: help, default and unit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from . import completing


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


def _option(panel: str, help_text: str, *names: str, **more: object) -> object:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **more)  # type: ignore[arg-type, call-overload]


WHAT, OUTPUT, MACHINE = "What", "Output", "Machine"

Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]
Quiet = Annotated[bool, _option(OUTPUT, "Only errors and the result: no progress, no hints.", "--quiet", "-q")]
Verbose = Annotated[bool, _option(OUTPUT, "Say also what is decided and why, and how long it took.", "--verbose", "-v")]
Json = Annotated[bool, _option(OUTPUT, "Print one JSON document instead of text.", "--json")]
Work = Annotated[
    Path | None,
    typer.Option("--work", help="Workspace folder.", show_default="compal.toml, $COMPAL_HOME, ./compal-work"),
]

Backbone = Annotated[
    str,
    typer.Option(
        "--backbone",
        "-b",
        help="Frozen encoder; see `compal ls backbones`.",
        show_default="last used",
        autocompletion=completing.backbones,
    ),
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        help="Dataset NAME[:ROOT], or a table or folder by path.",
        show_default="last used",
        autocompletion=completing.datasets,
    ),
]
Splits = Annotated[
    list[str] | None,
    _option(WHAT, "Split; repeat for several.", "--split", show_default="what fitting needs"),
]
Benchmark = Annotated[
    str, _option(WHAT, "Extract a benchmark's images and captions instead.", autocompletion=completing.benchmarks)
]
Root = Annotated[Path | None, _option(WHAT, "The benchmark's files.")]
Images = Annotated[Path | None, _option(WHAT, "The benchmark's photographs, if not below --root.")]
AllowMissing = Annotated[bool, _option(WHAT, "Leave out and list items without a photograph.", "--allow-missing")]
Level = Annotated[
    str, _option(WHAT, "Where the ladder is cut: pooled, tokens or regions.", autocompletion=completing.levels)
]
Cut = Annotated[
    str,
    _option(
        WHAT,
        "Where the ladder is cut: tokens, pooled, block:-K, pixels.",
        "--level",
        show_default="recipe's",
        autocompletion=completing.levels,
    ),
]
Levels = Annotated[
    list[str] | None,
    _option(
        WHAT, "pooled, tokens, block:-K, pixels, regions[:grid]; several by comma, or repeat.", "--level",
        show_default="tokens", autocompletion=completing.levels,
    ),
]  # fmt: skip
Segments = Annotated[
    str,
    _option(
        WHAT,
        "Segmenter of captions without segments; see `compal ls segmenters`.",
        show_default="dataset",
        autocompletion=completing.segmenters,
    ),
]
Negatives = Annotated[
    list[str] | None,
    _option(
        WHAT, "Table of `compal negatives`, a file or a name, to extract and pair too; repeat for several.",
        "--negatives",
    ),
]  # fmt: skip
Phrases = Annotated[bool, _option(WHAT, "Extract the captions' noun phrases too, as captions.", "--phrases")]
Dtype = Annotated[str, _option(WHAT, "On disk: float16, bfloat16 or float32.", autocompletion=completing.dtypes)]
Limit = Annotated[int | None, _option(WHAT, "Take only the first so many.", min=1)]

Recipe = Annotated[
    str,
    typer.Argument(
        help="Recipe or set-up (`compal ls recipes`, `setups`), or a TOML file.", autocompletion=completing.recipes
    ),
]
Settings = Annotated[
    list[str] | None, _option(WHAT, "Override a setting; repeat for several.", "--set", metavar="KEY=VALUE")
]
Name = Annotated[str, _option(WHAT, "Name of the run's folder.", show_default="recipe and a hash")]
Log = Annotated[
    list[str] | None,
    _option(
        OUTPUT,
        "Log there too: wandb, tensorboard (always on); several by comma.",
        "--log",
        show_default="none",
        autocompletion=completing.loggers,
    ),
]
Resume = Annotated[bool, _option(WHAT, "Go on with a run that was stopped.", "--resume")]

Judge = Annotated[
    str,
    typer.Argument(
        help="Benchmark; see `compal eval --list`.", show_default="none", autocompletion=completing.benchmarks
    ),
]
Runs = Annotated[
    list[str] | None,
    _option(WHAT, "Run id, checkpoint, or shipped:NAME; repeat for several.", "--run", autocompletion=completing.runs),
]
Heads = Annotated[
    list[str] | None,
    _option(WHAT, "Training-free head: cosine, maxsim; repeat.", "--head", autocompletion=completing.heads),
]
Part = Annotated[str | None, _option(WHAT, "One split or subset of it.")]
Variant = Annotated[
    str | None, _option(WHAT, "Known erratum or rival form to read instead of the corrected default.", "--variant")
]
ExtractFirst = Annotated[bool, _option(WHAT, "Extract first what the cache lacks.", "--extract")]
ByCategory = Annotated[bool, _option(OUTPUT, "A column per category.", "--by-category")]
Format = Annotated[str, _option(OUTPUT, "table, md, csv, latex or json.", "--format")]
TableFormat = Annotated[str, _option(OUTPUT, "table, md, csv, latex, json or html.", "--format")]
Seed = Annotated[int, _option(OUTPUT, "Of the random row and the bootstrap.")]
ScoresPath = Annotated[
    list[str] | None,
    typer.Argument(help="Folders of scores, or labels of rows to keep.", show_default="WORKSPACE/scores"),
]
Ties = Annotated[
    str, _option(OUTPUT, "What a tie is worth: lose (strict), half (tossed) or win.", "--ties", metavar="lose|half|win")
]
AgainstRow = Annotated[
    str, _option(OUTPUT, "Compare with the row of this label: paired differences and p.", "--compare", metavar="ROW")
]
OfMetric = Annotated[str, _option(OUTPUT, "Metric to compare.", "--metric", show_default="each benchmark's headline")]
OverSeeds = Annotated[bool, _option(OUTPUT, "One row for all seeds of a recipe: mean and deviation.", "--seeds")]
Present = Annotated[bool, _option(WHAT, "List the benchmarks: what is here, and how to get the rest.", "--list")]
ReportFile = Annotated[Path | None, _option(OUTPUT, "File of --format html.", "--out", show_default="none")]
Drop = Annotated[list[str] | None, _option(OUTPUT, "Row to leave out; repeat for several.")]

ImagesOf = Annotated[
    list[str] | None,
    _option(
        WHAT, "A benchmark's photographs, if not below its root; repeat.", "--images", metavar="BENCHMARK=FOLDER",
    ),
]  # fmt: skip
ReRank = Annotated[
    str,
    _option(
        WHAT, "Retrieval: score only so many candidates of every query; several for the curve of cost and recall.",
        "--rerank", metavar="K[:K...]", show_default="none, all are scored",
    ),
]  # fmt: skip
CandidatesOf = Annotated[
    str, _option(WHAT, "What finds them: cosine, or a run of a head of one vector a side.", "--candidates")
]
SearchIndex = Annotated[str, _option(WHAT, "flat (exact), or ivf or hnsw of faiss.", "--index")]

Device = Annotated[str, _option(MACHINE, "torch device: cpu, cuda, cuda:1, mps.")]
Devices = Annotated[
    str,
    _option(
        MACHINE, "torch device: cpu, cuda, cuda:1, mps; auto is cpu, with torchrun or ray the GPUs if any.", "--device"
    ),
]
BatchSize = Annotated[
    str, _option(MACHINE, "Images or captions per forward pass: auto finds it by a short probe.", metavar="auto|N")
]
Workers = Annotated[
    int | None, _option(MACHINE, "Decoding threads.", min=1, show_default="2, or all cores beside a GPU")
]
Resident = Annotated[
    str,
    _option(
        MACHINE,
        "Where features stay while fitting: disk, ram, gpu, or auto, as fits.",
        metavar="disk|ram|gpu|auto",
        show_default="the recipe's, usually auto",
    ),
]
Ranks = Annotated[
    int, _option(MACHINE, "Processes on this machine that share every batch, on CUDA a GPU each.", "--devices", min=1)
]
Nodes = Annotated[int, _option(MACHINE, "Machines, each with so many processes.", "--nodes", min=1)]
Deterministic = Annotated[
    bool, _option(MACHINE, "Only operators that give the same bits each time.", "--deterministic")
]
Precision = Annotated[str, _option(WHAT, "Of the forward pass: float32, bfloat16 or float16 (autocast).")]
Jpeg = Annotated[str, _option(WHAT, "exact, or reduced: large JPEGs are decoded at a fraction of their scale.")]
Compile = Annotated[bool, _option(MACHINE, "Send the towers through torch.compile.", "--compile")]
Engine = Annotated[
    str, _option(MACHINE, "Who does the work; see `compal ls engines`.", autocompletion=completing.engines)
]
Processes = Annotated[int, _option(MACHINE, "How many processes the engine starts.", min=0, show_default="its choice")]
Through = Annotated[
    str,
    _option(
        MACHINE, "Remote for the parts of --engine ray where machines share no disk.", autocompletion=completing.remotes
    ),
]
PatienceSeconds = Annotated[float, _option(MACHINE, "Seconds that a network share may be gone.", "--patience", min=0.0)]
Retry = Annotated[bool, _option(WHAT, "Try items of the quarantine again.", "--retry")]
Dry = Annotated[bool, _option(OUTPUT, "Say what would be done, and its cost.", "--dry-run")]
FitDry = Annotated[bool, _option(OUTPUT, "Say what would be done, and what is missing for it.", "--dry-run")]
SheetFormat = Annotated[str, _option(OUTPUT, "table, md, csv or json.", "--format")]
DryRun = Annotated[bool, _option(OUTPUT, "Say what would be done, in parts, rows, bytes and time.", "--dry-run")]

Kind = Annotated[
    str,
    typer.Argument(
        help="backbones, datasets, heads, losses, recipes, benchmarks, stores or runs; all if none.",
        autocompletion=completing.kinds,
    ),
]
StoreName = Annotated[
    str, typer.Argument(help="Path, or the beginning of a name in the workspace.", autocompletion=completing.stores)
]
Deep = Annotated[bool, typer.Option(help="Also checksum every sample and check every value.")]

FirstStore = Annotated[
    str, typer.Argument(help="Path, or the beginning of a name in the workspace.", autocompletion=completing.stores)
]
OtherStore = Annotated[str, typer.Argument(help="The store to compare with.", autocompletion=completing.stores)]
Atol = Annotated[float, _option(WHAT, "Values may differ by so much.", min=0.0)]
Rtol = Annotated[float, _option(WHAT, "…, and by this share of the other's magnitude.", min=0.0)]
Version_ = Annotated[int, typer.Argument(help="Number of the version, see `compal store log`.", min=1)]
PartSize = Annotated[int, _option(WHAT, "Size a part aims at, MiB.", min=1)]
Days = Annotated[float, _option(WHAT, "Keep what a version of the last so many days lists.", min=0.0)]
Sources = Annotated[
    list[str], typer.Argument(help="Stores, by path or by the beginning of a name.", autocompletion=completing.stores)
]
Into = Annotated[Path, _option(OUTPUT, "Folder of the store to write.", "--into")]
NewFolder = Annotated[Path | None, _option(OUTPUT, "Folder to write.", "--into", show_default="beside the store")]
CastTo = Annotated[str, _option(WHAT, "bfloat16, float16, float32 or int8.")]
NewFile = Annotated[Path, typer.Argument(help="File or folder to write; it must not exist.")]
ExistingFile = Annotated[Path, typer.Argument(help="File or folder to read.")]
StoreFormat = Annotated[
    str,
    _option(WHAT, "See `compal ls formats`.", "--format", show_default="by suffix", autocompletion=completing.formats),
]
Mapping = Annotated[
    list[str] | None,
    _option(
        WHAT, "Which dataset of the file holds keys, pooled, tokens, captions; repeat.", "--map", metavar="WHAT=NAME"
    ),
]

RemoteName = Annotated[
    str,
    _option(
        WHAT,
        "Remote of compal.toml, or a URL.",
        "--remote",
        show_default="the only one",
        autocompletion=completing.remotes,
    ),
]
RemoteStore = Annotated[str, typer.Argument(help="Beginning of its name on the remote.", show_default="the only one")]
OnlyData = Annotated[
    str,
    _option(WHAT, "Only the parts that this dataset needs, NAME[:ROOT].", "--data", autocompletion=completing.datasets),
]
TrustVersion = Annotated[int | None, _option(WHAT, "Version to pin.", "--version", show_default="newest", min=1)]
Forget = Annotated[bool, _option(WHAT, "Remove the pin.", "--forget")]
NoRemote = Annotated[bool, _option(MACHINE, "Do not ask the remotes before computing.", "--no-remote")]
OnRemotes = Annotated[bool, typer.Option("--remote", help="List the stores on the remotes of compal.toml.")]
AskRemotes = Annotated[bool, typer.Option("--remotes", help="Ask the remotes of compal.toml whether they answer.")]
StoresFolder = Annotated[Path | None, _option(OUTPUT, "Folder of stores.", "--into", show_default="WORKSPACE/stores")]

Citable = Annotated[
    list[str] | None,
    typer.Argument(
        help="Run, store, scores, checkpoint, recipe, benchmark, dataset, backbone, head or loss.",
        show_default="all that is scored",
    ),
]
CiteFormat = Annotated[str, _option(OUTPUT, "bibtex, text or json.", "--format")]
NewText = Annotated[Path | None, _option(OUTPUT, "File to write; it must not exist.", "--out", show_default="stdout")]
Publishable = Annotated[str, typer.Argument(help="Run by id or folder, or store by path or the beginning of a name.")]
Repository = Annotated[str, typer.Argument(help="Repository of the hub, ORG/NAME; created if it is not there.")]
Licence = Annotated[str, _option(WHAT, "Licence as the hub names it: apache-2.0, cc-by-4.0, …", "--licence")]
Private = Annotated[bool, _option(WHAT, "Create it private.", "--private")]
Branch = Annotated[str, _option(WHAT, "Branch to commit to.", "--revision", show_default="main")]
CommitMessage = Annotated[str, _option(WHAT, "Message of the commit.", "--message", "-m", show_default="its name")]
IMay = Annotated[bool, _option(WHAT, "I may publish what data of a restrictive licence went into.", "--i-may")]
