"""MMVP-VLM: pairs of images that CLIP takes for the same, of nine visual patterns, and a statement about each.

135 pairs, 15 of each pattern. The official figure is text to image: of a pair, both statements must choose their own
image, "softmax over the two above 0.5", which is `t2i` here. Officially an equality loses for the first statement of
a pair and wins for the second; here it loses for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import InputError
from ...stores.items import Item
from ..sources import QUAD_TRUTH, Group, Sources
from . import _quads
from ._files import FolderImages, keyed, keyed_items, present, read_rows, text_of

PATTERNS = (
    "Orientation and Direction",
    "Presence of Specific Features",
    "State and Condition",
    "Quantity and Count",
    "Positional and Relational Context",
    "Color and Appearance",
    "Structural Characteristics",
    "Texts",
    "Viewpoint and Perspective",
)
PROMPT = "a photo of "
FOLDERS = ("MLLM_VLM Images", "MMVP_VLM_Images", "images", ".")

INFO = {
    "title": "MMVP-VLM",
    "metric": "quads",
    "headline": "t2i",
    "chance": _quads.CHANCE,
    "citation": "Tong et al., Eyes Wide Shut? Exploring the Visual Shortcomings of Multimodal LLMs, CVPR 2024, "
    "arXiv:2401.06209",
    "licence": "MIT by the card of the Hugging Face dataset; images: ImageNet and LAION-Aesthetics terms",
    "url": "https://huggingface.co/datasets/MMVP/MMVP_VLM",
    "files": "Put Questions.csv and the folder 'MLLM_VLM Images' of huggingface.co/datasets/MMVP/MMVP_VLM in ROOT.",
    "splits": PATTERNS,
    "size": 135,
    "revision": "tsb0601/MMVP 763500597e65",
    "tie_rule": "half",
    "variants": {
        "bare-statement": "the statements as they stand, without the official prompt 'a photo of '",
        "pattern-by-place": "a pair's pattern by its place in the file, 15 to each, as the official script counts",
    },
}
# The official table is the mean over the patterns, equal to the micro average while each has 15 pairs.
AVERAGES = {"9-pattern": PATTERNS}


def _statements(path: Path) -> list[tuple[str, str, str, str]]:
    """(question id, type, statement, where it stands) of every row, whatever its header is called."""
    rows = read_rows(path)
    columns = list(rows[0]) if rows else []
    if len(columns) != 3:
        what = f"{path} has the columns {', '.join(map(str, columns)) or 'of no row'}; it needs id, type and statement"
        raise InputError(what, str(INFO["files"]))
    found = []
    for number, row in enumerate(rows):
        where = f"{path} row {number}"
        name, kind, statement = (text_of(row, column, where).strip() for column in columns)
        if not name.isdecimal():
            raise InputError(f"{where}: the id '{name}' is not a number")
        found.append((name, kind, statement, where))
    return found


def _pairs(path: Path, sources: Sources) -> Iterator[Group]:
    rows = _statements(path)
    if len(rows) % 2:
        raise InputError(f"{path} has {len(rows)} rows, so the last stands alone: two rows are a pair")
    prompt = "" if sources.variant == "bare-statement" else PROMPT
    for place in range(0, len(rows), 2):
        (first, kind, said, where), (second, other, said_too, _) = rows[place : place + 2]
        # Truth is in the number: an odd id is the first image of its pair, an even one the second.
        if int(first) % 2 != 1 or int(second) % 2 or other != kind:
            raise InputError(f"{where}: ids {first} and {second} of '{kind}' and '{other}' are not a pair")
        images = (f"{kind}/{first}", f"{kind}/{second}")
        pattern = PATTERNS[min(place // 30, 8)] if sources.variant == "pattern-by-place" else kind
        yield Group(f"{first}-{second}", images, (prompt + said, prompt + said_too), QUAD_TRUTH, pattern, where)


def _named(sources: Sources) -> tuple[list[Group], FolderImages]:
    root = sources.folder("mmvp_vlm", str(INFO["files"]))
    path = root if root.is_file() else root / "Questions.csv"
    if not path.is_file():
        raise InputError(f"MMVP-VLM: {root} lacks Questions.csv", str(INFO["files"]))
    layout = _quads.Layout("mmvp_vlm", "MMVP-VLM", str(INFO["files"]), (), category="type", categories=PATTERNS)
    found = list(_quads.of_category(_pairs(path, sources), layout, sources))
    given = [sources.images] if sources.images else []
    images = FolderImages("mmvp_vlm", [*given, *(path.parent / name for name in FOLDERS)])
    return present(sources, found, images, "MMVP-VLM", str(INFO["files"])), images


def items(sources: Sources) -> Iterator[Item]:
    """Both images and both statements of every pair. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "mmvp_vlm")


def groups(sources: Sources) -> Iterator[Group]:
    """Two images × two statements per pair, by pattern. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
