"""Patches gathered for each token by min-max attention, of given pairs: what SPARC and FSC-CLIP have in common."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-8  # of the largest similarity: a token that likes all patches alike has no span to divide by


def minmax(similarity: Tensor, mask: Tensor) -> Tensor:
    """(s - min) / (max - min) over the real patches, 0 on the others. similarity (N, L, P), mask (N, P) bool. All
    alike: all 1."""
    real = mask[:, None, :]
    low = similarity.masked_fill(~real, torch.inf).amin(2, keepdim=True)
    high = similarity.masked_fill(~real, -torch.inf).amax(2, keepdim=True)
    span = high - low
    flat = span <= EPS * torch.maximum(low.abs(), high.abs())
    return torch.where(flat, 1.0, (similarity - low) / span.masked_fill(flat, 1)).masked_fill(~real, 0)


def gathered(weights: Tensor, patches: Tensor) -> Tensor:
    """Σ_p a_p v_p / Σ_p a_p: weights (N, L, P), patches (N, P, E) → (N, L, E)."""
    total = weights.sum(2, keepdim=True)
    shares: Tensor = weights / total.masked_fill(total == 0, 1)
    return torch.bmm(shares, patches)
