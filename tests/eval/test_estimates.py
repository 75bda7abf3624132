"""Figures kept beside scores: the same digits as computed, never trusted when anything differs, safe to lose."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from compal.errors import InputError, VerificationError
from compal.eval import estimates, intervals, results, seeds
from compal.eval.results import load_results, row_of
from compal.eval.score import evaluate
from compal.eval.sources import Sources


@pytest.fixture
def scored(bivlc, filled, tmp_path):
    """A saved row of pairs, quads and pools, with no figures kept."""
    sources = Sources(root=bivlc)
    rows = evaluate("bivlc", sources, filled("bivlc", sources), {}, tmp_path / "scores", 3)
    for file in (tmp_path / "scores").rglob(estimates.FILE):
        file.unlink()
    return next(tmp_path / "scores" / "bivlc" / os.path.basename(row.folder) for row in rows if row.label == "cosine")


def plain(row) -> str:
    return json.dumps(row.to_json(), sort_keys=False)


def computed(monkeypatch) -> list[str]:
    """The rules under which figures are computed from here on."""
    asked: list[str] = []
    whole = results.summarise

    def counted(rows, meta, rule):
        asked.append(rule)
        return whole(rows, meta, rule)

    monkeypatch.setattr(results, "summarise", counted)
    return asked


@pytest.mark.parametrize("rule", ["lose", "half", "win"])
def test_kept_figures_are_the_computed_ones_to_the_digit(scored, monkeypatch, rule):
    asked = computed(monkeypatch)
    first = row_of(scored, rule)
    assert (scored / estimates.FILE).is_file()
    assert plain(row_of(scored, rule)) == plain(first)
    assert row_of(scored, rule) == first
    assert asked == [rule]


def test_rules_stand_beside_one_another_and_never_for_one_another(scored, monkeypatch):
    asked = computed(monkeypatch)
    found = [row_of(scored, rule).overall for rule in ("lose", "half", "win", "lose", "half", "win")]
    assert asked == ["lose", "half", "win"]
    assert found[:3] == found[3:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: '{"figures": {}, "xxh3_128": 1}',
        lambda text: text.replace('"n":', '"m":'),
        lambda text: text.replace('"value":', '"value":1', 1),
    ],
    ids=["half", "empty", "list", "no checksum", "key", "digit"],
)
def test_a_damaged_file_is_ignored_and_written_again(scored, monkeypatch, damage):
    first = plain(row_of(scored))
    file = scored / estimates.FILE
    whole = file.read_text()
    file.write_text(damage(whole))
    assert file.read_text() != whole
    asked = computed(monkeypatch)
    assert plain(row_of(scored)) == first
    assert asked == ["lose"]
    assert file.read_text() == whole


def test_other_provenance_or_other_code_is_another_key(scored, monkeypatch):
    row_of(scored)
    asked = computed(monkeypatch)
    file = scored / results.META
    meta = json.loads(file.read_text())
    file.write_text(json.dumps(meta | {"seed": 4}))
    assert row_of(scored).overall.metrics
    file.write_text(json.dumps(meta | {"seed": 5}))
    monkeypatch.setattr(estimates, "_code", lambda: "later")
    row_of(scored)
    row_of(scored)
    assert asked == ["lose", "lose"]


def test_rows_that_are_not_what_was_written_are_refused_although_figures_are_kept(scored):
    row_of(scored)
    rows = scored / results.ROWS
    rows.write_bytes(rows.read_bytes()[:-1] + b"x")
    with pytest.raises(VerificationError, match="is not what was written"):
        row_of(scored)
    (scored / results.META).write_text("{")
    with pytest.raises(InputError, match="no readable scores"):
        row_of(scored)


def test_evaluating_again_leaves_no_older_figures(scored):
    row_of(scored)
    rows, meta = results.read(scored)
    results.save(scored, rows, {name: value for name, value in meta.items() if name not in ("rows", "format")})
    assert not (scored / estimates.FILE).exists()


def test_where_nothing_can_be_written_figures_are_computed(scored, monkeypatch):
    def refused(path, text):
        raise InputError(f"cannot write {path}")

    monkeypatch.setattr(estimates, "write_atomically", refused)
    assert row_of(scored).overall.metrics
    assert not (scored / estimates.FILE).exists()


def test_the_file_is_bounded(scored, monkeypatch):
    found = row_of(scored).overall, {}
    for number in range(3 * estimates.ENTRIES):
        estimates.keep(scored, f"{number}", found)
    assert len(json.loads((scored / estimates.FILE).read_text())["figures"]) == estimates.ENTRIES
    (scored / estimates.FILE).unlink()
    monkeypatch.setattr(estimates, "MOST", 100)
    row_of(scored)
    assert not (scored / estimates.FILE).exists()


def test_seeds_joined_are_kept_too(scored, monkeypatch):
    rows, meta = results.read(scored)
    bare = {name: value for name, value in meta.items() if name not in ("rows", "format")}
    for seed in range(2):
        told = {"class": "x", "recipe": "r", "seed": seed}
        folder = scored.with_name(f"m-s{seed}")
        results.save(folder, rows, bare | {"label": f"m-s{seed}", "role": "scorer", "scorer": told})
    intervals.forget()
    load = [row for row in load_results(scored.parent) if row.role == "scorer"]
    first = seeds.aggregate(load)
    assert [row.label for row in first] == ["m (2 seeds)"]
    monkeypatch.setattr(seeds, "summary_of", lambda *_: pytest.fail("computed again"))
    again = seeds.aggregate(load)
    assert [plain(row) for row in again] == [plain(row) for row in first]
    assert dataclasses.replace(again[0], meta={}) == dataclasses.replace(first[0], meta={})
