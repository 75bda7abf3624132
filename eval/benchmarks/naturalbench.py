"""NaturalBench in its form for retrieval: two natural images and two captions, each right for one image alone.

The official benchmark asks questions of generative models; its authors pass this form on for dual encoders.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...stores.items import Item
from ..sources import Group, Sources
from . import _quads
from ._files import Images, keyed, keyed_items

INFO = {
    "title": "NaturalBench-Retrieval",
    "metric": "quads",
    "chance": _quads.CHANCE,
    "citation": "Li et al., NaturalBench: Evaluating Vision-Language Models on Natural Adversarial Samples, "
    "NeurIPS 2024, arXiv:2410.14669",
    "licence": "Apache-2.0 by the card of the Hugging Face dataset; the repository states none",
    "url": "https://huggingface.co/datasets/BaiqiL/NaturalBench",
    "files": "Put metadata.json and images/ of NaturalBench-Retrieval.zip from "
    "huggingface.co/datasets/BaiqiL/NaturalBench in ROOT.",
    "revision": "Baiqi-Li/NaturalBench 99676059da42",
    "tie_rule": "lose",
}
LAYOUT = _quads.Layout(
    "naturalbench",
    "NaturalBench-Retrieval",
    str(INFO["files"]),
    ("metadata.json", "NaturalBench-Retrieval/metadata.json"),
    number="index",
)


def _named(sources: Sources) -> tuple[list[Group], Images]:
    return _quads.named(LAYOUT, sources)


def items(sources: Sources) -> Iterator[Item]:
    """Both images and both captions of every row. Raises `InputError` for files that lack or break."""
    named, images = _named(sources)
    yield from keyed_items(named, images, "naturalbench")


def groups(sources: Sources) -> Iterator[Group]:
    """Two images × two captions per row. Raises `InputError` as `items` does."""
    named, images = _named(sources)
    yield from keyed(named, images)
