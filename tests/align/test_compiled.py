"""`compile = true` changes no loss but by rounding, and no name of a weight."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from compal.align import compiled
from compal.align.checkpoint import load_scorer
from compal.align.fit import FitConfig, fit
from compal.config import apply_settings, from_dict
from compal.errors import InputError

from .test_accumulate import TINY
from .test_distributed import losses

JOINT = "head.interaction=joint"
DROPOUT = "head.dropout=0.3"
CASES = {
    "cross": (DROPOUT,),
    "joint": (JOINT, DROPOUT),
    "selected pairs": ("data.partners=1", DROPOUT),
    "two passes": ("optim.chunk=3", "optim.accumulate=2", DROPOUT),
    "a teacher": ('loss={name="distill"}', "ema.decay=0.5", DROPOUT),
    "own layers": ("head.image_layers=1", "head.text_layers=1", "head.compare=true"),
    "linear": ('head={name="linear"}',),
}


@pytest.fixture(autouse=True)
def forgotten():
    """Compiled code stays inside a test."""
    yield
    torch.compiler.reset()


def run(store, table, folder, *settings):
    config = from_dict(FitConfig, apply_settings(TINY, list(settings)))
    return fit(config, store, table, table, folder)


def compare(store, table, folder, settings):
    """Losses, weights, validation."""
    plain = run(store, table, folder / "plain", *settings)
    torch._dynamo.utils.counters.clear()
    made = run(store, table, folder / "compiled", *settings, "compile=true")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    assert losses(folder / "compiled") == pytest.approx(losses(folder / "plain"), rel=2e-6)
    ours, theirs = load_file(made.checkpoint), load_file(plain.checkpoint)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-5)
    assert made.score == plain.score
    load_scorer(made.checkpoint, store.spec)


QUICK = ("cross", "two passes", "a teacher", "linear")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in CASES]
)
def test_losses_are_those_of_a_run_without(store, quad_table, tmp_path, monkeypatch, name):
    """With the backend that traces, differentiates and runs: what inductor makes of the trace is torch's own matter."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    compare(store, quad_table, tmp_path, CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two passes", "linear"])
def test_losses_with_inductor(store, quad_table, tmp_path, name):
    compare(store, quad_table, tmp_path, CASES[name])


def test_captions_of_other_lengths_compile_nothing_again(store, quad_table, tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    graphs = []
    for steps in (4, 16):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        settings = ("compile=true", "data.batch_size=4", f"optim.steps={steps}", 'optim.schedule="constant"')
        run(store, quad_table, tmp_path / f"{steps}", *settings)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1]


def test_a_machine_without_a_compiler_is_told_before_the_run(store, quad_table, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"finds no C\+\+ compiler.*or leave compile out"):
        run(store, quad_table, tmp_path / "run", "compile=true")
    assert not (tmp_path / "run").exists()


def test_a_compiler_that_does_not_work_is_one_line(store, quad_table, tmp_path, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("g++: internal compiler error\nand much more")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    with pytest.raises(InputError, match=r"^torch\.compile: .*internal compiler error.*Leave compile out") as seen:
        run(store, quad_table, tmp_path / "run", "compile=true")
    assert "\n" not in str(seen.value)
