"""Ray: actors on a cluster, one a GPU, that may come late and vanish; the driver keeps the queue of units.

Through Ray travel the path of the plan, names of units and reports as JSON, never items or features: the plan and the
store lie on a file system that all machines see. An actor reads the units it is given, publishes their parts as any
worker does, and may be killed at any moment: Ray starts it again, here or elsewhere, and its units go back into the
queue.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

from ... import errors
from ...errors import CompalError, InputError
from ...stores.files import staging
from ..claims import Claims
from ..job import Job
from ..patience import Patience, passing_write
from ..plan import Unit
from ..plan_file import PlanFile, write
from ..rank import AUTO, CUDA, sharing_cores
from ..sharing import Progress
from ..work import Done, Tick, Worker, cores
from ._ray_words import reason, resources
from ._through import Lead, Scratch

# What is handed to an actor at once: the second is decoded while the first is computed and written.
AHEAD = 2
KILLS = 3  # after so many deaths of its worker a unit stops the run
STARTS = 3  # failed starts in a row, of any actors, that stop the run
SILENT_SECONDS = 7200.0  # an actor that has finished no batch for so long is taken for hung, and killed
BEAT_SECONDS = 30.0  # between questions to an actor how far it is
START_SECONDS = 60.0  # without any actor, until the user is told
LOOK_SECONDS = 1.0
STORE_BYTES = 80 << 20  # of Ray's object store, its least: nothing of size goes through it
AGAIN = "Run the command again: complete parts are kept."


def run(job: Job, units: Sequence[Unit], report: Callable[[Done], None], tick: Tick | None = None) -> None:
    """Do `units` on the cluster at $RAY_ADDRESS, or on one of this machine's own; returns when all are done.

    The number of actors is `job.config.processes`, else that of the cluster's GPUs, else 1. Raises `InputError` if
    Ray is not installed or not there, what an actor's worker raises, and `InputError` naming a unit that has killed
    its worker three times.
    """
    with _cluster(job) as ray, staging(job.folders[0], "plan") as folder:
        write(job, units, folder)
        lead = Lead(job.config.through, job, folder) if job.config.through else None
        place = lead.address if lead else str(folder.resolve())
        with Claims(job.folders[0]) as claims:
            driver = _Driver(ray, job, place, Progress.of_units(job, units), claims)
            driver.lead = lead
            try:
                for done in driver.results():
                    claims.release(done.unit)
                    if tick:
                        tick(done.kind, done.encoded + done.quarantined)
                    report(done)
                if lead:
                    lead.finish(units)
            finally:
                driver.close()
                if lead:
                    lead.close()
            claims.collect()


@contextmanager
def _cluster(job: Job) -> Iterator[Any]:
    """Ray, connected; what was started here is ended. What it prints of its machines goes to stderr: stdout is for
    results."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise InputError("Ray is not installed", 'pip install "compal[ray]"') from None
    if ray.is_initialized():
        yield ray
        return
    address, count = os.environ.get("RAY_ADDRESS"), job.config.processes or 1
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    local: dict[str, Any] = {
        "num_cpus": max(count, cores()),
        "object_store_memory": STORE_BYTES,
        "include_dashboard": False,
    }
    try:
        ray.init(address=address or "local", **quiet, **({} if address else local))
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        told = str(error).strip().split("\n", 1)[0]
        cure = "Check RAY_ADDRESS, or unset it for a cluster of this machine alone."
        raise InputError(f"no Ray cluster at {address or 'this machine'}: {told}", cure) from None
    try:
        with redirect_stdout(sys.stderr):
            yield ray
    finally:
        ray.shutdown()


# --- on the machines of the cluster ----------------------------------------------------------------------


class Hand:
    """What an actor is: a worker that does the units whose names it is given, `AHEAD` of them at a time.

    Calls come in threads of their own and wait for their unit; one thread works off what they bring.
    """

    def __init__(self, place: str, device: str, threads: int) -> None:
        """`place` is the plan's folder, or what `_through.Scratch` takes."""
        self._place, self._device, self._threads = place, device, threads
        self._scratch: Scratch | None = None
        self._items = 0
        self._asked: SimpleQueue[tuple[str, Future[str]]] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="hand").start()

    def hello(self) -> int:
        """The process, once it is there."""
        return os.getpid()

    def beat(self) -> int:
        """How many items it has been through since it began."""
        return self._items

    def do(self, name: str) -> str:
        """Do a unit. Returns JSON: {"done": …}, {"kept": true} if it was done already, or {"error": …}."""
        answer: Future[str] = Future()
        self._asked.put((name, answer))
        told = answer.result()
        if self._scratch and "error" not in json.loads(told):
            try:
                self._scratch.publish(name)  # while the next unit is computed
            except CompalError as error:
                return _error(error)
        return told

    def _work(self) -> None:
        plan: PlanFile | None = None
        worker: Worker | None = None
        while True:
            given = dict([self._asked.get()])
            message = json.dumps({"kept": True})
            try:
                if plan is None or worker is None:
                    plan, worker = self._begin()
                worker.run(self._units(plan, given), partial(_answer, given), self._tick)
            except Exception as error:
                told = error if isinstance(error, CompalError) else InputError(_unforeseen(error), AGAIN)
                message = _error(told)
            for answer in given.values():
                answer.set_result(message)

    def _tick(self, _kind: str, count: int) -> None:
        self._items += count

    def _begin(self) -> tuple[PlanFile, Worker]:
        if not self._device.startswith(CUDA):
            import torch

            torch.set_num_threads(self._threads)
        if self._place.startswith("{"):
            self._scratch = Scratch(self._place)
            return self._scratch.plan, self._worker(self._scratch.job)
        folder = Path(self._place)
        if not folder.parent.exists():
            cure = "Put the workspace on a file system that all machines mount at the same path, or use --through."
            raise InputError(f"{os.uname().nodename} does not see {folder.parent}", cure)
        plan = PlanFile.open(folder)
        return plan, self._worker(plan.job)

    def _worker(self, job: Job) -> Worker:
        own = sharing_cores(job, _cores_of_a_gpu()) if self._device.startswith(CUDA) else job
        return Worker(own, device=self._device)

    def _units(self, plan: PlanFile, given: dict[str, Future[str]]) -> Iterator[Unit]:
        """The unit given first, and those that came meanwhile; never waits, as that would hold up what is begun."""
        name = next(iter(given))
        while True:
            if not (self._scratch and self._scratch.published(name)):
                yield plan.unit(name)
            if self._asked.empty():
                return
            name, given[name] = self._asked.get()


def _cores_of_a_gpu() -> int:
    """This machine's cores divided by its GPUs, as the cluster knows them."""
    import ray

    here, nodes = ray.get_runtime_context().get_node_id(), cast(Any, ray).nodes()
    gpus = [node["Resources"].get("GPU", 1) for node in nodes if node["NodeID"] == here]
    return max(1, cores() // max(1, int((gpus or [1])[0])))


def _answer(given: dict[str, Future[str]], done: Done) -> None:
    given.pop(done.unit).set_result(json.dumps({"done": dataclasses.asdict(done)}))


def _error(error: CompalError) -> str:
    return json.dumps({"error": [type(error).__name__, error.what, error.cure]})


def _unforeseen(error: Exception) -> str:
    first = str(error).strip().split("\n", 1)[0]
    return f"a worker on {os.uname().nodename} met {type(error).__name__}: {first}"


# --- on the driver ---------------------------------------------------------------------------------------


@dataclass
class _Actor:
    """An actor as the driver sees it.

    hello  the call that says it is there; None once it was answered
    given  the units it is at by their calls, oldest first
    since  when it was last seen to get on, or was given its first unit
    beat   the call that asks how far it is, None while there is none; asked, when that was; items, what it said
    """

    handle: Any
    hello: Any
    given: dict[Any, str] = field(default_factory=dict)
    since: float = 0.0
    beat: Any = None
    asked: float = 0.0
    items: int = 0


class _Driver:
    """The queue of units and the actors that work on it."""

    def __init__(self, ray: Any, job: Job, place: str, progress: Progress, claims: Claims) -> None:
        self.ray, self.progress, self.claims = ray, progress, claims
        self.patience = Patience(job.config.patience)
        self.waiting = deque(progress.left())
        self.kills: Counter[str] = Counter()
        self.failed_starts = 0
        self.lead: Lead | None = None
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = job.config.processes or (0 if job.config.device == "cpu" else gpus) or 1
        device = job.config.device
        on_gpu = device.startswith(CUDA) or (device == AUTO and gpus > 0)
        threads = 1 if on_gpu else max(1, int(ray.cluster_resources().get("CPU", 1)) // count)
        arguments = (place, CUDA if on_gpu else "cpu" if device == AUTO else device, threads)
        # Cores are what a CPU actor computes with; beside a GPU they are its machine's own affair.
        wanted = {"num_gpus": 1, "num_cpus": 1} if on_gpu else {"num_cpus": threads}
        remote = ray.remote(Hand).options(max_restarts=-1, max_task_retries=0, max_concurrency=AHEAD + 2, **wanted)
        self._new: Callable[[], Any] = lambda: remote.remote(*arguments)
        self._lonely = time.monotonic() + START_SECONDS
        self._wanted = "a GPU" if on_gpu else f"{threads} cores"
        self.actors = [self._started(self._new()) for _ in range(min(count, len(self.waiting)))]

    def _started(self, handle: Any) -> _Actor:
        return _Actor(handle, handle.hello.remote())

    def results(self) -> Iterator[Done]:
        """What becomes of the units, until all are done. Raises as `run` does."""
        while True:
            self._give()
            calls = {call: actor for actor in self.actors for call in (actor.hello, *actor.given) if call is not None}
            if not self.waiting and not any(actor.given for actor in self.actors):
                return
            if not calls:  # another run holds what is left
                time.sleep(LOOK_SECONDS)
                continue
            ready, _ = self.ray.wait(list(calls), num_returns=1, timeout=LOOK_SECONDS)
            for call in ready:
                done = self._heard(calls[call], call)
                if done:
                    yield done
            self._end_hung()
            self._say_if_lonely()

    def _say_if_lonely(self) -> None:
        """Tell the user once that no actor has come: the cluster may lack what they need, or be about to grow."""
        if any(actor.hello is None for actor in self.actors):
            self._lonely = math.inf
        elif time.monotonic() > self._lonely:
            self._lonely = math.inf
            said = f"no worker has started in {START_SECONDS:.0f} s: each waits for {self._wanted} of the cluster"
            print(f"compal: {said}, which has {resources(self.ray)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the actors."""
        for actor in self.actors:
            self.ray.kill(actor.handle)

    def _give(self) -> None:
        """Hand units to the actors that are there. One that has killed its worker before goes alone: nobody else
        is to be blamed for it."""
        for actor in self.actors:
            while actor.hello is None and len(actor.given) < AHEAD:
                if any(self.kills[name] for name in actor.given.values()):
                    break
                name = self._next(alone=not actor.given)
                if name is None:
                    break
                actor.since = actor.since if actor.given else time.monotonic()
                actor.given[actor.handle.do.remote(name)] = name

    def _next(self, alone: bool) -> str | None:
        """The next unit that is not done, nor claimed by another run."""
        for _ in range(len(self.waiting)):
            name = self.waiting.popleft()
            if self.progress.done(name):
                continue
            if (alone or not self.kills[name]) and self._take(name):
                if not self.progress.done(name):
                    return name
                self.claims.release(name)
                continue
            self.waiting.append(name)
        return None

    def _take(self, name: str) -> bool:
        return self.patience.through(lambda: self.claims.take(name), passing_write, f"claim unit {name}")

    def _heard(self, actor: _Actor, call: Any) -> Done | None:
        """What a call came to. A call that died puts the actor's units back."""
        try:
            answer = self.ray.get(call)
        except self.ray.exceptions.RayError as error:
            self._died(actor, error)
            return None
        if call is actor.hello:
            actor.hello, self.failed_starts = None, 0
            return None
        name = actor.given.pop(call)
        actor.since = time.monotonic()
        message = json.loads(answer)
        if "error" in message:
            kind, what, cure = message["error"]
            raise getattr(errors, kind, InputError)(what, cure)
        if "done" in message:
            return Done(**message["done"])
        self.claims.release(name)
        return None

    def _died(self, actor: _Actor, error: Exception) -> None:
        """Requeue what the actor was at, blame the unit that it was at longest, and wait for its next start."""
        # A machine that vanishes during a start is the cluster's affair; code that is not there stays away.
        broken = isinstance(error, self.ray.exceptions.RayTaskError) or getattr(error, "actor_init_failed", False)
        if actor.hello is not None and broken:
            self.failed_starts += 1
            if self.failed_starts >= STARTS:
                cure = "Install the same compal, and your own backbones, on every machine."
                raise InputError(f"no worker can be started: {reason(error)}", cure)
        names = list(actor.given.values())
        actor.given.clear()
        if names:
            self.kills[names[0]] += 1
            if self.kills[names[0]] >= KILLS:
                what = f"unit {names[0]} has killed its worker {KILLS} times: {reason(error)}"
                raise InputError(what, "Look at its items, or lower --batch-size or --workers if memory was short.")
        self.waiting.extendleft(reversed(names))
        if self.lead:
            self.lead.forget(names)
        try:
            actor.hello = actor.handle.hello.remote()
        except self.ray.exceptions.RayError:  # gone for good
            actor.handle = self._new()
            actor.hello = actor.handle.hello.remote()

    def _end_hung(self) -> None:
        for actor in self.actors:
            if not actor.given:
                continue
            self._listen(actor)
            if time.monotonic() - actor.since > SILENT_SECONDS:
                self.ray.kill(actor.handle, no_restart=False)
                actor.since = time.monotonic()

    def _listen(self, actor: _Actor) -> None:
        """Ask an actor how far it is, and hear what it said to the question before; never waits."""
        now = time.monotonic()
        if actor.beat is None and now - actor.asked > BEAT_SECONDS:
            actor.beat, actor.asked = actor.handle.beat.remote(), now
        elif actor.beat is not None and self.ray.wait([actor.beat], timeout=0)[0]:
            call, actor.beat = actor.beat, None
            with suppress(self.ray.exceptions.RayError):  # it has died: its units' calls say so
                if (items := self.ray.get(call)) != actor.items:
                    actor.items, actor.since = items, now
