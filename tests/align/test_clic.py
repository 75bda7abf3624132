"""CLIC's three terms against loops over pairs and captions in float64: values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from blocks import batch_of

from compal.align.losses import clic, infonce
from compal.align.scorer import Views
from compal.errors import UsageError

from .test_losses import SEEDS, agree, log_sum, views

IMAGES, MOST, HARD = 6, 3, 2


def make(seed, further=True, whole=False):
    """Six images, a pair each; up to three further captions and two negatives a pair (`whole`: all of them), a negative
    that two pairs share, and one that describes the image after all."""
    made = torch.Generator().manual_seed(seed)
    captions = IMAGES * (1 + MOST + HARD)
    positives = torch.zeros(IMAGES, captions, dtype=torch.bool)
    numbers = torch.randperm(captions, generator=made)
    own, more, hard = numbers.split([IMAGES, IMAGES * MOST, IMAGES * HARD])
    more, hard = more.reshape(IMAGES, MOST).clone(), hard.reshape(IMAGES, HARD).clone()
    rows = torch.randperm(IMAGES, generator=made)
    positives[rows, own] = True
    positives[rows[:, None], more] = True
    if not whole:
        kept = torch.randint(0, MOST + 1, (IMAGES,), generator=made)
        more[torch.arange(MOST) >= kept[:, None]] = -1
        hard[torch.rand(hard.shape, generator=made) < 0.4] = -1
        hard[0, 0], hard[1, 0] = hard[1, 0], hard[0, 0]
        hard[2, 1] = own[2]  # describes the image after all
        hard[3] = -1
    batch = batch_of(positives, pairs=torch.stack([rows, own], 1), negatives=hard, further=more if further else None)
    return batch, views(made, IMAGES, captions)


def slow_clic(batch, seen, config):
    """Equations 4 to 7 as they stand, sums over whoever is there."""
    scale = 1 / config.temperature
    logits, texts = scale * seen.scores, F.normalize(seen.text, dim=1)
    lists = [[column] for _, column in batch.pairs.tolist()]
    if batch.further is not None:
        lists = [one + more for one, more in zip(lists, batch.further.tolist(), strict=True)]
    rows = batch.pairs[:, 0].tolist()
    hard = [
        [column for column in listed if column >= 0 and not batch.positives[row, column]]
        for row, listed in zip(rows, batch.negatives.tolist(), strict=True)
    ]
    block, apart = [], []
    for m in range(len(lists[0])):
        mine = {row: one[m] for row, one in zip(rows, lists, strict=True) if one[m] >= 0}
        if not mine:
            continue
        to_text = [log_sum([logits[row, other] for other in mine.values()]) - logits[row, c] for row, c in mine.items()]
        to_image = [log_sum([logits[other, c] for other in rows]) - logits[row, c] for row, c in mine.items()]
        # A single caption leaves an image nothing to choose from.
        ways = [torch.stack(way).mean() for way in (to_text if len(mine) > 1 else to_text[:0], to_image) if way]
        block.append(sum(ways) / 2)
        choices = [
            log_sum([logits[row, mine[row]], *(logits[row, n] for n in negatives)]) - logits[row, mine[row]]
            for row, negatives in zip(rows, hard, strict=True)
            if row in mine and negatives
        ]
        apart += [torch.stack(choices).mean()] if choices else []
    drawn = [(texts[one[0]] - texts[one[1]]).square().sum() for one in lists if len(one) > 1 and one[1] >= 0]
    contrastive = torch.stack(block).mean()
    if not drawn and not apart:
        return contrastive
    total = config.contrastive * contrastive
    total = total + (config.separate * torch.stack(apart).mean() if apart else 0)
    return total + (config.invariance * torch.stack(drawn).mean() if drawn else 0)


def found(batch, seen, config):
    return clic.loss(seen.scores, batch, config, views=seen)


@SEEDS
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"separate": 0.0, "invariance": 0.0},
        {"contrastive": 0.0, "invariance": 0.0},
        {"contrastive": 0.0, "separate": 0.0},
        {"contrastive": 0.3, "separate": 2.0, "invariance": 0.7},
    ],
    ids=["published", "contrastive", "separate", "invariance", "other weights"],
)
@pytest.mark.parametrize("whole", [False, True], ids=["padded", "whole"])
def test_clic_is_its_formula(seed, options, whole):
    batch, seen = make(seed, whole=whole)
    config = clic.Config(temperature=0.2, **options)
    agree(found(batch, seen, config), slow_clic(batch, seen, config), seen)


@SEEDS
def test_without_further_captions_there_is_no_invariance(seed):
    batch, seen = make(seed, further=False)
    config = clic.Config(temperature=0.2)
    agree(found(batch, seen, config), slow_clic(batch, seen, config), seen)


def test_single_pictures_are_plain_infonce_at_full_weight():
    """The other half of the steps: no further caption, no negative."""
    batch, seen = make(0, further=False)
    config = clic.Config(temperature=0.2)
    own = batch.pairs[:, 1]
    batch.negatives = torch.full_like(batch.negatives, -1)
    expected = infonce.loss(seen.scores[:, own], batch_of(batch.positives[:, own]), infonce.Config(temperature=0.2))
    agree(found(batch, seen, config), expected, seen)
    batch.further = torch.full((IMAGES, 2), -1)
    agree(found(batch, seen, config), expected, seen)


def test_negatives_are_no_columns_of_the_block():
    """Raising a negative costs only where a pair chooses against it."""
    batch, seen = make(1, whole=True)
    config = clic.Config(temperature=0.2, separate=0.0, invariance=0.0)
    scores = seen.scores.detach().requires_grad_()
    clic.loss(scores, batch, config, views=seen).backward()
    assert (scores.grad[:, batch.negatives.flatten()] == 0).all()
    scores.grad = None
    clic.loss(scores, batch, clic.Config(temperature=0.2, contrastive=0.0), views=seen).backward()
    touched = (scores.grad != 0).nonzero().tolist()
    rows = batch.pairs[:, 0]
    asked = [[int(row), int(c)] for row, listed in zip(rows, batch.negatives, strict=True) for c in listed]
    asked += [[int(row), int(c)] for row, c in batch.pairs]
    asked += [[int(row), int(c)] for row, listed in zip(rows, batch.further, strict=True) for c in listed]
    assert sorted(touched) == sorted(asked)


def test_captions_that_are_not_scored_have_no_part():
    batch, seen = make(2, whole=True)
    config = clic.Config(temperature=0.2)
    batch.scored = torch.ones_like(batch.positives)
    agree(found(batch, seen, config), slow_clic(batch, seen, config), seen)
    row, hard = int(batch.pairs[0, 0]), batch.negatives[0, 0]
    batch.scored[row, hard] = False
    scores = seen.scores.detach().masked_fill(~batch.scored, -torch.inf).requires_grad_()
    part = clic.loss(scores, batch, config, views=seen)
    batch.scored, batch.negatives[0, 0] = None, -1
    assert float(part.detach()) == pytest.approx(float(slow_clic(batch, seen, config).detach()), rel=1e-9)


def test_it_says_what_it_lacks():
    batch, seen = make(0)
    with pytest.raises(UsageError, match="looks at one vector a side"):
        clic.loss(seen.scores, batch, clic.Config(), views=Views(seen.scores))
    batch.pairs = None
    with pytest.raises(UsageError, match="hard negatives of each pair"):
        found(batch, seen, clic.Config())


@pytest.mark.parametrize("start", [0.01, 0.004], ids=["at the bound", "beyond it"])
def test_a_temperature_at_its_bound_can_come_back(start):
    batch, seen = make(0)
    config = clic.Config(temperature=start)
    fitted = dict(clic.parameters(config))
    clic.loss(seen.scores.detach(), batch, config, fitted, views=seen).backward()
    assert fitted["log_scale"].grad.abs() > 1e-4
