"""Bootstrap intervals: by image, seeded, honest at the edges."""

from __future__ import annotations

import numpy as np
import pytest

from compal.errors import InputError
from compal.eval import intervals


def shared_luck(images: int = 200, captions: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Items of which all that share an image are right or wrong together."""
    cluster = np.repeat(np.arange(images), captions)
    return (np.random.default_rng(0).random(images) < 0.5)[cluster], cluster


def width(interval: tuple[float, float] | None) -> float:
    assert interval is not None
    return interval[1] - interval[0]


def test_interval_by_image_is_wider_than_by_item_when_items_share_images():
    hits, cluster = shared_luck()
    by_image, by_item = intervals.interval(hits, cluster), intervals.interval(hits)
    # Fully shared luck of 5 items: √5 times wider.
    assert width(by_image) == pytest.approx(width(by_item) * 5**0.5, rel=0.1)
    assert by_image[0] < 100 * hits.mean() < by_image[1]


def test_interval_agrees_with_the_normal_approximation_for_independent_items():
    hits = np.arange(1000) < 300
    low, high = intervals.interval(hits)
    spread = 1.96 * (0.3 * 0.7 / 1000) ** 0.5 * 100
    assert low == pytest.approx(30 - spread, abs=0.3)
    assert high == pytest.approx(30 + spread, abs=0.3)


def test_interval_covers_the_truth_in_about_95_of_100_samples():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        cluster = np.repeat(np.arange(60), 3)
        luck = rng.beta(2, 3, 60)
        low, high = intervals.interval(rng.random(180) < luck[cluster], cluster, seed=trial, resamples=400)
        covered += low <= 40 <= high
    assert 180 <= covered <= 199


def test_same_seed_same_interval_and_another_seed_another():
    hits, cluster = shared_luck()
    assert intervals.interval(hits, cluster, seed=3) == intervals.interval(hits, cluster, seed=3)
    assert intervals.interval(hits, cluster, seed=3) != intervals.interval(hits, cluster, seed=4)


def test_draws_do_not_depend_on_the_block_size(monkeypatch):
    sums, counts = np.arange(20.0)[:, None] % 3, np.full((20, 1), 3.0)
    whole = intervals.bootstrap(sums, counts, seed=5)
    monkeypatch.setattr(intervals, "DRAWS", 20 * 7)
    intervals.forget()
    assert np.array_equal(whole, intervals.bootstrap(sums, counts, seed=5))


def test_draws_that_stayed_are_those_that_were_drawn(monkeypatch):
    sums, counts = np.arange(20.0)[:, None] % 3, np.full((20, 1), 3.0)
    intervals.forget()
    first = intervals.bootstrap(sums, counts, seed=5)
    with monkeypatch.context() as patch:
        patch.setattr(np.random, "default_rng", lambda seed: pytest.fail("drawn again"))
        assert np.array_equal(first, intervals.bootstrap(sums, counts, seed=5))
    assert not np.array_equal(first, intervals.bootstrap(sums, counts, seed=6))
    assert not np.array_equal(first[:, 0], intervals.bootstrap(sums, counts, seed=5, resamples=1999)[:, 0])


def test_draws_that_stay_are_bounded(monkeypatch):
    monkeypatch.setattr(intervals, "KEPT", 3 * 50 * 10)
    intervals.forget()
    for seed in range(7):
        intervals.bootstrap(np.ones((10, 1)), np.ones((10, 1)), seed, resamples=50)
        assert sum(block.nbytes for blocks in intervals._kept.values() for block in blocks) <= intervals.KEPT
    assert list(intervals._kept) == [(10, seed, 50) for seed in (4, 5, 6)]
    intervals.bootstrap(np.ones((100, 1)), np.ones((100, 1)), 0, resamples=50)
    assert (100, 0, 50) not in intervals._kept


def test_bootstrap_equals_a_slow_loop():
    rng = np.random.default_rng(2)
    cluster = rng.integers(0, 7, 30)
    hits = rng.random(30) < 0.4
    sums, counts = np.bincount(cluster, hits, 7), np.bincount(cluster, minlength=7)
    found = intervals.bootstrap(sums[:, None], counts[:, None], seed=9, resamples=50)[:, 0]
    draws = np.random.default_rng(9).integers(0, 7, (50, 7))
    slow = [np.concatenate([hits[cluster == c] for c in row]).mean() for row in draws]
    assert found == pytest.approx(slow)


def test_all_or_nothing_has_the_exact_bound_and_not_zero_width():
    low, high = intervals.interval(np.zeros(500, bool))
    assert low == 0.0
    # (1 − p)^500 = 0.025
    assert (1 - high / 100) ** 500 == pytest.approx(0.025)
    assert intervals.interval(np.ones(500, bool)) == (pytest.approx(100 - high), 100.0)


def test_undefined_without_items_or_with_one_cluster():
    assert intervals.interval([]) is None
    assert intervals.interval([True]) is None
    assert intervals.interval([True, False], ["a", "a"]) is None


def test_lengths_must_agree():
    with pytest.raises(InputError):
        intervals.interval([True, False], [0])


def test_clusters_link_items_through_shared_images():
    found = intervals.clusters([["a", "b"], ["c", "d"], ["b", "e"], ["f"], ["e", "g"], ["d"]])
    assert found.tolist() == [0, 1, 0, 2, 0, 1]
    assert intervals.clusters([]).tolist() == []
