"""Where to cut open_clip's text towers: see `towers.py`, which says what an adapter gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import InputError
from .towers import Blocks


class NativeTexts(Blocks):
    """open_clip's own text transformer, inside `CLIP` or as `TextTransformer`."""

    pad = 0

    def __init__(self, text: Any) -> None:
        super().__init__(text.transformer.resblocks)
        self.text = text
        self.pool_type = getattr(text, "pool_type", None) or text.text_pool_type
        self.eos = getattr(text, "eos_id", getattr(text, "text_eos_id", None))
        self.cls = getattr(text, "cls_emb", None) is not None
        self.size, self.width = map(int, text.token_embedding.weight.shape)
        self.context_length = int(text.positional_embedding.shape[0]) - self.cls
        self.pad = int(getattr(text, "pad_id", 0))
        # Behind a causal mask nothing before the end sees the padding. CoCa's CLS stands after the padding.
        self.trims = text.attn_mask is not None and not self.cls and self.pool_type in ("argmax", "eos", "first")
        self.attends = not self.trims
        if self.cls or getattr(text, "use_pad_mask", False):
            self.blocks = 0  # The mask is made of the ids, which states no longer hold.
        if self.pool_type == "none" and not self.cls:
            raise InputError("the text tower pools nothing", "Use a model whose text_cfg has a pool_type.")

    def embed(self, inputs: Tensor) -> tuple[Tensor, Any]:
        text, length = self.text, inputs.shape[1]
        if hasattr(text, "_embeds"):
            embedded, mask = text._embeds(inputs)
        else:
            embedded, mask = text.token_embedding(inputs) + text.positional_embedding[:length], text.attn_mask
        if mask is not None and mask.ndim == 2:
            mask = mask[:length, :length]
        return embedded, mask

    def block(self, index: int, states: Tensor, context: Any) -> Tensor:
        through: Tensor = self.modules[index](states, attn_mask=context)
        return through

    def finish(self, states: Tensor) -> Tensor:
        # With an appended CLS the final norm is applied to it alone, after pooling.
        return states if self.cls else self.text.ln_final(states)

    def leave(self, tokens: Sequence[Tensor], k: int) -> list[Tensor]:
        states = pad_sequence(list(tokens), batch_first=True)
        length = states.shape[1]
        mask = self.text.attn_mask
        last = self.through(states, k, None if mask is None else mask[:length, :length])
        return [row[: len(rows)] for row, rows in zip(last, tokens, strict=True)]

    def pooled_position(self, ids: Tensor) -> list[int]:
        rows, length = ids.shape
        if self.cls:
            return [length] * rows
        if self.pool_type in ("first", "last"):
            return [0 if self.pool_type == "first" else length - 1] * rows
        where = ids if self.pool_type == "argmax" else ids.eq(self.eos if self.eos is not None else -1).int()
        return [int(index) for index in where.argmax(dim=-1).tolist()]

    def pool(self, tokens: Sequence[Tensor], pool_index: Sequence[int]) -> Tensor:
        pooled = torch.stack([rows[index] for rows, index in zip(tokens, pool_index, strict=True)])
        if self.cls:
            pooled = self.text.ln_final(pooled)
        projection = self.text.text_projection
        if projection is None:
            return pooled
        linear = isinstance(projection, torch.nn.Linear)
        projected: Tensor = projection(pooled) if linear else pooled @ projection
        return projected


class HubTexts(Blocks):
    """A Hugging Face text tower (`HFTextEncoder`: RoBERTa, XLM-R, mT5, NLLB). Padding is masked everywhere.

    Those with a plain stack of layers (`encoder.layer`) can be entered; mT5's and NLLB's blocks share what their
    first computes, or end in norms of their own.
    """

    trims = False
    attends = False

    def __init__(self, text: Any) -> None:
        super().__init__(getattr(getattr(text.transformer, "encoder", None), "layer", ()))
        self.text = text
        embeddings = text.transformer.get_input_embeddings().weight
        self.size, self.width = map(int, embeddings.shape)
        self.context_length = int(text.context_length)
        self.pooler = type(text.pooler).__name__
        self.pad = int(text.config.pad_token_id)

    def at(self, inputs: Tensor, depths: Any) -> dict[int, Tensor]:
        asked = {"output_hidden_states": True} if any(depths) else {}
        found = self.text.transformer(input_ids=inputs, attention_mask=(inputs != self.pad).long(), **asked)
        # States enter layer 0 as hidden_states[0]; the last of them are those that left the last layer.
        hidden = found.hidden_states if any(depths) else ()
        return {depth: hidden[self.blocks - depth] if depth else found.last_hidden_state for depth in depths}

    def block(self, index: int, states: Tensor, context: Any) -> Tensor:
        given = self.modules[index](states, attention_mask=context)
        through: Tensor = given[0] if isinstance(given, tuple) else given
        return through

    def finish(self, states: Tensor) -> Tensor:
        return states

    def leave(self, tokens: Sequence[Tensor], k: int) -> list[Tensor]:
        states, mask = _padded(tokens)
        beyond = torch.finfo(states.dtype).min * (1 - mask[:, None, None, :].to(states.dtype))
        last = self.through(states, k, beyond)
        return [row[: len(rows)] for row, rows in zip(last, tokens, strict=True)]

    def pooled_position(self, ids: Tensor) -> list[int]:
        return [0 if self.pooler.startswith("Cls") else -1] * len(ids)

    def pool(self, tokens: Sequence[Tensor], pool_index: Sequence[int]) -> Tensor:
        padded, mask = _padded(tokens)
        if self.pooler.startswith("Cls"):
            # The model's own pooler where open_clip asks for it and there is one (BERT's dense layer and tanh).
            wanted = self.pooler == "ClsPooler" and self.text.pooler.use_pooler_output
            own = getattr(self.text.transformer, "pooler", None) if wanted else None
            pooled = padded[:, 0] if own is None else own(padded)
        else:
            pooled = self.text.pooler(_HiddenStates(padded), mask)
        projected: Tensor = self.text.proj(pooled)
        return projected


def _padded(tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """B of (L, D) → (B, longest, D), and which positions are theirs."""
    padded = pad_sequence(list(tokens), batch_first=True)
    lengths = torch.tensor([len(rows) for rows in tokens], device=padded.device)
    return padded, (torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]).long()


class _HiddenStates:
    """What open_clip's poolers read of a Hugging Face model's output."""

    def __init__(self, last_hidden_state: Tensor) -> None:
        self.last_hidden_state = last_hidden_state
