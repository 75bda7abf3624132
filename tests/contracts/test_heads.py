"""What every head must do. A new file in align/heads is tested here without a change to this file, one outside
the project by $COMPAL_PARTS (`support/parts.py`)."""

from __future__ import annotations

import dataclasses

import parts
import pytest
import torch
import torch.nn.functional as F

from compal import registry
from compal.align.batches import Batch
from compal.align.scorer import Dims, all_pairs, build_head, tunes_towers
from compal.errors import InputError, UnknownName

DIMS = Dims(image_dim=16, text_dim=16, pooled_dim=12, image_tokens=6, context_length=9)
SMALL = {"width": 32, "layers": 2, "heads": 4, "ffn": 48}  # of the options a head has, these make it quick
VARIANTS = {
    "tflocal": [
        {"interaction": "cross"},
        {"interaction": "cross", "text_self_attention": False},
        {"interaction": "cross", "pool": "cls"},
        {"interaction": "cross", "image_layers": 1, "text_layers": 1, "compare": True},
        {"pool": "cls", "residual": "cosine"},
        {"interaction": "cross", "residual": "cosine"},
    ],
    "maxsim": [{"direction": "i2t"}, {"direction": "both"}],
    "linear": [{"bias": True}],
    "mlp": [{"sides": "text"}],
    "filip": [{"direction": "i2t"}, {"direction": "t2i"}],
    "flair": [{"queries": "tokens"}],
    "xac": [{"queries": "tokens"}],
    "dcsm": [{"readout": "mean"}],
}
# A head over a backbone's own towers is tested where those are: tests/align/heads/test_towers.py.
HEADS = [name for name in parts.names("heads") if not tunes_towers(name)]
CASES = [(name, options) for name in HEADS for options in [{}, *VARIANTS.get(name, [])]]


def spelled(value):
    return value if isinstance(value, str) else "-".join(map(str, value.values()))


every_head = pytest.mark.parametrize(("name", "options"), CASES, ids=spelled)


def build(name, options, dims=DIMS):
    torch.manual_seed(0)
    known = {field.name for field in dataclasses.fields(registry.load("heads", name).Config)}
    small = {key: value for key, value in SMALL.items() if key in known}
    return build_head(name, small | options, dims).eval()


def make_batch(images=5, captions=7, seed=0, dims=DIMS):
    """Random features; captions of different lengths, images with all their tokens."""
    made = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=made)

    lengths = torch.randint(2, dims.context_length + 1, (captions,), generator=made)
    lengths[0] = dims.context_length
    return Batch(
        images=normal(images, dims.image_tokens, dims.image_dim),
        image_mask=torch.ones(images, dims.image_tokens, dtype=torch.bool),
        image_pooled=normal(images, dims.pooled_dim),
        texts=normal(captions, dims.context_length, dims.text_dim),
        text_mask=torch.arange(dims.context_length) < lengths[:, None],
        text_pooled=normal(captions, dims.pooled_dim),
        positives=torch.eye(images, captions, dtype=torch.bool),
        groups=torch.zeros(0, 4, dtype=torch.long),
    )


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


def test_the_known_heads_are_collected():
    assert {"cosine", "linear", "maxsim", "tfglobal", "tflocal"} <= set(registry.names("heads"))


@every_head
def test_scores_are_a_float32_block(name, options):
    scores = build(name, options).score(make_batch())
    assert scores.shape == (5, 7)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert len(scores.unique()) > 30, "the features make no difference"


@every_head
def test_pairs_are_places_of_the_block(name, options):
    scorer, batch = build(name, options), make_batch()
    block = scorer.score(batch)
    pairs = all_pairs(batch)[torch.randperm(35, generator=torch.Generator().manual_seed(1))][:20]
    pairs = torch.cat([pairs, pairs[:3]])
    close(scorer.score_pairs(batch, pairs), block[pairs[:, 0], pairs[:, 1]])
    assert scorer.score_pairs(batch, pairs[:0]).shape == (0,)


@every_head
def test_only_what_is_asked_for_is_scored(name, options):
    scorer, batch = build(name, options), make_batch()
    block = scorer.score(batch)
    batch.scored = torch.rand(5, 7, generator=torch.Generator().manual_seed(2)) < 0.4
    sparse = scorer(batch)
    close(sparse[batch.scored], block[batch.scored])
    assert (sparse[~batch.scored] == -torch.inf).all()


@every_head
@pytest.mark.parametrize("garbage", [1e3, float("nan"), float("inf")])
def test_padding_changes_nothing(name, options, garbage):
    """More padding, with anything in it, on a batch whose similarities are all negative: there a mask that
    multiplies by zero would win every maximum."""
    scorer, batch = build(name, options), make_batch()
    batch.images, batch.texts = -batch.images.abs(), batch.texts.abs()
    plain = scorer.score(batch)
    padded = dataclasses.replace(
        batch,
        texts=F.pad(batch.texts, (0, 0, 0, 3)),
        text_mask=F.pad(batch.text_mask, (0, 3)),
    )
    padded.texts = padded.texts.masked_fill(~padded.text_mask[..., None], garbage)
    close(scorer.score(padded), plain)
    pairs = all_pairs(batch)
    close(scorer.score_pairs(padded, pairs), plain.flatten())


@every_head
def test_regions_of_different_number(name, options):
    """Images and texts without a fixed order or number: what a store of level `regions` holds."""
    dims = Dims(image_dim=16, text_dim=16, pooled_dim=16)
    scorer = build(name, options, dims)
    batch = make_batch(dims=dataclasses.replace(dims, image_tokens=6, context_length=4))
    batch.image_mask = torch.arange(6) < torch.tensor([1, 6, 3, 2, 5])[:, None]
    whole = scorer.score(batch)
    batch.images = batch.images.masked_fill(~batch.image_mask[..., None], float("nan"))
    close(scorer.score(batch), whole)
    alone = batch.select(torch.tensor([2]), torch.arange(7))
    alone.images, alone.image_mask = alone.images[:, :3], alone.image_mask[:, :3]
    close(scorer.score(alone)[0], whole[2])


@every_head
def test_rows_do_not_see_each_other(name, options):
    scorer, batch = build(name, options), make_batch()
    made = torch.Generator().manual_seed(3)
    rows, columns = torch.randperm(5, generator=made), torch.randperm(7, generator=made)
    block = scorer.score(batch)
    close(scorer.score(batch.select(rows, columns)), block[rows][:, columns])
    close(scorer.score(batch.select(rows[:1], columns[:2])), block[rows[:1]][:, columns[:2]])


@every_head
def test_gradients_are_finite(name, options):
    scorer, batch = build(name, options).train(), make_batch()
    if scorer.needs == "tokens":
        batch.texts = batch.texts.masked_fill(~batch.text_mask[..., None], float("nan"))
    sides = [(batch.images, batch.image_pooled), (batch.texts, batch.text_pooled)]
    for tensor in (*sides[0], *sides[1]):
        tensor.requires_grad_()
    scorer.score(batch).square().sum().backward()
    for side in sides:  # tokens, the pooled vector, or both
        reached = [tensor.grad for tensor in side if tensor.grad is not None]
        assert reached
        assert all(grad.isfinite().all() for grad in reached)
    assert (batch.images.grad is not None) == (scorer.needs == "tokens")
    assert scorer.trainable == any(True for _ in scorer.parameters())
    for parameter in scorer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@every_head
def test_views_show_the_scores(name, options):
    """Also under autocast, where a product of vectors in bfloat16 would be off by a part in 250."""
    scorer, batch = build(name, options), make_batch()
    close(scorer.views(batch).scores, scorer.score(batch))
    with torch.autocast("cpu", torch.bfloat16):
        found, whole = scorer.views(batch), scorer.score(batch)
    close(found.scores, whole)
    if found.image is not None:
        close(found.image.float() @ found.text.float().T, whole)


@every_head
def test_one_batch_can_be_learnt(name, options):
    scorer, batch = build(name, options), make_batch(8, 8)
    if not scorer.trainable:
        assert not list(scorer.parameters())
        return
    optimizer = torch.optim.Adam(scorer.parameters(), lr=3e-3)
    target = torch.arange(8)
    for _ in range(300):
        scores = scorer.score(batch) * (20 if name == "linear" else 1)
        loss = F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.1:
            break
    block = scorer.eval().score(batch)
    assert (block.argmax(1) == target).all()
    assert (block.argmax(0) == target).all()


@every_head
def test_a_head_that_reads_tokens_refuses_pooled_features(name, options):
    if registry_needs(name, options) == "pooled":
        build(name, options, Dims(0, 0, 12))
        return
    with pytest.raises(InputError, match="--level tokens"):
        build(name, options, Dims(0, 0, 12))


def registry_needs(name, options):
    return build(name, options).needs


@pytest.mark.parametrize("name", parts.names("heads"))
def test_options_are_strict_and_frozen(name):
    with pytest.raises(UnknownName, match=r"no setting 'head\.wdith'"):
        build_head(name, {"wdith": 1}, DIMS)
    config = registry.load("heads", name).Config()
    assert dataclasses.is_dataclass(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.anything = 1
    assert parts.summary("heads", name).endswith((".", ")."))


@every_head
def test_an_alignment_is_of_pairs_alone_and_padding_has_none(name, options):
    """Tokens × patches of a pair are the same in any batch; what padding holds is 0, whatever stands there."""
    scorer, batch = build(name, options), make_batch()
    pairs = torch.tensor([[0, 0], [4, 3], [2, 6], [0, 1]])
    with torch.no_grad():
        found = scorer.alignment(batch, pairs)
        if found is None:
            assert scorer.needs == "pooled" or name in ("cosine", "tfglobal"), f"{name} reads tokens and shows nothing"
            return
        one = batch.select(torch.tensor([4]), torch.tensor([3]))
        alone = scorer.alignment(one, torch.tensor([[0, 0]]))
        padded = dataclasses.replace(
            batch,
            images=F.pad(batch.images, (0, 0, 0, 0)),
            texts=batch.texts.masked_fill(~batch.text_mask[..., None], torch.nan),
        )
        again = scorer.alignment(padded, pairs)
    lengths = batch.text_mask.sum(1)[pairs[:, 1]]
    rows = torch.ones(4, 1) if found.whole else (torch.arange(found.values.shape[1]) < lengths[:, None]).float()
    assert found.values.shape == (4, rows.shape[1], DIMS.image_tokens)
    assert found.values.dtype == torch.float32
    assert (found.values[rows == 0] == 0).all()
    assert len(found.values[rows == 1].unique()) > 5, "it shows nothing"
    size = alone.values.shape[1]
    close(alone.values[0], found.values[1, :size])
    close(again.values, found.values)
    bound = found.values.sum(-1).max() if found.kind == "weight" else found.values.abs().max()
    assert bound <= 1 + 1e-5
    if found.kind == "weight":
        assert (found.values >= 0).all()
