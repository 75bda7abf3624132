"""`attend` on a GPU: one program multiplies a tile of tokens with all patches of an image and pools it there.

A tile is 64 tokens of several captions, since a token's score knows nothing of its neighbours; patches are the rows of
the product, as in `_transport_triton`. Similarities and weights stay in registers. |v|² is the sum of the squares of v,
made 64 features at a time: the product with G of `_attend_cpu` needs the weights in slices, which registers do not
give, and as float32 its G is as many bytes as the patches at D = 2 P. A weight is the sum of two numbers of the
tokens' type, so that it is rounded to 16 bits or more and not to the 8 of a bfloat16; float32 is multiplied as it is,
without tensor cores. The backward takes the tiles of `_attend_cpu`, by torch's operations.

Nothing waits for the GPU, also where pairs are given: there are programs for as many tiles as the pairs could fill.
"""

# ruff: noqa: PLR0913 (a kernel takes pointers, not objects)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._maxsim_triton import shared_memory
from .attend import NOISE

MOST = 16384  # similarities a program can hold, 64 registers of each of 256 threads
PATCHES = 512  # of an image, at most: with 1,024 the rest of a program spills, or does not fit the memory of an A100
NEEDED = 139264  # bytes of shared memory with `MOST` similarities on sm_90; sm_80 takes less


@triton.jit  # type: ignore[untyped-decorator]
def _weights(similarity, real, patch, pieces, kappa, k, RULE: tl.constexpr, PATCHES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Those of `reference_attend` times a factor for each token, (PATCHES, WORDS); 0 for what is not real."""
    if RULE == "minmax":
        low = tl.min(tl.where(real, similarity, float("inf")), axis=0)
        spread = tl.max(tl.where(real, similarity, float("-inf")), axis=0) - low
        varied = spread > 0
        a = (similarity - low[None, :]) / tl.where(varied, spread, 1.0)[None, :]
        a = tl.where((a >= 1.0 / pieces) | ~varied[None, :], tl.where(varied[None, :], a, 1.0), 0.0)
        return tl.where(real, a, 0.0)
    taken = real
    if RULE == "topk":
        left = tl.where(real, similarity, float("-inf"))
        for _ in range(k):
            top = tl.max(left, axis=0)
            first = tl.min(tl.where(left == top[None, :], patch[:, None], PATCHES), axis=0)
            left = tl.where(patch[:, None] == first[None, :], float("-inf"), left)
        taken = real & (left == float("-inf"))
    logits = tl.where(taken, similarity * kappa, float("-inf"))
    return tl.exp(logits - tl.max(logits, axis=0)[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _squares(  # type: ignore[no-untyped-def]
    image,
    a,
    patch,
    real_patch,
    WIDTH: tl.constexpr,
    WORDS: tl.constexpr,
    FEATURES: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
):
    """|Σ a V|² of each token (WORDS,)."""
    feature = tl.arange(0, FEATURES)
    columns = image + patch[None, :] * WIDTH + feature[:, None]
    total = tl.zeros([WORDS], tl.float32)
    high = a.to(image.dtype.element_ty)
    low = (a - high.to(tl.float32)).to(image.dtype.element_ty)
    for start in tl.range(0, WIDTH, FEATURES, num_stages=STAGES):
        inside = real_patch[None, :] & (start + feature < WIDTH)[:, None]
        values = tl.load(columns + start, mask=inside, other=0.0)
        pooled = tl.dot(values, high, input_precision="ieee")
        if SPLIT:
            pooled = tl.dot(values, low, pooled, input_precision="ieee")
        total += tl.sum(pooled * pooled, axis=0)
    return total


@triton.jit(do_not_specialize=["count", "images", "tiles", "k"])  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    image,
    image_mask,
    tokens,
    rows,
    owners,
    firsts,
    lasts,
    kappa,
    floors,
    out,
    count,
    patches,
    images,
    tiles,
    k,
    RULE: tl.constexpr,
    MASKED: tl.constexpr,
    PAIRED: tl.constexpr,
    SPLIT: tl.constexpr,
    WIDTH: tl.constexpr,
    PATCHES: tl.constexpr,
    WORDS: tl.constexpr,
    DEPTH: tl.constexpr,
    FEATURES: tl.constexpr,
    STAGES: tl.constexpr,
    POOL_STAGES: tl.constexpr,
):
    """out (N, I), or (M, 1) where `PAIRED`: a · S / |v| of each token, which its length still divides. Programs that
    share an image follow each other."""
    if PAIRED:
        number = tl.load(owners + tl.program_id(0))
        start, stop = tl.load(firsts + tl.program_id(0)), tl.load(lasts + tl.program_id(0))
    else:
        number = (tl.program_id(0) // tiles).to(tl.int64)
        start, stop = (tl.program_id(0) % tiles).to(tl.int64) * WORDS, count.to(tl.int64)
    slot, patch, depth = start + tl.arange(0, WORDS), tl.arange(0, PATCHES), tl.arange(0, DEPTH)
    real_word, real_patch = slot < stop, patch < patches
    if MASKED:
        real_patch = tl.load(image_mask + number * patches + patch, mask=real_patch, other=0) != 0
    token = tl.load(rows + slot, mask=real_word, other=0) if PAIRED else slot
    image += number * patches * WIDTH
    # Within an image 32 bits are enough, and half the registers of an address.
    lines = image + (patch[:, None] * WIDTH + depth[None, :])
    lists = tokens + token[None, :] * WIDTH + depth[:, None]
    pieces = tl.sum(real_patch.to(tl.float32), axis=0)
    if (pieces > 0) & (start < stop):
        similarity = tl.zeros([PATCHES, WORDS], tl.float32)
        for at in tl.range(0, WIDTH, DEPTH, num_stages=STAGES):
            inside = at + depth < WIDTH
            one = tl.load(lines + at, mask=real_patch[:, None] & inside[None, :], other=0.0)
            other = tl.load(lists + at, mask=real_word[None, :] & inside[:, None], other=0.0)
            similarity = tl.dot(one, other, similarity, input_precision="ieee")
        a = _weights(similarity, real_patch[:, None], patch, pieces, tl.load(kappa), k, RULE, PATCHES)
        dots, total = tl.sum(a * similarity, axis=0), tl.sum(a, axis=0)
        squares = _squares(image, a, patch, real_patch, WIDTH, WORDS, FEATURES, SPLIT, POOL_STAGES)
        fine = squares > tl.load(floors + number) * total * total
        score = tl.where(fine, dots / tl.sqrt(tl.where(fine, squares, 1.0)), 0.0)
        target = slot if PAIRED else slot * images + number
        tl.store(out + target, score, mask=real_word)


def fits(image: Tensor, tokens: Tensor) -> bool:
    """Whether an image's patches fit a program; else all take the tiles."""
    same = image.dtype == tokens.dtype and image.dtype in (torch.float32, torch.float16, torch.bfloat16)
    large = image.shape[1] > PATCHES // 2 and shared_memory(image.device) < NEEDED
    return same and image.shape[1] <= PATCHES and not large


def fill(
    image: Tensor,
    image_mask: Tensor | None,
    tokens: Tensor,
    kappa: Tensor,
    weights: str,
    k: int,
    rows: Tensor | None,
    counts: Tensor | None,
    out: Tensor,
) -> None:
    """Writes the token scores (N, I), or (M, 1) for pairs, as `attend_tokens` describes them."""
    out.zero_()
    if not out.numel() or not image.shape[1]:
        return
    image, tokens = image.contiguous(), tokens.contiguous()
    (images, patches, width), count = image.shape, len(tokens)
    norms = torch.linalg.vector_norm(image, dim=-1, dtype=torch.float32)
    mask = image
    if image_mask is not None:
        norms, mask = norms.masked_fill(~image_mask, 0), image_mask.contiguous().view(torch.uint8)
    floors = norms.amax(1).square() * (NOISE * torch.finfo(torch.float32).eps)
    constants, warps = sizes(image.dtype, width, patches, shared_memory(image.device))
    tiles = triton.cdiv(count, constants["WORDS"])
    lengths = torch.linalg.vector_norm(tokens, dim=-1, dtype=torch.float32)
    programs, place = images * tiles, (image, image, image, image)
    if rows is not None and counts is not None:
        lengths = lengths[rows]
        place = rows, *_tiles_of_pairs(counts, len(rows), constants["WORDS"])
        programs = len(place[1])
    _forward[(programs,)](
        image, mask, tokens, *place, kappa, floors, out, count, patches, images, tiles, min(k, patches),
        RULE=weights, MASKED=image_mask is not None, PAIRED=rows is not None, **constants, num_warps=warps,
    )  # fmt: skip
    out.div_(lengths.where(lengths > 0, torch.inf)[:, None])


def _tiles_of_pairs(counts: Tensor, rows: int, words: int) -> tuple[Tensor, Tensor, Tensor]:
    """The image, first row and end of each tile, where images have `counts` rows (I,); the last tiles may be empty."""
    each = (counts + words - 1) // words
    ends = each.cumsum(0)
    number = torch.arange(rows // words + len(counts), device=counts.device)
    owner = torch.searchsorted(ends, number, right=True)
    inside, owner = owner < len(counts), owner.clamp(max=len(counts) - 1)
    stop = counts.cumsum(0)
    first = (stop - counts)[owner] + (number - (ends - each)[owner]) * words
    return owner, first, stop[owner].where(inside, 0)


def sizes(dtype: torch.dtype, width: int, patches: int, shared: int) -> tuple[dict[str, Any], int]:
    """The constants of a kernel and its warps, from shapes and the shared memory of a block: nothing is timed."""
    single = dtype.itemsize == 4
    rows = max(64, 1 << (max(patches, 1) - 1).bit_length())
    words = min(64, (MOST // 2 if single or shared < NEEDED else MOST) // rows)
    least = max(16, 1 << (width - 1).bit_length())
    constants = {
        "SPLIT": not single,
        "WIDTH": width,
        "PATCHES": rows,
        "WORDS": words,
        "DEPTH": min(32 if single else 64, least),
        "FEATURES": words if single else 64,
        "STAGES": 2 if single or rows == PATCHES else 3,
        "POOL_STAGES": 1 if rows == PATCHES else 2,
    }
    return constants, min(max(rows * words // (1024 if single else 2048), 4), 8)


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], int, int]]:
    """What a build can compile without a GPU: name, kernel, types of its arguments, constants, warps and stages."""
    made = []
    for dtype, patches, rule, shared, pairs in (
        (torch.bfloat16, 196, "softmax", NEEDED, False),
        (torch.bfloat16, 196, "minmax", NEEDED - 1, True),
        (torch.bfloat16, 257, "topk", NEEDED, True),
        (torch.float32, 196, "topk", NEEDED, False),
    ):
        kind = "*fp32" if dtype == torch.float32 else "*bf16"
        signature = dict.fromkeys(("count", "patches", "images", "tiles", "k"), "i32") | {
            "image": kind, "image_mask": "*u8", "tokens": kind, "rows": "*i64", "owners": "*i64", "firsts": "*i64",
            "lasts": "*i64", "kappa": "*fp32", "floors": "*fp32", "out": "*fp32",
        }  # fmt: skip
        constants, warps = sizes(dtype, 768, patches, shared)
        flags = {"RULE": rule, "MASKED": pairs, "PAIRED": pairs}
        made.append((f"attend {rule} {kind[1:]}", _forward, signature, constants | flags, warps, 3))
    return made
