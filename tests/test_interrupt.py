"""Ctrl-C in real processes: what is there is kept, the command to go on is printed, and its end is that of a run that
nobody disturbed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import rows, run, table
from safetensors import safe_open
from safetensors.numpy import load_file

from compal import api
from compal.stores.store import Store
from compal.stores.verify import verify
from compal.workspace import Workspace

SUPPORT = Path(__file__).parent / "support"
STEPS = ["--set", "optim.steps=60", "--set", "validation.every=25", "--set", "data.batch_size=8"]


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPAL_HOME", str(tmp_path / "work"))
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path / "work")


def started(*words, **environment):
    """A command of its own, to which Ctrl-C is what it is at a terminal."""
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    told = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "compal", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=told, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def until(there, child):
    deadline = time.monotonic() + 200
    while not there():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def interrupted(child):
    """(exit code, stderr) after one Ctrl-C."""
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=200)
    return child.returncode, error


def go_on(error):
    (line,) = [line for line in error.splitlines() if line.startswith("compal: interrupted")]
    return shlex.split(line.partition("Go on: compal ")[2])


def test_a_fit_saves_its_step_and_goes_on_to_the_same_end(work, tmp_path):
    path = table(tmp_path / "set", rows(12))
    assert run("extract", "--backbone", "random:4x8", "--data", path)[0] == 0
    words = ["fit", "linear", "--backbone", "random:4x8", "--data", path, *STEPS]
    child = started(*words, "--name", "stopped", "--set", "log_every=1", "--set", "optim.steps=4000")
    log = work.runs / "stopped" / "metrics.jsonl"
    until(lambda: log.is_file() and log.read_text().count("\n") > 5, child)
    code, error = interrupted(child)
    assert code == 130, error
    assert "stopping after this step" in error
    assert "Traceback" not in error
    again = go_on(error)
    assert again[-1] == "--resume"
    saved = work.runs / "stopped" / "checkpoints" / "state.safetensors"
    last = json.loads(log.read_text().splitlines()[-1])["step"]
    with safe_open(saved, "np") as file:
        assert json.loads(file.metadata()["facts"])["step"] == last
    assert last < 4000, "the run was over before it was interrupted"


def test_a_stopped_run_ends_as_one_that_nobody_stopped(work, tmp_path, monkeypatch):
    path = table(tmp_path / "set", rows(12))
    asked = {"settings": ["optim.steps=9", "validation.every=4", "data.batch_size=8"], "workspace": work}
    api.extract("random:4x8", str(path), workspace=work)
    whole = api.fit("linear", "random:4x8", str(path), name="whole", **asked)
    heard = []

    def stop(progress):
        if progress.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        heard.append(progress.step)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner's worker may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            api.fit("linear", "random:4x8", str(path), name="part", progress=stop, **asked)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard[-1] in (6, 7), "the step at which it is heard, or the next"
    part = api.fit("linear", "random:4x8", str(path), name="part", resume=True, **asked)
    one, other = (load_file(run.run_dir / "checkpoints" / "last.safetensors") for run in (whole, part))
    assert set(one) == set(other)
    assert all((one[name] == other[name]).all() for name in one)


def test_an_extraction_keeps_what_is_complete_and_goes_on_to_the_same_end(work, tmp_path):
    path = table(tmp_path / "set", rows(12))
    words = ["extract", "--backbone", "faulty.backbone:4x8", "--data", path, "--batch-size", "2"]
    child = started(*words, FAULTY_SECONDS="0.5")
    until(lambda: list(work.stores.glob("*/spec.json")), child)
    code, error = interrupted(child)
    assert code == 130, error
    assert "Traceback" not in error
    again = go_on(error)
    assert again == [str(word) for word in words]
    child = started(*again)
    out, error = child.communicate(timeout=200)
    assert child.returncode == 0, error
    (folder,) = work.list_stores()
    assert verify(folder) == []
    assert "12 images" in out
    undisturbed = Workspace(tmp_path / "other")
    child = started(*words, "--work", undisturbed.path)
    assert child.wait(200) == 0
    child.communicate()
    one, other = (Store.open(place.list_stores()[0]) for place in (work, undisturbed))
    assert {part.name: part.files for part in one.parts} == {part.name: part.files for part in other.parts}


def test_a_second_one_ends_at_once(work, tmp_path):
    path = table(tmp_path / "set", rows(4))
    words = ["extract", "--backbone", "faulty.backbone:4x8", "--data", path, "--batch-size", "1", "--workers", "1"]
    child = started(*words, FAULTY_SECONDS="60")
    until(lambda: list(work.stores.glob("*/spec.json")), child)
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode in (-signal.SIGINT, 130)
