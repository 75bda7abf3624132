"""What the heads over tokens share: the way into one space, and what they ask of a store."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError
from ..scorer import Dims


def require_pooled(dims: Dims, head: str) -> None:
    """Raise `InputError` if the store keeps no pooled embeddings. Heads that read them call this to build."""
    if not dims.pooled_dim:
        raise InputError(
            f"head '{head}' reads pooled embeddings, and this store keeps none",
            "Extract with --level tokens, or pooled if it reads no tokens.",
        )


def require_one_space(dims: Dims, what: str, cure: str) -> None:
    """Raise `InputError` if image and text tokens have different widths, so that no product is defined."""
    if dims.image_dim != dims.text_dim:
        raise InputError(
            f"{what} compares image tokens with text tokens: {dims.image_dim} and {dims.text_dim} wide here", cure
        )


class Projection(nn.Module):
    """A linear map without bias, of states normalised without parameters: indifferent to the backbone's scale."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.dim = dim
        self.map = nn.Linear(dim, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(…, D) → (…, width)."""
        mapped: Tensor = self.map(F.layer_norm(tokens, (self.dim,)))
        return mapped
