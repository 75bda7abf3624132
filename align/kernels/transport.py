"""Optimal transport between the patches of an image and the tokens of a caption, softened by an entropy.

For S = V Tᵀ (P', L') over the real patches and tokens, r = 1 / P' and c = 1 / L' everywhere:

    score = max over plans A ≥ 0 with row sums r and column sums c of  Σ A S - epsilon · KL(A ‖ r cᵀ)

Every patch and every token takes part with its whole mass, where `maxsim` leaves all but the best patches out. The
entropy is counted from the independent plan r cᵀ, so that the lengths add no constant: the score lies between the
mean similarity (large epsilon) and the exact transport (small epsilon), at most epsilon · log min(P', L') below it.

Entropic transport by Sinkhorn's iterations: Cuturi 2013 (arXiv 1306.0895); the dual and its ascent by blocks: Peyré &
Cuturi (arXiv 1803.00567, section 4.4, with cost -S and f, g of the opposite sign).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import UsageError
from ._dispatch import Backend, choose_tiles
from ._tokens import Packed, unpack
from .attend import Reduce, check_pairs, prepare


def transport(  # noqa: PLR0913 - one public entry; all but the tokens by keyword
    image: Tensor,
    text: Tensor | Packed,
    *,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    epsilon: float = 0.1,
    iterations: int = 20,
    reduce: Reduce = "mean",
    pairs: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Every image against every caption: (I, C), or (N,) for `pairs`; float32, float64 for float64 inputs.

    image       (I, P, D) patches; `image_mask` (I, P) bool, True = real
    text        (C, L, D) tokens with `text_mask` (C, L) bool, or `Packed`
    epsilon     > 0, in units of the similarity: 0.1 suits cosines. It has no gradient
    iterations  ≥ 1 rounds of Sinkhorn, each an update of the patches' potentials f and then of the tokens' g
    reduce      "mean": the score above, of a mass of 1. "sum": times the caption's real tokens
    pairs       (N, 2) int64: image row, caption column

    The score is the dual function at the potentials after the last round, ⟨f, r⟩ + ⟨g, c⟩. With any number of rounds
    it is an upper bound of the maximum and falls from round to round; the two meet at convergence. The gradient is the
    plan of the last round, ∂score/∂S = A = r c exp((S - f - g) / epsilon): f counts as constant, g does not. Its column
    sums, a token's mass, are exactly 1 / L'; its row sums are 1 / P' up to what the rounds have left. At convergence it
    is the exact gradient (Danskin's theorem); before, it leaves out the path through f, which vanishes with the error
    of the row sums. Rounds needed grow with the spread of S over epsilon.

    Tokens are used as given: normalise them for cosines. A pair without a real patch or token scores 0 and has no
    gradient; what padding holds is not read. Where the spread of S over epsilon allows, a tile is iterated with
    exp(S / epsilon), else with logarithms: no spread overflows. Autograd goes to image and text, once; for it, one
    number per image and token is kept, and the plan is computed again, tile by tile.

    On a GPU with Triton, one program a pair holds the similarities through all rounds. Float64, inputs of two types,
    and a longest caption that makes more than 16,384 similarities (sides rounded up to powers of two: 64 tokens at 196
    patches) take the tiles of the CPU path there, by torch's operations.
    Raises `InputError` for shapes that do not fit, `UsageError` for an epsilon or iterations that are not positive, an
    unknown reduction, or a backend that cannot run.
    """
    image, packed, unit = _checked(image, text, image_mask, text_mask, epsilon, iterations, reduce, pairs)
    path = choose_tiles(backend, image)
    if path == "reference":
        return reference_transport(
            image, packed, image_mask=image_mask, epsilon=epsilon, iterations=iterations, reduce=reduce, pairs=pairs
        )
    from ._transport_cpu import transport_scores

    lengths = packed.lengths.to(image.device)
    each = lengths if pairs is None else lengths[pairs[:, 1]]
    room = len(packed.tokens) if pairs is None else int(each.sum())
    double, triton = unit.dtype == torch.float64, path == "triton"
    scores: Tensor = transport_scores(
        image, image_mask, packed.tokens, packed.lengths, pairs, room, float(epsilon), iterations, double, triton
    )[0]
    return scores * each if reduce == "sum" else scores


def reference_transport(  # noqa: PLR0913 - the arguments of `transport`
    image: Tensor,
    text: Tensor | Packed,
    *,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    epsilon: float = 0.1,
    iterations: int = 20,
    reduce: Reduce = "mean",
    pairs: Tensor | None = None,
) -> Tensor:
    """What `transport` computes, written plainly: all (I, C, L, P) similarities at once, in logarithms. Differentiable,
    with the gradient that `transport` documents."""
    image, packed, unit = _checked(image, text, image_mask, text_mask, epsilon, iterations, reduce, pairs)
    with torch.autocast(image.device.type, enabled=False):
        values, words = unpack(packed)
        values, image = values.to(unit.dtype), image.to(unit.dtype)
        real = torch.ones_like(image[..., 0], dtype=torch.bool) if image_mask is None else image_mask
        image = image.masked_fill(~real[..., None], 0)
        fine = real.any(1)[:, None] & words.any(1)
        patches, words = real[:, None, None, :], words[None, :, :, None]
        # A pair with nothing real counts all its padding: finite, and set to 0 in the end.
        patches, words = patches | ~fine[..., None, None], words | ~fine[..., None, None]
        similarity = torch.einsum("ipd,cld->iclp", image, values)
        scaled = (similarity / epsilon).masked_fill(~(patches & words), -torch.inf)
        g = torch.zeros_like(scaled[..., :1])
        with torch.no_grad():
            for _ in range(iterations):
                f = _update(scaled, g, words, patches, 2)
                g = _update(scaled, f, patches, words, 3)
        g = _update(scaled, f, patches, words, 3)
        total = epsilon * (_mean(f, patches, 3) + _mean(g, words, 2))[..., 0, 0]
        total = total.masked_fill(~fine, 0)
        if reduce == "sum":
            total = total * packed.lengths.to(total.device)
    return total if pairs is None else total[pairs[:, 0], pairs[:, 1]]


def _update(scaled: Tensor, other: Tensor, over: Tensor, own: Tensor, dim: int) -> Tensor:
    """The potential, over epsilon, that gives the side `own` its exact mass: the soft maximum over the other side."""
    found = (scaled - other).logsumexp(dim, keepdim=True) - over.sum(dim, keepdim=True).to(scaled.dtype).log()
    return found.masked_fill(~own, 0)


def _mean(potential: Tensor, real: Tensor, dim: int) -> Tensor:
    return potential.sum(dim, keepdim=True) / real.sum(dim, keepdim=True)


def _checked(  # noqa: PLR0913 - all that can be wrong, in one place for both forms
    image: Tensor,
    text: Tensor | Packed,
    image_mask: Tensor | None,
    text_mask: Tensor | None,
    epsilon: float,
    iterations: int,
    reduce: str,
    pairs: Tensor | None,
) -> tuple[Tensor, Packed, Tensor]:
    """The image, the real tokens packed, and a scalar in the dtype of the scores."""
    if isinstance(epsilon, Tensor) or not (epsilon > 0 and math.isfinite(epsilon)):
        raise UsageError(f"epsilon is {epsilon}", "Give a positive number; it has no gradient.")
    if iterations < 1:
        raise UsageError(f"{iterations} iterations", "Give at least one.")
    if reduce not in ("mean", "sum"):
        raise UsageError(f"no reduction '{reduce}'", "Choose one of mean, sum.")
    image, packed, unit = prepare(image, text, image_mask, text_mask, 1.0)
    if pairs is not None:
        check_pairs(pairs, len(image), len(packed))
    return image, packed, unit
