"""Exclusive alignment: each token has a patch to itself, and the sum of the similarities is the largest there is.

The linear assignment problem (Kuhn 1955), solved exactly by SciPy's shortest augmenting paths (Crouse 2016) on the CPU,
one pair after the other: for chosen pairs, such as mined negatives or the candidates of a re-ranking, not for all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError, UsageError
from ._tokens import Packed, pack
from .attend import Reduce, check_pairs


def assign(
    image: Tensor,
    text: Tensor | Packed,
    pairs: Tensor,
    *,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    reduce: Reduce = "mean",
) -> Tensor:
    """The score (N,) of the best one-to-one assignment of each pair's tokens to its patches.

    image   (I, P, D) patches; `image_mask` (I, P) bool, True = real
    text    (C, L, D) tokens with `text_mask` (C, L) bool, or `Packed`
    pairs   (N, 2) int64: image row, caption column
    reduce  of the similarities that are matched, min(patches, tokens) of them: "mean" or "sum"

    Float32, float64 for float64 inputs. The gradient goes through the matched similarities; which are matched is
    constant, as with `maxsim`. A pair without a real patch or token scores 0 and has no gradient. A similarity that is
    not finite raises `InputError`, as do shapes that do not fit; an unknown `reduce` raises `UsageError`.
    """
    if reduce not in ("mean", "sum"):
        raise UsageError(f"no reduction '{reduce}'", "Choose one of mean, sum.")
    packed = text if isinstance(text, Packed) else pack(text, text_mask)
    _check(image, image_mask, packed, text, text_mask)
    check_pairs(pairs, len(image), len(packed))
    dtype = torch.promote_types(torch.promote_types(image.dtype, packed.tokens.dtype), torch.float32)
    lengths = packed.lengths.tolist()
    captions = torch.split(packed.tokens.to(dtype), lengths)
    scores = []
    with torch.autocast(image.device.type, enabled=False):
        for row, column in pairs.tolist():
            patches = image[row] if image_mask is None else image[row][image_mask[row]]
            similarity = captions[column] @ patches.to(dtype).T
            tokens, patched = matched(similarity.detach()).unbind()
            chosen = similarity[tokens, patched]
            scores.append(chosen.mean() if reduce == "mean" and len(chosen) else chosen.sum())
    return torch.stack(scores) if scores else image.new_zeros(0, dtype=dtype)


@torch.library.custom_op("compal::assign_matched", mutates_args=())
def matched(similarity: Tensor) -> Tensor:
    """Token and patch of each match of (L, P) similarities, (2, min(L, P)) int64. Raises `InputError`."""
    from scipy.optimize import linear_sum_assignment

    known = similarity.cpu()
    if not bool(known.isfinite().all()):
        raise InputError("a similarity is not finite: no assignment is the best", "Look for NaN in the features.")
    tokens, patches = linear_sum_assignment(known.numpy(), maximize=True)
    found = similarity.new_empty(2, len(tokens), dtype=torch.int64)
    found[0], found[1] = torch.from_numpy(tokens), torch.from_numpy(patches)
    return found


@matched.register_fake
def _(similarity: Tensor) -> Tensor:
    return similarity.new_empty(2, torch.sym_min(*similarity.shape), dtype=torch.int64)


def _check(
    image: Tensor, image_mask: Tensor | None, packed: Packed, text: Tensor | Packed, mask: Tensor | None
) -> None:
    if image.ndim != 3 or image.shape[2] != packed.tokens.shape[1]:
        raise InputError(
            f"patches {tuple(image.shape)} for tokens of {packed.tokens.shape[1]} channels", "Give (I, P, D), one D."
        )
    if image_mask is not None and (image_mask.shape != image.shape[:2] or image_mask.dtype != torch.bool):
        raise InputError(
            f"a mask {tuple(image_mask.shape)} of {image_mask.dtype} for patches {tuple(image.shape)}",
            "Give (I, P) bool.",
        )
    if isinstance(text, Packed) and mask is not None:
        raise InputError("packed tokens come with a text mask", "Leave text_mask out: packed tokens are all real.")
