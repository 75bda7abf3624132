"""A checkpoint is complete, whole or absent, and refuses other features."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from compal.align.batches import join
from compal.align.checkpoint import (
    fitted_spec,
    load_scorer,
    load_state,
    save_scorer,
    save_state,
    write_atomic,
)
from compal.align.scorer import Dims, build_head
from compal.errors import InputError, SpecMismatch

from .conftest import SPEC, image_keys, text_keys

HEADS = [
    ("cosine", {}),
    ("maxsim", {"direction": "both"}),
    ("linear", {"bias": True}),
    ("tfglobal", {"width": 16, "layers": 1, "heads": 2, "ffn": 16}),
    ("tflocal", {"width": 16, "layers": 1, "heads": 2, "ffn": 16, "residual": "cosine"}),
]


def build(name, options, seed=0):
    torch.manual_seed(seed)
    return build_head(name, options, Dims.of(SPEC)).eval()


@pytest.mark.parametrize(("name", "options"), HEADS)
def test_scorers_come_back_whole(store, tmp_path, name, options):
    scorer = build(name, options)
    save_scorer(tmp_path / "x.safetensors", scorer, SPEC)
    loaded = load_scorer(tmp_path / "x.safetensors", SPEC)
    assert (loaded.head, loaded.config, loaded.dims) == (scorer.head, scorer.config, scorer.dims)
    assert not loaded.training
    batch = join(store, image_keys(3), text_keys(4))
    assert torch.equal(loaded.score(batch), scorer.score(batch))
    assert fitted_spec(tmp_path / "x.safetensors") == SPEC


def test_another_backbone_is_refused_in_one_line(tmp_path):
    save_scorer(tmp_path / "x.safetensors", build("linear", {}), SPEC)
    other = dataclasses.replace(SPEC, backbone="siglip2", weights="1" * 64)
    with pytest.raises(SpecMismatch) as caught:
        load_scorer(tmp_path / "x.safetensors", other)
    message = str(caught.value)
    assert "\n" not in message
    assert "features of toy" in message
    assert "these are of siglip2" in message
    assert "differ in backbone, weights." in message
    assert "Extract with --backbone toy --level tokens" in message


def test_another_level_of_the_same_backbone_is_refused_too(tmp_path):
    save_scorer(tmp_path / "x.safetensors", build("linear", {}), SPEC)
    with pytest.raises(SpecMismatch, match=r"differ in dtype\."):
        load_scorer(tmp_path / "x.safetensors", SPEC.with_dtype("float32"))


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="no checkpoint"):
        load_scorer(path, SPEC)
    path.write_bytes(b"not tensors")
    with pytest.raises(InputError, match="no safetensors file"):
        load_scorer(path, SPEC)
    scorer = build("linear", {})
    save_scorer(path, scorer, SPEC)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged"):
        load_scorer(path, SPEC)
    save_state(path, scorer, torch.optim.AdamW(scorer.parameters()), {})
    with pytest.raises(InputError, match="no compal-scorer-1 file"):
        load_scorer(path, SPEC)


def test_states_restore_the_optimiser_exactly(tmp_path):
    def stepped(scorer, optimizer, times):
        for _ in range(times):
            optimizer.zero_grad()
            (scorer.map.weight * torch.rand(8, 8)).sum().backward()
            optimizer.step()
        return scorer.map.weight.detach().clone()

    scorer = build("linear", {})
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=0.1)
    stepped(scorer, optimizer, 3)
    mined = torch.arange(6, dtype=torch.int32).view(3, 2)
    save_state(tmp_path / "s.safetensors", scorer, optimizer, {"step": 3}, {"mined": mined})
    expected = stepped(scorer, optimizer, 2)
    fresh = build("linear", {}, seed=5)
    other = torch.optim.AdamW(fresh.parameters(), lr=0.1)
    facts, extra = load_state(tmp_path / "s.safetensors", fresh, other)
    assert facts == {"step": 3}
    assert extra.keys() == {"mined"}
    assert torch.equal(extra["mined"], mined)
    assert torch.equal(stepped(fresh, other, 2), expected)
    with pytest.raises(InputError, match="does not fit this run"):
        load_state(tmp_path / "s.safetensors", build("tfglobal", HEADS[3][1]), other)


def test_a_killed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomic(path, b"old")

    def killed(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(InputError, match=r"cannot write.*No space left.*Free space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
