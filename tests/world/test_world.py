"""The embedded world: the same bytes everywhere, true captions, and swaps that change one thing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from random import Random

import numpy as np
import pytest

from compal.eval.benchmarks import shapes as benchmark
from compal.eval.sources import Sources
from compal.pipeline.datasets import shapes as dataset
from compal.pipeline.words import WordTokenizer
from compal.world.captions import tell
from compal.world.render import render
from compal.world.scenes import close_up, held_out, relation, sample
from compal.world.splits import JUDGED, plain, quad, quads
from compal.world.vocabulary import (
    CATEGORIES,
    COLOURS,
    HELD_OUT_COLOURS,
    HELD_OUT_TEXTURES,
    SHAPES,
    SIZES,
    TEMPLATES,
    TEXTURES,
    UNSEEN_TEMPLATES,
    words,
)

# sha256 over the pixels and captions of the first scenes of every split. It changes only together with
# `scenes.RENDERER` (then every picture has another key) or with the grammar.
GOLDEN = "eed191d472846cccc2b6eda12a218164786abaf2992cdd6a4a24d8bc84575a94"

DIGEST = """
import hashlib
from compal.world.render import render
from compal.world.splits import JUDGED, plain, quad
h = hashlib.sha256()
for n in range(24):
    scene, told = plain("train", n)
    h.update(render(scene).tobytes() + told[0].text.encode() + told[1].text.encode())
for split in ("train", "validation", "test", *JUDGED[1:]):
    for n in range(10):
        q = quad(split, n)
        for scene, caption in zip(q.scenes, q.captions):
            h.update(render(scene).tobytes() + scene.recipe() + caption.text.encode())
print(h.hexdigest())
"""


def test_the_world_is_rich():
    assert len(SHAPES) >= 20
    assert len(COLOURS) >= 14
    assert len(TEXTURES) >= 4
    assert len(SIZES) >= 3
    assert not set(TEMPLATES) & set(UNSEEN_TEMPLATES)


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_bytes_are_the_same_in_every_process(hash_seed):
    done = subprocess.run(
        [sys.executable, "-c", DIGEST],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": hash_seed},
    )
    assert done.stdout.strip() == GOLDEN


def differing(first, second):
    return {
        f for f in ("shape", "colour", "texture", "size", "count", "places") if getattr(first, f) != getattr(second, f)
    }


@pytest.mark.parametrize("split", ["train", *JUDGED])
def test_a_twin_differs_in_its_category_alone(split):
    field = {"colour": {"colour"}, "material": {"texture"}, "size": {"size", "places"}}
    for number in range(100):
        made = quad("test" if split == "in_domain" else split, number)
        scene, twin = made.scenes
        assert made.category == CATEGORIES[number % 5]
        assert scene.background == twin.background
        assert scene.groups[2:] == twin.groups[2:]
        for one, other in zip(scene.groups[:2], twin.groups[:2], strict=True):
            changed = differing(one, other)
            if made.category in field:
                assert changed == field[made.category]
            else:
                assert changed - {"count"} == {"places"}
                assert ("count" in changed) == (made.category == "quantity")
        assert (render(scene) != render(twin)).any()


@pytest.mark.parametrize("split", JUDGED)
def test_captions_of_a_quad_hold_the_same_words(split):
    singular = {plural: name for name, plural in SHAPES.values()} | {"an": "a"}
    for number in range(100):
        first, second = (caption.text for caption in quad("test" if split == "in_domain" else split, number).captions)
        assert first != second
        bags = [sorted(singular.get(w.strip(",."), w.strip(",.")) for w in text.split()) for text in (first, second)]
        assert bags[0] == bags[1], (first, second)


def test_captions_are_true():
    """Every colour, count and relation that a caption names holds in its scene."""
    for number in range(200):
        scene, told = plain("train", number)
        for caption in told:
            objects = [caption.text[a:b] for a, b, kind in caption.segments if kind == "object"]
            for phrase in objects:
                assert any(SHAPES[g.shape][g.count > 1] in phrase.split() for g in scene.groups), (
                    phrase,
                    scene,
                )
            for start, end, kind in caption.segments:
                assert 0 <= start < end <= len(caption.text)
                if kind == "relation":
                    clause = caption.text[start:end]
                    ordered = sorted(
                        (g for g in scene.groups if SHAPES[g.shape][0] in clause.split()),
                        key=lambda g: clause.split().index(SHAPES[g.shape][0]),
                    )
                    side = relation(ordered[0], ordered[1])
                    spoken = {"left": "left", "right": "right", "above": ("above", "over", "higher")}.get(
                        side, ("below", "under", "lower")
                    )
                    assert any(word in clause.split() for word in ([spoken] if isinstance(spoken, str) else spoken))


def test_held_out_combinations_stay_out():
    for number in range(400):
        scene, _ = plain("train", number)
        assert not any(map(held_out, scene.groups))
    for split in ("train", "validation", "test", "unseen_counts", "unseen_templates"):
        for made in quads(split, 100):
            assert not any(held_out(g) for s in made.scenes for g in s.groups)
    for made in quads("unseen_combinations", 100):
        assert sum(held_out(g) for s in made.scenes for g in s.groups[:2]) >= 2
    # every shape, colour and texture is still seen in some combination
    assert all(sum((s, c) not in HELD_OUT_COLOURS for c in COLOURS) >= 8 for s in SHAPES)
    assert all(sum((s, c) not in HELD_OUT_COLOURS for s in SHAPES) >= 8 for c in COLOURS)
    assert all(sum((s, t) not in HELD_OUT_TEXTURES for t in TEXTURES) >= 2 for s in SHAPES)


def test_unseen_splits_are_unseen():
    assert {made.scenes[0].count for made in quads("unseen_counts", 60)} == {5}
    assert {made.scenes[0].count for made in quads("train", 200)} == {2, 3, 4}
    assert {plain("train", n)[0].count for n in range(200)} == {1, 2, 3, 4}


def test_splits_share_no_scene():
    keys = {}
    for split in ("train", "validation", "test", *JUDGED[1:]):
        for made in quads(split, 300):
            for scene in made.scenes:
                assert keys.setdefault(scene.recipe(), split) == split


def test_objects_lie_inside_and_apart():
    rng = Random(0)
    for _ in range(100):
        scene = sample(rng, [1, 2, 1])
        for x0, y0, x1, y1 in scene.boxes():
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
    close = close_up(rng)
    assert close.groups[0].size == ""
    assert len(close.boxes()) == 1


def test_rendering_is_anti_aliased_and_shows_the_colour():
    scene, _ = plain("train", 1)
    picture = render(scene)
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    assert render(scene, 128).shape == (128, 128, 3)
    group = scene.groups[0]
    near = np.abs(picture.astype(int) - np.array(COLOURS[group.colour])).sum(-1) <= 3
    assert near.sum() > 20
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_every_word_is_in_the_vocabulary():
    tokenizer = WordTokenizer(words(), 64)
    for split in ("train", "test", *JUDGED[1:]):
        for made in quads(split, 150):
            for caption in made.captions:
                assert not tokenizer.unknown(caption.text), caption.text
                assert not tokenizer.truncated(caption.text), caption.text


def test_swapping_needs_both_captions():
    made = quad("test", 0)
    assert (
        tell(made.scenes[0], _plain_wording(made.scenes[0])).text
        != tell(made.scenes[1], _plain_wording(made.scenes[1])).text
    )


def _plain_wording(scene):
    from compal.world.captions import word_freely

    return word_freely(Random(0), scene, full=True)


def test_dataset_and_benchmark_agree_on_keys():
    listed = {item.key for item in benchmark.items(Sources(split="in_domain", limit=2))}
    judged = list(benchmark.groups(Sources(split="in_domain", limit=2)))
    assert len(judged) == 10
    assert {key for group in judged for key in (*group.images, *group.captions)} == listed
    assert {item.key for item in dataset.items(None, "test", 10)} == listed
    together = list(dataset.pairs(None, "train", 5))
    assert len(together) == 10
    assert together[0].group == together[1].group
    assert together[0].negatives == (together[1].caption,)


def test_item_key_follows_the_content():
    first, again = (next(iter(dataset.items(None, "train", 1))) for _ in range(2))
    assert first.key == again.key
    assert hashlib.sha256(b"image-recipe\0" + plainest(first)).hexdigest()[:32] == first.key
    assert (first.content() == again.content()).all()


def plainest(item):
    return quad("train", 0).scenes[0].recipe()
