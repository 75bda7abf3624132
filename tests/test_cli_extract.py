"""`compal extract`: several levels, dry runs, the second time, and settings that make no sense."""

import json
import subprocess
import sys

import pytest
from command_line import rows, run, table

from compal.align.pairs import PairTable
from compal.pipeline import negatives_table
from compal.pipeline.segmenters import rules
from compal.stores.items import caption_key
from compal.stores.pairs import read_info, read_pairs
from compal.stores.segments import read_segments
from compal.stores.store import Store
from compal.workspace import Workspace


@pytest.fixture
def work(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    monkeypatch.setenv("COMPAL_HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def extract(*arguments):
    code, out, error = run("extract", "--backbone", "random:4x8", "--json", *arguments)
    assert code == 0, error
    return json.loads(out)


def test_several_levels_make_several_stores(work, tmp_path):
    path = table(tmp_path / "set", rows(5))
    done = extract("--data", path, "--level", "tokens,pooled", "--level", "regions")
    assert [(one["level"], one["images"], one["texts"]) for one in done] == [
        ("tokens", 5, 5),
        ("pooled", 5, 5),
        ("regions", 5, 5),
    ]
    assert len({one["store"] for one in done}) == 3
    assert all(Store.open(one["store"]).count("image") == 5 for one in done)
    assert all(one["bytes"] > 0 for one in done)
    half = extract("--data", path, "--precision", "bfloat16")
    assert half[0]["store"] not in {one["store"] for one in done}


def test_a_dry_run_of_levels_and_of_a_benchmark(work, tmp_path):
    path = table(tmp_path / "set", rows(5))
    tokens, pooled = extract("--data", path, "--level", "tokens,pooled", "--dry-run")
    assert (tokens["images"], tokens["parts"], pooled["bytes"]) == (5, 2, 2 * 5 * 2 * 8)
    assert tokens["seconds"] > 0
    assert "a short timed pass" in tokens["basis"]
    assert not work.exists()
    extract("--data", path)
    more = table(tmp_path / "more", rows(7))
    (again,) = extract("--data", more, "--dry-run")
    assert (again["images"], again["reused"]) == (2, 10)
    assert "earlier parts" in again["basis"]
    (there,) = extract("--data", path, "--dry-run")
    assert (there["parts"], there["seconds"], there["basis"]) == (0, None, "")
    (bench,) = extract("--benchmark", "shapes", "--limit", "2", "--dry-run")
    assert bench["images"] > 0
    code, out, _ = run("extract", "--backbone", "random:4x8", "--data", more, "--dry-run")
    assert code == 0
    assert "would extract 2 images and 2 captions in 2 parts" in out


def test_a_dataset_that_shares_four_fifths_extracts_one(work, tmp_path):
    told = [{"image": f"{n}.png", "caption": f"picture number {n}"} for n in range(12)]
    path = table(tmp_path / "set", told)
    other = path.with_name("other.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in told[:10]))
    other.write_text("".join(json.dumps(row) + "\n" for row in told[2:]))
    assert extract("--data", path)[0]["images"] == 10
    (more,) = extract("--data", other)
    assert (more["images"], more["texts"], more["reused"]) == (2, 2, 16)


def test_the_second_time_imports_no_torch(work, tmp_path):
    path = table(tmp_path / "set", rows(4))
    extract("--data", path)
    code = (
        "import sys\nfrom compal.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, "extract", "--backbone", "random:4x8", "--data", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["forward_seconds"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--batch-size", "0"], 2, "neither 'auto' nor a number"),
        (["--batch-size", "many"], 2, "neither 'auto' nor a number"),
        (["--level", "tokens,tokens"], 2, "name each level once"),
        (["--precision", "float8"], 1, "no precision 'float8'"),
        (["--jpeg", "half"], 1, "exact, reduced"),
        (["--engine", "locall"], 1, "Did you mean 'local'?"),
        (["--benchmark", "shapes"], 2, "brings its own items"),
    ],
)
def test_settings_that_make_no_sense(work, tmp_path, arguments, code, expected):
    path = table(tmp_path / "set", rows(2))
    found, _, error = run("extract", "--backbone", "random:4x8", "--data", path, *arguments)
    assert (found, expected in error) == (code, True), error


def test_a_fixed_batch_size_and_a_compiled_backbone_that_cannot_be(work, tmp_path):
    path = table(tmp_path / "set", rows(3))
    (done,) = extract("--data", path, "--batch-size", "2", "--workers", "1")
    assert done["images"] == 3
    code, _, error = run("extract", "--backbone", "random:9x8", "--data", path, "--compile")
    assert (code, "cannot be compiled" in error) == (2, True)


# --- segments ----------------------------------------------------------------------------------------


def test_captions_are_segmented_once_and_every_store_keeps_it(work, tmp_path, monkeypatch):
    told = [{"image": f"{n}.png", "caption": f"a red cup on {n} tables"} for n in range(4)]
    options = ["--backbone", "shapes-vit", "--segments", "rules"]
    arguments = [*options, "--data", table(tmp_path / "set", told)]
    asked, plain = [], rules.segment
    monkeypatch.setattr(rules, "segment", lambda some, argument: asked.extend(some) or plain(some, argument))
    extract(*arguments, "--level", "regions", "--dry-run")
    assert len(asked) == 4
    assert not work.exists(), "a dry run keeps nothing"
    asked.clear()
    done = extract(*arguments, "--level", "tokens,pooled,block:-1,pixels,regions,regions:roi")
    assert sorted(asked) == [row["caption"] for row in told]
    stores = {one["level"]: Store.open(one["store"]) for one in done}
    tables = [read_segments(store.path, "rules", rules.VERSION) for store in stores.values()]
    assert all(found == tables[0] and len(found) == 4 for found in tables)
    said = {level: store.spec.extra.get("segments") for level, store in stores.items()}
    assert said == {level: f"rules {rules.VERSION}" if level.startswith("regions") else None for level in stores}
    asked.clear()
    assert extract(*arguments, "--level", "regions")[0]["texts"] == 0
    more = table(tmp_path / "more", [*told, {"image": "9.png", "caption": "two blue dogs"}])
    extract(*options, "--data", more, "--level", "tokens,pooled")
    assert asked == ["two blue dogs"]
    keys = [caption_key(row["caption"]) for row in told]
    assert stores["regions"].text_tokens(keys)[1].sum(1).tolist() == [2] * 4  # "a red cup", "2 tables"


@pytest.mark.parametrize(
    ("segmenter", "code", "expected"),
    [("ruls", 1, "Did you mean 'rules'?"), ("rules:x", 2, "takes no argument"), ("dataset:x", 2, "takes no argument")],
)
@pytest.mark.parametrize("level", ["pooled", "regions"])
def test_a_segmenter_that_cannot_be_makes_no_store(work, tmp_path, segmenter, code, expected, level):
    path = table(tmp_path / "set", rows(2))
    arguments = ["--backbone", "random:4x8", "--data", path, "--level", level, "--segments", segmenter]
    for dry in ([], ["--dry-run"]):
        found, _, error = run("extract", *arguments, *dry)
        assert (found, expected in error) == (code, True), error
    assert not (work / "stores").exists()


# --- negatives ---------------------------------------------------------------------------------------


def test_negatives_are_extracted_and_paired(work):
    data = ["--data", "shapes", "--split", "train", "--limit", "6"]
    for method in ("swap", "replace"):
        assert run("negatives", "--method", method, *data)[0] == 0
    swap, replace = (next((work / "negatives").glob(f"shapes-train-{method}-*")) for method in ("swap", "replace"))
    both = ["--negatives", "shapes-train-swap", "--negatives", replace]
    (plain,), (planned,) = (extract(*data, *more, "--dry-run") for more in ([], both))
    extract(*data)
    file = Workspace.find().pairs_path("shapes", "train")
    before = read_pairs(file).to_pylist()
    (done,) = extract(*data, *both, "--negatives", swap)
    assert done["texts"] == planned["texts"] - plain["texts"] > 12
    assert not done["notes"]
    made = {}
    for path in (swap, replace):
        for row in negatives_table.read(path).rows.to_pylist():
            made.setdefault(row["key"], []).append(caption_key(row["negative"]))
    pairs = read_pairs(file).to_pylist()
    assert len(pairs) == 12
    for pair, own in zip(pairs, before, strict=True):
        assert pair["negatives"] == list(dict.fromkeys([*own["negatives"], *made[pair["caption"]]]))
    assert Store.open(done["store"]).has("text", [key for pair in pairs for key in pair["negatives"]]).all()
    assert read_info(file)["negatives"] == f"{swap.stem}, {replace.stem}"
    (other,) = extract("--data", "shapes", "--split", "validation", "--limit", "2", "--negatives", swap)
    assert f"has no caption of the table of negatives {swap.stem}" in other["notes"][0]
    (without,) = extract(*data, "--negatives", swap)
    assert f"no longer have the negatives of {replace.stem}" in without["notes"][0]


def test_negatives_that_are_none(work, tmp_path):
    path = table(tmp_path / "set", rows(2))
    for name, code, expected in (("nothing", 1, "no table of negatives 'nothing'"), (path, 3, "cannot be read")):
        for dry in ([], ["--dry-run"]):
            found, _, error = run("extract", "--backbone", "random:4x8", "--data", path, "--negatives", name, *dry)
            assert (found, expected in error) == (code, True), error
    assert not (work / "stores").exists()


# --- noun phrases ------------------------------------------------------------------------------------


def test_noun_phrases_are_captions_of_the_store(work):
    data = ["--data", "shapes", "--split", "train", "--limit", "4"]
    (plain,), (planned,) = (extract(*data, *more, "--dry-run") for more in ([], ["--phrases"]))
    extract(*data)
    (done,) = extract(*data, "--phrases")
    assert done["texts"] == planned["texts"] - plain["texts"] > 4
    texts = Store.open(done["store"]).table("text").select(["key", "caption", "segments"]).to_pylist()
    assert len({row["key"] for row in texts}) == len(texts) == planned["texts"]
    said = {row["caption"] for row in texts}
    for row in texts:
        for segment in row["segments"]:
            if segment["kind"] in ("object", "phrase"):
                assert row["caption"][segment["start"] : segment["end"]].lower() in said
    assert extract(*data, "--phrases")[0]["texts"] == 0


def test_noun_phrases_need_segments(work, tmp_path):
    """A cup, in capitals and not, is one phrase; captions that came before their segments get them beside the store."""
    told = [{"image": f"{n}.png", "caption": caption} for n, caption in enumerate(("A red cup", "a red cup by a dog"))]
    data = ["--data", table(tmp_path / "set", told)]
    for dry in ([], ["--dry-run"]):
        code, _, error = run("extract", "--backbone", "random:4x8", *data, "--phrases", *dry)
        assert (code, "none of the 2 captions" in error, "--segments rules" in error) == (1, True, True), error
    assert not (work / "stores").exists()
    extract(*data)
    (done,) = extract(*data, "--phrases", "--segments", "rules")
    assert done["texts"] == 2  # "a red cup", "a dog"
    store = Store.open(done["store"])
    assert store.has("text", [caption_key(text) for text in ("a red cup", "a dog")]).all()
    table_of = PairTable.read(next((work / "pairs").rglob("*.parquet")), store, phrases=True)
    found = [[table_of.caption_keys[row] for row in table_of.phrases_of(pair)] for pair in range(2)]
    assert found == [[caption_key("a red cup")], [caption_key("a red cup"), caption_key("a dog")]]
    code, _, error = run("extract", "--benchmark", "shapes", "--phrases")
    assert (code, "brings its own items" in error) == (2, True)


# --- levels that come of others ----------------------------------------------------------------------


def test_pooled_regions_and_their_tokens_in_one_command(work):
    data = ["--data", "shapes", "--split", "train", "--limit", "3"]
    code, _, error = run("extract", "--backbone", "random:4x8", *data, "--level", "regions:roi")
    assert (code, "--level tokens" in error) == (1, True), error
    planned = extract(*data, "--level", "regions:roi,tokens,pooled", "--dry-run")
    done = extract(*data, "--level", "regions:roi,tokens,pooled")
    expected = [("regions:roi", 6, 6), ("tokens", 6, 6), ("pooled", 6, 6)]
    for found in (planned, done):
        assert [(one["level"], one["images"], one["texts"]) for one in found] == expected
    regions = Store.open(done[0]["store"])
    assert regions.count("image") == regions.count("text") == 6
    again = extract(*data, "--level", "tokens,regions:roi")
    assert [(one["images"], one["reused"]) for one in again] == [(0, 12)] * 2
