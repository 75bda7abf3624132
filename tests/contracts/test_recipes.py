"""Every shipped recipe loads, is complete, builds its head and takes a step."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from compal import registry
from compal.align.batches import Batch
from compal.align.fit import FitConfig, Training, load_recipe
from compal.align.scorer import Dims, build_head
from compal.config import from_dict, to_dict
from compal.errors import UnknownName

RECIPES = registry.names("recipes")
every_recipe = pytest.mark.parametrize("name", RECIPES)
CLIP = Dims(image_dim=768, text_dim=512, pooled_dim=512, image_tokens=50, context_length=77)


def test_every_file_is_collected():
    assert {"linear", "tfglobal", "tflocal"} <= set(RECIPES)
    assert len(RECIPES) == len(list((registry.ROOT / "align" / "recipes").rglob("*.toml")))


@every_recipe
def test_the_comment_says_what_it_is(name):
    """First line: one sentence with the paper; then the command, the runtime and what to expect."""
    lines = registry.path("recipes", name).read_text(encoding="utf-8").splitlines()
    assert registry.summary("recipes", name).endswith(".")
    comments = "\n".join(line for line in lines[: lines.index("")])
    assert all(line.startswith("#") for line in comments.splitlines())
    assert f"# compal fit {name} " in comments
    assert re.search(r"^# Runtime", comments, re.MULTILINE)
    assert re.search(r"\bexpected\b|\bfigures\b", comments, re.IGNORECASE)


@every_recipe
def test_recipe_is_complete_and_survives_saving(name):
    config = load_recipe(name)
    assert set(dataclasses.asdict(config.complete())) == set(dataclasses.asdict(config))
    assert config.complete() == config
    assert from_dict(FitConfig, to_dict(config)) == config


@every_recipe
def test_unknown_settings_are_refused(name):
    with pytest.raises(UnknownName, match=r"Did you mean 'optim\.lr'"):
        load_recipe(name, ["optim.lrr=1"])
    with pytest.raises(UnknownName, match=r"head\.widht"):
        load_recipe(name, ["head.widht=1"])
    assert load_recipe(name, ["optim.lr=2e-5"]).optim.lr == 2e-5


@every_recipe
def test_recipe_takes_a_step(name):
    """At CLIP ViT-B/32 sizes, on two pairs that form a swap group."""
    torch.manual_seed(0)
    config = load_recipe(name)
    options = dict(config.head)
    model = Training(build_head(options.pop("name"), options, CLIP), config.loss)
    batch = Batch(
        images=torch.randn(2, 50, 768),
        image_mask=torch.ones(2, 50, dtype=torch.bool),
        image_pooled=torch.randn(2, 512),
        texts=torch.randn(2, 9, 512),
        text_mask=torch.ones(2, 9, dtype=torch.bool),
        text_pooled=torch.randn(2, 512),
        positives=torch.eye(2, dtype=torch.bool),
        groups=torch.tensor([[0, 1, 0, 1]]),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    loss = model(batch)
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert any(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_control_differs_from_tflocal_in_its_head_alone():
    tflocal, tfglobal = to_dict(load_recipe("tflocal")), to_dict(load_recipe("tfglobal"))
    head, control = tflocal.pop("head"), tfglobal.pop("head")
    assert tflocal == tfglobal
    del control["name"]
    assert control.items() <= head.items()


def test_tflocal_cross_differs_from_tflocal_in_its_interaction_alone():
    joint, cross = to_dict(load_recipe("tflocal")), to_dict(load_recipe("tflocal-cross"))
    assert (joint["head"].pop("interaction"), cross["head"].pop("interaction")) == ("joint", "cross")
    assert joint == cross
