"""A run that is killed (SIGKILL, at any moment) and resumed gives the losses of an undisturbed one, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import sys
from pathlib import Path
from compal.align.fit import FitConfig, fit
from compal.config import apply_settings, from_dict
from compal.stores.store import Store

store, table, run, *settings = sys.argv[1:]
asked = {
    "head": {"name": "tflocal", "interaction": "cross", "width": 16, "layers": 1, "heads": 2, "ffn": 16},
    "loss": {"name": "infonce", "temperature": 1.0, "quad_weight": 1.0},
    "optim": {"steps": 40, "lr": 3e-3},
    "data": {"batch_size": 8, "partners": 1, "resident": "disk"},
    "validation": {"every": 15},
    "log_every": 1,
    "checkpoint_every": 4,
    "deterministic": True,
}
config = from_dict(FitConfig, apply_settings(asked, settings))
say = lambda seen: print(seen.step, flush=True)
fit(config, Store.open(Path(store)), Path(table), Path(table), Path(run), progress=say, resume=True)
"""


def begin(store, table, run, settings):
    command = [sys.executable, "-c", SCRIPT, str(store.path), str(table), str(run), *settings]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["rate"]) for line in lines if "loss" in line]


MINED = (
    'head={name = "linear"}', "data.mined.k=4", "data.mined.every=10",
    "optim.accumulate=2", "optim.chunk=3", "data.negatives=0",
)  # fmt: skip


@pytest.mark.parametrize("settings", [(), MINED])
def test_five_kills_change_no_bit(store, quad_table, tmp_path, settings):
    undisturbed = begin(store, quad_table, tmp_path / "whole", settings)
    _, errors = undisturbed.communicate(timeout=120)
    assert undisturbed.returncode == 0, errors

    # Dropout is on by default in the head, so the random generators must come back too.
    for step in sorted(random.Random(len(settings)).sample(range(3, 39), 5)):
        process = begin(store, quad_table, tmp_path / "killed", settings)
        for line in process.stdout:
            if int(line) >= step:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = begin(store, quad_table, tmp_path / "killed", settings)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors

    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert [step for step, *_ in losses(tmp_path / "killed")] == list(range(1, 41))
    for name in ("best", "last"):
        files = [tmp_path / run / "checkpoints" / f"{name}.safetensors" for run in ("whole", "killed")]
        whole, killed = map(load_file, files)
        assert whole.keys() == killed.keys()
        assert all(torch.equal(whole[key], killed[key]) for key in whole)
    if settings is MINED:
        state = load_file(tmp_path / "killed" / "checkpoints" / "state.safetensors")
        assert int(state["extra.mined_at"]) == 30
        assert (state["extra.candidates"] >= 0).any()
