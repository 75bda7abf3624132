"""Batches made ahead: the same as those made at once, in order, whatever goes wrong on the way."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from compal.align.batches import FeatureTable, open_table
from compal.align.loader import Loader, share
from compal.align.pairs import PairTable
from compal.align.sampling import DataConfig, Sampler
from compal.errors import InputError, UsageError

from .test_batches import same

CPU = torch.device("cpu")


@pytest.fixture(params=["tokens", "pooled", "regions"])
def opened(request, stores, quad_table):
    store = stores[request.param]
    table = PairTable.read(quad_table, store)
    sampler = Sampler(table, DataConfig(batch_size=8, partners=1), 20, 0)
    return store, table, sampler


def features(store, table, residency):
    return open_table(store, table.image_keys, table.caption_keys, "cpu", "tokens", residency, 1 << 30)


def alike(one, other):
    same(one, other)
    for name in ("positives", "groups", "scored"):
        assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("residency", ["disk", "ram"])
def test_batches_are_those_made_at_once_and_stay(opened, residency):
    """All batches are kept until the end: no buffer that is reused lies behind one."""
    store, table, sampler = opened
    with Loader(sampler, features(store, table, residency), CPU, 3, 12) as loader:
        made = [loader(step) for step in range(3, 12)]
    plain = FeatureTable.streaming(store, table.image_keys, table.caption_keys, "cpu", "tokens")
    for step, batch in zip(range(3, 12), made, strict=True):
        alike(batch, sampler.draw(step).batch(plain))
        assert batch.rows is None
    assert loader.copied == 0
    assert loader.waited > 0


@pytest.mark.parametrize("world", [2, 3, 11])
def test_processes_share_the_images(opened, world):
    store, table, sampler = opened
    held = features(store, table, "ram")
    whole = sampler.draw(0).batch(held)
    rows = []
    for rank in range(world):
        with Loader(sampler, held, CPU, 0, 1, rank=rank, world=world) as loader:
            batch = loader(0)
        assert batch.positives.shape == batch.scored.shape == whole.shape
        assert torch.equal(batch.groups, whole.groups)
        assert torch.equal(batch.text_pooled, whole.text_pooled)
        here = torch.arange(whole.shape[0])[batch.rows]
        assert batch.shape == (len(here), whole.shape[1])
        assert torch.equal(batch.image_pooled, whole.image_pooled[here])
        if whole.images is not None and len(here):
            width = batch.images.shape[1]
            assert torch.equal(batch.images, whole.images[here][:, :width])
        if len(here):
            some = batch.to("cpu").select(torch.tensor([len(here) - 1]), torch.tensor([1, 0]))
            assert torch.equal(some.positives, whole.positives[here[-1:]][:, [1, 0]])
            assert torch.equal(some.scored, whole.scored[here[-1:]][:, [1, 0]])
            assert some.rows is None
        rows += here.tolist()
    assert rows == list(range(whole.shape[0]))


def test_shares_are_those_of_array_split():
    for count, world in ((10, 3), (2, 4), (0, 2), (8, 8)):
        expected = [part.tolist() for part in np.array_split(np.arange(count), world)]
        assert [list(range(count))[share(count, rank, world)] for rank in range(world)] == expected


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "compal-loader"]


class Failing(Sampler):
    def draw(self, step):
        if step == 2:
            raise InputError("the disk is gone")
        return super().draw(step)


def test_errors_of_the_thread_reach_the_caller(store, quad_table):
    table = PairTable.read(quad_table, store)
    sampler = Failing(table, DataConfig(batch_size=8), 20, 0)
    with Loader(sampler, features(store, table, "disk"), CPU, 0, 9) as loader:
        loader(0)
        loader(1)
        with pytest.raises(InputError, match="the disk is gone"):
            loader(2)
        with pytest.raises(UsageError, match="out of turn"):
            loader(2)
    assert not threads()


def test_leaving_early_stops_the_thread(store, quad_table):
    table = PairTable.read(quad_table, store)
    sampler = Sampler(table, DataConfig(batch_size=8), 10**6, 0)
    held = features(store, table, "disk")

    def interrupted():
        with Loader(sampler, held, CPU, 0, 10**6) as loader:
            loader(0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not threads()
    with Loader(sampler, held, CPU, 5, 5):
        pass
    assert not threads()


def test_only_a_few_batches_are_made_ahead(store, quad_table):
    table, drawn = PairTable.read(quad_table, store), []

    class Counting(Sampler):
        def draw(self, step):
            drawn.append(step)
            return super().draw(step)

    with Loader(Counting(table, DataConfig(batch_size=8), 50, 0), features(store, table, "ram"), CPU, 0, 50) as loader:
        loader(0)
        deadline = time.monotonic() + 5
        while len(drawn) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert drawn == [0, 1, 2]


def test_steps_come_in_order(store, quad_table):
    table = PairTable.read(quad_table, store)
    sampler, held = Sampler(table, DataConfig(batch_size=8), 20, 0), features(store, table, "ram")
    with Loader(sampler, held, CPU, 0, 2) as loader:
        with pytest.raises(UsageError, match="out of turn"):
            loader(1)
        loader(0)
        loader(1)
        with pytest.raises(UsageError, match="out of turn"):
            loader(2)
    with pytest.raises(UsageError, match="process 2 of 2"):
        Loader(sampler, held, CPU, 0, 2, rank=2, world=2)
