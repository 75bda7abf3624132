"""The contract of heads: what a scorer takes and gives, and how one is built by name.

A scorer is independent of other rows (the score of a pair is the same in any batch), indifferent to
padding (masked tokens may hold anything), and gives float32 whatever precision it computes in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import registry
from ..config import from_dict
from ..errors import InputError, UsageError
from ..stores.spec import FeatureSpec
from .batches import Batch, Needs


@dataclass(frozen=True)
class Dims:
    """The sizes a head is built for. 0 means: not kept by this store, or without a fixed order.

    image_dim       D of an image token
    text_dim        D of a text token
    pooled_dim      E of the pooled embeddings of both
    image_tokens    P, prefix tokens included; 0 for regions, which have no order
    context_length  the most text tokens; 0 for segments
    image_grid      (rows, columns) of the patches, which are the last of the image tokens; () if there is no grid
    """

    image_dim: int
    text_dim: int
    pooled_dim: int
    image_tokens: int = 0
    context_length: int = 0
    image_grid: tuple[int, ...] = ()

    @classmethod
    def of(cls, spec: FeatureSpec) -> Dims:
        """The sizes of a store's features."""
        if not spec.keeps_tokens:
            return cls(0, 0, spec.pooled_dim)
        if spec.ragged_images:  # a region and a segment are each one pooled vector
            return cls(spec.pooled_dim, spec.pooled_dim, spec.pooled_dim)
        tokens, width = spec.image_shape
        return cls(width, spec.text_dim, spec.pooled_dim, tokens, spec.context_length, tuple(spec.image_grid))

    def require_tokens(self, head: str) -> None:
        """Raise `InputError` if the store keeps no tokens. Heads that read tokens call this to build."""
        if not (self.image_dim and self.text_dim):
            raise InputError(
                f"head '{head}' reads tokens, and this store keeps pooled embeddings only",
                "Extract with --level tokens, or use a head that needs none: cosine, linear, tfglobal.",
            )


@dataclass(frozen=True, eq=False)
class Views:
    """What an objective may look at beside the scores. All vectors are of one space; None: the head has none.

    scores        (I, C)
    image, text   (I, E), (C, E): the products of their vectors are the scores
    patches, patch_mask  (I, P, E), (I, P) bool: the image's tokens in that space, not normalised
    tokens, token_mask   (C, L, E), (C, L) bool: the caption's
    """

    scores: Tensor
    image: Tensor | None = None
    text: Tensor | None = None
    patches: Tensor | None = None
    patch_mask: Tensor | None = None
    tokens: Tensor | None = None
    token_mask: Tensor | None = None

    def vectors(self) -> tuple[Tensor, Tensor]:
        """(I, E) and (C, E) unit vectors. Raises `UsageError` if there are none."""
        if self.image is None or self.text is None:
            raise UsageError("this loss looks at one vector a side", "Fit a head that has them: linear, mlp, meanpool.")
        return unit(self.image), unit(self.text)

    def patchwise(self) -> tuple[Tensor, Tensor]:
        """patches, patch_mask. Raises `UsageError` if there are none."""
        if self.patches is None or self.patch_mask is None:
            raise UsageError(
                "this loss looks at patches", "Fit a head that shows them: meanpool, or head.local = true."
            )
        return full(self.patches), self.patch_mask

    def local(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """patches, patch_mask, tokens, token_mask. Raises `UsageError` if there are none."""
        if self.patches is None or self.patch_mask is None or self.tokens is None or self.token_mask is None:
            raise UsageError(
                "this loss looks at patches and tokens",
                "Fit a head that shows them: meanpool, or towers with head.local = true whose text tower is causal.",
            )
        return *self.patchwise(), full(self.tokens), self.token_mask


@dataclass(frozen=True, eq=False)
class Alignment:
    """What each text token of a pair looks at in its image: for people to see, no score is computed from it.

    values  (N, L, P) float32, 0 wherever padding has a part; L = 1 where the caption is read as a `whole`
    kind    "cosine", or "weight": of attention, the mean over heads and layers
    """

    values: Tensor
    kind: Literal["cosine", "weight"]
    whole: bool = False


class Scorer(nn.Module):
    """What every head builds. `score` gives the (I, C) block, `score_pairs` only the pairs asked for.

    needs      "pooled" if the head reads no tokens, so that they need not be loaded
    trainable  False if there is nothing to fit
    """

    needs: ClassVar[Needs] = "tokens"
    trainable: ClassVar[bool] = True
    head: str = ""
    config: Any = None
    dims: Dims

    def score(self, batch: Batch) -> Tensor:
        """(I, C) float32."""
        return self.scores_of(batch, None)

    def score_pairs(self, batch: Batch, pairs: Tensor) -> Tensor:
        """(N,) float32 for `pairs` (N, 2) long: image row, caption column. Equals `score` at those places."""
        return self.scores_of(batch, pairs)

    def scores_of(self, batch: Batch, pairs: Tensor | None) -> Tensor:
        """What `score` gives, or `score_pairs`: a head defines this, or those two."""
        raise NotImplementedError

    def views(self, batch: Batch) -> Views:
        """The scores, with what else the head can show; see `Views`."""
        return Views(self(batch))

    def alignment(self, batch: Batch, pairs: Tensor) -> Alignment | None:
        """What the tokens of `pairs` (N, 2) long look at; None for a head that compares no tokens. A head whose views
        hold patches and tokens has their cosines."""
        views = self.views(batch)
        if views.patches is None or views.tokens is None:
            return None
        patches, patch_mask, tokens, token_mask = views.local()
        return cosines(unit(patches), patch_mask, unit(tokens), token_mask, pairs)

    def forward(self, batch: Batch) -> Tensor:
        """`score`; if `batch.scored` names entries, only those are computed and the others are -inf."""
        if batch.scored is None:
            return self.score(batch)
        block = torch.full(batch.shape, -torch.inf, device=batch.device)
        pairs = batch.scored.nonzero()
        return block.index_put((pairs[:, 0], pairs[:, 1]), self.score_pairs(batch, pairs))


def cosines(images: Tensor, image_mask: Tensor, texts: Tensor, text_mask: Tensor, pairs: Tensor) -> Alignment:
    """The alignment of pairs of unit vectors: images (I, P, E), texts (C, L, E) and their masks."""
    rows, columns = pairs.unbind(1)
    values = full(torch.einsum("nle,npe->nlp", texts[columns], images[rows]))
    return Alignment(only_real(values, image_mask[rows], text_mask[columns]), "cosine")


def only_real(values: Tensor, image_mask: Tensor, text_mask: Tensor) -> Tensor:
    """(N, L, P) with zeros where (N, P) or (N, L) is padding."""
    return values.masked_fill(~(text_mask[:, :, None] & image_mask[:, None]), 0)


@dataclass(frozen=True, eq=False)
class Side:
    """The images or the captions of a batch in the space where the scores are products.

    vectors       (n, E) float32
    tokens, mask  (n, S, E), (n, S) bool: patches or words in that space, not normalised; None where there are none
    """

    vectors: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None


class VectorScorer(Scorer):
    """A head with one vector a side, whose products the scores are: negatives are mined with them, retrieval is an
    index. Neither side looks at the other, so each may be embedded in parts (`cached.backward_sides`)."""

    def image_side(self, batch: Batch, local: bool) -> Side:
        """The batch's images; with patches if it is to be `local` and the head has them."""
        raise NotImplementedError

    def text_side(self, batch: Batch, local: bool) -> Side:
        """The batch's captions; with words if it is to be `local` and the head has them."""
        raise NotImplementedError

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """image (I, E) and text (C, E) float32: their inner products are the scores. What negatives are mined with."""
        return self.image_side(batch, False).vectors, self.text_side(batch, False).vectors

    def scores_of(self, batch: Batch, pairs: Tensor | None) -> Tensor:
        image, text = self.embed(batch)
        with full_precision(batch):
            return image @ text.T if pairs is None else (image[pairs[:, 0]] * text[pairs[:, 1]]).sum(-1)

    def views(self, batch: Batch) -> Views:
        return views_of(self.image_side(batch, True), self.text_side(batch, True))


def views_of(image: Side, text: Side) -> Views:
    """What two sides show: the products of all their vectors, and what they are made of."""
    with torch.autocast(image.vectors.device.type, enabled=False):
        scores = image.vectors @ text.vectors.T
    return Views(scores, image.vectors, text.vectors, image.tokens, image.mask, text.tokens, text.mask)


def vector_width(scorer: Scorer) -> int:
    """E of the head's vectors, as an image and a caption of zeros show it: a store of pixels does not know it. Raises
    `UsageError` for a head without vectors."""
    dims, device = scorer.dims, next(scorer.parameters()).device
    tokens = bool(dims.image_dim and dims.text_dim)
    patches, words = max(1, dims.image_tokens), 2
    batch = Batch(
        images=torch.zeros(1, patches, dims.image_dim, device=device) if tokens else None,
        image_mask=torch.ones(1, patches, dtype=torch.bool, device=device) if tokens else None,
        image_pooled=torch.zeros(1, dims.pooled_dim, device=device),
        texts=torch.zeros(1, words, dims.text_dim, device=device) if tokens else None,
        text_mask=torch.ones(1, words, dtype=torch.bool, device=device) if tokens else None,
        text_pooled=torch.zeros(1, dims.pooled_dim, device=device),
        positives=torch.ones(1, 1, dtype=torch.bool, device=device),
        groups=torch.zeros(0, 4, dtype=torch.long, device=device),
    )
    training = scorer.training
    try:
        with torch.no_grad():
            return scorer.eval().views(batch).vectors()[1].shape[1]
    finally:
        scorer.train(training)


def tunes_towers(head: str) -> bool:
    """Whether a head, by name, tunes the towers above its store's cut (`TOWERS`)."""
    return bool(getattr(registry.load("heads", head), "TOWERS", False))


def build_head(name: str, options: dict[str, Any], dims: Dims, towers: Callable[[], Any] | None = None) -> Scorer:
    """Build a head by name (a file in `align/heads`, or a dotted module path) from its options. `towers` opens the
    towers above the store's cut, for a head that tunes them (`TOWERS`).

    Raises `UnknownName` for a head or an option that does not exist, `UsageError` for a value that does
    not fit, `InputError` if the head needs tokens and the store keeps none.
    """
    module = registry.load("heads", name)
    config = from_dict(module.Config, options, "head")
    more = {"towers": towers()} if towers is not None and tunes_towers(name) else {}
    scorer = cast(Scorer, module.build(config, dims, **more))
    scorer.head, scorer.config, scorer.dims = name, config, dims
    return scorer


def tokens_of(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """images (I, P, D), image_mask, texts (C, L, D), text_mask, cut to the longest row of each side. What
    padding holds is replaced by zeros, so that not even NaN in it reaches a sum or a gradient. Raises
    `InputError` if tokens were not joined."""
    return *cut(batch.images, batch.image_mask), *cut(batch.texts, batch.text_mask)


def cut(tokens: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """`tokens_of` for one side."""
    if tokens is None or mask is None:
        raise InputError(
            "this head reads tokens, and the batch holds pooled embeddings only", "Join with needs='tokens'."
        )
    mask = mask[:, : longest(mask)]
    return tokens[:, : mask.shape[1]].masked_fill(~mask[..., None], 0), mask


def longest(mask: Tensor) -> int:
    """The most real tokens in a row of a mask (B, S), at least one."""
    return max(1, int(mask.sum(1).max())) if len(mask) else 1


def full_precision(batch: Batch) -> torch.autocast:
    """A context without autocast. A cosine in bfloat16 is off by up to 0.4 %, which a temperature of 0.01
    makes 0.4 logits."""
    return torch.autocast(batch.device.type, enabled=False)


def full(values: Tensor) -> Tensor:
    """The values as float32, float64 if they are that."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def unit(vectors: Tensor) -> Tensor:
    """L2-normalised along the last axis, in `full` precision; a zero vector stays zero."""
    return F.normalize(full(vectors), dim=-1)


def all_pairs(batch: Batch) -> Tensor:
    """(I·C, 2) long: every image row with every caption column, row-major."""
    images, captions = batch.shape
    rows = torch.arange(images, device=batch.device).repeat_interleave(captions)
    return torch.stack([rows, torch.arange(captions, device=batch.device).repeat(images)], dim=1)


def options_of(scorer: Scorer) -> dict[str, Any]:
    """The complete options that build this scorer again."""
    return dataclasses.asdict(scorer.config)


def require(condition: bool, what: str, cure: str = "") -> None:
    """Raise `UsageError` unless a head's configuration holds together."""
    if not condition:
        raise UsageError(what, cure)
