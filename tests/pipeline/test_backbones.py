"""Names to specs to encoders: open_clip (a small model and one real ViT-B/32) and random."""

import dataclasses
import re

import open_clip
import pytest
import torch
from PIL import Image

from compal import registry
from compal.errors import InputError, UnknownName, UsageError
from compal.pipeline import preprocess, tokenizers
from compal.pipeline.backbones import _open_clip_weights as weights
from compal.pipeline.encoder import load_encoder, resolve

pytestmark = pytest.mark.usefixtures("small")
REAL = "open_clip:ViT-B-32-quickgelu"
CAPTIONS = ["a red cube left of a blue ball", "Two  dogs, two cats!", "", "cube " * 100, "a café"]


@pytest.fixture(scope="module")
def real():
    return load_encoder(resolve(REAL))


def one_line(error):
    return "\n" not in str(error.value)


def test_a_bare_model_is_random_initialisation_and_says_so(real):
    spec = resolve(REAL)
    assert spec == resolve(REAL + "/random") == resolve(REAL + "/random:0") == real.spec
    assert (spec.backbone, spec.weights) == (REAL + "/random:0", "random:0")
    assert (spec.image_shape, spec.image_prefix, spec.image_grid) == ((50, 768), 1, (7, 7))
    assert (spec.text_dim, spec.pooled_dim, spec.context_length) == (512, 512, 77)
    assert spec.extra["quick_gelu"] == "true"
    assert spec.tokenizer == {"name": "open_clip.SimpleTokenizer", "context_length": "77", "clean": "lower"}
    assert resolve(REAL + "/random:1").fingerprint != spec.fingerprint


@torch.no_grad()
def test_real_pooled_embeddings_from_tokens_are_the_models_own(real, photograph):
    pixels = torch.stack([real.preprocess(photograph(seed)) for seed in range(2)])
    images, texts = real.encode_images(pixels), real.encode_texts(CAPTIONS)
    own_images = real.model.encode_image(real.scaled(pixels))
    own_texts = real.model.encode_text(open_clip.tokenize(CAPTIONS))
    assert tuple(images.tokens.shape) == (2, 50, 768)
    torch.testing.assert_close(real.pool_images(images.tokens), own_images, atol=1e-5, rtol=0)
    torch.testing.assert_close(real.pool_texts(texts.tokens, texts.pool_index), own_texts, atol=1e-5, rtol=0)
    assert [len(tokens) for tokens in texts.tokens] == [10, 8, 2, 77, 4]
    assert texts.truncated == [False, False, False, True, False]
    assert [CAPTIONS[1][start:end] for start, end in texts.spans[1][1:-1]] == ["Two", "dogs", ",", "two", "cats", "!"]


def test_real_rows_do_not_depend_on_their_batch_or_its_order(real):
    together = real.encode_texts(CAPTIONS)
    backwards = real.encode_texts(CAPTIONS[::-1])
    for row, caption in enumerate(CAPTIONS):
        alone = real.encode_texts([caption])
        torch.testing.assert_close(alone.pooled[0], together.pooled[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.tokens[0], together.tokens[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(backwards.pooled[-1 - row], together.pooled[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_preprocessing_is_open_clips_own(real, mode, photograph):
    image = photograph().convert(mode)
    config = open_clip.transform.PreprocessCfg(size=(224, 224))
    own = open_clip.transform.image_transform_v2(config, is_train=False)(image.convert("RGB"))
    assert torch.equal(real.scaled(real.preprocess(image)), own)
    assert real.spec.preprocess["interpolation"] == "bicubic"
    assert real.spec.preprocess["resize"] == "shortest"


@pytest.mark.parametrize(
    ("name", "error", "parts"),
    [
        ("opne_clip:x", UnknownName, ["Did you mean 'open_clip'", "pipeline/backbones/"]),
        ("open_clip:", InputError, ["needs a model", "open_clip:ViT-B-32-quickgelu"]),
        ("open_clip:ViT-B-33", UnknownName, ["Did you mean 'ViT-B-32'", "list_models"]),
        ("open_clip:vit-b-32-QuickGelu", UnknownName, ["Did you mean 'ViT-B-32-quickgelu'"]),
        ("open_clip:ViT-B-32/opnai", UnknownName, ["Did you mean 'openai'", "//path/to/model.safetensors"]),
        ("open_clip:ViT-B-32/random:x", InputError, ["seed 'x'", "random:1"]),
        ("open_clip:ViT-B-32//no/such.pt", InputError, ["no weights file /no/such.pt"]),
        ("clip:ViT-L-14", UsageError, ["takes no argument"]),
        ("random:7", InputError, ["TOKENSxWIDTH", "random:49x64"]),
        ("shapes-vit:/no/where", InputError, ["/no/where/config.json"]),
    ],
)
def test_wrong_names_say_what_and_the_cure(name, error, parts):
    with pytest.raises(error) as found:
        resolve(name)
    assert one_line(found)
    assert all(part in str(found.value) for part in parts)


def test_unknown_level_dtype_and_device():
    with pytest.raises(UnknownName, match="Did you mean 'tokens'"):
        resolve("random", level="token")
    with pytest.raises(UnknownName, match="dtype"):
        resolve("random", dtype="float8")
    with pytest.raises(InputError, match="--device cpu"):
        load_encoder(resolve("random"), device="cuda:99")


def test_hugging_face_towers_without_transformers_are_one_line(monkeypatch):
    monkeypatch.setattr("open_clip.hf_model.transformers", None)
    with pytest.raises(InputError, match="pip install transformers") as found:
        resolve("open_clip:roberta-ViT-B-32")
    assert one_line(found)


@pytest.mark.parametrize("cause", [ImportError("No module named 'transformers'"), OSError("We couldn't connect\nto x")])
def test_a_tokenizer_that_cannot_be_had_is_one_line(monkeypatch, cause):
    def fail(*_):
        raise cause

    monkeypatch.setattr(open_clip, "get_tokenizer", fail)
    with pytest.raises(InputError, match=r"tokenizer .* cannot be loaded") as found:
        load_encoder(resolve("open_clip:small"))
    assert one_line(found)


def test_specs_need_no_weights():
    """The largest model (10 GB) and one of each family."""
    expected = {
        "ViT-bigG-14": ((257, 1664), 1280, 1280),
        "ViT-B-16-SigLIP2-256": ((256, 768), 768, 768),
        "RN50": ((49, 2048), 512, 1024),
        "MobileCLIP-S1": ((64, 1024), 512, 512),
        "coca_ViT-B-32": ((50, 768), 512, 512),
    }
    for model, shapes in expected.items():
        spec = resolve(f"open_clip:{model}/random")
        assert (spec.image_shape, spec.text_dim, spec.pooled_dim) == shapes
    siglip = resolve("open_clip:ViT-B-16-SigLIP2-256")
    assert siglip.preprocess["resize"] == "squash"
    assert siglip.preprocess["mean"] == "0.5,0.5,0.5"
    assert siglip.tokenizer["name"].startswith("hf-hub:")
    assert siglip.tokenizer["clean"] == "canonicalize"


@pytest.mark.parametrize("name", ["open_clip:small", "random:6x8"])
@pytest.mark.parametrize("level", ["pooled", "regions"])
def test_levels_without_tokens(name, level, photograph):
    spec = resolve(name, level)
    encoder, whole = load_encoder(spec), load_encoder(resolve(name))
    pixels = encoder.preprocess(photograph())[None]
    images, texts = encoder.encode_images(pixels), encoder.encode_texts(["a red cube", "a ball"])
    assert images.tokens is None
    assert texts.tokens is None
    assert texts.spans == [[], []]
    assert texts.pool_index == [-1, -1]
    assert torch.equal(images.pooled, whole.encode_images(pixels).pooled)
    assert torch.equal(texts.pooled, whole.encode_texts(["a red cube", "a ball"]).pooled)
    assert spec.image_shape == ((0, 0) if level == "pooled" else (0, spec.pooled_dim))
    assert spec.text_dim == (0 if level == "pooled" else spec.pooled_dim)
    assert ("regions" in spec.extra) == (level == "regions")
    assert spec.fingerprint != whole.spec.fingerprint


def test_random_features_follow_content_alone(photograph):
    one, two = load_encoder(resolve("random:6x8")), load_encoder(resolve("random:6x8"))
    pictures = torch.stack([one.preprocess(photograph(seed)) for seed in range(3)])
    first, second = one.encode_images(pictures), two.encode_images(pictures.flip(0))
    assert torch.equal(first.tokens, second.tokens.flip(0))
    assert torch.equal(first.pooled, first.tokens.mean(dim=1))
    assert not torch.allclose(first.tokens[0], first.tokens[1])
    texts = one.encode_texts(["a red cube", "a red cube", "a cube red"])
    assert torch.equal(texts.tokens[0], texts.tokens[1])
    assert not torch.allclose(texts.tokens[0], texts.tokens[2])
    assert torch.equal(one.pool_texts(texts.tokens, texts.pool_index), texts.pooled)


def test_random_features_see_every_pixel_and_the_size(photograph):
    encoder = load_encoder(resolve("random"))
    image = photograph()
    pixel = image.copy()
    pixel.putpixel((3, 4), (1, 2, 3))
    assert not torch.equal(encoder.preprocess(image), encoder.preprocess(pixel))
    assert torch.equal(encoder.preprocess(image), encoder.preprocess(image.copy()))
    flat, tall = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    assert not torch.equal(encoder.preprocess(flat), encoder.preprocess(tall))


def test_random_features_never_change():
    """The stream is a promise: a store extended next year must hold the same features."""
    encoder = load_encoder(resolve("random:2x3"))
    golden = [-0.4851731061935425, 2.2856991291046143, -1.684558391571045]
    assert encoder.encode_texts(["a red cube"]).pooled[0].tolist() == pytest.approx(golden, abs=1e-6)


def test_random_features_are_standard_normal_and_independent():
    encoder = load_encoder(resolve("random:49x64"))
    tokens = encoder.encode_images(torch.rand(40, 3, 4, 4)).tokens
    assert abs(float(tokens.mean())) < 0.02
    assert abs(float(tokens.std()) - 1) < 0.02
    pooled = torch.nn.functional.normalize(encoder.encode_images(torch.rand(40, 3, 4, 4)).pooled, dim=1)
    assert float((pooled @ pooled.T - torch.eye(40)).abs().max()) < 0.6


ALIASES = ("clip", "clip-l14", "pe", "pe-l14", "siglip2", "siglip2-giant", "siglip2-so400m")
STATISTICS = {
    "OpenAI's mean and std": (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
    "mean and std 0.5": ((0.5,) * 3, (0.5,) * 3),
}
LINE = re.compile(
    r"(.+): open_clip:(\S+/\S+); (\d+) px, (shortest|squash|longest) (bicubic|bilinear), (?:cropped, )?(.+)\."
)


@pytest.mark.parametrize("name", ALIASES)
def test_the_line_of_an_alias_is_open_clips_own_configuration(name, monkeypatch):
    """What `compal ls backbones` shows, against the tag: model, weights, size, resizing, mean and std."""
    _, target, size, resize, interpolation, statistics = LINE.fullmatch(registry.summary("backbones", name)).groups()
    model, tag = target.split("/")
    assert (model, tag) in open_clip.list_pretrained()
    monkeypatch.setattr(weights, "path_of", lambda choice: None)  # the weights are not here; no shape needs them
    spec = registry.load("backbones", name).spec("")
    assert spec.backbone == f"open_clip:{target}"
    mean, std = STATISTICS[statistics]
    own = open_clip.get_pretrained_cfg(model, tag)
    assert (tuple(own["mean"]), tuple(own["std"])) == (mean, std)
    assert (own["resize_mode"] or "shortest", own["interpolation"]) == (resize, interpolation)
    assert open_clip.get_model_config(model)["vision_cfg"]["image_size"] == int(size)
    assert spec.preprocess == preprocess.describe((int(size), int(size)), resize, interpolation, mean, std)
    assert bool(own.get("quick_gelu", False)) == (spec.extra["quick_gelu"] == "true")
    assert ("cropped" in registry.summary("backbones", name)) == (resize == "shortest")
    with pytest.raises(UsageError, match=f"'{name}' takes no argument"):
        resolve(f"{name}:x")


def test_aliases_are_a_few_lines():
    for name in ALIASES:
        assert len(registry.path("backbones", name).read_text().splitlines()) <= 8


@pytest.mark.parametrize(
    ("name", "level", "has"),
    [
        ("open_clip:small", "block:-2", "pooled, tokens, block:-1, pixels, regions"),
        ("open_clip:small", "tokens:3", "pooled, tokens, block:-1, pixels, regions"),
        ("open_clip:ViT-B-32", "block:-13", "block:-1 to block:-12, pixels"),
        ("open_clip:ViT-B-32", "block:-0", "block:-1 to block:-12, pixels"),
        ("open_clip:ViT-B-32", "block", "block:-1 to block:-12, pixels"),
        ("open_clip:RN50", "block:-1", "pooled, tokens, pixels, regions"),
        ("open_clip:coca_ViT-B-32", "block:-1", "pooled, tokens, pixels, regions"),
        ("random", "pixels", "pooled, tokens, regions"),
        ("shapes-vit", "block:-4", "block:-1 to block:-3, pixels"),
    ],
)
def test_a_level_that_a_backbone_lacks_names_those_it_has(name, level, has):
    with pytest.raises(InputError, match=f"has no level '{level}'") as found:
        resolve(name, level)
    assert has in found.value.cure
    assert one_line(found)


def test_the_shallower_tower_says_how_deep_levels_go():
    """PE-Core G has 50 blocks of images and 24 of texts."""
    assert resolve("open_clip:PE-Core-bigG-14-448", "block:-24").layer == "-24"
    with pytest.raises(InputError, match="block:-1 to block:-24"):
        resolve("open_clip:PE-Core-bigG-14-448", "block:-25")


def test_pixels_are_bytes_whatever_is_asked():
    spec = resolve("open_clip:small", "pixels")
    assert spec == resolve("open_clip:small", "pixels", "float32", "bfloat16")
    assert (spec.dtype, spec.precision, spec.layer, spec.pooled_dim) == ("uint8", "float32", "input", 0)
    assert (spec.image_shape, spec.image_prefix, spec.image_grid, spec.text_dim) == ((32, 96), 0, (0, 0), 4)
    with pytest.raises(UsageError, match="only the level pixels"):
        resolve("open_clip:small", "tokens", "uint8")


def test_block_states_are_described_as_tokens_are():
    spec, last = resolve("open_clip:small", "block:-1"), resolve("open_clip:small")
    assert (spec.level, spec.layer) == ("block:-1", "-1")
    assert dataclasses.replace(spec, level="tokens", layer="last") == last


def test_precision_is_part_of_the_spec():
    spec = resolve("open_clip:small", precision="bfloat16")
    assert dataclasses.replace(spec, precision="float32") == resolve("open_clip:small")
    assert load_encoder(spec).spec.precision == "bfloat16"
    with pytest.raises(UnknownName, match="precision"):
        resolve("open_clip:small", precision="bf16")


def test_pictures_and_ids_come_back_from_the_level_pixels(photograph):
    encoder = load_encoder(resolve("open_clip:small", "pixels"))
    pixels = torch.stack([encoder.preprocess(photograph(seed)) for seed in range(2)])
    rows = encoder.encode_images(pixels).tokens
    assert torch.equal(preprocess.from_rows(rows), pixels)
    texts = encoder.encode_texts(CAPTIONS)
    own = open_clip.tokenize(CAPTIONS)
    for row, ids, index in zip(texts.tokens, own, texts.pool_index, strict=True):
        found = tokenizers.from_bytes(row)
        assert torch.equal(found, ids[: len(found)])
        assert found[index] == ids.max()
    with pytest.raises(InputError, match="keeps uint8 pictures"):
        encoder.encode_images(torch.rand(1, 3, 32, 32))
