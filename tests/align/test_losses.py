"""The published objectives against their formulas, written as loops over samples in float64: values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from blocks import batch_of

from compal.align.losses import ce_clip, degla, fsc, infonce, siglip, sparc, tripletclip
from compal.align.scorer import Views
from compal.errors import UsageError

SPACE = 5
SEEDS = pytest.mark.parametrize("seed", range(4))


def make(seed, images=5, most=3, whole=False):
    """A batch and its views in float64: every image with one caption or two, each pair with up to `most` negatives
    (`whole`: exactly that many), some of them shared; patches and words of unequal number, garbage behind."""
    made = torch.Generator().manual_seed(seed)
    captions = images + 2 + most * (images + 2)
    owner = torch.cat([torch.arange(images), torch.tensor([0, 1])])
    positives = torch.zeros(images, captions, dtype=torch.bool)
    positives[owner, torch.arange(len(owner))] = True
    negatives = torch.arange(len(owner), captions).reshape(len(owner), most)
    negatives[0, 0] = negatives[1, 0]
    if not whole:
        negatives[torch.rand(negatives.shape, generator=made) < 0.4] = -1
        negatives[2] = -1
    batch = batch_of(
        positives,
        pairs=torch.stack([owner, torch.arange(len(owner))], 1),
        negatives=negatives,
    )
    return batch, [views(made, images, captions) for _ in range(2)]


def views(made, images, captions):
    def normal(*shape):
        return torch.randn(shape, generator=made, dtype=torch.float64)

    patch_mask = torch.arange(4) < torch.randint(1, 5, (images, 1), generator=made)
    token_mask = torch.arange(6) < torch.randint(1, 7, (captions, 1), generator=made)
    image, text = F.normalize(normal(images, SPACE), dim=1), F.normalize(normal(captions, SPACE), dim=1)
    patches = normal(images, 4, SPACE).masked_fill(~patch_mask[..., None], 9.0)
    tokens = normal(captions, 6, SPACE).masked_fill(~token_mask[..., None], 9.0)
    leaves = [tensor.requires_grad_() for tensor in (image, text, patches, tokens)]
    return Views(leaves[0] @ leaves[1].T, *leaves[:2], leaves[2], patch_mask, leaves[3], token_mask)


def gradients(value, seen):
    leaves = [seen.image, seen.text, seen.patches, seen.tokens]
    found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]


def agree(found, expected, seen):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for ours, theirs in zip(gradients(found, seen), gradients(expected, seen), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()) + 1e-14)


def own(batch, pair):
    """Row, column and the columns of the negatives of a pair."""
    row, column = batch.pairs[pair].tolist()
    return row, column, [column for column in batch.negatives[pair].tolist() if column >= 0]


def log_sum(values):
    return torch.stack(values).logsumexp(0)


def slow_infonce(batch, seen, scale):
    """Images choose among all columns, captions of an image among the images; other positives are masked."""
    logits, ways = seen.scores * scale, []
    for row in range(len(batch.positives)):
        wrong = [logits[row, column] for column in (~batch.positives[row]).nonzero().flatten().tolist()]
        right = batch.positives[row].nonzero().flatten().tolist()
        ways.append(torch.stack([log_sum([logits[row, c], *wrong]) - logits[row, c] for c in right]).mean())
    images = torch.stack(ways).mean()
    ways = []
    for column in batch.positives.any(0).nonzero().flatten().tolist():
        wrong = [logits[row, column] for row in (~batch.positives[:, column]).nonzero().flatten().tolist()]
        right = batch.positives[:, column].nonzero().flatten().tolist()
        ways.append(torch.stack([log_sum([logits[r, column], *wrong]) - logits[r, column] for r in right]).mean())
    return (images + torch.stack(ways).mean()) / 2


# --- DeGLA -----------------------------------------------------------------------------------------------


def slow_degla(batch, seen, taught, config):
    scale, choices, grounded, apart = 1 / config.temperature, [], [], torch.zeros((), dtype=torch.float64)
    count, width = batch.negatives.shape
    images, texts = F.normalize(seen.image, dim=1), F.normalize(seen.text, dim=1)
    for pair in range(count):
        row, column, negatives = own(batch, pair)
        caption, same = texts[column], taught.text[column].detach()
        if negatives:
            logits = [scale * seen.scores[row, c] for c in (column, *negatives)]
            choices.append(log_sum(logits) - logits[0])
        if config.tgc_mask == "as_released":
            flat = [pair + slot * count for slot in range(width)]
            negatives = [n for m in flat if (n := int(batch.negatives[m // width, m % width])) >= 0]
        if negatives:
            logits = [10 * caption @ same, *(10 * caption @ texts[n] for n in negatives)]
            grounded.append(log_sum(logits) - logits[0])
        apart = apart + (images[row] - taught.image[row].detach()).square().sum() + (caption - same).square().sum()
        for n in own(batch, pair)[2]:
            apart = apart + (texts[n] - taught.text[n].detach()).square().sum()
    weight = config.distill * (config.distill_batch / count if config.distill_batch else 1)
    terms = config.igc * torch.stack(choices).mean() + config.tgc * torch.stack(grounded).mean() + weight * apart
    return slow_infonce(batch, seen, scale) + terms


def detached(seen):
    return Views(seen.scores.detach(), seen.image.detach(), seen.text.detach())


@SEEDS
@pytest.mark.parametrize(
    "options",
    [{}, {"igc": 2.0, "tgc": 3.0, "distill_batch": 0}, {"tgc": 1.0, "tgc_mask": "as_released"}],
    ids=["default", "sum", "released"],
)
def test_degla_is_its_formula(seed, options):
    batch, (seen, taught) = make(seed)
    config = degla.Config(temperature=0.2, **options)
    found = degla.loss(seen.scores, batch, config, views=seen, teacher=detached(taught))
    agree(found, slow_degla(batch, seen, taught, config), seen)


def test_the_released_mask_takes_other_captions_negatives():
    """Five pairs with three negatives: of row i the mask keeps the columns i, i + N, i + 2N of the sample-major 3N."""
    batch, (seen, taught) = make(0, whole=True)
    both = [degla.Config(igc=0, distill=0, tgc=1.0, tgc_mask=mask) for mask in ("own", "as_released")]
    right, wrong = (degla.loss(seen.scores, batch, c, views=seen, teacher=detached(taught)) for c in both)
    assert right != wrong
    mine = batch.negatives
    count, width = mine.shape
    shuffled = torch.tensor(
        [[mine[(i + j * count) // width, (i + j * count) % width] for j in range(width)] for i in range(count)]
    )
    batch.negatives = shuffled
    again = degla.loss(seen.scores, batch, both[0], views=seen, teacher=detached(taught))
    torch.testing.assert_close(again, wrong)


# --- CE-CLIP ---------------------------------------------------------------------------------------------


def slow_ce_clip(batch, seen, config, thresholds):
    scale = 1 / config.temperature
    hard = [n for pair in range(len(batch.pairs)) for n in own(batch, pair)[2]]
    inside, hinges, texts = [], [], F.normalize(seen.text, dim=1)
    for pair in range(len(batch.pairs)):
        row, column, _ = own(batch, pair)
        right = scale * seen.scores[row, column]
        against = [scale * texts[column] @ texts[n] for n in hard]
        if config.imc_form == "published":
            against = [one for one, n in zip(against, hard, strict=True) if not batch.positives[row, n]]
        if config.imc_form == "published":
            inside.append(log_sum([right, *against]) - right)
        else:
            inside.append(log_sum(against) - against[0])
        for slot, n in enumerate(batch.negatives[pair].tolist()):
            if n >= 0:
                threshold = thresholds[min(slot, config.slots - 1)]
                hinges.append((threshold + scale * seen.scores[row, n] - right).clamp(min=0))
    terms = config.imc * torch.stack(inside).mean() + config.cmr * torch.stack(hinges).mean()
    return slow_infonce(batch, seen, scale) + terms


@SEEDS
@pytest.mark.parametrize("form", ["published", "as_released"])
def test_ce_clip_is_its_formula(seed, form):
    batch, (seen, _) = make(seed)
    config = ce_clip.Config(temperature=0.5, imc=1.0, cmr=2.0, slots=2, imc_form=form, learn_temperature=False)
    thresholds = torch.tensor([0.3, 1.1], dtype=torch.float64)
    expected = slow_ce_clip(batch, seen, config, thresholds)
    found = ce_clip.loss(seen.scores, batch, config, {"thresholds": thresholds.clone()}, views=seen)
    agree(found, expected, seen)


def test_a_twins_negative_is_not_held_against_a_caption():
    """Two pairs, each the other's negative: a perfect encoder pays nothing."""
    batch, _ = make(0)
    batch.positives = torch.eye(2, dtype=torch.bool)
    batch.pairs, batch.negatives = torch.tensor([[0, 0], [1, 1]]), torch.tensor([[1], [0]])
    apart = torch.eye(2, dtype=torch.float64)
    config = ce_clip.Config(block_weight=0, cmr=0, imc=1.0, learn_temperature=False)
    assert ce_clip.loss(apart, batch, config, views=Views(apart, apart, apart)) < 1e-12


def test_the_thresholds_of_ce_clip_are_the_last_steps_margins():
    batch, (seen, _) = make(1)
    config = ce_clip.Config(temperature=0.05, slots=2, most=3.0, learn_temperature=False)
    kept = torch.zeros(2, dtype=torch.float64)
    ce_clip.loss(seen.scores, batch, config, {"thresholds": kept}, views=seen)
    margins, scores = [[], []], seen.scores.detach()
    for (row, column), negatives in zip(batch.pairs.tolist(), batch.negatives.tolist(), strict=True):
        for slot, n in enumerate(negatives):
            if n >= 0:
                margins[min(slot, 1)].append(float(scores[row, column] - scores[row, n]) / 0.05)
    expected = [min(max(sum(slot) / len(slot), 0.0), 3.0) for slot in margins]
    torch.testing.assert_close(kept, torch.tensor(expected, dtype=torch.float64))


def test_the_released_form_of_ce_clip_has_no_positive():
    """Its gradient does not touch a caption's own score: the reason why it is a bug."""
    batch, (seen, _) = make(0)
    grads = {}
    for form in ("published", "as_released"):
        config = ce_clip.Config(block_weight=0, cmr=0, imc=1.0, imc_form=form, learn_temperature=False)
        leaf = seen.scores.detach().requires_grad_()
        loss = ce_clip.loss(leaf, batch, config, views=seen)
        grads[form] = torch.autograd.grad(loss, leaf, allow_unused=True)[0]
    assert (grads["published"][batch.pairs[:, 0], batch.pairs[:, 1]] < 0).all()
    assert grads["as_released"] is None


# --- FSC-CLIP --------------------------------------------------------------------------------------------


def slow_fsc(batch, seen, config):
    scale = 1 / config.temperature

    def focal(logits):
        chances = torch.stack(logits).softmax(0)
        target = torch.full_like(chances, config.smoothing / len(logits))
        target[0] += 1 - config.smoothing
        return -(target * (1 - chances) ** config.gamma * chances.log()).sum()

    def local(row, column):
        patches = [
            F.normalize(p, dim=0) for p, real in zip(seen.patches[row], seen.patch_mask[row], strict=True) if real
        ]
        words = [
            F.normalize(t, dim=0) for t, real in zip(seen.tokens[column], seen.token_mask[column], strict=True) if real
        ]
        found = []
        for word in words:
            alike = torch.stack([(word @ patch).detach() for patch in patches])
            span = alike.max() - alike.min()
            weights = (alike - alike.min()) / span if span > 0 else torch.ones_like(alike)
            gathered = sum(w * p for w, p in zip(weights, patches, strict=True)) / weights.sum()
            found.append(scale * F.normalize(gathered, dim=0) @ word)
        return log_sum(found)

    whole, parts = [], []
    for pair in range(len(batch.pairs)):
        row, column, negatives = own(batch, pair)
        if negatives:
            whole.append(focal([scale * seen.scores[row, c] for c in (column, *negatives)]))
            parts.append(focal([local(row, c) for c in (column, *negatives)]))
    terms = config.global_weight * torch.stack(whole).mean() + config.local_weight * torch.stack(parts).mean()
    return slow_infonce(batch, seen, scale) + terms


@SEEDS
@pytest.mark.parametrize("options", [{}, {"gamma": 0.0, "smoothing": 0.0}, {"gamma": 1.5, "smoothing": 0.2}])
def test_fsc_is_its_formula(seed, options):
    batch, (seen, _) = make(seed)
    config = fsc.Config(temperature=0.3, local_weight=0.7, **options)
    agree(fsc.loss(seen.scores, batch, config, views=seen), slow_fsc(batch, seen, config), seen)


def test_focal_choices_keep_their_gradient_where_a_choice_is_certain():
    batch, (seen, _) = make(0)
    config = fsc.Config(temperature=1e-3, block_weight=0, local_weight=0, gamma=2.0, smoothing=0.0)
    leaf = seen.scores.detach().requires_grad_()
    fsc.loss(leaf, batch, config, views=seen).backward()
    assert leaf.grad.isfinite().all()


# --- SPARC -----------------------------------------------------------------------------------------------


def slow_sparc(batch, seen, config):
    scale, terms = 1 / config.temperature, []
    for row, column in batch.pairs.tolist():
        patches = [
            F.normalize(p, dim=0) for p, real in zip(seen.patches[row], seen.patch_mask[row], strict=True) if real
        ]
        words = [
            F.normalize(t, dim=0) for t, real in zip(seen.tokens[column], seen.token_mask[column], strict=True) if real
        ]
        gathered = []
        for word in words:
            alike = torch.stack([word @ patch for patch in patches])
            span = alike.max() - alike.min()
            weights = (alike - alike.min()) / span if span > 0 else torch.ones_like(alike)
            weights = torch.where(weights < 1 / len(patches), 0.0, weights)
            gathered.append(sum(w * p for w, p in zip(weights, patches, strict=True)) / weights.sum())
        logits = torch.stack([torch.stack([scale * F.normalize(c, dim=0) @ t for t in words]) for c in gathered])
        right = logits.diagonal()
        terms.append(((logits.logsumexp(0) - right) + (logits.logsumexp(1) - right)).mean() / 2)
    return slow_infonce(batch, seen, scale) + config.fine * torch.stack(terms).mean()


@SEEDS
def test_sparc_is_its_formula(seed):
    batch, (seen, _) = make(seed)
    config = sparc.Config(temperature=0.3, fine=0.8)
    agree(sparc.loss(seen.scores, batch, config, views=seen), slow_sparc(batch, seen, config), seen)


# --- what all have in common -----------------------------------------------------------------------------


@pytest.mark.parametrize("module", [degla, ce_clip, fsc, sparc], ids=lambda module: module.__name__.rpartition(".")[2])
def test_it_says_what_it_lacks(module):
    batch, (seen, taught) = make(0)
    more = {"teacher": detached(taught)} if getattr(module, "TEACHER", False) else {}
    with pytest.raises(UsageError, match=r"this loss looks at .* Fit a head"):
        module.loss(seen.scores, batch, module.Config(), views=Views(seen.scores), **more)
    batch.pairs = None
    with pytest.raises(UsageError, match="hard negatives of each pair"):
        module.loss(seen.scores, batch, module.Config(), views=seen, **more)


def test_a_negative_that_describes_the_image_is_none():
    batch, (seen, taught) = make(0, whole=True)
    config = degla.Config(temperature=0.2)
    before = degla.loss(seen.scores, batch, config, views=seen, teacher=detached(taught))
    batch.negatives[0, 1] = 5  # the other caption of image 0
    assert batch.positives[0, 5]
    found = degla.loss(seen.scores, batch, config, views=seen, teacher=detached(taught))
    batch.negatives[0, 1] = -1
    assert found == degla.loss(seen.scores, batch, config, views=seen, teacher=detached(taught)) != before
    assert math.isfinite(float(found.detach()))


# --- TripletCLIP -----------------------------------------------------------------------------------------


def slow_tripletclip(scores, groups, scale, weight):
    """Both halves, sample by sample."""
    halves = []
    for i, own, other in ((0, 2, 3), (1, 3, 2)):
        images, mine = groups[:, i].tolist(), groups[:, own].tolist()
        texts = mine + groups[:, other].tolist()
        ways = [
            log_sum([scale * scores[row, column] for column in texts]) - scale * scores[row, mine[place]]
            for place, row in enumerate(images)
        ]
        back = [
            log_sum([scale * scores[row, column] for row in images]) - scale * scores[images[place], column]
            for place, column in enumerate(mine)
        ]
        halves.append((torch.stack(ways).mean() + torch.stack(back).mean()) / 2)
    return halves[0] + weight * halves[1]


@SEEDS
def test_tripletclip_is_its_formula(seed):
    made = torch.Generator().manual_seed(seed)
    scores = torch.randn(8, 9, generator=made, dtype=torch.float64, requires_grad=True)
    batch, _ = make(0)
    batch.positives = torch.eye(8, 9, dtype=torch.bool)
    batch.groups = torch.tensor([[0, 1, 0, 1], [3, 2, 3, 2], [6, 7, 6, 7]])
    config = tripletclip.Config(temperature=0.3, negative=0.7)
    found, expected = tripletclip.loss(scores, batch, config), slow_tripletclip(scores, batch.groups, 1 / 0.3, 0.7)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    ours, theirs = (torch.autograd.grad(value, scores)[0] for value in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)
    assert (ours[4:6] == 0).all()  # in no group


# --- the learned temperature -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module", [infonce, siglip, degla, ce_clip, fsc, tripletclip], ids=lambda module: module.__name__
)
@pytest.mark.parametrize("start", [0.01, 0.004], ids=["at the bound", "beyond it"])
def test_a_temperature_at_its_bound_can_come_back(module, start):
    """CLIP's 0.01 is the bound: clamped in the forward pass it would have no gradient, there and beyond."""
    batch, (seen, taught) = make(0)
    batch.groups = torch.tensor([[0, 1, 0, 1]])
    more = {"views": seen} if getattr(module, "VIEWS", False) else {}
    more |= {"teacher": detached(taught)} if getattr(module, "TEACHER", False) else {}
    config = module.Config(temperature=start)
    fitted = dict(module.parameters(config))
    module.loss(seen.scores.detach(), batch, config, fitted, **more).backward()
    scale = fitted["log_scale"]
    assert scale.grad.abs() > 1e-4
    assert float(scale.detach().exp()) == pytest.approx(100, rel=1e-6)
