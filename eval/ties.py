"""What a tie is worth: nothing (strict, the headline), a hit, or the share of hits if ties were broken by tossing.

    lose  strict: an item counts if what is right stands above all that is wrong
    win   an item counts if nothing wrong stands above what is right: argmax with the right answer first
    half  the expected score if equal scores were put in random order. One wrong answer: half a hit. A scorer that
          gives everything the same score lands at chance under this rule, at 0 under `lose`, at 100 under `win`.

Functions of score arrays that give a credit in [0, 1] an item, float64. Official code of the field follows now one rule
and now another (SugarCrepe: lose; What'sUp and ARO's order tests: win), so all three are computed from saved scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnknownName
from . import metrics
from .sources import TIE_RULES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
STRICT = "lose"


def check(rule: str) -> str:
    """The rule. Raises `UnknownName` for another."""
    if rule not in TIE_RULES:
        raise UnknownName.among("tie rule", rule, TIE_RULES)
    return rule


def quads(scores: Any, rule: str = STRICT) -> dict[str, Floats]:
    """Credits of `metrics.quads_hits`, of scores (N, 2 images, 2 texts): i2t, t2i, group, each (N,)."""
    return _ordered(np.asarray(scores).reshape(-1, 4), rule, lambda v, above: metrics.quads_hits(_square(v), above))


def _square(values: Any) -> Any:
    return values.reshape(-1, 2, 2)


def positives(scores: Any, rule: str = STRICT) -> dict[str, Floats]:
    """Credits of `metrics.positives_hits`, of scores (N, 3): two right captions and a wrong one."""
    return _ordered(scores, rule, lambda v, above: metrics.positives_hits(v[:, :2], v[:, 2:], above))


def text(between: Any, rule: str = STRICT) -> dict[str, Floats]:
    """Credits of `metrics.text_hits`, of similarities (N, 3) between two right captions and a wrong one."""
    return _ordered(between, rule, lambda v, above: {"tot": metrics.text_hits(v, above)})


def _ordered(
    scores: Any, rule: str, hits: Callable[[Any, metrics.Above], dict[str, metrics.Bools]]
) -> dict[str, Floats]:
    """Credits of rows (N, M) under `hits`, a function of the order of a row's few scores."""
    values = np.asarray(scores)
    if rule != "half":
        found = hits(values, np.greater_equal if rule == "win" else np.greater)
        return {name: one.astype(np.float64) for name, one in found.items() if name != "ties"}
    width = values.shape[1]
    place = (values[:, :, None] > values[:, None, :]).sum(axis=2)
    orders = list(itertools.permutations(range(width)))
    total: dict[str, Floats] = {}
    for order in orders:
        for name, one in hits((place * width + np.array(order)).astype(np.float64), np.greater).items():
            total[name] = total.get(name, np.zeros(len(one))) + one.astype(np.float64)
    return {name: one / len(orders) for name, one in total.items() if name != "ties"}


def ranked(above: Any, equal: Any, k: int, rule: str = STRICT, rights: Any = 1) -> Floats:
    """Credit (N,) of being among the first k, where so many wrong candidates stand above the best right one, so many
    are equal to it, and `rights` right ones (itself included) are."""
    over, same, own = (np.broadcast_to(np.asarray(part, np.int64), np.shape(above)) for part in (above, equal, rights))
    if rule == "lose":
        return (over + same < k).astype(np.float64)
    if rule == "win":
        return (over < k).astype(np.float64)
    # Drawn without replacement: of same + own in a row, none of the first `left` is one of the own.
    left, miss = np.clip(k - over, 0, None), np.ones(np.shape(over))
    for step in range(int(own.max(initial=0))):
        still = step < own
        miss *= np.where(still, np.clip(same + own - left - step, 0, None) / np.maximum(same + own - step, 1), 1.0)
    return np.where(left > 0, 1.0 - miss, 0.0)
