"""Towers as a head: scores of both, views of both, one side frozen, and refused where there are none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from compal.align.batches import Batch
from compal.align.scorer import Dims, all_pairs, build_head
from compal.errors import InputError
from compal.pipeline.encoder import load_encoder, resolve
from compal.pipeline.trainable import open_towers

CAPTIONS = ["a large red star left of a small blue ring", "a ring", "two green disks and a star"]
SPEC = resolve("shapes-vit", "pixels")


def build(**options):
    return build_head("towers", options, Dims.of(SPEC), lambda: open_towers(SPEC)).eval()


@pytest.fixture(scope="module")
def batch():
    encoder, made = load_encoder(SPEC), torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, 64, 64), generator=made, dtype=torch.uint8)
    images, texts = encoder.encode_images(pixels).tokens.float(), encoder.encode_texts(CAPTIONS).tokens
    mask = torch.arange(12) < torch.tensor([[len(rows)] for rows in texts])
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).float()
    return Batch(
        images=images,
        image_mask=torch.ones(images.shape[:2], dtype=torch.bool),
        image_pooled=torch.zeros(4, 0),
        texts=F.pad(padded, (0, 0, 0, 12 - padded.shape[1]), value=float("nan")),
        text_mask=mask,
        text_pooled=torch.zeros(3, 0),
        positives=torch.eye(4, 3, dtype=torch.bool),
        groups=torch.zeros(0, 4, dtype=torch.long),
    )


@torch.no_grad()
def test_the_score_is_the_backbones_cosine(batch):
    encoder = load_encoder(SPEC)
    image = encoder.pool_images(batch.images.to(torch.uint8))
    text = load_encoder(resolve("shapes-vit", "pooled")).encode_texts(CAPTIONS).pooled
    expected = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    scorer = build()
    torch.testing.assert_close(scorer.score(batch), expected, rtol=1e-5, atol=1e-6)
    pairs = all_pairs(batch)[[5, 0, 7]]
    torch.testing.assert_close(scorer.score_pairs(batch, pairs), expected.flatten()[[5, 0, 7]], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_views_show_what_the_score_is_made_of(batch):
    views = build(local=True).views(batch)
    image, text = views.vectors()
    torch.testing.assert_close(views.scores, image @ text.T)
    torch.testing.assert_close(views.scores, build().score(batch))
    patches, patch_mask, tokens, token_mask = views.local()
    assert patches.shape == (4, 64, 64)  # without the CLS
    assert patch_mask.all()
    assert token_mask.sum(1).tolist() == batch.text_mask.sum(1).tolist()
    last = tokens[torch.arange(3), token_mask.sum(1) - 1]
    torch.testing.assert_close(F.normalize(last, dim=1), text, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("train", ["both", "image", "text"])
def test_only_the_chosen_towers_are_trained(batch, train):
    scorer = build(train=train)
    scorer.score(batch).square().sum().backward()
    reached = {name.startswith("towers.model.visual.") for name, p in scorer.named_parameters() if p.grad is not None}
    assert reached == {"both": {True, False}, "image": {True}, "text": {False}}[train]


def test_without_towers_it_says_how_to_evaluate():
    with pytest.raises(InputError, match="--backbone run:ID"):
        build_head("towers", {}, Dims.of(SPEC))
