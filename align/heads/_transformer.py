"""The blocks that the transformer heads are made of.

Pre-norm, GELU, biases everywhere: PyTorch's `TransformerEncoderLayer(norm_first=True)`, with the same
number of parameters, written out so that one block can be exchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeysValues = tuple[Tensor, Tensor]


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, W) → (B, heads, S, W / heads)."""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


def _weights(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """(B, heads, S, d), (B, heads, P, d) and (B, P) → attention (B, S, P), the mean over heads."""
    logits = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    weights: Tensor = logits.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1).mean(1)
    return weights


class Attention(nn.Module):
    """Multi-head self-attention by `F.scaled_dot_product_attention`."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, S, W), mask (B, S) bool → (B, S, W)."""
        query, key, value = (_heads(part, self.heads) for part in self.inputs(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask[:, None, None], dropout_p=self.dropout * self.training
        )
        result: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return result

    def weights(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, S, S): what each place takes from each, the mean over heads."""
        query, key, _ = (_heads(part, self.heads) for part in self.inputs(x).chunk(3, dim=-1))
        return _weights(query, key, mask)


class CrossAttention(nn.Module):
    """Multi-head attention whose keys and values are computed apart, once per image.

    `compare` also passes on the product of what a token sees and what it says: whether both agree is
    bilinear in them, and a feed-forward layer of their sum must first learn to multiply.
    """

    def __init__(self, width: int, heads: int, dropout: float, compare: bool = False) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.memory = nn.Linear(width, 2 * width)
        self.said = nn.Linear(width, width) if compare else None
        self.output = nn.Linear(2 * width if compare else width, width)

    def keys_values(self, image: Tensor) -> KeysValues:
        """(I, P, W) → keys and values, (I, heads, P, W / heads) each."""
        key, value = (_heads(part, self.heads) for part in self.memory(image).chunk(2, dim=-1))
        return key, value

    def forward(self, x: Tensor, memory: KeysValues, mask: Tensor) -> Tensor:
        """x (1 or B, S, W), memory and mask (B, P) of B images → (B, S, W). With one x for all images the
        queries are projected once."""
        query = _heads(self.query(x), self.heads).expand(len(mask), -1, -1, -1)
        mixed = F.scaled_dot_product_attention(
            query, *memory, attn_mask=mask[:, None, None], dropout_p=self.dropout * self.training
        )
        seen = mixed.transpose(1, 2).flatten(2)
        if self.said is not None:
            seen = torch.cat([seen, seen * self.said(x)], dim=-1)
        result: Tensor = self.output(seen)
        return result

    def weights(self, x: Tensor, memory: KeysValues, mask: Tensor) -> Tensor:
        """x (B, S, W) → (B, S, P): what each place takes from each token of the memory, the mean over heads."""
        return _weights(_heads(self.query(x), self.heads), memory[0], mask)


class FeedForward(nn.Sequential):
    """Two layers with GELU between."""

    def __init__(self, width: int, ffn: int, dropout: float) -> None:
        super().__init__(nn.Linear(width, ffn), nn.GELU(), nn.Dropout(dropout), nn.Linear(ffn, width))


class SelfBlock(nn.Module):
    """Self-attention and feed-forward over one sequence: 3,152,384 parameters at width 512, ffn 2048."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, ffn, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, S, W), mask (B, S) → (B, S, W)."""
        x = x + self.dropout(self.attention(self.norms[0](x), mask))
        result: Tensor = x + self.dropout(self.feed_forward(self.norms[1](x)))
        return result


class CrossBlock(nn.Module):
    """Text tokens look at each other (if asked) and at the image; the image never looks back."""

    def __init__(
        self, width: int, heads: int, ffn: int, dropout: float, self_attention: bool, compare: bool = False
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = Attention(width, heads, dropout) if self_attention else None
        self.cross = CrossAttention(width, heads, dropout, compare)
        self.feed_forward = FeedForward(width, ffn, dropout)
        self.dropout = nn.Dropout(dropout)
        self.self_norm = nn.LayerNorm(width) if self_attention else None

    def keys_values(self, image: Tensor) -> KeysValues:
        """Keys and values of (I, P, W) image tokens for this block."""
        return self.cross.keys_values(self.norms[0](image))

    def among_themselves(self, x: Tensor, text_mask: Tensor) -> Tensor:
        """x (1 or B, T, L, W) after the text tokens have looked at each other, if they do."""
        if self.attention is None or self.self_norm is None:
            return x
        mask = text_mask.expand(x.shape[:3]).flatten(0, 1)
        mixed = self.attention(self.self_norm(x.flatten(0, 1)), mask)
        read: Tensor = x + self.dropout(mixed).view_as(x)
        return read

    def weights(self, x: Tensor, text_mask: Tensor, memory: KeysValues, image_mask: Tensor) -> Tensor:
        """x (B, 1, L, W) → (B, L, P): what each text token takes from each image token."""
        x = self.among_themselves(x, text_mask)
        found: Tensor = self.cross.weights(self.norms[1](x).flatten(1, 2), memory, image_mask)
        return found

    def forward(self, x: Tensor, text_mask: Tensor, memory: KeysValues, image_mask: Tensor) -> Tensor:
        """x (1 or B, T, L, W): T texts for each of B images; text_mask (1 or B, T, L); image_mask (B, P)
        → (B, T, L, W)."""
        x = self.among_themselves(x, text_mask)
        seen = self.cross(self.norms[1](x).flatten(1, 2), memory, image_mask)
        x = x + self.dropout(seen).view(len(image_mask), *x.shape[1:])
        result: Tensor = x + self.dropout(self.feed_forward(self.norms[2](x)))
        return result


POSITION_SCALE = 0.5  # projected states have a root mean square of 0.58 at first; 0.02 N(0, 1) would drown in it


def sines(positions: Tensor, width: int) -> Tensor:
    """(S,) places → (S, width): sines and cosines of wavelengths from 2π to 2π · 100 (Vaswani et al., 2017, with a
    shorter range: the longest axis here has some 80 places)."""
    rates = 100.0 ** -(torch.arange(width // 2) / max(width // 2, 1))
    angles = positions[:, None].float() * rates
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


def first_positions(count: int, width: int, grid: tuple[int, ...] = ()) -> Tensor:
    """(count, width) to start learned positions from: along the sequence, or, for the patches of a grid (rows,
    columns) after their prefix tokens, half for the row and half for the column."""
    if len(grid) != 2 or not 0 < grid[0] * grid[1] <= count:
        return POSITION_SCALE * sines(torch.arange(count), width)
    rows, columns = grid
    places = torch.arange(rows * columns)
    half = width // 2
    patches = torch.cat([sines(places // columns, half), sines(places % columns, width - half)], dim=1)
    return POSITION_SCALE * F.pad(patches, (0, 0, count - rows * columns, 0))


class TokenInput(nn.Module):
    """Tokens of one modality made ready: normalised, projected to the width, given type and position.

    The normalisation has no parameters; it makes the head indifferent to the scale of the backbone's
    states. Positions are learned, starting from sines and cosines; regions and segments, which have no order,
    get none (`positions=0`).
    """

    def __init__(self, dim: int, width: int, positions: int, grid: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.dim = dim
        self.project = nn.Linear(dim, width)
        self.kind = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.positions = nn.Parameter(first_positions(positions, width, grid)) if positions else None

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, D) → (B, S, W)."""
        x: Tensor = self.project(F.layer_norm(tokens, (self.dim,))) + self.kind
        return x if self.positions is None else x + self.positions[: x.shape[1]]


def mean_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens: x (…, S, W), mask (…, S) → (…, W)."""
    return x.masked_fill(~mask[..., None], 0).sum(-2) / mask.sum(-1, keepdim=True).clamp(min=1)
