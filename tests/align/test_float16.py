"""`precision = "16-mixed"`: products in float16 and a scaled loss, on a CPU as on a GPU."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from compal.align.batches import FeatureTable
from compal.align.fit import FitConfig, fit
from compal.align.pairs import PairTable
from compal.align.sampling import Sampler
from compal.align.scorer import Dims, build_head
from compal.align.step import adamw
from compal.align.training import Training
from compal.config import apply_settings, from_dict
from compal.errors import InputError

from .test_accumulate import TINY
from .test_distributed import CASES, SMALL, alone, begin, clean, finish, losses, script  # noqa: F401 - a fixture

HALF = "precision=16-mixed"
# Gradients of scores are 1 / temperature times larger: at the first scale of 65,536 they overflow float16.
STEEP = ("loss.temperature=1e-4", "loss.learn_temperature=false")


def asked(*settings):
    return from_dict(FitConfig, apply_settings(TINY, list(settings)))


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def told(run):
    return [(line["loss"], line["rate"], line["scale"]) for line in lines(run) if "loss" in line]


def scales(run):
    return [line["scale"] for line in lines(run) if "loss" in line]


def weights(run, name="last"):
    return load_file(run / "checkpoints" / f"{name}.safetensors")


@pytest.mark.parametrize("settings", [(), STEEP, ("optim.clip=0.0",), ("optim.accumulate=2", "optim.clip=0.1")])
def test_a_run_is_the_loop_of_torchs_own_manual(store, quad_table, tmp_path, settings):
    """https://docs.pytorch.org/docs/stable/notes/amp_examples.html: scale, accumulate, unscale, clip, step, update. To
    the last bit, steps that are left out among them."""
    config = asked(HALF, "optim.steps=16", *settings).complete()
    fit(config, store, quad_table, None, tmp_path)

    torch.manual_seed(config.seed)
    options = dict(config.head)
    model = Training(build_head(options.pop("name"), options, Dims.of(store.spec)), config.loss)
    optimizer, optim = adamw(model, config.optim), config.optim
    table = PairTable.read(quad_table, store)
    features = FeatureTable.loaded(store, table.image_keys, table.caption_keys, "cpu", "tokens")
    sampler = Sampler(table, config.data, optim.steps * optim.accumulate, config.seed)
    scaler = torch.amp.GradScaler("cpu")
    expected, left_out = [], 0
    for step in range(optim.steps):
        for group in optimizer.param_groups:
            group["lr"] = optim.rate(step)
        found = []
        for number in range(optim.accumulate):
            batch = sampler.draw(step * optim.accumulate + number).batch(features)
            with torch.autocast("cpu", torch.float16):
                loss = model(batch)
            scaler.scale(loss / optim.accumulate).backward()
            found.append(loss.detach())
        scaler.unscale_(optimizer)
        if optim.clip:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, optim.clip)
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        left_out += scaler.get_scale() < before
        optimizer.zero_grad()
        expected.append((torch.stack(found).mean().item(), optim.rate(step), scaler.get_scale()))
    assert told(tmp_path) == expected
    assert all(torch.equal(weights(tmp_path)[name], tensor) for name, tensor in model.scorer.state_dict().items())
    assert (3 < left_out < 15) if settings == STEEP else not left_out


def test_products_are_in_float16_and_weights_in_float32(store, quad_table, tmp_path):
    seen = set()

    def look(module, _, output):
        if isinstance(module, torch.nn.Linear):
            seen.add((output.dtype, module.weight.dtype))

    handle = torch.nn.modules.module.register_module_forward_hook(look)
    try:
        fit(asked(HALF), store, quad_table, None, tmp_path)
    finally:
        handle.remove()
    assert seen == {(torch.float16, torch.float32)}
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}


def test_losses_are_near_those_of_float32(store, quad_table, tmp_path):
    fit(asked(HALF), store, quad_table, None, tmp_path / "half")
    fit(asked(), store, quad_table, None, tmp_path / "single")
    half, single = losses(tmp_path / "half"), losses(tmp_path / "single")
    assert half != single
    assert half == pytest.approx(single, rel=5e-4)  # ten bits of a product: 2 ** -11


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("partners", [0, 1])
def test_two_passes_scale_once(store, quad_table, tmp_path, partners, precision):
    """Losses of one pass, to the rounding of half precision; a second scale would make each step another."""
    settings = (f"precision={precision}", f"data.partners={partners}", "optim.accumulate=2", "optim.steps=12")
    whole = fit(asked(*settings), store, quad_table, None, tmp_path / "whole")
    parts = fit(asked(*settings, "optim.chunk=3"), store, quad_table, None, tmp_path / "parts")
    rounding = 2**-9 if precision == "16-mixed" else 2**-6
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=rounding)
    start = fit(asked("optim.lr=0.0", "optim.weight_decay=0.0", "optim.steps=1"), store, quad_table, None, tmp_path)
    begun, one, two = (load_file(result.checkpoint) for result in (start, whole, parts))
    moved = sum(float((one[name] - begun[name]).square().sum()) for name in begun) ** 0.5
    apart = sum(float((one[name] - two[name]).square().sum()) for name in begun) ** 0.5
    assert apart < (0.05 if precision == "16-mixed" else 0.3) * moved


def test_two_passes_leave_out_what_one_does(store, quad_table, tmp_path):
    for chunk in (0, 3):
        fit(asked(HALF, *STEEP, f"optim.chunk={chunk}"), store, quad_table, None, tmp_path / f"{chunk}")
    assert scales(tmp_path / "0") == scales(tmp_path / "3") == [2.0**power for power in range(15, 9, -1)]


def test_a_step_that_is_left_out_changes_nothing(store, quad_table, tmp_path):
    still = ("optim.lr=0.0", "optim.weight_decay=0.0", "optim.steps=1")
    fit(asked(*still), store, quad_table, None, tmp_path / "start")
    fit(asked(HALF, *STEEP), store, quad_table, None, tmp_path / "run")
    assert scales(tmp_path / "run")[-1] == 1024, "all six were left out"
    begun = weights(tmp_path / "start")
    assert all(torch.equal(begun[name], tensor) for name, tensor in weights(tmp_path / "run").items())
    assert not [name for name in load_file(tmp_path / "run/checkpoints/state.safetensors") if "exp_avg" in name]


def test_a_scale_that_falls_to_nothing_ends_the_run(store, quad_table, tmp_path):
    settings = (HALF, "loss.temperature=1e-30", "loss.learn_temperature=false", "optim.steps=60")
    with pytest.raises(InputError, match=r"at step 30 and its gradient overflows float16 also at a scale of 0\.00012"):
        fit(asked(*settings), store, quad_table, None, tmp_path)
    assert scales(tmp_path) == [2.0**power for power in range(15, -14, -1)]


def test_a_loss_that_is_not_finite_ends_the_run_at_once(store, quad_table, tmp_path, monkeypatch):
    """No scale cures it."""
    forward = Training.forward
    monkeypatch.setattr(Training, "forward", lambda self, batch: forward(self, batch) * torch.inf)
    with pytest.raises(InputError, match="the loss is inf at step 1 and"):
        fit(asked(HALF), store, quad_table, None, tmp_path)


def test_a_norm_that_is_not_finite_though_each_gradient_is_ends_the_run(store, quad_table, tmp_path, monkeypatch):
    """The scale finds nothing there, so that it would never fall."""
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args, **more: clip(*args, **more) * torch.inf)
    with pytest.raises(InputError, match="at step 1 and the norm of its gradient is no longer finite"):
        fit(asked(HALF), store, quad_table, None, tmp_path)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("step", [2, 5, 9, 14])
def test_resuming_changes_no_bit(store, quad_table, tmp_path, monkeypatch, step):
    """Also where the scale has grown, for which it counts steps."""
    made = torch.amp.GradScaler.__init__
    monkeypatch.setattr(
        torch.amp.GradScaler, "__init__", lambda self, *args, **more: made(self, *args, **more, growth_interval=4)
    )
    settings = (HALF, *STEEP, "optim.steps=24", "checkpoint_every=1", "head.dropout=0.3", "optim.chunk=3")
    fit(asked(*settings), store, quad_table, None, tmp_path / "whole")
    after = scales(tmp_path / "whole")[step:]
    assert any(later > earlier for earlier, later in itertools.pairwise(after)), "the scale never grew"

    def stop(seen):
        if seen.step == step:
            raise Stopped

    with pytest.raises(Stopped):
        fit(asked(*settings), store, quad_table, None, tmp_path / "parts", progress=stop)
    fit(asked(*settings), store, quad_table, None, tmp_path / "parts", resume=True)
    assert told(tmp_path / "parts") == told(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# --- several processes ---------------------------------------------------------------------------------

RUNS = {
    "fitted loss": (*CASES["fitted loss"], HALF),  # a head in full precision: as exact as without a scale
    "steep": (SMALL, HALF, 'loss={name="infonce",temperature=1e-4,learn_temperature=false}', "optim.steps=20"),
    "two passes": (
        SMALL, HALF, 'loss={name="infonce",temperature=1e-4,learn_temperature=false}', "optim.steps=20",
        "optim.chunk=3", "optim.accumulate=2",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def both(script, store, quad_table, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("two")
    finish(begin(script, store, [(quad_table, folder / name, RUNS[name]) for name in RUNS], 2))
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one(both, store, quad_table, tmp_path, name):
    alone(store, quad_table, tmp_path, RUNS[name])
    # A product of half a batch is rounded to float16 at another place.
    exact = name == "fitted loss"
    assert losses(both / name) == pytest.approx(losses(tmp_path), rel=1e-6 if exact else 2e-2)
    ours, theirs = scales(both / name), scales(tmp_path)
    assert ours[:12] == theirs[:12]
    assert len(set(ours)) == 1 if exact else len(set(ours)) > 10


ONE_OVERFLOWS = """
import sys
import torch
from compal.align.clock import Clock
from compal.align.distributed import open_team
from compal.align.recipe import OptimConfig
from compal.align.step import Step

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scorer, self.fitted = torch.nn.Linear(2, 1, bias=False), torch.nn.ParameterDict({"scale": torch.ones(1)})
    def beside(self):
        return self.fitted.parameters()
    def forward(self, factor):
        return (self.scorer.weight * factor).sum() + (self.fitted["scale"] * factor).sum()
    def follow(self):
        pass

team = open_team("cpu", "16-mixed", devices=2)
torch.manual_seed(0)
model = Model()
optimizer = torch.optim.AdamW(model.parameters())
_, stepper = team.fabric.setup(model, optimizer)
clock = Clock(torch.device("cpu"), lambda: (0.0, 0.0))
step = Step(team, model, optimizer, stepper, OptimConfig(schedule="constant", warmup=0), clock)
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
for number, largest in enumerate((1.0, 1e34, 1.0)):  # times 65,536 it is no float32 any more
    factor = largest if team.rank == 1 else 1.0
    # The loss itself stays finite: what overflows is its gradient.
    step([torch.tensor(factor)], number)
    same = all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert same == (number == 1), (number, team.rank)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scale = team.scaler.get_scale()
    assert scale == (65536.0 if number == 0 else 32768.0), scale
    sums = torch.cat([tensor.reshape(-1) for tensor in before.values()])
    assert torch.equal(torch.tensor(team.led(lambda: sums.tolist())), sums), "weights differ"
print("done\\n", end="", flush=True)
team.__exit__(None, None, None)
"""


def test_one_process_that_overflows_holds_back_all(tmp_path):
    path = tmp_path / "overflow.py"
    path.write_text(ONE_OVERFLOWS)
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, env=clean(), timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["done", "done"]
