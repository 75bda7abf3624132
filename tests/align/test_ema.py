"""The teacher: a moving average of the head's weights, and a loss that learns from its scores."""

from __future__ import annotations

import json

import pytest
import torch
from blocks import batch_of
from safetensors.torch import load_file

from compal.align.ema import EmaConfig
from compal.align.fit import FitConfig, fit
from compal.align.losses import distill, infonce
from compal.config import apply_settings, from_dict
from compal.errors import UsageError

from .test_accumulate import TINY


def run(store, table, folder, *settings, validation=None, resume=False):
    config = from_dict(FitConfig, apply_settings(TINY, list(settings)))
    result = fit(config, store, table, validation, folder, resume=resume)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line], load_file(result.checkpoint)


def slow(scores, teacher, taken, scale):
    """KL of every row by itself, float64, entries one by one."""
    terms = []
    for ours, theirs, used in zip(scores.tolist(), teacher.tolist(), taken.tolist(), strict=True):
        if sum(used) < 2:
            continue
        p = torch.tensor([x for x, u in zip(theirs, used, strict=True) if u], dtype=torch.float64).mul(scale).softmax(0)
        q = torch.tensor([x for x, u in zip(ours, used, strict=True) if u], dtype=torch.float64).mul(scale).softmax(0)
        terms.append(float((p * (p.log() - q.log())).sum()))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("softness", [1.0, 3.0])
def test_distillation_against_a_slow_loop(sparse, softness):
    generator = torch.Generator().manual_seed(0)
    scores, teacher = torch.randn(2, 4, 6, generator=generator)
    taken = torch.rand(4, 6, generator=generator) < 0.6 if sparse else torch.ones(4, 6, dtype=torch.bool)
    if sparse:
        taken[0] = False
        taken[1, 1:] = False
    batch = batch_of(torch.eye(4, 6, dtype=torch.bool), scored=taken if sparse else None)
    hidden = scores.masked_fill(~taken, -torch.inf), teacher.masked_fill(~taken, -torch.inf)
    options = {"temperature": 0.5, "learn_temperature": False, "block_weight": 0.0}
    config = distill.Config(**options, distill=0.7, softness=softness)
    scale = 1 / 0.5 / softness
    expected = (slow(scores, teacher, taken, scale) + slow(scores.T, teacher.T, taken.T, scale)) / 2
    leaf = hidden[0].clone().requires_grad_()
    found = distill.loss(leaf, batch, config, teacher=hidden[1])
    assert float(found.detach()) == pytest.approx(0.7 * softness**2 * expected, rel=1e-5)
    found.backward()
    assert leaf.grad.isfinite().all()
    assert (leaf.grad[~taken] == 0).all()


def test_a_head_that_agrees_with_its_teacher_has_infonce_alone():
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    batch = batch_of(torch.eye(3, 5, dtype=torch.bool))
    fitted = distill.parameters(distill.Config())
    (ours,) = torch.autograd.grad(
        distill.loss(scores, batch, distill.Config(), fitted, teacher=scores.detach()), scores
    )
    (plain,) = torch.autograd.grad(infonce.loss(scores, batch, infonce.Config(), fitted), scores)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)


def test_the_teacher_is_the_average_of_every_step(store, quad_table, tmp_path):
    """Of the weights after each step, from those of a run of no learning."""
    still, start = run(store, quad_table, tmp_path / "start", "optim.steps=1", "optim.lr=0.0", "optim.weight_decay=0.0")
    expected = {name: weight.clone() for name, weight in start.items()}
    for steps in (1, 2, 3):
        _, weights = run(store, quad_table, tmp_path / f"{steps}", f"optim.steps={steps}")
        for name, mean in expected.items():
            mean.lerp_(weights[name], 0.3)
    asked = ("optim.steps=3", "ema.decay=0.7", "ema.judged=true")
    losses, teacher = run(store, quad_table, tmp_path / "teacher", *asked)
    assert losses[0] == still[0]
    for name, mean in expected.items():
        torch.testing.assert_close(teacher[name], mean, rtol=1e-6, atol=1e-7)


def test_to_have_a_teacher_changes_nothing_in_the_head(store, quad_table, tmp_path):
    plain = run(store, quad_table, tmp_path / "plain", "head.dropout=0.5")
    beside = run(store, quad_table, tmp_path / "beside", "head.dropout=0.5", "ema.decay=0.9")
    assert plain[0] == beside[0]
    assert all(torch.equal(weight, beside[1][name]) for name, weight in plain[1].items())


@pytest.mark.parametrize("partners", [0, 1])
def test_distilling_in_two_passes(store, quad_table, tmp_path, partners):
    asked = ('loss={name="distill",temperature=0.5}', "ema.decay=0.5", f"data.partners={partners}")
    whole, weights = run(store, quad_table, tmp_path / "whole", *asked)
    parts, again = run(store, quad_table, tmp_path / "parts", *asked, "optim.chunk=3")
    assert parts == pytest.approx(whole, rel=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_has_the_teacher_it_had(store, quad_table, tmp_path):
    """Stopped by patience halfway, then taken up with more of it."""
    asked = ('loss={name="distill"}', "ema.decay=0.5", "head.dropout=0.3", "checkpoint_every=3")
    whole, weights = run(store, quad_table, tmp_path / "whole", *asked)

    class Stopped(Exception):
        pass

    def stop(seen):
        if seen.step == 4:
            raise Stopped

    config = from_dict(FitConfig, apply_settings(TINY, list(asked)))
    with pytest.raises(Stopped):
        fit(config, store, quad_table, None, tmp_path / "parts", progress=stop)
    parts, again = run(store, quad_table, tmp_path / "parts", *asked, resume=True)
    assert parts == whole
    assert all(torch.equal(weight, again[name]) for name, weight in weights.items())


def test_the_teacher_is_what_is_validated(store, quad_table, tmp_path):
    """One that never moves keeps the score of the beginning."""
    asked = ("ema.decay=1.0", "ema.judged=true", "validation.every=2", "optim.lr=0.1")
    run(store, quad_table, tmp_path / "still", *asked, validation=quad_table)
    lines = [json.loads(line) for line in (tmp_path / "still" / "metrics.jsonl").read_text().splitlines()]
    found = [line["validation"] for line in lines if "validation" in line]
    assert len(found) == 3
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"loss": {"name": "distill"}}, "loss 'distill' learns from a teacher"),
        ({"ema": {"judged": True}}, "ema.judged asks for a teacher"),
        ({"ema": {"decay": 1.5}}, "ema.decay = 1.5 is no share"),
    ],
)
def test_what_cannot_be(settings, says):
    with pytest.raises(UsageError, match=says):
        from_dict(FitConfig, {"head": {"name": "linear"}, **settings}).complete()


def test_the_defaults_have_no_teacher():
    assert EmaConfig().decay == 0
