"""The nearest other captions of the dataset, by their pooled embeddings in a store: true sentences, other images.

In-domain hard negatives as in the batches of NegCLIP (arXiv:2210.01936), where neighbours are mined. Captions of the
same image, equal ones and nearly equal ones are left out. The search is exact up to 300,000 captions and goes
through an inverted file of faiss beyond. Equal features give equal negatives; ties go by key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import InputError, MissingFeatures, UsageError
from ._contract import Around, Caption, Negative
from ._text import bag, plain

if TYPE_CHECKING:
    from ...stores.store import Store

INFO = {
    "source": "NegCLIP, Yuksekgonul et al., ICLR 2023, arXiv:2210.01936",
    "version": "1",
    "licence": "that of the captions",
}

LEVELS = ("pooled", "tokens")
BLOCK = 4096  # queries at a time: 4096 × 33 neighbours take 1.6 MB
EXACT_UP_TO = 300_000  # 300,000² similarities of 512 numbers take 15 minutes at 100 GFLOP/s


@dataclass(frozen=True)
class Config:
    """Settings.

    backbone     whose embeddings say what is near; its store must hold the captions
    level        of the store; "" takes pooled or tokens, whichever is there
    dtype        of the store
    store        folder of the store, instead of the three above
    per_caption  how many negatives a caption gets at most
    neighbours   how many are looked at to find them
    max_overlap  share of words in common from which two captions are nearly equal
    index        "flat" is exact, "ivf" looks into 32 of its lists; "auto" by the number of captions
    """

    backbone: str = ""
    level: str = ""
    dtype: str = "float16"
    store: str = ""
    per_caption: int = 1
    neighbours: int = 32
    max_overlap: float = 0.8
    index: Literal["auto", "flat", "ivf"] = "auto"

    def __post_init__(self) -> None:
        if self.per_caption < 1 or self.neighbours < self.per_caption:
            raise UsageError("mined needs per_caption of at least 1 and at least as many neighbours")
        if not 0.0 < self.max_overlap <= 1.0:
            raise UsageError(f"max_overlap must be above 0 and at most 1, not {self.max_overlap}")


def provenance(config: Config, around: Around) -> dict[str, str]:
    """The store: equal fingerprints hold equal embeddings."""
    spec = _open(config, around).spec
    return {"features": f"{spec.backbone} {spec.level} {spec.fingerprint}"}


def generate(captions: Sequence[Caption], config: Config, seed: int, around: Around) -> Iterator[Negative]:
    """Up to `per_caption` neighbours per caption, nearest first. Raises `MissingFeatures` for captions that the
    store lacks."""
    if len(captions) < 2:
        for index in range(len(captions)):
            around.missed(index, "the dataset has no other caption")
        return
    vectors = _vectors(captions, _open(config, around), around)
    search = _index(vectors, config)
    texts = [plain(caption.text) for caption in captions]
    count = min(config.neighbours + 1, len(captions))
    for start in range(0, len(captions), BLOCK):
        scores, found = search.search(vectors[start : start + BLOCK], count)
        for offset, (row_scores, row) in enumerate(zip(scores.tolist(), found.tolist(), strict=True)):
            index = start + offset
            ranked = sorted(
                ((-round(score, 6), captions[other].key, other) for score, other in zip(row_scores, row, strict=True))
            )
            made = 0
            for score, _, other in ranked:
                if other < 0 or other == index or made == config.per_caption:
                    continue
                if _differ(captions[index], captions[other], texts[index], texts[other], config.max_overlap):
                    made += 1
                    yield Negative(index, captions[other].text, "caption", f"cosine {-score:.3f}")
            if not made:
                around.missed(index, "all neighbours are of the same image or nearly equal")
            around.tick(index + 1)


def _differ(caption: Caption, other: Caption, text: str, second: str, most: float) -> bool:
    """Whether the other caption is of other images and says something else."""
    if text == second or not second or set(caption.images) & set(other.images):
        return False
    mine, theirs = bag(caption.text), bag(other.text)
    return (mine & theirs).total() <= most * max(mine.total(), theirs.total())


def _open(config: Config, around: Around) -> Store:
    from ...stores.store import Store
    from ..stored import spec_named

    if config.store:
        return Store.open(Path(config.store).expanduser())
    if not config.backbone:
        raise UsageError(
            "mined needs a backbone", "Say whose embeddings: --set backbone=NAME, see compal ls backbones."
        )
    for level in (config.level,) if config.level else LEVELS:
        folder = around.workspace.find_store(spec_named(config.backbone, level, config.dtype, around.workspace))
        if (folder / "spec.json").is_file():
            return Store.open(folder)
    raise MissingFeatures(f"there is no store of {config.backbone}", _cure(config.backbone, around))


def _cure(backbone: str, around: Around) -> str:
    split = f" --split {around.split}" if around.split else ""
    return f"Extract first: compal extract --backbone {backbone} --data {around.data or 'NAME'}{split}"


def _vectors(captions: Sequence[Caption], store: Store, around: Around) -> Any:
    """The embeddings (N, E) float32 of the captions, of length 1."""
    import numpy as np

    from ...stores.dtypes import from_bfloat16

    keys = [caption.key for caption in captions]
    lacking = int((~store.has("text", keys)).sum())
    if lacking:
        what = f"{store.path.name} lacks {lacking:,} of {len(keys):,} captions"
        raise MissingFeatures(what, _cure(store.spec.backbone, around))
    stored = store.pooled("text", keys)
    vectors = from_bfloat16(stored) if stored.dtype == np.uint16 else stored.astype(np.float32)
    return np.ascontiguousarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _index(vectors: Any, config: Config) -> Any:
    try:
        import faiss
    except ImportError:
        raise InputError("mined needs faiss", 'Install it: pip install "compal[mining]"') from None

    count, dim = vectors.shape
    if config.index == "flat" or (config.index == "auto" and count <= EXACT_UP_TO):
        index: Any = faiss.IndexFlatIP(dim)
    else:
        lists = max(1, min(int(4 * count**0.5), count // 39))  # faiss asks for 39 points per list
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = 1234
        index.train(vectors)
        index.nprobe = 32
    index.add(vectors)
    return index
