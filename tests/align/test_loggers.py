"""Weights & Biases beside TensorBoard: kept offline without a key, one run over a resumption, nothing secret in it."""

from __future__ import annotations

import importlib.util
import json

import pytest
from command_line import rows, run, table

from compal.align import loggers
from compal.errors import InputError, UnknownName

SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def work(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("COMPAL_HOME", str(tmp_path / "work"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "work"


def test_names_are_checked_before_anything_is_done(monkeypatch):
    assert loggers.chosen(["tensorboard,wandb", "wandb"]) == ("tensorboard", "wandb")
    assert loggers.chosen([]) == ()
    with pytest.raises(UnknownName, match="Did you mean 'wandb'"):
        loggers.chosen(["wandbb"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'compal\[wandb\]'"):
        loggers.chosen(["wandb"])


def test_a_key_is_found_where_it_is_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not loggers._has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert loggers._has_key()
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert loggers._has_key()


class Run:
    """What wandb.init gives, as far as we use it."""

    def __init__(self):
        self.logged, self.metrics, self.finished = [], [], False

    def define_metric(self, name, step_metric):
        self.metrics.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


def fitted(work, *more):
    words = ["fit", "linear", "--backbone", "random:4x8", "--data", work.parent / "set" / "captions.jsonl"]
    settings = ["optim.steps=4", "validation.every=2", "log_every=1", "data.batch_size=4"]
    return run(*words, *(part for one in settings for part in ("--set", one)), "--name", "r", *more)


def test_the_same_numbers_go_there_and_to_tensorboard(work, tmp_path, monkeypatch):
    import wandb

    opened = []

    def init(**asked):
        opened.append((asked, Run()))
        return opened[-1][1]

    monkeypatch.setattr(wandb, "init", init)
    assert run("extract", "--backbone", "random:4x8", "--data", table(tmp_path / "set", rows(8)))[0] == 0
    assert run("fit", "linear", "--log", "wandbb")[0] == 1
    assert not (work / "runs").exists()
    assert fitted(work, "--log", "wandb")[0] == 0
    ((asked, there),) = opened
    assert (asked["mode"], asked["name"], asked["resume"], asked["project"]) == ("offline", "r", "allow", "compal")
    assert asked["config"]["optim"]["steps"] == 4
    assert there.metrics == [("*", "step")]
    assert there.finished
    lines = [json.loads(line) for line in (work / "runs" / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [values["step"] for values in there.logged] == [line["step"] for line in lines]
    losses = [values["loss"] for values in there.logged if "loss" in values]
    assert losses == [line["loss"] for line in lines if "loss" in line]
    assert list((work / "runs" / "r" / "tensorboard").iterdir())
    assert fitted(work, "--log", "wandb", "--resume")[0] == 0
    assert opened[1][0]["id"] == asked["id"], "a run that goes on is the same run there"


def test_a_real_run_is_kept_offline_without_its_key(work, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert run("extract", "--backbone", "random:4x8", "--data", table(tmp_path / "set", rows(8)))[0] == 0
    (tmp_path / "compal.toml").write_text(f'workspace = "{work}"\n[defaults]\nlog = ["wandb"]\n')
    assert fitted(work)[0] == 0
    folder = work / "runs" / "r" / "wandb"
    assert list(folder.glob("offline-run-*/run-*.wandb"))
    written = [path for path in (work / "runs").rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in path.read_bytes() for path in written)
    assert SECRET not in "".join(capfd.readouterr())
