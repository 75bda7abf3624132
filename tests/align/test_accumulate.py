"""Large batches in small memory: two passes give the gradients of one, accumulated batches their mean."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from compal.align.fit import FitConfig, fit
from compal.config import apply_settings, from_dict
from compal.errors import UsageError

TINY = {
    "head": {
        "name": "tflocal",
        "interaction": "cross",
        "width": 16,
        "layers": 1,
        "heads": 2,
        "ffn": 16,
        "dropout": 0.0,
    },
    "loss": {"name": "infonce", "temperature": 0.5, "quad_weight": 1.0},
    # A bias of keys has no gradient but noise, which Adam with a small eps would make steps of.
    "optim": {"steps": 6, "lr": 3e-3, "schedule": "constant", "warmup": 0.0, "eps": 1e-3},
    "data": {"batch_size": 8, "negatives": 1},
    "log_every": 1,
}


def run(store, table, folder, *settings):
    result = fit(from_dict(FitConfig, apply_settings(TINY, list(settings))), store, table, None, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line], load_file(result.checkpoint)


@pytest.mark.parametrize("partners", [0, 1])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_two_passes_train_as_one(store, quad_table, tmp_path, partners, chunk):
    settings = f"data.partners={partners}"
    whole, weights = run(store, quad_table, tmp_path / "whole", settings)
    parts, again = run(store, quad_table, tmp_path / "parts", settings, f"optim.chunk={chunk}")
    assert parts == pytest.approx(whole, rel=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [0, 3])
def test_a_step_of_two_batches_has_their_mean_loss(store, quad_table, tmp_path, chunk):
    still = ("optim.lr=0.0", "optim.weight_decay=0.0", f"optim.chunk={chunk}")
    each, _ = run(store, quad_table, tmp_path / "each", *still, "optim.steps=12")
    pairs, _ = run(store, quad_table, tmp_path / "pairs", *still, "optim.accumulate=2")
    assert pairs == pytest.approx([(one + other) / 2 for one, other in zip(each[::2], each[1::2], strict=True)])


def test_accumulated_gradients_are_those_of_both_batches(store, quad_table, tmp_path):
    """Without adaptive steps in the way: the whole table as one batch, twice, is the whole table once."""
    everything = ("data.batch_size=1000", "data.negatives=-1", "optim.steps=2")
    once, weights = run(store, quad_table, tmp_path / "once", *everything)
    twice, again = run(store, quad_table, tmp_path / "twice", *everything, "optim.accumulate=2")
    assert twice == pytest.approx(once, rel=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-5, atol=1e-6)


def test_nonsense_is_refused(store, quad_table, tmp_path):
    with pytest.raises(UsageError, match=r"optim\.accumulate must be at least 1"):
        run(store, quad_table, tmp_path, "optim.accumulate=0")
