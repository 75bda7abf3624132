"""Text-conditioned pooling: each token gathers the patches it attends to, and is scored against what it gathered.

For image V (P, D) and token t (D,):  S_p = V_p · t,  a = weights(S),  v = Σ_p a_p V_p,  score = cos(v, t).
This is the scorer of C2LIP's XAC (arXiv 2603.25722: softmax, kappa 1), SCAN (arXiv 1803.08024, eq. 1-5: softmax) and
SPARC (arXiv 2401.09865, eq. 2-4: min-max); an image is pooled again for every caption, negatives included, as FLAIR
(arXiv 2412.03561) shows that it must be.

v is never built for all pairs: with G = V Vᵀ, the P × P products of an image's own patches,
cos(v, t) = a·S / (√(aᵀ G a) |t|), so that the second product costs P a token where the plain form costs D.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...errors import InputError, UsageError
from ._dispatch import Backend, choose_tiles
from ._tokens import Packed, pack, unpack

Weights = Literal["softmax", "minmax", "topk"]
Reduce = Literal["mean", "sum"]
# |v|² below this many rounding errors of the longest patch's |V|² is noise: such a v counts as zero.
NOISE = 16


def attend(  # noqa: PLR0913 - one keyword for each choice of the published scorers
    image: Tensor,
    text: Tensor | Packed,
    *,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    kappa: float | Tensor = 1.0,
    weights: Weights = "softmax",
    k: int = 4,
    reduce: Reduce = "mean",
    pairs: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Every image against every caption: (I, C), or (N,) for `pairs`.

    image       (I, P, D) patches; `image_mask` (I, P) bool, True = real
    text        (C, L, D) tokens with `text_mask` (C, L) bool, or `Packed`. A segment is a token like any other:
                `attend(image, *segment_queries(...))` scores noun phrases
    kappa       the inverse temperature; a scalar tensor gets its gradient. "minmax" has none and ignores it
    weights     "softmax": softmax_p(kappa S). "topk": the same over the `k` patches most similar to the token.
                "minmax": SPARC's, (S - min) / (max - min), zero where below 1 / P, to sum 1; uniform where all S are
                equal. P counts the real patches
    reduce      over the caption's real tokens
    pairs       (N, 2) int64: image row, caption column

    Tokens are used as given: normalise them first for cosines inside the weights. A zero token, or a v of zero (|v|²
    within 16 rounding errors of the longest patch's |V|²), scores 0 and has no gradient; so does a pair without a real
    patch or token. Scores are float32, float64 for float64 inputs; the norm of v has a relative error of about
    eps · max|V|² / |v|². Autograd goes to image, text and kappa, once; the backward computes the weights again, tile by
    tile (on a GPU too, with torch's own operations), and keeps nothing but the inputs.

    On a GPU with Triton, one program pools an image for 64 tokens in registers, with all three kinds of weights; 16-bit
    tokens are multiplied as they are, and each weight as a sum of two numbers of their type. Float64, inputs of two
    types, and more than 512 patches (256 where a block has less than 136 KB of shared memory) take the tiles of the CPU
    path there, by torch's operations in float32.
    Raises `InputError` for shapes that do not fit, `UsageError` for an unknown word or a backend that cannot run.
    """
    _check_words(weights, reduce, k)
    image, packed, kappa_ = prepare(image, text, image_mask, text_mask, kappa)
    path = choose_tiles(backend, image)
    if path == "reference":
        return reference_attend(
            image, packed, image_mask=image_mask, kappa=kappa_, weights=weights, k=k, reduce=reduce, pairs=pairs
        )
    from ._attend_cpu import attend_tokens

    triton = path == "triton"
    if pairs is None:
        scores = attend_tokens(image, image_mask, packed.tokens, kappa_, weights, k, None, None, triton)
        return pool(scores, packed.owners(), packed.lengths, reduce).T
    rows, counts, owners, lengths = pair_rows(packed, pairs, len(image))
    scores = attend_tokens(image, image_mask, packed.tokens, kappa_, weights, k, rows, counts, triton)
    return pool(scores, owners, lengths, reduce)[:, 0]


def segment_queries(text: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """Token states (C, L, D) and the segment of each token (C, L) int64, -1 for none → the mean token of every segment
    (C, K, D), zeros where a caption has no such segment, and which are real (C, K) bool; K is the highest number + 1.
    Autograd goes through; a token outside all segments may hold anything. Raises `InputError` if the two do not fit."""
    if segments.shape != text.shape[:2] or segments.dtype != torch.int64:
        raise InputError(
            f"segments {tuple(segments.shape)} of {segments.dtype} for tokens {tuple(text.shape)}",
            "Give (C, L) int64, -1 where a token is in none.",
        )
    captions = segments.shape[0]
    most = int(segments.max()) + 1 if segments.numel() else 0
    inside = segments >= 0
    slot = torch.arange(captions, device=text.device)[:, None] * most + segments
    slot = slot.where(inside, captions * most).flatten()  # one more, for what is in none
    values = text.masked_fill(~inside[..., None], 0).flatten(0, 1)
    sums = text.new_zeros(captions * most + 1, text.shape[2]).index_add(0, slot, values)[:-1]
    counts = torch.zeros(captions * most + 1, device=text.device).index_add(0, slot, inside.flatten().float())[:-1]
    means = sums / counts.clamp(min=1).to(text.dtype)[:, None]
    return means.view(captions, most, -1), counts.view(captions, most) > 0


def reference_attend(  # noqa: PLR0913 - the arguments of `attend`
    image: Tensor,
    text: Tensor | Packed,
    *,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    kappa: float | Tensor = 1.0,
    weights: Weights = "softmax",
    k: int = 4,
    reduce: Reduce = "mean",
    pairs: Tensor | None = None,
) -> Tensor:
    """What `attend` computes, written plainly: v is built for every token, (I, C, L, D) of them. Differentiable."""
    _check_words(weights, reduce, k)
    image, packed, kappa_ = prepare(image, text, image_mask, text_mask, kappa)
    with torch.autocast(image.device.type, enabled=False):
        values, real_tokens = unpack(packed)
        values, image = values.to(kappa_.dtype), image.to(kappa_.dtype)
        real = torch.ones_like(image[..., 0], dtype=torch.bool) if image_mask is None else image_mask
        image = image.masked_fill(~real[..., None], 0)
        similarity = torch.einsum("ipd,cld->iclp", image, values)
        taken = (real | ~real.any(1, keepdim=True))[:, None, None]
        a = _plain_weights(similarity, taken, kappa_, weights, k)
        pooled = torch.einsum("iclp,ipd->icld", a, image)
        dots = (pooled * values).sum(-1)
        squares, lengths = pooled.square().sum(-1), values.square().sum(-1)
        floor = NOISE * torch.finfo(kappa_.dtype).eps * image.square().sum(-1).amax(1)[:, None, None]
        fine = (squares > floor) & (lengths > 0) & real_tokens
        cosine = dots / (squares * lengths).where(fine, 1.0).sqrt()
        total = cosine.masked_fill(~fine, 0).sum(-1)
        if reduce == "mean":
            total = total / real_tokens.sum(1).clamp(min=1)
    return total if pairs is None else total[pairs[:, 0], pairs[:, 1]]


def _plain_weights(similarity: Tensor, taken: Tensor, kappa: Tensor, weights: str, k: int) -> Tensor:
    if weights == "minmax":
        lowest = similarity.masked_fill(~taken, torch.inf).amin(-1, keepdim=True)
        highest = similarity.masked_fill(~taken, -torch.inf).amax(-1, keepdim=True)
        spread = highest - lowest
        relative = (similarity - lowest) / spread.where(spread > 0, 1.0)
        kept = relative.masked_fill(~(taken & (relative >= 1 / taken.sum(-1, keepdim=True))), 0)
        flat = (taken / taken.sum(-1, keepdim=True)).to(similarity.dtype)
        return torch.where(spread > 0, kept / kept.sum(-1, keepdim=True).where(spread > 0, 1.0), flat)
    if weights == "topk":
        order = similarity.masked_fill(~taken, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        best = torch.zeros_like(similarity, dtype=torch.bool).scatter(-1, order[..., :k], True)
        taken = taken & best
    return (kappa * similarity).masked_fill(~taken, -torch.inf).softmax(-1)


def prepare(
    image: Tensor,
    text: Tensor | Packed,
    image_mask: Tensor | None,
    text_mask: Tensor | None,
    kappa: float | Tensor,
) -> tuple[Tensor, Packed, Tensor]:
    """The image, the real tokens packed, and kappa as a scalar in the dtype of the scores. Raises `InputError`."""
    packed = text if isinstance(text, Packed) else pack(_three(text, "text"), text_mask)
    if isinstance(text, Packed) and text_mask is not None:
        raise InputError("packed tokens come with a text mask", "Leave text_mask out: packed tokens are all real.")
    if _three(image, "image").shape[2] != packed.tokens.shape[1]:
        raise InputError(
            f"patches have {image.shape[2]} channels and tokens {packed.tokens.shape[1]}", "Project them to one width."
        )
    if image_mask is not None and (image_mask.shape != image.shape[:2] or image_mask.dtype != torch.bool):
        raise InputError(
            f"a mask {tuple(image_mask.shape)} of {image_mask.dtype} for patches {tuple(image.shape)}",
            "Give (I, P) bool.",
        )
    wide = torch.promote_types(image.dtype, packed.tokens.dtype)
    dtype = torch.float64 if wide == torch.float64 else torch.float32
    scalar = torch.as_tensor(kappa, dtype=dtype, device=image.device)
    if scalar.numel() != 1:
        raise InputError(f"kappa has {scalar.numel()} values", "Give a number or a scalar tensor.")
    return image, packed, scalar.reshape(())


def _three(tokens: Tensor, name: str) -> Tensor:
    if tokens.ndim != 3:
        raise InputError(f"{name} tokens are {tuple(tokens.shape)}", "Give (rows, tokens, channels).")
    return tokens


def _check_words(weights: str, reduce: str, k: int) -> None:
    if weights not in ("softmax", "minmax", "topk"):
        raise UsageError(f"no weights '{weights}'", "Choose one of softmax, minmax, topk.")
    if reduce not in ("mean", "sum"):
        raise UsageError(f"no reduction '{reduce}'", "Choose one of mean, sum.")
    if k < 1:
        raise UsageError(f"k is {k}", "Take at least one patch.")


def pool(scores: Tensor, owners: Tensor, lengths: Tensor, reduce: str) -> Tensor:
    """Token scores (N, I) → (C, I): the sum or mean over the tokens that each row owns; 0 for a row without any."""
    total = scores.new_zeros(len(lengths), scores.shape[1]).index_add(0, owners, scores)
    if reduce == "mean":
        total = total / lengths.to(scores.device).clamp(min=1)[:, None]
    return total


def pair_rows(packed: Packed, pairs: Tensor, images: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What pairs ask for, image by image: the token rows (M,) in the order of the images, how many of them each image
    has (I,), the pair that owns each row (M,), and the tokens of each pair (N,). All int64. Raises `InputError`."""
    device = packed.tokens.device
    check_pairs(pairs, images, len(packed))
    lengths = packed.lengths.to(device)
    order = pairs[:, 0].argsort(stable=True)
    each, starts = lengths[pairs[:, 1]], lengths.cumsum(0) - lengths
    owners = order.repeat_interleave(each[order])
    before = (each[order].cumsum(0) - each[order]).repeat_interleave(each[order])
    rows = starts[pairs[owners, 1]] + torch.arange(len(owners), device=device) - before
    counts = torch.zeros(images, dtype=torch.int64, device=device).index_add(0, pairs[:, 0], each)
    return rows, counts, owners, each


def check_pairs(pairs: Tensor, images: int, captions: int) -> None:
    """Raises `InputError` unless pairs are (N, 2) int64 within the rows; what lies on a GPU, and what torch.compile
    traces, is not looked at."""
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype != torch.int64:
        raise InputError(f"pairs are {tuple(pairs.shape)} of {pairs.dtype}", "Give (N, 2) int64: image, caption.")
    if pairs.device.type == "cpu" and len(pairs) and not torch.compiler.is_compiling():
        low, high = pairs.amin(0).tolist(), pairs.amax(0).tolist()
        if min(low) < 0 or high[0] >= images or high[1] >= captions:
            raise InputError(f"pairs reach {high} and {low} among {images} images and {captions} captions")
