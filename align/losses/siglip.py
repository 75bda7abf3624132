"""SigLIP's sigmoid loss with hard-negative captions: every entry is a question of its own (arXiv 2303.15343).

Does this caption describe this image, yes or no? Given negatives are further columns, several captions of an image
are several yes. Summed over the entries, divided by the number of images, as in the paper's algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..batches import Batch
from ..kernels.contrastive import sigmoid
from ..scorer import full
from .infonce import bounded


@dataclass(frozen=True)
class Config:
    """temperature        scores are divided by it; the paper starts from 1 / 10
    bias               is added to the logits; negative, as nearly every entry is a no
    learn_temperature  it is fitted, from this value on, and stays ≥ 0.01
    learn_bias         it is fitted, from this value on
    """

    temperature: float = 0.1
    bias: float = -10.0
    learn_temperature: bool = True
    learn_bias: bool = True


def parameters(config: Config) -> dict[str, nn.Parameter]:
    """What is fitted beside the head: the logarithm of 1 / temperature, and the bias."""
    found = {}
    if config.learn_temperature:
        found["log_scale"] = nn.Parameter(torch.tensor(-math.log(config.temperature)))
    if config.learn_bias:
        found["bias"] = nn.Parameter(torch.tensor(config.bias))
    return found


def loss(scores: Tensor, batch: Batch, config: Config, fitted: Mapping[str, Tensor] | None = None) -> Tensor:
    """A scalar float32 from `scores` (I, C). Entries outside `batch.scored` are ignored. `fitted` holds the current
    values of `parameters`; what is not in it has its configured value."""
    scale, bias = scale_and_bias(config, fitted)
    return sigmoid(full(scores), batch.positives, scale=scale, bias=bias, taken=batch.scored)


def scale_and_bias(config: Config, fitted: Mapping[str, Tensor] | None) -> tuple[Tensor | float, Tensor | float]:
    """What the scores are multiplied by, and what is added to the product."""
    fitted = fitted or {}
    scale: Tensor | float = 1 / config.temperature
    if "log_scale" in fitted:
        scale = bounded(fitted["log_scale"])
    return scale, fitted.get("bias", config.bias)
