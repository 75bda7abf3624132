"""`compal init`: a commented compal.toml, with what lies in the folder proposed as data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError, UsageError
from . import options

LARGE = 1 << 28  # bytes of a table that is not looked into: it can be named
SMALL = 20  # images below which none are held out unasked: too few would be left on one side

Folders = Annotated[
    list[str] | None,
    typer.Option("--root", help="Where a dataset or benchmark lies; repeat.", metavar="NAME=FOLDER"),
]
Remotes = Annotated[
    list[str] | None, typer.Option("--remote", help="Where stores are shared; repeat.", metavar="NAME=URL")
]
Where = Annotated[str, typer.Option("--workspace", help="Of stores, runs and scores.", show_default="compal-work")]
Encoder = Annotated[
    str, typer.Option("--backbone", "-b", help="Frozen encoder to use where none is named.", show_default="shapes-vit")
]
Source = Annotated[
    str,
    typer.Option("--data", "-d", help="Dataset NAME[:ROOT], or a table or folder.", show_default="what lies here"),
]

TEMPLATE = """\
# Settings of compal for this folder and all below it. Every line that begins with # is an example or a comment.
# A path that is relative starts at this file. Secrets do not belong here: they stay in the environment.

# Folder of stores, runs, scores and reports.
{workspace}

# What commands use where --backbone, --data and --log are not given. Without a line here: what was used last.
[defaults]
# `compal ls backbones` lists them; shapes-vit and random need no download.
{backbone}
# NAME or NAME:ROOT (`compal ls datasets`), or the path of a table or folder of your own.
{data}
# Where fits are logged beside metrics.jsonl and TensorBoard, which are always there: "wandb".
{log}

# Where datasets and benchmarks lie, by their names; --data NAME and `compal eval NAME` find them here.
# A table may hold images out: "captions.jsonl?holdout=0.2" makes a fifth of them the split val.
[roots]
{roots}

# Where stores are shared: s3://, gs://, az://, sftp://, hf://, or a folder. Extraction asks them before it computes.
[remotes]
{remotes}

# Options of a remote, by its name: endpoint, region, allow_http, anonymous, …
{remote_options}
"""


def init(
    backbone: Encoder = "",
    data: Source = "",
    root: Folders = None,
    remote: Remotes = None,
    workspace: Where = "",
    as_json: options.Json = False,
) -> None:
    """Write a commented compal.toml here, and propose as data what lies in this folder.

    Looks for a table with image and caption columns, a folder of images with .txt files beside them, and COCO.
    A compal.toml that is here is not overwritten. Exit code 1 if one is, 2: usage.

    Example: compal init

    Example: compal init --backbone clip --root coco=/data/coco --remote team=s3://bucket/features
    """
    from .. import console
    from ..console import steps, terminal
    from ..pipeline.naming import dataset_name
    from ..workspace import CONFIG_FILE, OWN_DATA, Workspace

    file = Path.cwd() / CONFIG_FILE
    if file.exists():
        raise InputError(f"{file} is there already", "Edit it, or rename it and run compal init again.")
    roots, remotes = _named(root, "--root", "NAME=FOLDER"), _named(remote, "--remote", "NAME=URL")
    found, why = ("", "") if data else look(Path.cwd())
    if data and (named := dataset_name(data)).partition(":")[0] in OWN_DATA and named != data:
        found, why = named, data  # a path in [roots] is found from every folder below
    if found:
        name, _, place = found.partition(":")
        roots, data = {name: place, **roots}, name
    text = template(backbone, data, roots, remotes, workspace)
    _check(text)
    with open(file, "x", encoding="utf-8") as new:
        new.write(text)
    if as_json:
        console.print_json({"file": str(file), "backbone": backbone, "data": data, "roots": roots, "found": why})
        return
    print(file)
    terminal.say(f"found  {why}" if found else "found  no pictures with captions here: the embedded world is the data")
    terminal.say(f"work   {Workspace.find().path}")
    steps.after_init()


def template(backbone: str, data: str, roots: dict[str, str], remotes: dict[str, str], workspace: str) -> str:
    """The text of a compal.toml in which every setting stands, those that are not given as comments."""
    import tomli_w

    def line(name: str, value: object, example: object) -> str:
        return ("" if value else "# ") + tomli_w.dumps({name: value or example}).strip()

    def lines(given: dict[str, str], example: str) -> str:
        return tomli_w.dumps(given).strip() if given else f"# {example}"

    first = next(iter(remotes), "team")
    return TEMPLATE.format(
        workspace=line("workspace", workspace, "compal-work"),
        backbone=line("backbone", backbone, "shapes-vit"),
        data=line("data", data, "shapes"),
        log='# log = ["wandb"]',
        roots=lines(roots, 'coco = "/data/coco"'),
        remotes=lines(remotes, 'team = "s3://bucket/features"'),
        remote_options=f'# [remote_options.{first}]\n# endpoint = "https://storage.example.org"',
    )


def _check(text: str) -> None:
    """Refuse before anything is written what would be refused when it is read."""
    import tempfile

    from ..workspace import CONFIG_FILE, Workspace

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG_FILE).write_text(text, encoding="utf-8")
        try:
            Workspace.find(Path(folder))
        except (InputError, UsageError) as error:
            said = error.what.replace(f"{Path(folder).resolve() / CONFIG_FILE}: ", "")
            raise type(error)(said, error.cure) from None


def _named(given: list[str] | None, option: str, form: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        if not (name.strip() and sign and value.strip()):
            raise UsageError(f"{option} {text} is not {form}", f"Example: {option} {form.replace('NAME', 'coco')}")
        found[name.strip()] = value.strip()
    return found


def look(folder: Path) -> tuple[str, str]:
    """`NAME:ROOT` of the data in a folder, and what was seen of it, for people; ("", "") if there is none.

    COCO's layout first, then tables that lie here, then pictures with .txt beside them, here or one folder down.
    """
    from ..workspace import TABLES

    if any((folder / "annotations").glob("captions_*2017.json")):
        return "coco:.", "COCO: annotations/captions_*2017.json"
    for path in sorted(folder.iterdir()):
        if path.suffix in TABLES and path.stat().st_size < LARGE and (seen := _table(path)):
            return seen
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")):
        if seen := _folder(place, folder):
            return seen
    return "", ""


def _table(path: Path) -> tuple[str, str] | None:
    """A table as data, if it has columns of images and captions, and its first image is there."""
    from ..errors import CompalError
    from ..pipeline.datasets import table

    try:
        splits = table.splits(path)
        images = [item for item in table.items(path, splits[0], SMALL) if item.kind == "image"]
    except (CompalError, ValueError, OSError):
        return None
    there = [image for image in images if isinstance(image.content, Path) and image.content.is_file()]
    if not there:
        return None
    held = "" if splits != ["train"] or len(images) < SMALL else "?holdout=0.2"
    said = f"{path.name}, a table of images and captions"
    more = f" with the splits {', '.join(splits)}" if splits != ["train"] else ""
    return f"table:{path.name}{held}", said + more + (", a fifth of the images held out as val" if held else "")


def _folder(place: Path, base: Path) -> tuple[str, str] | None:
    """Pictures with .txt beside them in a folder, or in its folders train, val or test; deeper is not looked, so that
    a large tree costs nothing."""
    from ..pipeline.datasets import folder

    splits = [path for name in folder.INFO["splits"] if (path := place / name).is_dir()]
    images = sum(_told(path) for path in (splits or [place]))
    if not images:
        return None
    name = "." if place == base else place.name
    held = "" if splits or images < SMALL else "?holdout=0.2"
    said = f"{name}, a folder of images with .txt files beside them"
    return f"folder:{name}{held}", said + (", a fifth of the images held out as val" if held else "")


def _told(place: Path) -> int:
    """How many images that lie in a folder have a text of their name beside them."""
    from ..workspace import PICTURES

    try:
        names = {path.name for path in place.iterdir()}
    except OSError:
        return 0
    return sum(Path(name).suffix.lower() in PICTURES and f"{Path(name).stem}.txt" in names for name in names)
