"""Exclusive assignment against every assignment there is."""

from __future__ import annotations

import itertools

import pytest
import torch

from compal.align.scorer import all_pairs, build_head
from compal.errors import InputError

from .conftest import CLIP, REGIONS, assert_alone, features, normal, real


def slow(batch, i, c):
    """The best mean over all one-to-one assignments of the smaller side to the larger."""
    regions = [normal(x) for x in real(batch.images[i], batch.image_mask[i])]
    segments = [normal(x) for x in real(batch.texts[c], batch.text_mask[c])]
    few, many = sorted((regions, segments), key=len)
    return max(
        sum(float(x @ y) for x, y in zip(few, chosen, strict=True)) / len(few)
        for chosen in itertools.permutations(many, len(few))
    )


def test_it_is_the_best_of_all_assignments():
    scorer, batch = build_head("assignment", {}, REGIONS), features(REGIONS, dtype=torch.float32)
    expected = torch.tensor([[slow(batch, i, c) for c in range(4)] for i in range(3)])
    torch.testing.assert_close(scorer.score(batch), expected)
    torch.testing.assert_close(scorer.score_pairs(batch, all_pairs(batch)), expected.flatten())
    assert_alone(scorer, batch)


def test_two_segments_do_not_share_a_region():
    """Both segments are the first region; the greedy match takes it twice."""
    batch = features(REGIONS, images=1, captions=1, dtype=torch.float32)
    batch.images = torch.eye(4)[None, :2]
    batch.image_mask = torch.ones(1, 2, dtype=torch.bool)
    batch.texts = torch.tensor([[[1.0, 0, 0, 0], [1.0, 0, 0, 0]]])
    batch.text_mask = torch.ones(1, 2, dtype=torch.bool)
    assert float(build_head("maxsim", {}, REGIONS).score(batch)) == 1
    assert float(build_head("assignment", {}, REGIONS).score(batch)) == 0.5


def test_nothing_to_match_is_zero():
    batch = features(REGIONS, dtype=torch.float32)
    batch.text_mask[1], batch.image_mask[2] = False, False
    scores = build_head("assignment", {}, REGIONS).score(batch)
    assert (scores[:, 1] == 0).all()
    assert (scores[2] == 0).all()
    assert (scores[0, [0, 2, 3]] != 0).all()


def test_it_needs_one_space():
    with pytest.raises(InputError, match=r"768 and 512 wide.*--level regions.*filip"):
        build_head("assignment", {}, CLIP)
