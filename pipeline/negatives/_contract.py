"""What a method of negatives is given and what it yields.

A method is a file that defines `INFO` (a dict with at least `source`, the paper, and `version`, to be raised when
equal inputs come to give other negatives), a frozen dataclass `Config` whose fields all have defaults, and
`generate(captions, config, seed, around)`, which yields `Negative`s lazily in the order of the captions. It may
define `provenance(config, around) -> dict[str, str]`, what else decides the result (versions, hashes, a licence),
and `estimate(captions, config, seed, around) -> dict[str, object]`, what a run would cost, for `--dry-run`.

Randomness comes from `draw(seed, caption)` alone: then the negatives of a caption are the same whichever other
captions there are.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ...workspace import Workspace

MAX_TRIES = 20  # draws of an order before a caption is given up: all its orders may be equal ("no no")


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption of a dataset.

    key     its content key (`stores.items.caption_key`)
    text    the caption
    images  keys of the images that it belongs to
    """

    key: str
    text: str
    images: tuple[str, ...] = ()


class Negative(NamedTuple):
    """A negative of the caption with this index; `detail` says for people what was changed."""

    caption: int
    text: str
    type: str
    detail: str = ""


@dataclass(frozen=True)
class Around:
    """What surrounds a run.

    workspace  where stores and journals lie
    data       the dataset, NAME[:ROOT], and its `split`
    missed     is told (caption index, why) for captions that get no negative
    tick       is told how many captions are done
    """

    workspace: Workspace
    data: str = ""
    split: str = ""
    missed: Callable[[int, str], None] = field(default=lambda index, why: None)
    tick: Callable[[int], None] = field(default=lambda done: None)


def draw(seed: int, caption: Caption, salt: str = "") -> random.Random:
    """The random numbers of a caption; of two types, with different salts, they are independent."""
    return random.Random(f"{seed}/{caption.key}/{salt}")
