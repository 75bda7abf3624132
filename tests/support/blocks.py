"""Batches for objectives, which look at scores: who belongs to whom, and no features."""

from __future__ import annotations

import torch

from compal.align.batches import Batch


def batch_of(positives, groups=(), **more):
    """A batch of `positives` (I, C) bool and `groups` (G, 4); `more` of its fields by name."""
    images, captions = positives.shape
    return Batch(
        images=None,
        image_mask=None,
        image_pooled=torch.zeros(images, 1),
        texts=None,
        text_mask=None,
        text_pooled=torch.zeros(captions, 1),
        positives=positives,
        groups=torch.as_tensor(groups, dtype=torch.long).reshape(-1, 4),
        **more,
    )
