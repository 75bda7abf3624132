"""The log of a run says where the time of its steps went."""

from __future__ import annotations

import json
import time

import pytest
import torch

from compal.align import fit as fitting
from compal.align.clock import STAGES, Clock
from compal.align.fit import FitConfig, fit
from compal.align.heads.linear import Linear
from compal.align.loader import Loader
from compal.align.scorer import Side
from compal.config import apply_settings, from_dict

SLOW = 0.05  # far above what the rest of such a step takes


PARTS = ("optim.chunk=2", "optim.accumulate=2", "optim.steps=2", "data.negatives=0")


def run(store, table, folder, *settings, **more):
    asked = {"head": {"name": "linear"}, "optim": {"steps": 6}, "data": {"batch_size": 8}, "log_every": 2}
    result = fit(from_dict(FitConfig, apply_settings(asked, list(settings))), store, table, None, folder, **more)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return result, [line["step_time"] for line in lines if "loss" in line]


def slowly(function, seconds=SLOW):
    def slow(*args, **more):
        time.sleep(seconds)
        return function(*args, **more)

    return slow


def far_slower(function):
    """A batch is made while the step before it runs: what takes longer than a step on a busy machine is waited for."""
    return slowly(function, 5 * SLOW)


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(context, scores):
        return scores.clone()

    @staticmethod
    def backward(context, gradient):
        time.sleep(SLOW)
        return gradient


def backward(side):
    return lambda self, batch, local: Side(Backward.apply(side(self, batch, local).vectors))


CASES = {
    "wait": (Loader, "_made", far_slower),
    "forward": (Linear, "text_side", slowly),
    "backward": (Linear, "text_side", backward),
    "optimizer": (fitting.Training, "follow", slowly),
}


@pytest.mark.parametrize("stage", CASES)
def test_what_is_slow_is_named(store, quad_table, tmp_path, monkeypatch, stage):
    kind, name, change = CASES[stage]
    monkeypatch.setattr(kind, name, change(getattr(kind, name)))
    result, lines = run(store, quad_table, tmp_path)
    assert len(lines) == 3
    for found in (*lines, result.step_time):
        assert set(found) == set(STAGES)
        assert max(found, key=found.get) == stage
        assert found[stage] > SLOW / 2
        assert all(seconds >= 0 for seconds in found.values())
    mean = {name: sum(line[name] for line in lines) / 3 for name in STAGES}
    assert mean == pytest.approx(result.step_time, rel=1e-3, abs=1e-6)
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept["step_time"] == result.step_time
    assert result.waited == pytest.approx(6 * result.step_time["wait"])


@pytest.mark.parametrize("stage", ["forward", "backward"])
def test_two_passes(store, quad_table, tmp_path, monkeypatch, stage):
    """Four parts of two batches are encoded twice and gone back from once."""
    kind, name, change = CASES[stage]
    monkeypatch.setattr(kind, name, change(getattr(kind, name)))
    _, lines = run(store, quad_table, tmp_path, *PARTS)
    times = 16 if stage == "forward" else 8
    assert times * SLOW < lines[0][stage] < (times + 4) * SLOW
    assert sum(lines[0].values()) - lines[0][stage] < lines[0][stage] / 4


def test_what_follows_a_step_is_in_none(store, quad_table, tmp_path):
    result, lines = run(store, quad_table, tmp_path, progress=lambda seen: time.sleep(SLOW))
    assert result.seconds > 5 * SLOW
    assert all(sum(line.values()) < SLOW for line in lines[1:])


def test_a_resumed_run_counts_its_own_steps(store, quad_table, tmp_path):
    run(store, quad_table, tmp_path)
    result, _ = run(store, quad_table, tmp_path, resume=True)
    assert result.step_time == dict.fromkeys(STAGES, 0.0)


class Event:
    """A device that is behind by what it was given; its clock is of whole seconds."""

    clock, done = 0, 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.clock += 1
        self.at = Event.clock

    def query(self):
        return self.at <= Event.done

    def synchronize(self):
        Event.done = max(Event.done, self.at)

    def elapsed_time(self, other):
        assert other.query(), "not over yet"
        return 1000 * (other.at - self.at)


def test_on_cuda_the_device_is_asked_when_it_is_done(monkeypatch):
    """The events are CUDA's; what is made of them is the same on any machine."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "clock", 0)
    monkeypatch.setattr(Event, "done", 0)
    clock = Clock(torch.device("cuda"), lambda: (3.0, 1.5))
    for step in range(3):
        clock.start()
        for stage in ("forward", "backward", "optimizer"):
            clock.lap(stage)
        Event.done = 4 * step + 2
        clock.end()
        assert len(clock._events) == 2
    assert clock.line() == {"wait": 1.0, "copy": 0.5, "forward": 1.0, "backward": 1.0, "optimizer": 1.0}
    assert Event.done == 12
    assert clock.line() == dict.fromkeys(STAGES, 0.0)
    assert clock.mean()["backward"] == 1.0
