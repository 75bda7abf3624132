"""The Ray engine: two workers, one killed midway; a unit that kills; object storage between two workspaces."""

import importlib.util
import os
import subprocess
import sys
import time

import pytest
from faulty.driver import drive
from faulty.process import SUPPORT, ended, start
from faulty.same import content

from compal.errors import RemoteError
from compal.pipeline.encoder import resolve
from compal.pipeline.engines import ray as engine
from compal.pipeline.engines._through import Lead
from compal.pipeline.extract import _plan_and_recover
from compal.pipeline.job import Job, Listing
from compal.pipeline.plan import ExtractConfig, plan_units
from compal.pipeline.plan_file import write
from compal.pipeline.work import Worker
from compal.stores.store import Store
from compal.stores.verify import verify
from compal.workspace import Remote

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: compal[ray]")
LIMIT = 24  # quadruplets: 6 units of images and 6 of captions


def test_a_worker_that_is_killed_midway(tmp_path):
    """Its units go back into the queue: no part is lost or doubled, and the bytes are those of one process."""
    folder = tmp_path / "store"
    code, told, error = ended(
        start(folder, "ray", 2, LIMIT, FAULTY_KILL=f"{tmp_path}:2:1", FAULTY_SECONDS="0.05", RAY_ADDRESS="")
    )
    assert code == 0, error
    assert (tmp_path / "killed-0").exists()
    assert len(told["units"]) == len(set(told["units"])) == 12
    assert told["encoded"] == 4 * LIMIT == sum(told["ticks"].values())
    drive(tmp_path / "alone", limit=LIMIT)
    assert content(folder) == content(tmp_path / "alone")


def test_machines_that_share_no_disk(tmp_path):
    """Plan and parts go through a remote; a worker that is killed at an upload leaves nothing behind that counts."""
    folder = tmp_path / "workspace" / "store"
    remote = tmp_path / "remote"
    code, told, error = ended(
        start(folder, "ray", 2, 8, FAULTY_KILL=f"{tmp_path}:2:1", FAULTY_THROUGH=remote.as_uri(), RAY_ADDRESS="")
    )
    assert code == 0, error
    assert (tmp_path / "killed-0").exists()
    assert told["encoded"] == 32
    drive(tmp_path / "alone", limit=8)
    assert content(folder) == content(tmp_path / "alone")
    (shared,) = (path for path in remote.iterdir() if not path.name.startswith("."))
    assert content(shared) == content(folder)
    assert [path for path in remote.rglob(".*/**/*") if path.is_file()] == []
    assert verify(folder) == verify(shared) == []


def test_what_a_killed_run_left_here_needs_no_remote(tmp_path):
    """Complete parts that are not listed yet become part of the store; those that actors have are listed."""
    spec, remote = resolve("random:4x8"), Remote("team", (tmp_path / "remote").as_uri())
    (tmp_path / "remote").mkdir()
    config = ExtractConfig(max_part_rows=8, engine="ray", through=remote)
    items, store = list(Listing("shapes", "train", 8).items()), Store.create(tmp_path / "store", spec)
    units = plan_units(items, [store], config)
    job = Job((spec,), (store.path,), config, Listing("shapes", "train", 8))
    Worker(job).run(units[:1], lambda done: None)
    lead = Lead(remote, job, write(job, units, tmp_path / "store"))
    lead.finish(units[:1])
    assert not store.keys("image")
    left = _plan_and_recover(items, [store], config)
    assert {unit.name for unit in left} == {unit.name for unit in units[1:]}
    with pytest.raises(RemoteError, match="lacks part"):
        lead.finish(units[1:2])


def test_plans_of_killed_drivers_are_collected(tmp_path):
    spec, remote = resolve("random:4x8"), Remote("team", (tmp_path / "remote").as_uri())
    folders = [tmp_path / "remote" / ".plans" / f"{int(time.time() - days * 86400)}-{'0' * 32}" for days in (6, 8)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "plan.json").touch()
    job = Job((spec,), (tmp_path / "store",), ExtractConfig(engine="ray", through=remote))
    (tmp_path / "plan").mkdir()
    Lead(remote, job, write(job, [], tmp_path / "plan")).close()
    assert [(folder / "plan.json").exists() for folder in folders] == [True, False]


def test_a_slow_actor_that_gets_on_is_left_alone(monkeypatch):
    """Only one that has finished no batch for long is killed."""

    class Ray:
        exceptions = type("Errors", (), {"RayError": RuntimeError})

        def __init__(self):
            self.killed = []

        def wait(self, calls, timeout):
            return calls, []

        def get(self, call):
            return call

        def kill(self, handle, no_restart):
            self.killed.append(handle)

    class Handle:
        def __init__(self, items):
            self.items = iter(items)
            self.beat = self

        def remote(self):
            return next(self.items)

    clock = 0.0
    monkeypatch.setattr(engine.time, "monotonic", lambda: clock)
    busy, hung = Handle(range(1, 1000)), Handle([1] * 1000)
    driver = object.__new__(engine._Driver)
    driver.ray, driver.actors = Ray(), [engine._Actor(handle, None, {1: "unit"}) for handle in (busy, hung)]
    while clock < 1.5 * engine.SILENT_SECONDS:
        clock += 20
        driver._end_hung()
    assert driver.ray.killed == [hung]


def test_a_unit_that_kills_its_worker_three_times_stops_the_run(tmp_path):
    folder = tmp_path / "store"
    code, _, error = ended(start(folder, "ray", 1, 2, FAULTY_KILL=f"{tmp_path}:1:9", RAY_ADDRESS=""))
    assert code == 1
    drive(tmp_path / "alone", limit=2)
    images = [path.stem for path in (tmp_path / "alone" / "done").glob("i-*")]
    told = [line for line in error.splitlines() if line.startswith("compal:")]
    assert len(told) == 1
    assert told[0].startswith(f"compal: unit {images[0]} has killed its worker 3 times: ")
    assert len(list(tmp_path.glob("killed-*"))) == 3
    assert [path for path in folder.rglob(".*/*") if path.is_file()] == []


def test_without_ray_the_error_names_the_extra(tmp_path):
    """A Python that finds no ray, as one has it that installed compal alone."""
    code = (
        "import sys\nsys.modules['ray'] = None\nimport faulty.driver as driver\nfrom pathlib import Path\n"
        "driver.drive(Path(sys.argv[1]), 'ray', 1, 2)"
    )
    told = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store")], capture_output=True, text=True, check=False, env=told
    )
    assert 'compal.errors.InputError: Ray is not installed. pip install "compal[ray]"' in done.stderr
