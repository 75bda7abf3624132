"""Weights of open_clip models: tags, local checkpoints, and every way in which they do not fit."""

import json
import pickle

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from compal.errors import InputError, SpecMismatch
from compal.pipeline import checkpoints
from compal.pipeline.backbones import _open_clip_weights as weights
from compal.pipeline.backbones import open_clip as backbone
from compal.pipeline.encoder import load_encoder, resolve

pytestmark = pytest.mark.usefixtures("small")
TAG = {
    "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "interpolation": "bilinear", "resize_mode": "squash",
    "quick_gelu": True,
}  # fmt: skip


@pytest.fixture
def trained(small, tmp_path):
    """A checkpoint of `small` that does not say its activation."""
    torch.manual_seed(5)
    path = tmp_path / "mine.safetensors"
    save_file(backbone._build(open_clip.get_model_config("small"), "small").state_dict(), path)
    return path


@pytest.fixture
def tagged(monkeypatch, trained):
    """A tag `mytag` of `small`, trained with QuickGELU, whose weights are on this machine."""
    for model in ("small", "small-quickgelu"):
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, model, {"mytag": {**TAG, "file": str(trained)}})


def state_of(path):
    """The tensors of a file, copied: it may be overwritten while it is mapped."""
    return {name: value.clone() for name, value in load_file(path).items()}


def one_line(error):
    return "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("ViT-B-32/openai", "open_clip:ViT-B-32-quickgelu/openai"),
        ("ViT-L-14/metaclip-400m", "open_clip:ViT-L-14-quickgelu/metaclip_400m"),
        ("ViT-H-14-378/dfn5b", "open_clip:ViT-H-14-378-quickgelu/dfn5b"),
        ("ViT-B-32-quickgelu/laion2b_s34b_b79k", "open_clip:ViT-B-32/laion2b_s34b_b79k"),
    ],
)
def test_an_activation_that_is_not_the_weights_names_the_right_model(name, right):
    with pytest.raises(InputError, match=f"Use {right}") as found:
        resolve(f"open_clip:{name}")
    assert one_line(found)


def test_every_tag_of_open_clip_fits_its_model_or_names_one_that_it_fits():
    for model, tag in open_clip.list_pretrained():
        choice = weights.parse(f"{model}/{tag}")
        try:
            weights.check_activation(choice)
        except InputError as error:
            right = weights.parse(error.cure.removeprefix("Use open_clip:").rstrip("."))
            weights.check_activation(right)


def test_weights_that_are_not_here_are_one_line_with_the_cure(monkeypatch):
    monkeypatch.setattr(weights, "_local_copy", lambda config: None)
    monkeypatch.setattr(weights, "_reachable", lambda host: False)
    for name in ("clip", "siglip2", "pe"):
        with pytest.raises(InputError, match=r"cannot be reached\. Run once with a network") as found:
            resolve(name)
        assert one_line(found)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        resolve("clip")


def test_a_download_that_fails_is_one_line(monkeypatch):
    def fail(config):
        raise OSError("404 Client Error\nRepository not found")

    monkeypatch.setattr(weights, "_local_copy", lambda config: None)
    monkeypatch.setattr(weights, "_reachable", lambda host: True)
    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(InputError, match="cannot be downloaded: 404") as found:
        resolve("clip")
    assert one_line(found)


def test_weights_in_the_hubs_cache_need_no_network(monkeypatch, tmp_path):
    cached = tmp_path / "open_clip_model.safetensors"
    cached.write_bytes(b"")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: str(cached))
    choice = weights.parse("ViT-B-32-quickgelu/openai")
    assert weights.path_of(choice) == cached


def test_a_tag_gives_weights_preprocessing_and_activation(tagged, trained):
    spec = resolve("open_clip:small-quickgelu/MyTag")
    assert spec.backbone == "open_clip:small-quickgelu/mytag"
    assert spec.weights == checkpoints.sha256(trained)
    assert spec.preprocess == {
        "size": "32x32", "resize": "squash", "interpolation": "bilinear",
        "mean": "0.5,0.5,0.5", "std": "0.25,0.25,0.25",
    }  # fmt: skip
    assert spec.extra == {"quick_gelu": "true", "quick_gelu_known_by": "tag"}
    encoder = load_encoder(spec)
    pixels = encoder.preprocess(Image.new("RGB", (50, 20), (255, 255, 255)))
    assert torch.equal(encoder.scaled(pixels), torch.full((3, 32, 32), 2.0))
    # What all tags of a model share holds for a checkpoint of one's own too.
    assert resolve(f"open_clip:small/{trained}").preprocess == spec.preprocess


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_a_local_checkpoint_is_loaded_and_hashed(trained, tmp_path, suffix):
    path = tmp_path / f"again{suffix}"
    state = {f"module.{name}": value for name, value in state_of(trained).items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save({"epoch": 3, "state_dict": state}, path)
    spec = resolve(f"open_clip:small/{path}")
    assert spec.weights == checkpoints.sha256(path)
    assert spec.extra == {
        "quick_gelu": "false",
        "quick_gelu_known_by": "model name alone; the checkpoint does not say",
    }
    ours = load_encoder(spec).encode_texts(["a red cube"]).pooled
    assert not torch.equal(ours, load_encoder(resolve("open_clip:small")).encode_texts(["a red cube"]).pooled)
    first = load_encoder(resolve(f"open_clip:small/{trained}")).encode_texts(["a red cube"]).pooled
    assert torch.equal(ours, first)


def test_weights_that_changed_under_a_spec_are_refused(trained):
    spec = resolve(f"open_clip:small/{trained}")
    state = state_of(trained)
    save_file({**state, "logit_scale": state["logit_scale"] + 1}, trained)
    with pytest.raises(SpecMismatch, match="its weights changed"):
        load_encoder(spec)


@pytest.mark.parametrize(
    ("filename", "metadata", "config", "source"),
    [
        ("ViT-B-32-mytag.safetensors", {}, None, "file's name"),
        ("finetuned-quickgelu.safetensors", {}, None, "file's name"),
        ("plain.safetensors", {"quick_gelu": "true"}, None, "file's metadata"),
        ("plain.safetensors", {}, {"quick_gelu": True}, "open_clip_config.json"),
    ],
)
def test_a_checkpoint_that_says_its_activation_is_believed(
    small, tagged, trained, tmp_path, filename, metadata, config, source
):
    folder = tmp_path / "said"
    folder.mkdir()
    save_file(state_of(trained), folder / filename, metadata=metadata)
    if config:
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**small, **config}}))
    with pytest.raises(InputError, match=f"by their {source}.*Use open_clip:small-quickgelu/"):
        resolve(f"open_clip:small/{folder / filename}")
    spec = resolve(f"open_clip:small-quickgelu/{folder / filename}")
    assert spec.extra == {"quick_gelu": "true", "quick_gelu_known_by": source}


def test_the_configuration_beside_a_checkpoint_gives_its_preprocessing(trained, photograph):
    keys = {"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear", "resize_mode": "longest", "fill_color": 3}
    (trained.parent / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": keys}))
    spec = resolve(f"open_clip:small/{trained}")
    assert spec.preprocess["resize"] == "longest"
    assert spec.preprocess["fill"] == "3"
    assert load_encoder(spec).preprocess(photograph()).shape == (3, 32, 32)


def changed(trained, **values):
    save_file({**state_of(trained), **values}, trained)
    return f"open_clip:small/{trained}"


def test_a_checkpoint_of_another_model_is_refused(trained):
    with pytest.raises(InputError, match=r"32000 token embeddings of width 768.*Use ViT-B-16-SigLIP") as found:
        resolve(changed(trained, **{"token_embedding.weight": torch.zeros(32000, 768, dtype=torch.float16)}))
    assert one_line(found)


def test_position_embeddings_are_never_interpolated_in_silence(trained):
    state = state_of(trained)
    with pytest.raises(InputError, match="context of 64 tokens, small of 77"):
        resolve(changed(trained, positional_embedding=torch.zeros(64, 16)))
    save_file(state, trained)
    with pytest.raises(InputError, match="9 patch positions, small 4"):
        resolve(changed(trained, **{"visual.positional_embedding": torch.zeros(10, 32)}))


def test_missing_tensors_are_one_line(trained):
    state = state_of(trained)
    del state["ln_final.weight"]
    save_file(state, trained)
    with pytest.raises(InputError, match=r"does not fit small.*ln_final") as found:
        load_encoder(resolve(f"open_clip:small/{trained}"))
    assert one_line(found)


class Harmful:
    """Anything but a tensor: unpickling it would run code."""

    def __reduce__(self):
        return (pytest.fail, ("was unpickled",))


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth"])
def test_nothing_is_unpickled(tmp_path, suffix):
    path = tmp_path / f"harmful{suffix}"
    torch.save({"state_dict": Harmful()}, path)
    with pytest.raises(InputError, match=r"cannot be loaded as tensors alone.*safetensors") as found:
        resolve(f"open_clip:small/{path}")
    assert one_line(found)
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(InputError, match="cannot be loaded as tensors alone"):
        resolve(f"open_clip:small/{path}")


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!", b"\xff" * 64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_weights_are_one_line(tmp_path, suffix, content):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError) as found:
        resolve(f"open_clip:small/{path}")
    assert one_line(found)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "weights.npz"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no \.safetensors"):
        resolve(f"open_clip:small/{path}")


def test_a_path_with_one_slash_too_few_says_so(trained):
    with pytest.raises(InputError, match="two slashes"):
        resolve(f"open_clip:small{trained}")


def test_random_weights_leave_the_global_generator_alone():
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    first = load_encoder(resolve("open_clip:small/random:3"))
    assert torch.equal(torch.rand(3), expected)
    again = load_encoder(resolve("open_clip:small/random:3"))
    other = load_encoder(resolve("open_clip:small/random:4"))
    one, two, three = (encoder.encode_texts(["a cube"]).pooled for encoder in (first, again, other))
    assert torch.equal(one, two)
    assert not torch.allclose(one, three)
