"""Killed at any moment, raced by others: readers see whole parts, a resumed run ends in the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compal.stores.store import Store

WORKERS = Path(__file__).with_name("workers.py")


def run(mode, folder):
    done = subprocess.run(
        [sys.executable, str(WORKERS), mode, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_killed_at_every_step_of_a_run(tmp_path):
    """Every link, rename, replace, fsync, mkdir, unlink of writing and committing two parts."""
    assert run("every_step", tmp_path)["steps"] > 60


def test_killed_at_every_step_of_upkeep(tmp_path):
    """The same of compacting two parts and collecting them."""
    assert run("every_step_of_upkeep", tmp_path)["steps"] > 50


def test_killed_at_twenty_random_moments(tmp_path):
    assert run("random_moments", tmp_path)["killed"] >= 5  # the rest came after the end


def test_append_compact_and_gc_killed_at_random_moments(tmp_path):
    result = run("random_moments_of_upkeep", tmp_path)
    assert result["killed"] >= 20
    assert result["parts"] == 2


@pytest.mark.slow
def test_a_hundred_kills_of_append_compact_and_gc(tmp_path):
    assert run("hundred_kills", tmp_path)["killed"] >= 100


def test_writers_readers_compaction_and_collection_at_once(tmp_path):
    result = run("writers_and_readers", tmp_path / "s")
    assert min(result.values()) > 0, result


@pytest.mark.slow
def test_eight_writers_of_twenty_rounds(tmp_path):
    result = run("full_load", tmp_path / "s")
    assert min(result.values()) > 0, result
    assert result["manifests"] > 160


def test_committers_in_a_race_lose_nothing(tmp_path):
    result = run("committers", tmp_path / "s")
    assert result == {"keys": 4 * 6 * 3, "manifests": 24, "uncommitted": []}


def test_writers_of_the_same_part_leave_one_whole_part(tmp_path):
    result = run("same_part", tmp_path / "s")
    assert result["keys"] == 6 * 3
    assert set(result["winners"]) <= {0.0, 1.0, 2.0, 3.0}


def test_staging_of_dead_writers_is_swept_and_of_live_ones_kept(store, spec):
    host = next(iter(_staged(store)))
    dead = _finished_pid()
    stale = store.path / ".staging" / f"i-0.{host}.{dead}.{'0' * 32}"
    alive = store.path / ".staging" / f"i-0.{host}.{os.getpid()}.{'1' * 32}"
    elsewhere = store.path / ".staging" / f"i-0.another-host.{dead}.{'2' * 32}"
    for folder in (stale, alive, elsewhere):
        (folder / "images").mkdir(parents=True)
    Store.create(store.path, spec)
    assert sorted((store.path / ".staging").iterdir()) == sorted([alive, elsewhere])


def _staged(store):
    """The host as staging names it."""
    from compal.stores.files import staging

    with staging(store.path, "i-0") as folder:
        yield folder.name.split(".")[1]


def _finished_pid():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid
