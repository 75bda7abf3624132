"""Tokens of many captions laid end to end, and what a kernel must know of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InputError


@dataclass(frozen=True, eq=False)
class Packed:
    """C sequences of unequal length without padding: what a ragged store holds, and what a product should cost.

    tokens   (N, D), N the sum of `lengths`; the tokens of a sequence stand together, in order
    lengths  (C,) int64, 0 allowed; on any device
    Raises `InputError` if the two do not fit.
    """

    tokens: Tensor
    lengths: Tensor

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.lengths.ndim != 1 or self.lengths.dtype != torch.int64:
            raise InputError(
                f"packed tokens are {tuple(self.tokens.shape)} with lengths {tuple(self.lengths.shape)} of"
                f" {self.lengths.dtype}",
                "Give tokens (N, D) and lengths (C,) int64.",
            )
        if not torch.compiler.is_compiling() and self.lengths.device.type == "cpu":
            total = int(self.lengths.sum())
            if total != len(self.tokens) or (len(self.lengths) and int(self.lengths.min()) < 0):
                raise InputError(f"lengths sum to {total}, and there are {len(self.tokens)} packed tokens")

    def __len__(self) -> int:
        return len(self.lengths)

    def owners(self) -> Tensor:
        """(N,) int64: the sequence of each token."""
        numbers = torch.arange(len(self.lengths), device=self.lengths.device)
        return numbers.repeat_interleave(self.lengths, output_size=len(self.tokens)).to(self.tokens.device)


def pack(values: Tensor, mask: Tensor | None = None) -> Packed:
    """(C, S, D) and (C, S) bool → the real tokens only. Autograd goes through; what padding holds is not read."""
    if mask is None:
        lengths = torch.full((values.shape[0],), values.shape[1], dtype=torch.int64, device=values.device)
        return Packed(values.flatten(0, 1), lengths)
    if mask.shape != values.shape[:2] or mask.dtype != torch.bool:
        raise InputError(
            f"a mask {tuple(mask.shape)} of {mask.dtype} for tokens {tuple(values.shape)}", "Give (C, L) bool."
        )
    return Packed(values[mask], mask.sum(1))


def unpack(packed: Packed) -> tuple[Tensor, Tensor]:
    """The inverse of `pack`: (C, S, D) with zeros behind the tokens, S the longest, and (C, S) bool."""
    lengths = packed.lengths.to(packed.tokens.device)
    longest = int(lengths.max()) if len(lengths) else 0
    mask = torch.arange(longest, device=lengths.device) < lengths[:, None]
    values = packed.tokens.new_zeros(len(lengths), longest, packed.tokens.shape[1])
    return values.index_put((mask,), packed.tokens), mask


def padded(text: Tensor | Packed, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Tokens and mask, whichever form they came in."""
    return unpack(text) if isinstance(text, Packed) else (text, mask)


def front(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, S, D) with the real tokens of each row first, in order, and how many they are, (B,) int64. Rows whose real
    tokens are in front already are not copied on a CPU; on a GPU, where to ask would wait for it, and under
    torch.compile, whose graph cannot ask, they are."""
    if mask is None:
        return values, torch.full((values.shape[0],), values.shape[1], dtype=torch.int64, device=values.device)
    lengths = mask.sum(1)
    looked = mask.device.type == "cpu" and not torch.compiler.is_compiling()
    if looked and bool((mask.cummin(1).values == mask).all()):
        return values, lengths
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
    return values.gather(1, order[..., None].expand_as(values)), lengths
