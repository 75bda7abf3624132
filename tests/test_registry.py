"""The folder is the registry: a file dropped into it is listed, described and loaded with no other edit."""

from __future__ import annotations

import subprocess
import sys

import pytest

from compal import registry
from compal.errors import InputError, UnknownName, UsageError

KNOWN = {
    "backbones": {"clip", "hf", "open_clip", "pe", "random", "run", "shapes-vit", "siglip2"},
    "datasets": {"coco", "folder", "shapes", "table"},
    "negatives": {"llm", "mined", "replace", "shuffle", "swap"},
    "engines": {"local", "ray", "torchrun"},
    "segmenters": {"dataset", "rules", "spacy"},
    "heads": {"cosine", "linear", "maxsim", "tfglobal", "tflocal"},
    "losses": {"infonce"},
    "recipes": {"linear", "tfglobal", "tflocal", "tflocal-shapes", "tfglobal-shapes"},
    "setups": {"c2lip-cc3m", "degla-coco", "finetune-coco", "negclip-coco", "tflocal-trohn-img"},
    "benchmarks": {"bivlc", "shapes", "shapes-attributes", "shapes-retrieval", "sugarcrepe", "winoground"},
    "formats": {"faiss", "hdf5", "huggingface", "npz", "safetensors", "webdataset"},
}


@pytest.mark.parametrize("kind", registry.KINDS)
def test_the_known_parts_are_there(kind):
    assert KNOWN[kind] <= set(registry.names(kind))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in registry.KINDS for name in registry.names(kind)])
def test_every_part_has_a_summary_and_keeps_its_contract(kind, name):
    assert len(registry.summary(kind, name)) > 20
    if registry.KINDS[kind].suffix == ".py":
        assert registry.load(kind, name)


def test_a_dropped_file_is_a_part(tmp_path):
    """In a copy of the package's skeleton, so that the checkout stays as it is."""
    package = tmp_path / "copy"
    heads = package / "align" / "heads"
    heads.mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "registry.py"):
        (package / name).write_text((registry.ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    for folder in (package / "align", heads):
        (folder / "__init__.py").touch()
    (heads / "my_head.py").write_text('"""A head of mine."""\nConfig = dict\nbuild = dict\n')
    code = (
        "from copy_ import registry as r; assert r.names('heads') == ['my-head'];"
        "assert r.summary('heads', 'my-head') == 'A head of mine.'; r.load('heads', 'my-head').build"
    )
    package.rename(tmp_path / "copy_")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_an_unknown_part_is_guessed_and_its_file_named():
    with pytest.raises(UnknownName, match=r"Did you mean 'tflocal'\?.*create align/heads/tflocl\.py"):
        registry.load("heads", "tflocl")
    with pytest.raises(UnknownName, match="Did you mean 'heads'"):
        registry.names("head")


@pytest.mark.parametrize("name", ["", "../errors", "__init__", "_transformer", "heads/cosine"])
def test_paths_are_no_names(name):
    with pytest.raises(UnknownName):
        registry.path("heads", name)


def test_parts_outside_go_by_their_module(tmp_path, monkeypatch):
    (tmp_path / "elsewhere.py").write_text("Config = dict\n")
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "half.py").write_text("Config = dict\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="does not define build"):
        registry.load("heads", "outer.half")
    with pytest.raises(UnknownName, match=r"no module 'outer\.none'"):
        registry.load("heads", "outer.none")
    with pytest.raises(UsageError, match="is not imported"):
        registry.load("recipes", "linear")


def test_split_argument():
    assert registry.split_argument("open_clip:ViT-B-32/openai") == ("open_clip", "ViT-B-32/openai")
    assert registry.split_argument("shapes") == ("shapes", "")
