"""Two passes give the gradients of one."""

from __future__ import annotations

import pytest
import torch

from compal.align import cached
from compal.align.batches import join
from compal.align.losses import infonce
from compal.align.scorer import Dims, build_head, views_of

from .conftest import SPEC, image_keys, text_keys


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 8])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_equal_one_pass(store, chunk, masked, dropout):
    torch.manual_seed(0)
    options = {"interaction": "cross", "width": 16, "layers": 1, "heads": 2, "ffn": 16, "dropout": dropout}
    scorer = build_head("tflocal", options, Dims.of(SPEC)).train()
    batch = join(store, image_keys(8), text_keys(10))
    batch.positives[range(8), range(8)] = True
    if masked:
        batch.scored = batch.positives | (torch.rand(8, 10) < 0.5)
    config = infonce.Config(temperature=0.5)
    fitted = infonce.parameters(config)
    parameters = [*scorer.parameters(), *fitted.values()]

    def objective(scores):
        return infonce.loss(scores, batch, config, fitted)

    columns = torch.arange(10)
    torch.manual_seed(7)
    blocks = [scorer(batch.select(rows, columns)) for rows in torch.arange(8).split(chunk)]
    whole = objective(torch.cat(blocks))
    expected = torch.autograd.grad(whole, parameters, allow_unused=True)
    torch.manual_seed(7)
    loss = cached.backward(scorer, batch, objective, chunk)
    torch.testing.assert_close(loss, whole.detach(), atol=1e-6, rtol=1e-6)
    assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in scorer.parameters())
    for parameter, gradient in zip(parameters, expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-5)


HEADS = {
    "linear": ("linear", {"bias": True}),
    "mlp": ("mlp", {"width": 16, "dropout": 0.3}),
    "meanpool": ("meanpool", {"width": 8}),
}


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
@pytest.mark.parametrize("head", HEADS)
def test_sides_in_parts_give_the_gradients_of_the_whole(store, head, chunk, looks):
    """An objective on scores alone, or on vectors, patches and words as well."""
    torch.manual_seed(0)
    name, options = HEADS[head]
    scorer = build_head(name, options, Dims.of(SPEC)).train()
    for parameter in scorer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    batch = join(store, image_keys(8), text_keys(10))
    batch.positives[range(8), range(8)] = True

    def objective(image, text):
        seen = views_of(image, text)
        loss = infonce.loss(seen.scores, batch, infonce.Config(temperature=0.5))
        if looks:
            loss = loss + seen.vectors()[1].cos().mean() + seen.vectors()[0].sin().mean()
            if head == "meanpool":
                patches, patch_mask, tokens, token_mask = seen.local()
                loss = loss + patches[patch_mask].pow(3).mean() + tokens[token_mask].pow(2).mean()
        return loss

    def encoders():
        return (lambda part: scorer.image_side(part, looks), lambda part: scorer.text_side(part, looks))

    none = torch.arange(0)
    torch.manual_seed(7)
    images = [encoders()[0](batch.select(rows, none)) for rows in torch.arange(8).split(chunk)]
    texts = [encoders()[1](batch.select(none, rows)) for rows in torch.arange(10).split(chunk)]
    whole = objective(cached.together(images), cached.together(texts))
    expected = torch.autograd.grad(whole, list(scorer.parameters()))
    torch.manual_seed(7)
    loss = cached.backward_sides(encoders(), batch, objective, chunk)
    torch.testing.assert_close(loss, whole.detach(), atol=1e-6, rtol=1e-6)
    for parameter, gradient in zip(scorer.parameters(), expected, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-5)


def test_a_side_in_parts_is_padded_to_its_longest(store):
    scorer = build_head("meanpool", {"width": 8}, Dims.of(SPEC))
    batch = join(store, image_keys(3), text_keys(10))
    encoders = (lambda part: scorer.image_side(part, True), lambda part: scorer.text_side(part, True))
    parts, whole = cached.encoded(encoders, batch, 1)[1], cached.encoded(encoders, batch, 0)[1]
    assert parts.mask.tolist() == whole.mask.tolist()
    torch.testing.assert_close(parts.vectors, whole.vectors)
    torch.testing.assert_close(parts.tokens[parts.mask], whole.tokens[whole.mask])


def test_no_more_than_two_passes_a_row(store):
    """Images and captions are each encoded twice, whatever the chunk; a side without parameters once."""
    scorer = build_head("linear", {}, Dims.of(SPEC))
    batch, seen = join(store, image_keys(8), text_keys(10)), []

    def count(which):
        def encode(part):
            seen.append((which, part.shape))
            return scorer.image_side(part, False) if which == "image" else scorer.text_side(part, False)

        return encode

    cached.backward_sides(
        (count("image"), count("text")), batch, lambda *sides: views_of(*sides).scores.pow(2).mean(), 2
    )
    assert [shape for which, shape in seen if which == "text"] == [(0, 2)] * 10
    assert [shape for which, shape in seen if which == "image"] == [(2, 0)] * 5  # the fifth finds no gradient
