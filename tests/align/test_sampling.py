"""Pairs tables by number, and which of them stand in which step."""

from __future__ import annotations

import numpy as np
import pytest

from compal.align.mining import MinedConfig
from compal.align.pairs import PairTable
from compal.align.sampling import DataConfig, Sampler, Stage
from compal.errors import InputError, MissingFeatures, UnknownName, UsageError
from compal.stores.items import Pair
from compal.stores.pairs import write_pairs

from .conftest import image_keys, text_keys


def sampler(table, steps=100, seed=0, **options):
    return Sampler(table, DataConfig(**options), steps, seed)


def test_a_table_is_its_keys(plain_table, store):
    table = PairTable.read(plain_table, store)
    assert len(table) == 30
    assert [table.image_keys[i] for i in table.images] == image_keys(20) + image_keys(10)
    assert [table.caption_keys[c] for c in table.captions[20:]] == text_keys(60)[30:40]
    assert [table.caption_keys[c] for c in table.negatives_of(3)] == [text_keys(60)[43], text_keys(60)[53]]
    assert table.quads.shape == (0, 2)


def test_quarantined_pairs_are_left_out_and_missing_ones_are_an_error(tmp_path, store):
    images, texts = image_keys(4), text_keys(8)
    rows = [
        Pair(images[0], texts[0], (texts[1],), "a"),
        Pair(f"{999:032x}", texts[1], (texts[0],), "a"),
        Pair(images[2], texts[2], (), "b"),
        Pair(images[3], texts[3], (), "b"),
    ]
    write_pairs(tmp_path / "p.parquet", rows)
    table = PairTable.read(tmp_path / "p.parquet", store)
    assert (len(table), table.left_out) == (3, 1)
    assert table.quads.tolist() == [[1, 2]], "what is left of group 'a' is a plain pair"
    write_pairs(tmp_path / "p.parquet", [*rows, Pair("f" * 32, texts[0])])
    with pytest.raises(MissingFeatures, match=r"lacks 1 of the 5 images .*f{32}.* compal extract"):
        PairTable.read(tmp_path / "p.parquet", store)


def test_a_table_without_usable_pairs_is_an_error(tmp_path, store):
    write_pairs(tmp_path / "p.parquet", [Pair(f"{999:032x}", text_keys(1)[0])])
    with pytest.raises(InputError, match="no pair with features"):
        PairTable.read(tmp_path / "p.parquet", store)


def test_a_group_is_two_images_and_two_captions(tmp_path, store):
    images, texts = image_keys(3), text_keys(3)
    rows = [Pair(images[0], texts[0], (), "a"), Pair(images[0], texts[1], (), "a")]
    write_pairs(tmp_path / "p.parquet", rows)
    with pytest.raises(InputError, match="group 'a'"):
        PairTable.read(tmp_path / "p.parquet", store)


def test_equal_keys_are_positives(plain_table, store):
    """Image 3 has captions 3 and 33. Where both stand in a batch they are one row and two positives."""
    table = PairTable.read(plain_table, store)
    draw = table.draw(np.array([3, 23, 5]), [np.array([], dtype=np.int64)] * 3)
    assert draw.positives.shape == (2, 3)
    assert draw.positives.sum(1).tolist() == [2, 1]
    # Caption 33 as somebody else's negative is still no negative of image 3.
    stranger = table.captions[23]
    draw = table.draw(np.array([3, 5]), [np.array([], dtype=np.int64), np.array([stranger])])
    assert draw.positives[0].sum() == 2
    assert draw.positives[1].sum() == 1


def test_negatives_are_extra_columns(plain_table, store):
    table = PairTable.read(plain_table, store)
    draw = sampler(table, batch_size=6, negatives=-1).draw(0)
    assert draw.positives.any(1).all()
    assert (~draw.positives.any(0)).sum() >= 10, "twelve given negatives, a few of them shared"
    assert len(sampler(table, batch_size=6, negatives=0).draw(0).captions) <= 6


def test_an_epoch_is_every_pair_once(plain_table, quad_table, store):
    for path, size in ((plain_table, 7), (quad_table, 6), (quad_table, 5)):
        table = PairTable.read(path, store)
        source = sampler(table, batch_size=size)
        per_epoch = len(table) // size
        for epoch in range(3):
            seen = np.concatenate([source.pairs(epoch * per_epoch + step) for step in range(per_epoch)])
            assert len(set(seen)) == len(seen)
            assert len(seen) >= len(table) - size
        first, again = source.pairs(0), source.pairs(per_epoch)
        assert not np.array_equal(first, again)


def test_steps_are_a_pure_function(quad_table, store):
    table = PairTable.read(quad_table, store)
    options = {"batch_size": 8, "partners": 2}
    forwards = [sampler(table, **options).draw(step) for step in range(9)]
    source = sampler(table, **options)
    for step in (8, 2, 5):
        for name in ("images", "captions", "positives", "groups", "scored"):
            np.testing.assert_array_equal(getattr(source.draw(step), name), getattr(forwards[step], name))
    other = sampler(table, seed=1, **options).draw(0)
    assert not np.array_equal(other.images, forwards[0].images)


def test_groups_stay_together(quad_table, store):
    table = PairTable.read(quad_table, store)
    for step in range(6):
        draw = sampler(table, batch_size=8).draw(step)
        assert len(draw.groups) == 4
        i0, i1, c0, c1 = draw.groups.T
        assert draw.positives[i0, c0].all()
        assert draw.positives[i1, c1].all()
        assert not draw.positives[i0, c1].any()
        assert not draw.positives[i1, c0].any()


@pytest.mark.parametrize("partners", [1, 3])
def test_partners_are_other_groups(quad_table, store, partners):
    """Each image: its two captions, and `partners` captions of other groups."""
    table = PairTable.read(quad_table, store)
    for step in range(5):
        draw = sampler(table, batch_size=8, partners=partners).draw(step)
        assert draw.scored.sum(1).tolist() == [2 + partners] * 8
        assert draw.scored.sum(0).tolist() == [2 + partners] * 8
        assert (draw.scored | ~draw.positives).all()


def test_curriculum_goes_stage_by_stage(quad_table, store):
    table = PairTable.read(quad_table, store, ["category", "objects"])
    stages = (Stage(0.3, "category", ("col*",)), Stage(0.6, "category", ("size",)))
    source = sampler(table, steps=10, batch_size=4, curriculum=stages)

    def categories(step):
        return {table.labels["category"][pair] for pair in source.pairs(step)}

    assert [categories(step) for step in range(6)] == [{"colour"}] * 3 + [{"size"}] * 3
    assert set().union(*[categories(step) for step in range(6, 10)]) == {"colour", "size"}
    assert table.labels["objects"] == [str(1 + text % 3) for text in range(24)]


def test_a_stage_may_split_a_group(quad_table, store):
    table = PairTable.read(quad_table, store, ["objects"])
    source = sampler(table, steps=4, batch_size=4, curriculum=(Stage(1.0, "objects", ("1",)),))
    draw = source.draw(0)
    assert {table.labels["objects"][pair] for pair in source.pairs(0)} == {"1"}
    assert len(draw.groups) == 0


def test_words_are_counted(plain_table, store):
    table = PairTable.read(plain_table, store, ["words"])
    assert table.labels["words"][:4] == ["2", "3", "4", "5"]


def test_curriculum_errors_have_a_cure(quad_table, store):
    with pytest.raises(UnknownName, match="Did you mean 'objects'"):
        PairTable.read(quad_table, store, ["object"])
    table = PairTable.read(quad_table, store, ["category"])
    with pytest.raises(InputError, match=r"category like texture.*data\.curriculum=\[\]"):
        sampler(table, curriculum=(Stage(0.5, "category", ("texture",)),))
    with pytest.raises(UsageError, match="grow from stage to stage"):
        sampler(table, curriculum=(Stage(0.5, "category", ("*",)), Stage(0.5, "category", ("*",))))


def test_a_batch_is_never_larger_than_the_table(quad_table, store):
    assert len(sampler(PairTable.read(quad_table, store), batch_size=1000).pairs(5)) == 24


def test_pairs_alone_are_all_drawn_once_an_epoch(store, quad_table):
    """The control without hard negatives: the twins of a swap group come as chance has it."""
    table = PairTable.read(quad_table, store)
    alone = sampler(table, batch_size=4, groups=False)
    together = sampler(table, batch_size=4)
    drawn = [alone.pairs(step) for step in range(len(table) // 4)]
    assert len(np.unique(np.concatenate(drawn))) == 4 * len(drawn)
    assert {len(pairs) for pairs in drawn} == {4}

    def twins(source):
        steps = range(len(table) // 4)
        return sum(np.isin(table.quads, source.pairs(step)).all(axis=1).sum() for step in steps)

    assert twins(alone) < twins(together) / 2


def test_a_mined_negative_is_not_the_given_one_again(store, quad_table):
    table = PairTable.read(quad_table, store)
    source = sampler(table, batch_size=8, negatives=-1, mined=MinedConfig(k=4, draw=4))
    given = {int(image): table.negatives_of(pair) for pair, image in enumerate(table.images)}
    assert all(len(negatives) for negatives in given.values())
    source.candidates = np.stack([np.resize(given[image], 4) for image in range(len(table.image_keys))])
    for step in range(3):
        for row in source.draw(step).negatives:
            kept = row[row >= 0].tolist()
            assert len(set(kept)) == len(kept)


# --- further captions, and turns -------------------------------------------------------------------------


def test_further_captions_are_the_images_other_ones(plain_table, store):
    """Images below 10 have two captions; a pair draws the one that is not its own, which is right for its image."""
    table = PairTable.read(plain_table, store)
    assert table.further_of(3).tolist() == [table.captions[23]]
    assert table.further_of(23).tolist() == [table.captions[3]]
    assert table.further_of(15).tolist() == []
    draw = sampler(table, batch_size=30, further=-1).draw(0)
    assert draw.further.shape == (30, 1)
    for (row, column), listed in zip(draw.pairs, draw.further[:, 0], strict=True):
        image, own = draw.images[row], draw.captions[column]
        others = set(table.captions[table.images == image].tolist()) - {own}
        assert ({int(draw.captions[listed])} if listed >= 0 else set()) == others
        assert listed < 0 or draw.positives[row, listed]
    assert sampler(table, batch_size=30).draw(0).further is None


def test_further_captions_stand_in_the_tables_order_once(tmp_path, store):
    texts = text_keys(5)
    rows = [Pair(image_keys(1)[0], texts[number]) for number in (3, 1, 4, 1, 0)]
    write_pairs(tmp_path / "p.parquet", rows)
    table = PairTable.read(tmp_path / "p.parquet", store)
    assert [table.caption_keys[row] for row in table.further_of(1)] == [texts[number] for number in (3, 4, 0)]
    drawn = {len(sampler(table, batch_size=1, further=2).draw(step).further[0]) for step in range(9)}
    assert drawn == {2}


def test_further_captions_of_partners_are_scored_too(plain_table, store):
    table = PairTable.read(plain_table, store)
    draw = sampler(table, batch_size=20, further=-1, partners=2).draw(0)
    drawn = zip(draw.pairs, draw.further[:, 0], strict=True)
    assert all(draw.scored[row, listed] for (row, _), listed in drawn if listed >= 0)
    scored = draw.scored.sum()
    assert scored > sampler(table, batch_size=20, partners=2).draw(0).scored.sum()
    assert scored < draw.scored.size


def test_turns_draw_one_kind_of_pairs_a_step(quad_table, store):
    """Twelve groups, colour and size in turn: each kind has its own epochs, and a step holds one kind alone."""
    table = PairTable.read(quad_table, store, ["category"])
    source = sampler(table, batch_size=4, turns=("size", "col*"))
    kinds = [{table.labels["category"][pair] for pair in source.pairs(step)} for step in range(8)]
    assert kinds == [{"size"}, {"colour"}] * 4
    for turn in (0, 1):
        seen = np.concatenate([source.pairs(step) for step in range(turn, 6, 2)])
        assert len(set(seen.tolist())) == 12, "an epoch of a kind draws each of its pairs once"
    again = sampler(table, batch_size=4, turns=("size", "col*"))
    assert all(np.array_equal(again.pairs(step), source.pairs(step)) for step in (7, 2, 5, 0))


def test_turns_within_a_curriculum(quad_table, store):
    table = PairTable.read(quad_table, store, ["category"])
    late = sampler(table, 20, batch_size=4, turns=("size", "colour"), curriculum=(Stage(0.25, "category", ("*",)),))
    kinds = [table.labels["category"][late.pairs(step)[0]] for step in range(8)]
    assert kinds == ["size", "colour", "size", "colour", "size", "size", "colour", "size"]
    with pytest.raises(InputError, match=r"one of data\.turns"):
        sampler(table, turns=("size", "colour"), curriculum=(Stage(0.5, "category", ("size",)),))


def test_a_turn_that_no_pair_matches_is_an_error(quad_table, store):
    table = PairTable.read(quad_table, store, ["category"])
    with pytest.raises(InputError, match=r"category like single.*data\.turns=\[\]"):
        sampler(table, turns=("size", "single"))
