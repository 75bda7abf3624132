"""`compal cite`: every part's papers are in the table, and a run, a row, a store cite what they used and no more."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import pytest
from command_line import run

from compal import registry
from compal.align.recipe import load_recipe
from compal.align.runs import describe
from compal.cli import cite as cli_cite
from compal.errors import InputError, UnknownName
from compal.publish import bibtex, sources
from compal.publish.citations import SOFTWARE, Bibliography, recipe_of
from compal.publish.cite import KINDS, cited, render
from compal.stores.items import Pair
from compal.stores.pairs import write_pairs
from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Store
from compal.workspace import Workspace

TFLOCAL, CLIP, NEGCLIP, SIGLIP2 = "arXiv:2604.11496", "arXiv:2103.00020", "arXiv:2210.01936", "arXiv:2502.14786"
BIVLC, SUGARCREPE = "arXiv:2406.09952", "arXiv:2306.14610"
FEATURES = {"backbone": "open_clip:ViT-B-16-SigLIP2-256/webli", "level": "tokens", "fingerprint": "0" * 64}
PARTS = [(kind, name) for kind in KINDS for name in registry.names(kind)]


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPAL_HOME", str(tmp_path / "work"))
    return Workspace.find()


def fitted(work, name, recipe, command="", said=None, **told):
    """A run's folder as `fit` leaves it, without weights."""
    table = work.pairs_path("trohn-img", "train")
    write_pairs(table, [Pair("i", "c")], said)
    facts = {"command": command, "features": FEATURES, "pairs": {"train": {"path": str(table)}}, "commit": "c0ffee" * 7}
    describe(work.runs / name, load_recipe(recipe), facts | {"versions": {"compal": "0.1.0", "torch": "2.9.1"}} | told)
    return name


def found(work, *names):
    """Sources → what they are cited for."""
    return {one.source: one.used_for for one in cited(names, work).citations()}


# --- the table ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=lambda part: part)
def test_what_a_part_names_is_in_the_table(kind, name):
    lacking = [source for source in sources.of_part(kind, name) if source not in bibtex.known()]
    assert not lacking, f"add {lacking} to assets/citations.bib"


@pytest.mark.parametrize("name", ["open_clip", "hf"])
def test_papers_of_families_are_in_the_table(name):
    told = sources._literals(registry.path("backbones", name).read_text())["CITE"]
    assert {source for those in told.values() for source in those} <= set(bibtex.known())


def test_every_entry_is_named_by_something():
    named = {source for kind, name in PARTS for source in sources.of_part(kind, name)} | set(SOFTWARE.values())
    for name in ("open_clip", "hf"):
        told = sources._literals(registry.path("backbones", name).read_text())["CITE"]
        named |= {source for those in told.values() for source in those}
    named |= {"arXiv:2106.09685", "arXiv:2109.01903", "arXiv:2208.05592"}  # low-rank tuning, patching
    assert not {entry.key for entry in bibtex.known().values() if not named & set(entry.sources)}


def test_the_table_is_valid_bibtex():
    entries = bibtex.parse(bibtex.FILE.read_text(encoding="utf-8"))
    assert len(entries) > 60
    assert len({source for entry in entries for source in entry.sources}) == sum(len(e.sources) for e in entries)
    for entry in entries:
        assert {"title", "author"} <= entry.fields.keys(), entry.key
        assert entry.kind in ("article", "inproceedings", "misc", "software"), entry.key
        assert ("booktitle" in entry.fields) == (entry.kind == "inproceedings"), entry.key
        assert ("journal" in entry.fields) == (entry.kind == "article"), entry.key
        eprint = entry.fields.get("eprint", "")
        assert not eprint or entry.fields["url"] == f"https://arxiv.org/abs/{eprint}", entry.key
        for name in ("title", "author", "booktitle", "journal"):
            value = entry.fields.get(name, "")
            assert not re.search(r"(?<!\\)[&%$#_~^]", value), f"{entry.key}: {name} is not LaTeX"
            assert value.isascii(), f"{entry.key}: {name}"


def test_what_is_written_reads_back():
    entries = bibtex.parse(bibtex.FILE.read_text(encoding="utf-8"))
    assert bibtex.parse("\n\n".join(entry.bibtex() for entry in entries)) == entries


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@misc{a, title = {x}", "line 1: a does not end"),
        ("\n@misc{a, title = {x{y}", "line 2: a brace or quote"),
        ("@misc{a, title = x}", "a value is in braces"),
        ("@misc{a, title = {x}, title = {y}}", "title stands twice"),
        ("@misc{a, title = {x}}\n@misc{a, title = {y}}", "line 2: the key a"),
        ("title = {x}", "no entry begins"),
        ("@misc{a b, title = {x}}", "no entry begins"),
    ],
)
def test_bibtex_that_is_not_whole_is_refused(text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        bibtex.parse(text)


def test_bibtex_of_others_is_read():
    text = '% hand-made\n@Article{k:1, Title = "A {B} c", year = 2020 , note={x \\} y}}'
    (entry,) = bibtex.parse(text)
    assert (entry.kind, entry.key) == ("article", "k:1")
    assert entry.fields == {"title": "A {B} c", "year": "2020", "note": "x \\} y"}


def test_plain_text_becomes_latex_and_back():
    text = "50 % of A&B_c #1 {x} ~ $5"
    assert bibtex.escaped(text) == r"50 \% of A\&B\_c \#1 \{x\} \textasciitilde{} \$5"
    assert bibtex.plain(bibtex.escaped("50 % of A&B_c #1")) == "50 % of A&B_c #1"


# --- sources of a part --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "those"),
    [
        ("x (arXiv 2604.11496)", [TFLOCAL]),
        ("x, arXiv:2103.00020 and 2210.01936v2.", [CLIP, NEGCLIP]),
        (
            "TACL 2014, doi:10.1162/tacl_a_00166; splits: arXiv:1412.2306",
            ["doi:10.1162/tacl_a_00166", "arXiv:1412.2306"],
        ),
        ("accuracy 2013.55555 or 0.1234, 10.1145/3746027.3755032, 12345.67890", []),
    ],
)
def test_papers_are_found_in_text(text, those):
    assert list(sources.sources_in(text)) == those


@pytest.mark.parametrize(
    ("argument", "those"),
    [
        ("ViT-B-32-quickgelu/openai", [CLIP]),
        ("ViT-B-32/laion2b_s34b_b79k", ["arXiv:2212.07143", "arXiv:2210.08402"]),
        ("ViT-B-16-SigLIP/webli", ["arXiv:2303.15343"]),
        ("ViT-B-16-SigLIP2-256/webli", [SIGLIP2]),
        ("PE-Core-B-16/meta", ["arXiv:2504.13181"]),
        ("RN50/yfcc15m", []),
    ],
)
def test_an_encoder_cites_the_paper_of_its_weights(argument, those):
    assert list(sources.of_part("backbones", "open_clip", argument)) == those


# --- what was used ------------------------------------------------------------------------------------


def test_a_run_cites_its_head_objective_encoder_data_and_software(work):
    run_id = fitted(work, "tflocal-abcdef01", "tflocal", "compal fit tflocal --backbone siglip2 --data trohn-img")
    told = found(work, run_id)
    assert told[TFLOCAL] == ("recipe tflocal", "head tflocal")
    assert told[CLIP] == ("loss infonce",)
    assert told[SIGLIP2] == ("backbone open_clip:ViT-B-16-SigLIP2-256/webli",)
    assert told[BIVLC] == ("dataset trohn-img",)
    assert {SOFTWARE[name] for name in ("compal", "torch", "open_clip_torch", "timm", "zarr")} <= told.keys()
    assert not {SOFTWARE[name] for name in ("transformers", "faiss", "spacy")} & told.keys()
    versions = {one.source: one.entry.fields.get("note") for one in cited([run_id], work).citations()}
    assert versions[SOFTWARE["torch"]] == "Version 2.9.1"
    assert versions[SOFTWARE["compal"]] == "Version 0.1.0, commit c0ffeec0ffee"


def test_other_parts_are_other_citations(work):
    told = found(
        work, fitted(work, "degla", "degla", features=FEATURES | {"backbone": "hf:openai/clip-vit-base-patch32"})
    )
    assert told["arXiv:2504.16801"] == ("recipe degla", "loss degla")
    assert {CLIP, SOFTWARE["transformers"]} <= told.keys()
    assert not {TFLOCAL, SIGLIP2, SOFTWARE["timm"]} & told.keys()


@pytest.mark.parametrize(
    ("command", "folder", "name"),
    [
        ("compal fit tflocal --set 'a=b c'", "mine", "tflocal"),
        ("/x/compal --quiet fit --backbone clip degla-coco", "mine", "degla-coco"),
        ("compal fit own.toml", "tflocal-0123abcd", "tflocal"),
        ("compal fit own.toml", "own-0123abcd", ""),
        ("torn 'quote", "flair", "flair"),
    ],
)
def test_the_recipe_of_a_run(command, folder, name):
    assert recipe_of(command, folder) == name


def test_data_that_brings_its_own_citation_and_negatives(work):
    card = "@article{me2025, title = {Mine}, author = {Me}, doi = {10.1/x}}"
    said = {"dataset": "huggingface:org/name", "citation": card, "negatives": "replace-0a, swap-1b"}
    told = cited([fitted(work, "linear-x", "linear", said=said)], work)
    mine = next(one for one in told.citations() if one.source == "doi:10.1/x")
    assert (mine.entry.key, mine.used_for) == ("me2025", ("dataset huggingface:org/name",))
    assert mine.entry.bibtex() in render(told)
    assert {"arXiv:2402.15021", NEGCLIP, "doi:10.1145/219717.219748"} <= {one.source for one in told.citations()}
    assert "dataset huggingface:org/name" not in told.without


def test_low_rank_tuning_mining_and_patching(work):
    run_id = fitted(work, "tuned", "finetune")
    config = work.runs / run_id / "config.toml"
    config.write_text(config.read_text().replace("lora = 0", "lora = 4").replace("\nk = 0\n", "\nk = 8\n"))
    told = found(work, run_id)
    assert "arXiv:2106.09685" in told
    assert SOFTWARE["faiss"] in told
    patch = {"kind": "heads", "alpha": 0.5, "base": {"name": "init"}, "tuned": {"name": "run:tuned"}}
    folder = work.runs / "between"
    folder.mkdir()
    (folder / "provenance.json").write_text(json.dumps({"patch": patch, "features": FEATURES}))
    told = found(work, "between")
    assert {"arXiv:2109.01903", "arXiv:2106.09685", SIGLIP2} <= told.keys()


def test_towers_of_a_run_lead_to_the_run(work):
    fitted(work, "degla-x", "degla")
    told = found(work, fitted(work, "linear", "linear", features=FEATURES | {"backbone": "run:degla-x"}))
    assert {"arXiv:2504.16801", SIGLIP2} <= told.keys()


def scored(work, label="mine", **told):
    folder = work.path / "scores" / "sugarcrepe" / label
    folder.mkdir(parents=True)
    meta = {
        "benchmark": "sugarcrepe", "citation": "Hsieh et al., arXiv:2306.14610", "label": label,
        "store": {"backbone": "open_clip:ViT-B-32-quickgelu/openai", "level": "tokens"}, "scorer": {},
        "versions": {"compal": "0.1.0", "numpy": "2.0"},
    }  # fmt: skip
    (folder / "scores.json").write_text(json.dumps(meta | told))
    return folder


def test_a_row_cites_benchmark_encoder_head_and_its_run(work):
    run_id = fitted(work, "flair-x", "flair")
    checkpoint = work.runs / run_id / "checkpoints" / "best.safetensors"
    folder = scored(work, scorer={"class": "compal.align.heads.flair.Flair", "checkpoint": str(checkpoint)})
    told = found(work, str(folder))
    assert told[SUGARCREPE] == ("benchmark sugarcrepe",)
    assert "backbone open_clip:ViT-B-32-quickgelu/openai" in told[CLIP]
    assert {"arXiv:2412.03561", BIVLC} <= told.keys()
    assert found(work, "mine") == told == found(work)
    assert SOFTWARE["faiss"] not in told


def test_regions_and_an_index_of_a_row(work):
    scorer = {"class": "compal.align.heads.maxsim.MaxSim", "rerank": {"k": 5, "index": "ivf"}}
    told = found(work, str(scored(work, store={"backbone": "shapes-vit", "level": "regions:grid"}, scorer=scorer)))
    assert {"arXiv:2506.09691", "arXiv:2111.07783", SOFTWARE["faiss"]} <= told.keys()


def test_a_store_cites_its_encoder_and_the_data_of_its_items(work):
    spec = FeatureSpec(
        backbone="open_clip:PE-Core-B-16/meta", weights="w", pooled_dim=4, image_shape=(2, 4), image_prefix=0,
        image_grid=(1, 2), text_dim=4, context_length=5, dtype="float32",
    )  # fmt: skip
    store = Store.create(work.stores / spec.folder, spec)
    rows = ImageRows(
        keys=["a" * 64, "b" * 64],
        sources=["coco/val/1", "bivlc/2"],
        sizes=[(1, 1)] * 2,
        tokens=np.ones((2, 2, 4), np.float32),
        pooled=np.ones((2, 4), np.float32),
    )
    store.write_images("i-0", rows)
    store.commit(["i-0"])
    told = found(work, spec.folder[:8])
    assert told["arXiv:2504.13181"] == ("backbone open_clip:PE-Core-B-16/meta",)
    assert told["arXiv:1504.00325"] == ("dataset coco",)
    assert told[BIVLC] == ("benchmark bivlc",)
    assert found(work, str(store.path)) == told


def test_parts_by_name(work):
    told = found(work, "tflocal-trohn-img-pe")
    assert {TFLOCAL, BIVLC, "arXiv:2504.13181"} <= told.keys()
    assert found(work, "siglip2")[SIGLIP2] == ("backbone siglip2",)
    assert found(work, "shipped:tflocal")[TFLOCAL] == ("head tflocal",)
    own = work.path.parent / "own.toml"
    own.write_text('[head]\nname = "flair"\n')
    assert "arXiv:2412.03561" in found(work, str(own))
    own.write_text('[head]\nname = "my_package.my_head"\n')
    assert cited([str(own)], work).without == {"head my_package.my_head": "a part outside the project"}


def test_a_paper_that_is_not_in_the_table_is_cited_by_its_number(work):
    bib = Bibliography(work)
    bib.add("methods", "head mine", ["arXiv:2999.12345", "doi:10.5/a_b"])
    first, second = bibtex.parse(render(bib))
    assert first.fields["eprint"] == "2999.12345"
    assert "author" not in first.fields
    assert second.fields == {"title": r"doi:10.5/a\_b", "doi": "10.5/a_b"}


# --- the command --------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", re.findall(r"Example: compal (.+)", cli_cite.cite.__doc__))
def test_the_examples_run(work, line):
    code, out, err = run(*shlex.split(line))
    assert (code, err) == (0, "")
    assert "2604.11496" in out or "2306.14610" in out


def test_formats_agree_and_each_entry_stands_once(work):
    fitted(work, "tflocal-abcdef01", "tflocal")
    names = ["tflocal-abcdef01", "tflocal", "sugarcrepe"]
    code, out, _ = run("cite", *names)
    entries = bibtex.parse(out)
    assert code == 0
    assert len({entry.key for entry in entries}) == len(entries)
    told = json.loads(run("cite", *names, "--json")[1])
    assert [one["key"] for one in told["citations"]] == [entry.key for entry in entries]
    assert {one["bibtex"] for one in told["citations"]} == {entry.bibtex() for entry in entries}
    text = run("cite", *names, "--format", "text")[1]
    assert all(one["text"] in text for one in told["citations"])


def test_a_file_is_written_and_never_over_another(work):
    assert run("cite", "flair", "--out", "refs.bib") == (0, "refs.bib\n", "")
    text = (work.path.parent / "refs.bib").read_text()
    assert bibtex.parse(text)
    code, _, err = run("cite", "degla", "--out", "refs.bib")
    assert (code, err) == (1, "refs.bib exists. Name another file, or remove this one.")
    assert (work.path.parent / "refs.bib").read_text() == text


def test_what_cannot_be_cited_is_one_line(work):
    code, _, err = run("cite", "sugarcrep")
    assert code == 1
    assert "\n" not in err
    assert "Did you mean 'sugarcrepe'?" in err
    assert "Name a run, store, benchmark" in run("cite")[2]
    assert run("cite", "flair", "--format", "bibtx")[0] == 1
    (work.path.parent / "empty").mkdir()
    assert "holds no run" in run("cite", "empty")[2]
    with pytest.raises(UnknownName):
        cited(["shipped:nothing"], work)
    fitted(work, "broken", "linear")
    (work.runs / "broken" / "provenance.json").write_text("{")
    assert "cannot be read" in run("cite", "broken")[2]
