"""What every loss must do. A new file in align/losses is tested here without a change to this file."""

from __future__ import annotations

import dataclasses

import parts
import pytest
import torch
import torch.nn.functional as F
from blocks import batch_of

from compal import registry
from compal.align.scorer import Views

LOSSES = parts.names("losses")
every_loss = pytest.mark.parametrize("name", LOSSES)


def make_batch(images=6, extra=3, groups=True):
    """Six images; each has its caption, image 0 has two, and what images 0 and 1 share is said once; three more
    captions describe none of them, and are the hard negatives of the first pairs: two of pair 0, one of pair 1. The
    noun phrases of pair 0 are its second caption and what is shared, which is pair 1's too; the last pair's is its
    caption. The second caption of image 0 is the further one of its pair."""
    captions = images + 2 + extra
    positives = torch.zeros(images, captions, dtype=torch.bool)
    positives[:, :images] = torch.eye(images, dtype=torch.bool)
    positives[0, images] = True
    positives[:2, images + 1] = True
    quads = torch.tensor([[0, 1, 0, 1], [2, 3, 2, 3]] if groups else []).reshape(-1, 4).long()
    negatives = torch.full((images, 2), -1)
    phrases = torch.full((images, 2), -1)
    phrases[-1, 0] = images - 1
    phrases[:2, 1] = images + 1
    phrases[0, 0] = images
    further = torch.full((images, 2), -1)
    further[0, 0] = images
    if extra:
        negatives[0] = torch.tensor([captions - 3, captions - 2])
        negatives[1, 1] = captions - 1
    return batch_of(
        positives,
        quads,
        pairs=torch.arange(images)[:, None].expand(-1, 2),
        negatives=negatives,
        phrases=phrases,
        further=further,
        told=lambda columns: [f"caption {column}" for column in columns],
    )


def configs(name, sure=False):
    """The default configuration, and one with every weight of the loss switched on. `sure`: targets are not
    smoothed, which makes certainty cost something, and nothing is asked of a decoder that has learnt nothing."""
    default = registry.load("losses", name).Config()
    fields = {field.name for field in dataclasses.fields(default)}
    if sure and "smoothing" in fields:
        default = dataclasses.replace(default, smoothing=0.0)
    if "decoder" in fields:
        default = dataclasses.replace(default, decoder="random", **({"rec": 0.0} if sure else {}))
    weights = {field: 1.0 for field in fields if field.endswith("weight")}
    return [default, dataclasses.replace(default, **weights)]


def scores_of(batch, seed=0, scale=1.0):
    return scale * torch.randn(batch.shape, generator=torch.Generator().manual_seed(seed))


def right(batch):
    """Scores that leave no doubt: those of a teacher who is right."""
    return torch.where(batch.positives, 10.0, -10.0)


def views_of(batch, scores):
    """Vectors and tokens that are right as well: each image's own direction, away from all others, against which its
    hard negatives point; a caption of two images lies between them. Two patches an image, one of them padding, and
    three words a caption, one of them padding."""
    count, captions = batch.shape
    space = torch.eye(count + captions)
    image, text = space[:count].clone(), space[count:].clone()
    if count > 1:
        image[:, :count] -= 1 / count
    image = F.normalize(image, dim=1)
    described = batch.positives.any(0)
    text[described] = F.normalize(batch.positives.float().T @ image, dim=1)[described]
    pair, slot = (batch.negatives >= 0).nonzero().unbind(1)
    text[batch.negatives[pair, slot]] = -image[batch.pairs[pair, 0]]
    mask = torch.tensor([[True, False]])
    words = torch.stack([text, text.roll(1, 1), 7 * torch.ones_like(text)], 1)
    return Views(
        scores,
        image,
        text,
        torch.stack([image, 7 * torch.ones_like(image)], 1),
        mask.expand(count, -1),
        words,
        torch.tensor([[True, False, False]]).expand(captions, -1),
    )


def loss_of(module, scores, batch, config, *fitted, views_of=views_of):
    """The loss as the engine calls it: with the views, the teacher and the module that it asks for."""
    given, looks = {}, getattr(module, "VIEWS", False)
    if looks:
        given["views"] = views_of(batch, scores)
    if getattr(module, "TEACHER", False):
        given["teacher"] = views_of(batch, right(batch)) if looks else right(batch)
    if hasattr(module, "build"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            given["module"] = module.build(config, sum(batch.shape))
    return module.loss(scores, batch, config, *fitted, **given)


def test_the_known_losses_are_collected():
    assert {"infonce"} <= set(registry.names("losses"))


@every_loss
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_loss_and_gradients_are_finite(name, scale):
    module, batch = registry.load("losses", name), make_batch()
    for config in configs(name):
        scores = scores_of(batch, scale=scale).requires_grad_()
        loss = loss_of(module, scores, batch, config)
        loss.backward()
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert scores.grad.isfinite().all()


@every_loss
def test_entries_that_are_not_scored_are_ignored(name):
    """They hold -inf; neither they nor the fitted parameters may get NaN from it."""
    module, batch = registry.load("losses", name), make_batch()
    made = torch.Generator().manual_seed(4)
    batch.scored = batch.positives | (torch.rand(batch.shape, generator=made) < 0.4)
    batch.scored[:4, :4] = True
    for config in configs(name):
        fitted = getattr(module, "parameters", lambda config: {})(config)
        arguments = (fitted,) if fitted else ()
        scores = scores_of(batch).masked_fill(~batch.scored, -torch.inf).requires_grad_()
        loss = loss_of(module, scores, batch, config, *arguments)
        loss.backward()
        assert loss.isfinite()
        assert scores.grad.isfinite().all()
        assert (scores.grad[~batch.scored] == 0).all()
        learnt = [parameter for parameter in fitted.values() if parameter.requires_grad]
        assert all(parameter.grad.isfinite().all() for parameter in learnt)


@every_loss
def test_nothing_to_learn_from_is_no_nan(name):
    module, batch = registry.load("losses", name), make_batch(images=1, extra=0, groups=False)
    for config in configs(name):
        scores = scores_of(batch).requires_grad_()
        loss_of(module, scores, batch, config).backward()
        assert scores.grad.isfinite().all()


@every_loss
def test_order_does_not_matter(name):
    module, batch = registry.load("losses", name), make_batch()
    scores = scores_of(batch)
    made = torch.Generator().manual_seed(5)
    rows, columns = (torch.randperm(size, generator=made) for size in batch.shape)
    shuffled = batch.select(rows, columns)
    places = torch.stack([rows.argsort()[batch.groups[:, :2]], columns.argsort()[batch.groups[:, 2:]]], dim=1)
    shuffled.groups = places.flatten(1)
    order = torch.randperm(len(batch.pairs), generator=made)
    back = columns.argsort()
    shuffled.pairs = torch.stack([rows.argsort()[batch.pairs[:, 0]], back[batch.pairs[:, 1]]], 1)[order]
    for field in ("negatives", "phrases", "further"):
        listed = getattr(batch, field)
        setattr(shuffled, field, torch.where(listed < 0, -1, back[listed.clamp(min=0)])[order])
    shuffled.told = lambda found: batch.told(columns[found].tolist())

    def moved(_, scores):
        """The same vectors in the other order; those of `shuffled` would be others, of other coordinates."""
        seen = views_of(batch, scores)
        images = {name: getattr(seen, name)[rows] for name in ("image", "patches", "patch_mask")}
        captions = {name: getattr(seen, name)[columns] for name in ("text", "tokens", "token_mask")}
        return dataclasses.replace(seen, **images, **captions)

    for config in configs(name):
        found = loss_of(module, scores[rows][:, columns], shuffled, config, views_of=moved)
        torch.testing.assert_close(found, loss_of(module, scores, batch, config))


@every_loss
def test_perfect_scores_give_the_minimum(name):
    """Positives far above all else: no loss, and no gradient worth a step. Anything else costs more."""
    module, batch = registry.load("losses", name), make_batch()
    for config in configs(name, sure=True):
        scores = right(batch).requires_grad_()
        best = loss_of(module, scores, batch, config)
        best.backward()
        assert best < 1e-5
        assert scores.grad.abs().max() < 1e-5
        assert loss_of(module, scores_of(batch), batch, config) > best
        assert loss_of(module, -scores.detach(), batch, config) > 1


@every_loss
def test_raising_a_positive_never_costs(name):
    module, batch = registry.load("losses", name), make_batch()
    for config in configs(name, sure=True):
        scores = scores_of(batch, scale=0.1).requires_grad_()
        loss_of(module, scores, batch, config).backward()
        assert (scores.grad[batch.positives] <= 0).all()
        wrong = ~batch.positives
        if getattr(module, "TEACHER", False):  # who has no preference in a column draws the head to none, both ways
            wrong = wrong & batch.positives.any(0)
        assert (scores.grad[wrong] >= 0).all()
