"""Which pairs stand in which step: a pure function of the table, the configuration, the seed and the step.

So resuming needs no sampler state, and a run killed at any step goes on with the batches it would have
seen. Pairs are drawn without replacement, epoch after epoch; the two pairs of a swap group stay together.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..errors import InputError, UsageError
from .mining import MinedConfig
from .order import epoch_order
from .pairs import Draw, PairTable


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: until this share of the steps, only pairs that match.

    until   share of all steps at which the stage ends, in (0, 1]
    column  `group` or `category` of the pairs table; `objects`, the object segments of the caption; `words`
    match   shell patterns (`*`, `?`, `[1-3]`) on the column's text; a pair takes part if any of them matches
    """

    until: float
    column: str
    match: tuple[str, ...]


@dataclass(frozen=True)
class DataConfig:
    """What a step is made of.

    train, validation  splits of the dataset, each a pairs table; "" = none
    batch_size    pairs (image, caption) a step; a swap group counts two
    negatives     of the captions given as negatives of a pair, how many a step draws; -1 = all
    phrases       of the noun phrases of a pair's caption, how many a step draws; -1 = all. They are captions of the
                  store: extract them with --phrases
    further       of the other captions of a pair's image, how many a step draws beside its own; -1 = all, in
                  the table's order
    turns         patterns on the column `category`, one a step in turn: ["concatenated", "single"] draws the pairs of a
                  step among those of one kind, then of the other. () = no turns; pairs that match none take no part
    groups        the two pairs of a swap group stay together: each has the other's image and caption for hard
                  negatives. false: pairs are drawn alone, as for a control without hard negatives
    partners      0: every image is scored with every caption of the batch. k > 0: with its own captions,
                  its negatives, its group's, and those of k random others: for heads whose cost is per pair
    curriculum    stages one after the other; after the last, all pairs take part
    resident      where the features stay: "gpu", on the device; "ram", in memory; "disk", nowhere, every step
                  reads the store. "auto": the first of these that fits: four fifths of the free memory of a CUDA
                  device, then `resident_gib`. The batches are the same
    resident_gib  the most memory that "auto" takes
    shuffle_window  0: an epoch shuffles all pairs. n > 0: it shuffles the store's parts of images, and the pairs
                  of n parts at a time, so that a store larger than the memory is read part by part
    mined         negatives found by their features, beside those of the table: see `MinedConfig`
    """

    train: str = "train"
    validation: str = "validation"
    batch_size: int = 128
    negatives: int = 1
    phrases: int = 0
    further: int = 0
    turns: tuple[str, ...] = ()
    groups: bool = True
    partners: int = 0
    curriculum: tuple[Stage, ...] = ()
    resident: Literal["auto", "disk", "ram", "gpu"] = "auto"
    resident_gib: float = 4.0
    shuffle_window: int = 0
    mined: MinedConfig = field(default_factory=MinedConfig)


@dataclass(frozen=True, eq=False)
class _Epochs:
    """A stage ready to draw from: its first step, and units (U, 2) of pairs that stay together, -1 = none. `parts`
    (U,): the part of the store that holds the image of each unit's first pair."""

    first: int
    units: np.ndarray
    sizes: np.ndarray
    pairs: int
    parts: np.ndarray

    @classmethod
    def of(cls, first: int, table: PairTable, taken: np.ndarray, parts: np.ndarray | None, grouped: bool) -> _Epochs:
        """Of the pairs `taken` (N,) bool: if `grouped` the swap groups of which both are taken, then others alone."""
        whole = table.quads[taken[table.quads].all(axis=1) & grouped]
        alone = taken.copy()
        alone[whole] = False
        single = np.flatnonzero(alone)
        units = np.concatenate([whole, np.stack([single, np.full_like(single, -1)], axis=1)])
        sizes = (units >= 0).sum(axis=1)
        lies = np.zeros(len(units), np.int64) if parts is None else parts[table.images[units[:, 0]]]
        return cls(first, units, sizes, int(sizes.sum()), lies)


class Sampler:
    """The batches of a run, by step. `parts` (number of image keys,) int64: the part of the store in which each
    image row lies (`Snapshot.parts_of`), which `shuffle_window` needs. `candidates` (I, k) int32, None = none yet: the
    mined captions of each image row, -1 = none; a batch is a function of these too. Raises `UsageError` for a
    curriculum that is out of order or a window without parts, `InputError` for a stage that no pair matches."""

    def __init__(
        self, table: PairTable, config: DataConfig, steps: int, seed: int, parts: np.ndarray | None = None
    ) -> None:
        if config.batch_size < 1 or config.partners < 0 or config.shuffle_window < 0:
            raise UsageError("data.batch_size must be at least 1, data.partners and data.shuffle_window at least 0")
        if config.shuffle_window and (parts is None or len(parts) != len(table.image_keys)):
            raise UsageError("data.shuffle_window needs the part of each image", "Give Sampler(parts=...).")
        if config.phrases and config.mined.k:
            raise UsageError(
                "data.mined would take the noun phrases of data.phrases for negatives", "Set one of them to 0."
            )
        self.table, self.config, self.seed = table, config, seed
        self.stages = _stages(table, config, steps, parts)
        self.candidates: np.ndarray | None = None
        self._epochs: dict[tuple[int, int], tuple[int, np.ndarray, np.ndarray]] = {}

    def draw(self, step: int) -> Draw:
        """The batch of `step`, counted from 0."""
        pairs = self.pairs(step)
        rng = np.random.default_rng([self.seed, 1, step])
        # A stream of their own, so that mining changes nothing else of a batch.
        mining = np.random.default_rng([self.seed, 2, step])
        negatives = [
            np.concatenate([self._negatives(int(pair), rng), self._mined(int(pair), mining)]) for pair in pairs
        ]
        phrases, further = self._phrases(pairs, step), self._further(pairs, step)
        if not self.config.partners:
            return self.table.draw(pairs, negatives, phrases=phrases, further=further)
        # Offsets from 2 on: at 1 stands the other pair of the own swap group, which is scored anyway.
        first = 2 if len(pairs) > 3 else 1
        offsets = rng.permutation(np.arange(first, max(first, len(pairs) - first + 1)))
        return self.table.draw(pairs, negatives, offsets[: self.config.partners], phrases, further)

    def pairs(self, step: int) -> np.ndarray:
        """The pairs of `step`: about `batch_size` of them, as a swap group is never cut."""
        number = max(index for index, turns in enumerate(self.stages) if turns[0].first <= step)
        turns = self.stages[number]
        lap, turn = divmod(step - turns[0].first, len(turns))
        stage = turns[turn]
        size = min(self.config.batch_size, stage.pairs)
        per_epoch = stage.pairs // size  # the rest of an epoch that fills no batch is dropped
        epoch, index = divmod(lap, per_epoch)
        known = self._epochs.get((number, turn))
        if known is None or known[0] != epoch:
            seed = [self.seed, 0, number, epoch, *([turn] if turn else [])]
            order = epoch_order(stage.parts, seed, self.config.shuffle_window)
            starts = np.cumsum(stage.sizes[order]) - stage.sizes[order]
            known = (epoch, order, np.searchsorted(starts, np.arange(per_epoch + 1) * size))
            self._epochs = {key: one for key, one in self._epochs.items() if key[0] == number} | {(number, turn): known}
        _, order, cuts = known
        pairs = stage.units[order[cuts[index] : cuts[index + 1]]].reshape(-1)
        kept: np.ndarray = pairs[pairs >= 0]
        return kept

    def _negatives(self, pair: int, rng: np.random.Generator) -> np.ndarray:
        return _some(self.table.negatives_of(pair), self.config.negatives, rng)

    def _phrases(self, pairs: np.ndarray, step: int) -> list[np.ndarray] | None:
        if not self.config.phrases:
            return None
        rng = np.random.default_rng([self.seed, 3, step])
        return [_some(self.table.phrases_of(int(pair)), self.config.phrases, rng) for pair in pairs]

    def _further(self, pairs: np.ndarray, step: int) -> list[np.ndarray] | None:
        if not self.config.further:
            return None
        rng = np.random.default_rng([self.seed, 4, step])
        return [_some(self.table.further_of(int(pair)), self.config.further, rng) for pair in pairs]

    def _mined(self, pair: int, rng: np.random.Generator) -> np.ndarray:
        none = np.zeros(0, dtype=np.int64)
        if self.candidates is None or not self.config.mined.k:
            return none
        found = self.candidates[self.table.images[pair]].astype(np.int64)
        # The nearest caption is often the given negative, which would then count twice.
        found = found[(found >= 0) & ~np.isin(found, self.table.negatives_of(pair))]
        wanted = min(self.config.mined.draw, len(found))
        return rng.choice(found, wanted, replace=False) if wanted else none


def _some(given: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """`wanted` of the rows without replacement, all of them if that is negative or too many."""
    return given if wanted < 0 or wanted >= len(given) else rng.choice(given, wanted, replace=False)


def _stages(table: PairTable, config: DataConfig, steps: int, parts: np.ndarray | None) -> list[list[_Epochs]]:
    """The turns of each stage."""
    stages, ended = [], 0.0
    turns = [_matching(table, "category", (pattern,), "data.turns") for pattern in config.turns]

    def stage(first: int, taken: np.ndarray) -> list[_Epochs]:
        kinds = [taken & turn for turn in turns] or [taken]
        if not all(kind.any() for kind in kinds):
            raise InputError("a stage of data.curriculum has no pairs for one of data.turns", "Change either.")
        return [_Epochs.of(first, table, kind, parts, config.groups) for kind in kinds]

    for part in config.curriculum:
        if not ended < part.until <= 1:
            raise UsageError(
                f"data.curriculum: until = {part.until} comes after {ended}",
                "The shares grow from stage to stage, up to 1.",
            )
        stages.append(stage(round(ended * steps), _matching(table, part.column, part.match, "data.curriculum")))
        ended = part.until
    if ended < 1:
        stages.append(stage(round(ended * steps), np.ones(len(table), dtype=bool)))
    return stages


def _matching(table: PairTable, column: str, patterns: tuple[str, ...], setting: str) -> np.ndarray:
    """(N,) bool: the pairs whose `column` any of the patterns matches."""
    values = table.labels[column]
    verdict = {value: any(fnmatch.fnmatchcase(value, pattern) for pattern in patterns) for value in set(values)}
    matching = np.array([verdict[value] for value in values], dtype=bool)
    if not matching.any():
        raise InputError(
            f"no pair of {table.path} has {column} like {' or '.join(patterns) or 'nothing'}",
            f"Change {setting}; to do without: --set '{setting}=[]'.",
        )
    return matching
