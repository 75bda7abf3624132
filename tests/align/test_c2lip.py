"""C2LIP's three terms against loops over images and phrases in float64; its batches from a table with noun phrases."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from compal.align.batches import FeatureTable
from compal.align.losses import c2lip
from compal.align.mining import MinedConfig
from compal.align.pairs import PairTable
from compal.align.sampling import DataConfig, Sampler
from compal.align.scorer import Views
from compal.errors import InputError, MissingFeatures, UsageError
from compal.stores.items import Pair, caption_key, noun_phrases
from compal.stores.pairs import write_pairs
from compal.stores.segments import add_segments
from compal.stores.store import ImageRows, Store, TextRows

from .conftest import SPEC, image_keys
from .test_losses import agree, gradients, make

SEEDS = pytest.mark.parametrize("seed", range(3))


def with_phrases(seed):
    """The batch of the other objectives, the last six of its captions made phrases: pairs have none to three of them,
    most of them several pairs; one phrase is a caption too, and one is a negative."""
    batch, (seen, _) = make(seed)
    made = torch.Generator().manual_seed(50 + seed)
    count, captions = len(batch.pairs), batch.positives.shape[1]
    pool = torch.cat([torch.arange(captions - 6, captions), torch.tensor([2])])
    batch.negatives[batch.negatives >= captions - 5] = -1
    phrases = torch.full((count, 3), -1)
    for pair in range(count):
        size = int(torch.randint(0, 4, (), generator=made)) if pair else 3
        phrases[pair, :size] = pool[torch.randperm(len(pool), generator=made)[:size]]
    phrases[1, 0] = phrases[0, 0]
    there = phrases >= 0
    batch.positives[batch.pairs[:, :1].expand_as(phrases)[there], phrases[there]] = True
    batch.phrases = phrases
    return batch, seen


def asked(value, right):
    return -F.logsigmoid(value if right else -value)


def slow_c2lip(batch, seen, config, scale, bias):
    images, owners = range(len(batch.positives)), batch.pairs[:, 0].tolist()
    given = set(batch.negatives[batch.negatives >= 0].tolist())
    named = [(owners[pair], column) for pair, row in enumerate(batch.phrases.tolist()) for column in row if column >= 0]
    own = set(batch.pairs[:, 1].tolist())
    captions = own | (given if config.negatives else set())
    total = torch.zeros((), dtype=torch.float64)
    for image in images:
        for column in captions:
            right = bool(batch.positives[image, column])
            total = total + asked(scale * seen.scores[image, column] + bias, right) / len(captions)
    if config.duplicates == "merge":
        questions = [(column, {i for i in images if batch.positives[i, column]}) for column in {c for _, c in named}]
    else:
        questions = [(column, {owner}) for owner, column in named]
    texts = F.normalize(seen.text, dim=1)
    for image in images:
        u = F.normalize(seen.patches[image][seen.patch_mask[image]], dim=1)
        for column, right in questions:
            weights = (config.kappa * u @ texts[column]).softmax(0)
            pooled = torch.zeros_like(u[0])
            for patch, weight in zip(u, weights, strict=True):
                pooled = pooled + weight * patch
            cosine = F.normalize(pooled, dim=0) @ texts[column]
            npc = asked(scale * seen.scores[image, column] + bias, image in right)
            xac = asked(scale * cosine + bias, image in right)
            total = total + (config.npc_weight * npc + config.xac_weight * xac) / len(questions)
    return total


@SEEDS
@pytest.mark.parametrize("duplicates", ["merge", "as_published"])
@pytest.mark.parametrize(
    "options", [{}, {"xac_weight": 2.0, "kappa": 30.0}, {"npc_weight": 0.0, "xac_weight": 1.0, "negatives": True}]
)
def test_c2lip_is_its_formula(seed, duplicates, options):
    """Values, and gradients to images, captions, patches, scale and bias."""
    batch, seen = with_phrases(seed)
    config = c2lip.Config(temperature=0.2, bias=-1.5, duplicates=duplicates, **options)
    fitted = {name: torch.tensor(v, dtype=torch.float64, requires_grad=True) for name, v in
              (("log_scale", math.log(5)), ("bias", -1.5))}  # fmt: skip
    found = c2lip.loss(seen.scores, batch, config, fitted, views=seen)
    expected = slow_c2lip(batch, seen, config, fitted["log_scale"].exp(), fitted["bias"])
    agree(found, expected, seen)
    ours, theirs = (torch.autograd.grad(v, list(fitted.values()), retain_graph=True) for v in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    fixed = c2lip.loss(seen.scores, batch, config, views=seen)
    torch.testing.assert_close(fixed, expected.detach(), rtol=1e-6, atol=0)
    if config.xac_weight:
        assert any(gradient.abs().max() > 0 for gradient in gradients(found, seen)[2:3])


def test_equal_phrases_disagree_as_published():
    """What two captions share is a no of each for the other's image: the loss that merging takes away."""
    batch, seen = with_phrases(0)
    merged, published = (c2lip.Config(temperature=0.2, duplicates=name) for name in ("merge", "as_published"))
    assert c2lip.loss(seen.scores, batch, merged, views=seen) != c2lip.loss(seen.scores, batch, published, views=seen)
    batch.phrases[:] = -1
    batch.phrases[0, 0], batch.phrases[3, 0] = batch.positives.shape[1] - 1, batch.positives.shape[1] - 2
    batch.positives[:, -2:] = False
    batch.positives[batch.pairs[[0, 3], 0], batch.phrases[[0, 3], 0]] = True
    one, other = (c2lip.loss(seen.scores, batch, config, views=seen) for config in (merged, published))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_what_padding_holds_does_not_matter():
    batch, seen = with_phrases(1)
    config = c2lip.Config(xac_weight=1.0)
    spoiled = seen.patches.detach().masked_fill(~seen.patch_mask[..., None], -1e3)
    other = dataclasses.replace(seen, patches=spoiled)
    torch.testing.assert_close(*(c2lip.loss(seen.scores, batch, config, views=v) for v in (seen, other)))


def test_a_batch_without_phrases_is_refused_and_pairs_may_have_none():
    batch, seen = with_phrases(2)
    batch.phrases = torch.full_like(batch.phrases, -1)
    alone = c2lip.loss(seen.scores, batch, c2lip.Config(npc_weight=5.0), views=seen)
    torch.testing.assert_close(alone, slow_siglip(batch, seen), rtol=1e-6, atol=0)
    batch.phrases = None
    with pytest.raises(UsageError, match=r"data\.phrases"):
        c2lip.loss(seen.scores, batch, c2lip.Config(), views=seen)
    with pytest.raises(UsageError, match=r"loss\.kappa"):
        c2lip.Config(kappa=0.0)


def slow_siglip(batch, seen):
    own = sorted(set(batch.pairs[:, 1].tolist()))
    logits = seen.scores[:, own] / 0.01 - 10
    return -F.logsigmoid(torch.where(batch.positives[:, own], logits, -logits)).sum() / len(own)


def test_a_head_without_patches_has_the_phrase_term_alone():
    batch, seen = with_phrases(0)
    bare = Views(seen.scores, seen.image, seen.text)
    c2lip.loss(seen.scores, batch, c2lip.Config(xac_weight=0.0), views=bare)
    with pytest.raises(UsageError, match="patches"):
        c2lip.loss(seen.scores, batch, c2lip.Config(), views=bare)


# --- batches ---------------------------------------------------------------------------------------------

CAPTIONS = ["A red cube on a mat", "a mat", "a  red cube", "running", "a dog on a mat"]
PHRASES = [["a red cube", "a mat"], ["a mat"], ["a red cube"], [], ["a dog", "a mat"]]


def spans(caption):
    """Phrases by a rule of the test's own: what " on " separates, but "running"."""
    parts = [part for part in caption.split(" on ") if part != "running"]
    return tuple((caption.index(part), caption.index(part) + len(part), "object") for part in parts)


def filled(folder, texts, segments):
    rng = np.random.default_rng(0)
    store, keys = Store.create(folder, SPEC), image_keys(5)
    states = rng.standard_normal((5, *SPEC.image_shape)).astype(np.float16)
    pooled = rng.standard_normal((5, 8)).astype(np.float16)
    store.write_images("i-1", ImageRows(keys, keys, [(8, 8)] * 5, states, pooled))
    keys = [caption_key(text) for text in texts]
    words = [rng.standard_normal((2, SPEC.text_dim)).astype(np.float16) for _ in texts]
    rows = TextRows(keys, list(texts), keys, words, rng.standard_normal((len(texts), 8)).astype(np.float16))
    rows.spans, rows.pool_index, rows.truncated = [[(-1, -1)] * 2] * len(texts), [-1] * len(texts), [False] * len(texts)
    rows.segments = segments
    store.write_texts("t-1", rows)
    store.commit(["i-1", "t-1"])
    return Store.open(folder)


@pytest.fixture
def pairs(tmp_path):
    """Image i has caption i; the last is a negative of the first."""
    keys = [caption_key(text) for text in CAPTIONS]
    rows = [Pair(image, key) for image, key in zip(image_keys(5), keys, strict=True)]
    write_pairs(tmp_path / "p.parquet", [dataclasses.replace(rows[0], negatives=(keys[4],)), *rows[1:]])
    return tmp_path / "p.parquet"


def everything():
    return list(dict.fromkeys([*CAPTIONS, *(text for texts in PHRASES for text in texts)]))


def read(pairs, store):
    table = PairTable.read(pairs, store, phrases=True)
    names = {caption_key(text): text for text in everything()}
    return table, [names[key] for key in table.caption_keys]


def test_phrases_are_small_single_and_once():
    caption = "A  Cat and a cat; grass"
    found = noun_phrases(caption, [(0, 6, "object"), (11, 16, "object"), (0, 16, "relation"), (18, 23, "phrase")])
    assert found == ["a cat", "grass"]


def test_a_table_with_phrases(tmp_path, pairs):
    texts = everything()
    store = filled(tmp_path / "s", texts, [spans(text) if text in CAPTIONS else () for text in texts])
    table, names = read(pairs, store)
    assert [[names[row] for row in table.phrases_of(pair)] for pair in range(5)] == PHRASES
    assert len(set(table.caption_keys)) == len(table.caption_keys), "an equal phrase is one row"
    draw = Sampler(table, DataConfig(batch_size=5, phrases=-1), 10, 0).draw(0)
    columns = [names[row] for row in draw.captions]
    assert draw.phrases.shape == (5, 2)
    for (row, column), phrases in zip(draw.pairs, draw.phrases, strict=True):
        image = draw.images[row]
        assert columns[column] == CAPTIONS[image]
        assert [columns[one] for one in phrases if one >= 0] == PHRASES[image]
        # A phrase is right for every image whose caption has it, or is it.
        right = {columns[one] for one in np.flatnonzero(draw.positives[row])}
        assert right == {CAPTIONS[image], *PHRASES[image]}
    batch = draw.batch(FeatureTable.streaming(store, table.image_keys, table.caption_keys, "cpu", "pooled"))
    assert batch.phrases.tolist() == draw.phrases.tolist()
    plain = PairTable.read(pairs, store)
    assert (plain.phrases, len(plain.phrases_of(0))) == (None, 0)
    assert Sampler(plain, DataConfig(batch_size=5), 10, 0).draw(0).phrases is None


def test_some_of_the_phrases_are_drawn_by_the_seed(tmp_path, pairs):
    texts = everything()
    store = filled(tmp_path / "s", texts, [spans(text) if text in CAPTIONS else () for text in texts])
    table, _ = read(pairs, store)

    def sampler(**more):
        return Sampler(table, DataConfig(batch_size=5, phrases=1, **more), 50, 0)

    draws = [sampler().draw(step) for step in range(20)]
    assert all(draw.phrases.shape == (5, 1) for draw in draws)
    both = {table.caption_keys[draw.captions[one]] for draw in draws for one in draw.phrases[draw.pairs[:, 0] == 0][0]}
    assert both == {caption_key(text) for text in PHRASES[0]}
    np.testing.assert_array_equal(sampler().draw(7).phrases, draws[7].phrases)
    scored = sampler(partners=1).draw(3)
    for (row, column), phrases in zip(scored.pairs, scored.phrases, strict=True):
        assert scored.scored[row, [column, *phrases[phrases >= 0]]].all()
    assert not scored.scored.all()
    with pytest.raises(UsageError, match=r"data\.mined"):
        sampler(mined=MinedConfig(k=2))


def test_segments_beside_the_store_will_do(tmp_path, pairs):
    """Those of a segmenter that came after the captions; of two, the one whose phrases the store has."""
    store = filled(tmp_path / "s", everything(), [()] * len(everything()))
    with pytest.raises(InputError, match=r"no caption of .* has noun phrases.*--phrases --segments rules"):
        PairTable.read(pairs, store, phrases=True)
    add_segments(store.path, "another", "1", {caption_key(text): [(0, 3, "phrase")] for text in CAPTIONS})
    with pytest.raises(MissingFeatures, match=r"lacks \d of the \d noun phrases .*compal extract .*--phrases"):
        PairTable.read(pairs, store, phrases=True)
    add_segments(store.path, "rules", "1", {caption_key(text): spans(text) for text in CAPTIONS})
    table, names = read(pairs, store)
    assert [[names[row] for row in table.phrases_of(pair)] for pair in range(5)] == PHRASES


def test_phrases_that_the_store_lacks(tmp_path, pairs):
    store = filled(tmp_path / "s", CAPTIONS, [spans(text) for text in CAPTIONS])
    with pytest.raises(MissingFeatures, match=r"lacks 2 of the 3 noun phrases .*--level tokens --phrases"):
        PairTable.read(pairs, store, phrases=True)
