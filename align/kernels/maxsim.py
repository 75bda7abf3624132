"""MaxSim: every token takes its best partner on the other side (late interaction).

Khattab & Zaharia, 2020 (arXiv 2004.12832) for text; token-wise between images and captions: FILIP, arXiv 2111.07783,
eq. 3–5. The (I, C, P, L) similarities are never held: a tile of them at a time is multiplied, reduced in both
directions and forgotten. For the gradients only the places of the maxima stay, a byte each.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...errors import InputError, UsageError
from ._dispatch import Backend, choose
from ._tokens import Packed, front, pack, padded

Direction = Literal["t2i", "i2t", "both"]
Reduce = Literal["mean", "sum"]


def maxsim(  # noqa: PLR0913 - one public entry; all but the tokens by keyword
    image: Tensor,
    text: Tensor | Packed,
    *,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    direction: Direction = "t2i",
    reduce: Reduce = "mean",
    pairs: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Score images against captions by their best-matching tokens.

    image      (I, P, D), `image_mask` (I, P) bool, True on real tokens, None = all
    text       (C, L, D) with `text_mask` (C, L), or `Packed` without padding, which costs what its tokens cost
    direction  "t2i": each text token takes its best patch; "i2t": each patch takes its best text token; "both": the
               mean of the two, from one product
    reduce     of the maxima over the tokens that take them: "mean" or "sum"
    pairs      (N, 2) long, image row and caption column: only these are scored
    backend    see `_dispatch.choose`

    Gives (I, C), or (N,) for pairs: float32, or float64 for float64 tokens. Tokens are used as they are; normalise
    them for cosines. What padding holds is not read and gets no gradient. A pair without a real token on one side
    scores 0. Equal maxima: the gradient goes to the first. Products are in the dtype of the tokens on a GPU and in
    float32 on a CPU; autocast has no say. Differentiable once.

    Raises `InputError` for shapes that do not fit, `UsageError` for an unknown option or an unusable backend.
    """
    _check(image, text, image_mask, text_mask, pairs)
    if direction not in ("t2i", "i2t", "both") or reduce not in ("mean", "sum"):
        raise UsageError(f"no direction '{direction}' or no reduce '{reduce}'", "t2i, i2t, both; mean, sum.")
    chosen = choose(backend, image)
    if chosen == "reference":
        values, known = padded(text, text_mask)
        full = reference_maxsim(image, values, image_mask, known, direction, reduce)
        return full if pairs is None else full[pairs[:, 0], pairs[:, 1]]
    with torch.autocast(image.device.type, enabled=False):
        image, image_lengths = front(image, image_mask)
        packed = text if isinstance(text, Packed) else pack(text, text_mask)
        t2i, i2t = direction != "i2t", direction != "t2i"
        if chosen == "cpu":
            from ._maxsim_cpu import best_sums
        else:
            from ._maxsim_gpu import best_sums
        most = packed.tokens.shape[0] if isinstance(text, Packed) else text.shape[1]
        to_text, to_image = best_sums(image, image_lengths, packed.tokens, packed.lengths, (t2i, i2t), pairs, most)
        return _finish(to_text, to_image, (image_lengths, packed.lengths.to(image.device)), reduce, pairs)


def _finish(
    to_text: Tensor | None, to_image: Tensor | None, lengths: tuple[Tensor, Tensor], reduce: str, pairs: Tensor | None
) -> Tensor:
    """Sums of maxima, per direction, as scores."""
    image_lengths, text_lengths = lengths
    if reduce == "mean":
        if to_text is not None:
            counts = text_lengths.clamp(min=1)
            to_text = to_text / (counts if pairs is None else counts[pairs[:, 1]])
        if to_image is not None:
            counts = image_lengths.clamp(min=1)
            to_image = to_image / (counts[:, None] if pairs is None else counts[pairs[:, 0]])
    if to_text is not None and to_image is not None:
        return (to_text + to_image) / 2
    found = to_text if to_text is not None else to_image
    assert found is not None  # one direction is always asked for
    return found


def reference_maxsim(
    image: Tensor,
    text: Tensor,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    direction: Direction = "t2i",
    reduce: Reduce = "mean",
) -> Tensor:
    """What `maxsim` computes, written as the formula, with all similarities at once: (I, C) float32 (float64 of
    float64) from padded tokens."""
    known = [
        values.new_ones(values.shape[:2], dtype=torch.bool) if mask is None else mask
        for values, mask in ((image, image_mask), (text, text_mask))
    ]
    image, text = (values.masked_fill(~mask[..., None], 0) for values, mask in zip((image, text), known, strict=True))
    similarity = torch.einsum("ipd,cld->icpl", image, text)
    if similarity.dtype != torch.float64:
        similarity = similarity.float()
    patches, words = known[0][:, None, :, None], known[1][None, :, None, :]
    scores = []
    if direction != "i2t":
        scores.append(_reduced(similarity, patches, -2, words[:, :, 0], reduce))
    if direction != "t2i":
        scores.append(_reduced(similarity, words, -1, patches[..., 0], reduce))
    return torch.stack(scores).mean(0)


def _reduced(similarity: Tensor, mask: Tensor, dim: int, takers: Tensor, reduce: str) -> Tensor:
    """Maximum over the real tokens along `dim`, then the sum or mean over the real `takers`. Excluded by -inf and
    never by 0, which would beat every negative similarity."""
    if not similarity.shape[dim]:
        return similarity.new_zeros(similarity.shape[:2])
    best = similarity.masked_fill(~mask, -torch.inf).max(dim).values
    total = best.masked_fill(~takers | (best == -torch.inf), 0).sum(-1)
    return total / takers.sum(-1).clamp(min=1) if reduce == "mean" else total


def _check(
    image: Tensor, text: Tensor | Packed, image_mask: Tensor | None, text_mask: Tensor | None, pairs: Tensor | None
) -> None:
    tokens = text.tokens if isinstance(text, Packed) else text
    shapes = f"image {tuple(image.shape)} {image.dtype}, text {tuple(tokens.shape)} {tokens.dtype}"
    fits = image.ndim == 3 and tokens.ndim == (2 if isinstance(text, Packed) else 3)
    if not fits or image.shape[-1] != tokens.shape[-1] or image.dtype != tokens.dtype:
        raise InputError(f"maxsim of {shapes}", "Give (I, P, D) and (C, L, D) or Packed, of one dtype and width.")
    if isinstance(text, Packed) and text_mask is not None:
        raise InputError("packed text has no padding to mask", "Leave text_mask out.")
    for name, mask, values in (("image_mask", image_mask, image), ("text_mask", text_mask, tokens)):
        if mask is not None and (mask.shape != values.shape[:2] or mask.dtype != torch.bool):
            raise InputError(
                f"{name} {tuple(mask.shape)} {mask.dtype} for {shapes}", "Give bool of its first two axes."
            )
    if pairs is not None and (pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype != torch.int64):
        raise InputError(f"pairs {tuple(pairs.shape)} {pairs.dtype}", "Give (N, 2) long: image row, caption column.")
