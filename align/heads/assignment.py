"""Exclusive alignment: every segment has a region to itself, the best one-to-one assignment; no training.

`maxsim` lets two segments take the same region, so that "a red cube and a blue ball" may find both of its phrases in
one object. Here no region is taken twice (linear assignment, Kuhn 1955), and the score is the mean of the similarities
that are matched, min(regions, segments) of them. Meant for a store of level `regions`, as structure-guided inference
(arXiv 2506.09691, 2604.11496) is, whose matching is greedy. A third party's test of exclusive matching on SigLIP2's
crops found no clear gain on SugarCrepe++ and Winoground.

Observed on the embedded world (shapes-vit, crops of its boxes, in domain, 2,500 groups): swap group score 23.0 % [21.4,
24.6], where `maxsim` has 22.2 [20.5, 23.7] and `sinkhorn` 22.4 [20.8, 24.0]: no clear gain either.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..batches import Batch
from ..kernels.assign import assign
from ..scorer import Alignment, Dims, Scorer, all_pairs, cosines, tokens_of, unit
from ._projection import require_one_space


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


class Assignment(Scorer):
    """The mean similarity of the best assignment; a side without real tokens gives the score 0."""

    trainable = False

    def score(self, batch: Batch) -> Tensor:
        return self.score_pairs(batch, all_pairs(batch)).view(batch.shape)

    def score_pairs(self, batch: Batch, pairs: Tensor) -> Tensor:
        images, image_mask, texts, text_mask = tokens_of(batch)
        return assign(unit(images), unit(texts), pairs, image_mask=image_mask, text_mask=text_mask)

    def alignment(self, batch: Batch, pairs: Tensor) -> Alignment:
        images, image_mask, texts, text_mask = tokens_of(batch)
        return cosines(unit(images), image_mask, unit(texts), text_mask, pairs)


def build(config: Config, dims: Dims) -> Assignment:
    """A scorer without parameters. A pair costs its P · L cosines of width D and an exact assignment, at most cubic in
    the smaller side; pairs are solved one after the other on the CPU, a few thousand a second of 50 × 12 tokens on
    one core, so benchmarks of groups suit it, and the blocks of retrieval less. Raises `InputError` if the store keeps
    no tokens, or image and text tokens of different widths."""
    dims.require_tokens("assignment")
    require_one_space(
        dims,
        "assignment",
        "Extract with --level regions, where both are pooled embeddings, or fit a head that projects them: filip.",
    )
    return Assignment()
