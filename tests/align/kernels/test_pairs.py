"""The driver of pairs against a loop without padding, for modules that are not ours."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compal.align.kernels import pairs as module
from compal.align.kernels.pairs import memory_scores, pair_scores
from compal.errors import InputError

PAIRS = torch.tensor([[4, 1], [0, 0], [0, 6], [0, 3], [2, 5], [1, 2], [0, 5], [2, 0], [0, 0], [4, 6], [3, 3]])


class Mixer(nn.Module):
    """Both as one sequence, through PyTorch's own encoder."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout, batch_first=True).double()
        self.out = nn.Linear(8, 1).double()

    def forward(self, image, image_mask, text, text_mask):
        x, mask = torch.cat([image, text], 1), torch.cat([image_mask, text_mask], 1)
        x = self.layer(x, src_key_padding_mask=~mask)
        return self.out((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))[:, 0]


class Looker(nn.Module):
    """Words look at the image's keys and values."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.maps = nn.ModuleList(nn.Linear(8, 8).double() for _ in range(3))
        self.out, self.dropout, self.projected = nn.Linear(8, 1).double(), nn.Dropout(dropout), []

    def memory(self, image, mask):
        self.projected += [len(image)]
        return {"key": self.maps[0](image), "value": self.maps[1](image)}

    def query(self, memory, image_mask, text, text_mask):
        asked = self.maps[2](text).flatten(1, 2).expand(len(image_mask), -1, -1)
        seen = F.scaled_dot_product_attention(
            asked, memory["key"], memory["value"], attn_mask=image_mask[:, None], dropout_p=0.0
        )
        seen = self.dropout(seen).view(len(image_mask), *text.shape[1:]) * text
        words = text_mask[..., None]
        return self.out((seen.tanh() * words).sum(2) / words.sum(2).clamp(min=1))[..., 0]


def inputs(garbage=0.0):
    made = torch.Generator().manual_seed(1)
    image, text = (torch.randn(n, s, 8, generator=made, dtype=torch.float64) for n, s in ((5, 4), (7, 6)))
    image_mask = torch.rand(5, 4, generator=made) < 0.7
    text_mask = torch.rand(7, 6, generator=made) < 0.6
    image_mask[:, 1] = text_mask[:, 2] = True
    image_mask[3] = text_mask[5] = False  # nothing real
    image.masked_fill_(~image_mask[..., None], garbage)
    text.masked_fill_(~text_mask[..., None], garbage)
    return image.requires_grad_(), text.requires_grad_(), image_mask, text_mask


def reference_pair_scores(model, image, text, image_mask, text_mask, pairs):
    """One pair at a time, its real tokens and nothing else."""
    scores = []
    for row, column in pairs.tolist():
        patches, words = image[row][image_mask[row]][None], text[column][text_mask[column]][None]
        if not patches.numel() or not words.numel():
            scores.append(image.new_zeros(()))
            continue
        ones = [torch.ones(side.shape[:2], dtype=torch.bool) for side in (patches, words)]
        if isinstance(model, Mixer):
            scores.append(model(patches, ones[0], words, ones[1])[0])
        else:
            scores.append(model.query(model.memory(patches, ones[0]), ones[0], words[None], ones[1][None])[0, 0])
    return torch.stack(scores)


def driven(model, image, text, image_mask, text_mask, **options):
    masks = {"image_mask": image_mask, "text_mask": text_mask}
    if isinstance(model, Mixer):
        return pair_scores(model, image, text, **masks, **options)
    return memory_scores(model.memory, model.query, image, text, **masks, **options)


def outcome(model, function, garbage=0.0):
    """Scores and all gradients."""
    image, text, *masks = inputs(garbage)
    model.zero_grad()
    scores = function(model, image, text, *masks)
    (scores * torch.linspace(0.5, 2, scores.numel(), dtype=scores.dtype).view_as(scores)).sum().backward()
    return [scores.detach(), image.grad, text.grad, *(p.grad.clone() for p in model.parameters())]


def assert_same(one, other):
    for here, there in zip(one, other, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-10, atol=1e-10)


both = pytest.mark.parametrize("kind", [Mixer, Looker])


@both
@pytest.mark.parametrize("recompute", [False, True, "auto"])
@pytest.mark.parametrize("tokens", [1, 23, None])
@pytest.mark.parametrize("chosen", [PAIRS, None], ids=["pairs", "all"])
def test_chunks_equal_the_slow_loop(kind, chosen, tokens, recompute):
    model = kind()
    every = torch.cartesian_prod(torch.arange(5), torch.arange(7)) if chosen is None else chosen
    found = outcome(model, lambda *a: driven(*a, pairs=chosen, tokens=tokens, recompute=recompute))
    expected = outcome(model, lambda *a: reference_pair_scores(*a, every))
    assert found[0].shape == ((5, 7) if chosen is None else (11,))
    assert_same([found[0].flatten(), *found[1:]], expected)


@both
@pytest.mark.parametrize("chosen", [PAIRS, None], ids=["pairs", "all"])
def test_padding_may_hold_anything(kind, chosen):
    model = kind()
    plain, dirty = (outcome(model, lambda *a: driven(*a, pairs=chosen), g) for g in (0.0, torch.nan))
    for one, two in zip(plain, dirty, strict=True):
        assert torch.equal(one, two)


@both
@pytest.mark.parametrize("chosen", [PAIRS, None], ids=["pairs", "all"])
def test_recomputed_chunks_have_the_same_dropout(kind, chosen):
    model = kind(dropout=0.5)

    def run(recompute):
        def seeded(*arguments):
            torch.manual_seed(3)
            return driven(*arguments, pairs=chosen, tokens=30, recompute=recompute)

        return outcome(model, seeded)

    assert_same(run(True), run(False))
    assert not torch.equal(run(True)[0], outcome(kind(dropout=0.0), lambda *a: driven(*a, pairs=chosen))[0])


@both
def test_pairs_are_places_of_the_block(kind):
    model, arguments = kind(), inputs()
    block = driven(model, *arguments)
    assert_same([driven(model, *arguments, pairs=PAIRS)], [block[PAIRS[:, 0], PAIRS[:, 1]]])
    assert driven(model, *arguments, pairs=PAIRS[:0]).shape == (0,)


def test_memories_are_made_once_per_image():
    """Not for every pair, and a tile copies nothing."""
    model, (image, text, *_) = Looker(), inputs()
    memory_scores(model.memory, model.query, image, text, pairs=PAIRS)
    assert sum(model.projected) == 5
    model.projected.clear()
    memory_scores(model.memory, model.query, image, text, tokens=20, texts=2)
    assert sum(model.projected) == 5


def test_auto_goes_by_what_the_first_chunk_holds(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "checkpoint", lambda function, chunk, **_: calls.append(1) or function(chunk))
    model, (image, text, *_) = Mixer(), inputs()
    pair_scores(model, image, text, tokens=50)
    assert not calls
    monkeypatch.setattr(module, "RETAINED", 100)
    pair_scores(model, image, text, tokens=50)
    assert calls
    held = len(calls)
    with torch.no_grad():
        pair_scores(model, image, text, tokens=50)
    assert len(calls) == held


def test_what_does_not_fit_is_refused():
    image, text, image_mask, _ = inputs()
    with pytest.raises(InputError, match="text_mask"):
        pair_scores(Mixer(), image, text, text_mask=image_mask)
    with pytest.raises(InputError, match=r"\(N, 2\) int64"):
        pair_scores(Mixer(), image, text, pairs=PAIRS[:, :1])
