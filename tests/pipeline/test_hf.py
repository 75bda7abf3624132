"""Dual encoders of transformers: real architectures with random weights, saved and loaded as from the hub."""

import json
import shutil
import string
from concurrent.futures import ThreadPoolExecutor

import hub_models
import numpy as np
import pytest
import torch
from PIL import Image

from compal import api, hub
from compal.errors import CompalError, InputError, SpecMismatch
from compal.pipeline import hub_files, tuned
from compal.pipeline.encoder import load_encoder, resolve
from compal.pipeline.hub_towers import patches_of
from compal.stores.store import Store
from compal.workspace import Workspace

pytest.importorskip("transformers")
FAMILIES = ["clip", "clip-legacy", "metaclip_2", "siglip", "siglip2"]
CAPTIONS = ["a red cube left", "Two  dogs, two", "", "cube " * 30, "a café, RED!"]
EXACT = {"atol": 1e-5, "rtol": 1e-5}
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """By family a folder and the model that was saved in it."""
    root = tmp_path_factory.mktemp("models")
    return {family: (root / family, hub_models.save(family, root / family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def encoders(folders):
    return {family: load_encoder(resolve(f"hf:{folder}", dtype="float32")) for family, (folder, _) in folders.items()}


@pytest.fixture
def copy(folders, tmp_path):
    """A function of a family: a copy of its folder that a test may spoil."""
    return lambda family: shutil.copytree(folders[family][0], tmp_path / family)


def pictures(*sizes):
    random = np.random.RandomState(0)
    coarse = [Image.fromarray(random.randint(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in sizes]
    return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(coarse, sizes, strict=True)]


def pixels_for(encoder, count=3):
    return torch.stack([encoder.preprocess(image) for image in pictures(*[(64 + step, 50) for step in range(count)])])


@every_family
@torch.no_grad()
def test_pooled_embeddings_are_the_models_own(encoders, folders, family):
    encoder, (folder, model) = encoders[family], folders[family]
    pixels = pixels_for(encoder)
    scaled = encoder.scaled(pixels)
    given = {"pixel_values": scaled}
    if family == "siglip2":
        given = {
            "pixel_values": patches_of(scaled, 8),
            "pixel_attention_mask": torch.ones(3, 25, dtype=torch.int32),
            "spatial_shapes": torch.tensor([[5, 5]] * 3),
        }
    own = model.get_image_features(**given).pooler_output
    torch.testing.assert_close(encoder.encode_images(pixels).pooled, own, **EXACT)
    assert float((own[0] - own[1]).abs().max()) > 1e-3

    from transformers import AutoTokenizer

    texts = [caption.lower() for caption in CAPTIONS]  # which Gemma's tokenizer needs and the others do themselves
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    own = model.get_text_features(input_ids=batch["input_ids"]).pooler_output
    features = encoder.encode_texts(CAPTIONS)
    torch.testing.assert_close(features.pooled, own, **EXACT)
    assert torch.equal(encoder.tokenize(CAPTIONS).ids, batch["input_ids"])
    assert features.truncated == [False, False, False, True, False]


@every_family
@pytest.mark.parametrize("level", ["tokens", "block:-1", "block:-2", "pixels"])
@torch.no_grad()
def test_every_level_gives_the_pooled_embedding_again(encoders, folders, family, level):
    encoder = load_encoder(resolve(f"hf:{folders[family][0]}", level, "uint8" if level == "pixels" else "float32"))
    pixels = pixels_for(encoder)
    images, texts = encoder.encode_images(pixels), encoder.encode_texts(CAPTIONS)
    spec = encoder.spec
    assert tuple(images.tokens.shape[1:]) == spec.image_shape
    assert {rows.shape[1] for rows in texts.tokens} == {spec.text_dim}
    assert [len(rows) for rows in texts.tokens] == [len(spans) for spans in texts.spans]
    whole = encoders[family]
    cached = [rows.clone() for rows in texts.tokens]
    torch.testing.assert_close(encoder.pool_images(images.tokens.clone()), whole.encode_images(pixels).pooled, **EXACT)
    torch.testing.assert_close(
        encoder.pool_texts(cached, texts.pool_index), whole.encode_texts(CAPTIONS).pooled, **EXACT
    )


@every_family
@pytest.mark.parametrize("level", ["pooled", "regions"])
def test_levels_without_tokens(folders, family, level):
    encoder = load_encoder(resolve(f"hf:{folders[family][0]}", level))
    images, texts = (encoder.encode_images(pixels_for(encoder)), encoder.encode_texts(CAPTIONS))
    assert (images.tokens, texts.tokens) == (None, None)
    assert tuple(images.pooled.shape) == (3, encoder.spec.pooled_dim)
    assert tuple(texts.pooled.shape) == (5, encoder.spec.pooled_dim)


@every_family
def test_half_precision_is_of_the_towers_not_of_pooling(encoders, family):
    encoder = encoders[family]
    pixels = pixels_for(encoder)
    exact, exact_texts = (encoder.encode_images(pixels).pooled, encoder.encode_texts(CAPTIONS).pooled)
    with torch.autocast("cpu", torch.bfloat16):
        images, texts = encoder.encode_images(pixels), encoder.encode_texts(CAPTIONS)
    for half, whole in ((images.pooled, exact), (texts.pooled, exact_texts)):
        assert half.dtype == torch.float32
        assert 0 < float((half - whole).abs().max()) < 0.05 * float(whole.abs().max())
    torch.testing.assert_close(encoder.pool_images(images.tokens), images.pooled, **EXACT)


@every_family
@torch.no_grad()
def test_rows_do_not_depend_on_their_batch(encoders, family):
    encoder = encoders[family]
    together = encoder.encode_texts(CAPTIONS)
    pixels = pixels_for(encoder)
    images = encoder.encode_images(pixels)
    for row, caption in enumerate(CAPTIONS):
        alone = encoder.encode_texts([caption])
        torch.testing.assert_close(alone.tokens[0], together.tokens[row], **EXACT)
        assert alone.spans[0] == together.spans[row]
    for row in range(3):
        torch.testing.assert_close(encoder.encode_images(pixels[row : row + 1]).tokens[0], images.tokens[row], **EXACT)


@pytest.mark.parametrize(
    ("family", "words", "ends"),
    [
        ("clip", ["A", "red", "c", "a", "f", "é", "é", ",", "RED", "!"], 1),
        ("siglip", ["A", "re", "d", "c", "a", "f", "é", "RE", "D"], 1),
        ("siglip2", ["A", "red", "c", "a", "f", "é", ",", "RED", "!"], 1),
    ],
)
def test_spans_are_the_captions_characters(encoders, family, words, ends):
    """Two bytes share a character; the space before a word is not the word's; SigLIP drops punctuation."""
    caption = "A red  café, RED!"
    batch = encoders[family].tokenize([caption])
    spans = batch.spans[0]
    assert [caption[start:end] for start, end in spans if start >= 0] == words
    assert spans[-ends:] == [(-1, -1)] * ends
    assert len(spans) == batch.lengths[0]


def test_case_is_no_matter_where_the_model_was_trained_on_lower_case(encoders, folders):
    for family in FAMILIES:
        ids = encoders[family].tokenize(["A RED Cube", "a red cube"]).ids
        assert torch.equal(ids[0], ids[1]), family
    assert resolve(f"hf:{folders['siglip2'][0]}").tokenizer["clean"] == "lower"
    assert resolve(f"hf:{folders['clip'][0]}").tokenizer["clean"] == "none"


@pytest.mark.parametrize("kind", ["GemmaTokenizerFast", "PreTrainedTokenizerFast"])
def test_captions_of_siglip_are_lower_case_whatever_its_tokenizer_is_called(copy, kind):
    """Checkpoints of SigLIP 2 name Gemma's tokenizer, which keeps capital letters."""
    folder = copy("siglip2")
    rewrite(folder, "tokenizer_config.json", tokenizer_class=kind)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = content["normalizer"]["normalizers"][-1]  # without `Lowercase`
    (folder / "tokenizer.json").write_text(json.dumps(content))
    batch = load_encoder(resolve(f"hf:{folder}")).tokenize(["A RED Cube", "a red cube"])
    assert torch.equal(batch.ids[0], batch.ids[1])
    assert batch.spans[0] == batch.spans[1]


def test_a_tokenizer_that_does_not_end_captions_is_refused(copy):
    folder = copy("siglip2")
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))
    with pytest.raises(InputError, match="does not end captions") as found:
        load_encoder(resolve(f"hf:{folder}"))
    assert "\n" not in str(found.value)


def test_what_is_pooled_and_what_the_padding_is(encoders):
    clip, siglip, gemma = (encoders[family] for family in ("clip", "siglip", "siglip2"))
    assert clip.encode_texts(["a b", "cube " * 30]).pool_index == [3, 15]
    assert siglip.encode_texts(["a b", "cube " * 30]).pool_index[1] == 15
    assert all(encoder.tokenize(["a"]).ids[0, -1] == encoder.texts.pad for encoder in (clip, siglip, gemma))
    assert (gemma.texts.pad, siglip.texts.pad) == (0, 1)
    assert (clip.texts.trims, siglip.texts.trims, gemma.texts.trims) == (True, False, False)


def test_threads_share_a_tokenizer(encoders):
    encoder = encoders["clip"]
    captions = [[f"{letter} red cube", "cube " * length] for length, letter in enumerate(string.ascii_lowercase)]
    alone = [encoder.tokenize(pair) for pair in captions]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(encoder.tokenize, captions))
    assert all(torch.equal(one.ids, two.ids) for one, two in zip(alone, together, strict=True))


# Preprocessing: `*Pil` is transformers' processor over Pillow, with which these checkpoints were published. Ours is the
# same to the byte; what remains is the order of float32 operations. transformers 5 prefers torchvision's kernels, whose
# weights have fewer bits: one level of 255 here; ten on pictures 333 wide that are squashed to 224.
SIZES = [(64, 50), (50, 64), (32, 35), (35, 32), (33, 40), (200, 37), (32, 32), (20, 24)]


def apart(encoder, processor, image):
    """The greatest difference from transformers' own pixels, in levels of 255."""
    given = processor(images=image, return_tensors="pt")["pixel_values"][0]
    ours = encoder.scaled(encoder.preprocess(image)[None])
    ours = patches_of(ours, 8)[0].unflatten(1, (-1, 3)) if given.ndim == 2 else ours[0].permute(1, 2, 0)
    given = given.unflatten(1, (-1, 3)) if given.ndim == 2 else given.permute(1, 2, 0)
    std = torch.tensor([float(value) for value in encoder.spec.preprocess["std"].split(",")])
    return float(((ours - given).abs() * std).max()) * 255


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_preprocessing_is_transformers_own(encoders, folders, family):
    import transformers

    name = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}[family]
    slow = getattr(transformers, f"{name}Pil").from_pretrained(folders[family][0])
    fast = getattr(transformers, name).from_pretrained(folders[family][0])
    for image in pictures(*SIZES):
        assert apart(encoders[family], slow, image) < 1e-3, image.size
        assert apart(encoders[family], fast, image) < 1.001, image.size


def test_a_square_picture_fills_naflex_grid_as_transformers_has_it(encoders, folders):
    from transformers import Siglip2ImageProcessorPil

    processor = Siglip2ImageProcessorPil.from_pretrained(folders["siglip2"][0])
    for image in pictures((64, 64), (40, 40), (23, 23)):
        assert processor(images=image, return_tensors="pt")["spatial_shapes"].tolist() == [[5, 5]]
        assert apart(encoders["siglip2"], processor, image) < 1e-3
    spec = encoders["siglip2"].spec
    assert (spec.image_grid, spec.preprocess["size"], spec.preprocess["resize"]) == ((5, 5), "40x40", "squash")
    assert "5 x 5" in spec.extra["naflex"]


def rewrite(folder, name="preprocessor_config.json", **changes):
    settings = json.loads((folder / name).read_text())
    settings.update(changes)
    (folder / name).write_text(json.dumps({key: value for key, value in settings.items() if value != "absent"}))


def test_old_and_new_files_of_the_processor_are_read_alike(copy, encoders):
    """Files of 2021 give bare numbers and no kind; transformers 5 may put the processor into another file."""
    folder = copy("clip")
    expected = encoders["clip"].spec.preprocess
    old = {"image_processor_type": "absent", "feature_extractor_type": "CLIPFeatureExtractor", "do_rescale": "absent"}
    rewrite(folder, size=32, crop_size=32, rescale_factor="absent", **old)
    assert resolve(f"hf:{folder}").preprocess == expected
    inside = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    inside["image_processor_type"] = "CLIPImageProcessor"
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "CLIPProcessor", "image_processor": inside})
    )
    assert resolve(f"hf:{folder}").preprocess == expected


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("clip", {"resample": 1}, "PIL's filter 1"),
        ("clip", {"do_center_crop": False}, "does not crop"),
        ("clip", {"crop_size": {"height": 28, "width": 28}}, "crops to 28 x 28"),
        ("clip", {"size": {"shortest_edge": 40}}, "resizes to"),
        ("clip", {"do_resize": False}, "does not resize"),
        ("clip", {"rescale_factor": 1.0}, "1/255"),
        ("clip", {"image_processor_type": "BlipImageProcessor"}, "is a BlipImageProcessor"),
        ("clip", {"image_processor_type": "NoSuchProcessor"}, "cannot be loaded"),
        ("siglip", {"size": {"height": 32, "width": 40}}, "resizes to"),
        ("siglip", {"size": {"height": 48, "width": 48}}, "takes 32 x 32"),
        ("siglip2", {"max_num_patches": 24}, "no square grid"),
        ("siglip2", {"patch_size": 16}, "patches of 16 px"),
    ],
)
def test_a_processor_that_the_spec_cannot_say_is_refused(copy, family, changes, says):
    folder = copy(family)
    rewrite(folder, **changes)
    with pytest.raises(InputError, match=says) as found:
        resolve(f"hf:{folder}")
    assert "\n" not in str(found.value)
    assert found.value.cure


def spoil_weights(folder):
    (folder / "model.safetensors").write_bytes(b"\x40" + bytes(40))


def other_weights(folder):
    shutil.copy(folder.parent / "siglip" / "model.safetensors", folder / "model.safetensors")


def deeper(folder):
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 4
    (folder / "config.json").write_text(json.dumps(config))


def shallower(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: rewrite(folder, "config.json", model_type="bert"), "kind 'bert'.*Known: clip"),
        (lambda folder: rewrite(folder, "config.json", projection_dim="wide"), "is no configuration"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer in .* cannot be loaded"),
        (lambda folder: rewrite(folder, "tokenizer_config.json", padding_side="left"), "pads on the left"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors or"),
        (spoil_weights, "model.safetensors"),
        (other_weights, "does not fit"),
        (deeper, "missing keys"),
        (shallower, "unexpected keys"),
    ],
)
def test_wrong_files_are_one_line(copy, spoil, says):
    copy("siglip")
    folder = copy("clip")
    spoil(folder)
    with pytest.raises(CompalError, match=says) as found:
        load_encoder(resolve(f"hf:{folder}"))
    assert "\n" not in str(found.value)
    assert found.value.cure


def test_the_spec_builds_no_model(folders, encoders, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("built a model")

    monkeypatch.setattr(torch.nn.Module, "__init__", fail)
    for family, (folder, _) in folders.items():
        assert resolve(f"hf:{folder}", dtype="float32") == encoders[family].spec


@torch.no_grad()
def test_shards_and_tensors_in_a_pickled_file_give_the_same_features(copy, folders, encoders):
    model = folders["clip"][1]
    expected = encoders["clip"].encode_texts(CAPTIONS).pooled
    folder = copy("clip")
    (folder / "model.safetensors").unlink()
    with hub.quietly():
        model.save_pretrained(folder, max_shard_size="20KB")
    assert len(hub_files.weight_files(folder)) > 1
    spec = resolve(f"hf:{folder}")
    assert torch.equal(load_encoder(spec).encode_texts(CAPTIONS).pooled, expected)
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert resolve(f"hf:{folder}").weights not in (spec.weights, encoders["clip"].spec.weights)
    assert torch.equal(load_encoder(resolve(f"hf:{folder}")).encode_texts(CAPTIONS).pooled, expected)


def test_code_in_a_pickled_file_is_never_run(copy, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    folder = copy("clip")
    (folder / "model.safetensors").unlink()
    torch.save({"logit_scale": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="tensors alone"):
        load_encoder(resolve(f"hf:{folder}"))
    assert not (tmp_path / "ran").exists()


def test_an_index_that_names_other_files_is_refused(copy):
    folder = copy("clip")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret"}}))
    with pytest.raises(InputError, match="names no shards"):
        resolve(f"hf:{folder}")


@every_family
def test_the_spec_follows_the_files(copy, encoders, family):
    folder = copy(family)
    spec = resolve(f"hf:{folder}")
    assert spec.backbone == f"hf:{folder}"
    assert spec.weights == encoders[family].spec.weights
    assert "revision" not in spec.extra
    rewrite(folder, "config.json", transformers_version="9.0")
    assert resolve(f"hf:{folder}") == spec
    text = json.loads((folder / "config.json").read_text())["text_config"]
    rewrite(folder, "config.json", text_config={**text, "layer_norm_eps": 0.5})
    assert resolve(f"hf:{folder}").extra["config"] != spec.extra["config"]
    with pytest.raises(SpecMismatch, match="its extra changed"):
        load_encoder(spec)
    rewrite(folder, "tokenizer_config.json", model_max_length=12)
    assert resolve(f"hf:{folder}").tokenizer["files"] != spec.tokenizer["files"]


@torch.no_grad()
def test_tuned_towers_need_no_weights_of_the_base(copy, tmp_path):
    folder = copy("siglip2")
    encoder = load_encoder(resolve(f"hf:{folder}"))
    for parameter in encoder.model.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    towers = tuned.save_towers(tmp_path / "towers", encoder, encoder.spec, {"command": "compal tune"})
    (folder / "model.safetensors").unlink()
    loaded = load_encoder(resolve(f"run:{towers}"))
    assert torch.equal(loaded.encode_texts(CAPTIONS).pooled, encoder.encode_texts(CAPTIONS).pooled)
    pixels = pixels_for(encoder)
    assert torch.equal(loaded.encode_images(pixels).tokens, encoder.encode_images(pixels).tokens)
    rewrite(folder, "tokenizer_config.json", model_max_length=12)
    with pytest.raises(InputError, match="not what the spec says"):
        load_encoder(resolve(f"run:{towers}"))


@pytest.mark.parametrize(("family", "level"), [("clip", "tokens"), ("siglip2", "block:-1")])
def test_it_is_extracted_like_any_backbone(folders, tmp_path, monkeypatch, family, level):
    monkeypatch.setenv("COMPAL_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    name = f"hf:{folders[family][0]}"
    api.extract(name, "shapes", ["test"], level=level, limit=3)
    (store,) = (Store.open(path) for path in Workspace.find().list_stores())
    assert store.spec == resolve(name, level)
    keys = sorted(store.keys("image"))
    assert store.image_tokens(keys).shape == (len(keys), *store.spec.image_shape)
    assert store.keys("text")
