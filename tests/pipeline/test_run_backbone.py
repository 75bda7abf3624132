"""Towers that were tuned: saved, named `run:ID`, extracted, and refused when they are not whole."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from compal import api
from compal.cli import app
from compal.errors import CompalError, InputError, UnknownName
from compal.pipeline import tuned
from compal.pipeline.backbones import open_clip as open_clip_backbone
from compal.pipeline.backbones import shapes_vit
from compal.pipeline.encoder import load_encoder, resolve
from compal.stores.store import Store
from compal.workspace import Workspace

MADE = {"command": "compal tune shapes-vit", "seed": 3}
CAPTIONS = ["a red cube left of a blue ball", "a ball"]


def perturbed(name="shapes-vit", by=0.05):
    """The encoder of a backbone with every weight moved a little."""
    encoder = load_encoder(resolve(name))
    generator = torch.Generator().manual_seed(0)
    for parameter in encoder.model.parameters():
        parameter += by * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)
    return encoder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workspace with one run, `tuned-1`, and the encoder whose towers it holds."""
    workspace = tmp_path_factory.mktemp("workspace")
    encoder = perturbed()
    tuned.save_towers(workspace / "runs" / "tuned-1" / "towers", encoder, encoder.spec, MADE)
    return workspace, encoder


@pytest.fixture
def workspace(saved, monkeypatch, tmp_path):
    """A copy of it that a test may spoil, found as commands find theirs."""
    folder = tmp_path / "work"
    shutil.copytree(saved[0], folder)
    monkeypatch.setenv("COMPAL_HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_spec_is_the_bases_with_other_weights(workspace):
    base, spec = resolve("shapes-vit"), resolve("run:tuned-1")
    assert spec.backbone == "run:tuned-1"
    assert spec.weights == tuned.checkpoints.sha256(workspace / "runs/tuned-1/towers/model.safetensors")
    assert spec.extra["base"] == f"shapes-vit {base.weights}"
    same = ("image_shape", "image_grid", "text_dim", "pooled_dim", "context_length", "preprocess", "tokenizer")
    assert [getattr(spec, field) for field in same] == [getattr(base, field) for field in same]
    assert spec.fingerprint != base.fingerprint
    assert tuned.read(workspace / "runs/tuned-1/towers").provenance == MADE


@pytest.mark.parametrize("level", ["tokens", "pooled", "block:-1", "pixels", "regions"])
def test_every_level_of_the_base_is_there(workspace, level):
    base, spec = resolve("shapes-vit", level, "float32"), resolve("run:tuned-1", level, "float32")
    assert (spec.level, spec.layer, spec.dtype) == (base.level, base.layer, base.dtype)
    assert (spec.image_shape, spec.text_dim, spec.pooled_dim) == (base.image_shape, base.text_dim, base.pooled_dim)
    assert load_encoder(spec).spec == spec


def test_a_level_that_the_base_lacks_is_refused(workspace):
    with pytest.raises(InputError, match="has no level 'block:-9'"):
        resolve("run:tuned-1", "block:-9")


@torch.no_grad()
def test_features_are_those_of_the_towers_that_were_saved(workspace, saved, photograph):
    loaded, again = load_encoder(resolve("run:tuned-1")), load_encoder(resolve("run:tuned-1"))
    base = load_encoder(resolve("shapes-vit"))
    pixels = torch.stack([loaded.preprocess(photograph(seed)) for seed in range(2)])
    images, texts = loaded.encode_images(pixels), loaded.encode_texts(CAPTIONS)
    assert torch.equal(images.tokens, saved[1].encode_images(pixels).tokens)
    assert torch.equal(texts.pooled, saved[1].encode_texts(CAPTIONS).pooled)
    assert torch.equal(images.tokens, again.encode_images(pixels).tokens)
    assert not torch.allclose(images.pooled, base.encode_images(pixels).pooled, atol=1e-3)
    assert not torch.allclose(texts.pooled, base.encode_texts(CAPTIONS).pooled, atol=1e-3)


def test_a_run_is_extracted_like_any_backbone(workspace):
    for name in ("run:tuned-1", "shapes-vit"):
        api.extract(name, "shapes", ["test"], limit=3)
    stores = [Store.open(path) for path in Workspace.find().list_stores()]
    run, base = sorted(stores, key=lambda store: store.spec.backbone)
    assert run.spec == resolve("run:tuned-1")
    for kind in ("image", "text"):
        keys = sorted(base.keys(kind))
        assert run.keys(kind) == set(keys)
        assert not np.allclose(run.pooled(kind, keys), base.pooled(kind, keys), atol=1e-3)


def test_a_path_inside_the_workspace_is_its_run_and_another_stays_a_path(workspace, tmp_path):
    towers = workspace / "runs" / "tuned-1" / "towers"
    assert resolve(f"run:{towers}") == resolve("run:tuned-1")
    elsewhere = shutil.copytree(towers, tmp_path / "elsewhere")
    spec = resolve(f"run:{elsewhere}")
    assert spec.backbone == f"run:{elsewhere}"
    assert spec.weights == resolve("run:tuned-1").weights
    assert resolve("run:./elsewhere") == spec
    assert load_encoder(spec).spec == spec
    assert tuned.load(elsewhere).spec == spec


def test_towers_tuned_from_tuned_towers(workspace):
    encoder = perturbed("run:tuned-1")
    towers = workspace / "runs" / "tuned-2" / "towers"
    tuned.save_towers(towers, encoder, resolve("run:tuned-1", "pooled"), MADE)
    spec = resolve("run:tuned-2")
    assert spec.extra["base"] == f"run:tuned-1 {resolve('run:tuned-1').weights}"
    assert torch.equal(load_encoder(spec).encode_texts(CAPTIONS).pooled, encoder.encode_texts(CAPTIONS).pooled)


@pytest.mark.usefixtures("small")
def test_the_bases_weights_need_not_be_there(workspace, tmp_path, monkeypatch):
    base = open_clip_backbone.untrained(resolve("open_clip:small"))
    checkpoint = tmp_path / "base.safetensors"
    safetensors.torch.save_file(base.model.state_dict(), checkpoint)
    encoder = perturbed(f"open_clip:small/{checkpoint}")
    towers = tuned.save_towers(tmp_path / "towers", encoder, encoder.spec, MADE)
    checkpoint.unlink()
    spec = resolve(f"run:{towers}", "pooled")
    assert torch.equal(load_encoder(spec).encode_texts(CAPTIONS).pooled, encoder.encode_texts(CAPTIONS).pooled)


def test_towers_are_never_overwritten(workspace, saved):
    towers = workspace / "runs" / "tuned-1" / "towers"
    before = (towers / "base.json").read_bytes()
    with pytest.raises(InputError, match="already exists"):
        tuned.save_towers(towers, saved[1], saved[1].spec, MADE)
    assert (towers / "base.json").read_bytes() == before
    assert sorted(path.name for path in towers.parent.iterdir()) == ["towers"]


def test_a_backbone_without_towers_cannot_be_saved(tmp_path):
    encoder = load_encoder(resolve("random"))
    with pytest.raises(InputError, match="no towers to save"):
        tuned.save_towers(tmp_path / "towers", encoder, encoder.spec, MADE)


def edit(folder, **changes):
    about = json.loads((folder / "base.json").read_text())
    (folder / "base.json").write_text(json.dumps({**about, **changes}))


def test_a_base_is_no_module_of_a_strangers_choice(saved, workspace):
    """Loading would import, and so run, whatever base.json names."""
    folder = workspace / "runs" / "tuned-1" / "towers"
    spec = json.loads((folder / "base.json").read_text())["spec"]
    edit(folder, spec={**spec, "backbone": "antigravity.anything:x"})
    with pytest.raises(UnknownName, match=r"no backbone 'antigravity\.anything'"):
        tuned.load(folder)


def flip(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def replace_weights(folder, state):
    """Other weights, consistently: as if another architecture's had been put there."""
    path = folder / "model.safetensors"
    safetensors.torch.save_file(state, path)
    edit(folder, sha256=tuned.checkpoints.sha256(path))


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    edit(folder, sha256=tuned.checkpoints.sha256(path))


def other_architecture(folder):
    replace_weights(folder, {"nothing.weight": torch.zeros(2)})


def without_a_parameter(folder):
    state = safetensors.torch.load_file(folder / "model.safetensors")
    state.pop("logit_scale")
    replace_weights(folder, state)


def other_shape(folder):
    state = safetensors.torch.load_file(folder / "model.safetensors")
    state["positional_embedding"] = state["positional_embedding"][:-1].clone()
    replace_weights(folder, state)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "base.json").unlink(), "has no base.json"),
        (lambda folder: (folder / "base.json").write_text("{"), "base.json cannot be read"),
        (lambda folder: (folder / "base.json").write_text("[1]"), "base.json cannot be read"),
        (lambda folder: edit(folder, format="compal-towers-9"), "compal-towers-9"),
        (lambda folder: edit(folder, spec={"backbone": "x"}), "base.json"),
        (lambda folder: edit(folder, spec=json.loads(resolve("shapes-vit", "pooled").to_json())), "level pooled"),
        (lambda folder: edit(folder, provenance=3), "base.json cannot be read"),
        (flip, "is not what base.json says"),
        (truncate, "damaged or no safetensors file"),
        (other_architecture, "does not fit shapes-vit"),
        (without_a_parameter, "logit_scale"),
        (other_shape, "positional_embedding"),
    ],
)
def test_what_is_not_whole_is_refused_in_one_line(workspace, spoil, says):
    spoil(workspace / "runs" / "tuned-1" / "towers")
    with pytest.raises(CompalError, match=says) as found:
        load_encoder(resolve("run:tuned-1"))
    assert "\n" not in str(found.value)
    assert found.value.cure


def test_a_changed_base_configuration_is_refused(workspace, tmp_path):
    folder = shutil.copytree(shapes_vit.FOLDER, tmp_path / "base")
    encoder = load_encoder(resolve(f"shapes-vit:{folder}"))
    towers = tuned.save_towers(tmp_path / "towers", encoder, encoder.spec, MADE)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quick_gelu": not config.get("quick_gelu", False)}))
    with pytest.raises(InputError, match="not what the spec says"):
        load_encoder(resolve(f"run:{towers}"))


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("run:", InputError, "needs a run"),
        ("run:tuned-2", UnknownName, "Did you mean 'tuned-1'"),
        ("run:/no/where", InputError, "holds no towers"),
        ("run:..", InputError, "holds no towers"),
    ],
)
def test_wrong_names_are_one_line(workspace, name, error, says):
    with pytest.raises(error, match=says) as found:
        resolve(name)
    assert "\n" not in str(found.value)


def test_a_run_lies_in_the_workspace_that_is_given(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COMPAL_HOME", raising=False)
    given = Workspace(shutil.copytree(saved[0], tmp_path / "given"))
    (summary,) = api.extract("run:tuned-1", "shapes", ["test"], limit=1, workspace=given)
    assert summary.store.parent == given.stores
    assert summary.images
    assert api.open_store("run:tuned-1", workspace=given).spec.backbone == "run:tuned-1"
    done = CliRunner().invoke(app, ["fit", "linear", "--backbone", "run:tuned-1", "--work", str(given.path)])
    assert "no pairs of shapes" in str(done.exception)
    with pytest.raises(UnknownName):  # what a command used is forgotten with it
        resolve("run:tuned-1")
