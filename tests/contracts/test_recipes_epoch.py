"""Every recipe on a small embedded world: an epoch with its own objective, cut off and resumed, scored as a user would.

Only what a recipe says for other sizes is overridden: batch, steps, rate, and the width of heads made for 512-d towers.
A new recipe takes part by itself; one that needs other sizes gets a line in `SIZES`.
"""

from __future__ import annotations

import json

import pytest
import torch
from command_line import run
from safetensors.torch import load_file

from compal import api, registry
from compal.align import fit as fitting
from compal.align.batches import open_table
from compal.align.pairs import PairTable
from compal.align.recipe import load_recipe
from compal.align.sampling import Sampler
from compal.align.scorer import tunes_towers
from compal.align.training import Training
from compal.eval.sources import Sources
from compal.pipeline.encoder import resolve
from compal.stores.pairs import read_pairs
from compal.stores.store import Store
from compal.workspace import Workspace

GROUPS, BATCH, CUT = 48, 8, 8
JUDGED = ("--split", "in_domain", "--limit", "1")
EVERYWHERE = (
    f"data.batch_size={BATCH}",
    "optim.clip=1.0",
    "data.validation=",
    "validation.every=1000",
    "validation.patience=0",
    "checkpoint_every=3",
    "log_every=1",
    "deterministic=true",
    "data.curriculum=[]",
    "data.turns=[]",  # the world has no concatenated pictures
)
FUSION = ("head.width=32", "head.layers=1", "head.heads=2", "head.ffn=64", "head.dropout=0.1", "optim.lr=1e-2")
SIZES = {
    "tfglobal": FUSION,
    "tflocal": FUSION,
    "tflocal-cross": FUSION,
    "tfglobal-shapes": ("head.width=32", "head.layers=2", "head.ffn=64", "optim.lr=1e-2"),
    "tflocal-shapes": ("head.width=32", "head.heads=2", "head.ffn=64", "optim.lr=1e-2"),
    "mlp": ("head.width=128",),
    "filip": ("head.width=32",),
    "dcsm": ("head.width=16", "head.hidden=16"),
    "linear-degla": ("optim.lr=3e-3",),
    "read": ("loss.decoder=random:1", "data.train=pretrain"),
    "linear-read": ("loss.decoder=random:1", "data.train=pretrain"),
}
TOWERS = ("optim.lr=3e-5", "optim.warmup=0.1")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Tokens and pixels of the same scenes: quadruplets, and for what needs them plain ones of several captions; noun
    phrases; and three negatives of each caption beside the swap twin's, which is the grammar's own."""
    workspace = Workspace(tmp_path_factory.mktemp("home"))
    for split in ("train", "pretrain"):
        of = ("--data", "shapes", "--split", split, "--limit", GROUPS, "--work", workspace.path)
        for method, *own in (("swap", "--set", "tagger=own"), ("replace", "--set", "lexicon=own"), ("shuffle",)):
            code, *_ = run("negatives", "--method", method, *own, *of)
            assert code == 0
        named = [f"shapes-{split}-{method}" for method in ("swap", "replace", "shuffle")]
        api.extract(
            "shapes-vit", "shapes", [split], level=["tokens", "pixels"], negatives=named, phrases=True, limit=GROUPS,
            workspace=workspace,
        )  # fmt: skip
    api.extract_benchmark("shapes-vit", "shapes", Sources(split="in_domain", limit=1), workspace=workspace)
    return workspace


class Kept(Training):
    """A `Training` that a test finds again, with the state it began in."""

    found: list[Kept] = []  # noqa: RUF012 - cleared by each test

    def __init__(self, *given):
        super().__init__(*given)
        self.begun = {name: value.clone() for name, value in self.state_dict().items()}
        self.found.append(self)


def asked(home, name):
    """The settings of one epoch of a recipe."""
    config = load_recipe(name)
    settings = [*EVERYWHERE, *(TOWERS if tunes_towers(config.head["name"]) else ()), *SIZES.get(name, ())]
    pairs = len(read_pairs(home.pairs_path("shapes", load_recipe(name, settings).data.train)))
    assert pairs >= 2 * GROUPS
    return [*settings, f"optim.steps={pairs // BATCH}"]


def fit(home, name, run_name, **more):
    return api.fit(name, "shapes-vit", "shapes", settings=asked(home, name), name=run_name, workspace=home, **more)


def epoch_loss(home, config, model, state):
    """The mean loss of the epoch's batches at the trained weights of `state`. What is not trained stays as the run
    found it: a teacher, and thresholds that grow with the run would make losses of two times incomparable."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.load_state_dict({name: state[name] if name in trained else value for name, value in model.begun.items()})
    store = Store.open(home.find_store(resolve("shapes-vit", config.level)))
    table = PairTable.read(home.pairs_path("shapes", config.data.train), store, phrases=config.data.phrases != 0)
    steps = config.optim.steps
    sampler = Sampler(table, config.data, steps, config.seed)
    seen = [pair for step in range(steps) for pair in sampler.pairs(step)]
    assert len(seen) == len(set(seen)) == steps * BATCH
    features = open_table(store, table.image_keys, table.caption_keys, "cpu", model.scorer.needs, "ram", 2**30)
    model.eval()
    with torch.no_grad():
        losses = [model(sampler.draw(step).batch(features)) for step in range(steps)]
    return float(torch.stack(losses).double().mean())


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"], line["rate"]) for line in lines if "loss" in line]


@pytest.mark.parametrize("name", registry.names("recipes"))
def test_an_epoch(name, home, monkeypatch):
    """It runs, its loss falls, cut off it comes to the same bits, and what it made is scored."""
    monkeypatch.setenv("COMPAL_HOME", str(home.path))
    monkeypatch.setattr(fitting, "Training", Kept)
    Kept.found.clear()
    config = load_recipe(name, asked(home, name))
    whole = fit(home, name, name)
    (model,) = Kept.found
    ended = {key: value.clone() for key, value in model.state_dict().items()}
    before, after = (epoch_loss(home, config, model, state) for state in (model.begun, ended))
    assert after < 0.998 * before  # rounding moves it by millionths

    follow = Training.follow
    taken = []

    def stop(self):
        follow(self)
        taken.append(1)
        if len(taken) == CUT:
            raise KeyboardInterrupt

    monkeypatch.setattr(Training, "follow", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(home, name, f"{name}-cut")
    monkeypatch.setattr(Training, "follow", follow)
    cut = fit(home, name, f"{name}-cut", resume=True)
    assert losses(cut.run_dir) == losses(whole.run_dir)
    assert [step for step, *_ in losses(cut.run_dir)] == list(range(1, config.optim.steps + 1))
    for file in ("last", "state"):
        one, other = (load_file(each.run_dir / "checkpoints" / f"{file}.safetensors") for each in (whole, cut))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), file

    if tunes_towers(config.head["name"]):
        means, label = ("--backbone", f"run:{name}", "--level", "pooled", "--head", "cosine", "--extract"), "cosine"
    else:
        means, label = ("--backbone", "shapes-vit", "--run", name), name
    code, out, _ = run("eval", "shapes", *means, *JUDGED, "--json", "--work", home.path)
    assert code == 0
    rows = {row["label"]: row for row in json.loads(out)["results"]}
    assert rows[label]["overall"]["n"] == rows["chance"]["overall"]["n"] == 5
    assert rows[label]["overall"]["metrics"]["group"]["value"] is not None
