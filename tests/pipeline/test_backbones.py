"""Names to specs to encoders: open_clip (a small model and one real ViT-B/32) and random."""

import open_clip
import pytest
import torch
from PIL import Image

from compal.errors import InputError, UnknownName, UsageError
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
    own_images = real.model.encode_image(pixels)
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
    assert torch.equal(real.preprocess(image), own)
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
