"""The processes of a run on this machine: the command line started again for each, and none that outlives the run.

Inside a torchrun, or where a job scheduler starts every process, nothing is started here. Elsewhere the first process
starts the others with the environment that `torch.distributed` and Fabric read (LOCAL_RANK, WORLD_SIZE, MASTER_ADDR,
MASTER_PORT, NODE_RANK). When one dies, the others end too, even if they wait on a GPU for one that is gone.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import threading
import time
from typing import Any

import torch.distributed as dist

from ..errors import InputError, UsageError

ELASTIC = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")  # what torchrun gives to every process
PARENT = "COMPAL_FIT_PARENT"  # the process id of the first process, for those that it started
LOOK_SECONDS = 0.5
END_SECONDS = 20.0  # that a process has to end with its own message after another has died

_children: list[subprocess.Popen[bytes]] = []
_idle = threading.Event()  # set while no run is on: then what a child does is the script's affair


def asked(devices: int, nodes: int) -> tuple[int, int]:
    """Processes a machine and machines: what torchrun says, else what is asked for. Raises `UsageError`."""
    if devices < 1 or nodes < 1:
        raise UsageError(f"{devices} devices on {nodes} nodes", "Both are at least 1.")
    if not all(name in os.environ for name in ELASTIC):
        return devices, nodes
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if world % local:
        raise UsageError(f"a torchrun of {world} processes with {local} here", "Start as many on every machine.")
    there = local, world // local
    if (devices, nodes) not in ((1, 1), there):
        raise UsageError(
            f"{devices} devices on {nodes} nodes inside a torchrun of {there[0]} processes on {there[1]}",
            "Leave out --devices and --nodes there.",
        )
    return there


def first() -> bool:
    """Whether this process is the first of the run that it takes part in, or alone: the one that reports."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def start(environment: Any, devices: int, nodes: int) -> None:
    """Start the other processes of this machine, unless something else does; `environment` is Fabric's.

    Raises `UsageError` for several nodes without the address of the first, `InputError` where there is no command
    line to start again (a notebook, `python -c`).
    """
    _idle.clear()
    if environment.creates_processes_externally:
        if PARENT in os.environ and int(os.environ[PARENT]) == os.getppid():
            threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        elif _children:
            threading.Thread(target=_watch, daemon=True).start()
        return
    if nodes > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise UsageError(
            f"--nodes {nodes} without the address of the first node",
            "Set MASTER_ADDR, MASTER_PORT and NODE_RANK on every node and start the command there, or use torchrun.",
        )
    command = _command() if devices > 1 else []
    os.environ |= {
        "MASTER_ADDR": environment.main_address,
        "MASTER_PORT": str(environment.main_port),
        "NODE_RANK": str(environment.node_rank()),
        "WORLD_SIZE": str(devices * nodes),
        PARENT: str(os.getpid()),
        "LOCAL_RANK": "0",
    }
    atexit.register(_wait)
    for rank in range(1, devices):
        environ = os.environ | {"LOCAL_RANK": str(rank)}
        _children.append(subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL))
    threading.Thread(target=_watch, daemon=True).start()


def rest() -> None:
    """No run is on any more: the processes stay for the next one, unwatched."""
    _idle.set()


def _command() -> list[str]:
    """The command line of this process."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return [sys.executable, "-m", spec.name, *sys.argv[1:]]
    if not os.path.isfile(sys.argv[0]):
        raise InputError(
            "several processes need a command line to start again", "Run a script, `compal fit`, or torchrun."
        )
    return [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]


def _watch() -> None:
    """End this process some time after a child has failed; it ends by itself if the failure reaches it."""
    while not any(child.poll() for child in _children):
        if _idle.wait(LOOK_SECONDS):
            return
    if _idle.wait(END_SECONDS):
        return
    failed = [child.returncode for child in _children if child.returncode]
    _kill()
    print(f"compal: a process of this run ended with code {failed[0]}; its message stands above", file=sys.stderr)
    os._exit(1)


def _end_with(parent: int) -> None:
    """End this process some time after the first one is gone."""
    while os.getppid() == parent:
        if _idle.wait(LOOK_SECONDS):
            return
    if not _idle.wait(END_SECONDS):
        os._exit(1)


def _wait() -> None:
    """At the end of the first process: those that it started have ended too."""
    deadline = time.monotonic() + END_SECONDS
    for child in _children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.1, deadline - time.monotonic()))
    _kill()


def _kill() -> None:
    for child in _children:
        if child.poll() is None:
            child.kill()
            child.wait()
