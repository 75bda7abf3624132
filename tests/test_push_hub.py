"""`compal push-hub` against a hub on this machine: what arrives, what the card says, and what is never half there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from command_line import run
from fake_hub import FakeHub
from huggingface_hub import ModelCard

from compal import api
from compal.align.checkpoint import load_scorer, save_scorer
from compal.align.recipe import load_recipe
from compal.align.runs import describe
from compal.align.scorer import Dims, build_head
from compal.api.evaluation import scorers
from compal.cli import hub as cli_hub
from compal.errors import InputError, RemoteError
from compal.eval import results
from compal.eval.outcomes import table
from compal.eval.sources import Group
from compal.pipeline.encoder import resolve
from compal.publish import bibtex, hub
from compal.publish.bundle import without_places
from compal.publish.cards import MARK, base_model
from compal.stores.pairs import write_pairs
from compal.stores.remotes import transfer
from compal.stores.rows import ImageRows
from compal.stores.store import Store
from compal.stores.verify import verify
from compal.workspace import Workspace

# The hub's own client says so of an upload.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def server():
    made = FakeHub()
    yield made
    made.close()


@pytest.fixture
def there(server, monkeypatch, tmp_path):
    """The hub, empty, as the client finds it."""
    server.repositories.clear()
    server.objects.clear()
    server.asked.clear()
    server.messages.clear()
    server.refuse = 0
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", server.token)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    return server


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A workspace with a run `mine`, whose scores are saved, and a store of four items of the embedded world."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPAL_HOME", str(tmp_path / "work"))
    workspace = Workspace.find()
    spec = resolve("shapes-vit")
    scorer = build_head("linear", {}, Dims.of(spec))
    folder = workspace.runs / "mine"
    save_scorer(folder / "checkpoints" / "best.safetensors", scorer, spec)
    pairs = workspace.pairs_path("shapes", "train")
    said = {"dataset": "shapes", "licence": "Apache-2.0", "citation": "compal"}
    write_pairs(pairs, [], said)
    facts = {
        "command": f"/opt/venv/bin/compal fit linear --work {workspace.path} --set init=/data/secret/x.safetensors",
        "seed": 3, "features": {"backbone": spec.backbone, "level": spec.level, "fingerprint": spec.fingerprint},
        "pairs": {"train": {"path": str(pairs), "said": said}}, "parameters": 4096, "commit": "c0ffee" * 7,
        "versions": {"compal": "0.1.0", "torch": torch.__version__},
    }  # fmt: skip
    describe(folder, load_recipe("linear"), facts)
    (folder / "result.json").write_text(json.dumps({"steps": 2000, "best_step": 1800}))
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    score(workspace, folder / "checkpoints" / "best.safetensors")
    store = Store.create(workspace.stores / spec.folder, spec)
    keys = [letter * 64 for letter in "abcd"]
    sources = [f"shapes/train/{number}" for number in range(4)]
    tokens = np.random.default_rng(0).normal(size=(4, *spec.image_shape)).astype("f4")
    store.write_images("i-0", ImageRows(keys, sources, [(64, 64)] * 4, tokens, tokens[:, 0, : spec.pooled_dim]))
    store.commit(["i-0"])
    return workspace


def score(workspace, checkpoint):
    """Eight swap groups of which six are right."""
    groups = [
        Group(
            f"{n}", (f"i{2 * n}", f"i{2 * n + 1}"), (f"c{2 * n}", f"c{2 * n + 1}"), ((True, False), (False, True)), "x"
        )
        for n in range(8)
    ]
    right, wrong = [0.9, 0.1, 0.2, 0.8], [0.1, 0.9, 0.8, 0.2]
    values = np.array([right] * 6 + [wrong] * 2, np.float32).ravel()
    meta = {
        "benchmark": "shapes", "split": "in_domain", "title": "shapes", "metric": "quads", "label": "mine", "order": 1,
        "role": "scorer", "sample": "5a", "pools": {}, "averages": {}, "ks": [1], "pair_ks": [], "seed": 0,
        "headline": ["group"], "chance": {"i2t": 25.0, "t2i": 25.0, "group": 16.7}, "written": "2026-01-01",
        "citation": "", "store": {"backbone": "shapes-vit", "level": "tokens"},
        "scorer": {"checkpoint": str(checkpoint)},
    }  # fmt: skip
    results.save(workspace.path / "scores" / "shapes" / "mine", table(groups, values, "quads"), meta)


def test_a_head_arrives_whole_in_one_commit_and_scores_as_before(work, there):
    code, out, err = run("push-hub", "mine", "me/head", "--licence", "apache-2.0")
    assert (code, err) == (0, "")
    assert f"{there.url}/me/head" in out
    assert len(there.repositories["model", "me/head"]["main"]) == 2  # empty, then all
    assert there.private["model", "me/head"] is False
    files = there.files("model", "me/head")
    folder = work.runs / "mine"
    assert set(files) == {
        "README.md", "checkpoints/best.safetensors", "config.toml", "metrics.jsonl", "provenance.json", "result.json",
    }  # fmt: skip
    assert files["checkpoints/best.safetensors"] == (folder / "checkpoints" / "best.safetensors").read_bytes()
    assert files["config.toml"] == (folder / "config.toml").read_bytes()
    fetched = api.checkpoint("hf:me/head", work)
    spec = resolve("shapes-vit")
    before, after = (
        load_scorer(path, spec).state_dict() for path in (folder / "checkpoints/best.safetensors", fetched)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    (entry,) = scorers(SimpleNamespace(spec=spec), (), ["hf:me/head@main"], work, "cpu")
    assert entry.label == "head"
    assert entry.origin["seed"] == load_recipe("linear").seed


def test_nothing_of_this_machine_is_published(work, there):
    run("push-hub", "mine", "me/head", "--licence", "apache-2.0")
    for name, data in there.files("model", "me/head").items():
        if not name.endswith(".safetensors"):
            text = data.decode()
            assert str(work.path) not in text, name
            assert "/opt/venv" not in text, name
            assert "/data/secret" not in text, name
            assert there.token not in text, name


def test_the_card_says_what_is_saved(work, there):
    run("push-hub", "mine", "me/head", "--licence", "apache-2.0")
    card = ModelCard(there.files("model", "me/head")["README.md"].decode())
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "compal")
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    (result,) = card.data.eval_results
    row = results.row_of(work.path / "scores" / "shapes" / "mine").overall.metrics["group"]
    assert (result.dataset_type, result.dataset_split, result.metric_type) == ("shapes", "in_domain", "group")
    assert result.metric_value == row.value == 75.0
    assert f"95 % interval {row.low:.1f} to {row.high:.1f}, n 8" in result.metric_name
    assert "`linear` over frozen features of `shapes-vit`" in card.text
    assert "4,096 parameters" in card.text
    assert "compal fit linear --work compal-work --set init=x.safetensors" in card.text
    assert "Trained on `shapes`; licence: Apache-2.0" in card.text
    assert "2,000 steps, best at 1,800" in card.text
    bib = re.search(r"```bibtex\n(.*?)```", card.text, re.S)[1]
    assert {"arXiv:2502.03566", "arXiv:2204.03162"} <= {one for entry in bibtex.parse(bib) for one in entry.sources}


def test_commands_of_the_card_exist(work, there):
    code, out, _ = run("push-hub", "mine", "me/head", "--dry-run")
    lines = [shlex.split(line)[1:] for line in out.splitlines() if re.match(r"compal (extract|eval) ", line)]
    assert code == 0
    assert [line[0] for line in lines] == ["extract", "eval"]
    for line in lines:
        told = run(line[0], "--help")[1]
        assert all(word in told for word in line if word.startswith("--")), line
    assert not there.asked


def test_a_dry_run_lists_files_and_card_and_asks_nobody(work, there):
    told = json.loads(run("push-hub", "mine", "me/head", "--dry-run", "--json")[1])
    run("push-hub", "mine", "me/head", "--licence", "apache-2.0")
    files = there.files("model", "me/head")
    assert told["kind"] == "model"
    assert set(told["files"]) == set(files)
    for name in set(files) - {"README.md"}:
        assert told["files"][name] == len(files[name])
    assert told["card"].replace("license: other", "license: apache-2.0") == files["README.md"].decode()


def test_a_store_arrives_as_remotes_lay_it_out(work, there, tmp_path):
    code, _, err = run("push-hub", "shapes-vit", "me/features", "--licence", "apache-2.0", "--private")
    assert (code, err) == (0, "")
    assert there.private["dataset", "me/features"] is True
    files = there.files("dataset", "me/features")
    for name, data in files.items():
        (tmp_path / "remote" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "remote" / name).write_bytes(data)
    (path,) = work.list_stores()
    into = tmp_path / "pulled"
    transfer.pull(work.remote(str(tmp_path / "remote")), path.name, into)
    assert verify(into, deep=True) == []
    assert Store.open(into).count("image") == 4
    card = files["README.md"].decode()
    assert f"compal store pull {path.name} --remote hf://datasets/me/features" in card
    assert "4 images and 0 captions" in card


def test_an_interrupted_push_shows_nothing_and_goes_on(work, there):
    there.refuse = 1
    code, _, err = run("push-hub", "mine", "me/head", "--licence", "apache-2.0")
    assert code == 4
    assert "Run the same command again" in err
    assert there.token not in err
    assert there.files("model", "me/head") == {}
    assert run("push-hub", "mine", "me/head", "--licence", "apache-2.0")[0] == 0
    there.asked.clear()
    assert run("push-hub", "mine", "me/head", "--licence", "apache-2.0")[0] == 0
    assert not [path for method, path in there.asked if method == "PUT"]


def test_a_branch_a_message_and_a_card_of_ones_own(work, there):
    again = ("push-hub", "mine", "me/head", "--licence", "apache-2.0")
    run(*again, "--message", "first")
    assert there.messages == ["first"]
    branch = there.repositories["model", "me/head"]["main"]
    assert MARK in branch[-1]["README.md"].decode()
    branch.append(branch[-1] | {"README.md": b"# My own words\n"})
    assert "its own README.md was kept" in run(*again)[1]
    assert branch[-1]["README.md"] == b"# My own words\n"
    run(*again, "--revision", "v2")
    assert set(there.files("model", "me/head", "v2")) == set(branch[-1])


def test_who_may_not_is_told_in_one_line_without_the_token(work, there, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    code, out, err = run("push-hub", "mine", "me/head", "--licence", "apache-2.0")
    assert code == 4
    assert "HF_TOKEN" in err
    assert "hf_wrong" not in out + err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, _, err = run("push-hub", "mine", "me/head", "--licence", "apache-2.0")
    assert code == 4
    assert "does not answer" in err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in run("push-hub", "mine", "me/head", "--licence", "apache-2.0")[2]


def test_licences_are_asked_for(work, there):
    code, _, err = run("push-hub", "mine", "me/head")
    assert code == 2
    assert "--licence" in err
    assert "shapes: Apache-2.0" in err
    told = work.runs / "mine" / "provenance.json"
    facts = json.loads(told.read_text())
    facts["pairs"]["train"]["said"] = {"dataset": "flickr30k", "licence": "non-commercial research"}
    told.write_text(json.dumps(facts))
    code, _, err = run("push-hub", "mine", "me/head", "--licence", "apache-2.0")
    assert code == 2
    assert "flickr30k: non-commercial research" in err
    assert "needs --i-may: flickr30k" in run("push-hub", "mine", "me/head", "--dry-run")[1]
    assert not there.asked
    assert run("push-hub", "mine", "me/head", "--licence", "apache-2.0", "--i-may")[0] == 0


def test_what_cannot_be_pushed_is_one_line(work, there):
    assert "Did you mean 'mine'" in run("push-hub", "mime", "me/head", "--licence", "mit")[2]
    for name in ("head", "me/he ad", "a/b/c"):
        assert run("push-hub", "mine", name, "--licence", "mit")[0] == 2, name
    (work.runs / "mine" / "result.json").unlink()
    assert "no finished run" in run("push-hub", "mine", "me/head", "--licence", "mit")[2]
    (path,) = work.list_stores()
    chunk = next(path.rglob("c.0.0.0"))
    chunk.write_bytes(chunk.read_bytes()[:-7])
    code, _, err = run("push-hub", "shapes-vit", "me/features", "--licence", "mit")
    assert (code, "is not whole" in err) == (3, True)
    assert not there.asked


def test_a_run_of_the_hub_that_is_none(work, there):
    there.repositories["model", "me/other"] = {"main": [{"config.json": b"{}"}]}
    with pytest.raises(InputError, match="is no run of compal"):
        hub.fetch("me/other")
    with pytest.raises(RemoteError):
        hub.fetch("me/nothing")


def test_places_are_left_out_of_texts_and_addresses_stay(work):
    text = f"{work.path}/runs/a {Path.home()}/x /data/coco/val.json https://a.org/b/c IEEE/CVF 'hf:org/name' /x"
    assert without_places(text, work) == "compal-work/runs/a ~/x val.json https://a.org/b/c IEEE/CVF 'hf:org/name' /x"


@pytest.mark.parametrize(
    ("backbone", "name"),
    [("hf:google/siglip2-base@0123", "google/siglip2-base"), ("hf:/data/model", ""), ("shapes-vit", "")],
)
def test_the_base_model_of_a_backbone(backbone, name):
    assert base_model(backbone) == name


def test_the_base_model_of_a_tag_is_on_the_hub():
    assert base_model("open_clip:ViT-B-16-SigLIP2-256/webli").startswith("timm/")


def test_the_examples_name_options_that_exist():
    for line in re.findall(r"Example: (compal .+)", cli_hub.push_hub.__doc__):
        options = [word for word in shlex.split(line) if word.startswith("--")]
        help_text = run("push-hub", "--help")[1]
        assert all(option in help_text for option in options)
