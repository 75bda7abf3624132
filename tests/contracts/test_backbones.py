"""What every backbone promises, over all that exist."""

import json

import hub_models
import numpy as np
import parts
import pytest
import torch
from PIL import Image

from compal import registry
from compal.errors import CompalError
from compal.pipeline import tuned
from compal.pipeline.backbones import _open_clip_weights
from compal.pipeline.encoder import Levelled, load_encoder, resolve
from compal.stores.spec import FeatureSpec

KNOWN = {
    "clip", "clip-l14", "hf", "open_clip", "pe", "pe-l14", "random", "run", "shapes-vit", "siglip2", "siglip2-giant",
    "siglip2-so400m",
}  # fmt: skip
# The argument with which a backbone needs no download; aliases of hub weights have none.
ARGUMENTS = {"open_clip": ":ViT-S-32-alt", "random": "", "shapes-vit": ""}


def tuned_towers(folder):
    base = load_encoder(resolve("shapes-vit"))
    tuned.save_towers(folder, base, base.spec, {"command": "compal tune"})


# Backbones that are named by a folder, and what makes one.
FOLDERS = {"hf": lambda folder: hub_models.save("clip", folder, context=48), "run": tuned_towers}
CAPTIONS = ["a red cube left of a blue ball.", "two dogs", "dogs two", "a " * 120]

# Aliases of weights on the hub: offline only their error can be tried.
HUB = KNOWN - set(ARGUMENTS) - set(FOLDERS)
# What a backbone may have beside its last states. Those that it lacks, its error leaves out.
LEVELS = ("tokens", "block:-1", "block:-2", "pixels")
backbones = pytest.mark.parametrize("name", [name for name in parts.names("backbones") if name not in HUB])


def test_the_known_backbones_were_collected():
    assert set(registry.names("backbones")) >= KNOWN


@pytest.fixture(scope="module")
def encoders():
    return {}


@pytest.fixture
def encoder(name, encoders, tmp_path_factory):
    """The backbone, loaded once for the module."""
    if name not in encoders:
        argument = ARGUMENTS.get(name, "")
        if name in FOLDERS:
            folder = tmp_path_factory.mktemp("backbones") / name
            FOLDERS[name](folder)
            argument = f":{folder}"
        encoders[name] = load_encoder(resolve(name + argument, dtype="float32"))
    return encoders[name]


def images(count=3):
    random = np.random.RandomState(0)
    return [Image.fromarray(random.randint(0, 256, (40 + 9 * index, 60, 3), dtype=np.uint8)) for index in range(count)]


def test_aliases_without_their_weights_say_so_in_one_line(monkeypatch):
    monkeypatch.setattr(_open_clip_weights, "_local_copy", lambda config: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in sorted(HUB):
        with pytest.raises(CompalError) as found:
            resolve(name)
        assert "\n" not in str(found.value)
        assert found.value.cure


@pytest.mark.parametrize("name", parts.names("backbones"))
def test_the_summary_is_one_plain_line(name):
    summary = parts.summary("backbones", name)
    assert 20 < len(summary) <= 120
    assert "\n" not in summary


@backbones
def test_the_spec_is_reproducible_and_names_what_loads_it(encoder):
    spec = encoder.spec
    assert resolve(spec.backbone, dtype="float32") == spec
    assert registry.load("backbones", registry.split_argument(spec.backbone)[0]).load
    assert spec.weights
    assert FeatureSpec.from_json(json.loads(spec.to_json())) == spec


@backbones
@torch.no_grad()
def test_features_are_what_the_spec_says(encoder):
    spec = encoder.spec
    pixels = torch.stack([encoder.preprocess(image) for image in images()])
    assert pixels.dtype == torch.uint8
    features = encoder.encode_images(pixels)
    assert tuple(features.tokens.shape) == (3, *spec.image_shape)
    assert tuple(features.pooled.shape) == (3, spec.pooled_dim)
    assert spec.image_shape[0] == spec.image_prefix + spec.image_grid[0] * spec.image_grid[1]
    texts = encoder.encode_texts(CAPTIONS)
    assert tuple(texts.pooled.shape) == (len(CAPTIONS), spec.pooled_dim)
    assert texts.truncated == [False, False, False, True]
    for caption, tokens, spans, pooled in zip(CAPTIONS, texts.tokens, texts.spans, texts.pool_index, strict=True):
        assert tuple(tokens.shape) == (len(spans), spec.text_dim)
        assert len(tokens) <= spec.context_length + 1
        assert -1 <= pooled < len(tokens)
        assert all(span == (-1, -1) or 0 <= span[0] < span[1] <= len(caption) for span in spans)
    assert all(
        torch.isfinite(values).all() for values in (features.tokens, features.pooled, texts.pooled, *texts.tokens)
    )


@backbones
@torch.no_grad()
def test_pooling_cached_tokens_gives_the_pooled_embedding(encoder):
    features = encoder.encode_images(torch.stack([encoder.preprocess(image) for image in images()]))
    texts = encoder.encode_texts(CAPTIONS)
    cached = [torch.from_numpy(tokens.numpy().copy()) for tokens in texts.tokens]
    torch.testing.assert_close(encoder.pool_images(features.tokens.clone()), features.pooled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder.pool_texts(cached, texts.pool_index), texts.pooled, atol=1e-5, rtol=1e-5)


@backbones
@torch.no_grad()
def test_features_do_not_depend_on_the_batch(encoder):
    pixels = torch.stack([encoder.preprocess(image) for image in images()])
    together, backwards = encoder.encode_images(pixels), encoder.encode_images(pixels.flip(0))
    texts, reversed_texts = encoder.encode_texts(CAPTIONS), encoder.encode_texts(CAPTIONS[::-1])
    torch.testing.assert_close(backwards.pooled.flip(0), together.pooled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reversed_texts.pooled.flip(0), texts.pooled, atol=1e-5, rtol=1e-5)
    for row in range(3):
        alone, text = encoder.encode_images(pixels[row : row + 1]), encoder.encode_texts([CAPTIONS[row]])
        torch.testing.assert_close(alone.tokens[0], together.tokens[row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(text.tokens[0], texts.tokens[row], atol=1e-5, rtol=1e-5)
        assert text.spans[0] == texts.spans[row]


@backbones
def test_different_content_gives_different_features(encoder):
    pixels = torch.stack([encoder.preprocess(image) for image in images(2)])
    one, two = encoder.encode_images(pixels).pooled
    assert not torch.equal(one, two)
    one, two = encoder.encode_texts(["two dogs", "dogs two"]).pooled
    assert not torch.equal(one, two)


@backbones
def test_other_levels_keep_no_tokens(encoder):
    spec = resolve(encoder.spec.backbone, level="pooled")
    assert (spec.level, spec.image_shape, spec.text_dim) == ("pooled", (0, 0), 0)
    assert spec.pooled_dim == encoder.spec.pooled_dim
    assert spec.fingerprint != encoder.spec.fingerprint


def at(encoder, level, encoders):
    """The backbone at another level, loaded once for the module."""
    key = (encoder.spec.backbone, level)
    if key not in encoders:
        encoders[key] = load_encoder(resolve(*key, "float32"))
    return encoders[key]


def claimed(spec):
    """The levels that keep tokens and that the backbone says it has. A refusal names those it has."""
    found, refusals = [], []
    for level in LEVELS:
        try:
            resolve(spec.backbone, level, "float32")
            found.append(level)
        except CompalError as error:
            refusals.append((level, error))
    for level, error in refusals:
        assert f"has no level '{level}'" in str(error)
        assert level not in error.cure
        assert "pooled, tokens" in error.cure
    assert "tokens" in found
    return found


@backbones
@torch.no_grad()
def test_pooled_from_every_claimed_level_is_the_towers_own(encoder, encoders):
    """What a store of the level keeps gives the pooled embedding that a store of pooled ones keeps."""
    pixels = torch.stack([encoder.preprocess(image) for image in images()])
    pooled, texts = encoder.encode_images(pixels).pooled, encoder.encode_texts(CAPTIONS)
    for level in claimed(encoder.spec):
        other = at(encoder, level, encoders)
        spec = other.spec
        features, rows = other.encode_images(pixels), other.encode_texts(CAPTIONS)
        assert tuple(features.tokens.shape) == (3, *spec.image_shape), level
        assert {row.shape[1] for row in rows.tokens} == {spec.text_dim}, level
        assert [len(spans) for spans in rows.spans] == [len(row) for row in rows.tokens]
        assert all(-1 <= index < len(row) for index, row in zip(rows.pool_index, rows.tokens, strict=True))
        assert rows.truncated == texts.truncated
        if level == "pixels":
            assert (spec.dtype, spec.pooled_dim, spec.layer) == ("uint8", 0, "input")
            assert features.tokens.dtype == rows.tokens[0].dtype == torch.uint8
            assert features.pooled is rows.pooled is None
        else:
            torch.testing.assert_close(features.pooled, pooled, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(rows.pooled, texts.pooled, atol=1e-5, rtol=1e-5)
        again = other.pool_images(features.tokens.clone())
        torch.testing.assert_close(again, pooled, atol=1e-5, rtol=1e-4)
        again = other.pool_texts([row.clone() for row in rows.tokens], rows.pool_index)
        torch.testing.assert_close(again, texts.pooled, atol=1e-5, rtol=1e-4)


@backbones
@torch.no_grad()
def test_several_levels_of_one_pass_are_those_of_each_alone(encoder, encoders):
    if not isinstance(encoder, Levelled):
        return  # a backbone may leave it to be asked level by level
    pixels, levels = torch.stack([encoder.preprocess(image) for image in images()]), claimed(encoder.spec)
    found, read = encoder.images_at(pixels, levels), encoder.texts_at(encoder.tokenize(CAPTIONS), levels)
    assert set(found) == set(read) == set(levels)
    for level in levels:
        alone = at(encoder, level, encoders)
        torch.testing.assert_close(found[level].tokens, alone.encode_images(pixels).tokens, atol=1e-5, rtol=1e-5)
        one, other = read[level], alone.encode_texts(CAPTIONS)
        assert (one.spans, one.pool_index, one.truncated) == (other.spans, other.pool_index, other.truncated)
        for rows, own in zip(one.tokens, other.tokens, strict=True):
            torch.testing.assert_close(rows, own, atol=1e-5, rtol=1e-5)


@backbones
def test_levels_and_precisions_are_part_of_the_spec(encoder):
    specs = [resolve(encoder.spec.backbone, level, "float32") for level in ("pooled", *claimed(encoder.spec))]
    specs.append(resolve(encoder.spec.backbone, "pooled", "float32", "bfloat16"))
    assert len({spec.fingerprint for spec in specs}) == len(specs)
    assert all(FeatureSpec.from_json(json.loads(spec.to_json())) == spec for spec in specs)
