"""Two passes give the gradients of one."""

from __future__ import annotations

import pytest
import torch

from compal.align import cached
from compal.align.batches import join
from compal.align.losses import infonce
from compal.align.scorer import Dims, build_head

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
