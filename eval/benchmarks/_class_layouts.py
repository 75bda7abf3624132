"""How sets of labelled images lie on disk: WebDataset, a folder for each class, and the official forms of known sets.

Every reader returns `Labelled`. Nothing is unpickled: of CIFAR the binary version is read. `known_set` reads one of the
sets of assets/zeroshot/sets.toml in whichever of these forms it is there.
"""

from __future__ import annotations

import functools
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...stores.items import FileSlice, Item
from ...workspace import PICTURES
from ..sources import Sources
from ._files import FolderImages, read_text
from ._labelled import Labelled, class_names, compare_with, lines_of, table, with_names

SIDE = 32
BLOCK = 512  # bytes of a tar's block, more than the number of a class has


class SliceImages:
    """Images inside larger files: a picture's file in a tar, or (`pixels`) three planes of a CIFAR record."""

    def __init__(self, benchmark: str, folder: Path, pixels: bool = False) -> None:
        self.benchmark = benchmark
        self.where = str(folder)
        self.pixels = pixels
        self.slices: dict[str, FileSlice] = {}

    def has(self, name: str) -> bool:
        return name in self.slices

    def item(self, name: str) -> Item:
        place, source = self.slices[name], f"{self.benchmark}/{name}"
        if self.pixels:
            return Item.rendered(b"cifar planes " + place.read(), functools.partial(_planes, place), source)
        return Item.image_bytes(place.read(), place, source)


def _planes(place: FileSlice) -> Any:
    """(32, 32, 3) uint8 from planes of red, green and blue."""
    import numpy as np

    planes = np.frombuffer(place.read(), np.uint8).reshape(3, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def _numbered(rows: Iterable[tuple[str, str, str]]) -> tuple[tuple[tuple[str, int, str], ...], tuple[str, ...]]:
    """Rows with numbers for their classes, and the classes: in order of number if all are numbers, else of name, small
    and capital letters alike."""
    found = list(rows)
    known = {label for _, label, _ in found}
    numeric = all(label.isdecimal() for label in known)
    order = sorted(known, key=lambda label: (int(label), label) if numeric else (0, label.casefold()))
    number = {label: place for place, label in enumerate(order)}
    return tuple((name, number[label], where) for name, label, where in found), tuple(order)


def folders(benchmark: str, base: Path) -> Labelled:
    """BASE/<class>/…: pictures below a folder for each class, which is called as the folder, `_` read as space.
    Raises `InputError` if there are no such folders or one holds no picture."""
    found = []
    for folder in sorted(path for path in base.iterdir() if path.is_dir() and not path.name.startswith(".")):
        pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
        if not pictures:
            raise InputError(f"{folder} holds no picture", "Remove the folder, or check --root.")
        found += [(path.relative_to(base).as_posix(), folder.name, str(path)) for path in pictures]
    if not found:
        raise InputError(f"{base} has no folder of a class with pictures")
    rows, classes = _numbered(found)
    return Labelled(FolderImages(benchmark, [base]), rows, tuple(name.replace("_", " ") for name in classes))


def shards_of(root: Path, split: str) -> list[Path]:
    """The tars of a split, in order of number; [] if there are none."""
    tars = (root / split).glob("*.tar")
    return sorted(tars, key=lambda path: (len(path.stem), path.stem) if path.stem.isdecimal() else (0, path.stem))


def shards(benchmark: str, root: Path, split: str) -> Labelled:
    """CLIP_benchmark's WebDataset: ROOT/<split>/*.tar with `000.jpg` and `000.cls`, and ROOT/classnames.txt.
    Raises `InputError` naming shard and sample for what lacks or breaks."""
    names = root / "classnames.txt"
    if not names.is_file():
        raise InputError(f"{root} has shards and no classnames.txt", "Put it beside the folder of the split.")
    classes = lines_of(names)
    images = SliceImages(benchmark, root / split)
    rows = []
    for path in shards_of(root, split):
        for name, place, label in _samples(path):
            if not 0 <= label < len(classes):
                raise InputError(f"{path} sample '{name}': class {label} of {len(classes):,} in {names}")
            images.slices[f"{path.name}/{name}"] = place
            rows.append((f"{path.name}/{name}", label, f"{path} sample '{name}'"))
    return Labelled(images, tuple(rows), tuple(classes))


def _samples(path: Path) -> Iterator[tuple[str, FileSlice, int]]:
    pictures: dict[str, FileSlice] = {}
    labels: dict[str, FileSlice] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                stem, dot, ending = member.name.rpartition("/")[2].partition(".")
                name = member.name[: len(member.name) - len(dot + ending)]
                if member.isreg() and stem:
                    place = FileSlice(path, member.offset_data, member.size)
                    if f".{ending.lower()}" in PICTURES:
                        pictures[name] = place
                    elif ending == "cls" and member.size < BLOCK:
                        labels[name] = place
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path} is not a readable tar: {error}", "Unpack a compressed one once.") from None
    for name, place in pictures.items():
        text = labels[name].read().decode("ascii", "replace").strip() if name in labels else ""
        if not text.isdecimal():
            raise InputError(f"{path} sample '{name}' has no .cls with the number of its class")
        yield name, place, int(text)


def listed(benchmark: str, root: Path, row: dict[str, Any], images: Path | None) -> Labelled | None:
    """A list of files with their classes, as `row` describes it (see assets/zeroshot/sets.toml); None if it is not
    there. Raises `InputError` naming file and line for a line of another form."""
    path = next((root / name for name in row["list"] if (root / name).is_file()), None)
    if path is None:
        return None
    found = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        match = re.fullmatch(row["line"], line.strip())
        if match:
            found.append((row["image"].format(file=match["file"]), match["class"], f"{path} line {number}"))
        elif line.strip() and not line.startswith("#"):
            raise InputError(f"{path} line {number} is not of the official form: '{line.strip()[:80]}'")
    if not found:
        raise InputError(f"{path} names no image")
    rows, classes = _numbered(found)
    given = [images, images.parent] if images else []
    places = [*given, path.parent, path.parent.parent, root, root / "SUN397"]
    names = tuple(name.replace("_", " ").replace("/", " ") for name in classes)
    return Labelled(FolderImages(benchmark, places), rows, names)


def cifar(benchmark: str, root: Path, row: dict[str, Any]) -> Labelled | None:
    """The binary version of CIFAR: `labels` bytes, of which the last is the class, then 3,072 of pixels; None if it is
    not there. Raises `InputError` for a file of another length or class."""
    folder = root / row["folder"] if (root / row["folder"]).is_dir() else root
    path, meta = folder / row["records"], folder / row["meta"]
    if not path.is_file():
        return None
    classes = [name.replace("_", " ") for name in lines_of(meta)]
    labels, pixels = int(row["labels"]), 3 * SIDE * SIDE
    data = path.read_bytes()
    if not data or len(data) % (labels + pixels):
        raise InputError(f"{path} has {len(data):,} bytes, no multiple of {labels + pixels:,}: not {row['title']}'s")
    images = SliceImages(benchmark, path, pixels=True)
    rows = []
    for number, start in enumerate(range(0, len(data), labels + pixels)):
        label = data[start + labels - 1]
        if label >= len(classes):
            raise InputError(f"{path} record {number}: class {label} of {len(classes)} in {meta}")
        images.slices[str(number)] = FileSlice(path, start + labels, pixels)
        rows.append((str(number), label, f"{path} record {number}"))
    return Labelled(images, tuple(rows), tuple(classes))


def _mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content: dict[str, Any] = loadmat(str(path), squeeze_me=True)
    except (OSError, ValueError, NotImplementedError, TypeError, MatReadError) as error:
        raise InputError(f"{path} is not a readable .mat file: {error}") from None
    return content


def _field(path: Path, content: dict[str, Any], name: str) -> Any:
    import numpy as np

    if name not in content:
        raise InputError(f"{path} has no variable '{name}'")
    return np.atleast_1d(content[name])


def flowers(benchmark: str, root: Path, images: Path | None) -> Labelled | None:
    """Flowers-102: the images of `tstid` in setid.mat, with their class in imagelabels.mat, 1 to 102; None if they are
    not there. Raises `InputError` for what they lack."""
    folder = root / "flowers-102" if (root / "flowers-102").is_dir() else root
    split, kinds = folder / "setid.mat", folder / "imagelabels.mat"
    if not (split.is_file() and kinds.is_file()):
        return None
    labels = _field(kinds, _mat(kinds), "labels")
    found = []
    for number in _field(split, _mat(split), "tstid"):
        if not 1 <= number <= len(labels):
            raise InputError(f"{split}: image {number} of {len(labels):,} in {kinds}")
        found.append((f"image_{number:05d}.jpg", str(labels[number - 1]), f"{split} image {number}"))
    rows, classes = _numbered(found)
    return Labelled(FolderImages(benchmark, [*([images] if images else []), folder / "jpg", folder]), rows, classes)


def cars(benchmark: str, root: Path, images: Path | None) -> Labelled | None:
    """Stanford Cars: cars_test_annos_withlabels.mat (fname, class from 1) and cars_meta.mat (class_names); None if
    they are not there. Raises `InputError` for what they lack."""
    folder = root / "stanford_cars" if (root / "stanford_cars").is_dir() else root
    beside = (folder, folder / "devkit")
    marks = next((p for place in beside if (p := place / "cars_test_annos_withlabels.mat").is_file()), None)
    meta = next((p for place in beside if (p := place / "cars_meta.mat").is_file()), None)
    if marks is None or meta is None:
        return None
    names = tuple(str(name) for name in _field(meta, _mat(meta), "class_names"))
    rows = []
    for number, mark in enumerate(_field(marks, _mat(marks), "annotations")):
        where = f"{marks} row {number}"
        try:
            label, file = int(mark["class"]), str(mark["fname"])
        except (KeyError, ValueError, TypeError, IndexError):
            raise InputError(f"{where} has no 'class' and 'fname'") from None
        if not 1 <= label <= len(names):
            raise InputError(f"{where}: class {label} of {len(names)} in {meta}")
        rows.append((file, label - 1, where))
    places = (*([images] if images else []), folder / "cars_test", folder)
    return Labelled(FolderImages(benchmark, places), tuple(rows), names)


def known_set(benchmark: str, name: str, root: Path, sources: Sources) -> Labelled:
    """A set of the table as it lies in `root`: shards of `test`, the official form, or a folder for each class.

    Classes are called as classnames.txt in `root` says, else as CLIP_benchmark does, else as in the official files.
    Notes in `sources` what differs in number from the published test split. Raises `InputError` naming file and line.
    """
    row = table()[name]
    if shards_of(root, "test"):
        found = shards(benchmark, root, "test")
    else:
        found = _official(benchmark, root, row, sources.images)
        if (root / "classnames.txt").is_file():
            found = with_names(found, lines_of(root / "classnames.txt"), str(root / "classnames.txt"))
        elif row.get("names"):
            found = with_names(found, class_names()[name], f"the table of {row['title']}")
    compare_with(sources, str(row["title"]), row, found)
    return found


def _official(benchmark: str, root: Path, row: dict[str, Any], images: Path | None) -> Labelled:
    found = None
    if row["layout"] == "list":
        found = listed(benchmark, root, row, images)
    elif row["layout"] == "cifar":
        found = cifar(benchmark, root, row)
    elif row["layout"] == "flowers":
        found = flowers(benchmark, root, images)
    elif row["layout"] == "cars":
        found = cars(benchmark, root, images)
    if found is None:
        below = (root / name for name in row.get("below", ("test",)))
        base = images or next((folder for folder in below if folder.is_dir()), root)
        try:
            found = folders(benchmark, base)
        except InputError as error:
            raise InputError(f"{row['title']}: {error.what}", f"It needs {row['files']} ({row['url']}).") from None
    return found
