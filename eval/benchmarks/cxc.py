"""Crisscrossed Captions (CxC): COCO retrieval where captions of other photographs count too if people say they fit.

The photographs and captions of Karpathy's test split (or val), each right for its own captions and for those that CxC
rates with it at 3 or more of 5 (sits_test.csv). `within` is what needs no pairs of image and caption, a second table:
captions among captions, images among images, and the rank correlations with the ratings (sts_test.csv, sis_test.csv).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError
from ...stores.items import Item
from ..sources import Group, Sources
from . import _retrieval, coco_retrieval
from ._files import Images, keyed, keyed_items, read_text

if TYPE_CHECKING:
    from ...stores.store import Store

POSITIVE = 3.0

INFO = {
    "title": "Crisscrossed Captions (COCO retrieval with extended positives)",
    "metric": "recall",
    "ks": (1, 5, 10),
    "chance": {},
    "citation": "Parekh et al., Crisscrossed Captions: Extended Intramodal and Intermodal Semantic Similarity "
    "Judgments for MS-COCO, EACL 2021, arXiv:2004.15020",
    "licence": "ratings: free use with acknowledgement of Google LLC; captions CC BY 4.0; images: Flickr terms",
    "url": "https://github.com/google-research-datasets/Crisscrossed-Captions",
    "files": "Put data/sits_test.csv of github.com/google-research-datasets/Crisscrossed-Captions in ROOT, beside "
    "dataset_coco.json and val2014 as for coco-retrieval; sts_test.csv and sis_test.csv for figures within a side.",
    "splits": ("test", "val"),
    "size": 1,
    "revision": "google-research-datasets/Crisscrossed-Captions 7d6634be173a",
    "tie_rule": "half",
    "variants": _retrieval.VARIANTS,
}
# Ratings name captions by COCO's numbers, which only Karpathy's own file has.
NAMES = {"test": ("dataset_coco.json",), "val": ("dataset_coco.json",)}
LAYOUT = _retrieval.Layout("cxc", "CxC", str(INFO["files"]), NAMES, coco_retrieval.FOLDERS)


def ratings(root: Path, kind: str, split: str) -> list[tuple[str, str, float]]:
    """What `kind` (sits, sts or sis) of a split rates: two names and the mean rating, 0 to 5. A caption is named by its
    number in COCO, an image by its file. Raises `InputError` naming file and row."""
    path = _file(root, kind, split)
    if path is None:
        raise InputError(f"CxC: {root} lacks {kind}_{split}.csv", str(INFO["files"]))
    rows = csv.reader(io.StringIO(read_text(path), newline=""))
    header = next(rows, [])
    if len(header) < 3 or header[2] != "agg_score":
        raise InputError(f"{path} has no third column 'agg_score'", str(INFO["files"]))
    found = []
    for number, row in enumerate(rows):
        try:
            score = float(row[2])
        except (IndexError, ValueError):
            score = math.nan
        if not (0 <= score <= 5 and row[0] and row[1]):
            raise InputError(f"{path} row {number} is not two names and a rating of 0 to 5: {','.join(row)[:80]}")
        found.append((_name(row[0]), _name(row[1]), score))
    return found


def _file(root: Path, kind: str, split: str) -> Path | None:
    folder = root.parent if root.is_file() else root
    name = f"{kind}_{split}.csv"
    return next((folder / b / name for b in (".", "data", "cxc") if (folder / b / name).is_file()), None)


def _name(told: str) -> str:
    """`COCO_val2014:sentid:732091` → `732091`; the name of an image stays."""
    return told.rpartition(":")[2]


def _named(sources: Sources) -> tuple[Group, Images]:
    root = sources.folder("cxc", str(INFO["files"]))
    split = sources.split or "test"
    more: dict[str, set[str]] = {}
    if split in NAMES:
        for caption, image, score in ratings(root, "sits", split):
            if score >= POSITIVE:
                more.setdefault(image, set()).add(caption)
    return _retrieval.named(LAYOUT, sources, more)


def within(store: Store, sources: Sources) -> dict[str, float | int | None]:
    """`crisscrossed.judge`; {} and a note where its files are not there or photographs are left out. Raises as it
    does."""
    from .. import crisscrossed  # which reads this file

    root, split = sources.folder("cxc", str(INFO["files"])), sources.split or "test"
    lacking = [f"{kind}_{split}.csv" for kind in ("sts", "sis") if _file(root, kind, split) is None]
    if lacking or sources.excluded:
        why = f"{' and '.join(lacking)} lack" if lacking else "photographs are left out"
        sources.notes[f"no figures within a side: {why}"] = None
        return {}
    return crisscrossed.judge(store, sources)


def items(sources: Sources) -> Iterator[Item]:
    """The photographs and their captions. Raises `InputError` for files that lack or break."""
    group, images = _named(sources)
    yield from keyed_items([group], images, "cxc")


def groups(sources: Sources) -> Iterator[Group]:
    """All photographs × all captions; `limit` takes so many photographs. Raises `InputError` as `items` does."""
    group, images = _named(sources)
    yield from keyed([group], images)
