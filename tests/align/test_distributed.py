"""Several processes (gloo) give the losses and weights of one, go on after a kill, and end together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from compal.align.fit import FitConfig, fit
from compal.config import apply_settings, from_dict
from compal.errors import InputError, UsageError

ASKED = {
    "head": {"name": "linear"},
    # Behind so large an eps, an update is proportional to the gradient: a wrong factor shows, rounding does not grow.
    "optim": {"steps": 12, "lr": 0.03, "eps": 0.1},
    "data": {"batch_size": 8, "resident": "disk"},
    "validation": {"every": 5},
    "log_every": 1,
}
SCRIPT = (
    f"""
import json, os, sys
from pathlib import Path
import torch
from compal.align.fit import FitConfig, fit
from compal.config import apply_settings, from_dict
from compal.errors import CompalError
from compal.stores.store import Store

ASKED = {ASKED}
"""
    + """
store, devices, nodes, *runs = sys.argv[1:]


def forbid(event, details):
    if event == "pickle.find_class":
        raise AssertionError(f"{details} came out of a pickle")


def forbidden(*_, **__):
    raise AssertionError("an object was sent as a pickle")


sys.addaudithook(forbid)
for name in ("broadcast_object_list", "all_gather_object", "scatter_object_list", "send_object_list"):
    setattr(torch.distributed, name, forbidden)
rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def say(seen):
    print(seen.step, flush=True)
    if os.environ.get("FAIL_FIRST") == str(seen.step):
        raise OSError("the first process has had enough")


if rank and os.environ.get("FAIL_SECOND"):
    from compal.align.loader import Loader

    made, failing = Loader._made, int(os.environ["FAIL_SECOND"])

    def spoilt(self, step, staging):
        if step == failing:
            if os.environ.get("HOW") == "killed":
                os.kill(os.getpid(), 9)
            raise ValueError("the second process reads no more")
        return made(self, step, staging)

    Loader._made = spoilt
opened = Store.open(Path(store))
for table, run, settings in map(json.loads, runs):
    config = from_dict(FitConfig, apply_settings(ASKED, settings))
    table, run = Path(table), Path(run)
    try:
        result = fit(
            config, opened, table, table, run, progress=say, resume=True, devices=int(devices), nodes=int(nodes)
        )
    except CompalError as error:
        print(f"rank {rank}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    print(f"rank {rank}, {run.name}: {result.score} at {result.best_step}", file=sys.stderr, flush=True)
"""
)


@pytest.fixture(scope="session")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "train.py"
    path.write_text(SCRIPT)
    return path


def clean(**more):
    """The environment of a process that no launcher has started."""
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in launched}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"} | more


def begin(script, store, runs, devices, nodes=1, through=(), **environment):
    """`runs`: table, folder and settings of each fit, one after the other."""
    asked = [json.dumps([str(table), str(folder), list(settings)]) for table, folder, settings in runs]
    command = [sys.executable, *through, str(script), str(store.path), str(devices), str(nodes), *asked]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean(**environment)
    )


def alone(store, table, run, settings=()):
    """The same in this process."""
    config = from_dict(FitConfig, apply_settings(ASKED, list(settings)))
    return fit(config, store, table, table, run)


def finish(process):
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    return errors


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def validated(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["validation"] for line in lines if "validation" in line]


def weights(run):
    """Those of the head and of the loss."""
    state = load_file(run / "checkpoints" / "state.safetensors")
    return {name: tensor.double() for name, tensor in state.items() if name.startswith("module.")}


def assert_alike(one, other):
    """Losses to 1e-6, each tensor of the weights to 1e-6 of its norm, or of 1: the bias before a softmax, say, has no
    gradient but rounding, and what Adam makes of it."""
    assert losses(one) == pytest.approx(losses(other), rel=1e-6)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).norm() <= 1e-6 * max(1.0, float(theirs[name].norm())), name


SMALL = 'head={name="tflocal",width=16,layers=1,heads=2,ffn=16,dropout=0.0,interaction="cross"}'
CASES = {
    "all pairs": (SMALL,),
    "selected pairs": (SMALL, "data.partners=1"),
    "fitted loss": ('loss={name="siglip"}',),
    "fitted temperature, mined": ("data.mined.k=4", "data.mined.every=5", "data.negatives=0"),
    "two passes": (SMALL, "optim.accumulate=2", "optim.chunk=3", 'loss={name="siglip"}'),
    "accumulated": (SMALL, "optim.accumulate=2", "data.batch_size=6"),
    "odd shares": ("data.batch_size=5", 'loss={name="siglip"}'),
    "vectors and their teacher": ('loss={name="degla",temperature=0.2}', "ema.decay=0.5", "data.negatives=-1"),
    "tokens": (
        'head={name="meanpool",width=8}',
        'loss={name="fsc",temperature=0.2}',
        "data.negatives=-1",
        "optim.chunk=3",
    ),
    "vectors in two passes": (
        'loss={name="degla",temperature=0.2}',
        "ema.decay=0.5",
        "data.negatives=-1",
        "optim.chunk=3",
    ),
    "another caption, to be told by a decoder": (
        'loss={name="read",decoder="random",temperature=0.2,rec=1.0}',
        "data.further=1",
        "data.batch_size=12",
    ),
    "a teacher": ('loss={name="distill"}', "ema.decay=0.5", "optim.chunk=2", "ema.judged=true"),
}


@pytest.fixture(scope="module")
def both(script, store, quad_table, plain_table, tmp_path_factory):
    """All cases, one after the other, by the same two processes: the folder of the runs, and what they say."""
    folder = tmp_path_factory.mktemp("two")
    tables = {name: plain_table if name == "odd shares" or "caption" in name else quad_table for name in CASES}
    said = finish(begin(script, store, [(tables[name], folder / name, CASES[name]) for name in CASES], 2))
    return folder, tables, said


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(both, store, tmp_path, name):
    folder, tables, said = both
    result = alone(store, tables[name], tmp_path, CASES[name])
    assert len(set(losses(folder / name))) == 12
    assert_alike(folder / name, tmp_path)
    assert validated(folder / name) == validated(tmp_path)
    for rank in (0, 1):
        assert f"rank {rank}, {name}: {result.score} at {result.best_step}" in said


def test_more_processes_than_images(script, store, quad_table, tmp_path):
    """A batch of two images for three processes: the last has none, and the loss is the same."""
    settings = (SMALL, "data.batch_size=2", "optim.steps=4", 'loss={name="siglip"}')
    runs = [(quad_table, tmp_path / f"{chunk}", (*settings, f"optim.chunk={chunk}")) for chunk in (0, 1)]
    runs.append((quad_table, tmp_path / "sides", (*settings[1:], "optim.chunk=1")))
    finish(begin(script, store, runs, 3))
    alone(store, quad_table, tmp_path / "one", settings)
    assert_alike(tmp_path / "0", tmp_path / "one")
    assert_alike(tmp_path / "1", tmp_path / "one")
    alone(store, quad_table, tmp_path / "linear", settings[1:])
    assert_alike(tmp_path / "sides", tmp_path / "linear")


def test_torchrun_says_how_many(script, store, quad_table, tmp_path):
    through = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    finish(begin(script, store, [(quad_table, tmp_path / "two", ())], 1, through=through, PYTHONWARNINGS=""))
    assert json.loads((tmp_path / "two" / "provenance.json").read_text())["processes"] == 2
    alone(store, quad_table, tmp_path / "one")
    assert_alike(tmp_path / "two", tmp_path / "one")


def test_two_machines(script, store, quad_table, tmp_path):
    """As on two nodes with a process each: the command is started on both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    runs = [(quad_table, tmp_path / "two", ())]
    nodes = [begin(script, store, runs, 1, nodes=2, NODE_RANK=str(node), **where) for node in (0, 1)]
    for process in nodes:
        finish(process)
    alone(store, quad_table, tmp_path / "one")
    assert_alike(tmp_path / "two", tmp_path / "one")


def test_killed_and_resumed(script, store, quad_table, tmp_path):
    """Dropout too: each process's random numbers are a function of the step."""
    dropping = SMALL.replace("dropout=0.0", "dropout=0.3")
    settings = (dropping, "checkpoint_every=2", "data.mined.k=4", "deterministic=true")
    killed = [(quad_table, tmp_path / "killed", settings)]
    process = begin(script, store, killed, 2)
    for line in process.stdout:
        if int(line) >= 7:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # the pipe closes when the second process has ended too
    assert len(losses(tmp_path / "killed")) < 12
    finish(begin(script, store, [*killed, (quad_table, tmp_path / "whole", settings)], 2))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    alone(store, quad_table, tmp_path / "one", settings)
    assert losses(tmp_path / "one") != losses(tmp_path / "whole")


def ended(process):
    """Exit code and messages; both processes have ended when the pipe closes."""
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_an_error_of_the_first_ends_both(script, store, quad_table, tmp_path):
    code, errors = ended(begin(script, store, [(quad_table, tmp_path / "run", ())], 2, FAIL_FIRST="3"))
    assert code == 1
    assert "OSError: the first process has had enough" in errors
    assert "rank 1: process 1 of 2 has ended: OSError: the first process has had enough" in errors


def test_an_error_of_the_second_ends_both(script, store, quad_table, tmp_path):
    code, errors = ended(begin(script, store, [(quad_table, tmp_path / "run", ())], 2, FAIL_SECOND="3"))
    assert code == 1
    assert "ValueError: the second process reads no more" in errors
    assert "rank 0: process 2 of 2 has ended: ValueError: the second process reads no more" in errors


def test_a_death_of_the_second_ends_both(script, store, quad_table, tmp_path):
    code, errors = ended(begin(script, store, [(quad_table, tmp_path / "run", ())], 2, FAIL_SECOND="3", HOW="killed"))
    assert code == 1
    assert "rank 0: another process of this run has ended" in errors


def test_a_run_that_is_there_is_refused_by_all(script, store, quad_table, tmp_path):
    """Also the exit code is that of the error."""
    alone(store, quad_table, tmp_path / "run", ("optim.steps=1",))
    code, errors = ended(begin(script, store, [(quad_table, tmp_path / "run", ("optim.steps=2",))], 2))
    assert code == 2
    assert "rank 1: process 1 of 2 has ended: " in errors
    assert errors.count("was configured otherwise: optim") == 2


@pytest.mark.parametrize(
    ("devices", "nodes", "environment", "says"),
    [
        (0, 1, {}, "0 devices on 1 nodes"),
        (3, 1, {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, "inside a torchrun of 2"),
        (1, 1, {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2"}, "3 processes with 2 here"),
        (1, 2, {}, "without the address of the first node"),
    ],
)
def test_what_cannot_be(store, quad_table, tmp_path, monkeypatch, devices, nodes, environment, says):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = from_dict(FitConfig, ASKED)
    with pytest.raises(UsageError, match=says):
        fit(config, store, quad_table, None, tmp_path, devices=devices, nodes=nodes)
    assert not list(tmp_path.iterdir())


def test_one_device_is_not_for_two(store, quad_table, tmp_path):
    with pytest.raises((UsageError, InputError)):
        fit(from_dict(FitConfig, ASKED), store, quad_table, None, tmp_path, device="cuda:0", devices=2)
