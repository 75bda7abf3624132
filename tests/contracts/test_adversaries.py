"""Scorers that know nothing, on every benchmark there is: each gives the value derivable by hand, none looks good."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import layouts
import numpy as np
import pytest

from compal import registry
from compal.errors import InputError
from compal.eval import chance, outcomes, scoring, summary
from compal.eval.sources import KS, Group, Sources

NAMES = registry.names("benchmarks")
SMALL = 6  # groups of each category


@dataclasses.dataclass
class Judged:
    """A benchmark's groups and what a scorer makes of them."""

    groups: list[Group]
    info: dict

    def scores(self, scorer) -> summary.Summary:
        return self.under(scorer, "lose")

    def under(self, scorer, rule: str) -> summary.Summary:
        asked = scoring.Judge(scorer, 4096, 4096)
        values = scoring.score_groups(self.groups, asked, "adversary")
        ks = self.info.get("ks", (1, 5) if self.info["metric"] == "classification" else KS)
        meta = {"metric": self.info["metric"], "ks": list(ks), "pools": {}, "averages": {}, "seed": 0}
        table = outcomes.table(self.groups, values, self.info["metric"])
        return summary.summarise(table, meta, rule)[0]

    @property
    def chance(self) -> dict[str, float]:
        ks = self.info.get("ks", (1, 5) if self.info["metric"] == "classification" else KS)
        return chance.derived(self.groups, self.info["metric"], ks)


@pytest.fixture(scope="module", params=NAMES)
def judged(request, tmp_path_factory) -> Judged:
    name = request.param
    module = registry.load("benchmarks", name)
    root: Path | None = None
    if layouts.exists(name):
        root = tmp_path_factory.mktemp("root")
        layouts.write(name, root)
    # A gallery of six has everything among its first ten.
    limit = None if module.INFO["metric"] == "recall" else SMALL
    groups = list(module.groups(Sources(root=root, limit=limit)))
    return Judged(groups, module.INFO)


def values(found: summary.Summary) -> dict[str, float]:
    return {name: estimate.value for name, estimate in found.metrics.items()}


def constant(images, captions, pairs):
    return np.full(len(pairs), 0.25)


def test_all_ties_is_0_strictly_chance_if_tossed_and_100_to_who_counts_ties_as_hits(judged):
    found = judged.scores(constant)
    assert set(values(found).values()) == {0.0}
    assert found.ties == found.n > 0
    assert set(values(judged.under(constant, "win")).values()) == {100.0}
    tossed, expected = values(judged.under(constant, "half")), judged.chance
    # Sets of items (pairs and fours of a scene) have no chance of their own here: theirs is their members' product.
    for name in set(tossed) & set(expected):
        assert tossed[name] == pytest.approx(expected[name]), name


def test_who_does_not_look_at_the_image_cannot_tell_images_apart(judged):
    """A number from the caption's key: on 2 × 2 and from text to image all is tied; from image to text it is a guess
    that the wording decides, the same for every image."""

    def text_only(images, captions, pairs):
        numbers = np.array([int(key[:8], 16) for key in captions], np.float64)
        return (numbers / 2**32)[pairs[:, 1]]

    found = values(judged.scores(text_only))
    if judged.info["metric"] == "quads":
        assert (found["t2i"], found["group"], found["i2t"]) == (0.0, 0.0, 0.0)
    if judged.info["metric"] == "recall":
        assert all(value == 0.0 for name, value in found.items() if name.startswith("t2i"))


def test_who_always_takes_the_second_is_always_wrong_or_half(judged):
    """What is right stands first in a group of pairs and of positives, and on the diagonal of 2 × 2."""
    place: dict[tuple[str, str], float] = {}
    for group in judged.groups:
        if judged.info["metric"] not in ("pairs", "quads", "positives"):
            pytest.skip("matrices have no second")
        for image in group.images:
            for number, caption in enumerate(group.captions):
                order = number if len(group.captions) > 1 else group.images.index(image)
                place[image, caption] = float(order)
    if len(place) < sum(len(group.images) * len(group.captions) for group in judged.groups):
        pytest.skip("a pair of this excerpt stands at two places")

    def second(images, captions, pairs):
        return np.array([place[images[row], captions[column]] for row, column in pairs])

    # 2 × 2: image 0 is wrong and image 1 right, so no item is a hit; both images give a text one score: ties.
    assert set(values(judged.scores(second)).values()) == {0.0}


def test_nan_is_an_error_that_names_the_group(judged):
    def broken(images, captions, pairs):
        scores = np.zeros(len(pairs))
        scores[-1] = np.nan
        return scores

    with pytest.raises(InputError, match=r"gave NaN for .*group '"):
        judged.scores(broken)


def test_too_few_scores_are_an_error(judged):
    with pytest.raises(InputError, match="scores for"):
        judged.scores(lambda images, captions, pairs: np.zeros(len(pairs) - 1))


def test_infinite_scores_are_ties_and_no_hits(judged):
    found = judged.scores(lambda images, captions, pairs: np.full(len(pairs), np.inf))
    assert set(values(found).values()) == {0.0}
