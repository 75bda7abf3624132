"""What retrieval on photographs with several captions shares: reading annotations, one large group, its truth."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError, UnknownName
from ..sources import Group, Matches, Sources
from ._files import FolderImages, Images, present, read_json, read_text, text_of

VARIANTS = {
    "own-captions": "a text that two photographs share is right for its own alone, as published: the two then tie",
    "five-captions": "the first five captions of a photograph, 25,000 in all for COCO, as CLIP_benchmark cuts them",
}
FIVE = 5


@dataclass(frozen=True)
class Told:
    """A photograph and its captions, each with its number in the annotation (COCO's sentid) or ""."""

    image: str
    captions: tuple[tuple[str, str], ...]
    where: str


def read(path: Path, split: str, cure: str) -> list[Told]:
    """The photographs of a split in any of the forms that the field passes on, in the order of the file.

    {"images": [{filename, split, sentences: [{raw, sentid}]}]}           Karpathy's; the split is chosen from it
    {"images": [{id, file_name}], "annotations": [{image_id, caption}]}   COCO's; the file is one split
    [{image, caption: [...]}]                                             of BLIP and ARO; the file is one split
    `image,caption` lines                                                 of CLIP_benchmark; the file is one split
    Raises `InputError` naming file and row for what lacks or breaks.
    """
    if path.suffix in (".txt", ".csv"):
        return _lines(path)
    content = read_json(path)
    if isinstance(content, list):
        return [_listed(row, f"{path} row {number}") for number, row in enumerate(content)]
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise InputError(f"{path} has no list 'images'", cure)
    if "annotations" in content:
        return _coco(path, images, content["annotations"])
    rows = ((_object(row, f"{path} images[{number}]"), f"{path} images[{number}]") for number, row in enumerate(images))
    found = [_karpathy(row, where) for row, where in rows if row.get("split") == split]
    if not found:
        raise InputError(f"{path} has no photograph of the split '{split}'", cure)
    return found


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} is not an object")
    return value


def _karpathy(row: dict[str, Any], where: str) -> Told:
    sentences = row.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise InputError(f"{where} has no 'sentences'")
    said = []
    for number, sentence in enumerate(sentences):
        raw = sentence.get("raw") if isinstance(sentence, dict) else None
        if not isinstance(raw, str) or not raw.strip():  # said only then where it stands: COCO has 25,010
            place = f"{where} sentence {number}"
            raw = text_of(_object(sentence, place), "raw", place)
        said.append((raw, str(sentence.get("sentid", ""))))
    return Told(text_of(row, "filename", where), tuple(said), where)


def _listed(row: Any, where: str) -> Told:
    row = _object(row, where)
    captions = row.get("caption")
    texts = [captions] if isinstance(captions, str) else captions
    if not isinstance(texts, list) or not texts:
        raise InputError(f"{where} has no 'caption'")
    checked = tuple((text_of({"caption": text}, "caption", where), "") for text in texts)
    return Told(text_of(row, "image", where), checked, where)


def _coco(path: Path, images: list[Any], annotations: Any) -> list[Told]:
    said: dict[Any, list[tuple[str, str]]] = {}
    for number, row in enumerate(annotations if isinstance(annotations, list) else []):
        where = f"{path} annotations[{number}]"
        row = _object(row, where)
        if not isinstance(row.get("image_id"), int | str):
            raise InputError(f"{where} has no 'image_id'")
        said.setdefault(row["image_id"], []).append((text_of(row, "caption", where), str(row.get("id", ""))))
    found = []
    for number, row in enumerate(images):
        where = f"{path} images[{number}]"
        row = _object(row, where)
        captions = said.pop(row.get("id"), [])
        if not captions:
            raise InputError(f"{where} has no caption in 'annotations'")
        found.append(Told(text_of(row, "file_name", where), tuple(captions), where))
    if said:
        raise InputError(f"{path}: annotations are of image {next(iter(said))}, which is not in 'images'")
    return found


def _lines(path: Path) -> list[Told]:
    said: dict[str, list[tuple[str, str]]] = {}
    for number, row in enumerate(csv.reader(io.StringIO(read_text(path), newline="")), start=1):
        if not row or (number == 1 and row[0] in ("image", "filename")):
            continue
        # Captions hold commas, and the official file quotes none.
        image, caption = row[0].partition("#")[0], ",".join(row[1:])
        if not image.strip() or not caption.strip():
            raise InputError(f"{path} line {number} is not 'image,caption'")
        said.setdefault(image, []).append((caption.strip(), ""))
    return [Told(image, tuple(captions), str(path)) for image, captions in said.items()]


def annotation(root: Path, names: Iterable[str], title: str, cure: str) -> Path:
    """`root` if it is a file, else the first of `names` in it or its folder `annotations` or `karpathy`. Raises
    `InputError`."""
    if root.is_file():
        return root
    names = list(names)
    places = (root / folder / name for name in names for folder in (".", "annotations", "karpathy"))
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(f"{title}: {root} has none of {', '.join(names)}", cure)
    return found


class Photographs(FolderImages):
    """Images by the name of their file: paths in front of it are of other machines, and COCO's images of 2014 may lie
    under their names of 2017."""

    def __init__(self, benchmark: str, folders: Iterable[Path]) -> None:
        super().__init__(benchmark, folders)
        self._paths: dict[str, Path | None] = {}

    def path(self, name: str) -> Path | None:
        if name not in self._paths:
            short = name.rpartition("/")[2]
            names = dict.fromkeys((name, short, short.rpartition("_")[2] if short.startswith("COCO_") else short))
            found = (super(Photographs, self).path(one) for one in names)
            self._paths[name] = next((path for path in found if path), None)
        return self._paths[name]


@dataclass(frozen=True)
class Layout:
    """Where a benchmark's photographs and captions lie: the annotation's names by split, and folders below ROOT."""

    benchmark: str
    title: str
    cure: str
    names: Mapping[str, tuple[str, ...]]
    folders: tuple[str, ...]


def kept(layout: Layout, sources: Sources) -> tuple[list[Told], Images]:
    """The photographs of the split that are there with their captions, at most `sources.limit`, and their files.

    Raises `UnknownName` for a split, `InputError` for files that lack or break, as `present` does.
    """
    root = sources.folder(layout.benchmark, layout.cure)
    split = sources.split or next(iter(layout.names))
    if split not in layout.names:
        raise UnknownName.among(f"split of {layout.benchmark}", split, layout.names)
    path = annotation(root, layout.names[split], layout.title, layout.cure)
    base = root.parent if root.is_file() else root
    given = [sources.images] if sources.images else []
    images = Photographs(layout.benchmark, [*given, *(base / name for name in layout.folders)])
    told = list(_unique(read(path, split, layout.cure)))
    each = (Group(f"{split}/{one.image}", (one.image,), (), (), "", one.where) for one in told)
    there = {group.images[0] for group in present(sources, each, images, layout.title, layout.cure)}
    found = [one for one in told if one.image in there]
    if sources.variant == "five-captions":
        found = [dataclasses.replace(one, captions=one.captions[:FIVE]) for one in found]
    return found, images


def named(layout: Layout, sources: Sources, more: Mapping[str, set[str]] | None = None) -> tuple[Group, Images]:
    """The photographs of `kept` × their captions, as names and texts.

    A text that several photographs share is one caption, right for each of them, unless the variant "own-captions"
    keeps it apart. more: the numbers of further captions that are right for an image, by its name. Raises as `kept`.
    """
    told, images = kept(layout, sources)
    truth = _truth(told, more or {}, shared=sources.variant != "own-captions")
    captions = tuple(text for one in told for text, _ in one.captions)
    return Group(layout.benchmark, tuple(one.image for one in told), captions, truth, "", layout.title), images


def _truth(told: list[Told], more: Mapping[str, set[str]], shared: bool) -> Matches:
    """Which captions, in the order that they stand in, are right for each photograph."""
    said = [(place, text, number) for place, one in enumerate(told) for text, number in one.captions]
    alike: dict[str, list[int]] = {}
    numbers: dict[str, int] = {}
    own: list[list[int]] = [[] for _ in told]
    for column, (place, text, number) in enumerate(said):
        alike.setdefault(text, []).append(column)
        numbers[number] = column
        own[place].append(column)
    rows = []
    for one, columns in zip(told, own, strict=True):
        right = {*columns, *(numbers[number] for number in more.get(one.image, ()) if number in numbers)}
        if shared:
            right |= {other for column in right for other in alike[said[column][1]]}
        rows.append(tuple(sorted(right)))
    return Matches(tuple(rows), len(said))


def _unique(found: list[Told]) -> Iterator[Told]:
    """The photographs, each once. Raises `InputError` for one that stands there twice."""
    seen: set[str] = set()
    for one in found:
        if one.image in seen:
            raise InputError(f"{one.where}: the image '{one.image}' stands there twice")
        seen.add(one.image)
        yield one
