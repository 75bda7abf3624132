"""Towers tuned from a store of pixels: a run, a backbone, features of it, a score. The whole way, as a user goes it."""

from __future__ import annotations

import json

import pytest
import torch

from compal import api
from compal.errors import InputError, UsageError
from compal.eval.sources import Sources
from compal.pipeline.encoder import load_encoder, resolve
from compal.stores.store import Store
from compal.workspace import Workspace

QUICK = (
    "data.batch_size=8",
    "data.negatives=-1",
    "data.validation=",
    "validation.every=2",
    "log_every=1",
    "deterministic=true",
    "optim.lr=1e-4",
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    found = Workspace(tmp_path_factory.mktemp("work"))
    api.extract("shapes-vit", "shapes", splits=["train"], level=["pixels", "block:-1"], limit=24, workspace=found)
    return found


def fit(workspace, recipe, name, *settings, steps=4, **more):
    asked = [*QUICK, f"optim.steps={steps}", *settings]
    return api.fit(recipe, "shapes-vit", "shapes", settings=asked, name=name, workspace=workspace, **more)


def losses(workspace, name):
    lines = (workspace.runs / name / "metrics.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


def test_what_was_tuned_is_a_backbone(workspace, monkeypatch):
    monkeypatch.setenv("COMPAL_HOME", str(workspace.path))
    run = fit(workspace, "finetune", "tuned")
    base, tuned = load_encoder(resolve("shapes-vit")), load_encoder(resolve("run:tuned"))
    before, after = base.model.state_dict(), tuned.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "visual.conv1.weight" in moved
    assert "token_embedding.weight" in moved
    about = json.loads((workspace.runs / "tuned" / "towers" / "base.json").read_text())
    assert about["provenance"]["run"] == "tuned"
    rows = api.evaluate(
        "shapes",
        heads=["cosine"],
        backbone="run:tuned",
        level="pooled",
        sources=Sources(split="in_domain", limit=2),
        extract_missing=True,
        workspace=workspace,
    )
    assert "cosine" in [row.label for row in rows]
    with pytest.raises(InputError, match="--backbone run:ID"):
        api.scorers(Store.open(next(workspace.stores.glob("shapes-vit-pixels-*"))), [], ["tuned"], workspace, "cpu")
    assert run.parameters == sum(p.numel() for p in tuned.model.parameters()) - 1  # CLIP's own scale is not used


@pytest.mark.parametrize("recipe", ["negclip", "degla", "ce-clip", "fsc-clip"])
def test_every_objective_reaches_the_towers(workspace, recipe):
    fit(workspace, recipe, f"one-{recipe}", steps=3)
    found = losses(workspace, f"one-{recipe}")
    assert len(found) == 3
    assert len(set(found)) == 3


@pytest.mark.parametrize(("recipe", "level"), [("c2lip", "pixels"), ("linear-npc", "pooled")])
def test_noun_phrases_reach_the_weights(workspace, recipe, level):
    extracted = {"splits": ["train"], "level": level, "limit": 24, "workspace": workspace}
    api.extract("shapes-vit", "shapes", **extracted)
    with pytest.raises(InputError, match=r"lacks \d+ of the \d+ noun phrases .*--phrases"):
        fit(workspace, recipe, f"{recipe}-early", f"level={level}")
    api.extract("shapes-vit", "shapes", phrases=True, **extracted)
    for duplicates in ("merge", "as_published"):
        asked = [f"level={level}", f"loss.duplicates={duplicates}", "data.batch_size=48"]
        fit(workspace, recipe, f"{recipe}-{duplicates}", *asked, steps=2)
    merged, published = (losses(workspace, f"{recipe}-{duplicates}") for duplicates in ("merge", "as_published"))
    assert len(merged) == len(published) == 2
    assert merged[0] != published[0]
    with pytest.raises(UsageError, match=r"data\.phrases"):
        fit(workspace, recipe, f"{recipe}-none", f"level={level}", "data.phrases=0")


@pytest.mark.parametrize("recipe", ["negclip", "degla", "fsc-clip"])
def test_two_passes_give_the_losses_of_one(workspace, recipe):
    for name, settings in (("once", []), ("twice", ["optim.chunk=3"])):
        fit(workspace, recipe, f"{recipe}-{name}", *settings)
    assert losses(workspace, f"{recipe}-twice") == pytest.approx(losses(workspace, f"{recipe}-once"), rel=2e-5)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(workspace, monkeypatch):
    """Weights of both towers, the teacher's, and the thresholds that CE-CLIP's loss keeps."""
    from compal.align.training import Training

    plain = Training.follow
    for recipe in ("degla", "ce-clip"):
        fit(workspace, recipe, f"{recipe}-whole")
        seen = []

        def stop(self, seen=seen):
            plain(self)
            seen.append(1)
            if len(seen) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(Training, "follow", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(workspace, recipe, f"{recipe}-cut")
        monkeypatch.setattr(Training, "follow", plain)
        fit(workspace, recipe, f"{recipe}-cut", resume=True)
        assert losses(workspace, f"{recipe}-cut")[-2:] == losses(workspace, f"{recipe}-whole")[-2:]


def test_the_last_block_alone(workspace, monkeypatch):
    monkeypatch.setenv("COMPAL_HOME", str(workspace.path))
    fit(workspace, "finetune", "last", "level=block:-1")
    before, after = (load_encoder(resolve(name)).model.state_dict() for name in ("shapes-vit", "run:last"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("visual.transformer.resblocks.2.") for name in moved)
    assert not any(".resblocks.0." in name or ".resblocks.1." in name for name in moved)
    assert "visual.conv1.weight" not in moved


def test_frozen_tokens_have_no_towers_above(workspace):
    api.extract("shapes-vit", "shapes", splits=["train"], limit=24, workspace=workspace)
    with pytest.raises(InputError, match=r"no tower can be tuned above the level tokens.*--level pixels"):
        fit(workspace, "finetune", "wrong", "level=tokens")


def test_low_rank_additions_are_added_up(workspace, monkeypatch):
    """The base's weights are frozen, the additions trained and resumed; what is saved is a plain model."""
    monkeypatch.setenv("COMPAL_HOME", str(workspace.path))
    run = fit(workspace, "fsc-clip", "low", "head.lora=2", "optim.lr=1e-2")
    base, tuned = load_encoder(resolve("shapes-vit")), load_encoder(resolve("run:low"))
    whole = sum(parameter.numel() for parameter in base.model.parameters())
    assert run.parameters < whole / 10
    before, after = base.model.state_dict(), tuned.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ("in_proj", "out_proj", "c_fc", "c_proj")
    assert moved == {name for name in before if name.endswith("weight") and any(part in name for part in parts)}
    for name in moved:
        assert torch.linalg.matrix_rank((after[name] - before[name]).double(), rtol=1e-4) <= 2
    fit(workspace, "fsc-clip", "low-again", "head.lora=2", "optim.lr=1e-2", "init=" + str(run.checkpoint), steps=1)


def test_without_peft_it_says_how_to_get_it(workspace, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install 'compal\[lora\]'"):
        fit(workspace, "finetune", "no-peft", "head.lora=4")
