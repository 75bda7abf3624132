"""The order of an epoch: a full shuffle, or one that keeps reads of the disk together.

A full shuffle asks every part of the store for a row at every step, which a store larger than the memory answers at
the speed of random reads. Parts hold rows that were shuffled when they were planned, so what mixes the parts anew
each epoch, and the rows of a few of them with each other, loses little randomness: the shuffle buffer of WebDataset
and of tf.data, without the buffer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError


def epoch_order(
    units_parts: NDArray[np.int64], seed_sequence: int | Sequence[int], window: int = 0
) -> NDArray[np.int64]:
    """A permutation (U,) int64 of the units of an epoch, a pure function of its arguments.

    units_parts    (U,) the part of the store in which each unit lies
    seed_sequence  what `numpy.random.default_rng` takes
    window         parts mixed at a time: the parts are shuffled, and the units of `window` parts that then follow
                   each other are shuffled together. So at any time rows of `window` parts are read, and each part
                   in one stretch of the epoch. 0: all units are shuffled together

    Raises `UsageError` for a window below 0.
    """
    if window < 0:
        raise UsageError(f"data.shuffle_window = {window}", "Give the parts to mix at a time; 0 mixes all.")
    rng = np.random.default_rng(seed_sequence)
    if not window:
        return rng.permutation(len(units_parts))
    parts, number = np.unique(units_parts, return_inverse=True)
    turn = rng.permutation(len(parts)) // window
    mixed = rng.permutation(len(units_parts))
    order: NDArray[np.int64] = mixed[np.argsort(turn[number[mixed]], kind="stable")]
    return order
