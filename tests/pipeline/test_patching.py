"""Towers between two backbones: the ends are the files they were, the middle is by hand, and it is extracted."""

from __future__ import annotations

import dataclasses
import json

import pytest
import safetensors.torch
import torch

from compal import api, sweep
from compal.errors import InputError, SpecMismatch
from compal.pipeline import patching, tuned
from compal.pipeline.encoder import load_encoder, resolve
from compal.pipeline.patching import tower_ends
from compal.workspace import Workspace

CAPTIONS = ["a red cube left of a blue ball", "a ball"]


def perturbed(name="shapes-vit", seed=0):
    """The encoder of a backbone with every weight moved a little."""
    encoder = load_encoder(resolve(name))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            parameter += 0.1 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)
    return encoder


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A workspace with towers `one` and `two`, tuned from shapes-vit."""
    workspace = Workspace(tmp_path_factory.mktemp("work"))
    for seed, name in enumerate(("one", "two")):
        encoder = perturbed(seed=seed)
        tuned.save_towers(workspace.runs / name / "towers", encoder, encoder.spec, {"command": "perturbed"})
    return workspace


def weights(work, name):
    return safetensors.torch.load_file(work.runs / name / "towers" / "model.safetensors")


def test_the_ends_are_the_ends_bit_for_bit(work):
    api.patch("init", "run:one", "0,1", workspace=work)
    found = [(work.runs / name / "towers/model.safetensors").read_bytes() for name in ("one-patch-1", "one")]
    assert found[0] == found[1]
    base = load_encoder(resolve("shapes-vit")).model.state_dict()
    made = weights(work, "one-patch-0")
    assert made.keys() == base.keys()
    for name, tensor in base.items():
        assert torch.equal(made[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


def test_the_middle_is_the_mean_of_every_tensor(work):
    api.patch("shapes-vit", "run:one", 0.5, workspace=work, name="middle")
    base = load_encoder(resolve("shapes-vit")).model.state_dict()
    one, made = weights(work, "one"), weights(work, "middle")
    assert "logit_scale" in made
    for name, tensor in made.items():
        assert torch.equal(tensor, ((base[name].double() + one[name].double()) / 2).to(tensor.dtype)), name
    assert made["logit_scale"] != base["logit_scale"]


def test_between_two_runs_of_one_base(work):
    api.patch("run:one", "two", 0.25, workspace=work, name="quarter")
    one, two, made = (weights(work, name) for name in ("one", "two", "quarter"))
    for name, tensor in made.items():
        assert torch.equal(tensor, (0.75 * one[name].double() + 0.25 * two[name].double()).to(tensor.dtype)), name


def test_it_is_a_backbone_that_says_what_it_came_from(work):
    (run,), _ = api.patch("init", "run:one", 0.6, workspace=work)
    assert run.path == work.runs / "one-patch-0.6"
    (summary,) = api.extract("run:one-patch-0.6", "shapes", ["test"], level="pooled", limit=2, workspace=work)
    assert summary.images
    with work.used():
        spec = resolve("run:one-patch-0.6")
        assert spec.extra["base"] == f"shapes-vit {resolve('shapes-vit').weights}"
        assert torch.isfinite(load_encoder(spec).encode_texts(CAPTIONS).pooled).all()
    told = json.loads((run.path / "provenance.json").read_text())
    assert (told["patch"]["alpha"], told["patch"]["base"]["name"]) == (0.6, "shapes-vit")
    assert told["patch"]["tuned"]["name"] == "run:one"
    assert tuned.read(run.path / "towers").provenance["patch"] == told["patch"]


@pytest.mark.usefixtures("small")
def test_two_checkpoints_of_one_open_clip_model(work, tmp_path):
    """Published weights against what was tuned from them elsewhere."""
    from compal.pipeline.backbones import open_clip

    names = []
    for seed in range(2):
        state = perturbed("open_clip:small", seed).model.state_dict()
        safetensors.torch.save_file(state, tmp_path / f"{seed}.safetensors")
        names.append(f"open_clip:small/{tmp_path / f'{seed}.safetensors'}")
    assert open_clip.spec(names[0].partition(":")[2])
    api.patch(*names, 0.5, workspace=work, name="small-middle")
    made, (one, two) = weights(work, "small-middle"), tower_ends(*names).states()
    for name, tensor in made.items():
        assert torch.equal(tensor, ((one[name].double() + two[name].double()) / 2).to(tensor.dtype)), name


@pytest.mark.parametrize(
    ("base", "tuned_", "error", "says"),
    [
        ("random", "run:one", SpecMismatch, "random:.* and run:one differ in"),
        ("init", "shapes-vit", InputError, "does not say what it was tuned from"),
        ("random", "random", InputError, "has no towers to patch"),
        ("shipped:tflocal", "run:one", InputError, "run:one names towers and shipped:tflocal a head"),
        ("run:one", "shipped:tflocal", InputError, "run:one names towers and shipped:tflocal a head"),
    ],
)
def test_ends_that_do_not_belong_together(work, base, tuned_, error, says):
    with pytest.raises(error, match=says) as found:
        sweep.open_sweep(base, tuned_, 0.5, workspace=work)
    assert "\n" not in str(found.value)


def test_a_base_that_is_no_longer_what_was_tuned(work, monkeypatch):
    with work.used():
        after, base = resolve("run:one"), resolve("shapes-vit")
        after = dataclasses.replace(after, extra={**after.extra, "base": "shapes-vit " + "0" * 64})
        monkeypatch.setattr(patching, "resolve", {"shapes-vit": base, "run:one": after}.__getitem__)
        with pytest.raises(SpecMismatch, match="weights of shapes-vit changed since run:one was tuned"):
            tower_ends(None, "run:one")
