"""A Ray run whose machines share no disk: the plan and the parts go through a remote of objects.

The driver puts the plan at `<remote>/.plans/<id>/`; an actor reads the index and then the ranges of its units, fills
parts in a folder of its own, uploads each as it is done and deletes it here. At the end the driver lists all parts in
one manifest of the remote and pulls them into its own workspace.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from ...errors import InputError
from ...stores.remotes.objects import Objects, connect
from ...stores.remotes.shared import SharedStore
from ...stores.remotes.single import begin, forget, list_parts, publish_part, remove_part
from ...stores.remotes.transfer import pull
from ...stores.store import Store
from ...workspace import Remote
from ..claims import alive
from ..job import Job
from ..plan import Unit
from ..plan_file import INDEX, ITEMS, PlanFile, UnitEntry

FOLDER = ".plans"
PLAN_SECONDS = 7 * 86400  # a plan that is older was left by a driver that was killed
INDEX_BYTES = 1 << 30
PREFIX = "compal-ray-"  # of the folders in which actors fill parts


def address(remote: Remote, prefix: str) -> str:
    """What an actor must know to find a plan: JSON. Secrets are no part of it; machines have their own."""
    return json.dumps({"name": remote.name, "url": remote.url, "options": remote.options, "prefix": prefix})


class Lead:
    """The driver's side."""

    def __init__(self, remote: Remote, job: Job, folder: Path) -> None:
        self.remote, self.job, self._folder = remote, job, folder
        self.shared = {spec.level: begin(remote, spec) for spec in job.specs}
        self._objects = connect(remote)
        self._collect()
        self._prefix = f"{FOLDER}/{int(time.time())}-{uuid.uuid4().hex}"
        for name in (ITEMS, INDEX):
            self._objects.put_file(folder / name, f"{self._prefix}/{name}")

    @property
    def address(self) -> str:
        """Of the plan."""
        return address(self.remote, self._prefix)

    def forget(self, names: Sequence[str]) -> None:
        """Drop what a dead actor claimed of units."""
        plan = PlanFile.open(self._folder)
        for name in names:
            for level, parts in plan.entries[name].parts.items():
                for part, _ in parts:
                    forget(self.shared[level], part)

    def finish(self, units: Sequence[Unit]) -> None:
        """List the parts that actors have uploaded and bring them here. What is complete here was made here, by an
        earlier run or by one beside this."""
        for spec, folder in zip(self.job.specs, self.job.folders, strict=True):
            store = Store.open(folder)
            parts = [
                part for unit in units for part in unit.parts.get(spec.level, ()) if not store.part_done(part.name)
            ]
            keys = {item.key for part in parts for item in part.items}
            if parts:
                list_parts(self.shared[spec.level], [part.name for part in parts])
                pull(self.remote, spec.folder, folder, keys)

    def _collect(self) -> None:
        """Delete the plans of drivers that were killed; their names say when they began."""
        for name in self._objects.names(FOLDER):
            began = name.removeprefix(f"{FOLDER}/").partition("-")[0]
            if began.isdecimal() and time.time() - int(began) > PLAN_SECONDS:
                self._objects.delete(name)

    def close(self) -> None:
        """Delete the plan."""
        for name in (INDEX, ITEMS):
            self._objects.delete(f"{self._prefix}/{name}")


class Scratch:
    """An actor's side: the plan, and stores of its own whose parts go to the remote.

    plan    read from the remote
    job     the plan's, with the folders of this machine
    """

    def __init__(self, told: str) -> None:
        data = json.loads(told)
        remote, self._prefix = Remote(data["name"], data["url"], data["options"]), data["prefix"]
        self._objects: Objects = connect(remote)
        _sweep()
        self._home = tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-")
        root = Path(self._home.name)
        index = self._objects.get(f"{self._prefix}/{INDEX}", INDEX_BYTES)
        if index is None:
            raise InputError(f"there is no plan {self._prefix}: its job has ended", "Start the extraction again.")
        (root / INDEX).write_bytes(index)
        self.plan = PlanFile.open(root, self._read)
        folders = tuple(root / spec.folder for spec in self.plan.job.specs)
        self.job = dataclasses.replace(self.plan.job, folders=folders)
        self._shared = {spec.level: begin(remote, spec) for spec in self.job.specs}
        self._folders = {
            spec.level: Store.create(folder, spec).path for spec, folder in zip(self.job.specs, folders, strict=True)
        }

    def _read(self, offset: int, size: int) -> bytes:
        return self._objects.get_ranges(f"{self._prefix}/{ITEMS}", [(offset, offset + size)])[0]

    def published(self, name: str) -> bool:
        """Whether all parts of a unit are on the remote."""
        return all(shared.published(part) is not None for _, part, shared in self._parts(name))

    def publish(self, name: str) -> None:
        """Upload the parts of a unit, and delete them here."""
        for folder, part, shared in self._parts(name):
            if shared.published(part) is None:
                publish_part(folder, part, shared)
            if Store.open(folder).part_done(part):
                remove_part(folder, part)

    def _parts(self, name: str) -> list[tuple[Path, str, SharedStore]]:
        entry: UnitEntry = self.plan.entries[name]
        return [
            (self._folders[level], part, self._shared[level]) for level, own in entry.parts.items() for part, _ in own
        ]


def _sweep() -> None:
    """Delete what killed actors of this machine left."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        pid = path.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdecimal() and not alive(int(pid), ""):
            shutil.rmtree(path, ignore_errors=True)
