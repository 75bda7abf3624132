"""Mined negatives: the nearest captions that are not the image's own, the same again, renewed and in the batches."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from compal.align import mining
from compal.align.batches import FeatureTable
from compal.align.mining import MinedConfig, Miner, mine
from compal.align.pairs import PairTable
from compal.align.recipe import FitConfig
from compal.align.sampling import DataConfig, Sampler
from compal.align.scorer import Dims, build_head
from compal.config import from_dict, to_dict
from compal.errors import InputError, UsageError
from compal.stores.items import Pair
from compal.stores.pairs import write_pairs

from .conftest import image_keys, text_keys

EVERY_INDEX = pytest.mark.parametrize("index", ["flat", "ivf", "hnsw"])


@pytest.fixture
def table(plain_table, store):
    return PairTable.read(plain_table, store)


def vectors(table, width=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (len(table.image_keys), width), (len(table.caption_keys), width)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def brute(images, captions, table, k, skip=0):
    """The specification: the whole block, own captions left out, a stable sort."""
    scores = images.astype(np.float64) @ captions.astype(np.float64).T
    own = np.zeros(scores.shape, dtype=bool)
    own[table.images, table.captions] = True
    wanted = np.full((len(images), k), -1)
    for row in range(len(images)):
        order = [c for c in np.argsort(-scores[row], kind="stable") if not own[row, c]][skip : skip + k]
        wanted[row, : len(order)] = order
    return wanted


def test_settings_are_checked():
    with pytest.raises(UsageError, match="at least 0"):
        MinedConfig(k=-1)
    with pytest.raises(UsageError, match=r"draw = 3 of only k = 2.*mined\.k to 3"):
        MinedConfig(k=2, draw=3)
    config = FitConfig(head={"name": "linear"}, data=DataConfig(mined=MinedConfig(k=4, draw=2, index="hnsw")))
    assert from_dict(FitConfig, to_dict(config)) == config


@pytest.mark.parametrize(("k", "skip"), [(1, 0), (5, 0), (5, 3), (12, 7)])
def test_flat_is_brute_force(table, k, skip):
    images, captions = vectors(table)
    found = mine(images, captions, table, MinedConfig(k=k, skip=skip), 0)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, brute(images, captions, table, k, skip))


def test_small_blocks_change_nothing(table, monkeypatch):
    """Blocks of one to a few images, of unequal widths since images own one caption or two."""
    images, captions = vectors(table)
    whole = mine(images, captions, table, MinedConfig(k=5, skip=1), 0)
    for name, value in (("ROWS", 3), ("FOUND", 1), ("PRODUCTS", 400)):
        with monkeypatch.context() as patch:
            patch.setattr(mining, name, value)
            np.testing.assert_array_equal(mine(images, captions, table, MinedConfig(k=5, skip=1), 0), whole)


@EVERY_INDEX
def test_own_captions_are_never_candidates(table, index):
    """Also where they are the nearest of all, in any of the image's rows, or another image's too."""
    images, captions = vectors(table)
    captions[table.captions] = 3 * images[table.images]
    found = mine(images, captions, table, MinedConfig(k=6, index=index), 0)
    own = set(zip(table.images.tolist(), table.captions.tolist(), strict=True))
    assert (found >= 0).any(1).all()
    assert not own & {(row, int(c)) for row, near in enumerate(found) for c in near}


def test_a_caption_of_two_images_is_a_candidate_of_neither(tmp_path, store):
    images, texts = image_keys(3), text_keys(3)
    rows = [Pair(images[0], texts[0]), Pair(images[1], texts[0]), Pair(images[2], texts[1])]
    write_pairs(tmp_path / "p.parquet", rows)
    table = PairTable.read(tmp_path / "p.parquet", store)
    found = mine(np.ones((3, 4)), np.ones((2, 4)), table, MinedConfig(k=2), 0)
    shared, other = (table.caption_keys.index(text) for text in texts[:2])
    wanted = {0: [other, -1], 1: [other, -1], 2: [shared, -1]}
    assert {row: found[table.image_keys.index(images[row])].tolist() for row in range(3)} == wanted


@EVERY_INDEX
def test_mining_again_finds_the_same(table, index):
    images, captions = vectors(table)
    config = MinedConfig(k=5, index=index)
    first = mine(images, captions, table, config, 3)
    np.testing.assert_array_equal(first, mine(images.copy(), captions.copy(), table, config, 3))


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_approximate_indices_find_most(index, table):
    """1,500 captions; the lists read are 32 of 38, so that "ivf" does leave some out."""
    rng = np.random.default_rng(0)
    wide = PairTable(
        table.path, [str(i) for i in range(200)], [str(c) for c in range(1500)], np.arange(200), np.arange(200),
        np.zeros(201, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros((0, 2), dtype=np.int64), {}, 0,
    )  # fmt: skip
    images, captions = (rng.standard_normal((n, 16)).astype(np.float32) for n in (200, 1500))
    exact = brute(images, captions, wide, 10)
    found = mine(images, captions, wide, MinedConfig(k=10, index=index), 0)
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)])
    assert shared > 0.9


def test_vectors_that_do_not_fit_are_refused(table):
    images, captions = vectors(table)
    with pytest.raises(UsageError, match="do not fit 20 images"):
        mine(images[:-1], captions, table, MinedConfig(k=1), 0)
    captions[3, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        mine(images, captions, table, MinedConfig(k=1), 0)


def test_without_faiss_the_extra_is_named(table, store, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"compal\[mining\]"):
        Miner(table, features(table, store), MinedConfig(k=1), 0)
    Miner(table, features(table, store), MinedConfig(), 0)


def features(table, store, make=FeatureTable.loaded, needs="pooled"):
    return make(store, table.image_keys, table.caption_keys, "cpu", needs)


def linear(seed=0):
    torch.manual_seed(seed)
    scorer = build_head("linear", {}, Dims(6, 6, 8))
    torch.nn.init.normal_(scorer.map.weight)
    return scorer


def test_embed_ranks_as_the_score_does(table, store):
    scorer = linear()
    batch = features(table, store).batch(np.arange(20), np.arange(len(table.caption_keys)))
    image, text = scorer.embed(batch)
    torch.testing.assert_close(image @ text.T, scorer.score(batch))


@pytest.mark.parametrize("make", [FeatureTable.loaded, FeatureTable.streaming])
def test_refreshes_follow_the_head(table, store, make, monkeypatch):
    monkeypatch.setattr(mining, "ROWS", 7)
    miner = Miner(table, features(table, store, make), MinedConfig(k=4, every=5), 0)
    scorer = linear().train()
    assert (miner.candidates == -1).all()
    assert miner.refresh(0, scorer)
    batch = features(table, store).batch(np.arange(20), np.arange(len(table.caption_keys)))
    image, text = (part.detach().numpy() for part in scorer.embed(batch))
    first = miner.candidates
    np.testing.assert_array_equal(first, brute(image, text, table, 4))
    random = torch.get_rng_state()
    other = linear(1).train()
    torch.set_rng_state(random)
    assert [step for step in range(12) if miner.refresh(step, other)] == [5, 10]
    assert [miner.next_refresh(step, other) for step in (0, 4, 5, 9)] == [5, 5, 10, 10]
    assert (miner.candidates != first).any()
    assert other.training
    assert torch.equal(torch.get_rng_state(), random)


def test_a_head_without_embed_is_mined_once_with_the_store(table, store):
    head = {"interaction": "cross", "width": 8, "layers": 1, "heads": 2, "ffn": 8}
    scorer = build_head("tflocal", head, Dims.of(store.spec))
    miner = Miner(table, features(table, store, needs="tokens"), MinedConfig(k=3, every=2), 0)
    assert [miner.refresh(step, scorer) for step in range(5)] == [True, False, False, False, False]
    assert miner.next_refresh(0, scorer) is None
    pooled = [
        store.pooled(*asked).astype(np.float32) for asked in (("image", table.image_keys), ("text", table.caption_keys))
    ]
    images, captions = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in pooled)
    np.testing.assert_array_equal(miner.candidates, brute(images, captions, table, 3))


def test_a_restored_miner_goes_on(table, store):
    config = MinedConfig(k=3, every=4)
    miner = Miner(table, features(table, store), config, 0)
    miner.refresh(0, linear())
    state = miner.state()
    resumed = Miner(table, features(table, store), config, 0)
    resumed.restore(state)
    np.testing.assert_array_equal(resumed.candidates, miner.candidates)
    assert not resumed.refresh(3, linear(1)), "not due"
    assert not resumed.refresh(0, linear(1)), "mined at this step already"
    assert resumed.refresh(4, linear(1))
    assert miner.refresh(4, linear(1))
    np.testing.assert_array_equal(resumed.candidates, miner.candidates)
    assert (state["candidates"].numpy() != miner.candidates).any(), "the state is a copy"
    with pytest.raises(InputError, match=r"do not fit 20 images with data\.mined\.k = 2"):
        Miner(table, features(table, store), MinedConfig(k=2), 0).restore(state)


def sampler(table, candidates, seed=0, **options):
    mined = MinedConfig(k=4, draw=2)
    made = Sampler(table, DataConfig(batch_size=6, mined=mined, **options), 20, seed)
    made.candidates = candidates
    return made


@pytest.mark.parametrize("partners", [0, 1])
def test_batches_hold_the_mined(table, partners):
    """Two of four candidates of every pair's image, scored with it, and nothing else of the batch is different."""
    candidates = mine(*vectors(table), table, MinedConfig(k=4), 0)
    drawn = set()
    for step in range(4):
        source, plain = sampler(table, candidates, partners=partners), sampler(table, None, partners=partners)
        with_mined, without = source.draw(step), plain.draw(step)
        np.testing.assert_array_equal(source.pairs(step), plain.pairs(step))
        np.testing.assert_array_equal(with_mined.images, without.images)
        assert set(without.captions) <= set(with_mined.captions)
        new = set(with_mined.captions) - set(without.captions)
        assert new, "twelve are drawn, not all can stand in the batch anyway"
        assert new <= set(candidates[with_mined.images].ravel())
        for row, image in enumerate(with_mined.images):
            columns = np.flatnonzero(np.isin(with_mined.captions, candidates[image]))
            if partners:
                assert with_mined.scored[row, columns].sum() >= 2
            drawn |= {(int(image), int(with_mined.captions[column])) for column in columns}
            assert not with_mined.positives[row, columns].any()
    assert drawn


def test_mined_batches_are_a_pure_function(table):
    candidates = mine(*vectors(table), table, MinedConfig(k=4), 0)
    forwards = [sampler(table, candidates, partners=1).draw(step) for step in range(5)]
    source = sampler(table, candidates, partners=1)
    for step in (4, 0, 2):
        for name in ("images", "captions", "positives", "scored"):
            np.testing.assert_array_equal(getattr(source.draw(step), name), getattr(forwards[step], name))
    others = [sampler(table, candidates, seed=1).draw(step).captions for step in range(2)]
    assert not all(np.array_equal(a, b.captions) for a, b in zip(others, forwards, strict=False))


def test_images_without_candidates_draw_none(table):
    none = np.full((len(table.image_keys), 4), -1, dtype=np.int32)
    np.testing.assert_array_equal(sampler(table, none).draw(1).captions, sampler(table, None).draw(1).captions)
