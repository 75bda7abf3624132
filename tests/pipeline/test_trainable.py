"""Towers above a cut: what they give is what the encoder gives, gradients reach what lies above and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch

from compal.errors import InputError
from compal.pipeline import trainable
from compal.pipeline.encoder import load_encoder, resolve

CAPTIONS = ["a large red star left of a small blue ring", "a ring", "two green disks and a star"]
CUTS = pytest.mark.parametrize(
    ("backbone", "level"),
    [
        ("shapes-vit", "pixels"),
        ("shapes-vit", "block:-1"),
        ("shapes-vit", "block:-2"),
        ("open_clip:small/random", "pixels"),
        ("open_clip:small/random", "block:-1"),
    ],
)


def rows_of(encoder):
    """What a store of the encoder's level gives of four pictures and the captions, as a batch holds it."""
    made = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, *encoder.images.image_size), generator=made, dtype=torch.uint8)
    images, texts = encoder.encode_images(pixels), encoder.encode_texts(CAPTIONS)
    mask = torch.arange(max(map(len, texts.tokens))) < torch.tensor([[len(rows)] for rows in texts.tokens])
    padded = torch.nn.utils.rnn.pad_sequence(texts.tokens, batch_first=True).float()
    pooled = encoder.pool_images(images.tokens), encoder.pool_texts(texts.tokens, texts.pool_index)
    return images.tokens.float(), padded, mask, pooled


@CUTS
def test_they_give_what_the_encoder_gives(small, backbone, level):
    spec = resolve(backbone, level)
    encoder, towers = load_encoder(spec), trainable.open_towers(spec)
    images, texts, mask, (image, text) = rows_of(encoder)
    with torch.no_grad():
        states, ours = towers.image_features(images)
        words, real, theirs = towers.text_features(texts, mask)
    torch.testing.assert_close(ours, image, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs, text, rtol=1e-5, atol=1e-5)
    last = load_encoder(resolve(backbone)).encode_texts(CAPTIONS)
    assert real.sum(1).tolist() == [len(rows) for rows in last.tokens]
    for row, kept, expected in zip(words, real, last.tokens, strict=True):
        torch.testing.assert_close(row[kept], expected, rtol=1e-5, atol=1e-5)
    assert states.shape[:2] == (4, resolve(backbone).image_shape[0])


@CUTS
def test_gradients_reach_what_lies_above_the_cut(small, backbone, level):
    spec = resolve(backbone, level)
    towers = trainable.open_towers(spec)
    images, texts, mask, _ = rows_of(load_encoder(spec))
    total = towers.image_features(images)[1].square().sum() + towers.text_features(texts, mask)[2].square().sum()
    total.backward()
    names = {name for name, parameter in towers.model.named_parameters() if parameter.requires_grad}
    assert names == {name for name, parameter in towers.model.named_parameters() if parameter.grad is not None}
    assert "logit_scale" not in names
    whole = "token_embedding.weight" in names and "visual.conv1.weight" in names
    assert whole == (level == "pixels")
    layers = len(towers.model.transformer.resblocks)
    trained = [any(f"resblocks.{n}." in name and "visual" not in name for name in names) for n in range(layers)]
    depth = layers if level == "pixels" else int(level.partition("-")[2])
    assert trained == [n >= layers - depth for n in range(layers)]


@CUTS
def test_a_token_is_pooled_as_if_it_were_alone(small, backbone, level):
    towers = trainable.open_towers(resolve(backbone, level))
    images, texts, mask, _ = rows_of(load_encoder(resolve(backbone, level)))
    with torch.no_grad():
        states, _ = towers.image_features(images)
        words, _, _ = towers.text_features(texts, mask)
        patches, tokens = towers.image_tokens(states), towers.text_tokens(words)
        visual, model = towers.model.visual, towers.model
        torch.testing.assert_close(patches, states[:, 1:] @ visual.proj, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tokens, words @ model.text_projection, rtol=1e-5, atol=1e-5)


def test_saved_they_are_a_backbone(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPAL_HOME", str(tmp_path))
    spec = resolve("shapes-vit", "pixels")
    towers = trainable.open_towers(spec)
    images, _, _, (before, _) = rows_of(load_encoder(spec))
    with torch.no_grad():
        for parameter in towers.model.parameters():
            parameter.mul_(1.05)
        expected = towers.image_features(images)[1]
    folder = tmp_path / "runs" / "tuned" / "towers"
    trainable.save_tuned(folder, spec, towers.model.state_dict(), {"command": "compal fit finetune"})
    again = load_encoder(resolve("run:tuned", "pixels"))
    found = again.pool_images(images.to(torch.uint8))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, before)
    with pytest.raises(InputError, match="do not fit shapes-vit"):
        trainable.save_tuned(tmp_path / "other", spec, {"proj": torch.zeros(2)}, {"command": ""})


def test_a_copy_learns_alone():
    """The teacher is a copy: moving one must not move the other."""
    towers = trainable.open_towers(resolve("shapes-vit", "pixels"))
    other = copy.deepcopy(towers)
    images, _, _, _ = rows_of(load_encoder(resolve("shapes-vit", "pixels")))
    with torch.no_grad():
        before = other.image_features(images)[1]
        for parameter in towers.model.parameters():
            parameter.zero_()
        assert torch.equal(other.image_features(images)[1], before)


@pytest.mark.parametrize("level", ["tokens", "pooled"])
def test_other_levels_have_no_towers_above_them(level):
    with pytest.raises(InputError, match=rf"no tower can be tuned above the level {level}.*--level pixels"):
        trainable.open_towers(resolve("shapes-vit", level))


def test_a_backbone_without_towers_is_refused():
    with pytest.raises(InputError, match=r"has no towers to tune|no level"):
        trainable.open_towers(resolve("random", "pixels"))


def test_they_stay_in_evaluation():
    """Dropout and running statistics are the encoder's business, also after a validation."""
    towers = trainable.open_towers(resolve("shapes-vit", "pixels"))
    towers.train()
    assert not any(module.training for module in towers.modules())


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_side_is_frozen_by_what_reaches_it(side):
    towers = trainable.open_towers(resolve("shapes-vit", "pixels"))
    towers.freeze(side)
    trained = {name.startswith("visual.") for name, one in towers.model.named_parameters() if one.requires_grad}
    assert trained == {side == "text"}


def test_towers_that_cannot_show_tokens_say_so(small, monkeypatch):
    """Those that attend to padding keep it in their stores; those that average without a CLS pool no patch alone."""
    towers = trainable.open_towers(resolve("shapes-vit", "pixels"))
    monkeypatch.setattr(towers.encoder.texts, "attends", True)
    assert towers.text_tokens(torch.zeros(1, 3, 96)) is None
    towers.check_local()
    monkeypatch.setattr(towers.encoder.images, "pool", lambda states: states[:, 1:].mean(1))
    with pytest.raises(InputError, match=r"pools no patch alone.*head\.local = false"):
        towers.check_local()
