"""A faster encoder gives the same features up to rounding."""

import families
import pytest
import torch
from families import apart, pictures, token_ids

from compal.errors import InputError
from compal.pipeline import optimise as module
from compal.pipeline.optimise import optimise
from compal.pipeline.tokenizers import frame


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory):
    families.register(tmp_path_factory.mktemp("configurations"))


@pytest.fixture(autouse=True)
def forgotten():
    """Compiled code and its warnings stay inside a test."""
    yield
    torch.compiler.reset()


def features(encoder, levels=("tokens",)):
    images = encoder.images_at(pictures(encoder), levels)
    texts = encoder.texts_at(frame(*token_ids(encoder)), levels)
    return [
        values
        for level in levels
        for values in (images[level].tokens, images[level].pooled, *texts[level].tokens, texts[level].pooled)
    ]


@pytest.mark.parametrize("name", ["ConvNeXt", "MobileCLIP-S", "CLIP ResNet", "CLIP ViT"])
def test_channels_last_changes_rounding_alone(name):
    encoder = families.build(name)
    before = features(encoder)
    assert optimise(encoder, channels_last=True) is encoder
    convolutions = [part for part in encoder.model.visual.modules() if isinstance(part, torch.nn.Conv2d)]
    assert all(part.weight.is_contiguous(memory_format=torch.channels_last) for part in convolutions)
    assert all(apart(one, other) <= 1e-5 for one, other in zip(features(encoder), before, strict=True))
    encoder.check()


SLOW = ("EVA02", "CoCa", "ConvNeXt", "RoBERTa texts")


@pytest.mark.parametrize("name", ["CLIP ViT", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_compiled_towers_give_the_same(name):
    """With the backend that traces and runs: what inductor makes of the trace is torch's own matter."""
    encoder = families.build(name)
    before = features(encoder)
    optimise(encoder, compile=True, backend="eager")
    torch._dynamo.utils.counters.clear()
    assert all(apart(one, other) <= 1e-5 for one, other in zip(features(encoder), before, strict=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"


def test_a_machine_without_a_compiler_is_told_before_the_first_batch(monkeypatch):
    encoder = families.build("CLIP ViT")
    monkeypatch.setattr(module, "_compiler", lambda: None)
    with pytest.raises(InputError, match=r"no C\+\+ compiler.*leave --compile out"):
        encoder.optimise(compile=True)
    encoder.optimise()
