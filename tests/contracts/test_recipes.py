"""Every shipped recipe loads, is complete, builds its head and takes a step."""

from __future__ import annotations

import dataclasses
import re

import parts
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from compal import registry
from compal.align.batches import Batch
from compal.align.fit import FitConfig, Training, load_recipe
from compal.align.scorer import Dims, build_head
from compal.config import from_dict, to_dict
from compal.errors import UnknownName
from compal.pipeline.encoder import load_encoder, resolve
from compal.pipeline.trainable import open_towers

RECIPES = registry.names("recipes")
every_recipe = pytest.mark.parametrize("name", parts.names("recipes"))
CLIP = Dims(image_dim=768, text_dim=512, pooled_dim=512, image_tokens=50, context_length=77)


def test_every_file_is_collected():
    assert {"linear", "tfglobal", "tflocal"} <= set(RECIPES)
    assert len(RECIPES) == len(list((registry.ROOT / "align" / "recipes").rglob("*.toml")))


@pytest.mark.parametrize("name", RECIPES)
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


@pytest.fixture(scope="module")
def pixels():
    """CLIP ViT-B/32 at random initialisation, and two pictures and five captions as its store of pixels holds them."""
    spec = resolve("open_clip:ViT-B-32-quickgelu", "pixels")
    encoder, made = load_encoder(spec), torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (2, 3, 224, 224), generator=made, dtype=torch.uint8)
    texts = encoder.encode_texts(["a cat on a mat", "a dog", "a mat on a cat", "a cat", "a mat"]).tokens
    mask = torch.arange(max(map(len, texts))) < torch.tensor([[len(rows)] for rows in texts])
    return spec, encoder.encode_images(pictures).tokens.float(), pad_sequence(texts, batch_first=True).float(), mask


def a_batch(config, pixels):
    """Two pairs that form a swap group, a hard negative each. Where the recipe draws noun phrases, the first pair has
    two, one of them the other's negative, and the second caption is its own. Where it draws further captions, the first
    pair has one."""
    captions = 5 if config.data.phrases or config.data.further else 4
    images, texts = torch.randn(2, 50, 768), torch.randn(captions, 9, 512)
    text_mask = torch.ones(captions, 9, dtype=torch.bool)
    if config.level == "pixels":
        _, images, texts, text_mask = pixels
    positives = torch.eye(2, captions, dtype=torch.bool)
    if config.data.phrases:
        positives[0, 3:] = True
    if config.data.further:
        positives[0, 4] = True
    return Batch(
        images=images,
        image_mask=torch.ones(images.shape[:2], dtype=torch.bool),
        image_pooled=torch.randn(2, 512),
        texts=texts[:captions],
        text_mask=text_mask[:captions],
        text_pooled=torch.randn(captions, 512),
        positives=positives,
        groups=torch.tensor([[0, 1, 0, 1]]),
        pairs=torch.tensor([[0, 0], [1, 1]]),
        negatives=torch.tensor([[2], [3]]),
        phrases=torch.tensor([[3, 4], [1, -1]]) if config.data.phrases else None,
        further=torch.tensor([[4], [-1]]) if config.data.further else None,
        told=lambda columns: [f"caption {column}" for column in columns],
    )


@every_recipe
def test_recipe_takes_two_steps(name, pixels):
    """At CLIP ViT-B/32 sizes, random features, towers and decoders; the loss of the same batch falls."""
    torch.manual_seed(0)
    config = load_recipe(name)
    if "decoder" in config.loss:
        config = load_recipe(name, ["loss.decoder=random"])
    options = dict(config.head)
    towers = (lambda: open_towers(pixels[0])) if config.level == "pixels" else None
    dims = Dims.of(pixels[0]) if towers else CLIP
    model = Training(build_head(options.pop("name"), options, dims, towers), config.loss, ema=config.ema)
    batch = a_batch(config, pixels)
    # AdamW's first step moves every weight by the rate, whatever its gradient: random towers bear a smaller one.
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6 if towers else 1e-4)
    before = {name: parameter.double().norm().item() for name, parameter in model.scorer.named_parameters()}
    losses = []
    for _ in range(2):
        loss = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.follow()
        losses.append(float(loss.detach()))
    after = {name: parameter.double().norm().item() for name, parameter in model.scorer.named_parameters()}
    assert before != after
    assert losses[1] < losses[0]
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
