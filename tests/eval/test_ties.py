"""What ties are worth: by hand, against tossing, and a constant scorer at chance under `half`."""

from __future__ import annotations

import numpy as np
import pytest

from compal.errors import UnknownName
from compal.eval import ties


def test_a_constant_is_worth_nothing_chance_and_everything():
    flat = np.ones((1, 2, 2))
    expected = {"i2t": 0.25, "t2i": 0.25, "group": 1 / 6}
    assert {name: found[0] for name, found in ties.quads(flat, "half").items()} == pytest.approx(expected)
    assert {found[0] for found in ties.quads(flat).values()} == {0.0}
    assert {found[0] for found in ties.quads(flat, "win").values()} == {1.0}
    assert {name: found[0] for name, found in ties.positives(np.ones((1, 3)), "half").items()} == pytest.approx(
        {"itt": 1 / 3, "p1_neg": 0.5, "p2_neg": 0.5}
    )
    assert ties.text(np.ones((1, 3)), "half")["tot"][0] == pytest.approx(1 / 3)
    # One right among five that are all equal.
    assert [float(ties.ranked([0], [4], 2, rule)[0]) for rule in ("lose", "half", "win")] == [0.0, 0.4, 1.0]


@pytest.mark.parametrize("rule", ["lose", "half", "win"])
def test_without_ties_all_rules_agree(rule):
    scores = np.random.default_rng(0).normal(size=(50, 2, 2))
    for name, found in ties.quads(scores, rule).items():
        assert np.array_equal(found, ties.quads(scores)[name])
    above = np.arange(6)
    assert ties.ranked(above, np.zeros(6, int), 3, rule).tolist() == [1, 1, 1, 0, 0, 0]


def test_half_is_what_tossing_gives():
    """Against 20,000 draws of noise too small to change an order; four standard errors are 0.014."""
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 2, (8, 2, 2)).astype(float)
    noise = rng.random((20_000, 8, 2, 2)) / 10
    for name, found in ties.quads(scores, "half").items():
        drawn = ties.quads((scores + noise).reshape(-1, 2, 2))[name].reshape(20_000, 8).mean(axis=0)
        assert found == pytest.approx(drawn, abs=0.014)


@pytest.mark.parametrize(("above", "equal", "rights", "k"), [(0, 3, 1, 1), (1, 4, 2, 3), (2, 5, 3, 4), (3, 0, 2, 2)])
def test_ranks_under_half_are_what_tossing_gives(above, equal, rights, k):
    rng = np.random.default_rng(2)
    orders = rng.permuted(np.tile(np.arange(equal + rights) < rights, (20_000, 1)), axis=1)
    drawn = orders[:, : max(0, k - above)].any(axis=1).mean()
    assert ties.ranked([above], [equal], k, "half", [rights])[0] == pytest.approx(drawn, abs=0.015)


def test_an_unknown_rule_is_refused():
    with pytest.raises(UnknownName, match="Did you mean 'half'"):
        ties.check("hlf")
