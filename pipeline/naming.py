"""What a user's words for a dataset mean: its name, the splits to extract, the tables of pairs to fit on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import registry
from ..errors import MissingFeatures, UnknownName
from ..workspace import TABLES, Workspace


def dataset_name(data: str) -> str:
    """`--data` as a user types it → NAME[:ROOT]: a path to a table or a folder needs no name in front, and options
    may follow a table (`captions.csv?caption=alt`)."""
    name, _ = registry.split_argument(data)
    place = data if Path(data).exists() else data.partition("?")[0]
    if name in registry.names("datasets") or ("." in name and ("/" not in data) and not Path(place).exists()):
        return data
    path = Path(place).expanduser()
    if path.is_dir():
        return f"folder:{data}"
    if path.suffix in TABLES:
        return f"table:{data}"
    return data


def default_splits(data: str, workspace: Workspace) -> list[str]:
    """What the dataset's INFO calls `fit`; else train and validation where it has them, its first split where it has
    neither."""
    from .extract import splits

    found = splits(data, workspace)
    if told := _told(data, found, workspace):
        return list(told)
    fitting = [split for split in found if split in ("train", "validation", "val", "train2017", "val2017")]
    return fitting or found[:1]


def _told(data: str, known: Sequence[str], workspace: Workspace) -> Sequence[str]:
    """The splits to fit and to validate on, of a dataset whose training set is not the split `train`."""
    told: Sequence[str] = registry.load("datasets", workspace.dataset(data)[0]).INFO.get("fit", ())
    return told if set("+".join(told).split("+")) <= set(known) else ()


def pairs_of(data: str, train: str, validation: str, workspace: Workspace, backbone: str) -> tuple[Path, Path | None]:
    """The pairs tables to fit and to validate on: of the splits asked for, else what this dataset calls them (val,
    train2017, …; `train` is what its INFO says of fitting, unless only the table of `train` itself is there). With a
    single split there is nothing to validate on. Raises `UnknownName`, and `MissingFeatures` naming the command that
    makes a table, with `backbone`."""
    from .extract import splits

    def there(split: str) -> bool:
        return workspace.pairs_path(data, split).is_file()

    known = splits(data, workspace)
    told = _told(data, known, workspace)
    fitting = _called(train, known, ("train2017", "train2014")) or (known[0] if len(known) == 1 else "")
    if train == "train" and told and (there(told[0]) or not there(train)):
        fitting = told[0]
    elif "+" in train and set(train.split("+")) <= set(known):
        fitting = train
    judging = _called(validation, known, ("val", "val2017", "val2014"))
    if not fitting:
        raise UnknownName.among(f"split of {data}", train, known, "Choose one: --set data.train=SPLIT")

    def table(split: str) -> Path:
        if not there(split):
            raise MissingFeatures(
                f"no pairs of {data}, split '{split}', in {workspace.pairs}",
                f"Make them: compal extract --backbone {backbone} --data {data} --split {split}",
            )
        return workspace.pairs_path(data, split)

    return table(fitting), table(judging) if judging not in ("", fitting) else None


def _called(split: str, known: Sequence[str], others: Sequence[str]) -> str:
    """The split itself if the dataset has it, else the first of its usual other names; "" asked, or none, is ""."""
    return next((name for name in (split, *others) if split and name in known), "")
