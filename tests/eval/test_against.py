"""Why our number differs from another evaluator's: their code paths told again on our saved scores, to the item."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import layouts
import numpy as np
import pytest
from command_line import run

from compal import registry
from compal.errors import InputError, UnknownName
from compal.eval import against, imports, published, results
from compal.eval.references import random_scores
from compal.eval.results import load_results
from compal.eval.score import evaluate
from compal.eval.sources import Sources

MODEL = "ORG/NAME"
SEEDS = range(4)


def coarse(seed: int, count: int = 4):
    """A scorer of few values, so that there are ties."""
    return lambda images, captions, pairs: (
        np.floor(random_scores(seed)(images, captions, pairs) * count) / count
    ).astype(np.float32)


@pytest.fixture
def scored(filled, tmp_path):
    """`scored(benchmark, seed, **sources)` → the rows of a table, `coarse` among them, and its saved scores."""
    stores: dict[str, object] = {}

    def score(name: str, seed: int = 0, count: int = 4, **how):
        root = tmp_path / name
        if not root.exists():
            layouts.write(name, root)
        sources = Sources(root=root, **how)
        stores.setdefault(name, filled(name, Sources(root=root)))
        evaluate(name, sources, stores[name], {"coarse": coarse(seed, count)}, tmp_path / "scores")
        rows = load_results(tmp_path / "scores" / name)
        row = next(r for r in rows if r.label == "coarse" and r.variant == (how.get("variant") or ""))
        return rows, results.read(Path(row.folder))[0]

    return score


def mteb(path: Path, task: str, **scores: float) -> str:
    """A result of mteb for the model ORG/NAME."""
    folder = path / MODEL.replace("/", "__") / "revision"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{task}.json").write_text(json.dumps({"task_name": task, "scores": {"test": [scores]}}))
    return str(folder)


def compo(path: Path, **columns: float) -> str:
    """A table of vl_compo with one model, ORG/NAME."""
    row = {"arch": "ORG", "pretrained": "NAME", "family": "x", **columns}
    with open(path / "individual_results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    return str(path / "individual_results.csv")


def of(found, number: str, label: str = "coarse"):
    return next(one for one in found if (one.number, one.label) == (number, label))


def matrices(table, images: int, texts: int) -> np.ndarray:
    return np.stack([np.reshape(row, (images, texts)) for row in table["similarities"].to_pylist()])


def official(scores: np.ndarray) -> dict[str, float]:
    """_compute_metrics of mteb's image_text_pair_classification.py; CLIP_benchmark's image_caption_selection.py does
    the same to as many images and texts as there are of both."""
    image_score, text_score, both = [], [], []
    for score in scores:
        text = bool((score.argmax(axis=1) == np.arange(score.shape[0])).all())
        chosen = score.argmax(axis=0)
        image = len(chosen) == score.shape[0] and bool((chosen == np.arange(score.shape[1])).all())
        image_score.append(image)
        text_score.append(text)
        both.append(text and image)
    return {"image_acc": np.mean(image_score), "text_acc": np.mean(text_score), "accuracy": np.mean(both)}


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_left_of_mtebs_winoground_on_the_same_scores(scored, tmp_path, seed):
    rows, table = scored("winoground", seed, count=2)
    theirs = official(matrices(table, 2, 2))
    found = against.explain(rows, mteb(tmp_path, "Winoground", **theirs), MODEL)
    for number, metric in (("text_acc", "i2t"), ("image_acc", "t2i"), ("accuracy", "group")):
        one = of(found, f"Winoground {number}")
        assert (one.metric, one.left) == (metric, pytest.approx(0, abs=1e-9))
        assert one.published == pytest.approx(100 * theirs[number])
        assert [step.cause for step in one.steps] == ["ties"]


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_left_of_mtebs_sugarcrepe_and_ties_are_why(scored, tmp_path, seed):
    rows, table = scored("sugarcrepe", seed)
    scores = matrices(table, 1, 2)
    theirs = official(scores)
    one = of(against.explain(rows, mteb(tmp_path, "SugarCrepe", **theirs), MODEL), "SugarCrepe text_acc")
    strict = 100 * np.mean(scores[:, 0, 0] > scores[:, 0, 1])
    assert one.ours == pytest.approx(strict)
    assert one.ours < one.theirs == pytest.approx(100 * theirs["text_acc"])
    assert one.left == pytest.approx(0, abs=1e-9)
    assert one.steps[0].change == "lose → win"
    # What the layout lacks of the benchmark is told, and it is what a number of 7,511 rows cannot be held against.
    assert one.named["rows"] == "ours counts 20 and theirs 7,511 (99.73 points at most, if one holds the other)"


def test_what_is_left_is_counted_in_items(scored, tmp_path):
    rows, table = scored("sugarcrepe", 1)
    theirs = official(matrices(table, 1, 2))["text_acc"] + 3 / 20 * (-1)
    one = of(against.explain(rows, mteb(tmp_path, "SugarCrepe", text_acc=theirs), MODEL), "SugarCrepe text_acc")
    assert (one.left, one.items, one.n) == (pytest.approx(-15.0), pytest.approx(-3.0), 20)


def test_subsets_stand_against_their_own(scored, tmp_path):
    rows, table = scored("sugarcrepe", 2)
    hits = np.array([row[0] >= row[1] for row in table["similarities"].to_pylist()])
    part = np.array(table["category"].to_pylist()) == "swap_att"
    run_ = {
        "dataset": "sugar_crepe/swap_att",
        "model": "ORG",
        "pretrained": "NAME",
        "metrics": {"acc": hits[part].mean()},
    }
    (tmp_path / "run.json").write_text(json.dumps(run_))
    found = against.explain(rows, f"clip_benchmark:{tmp_path / 'run.json'}", MODEL)
    one = of(found, "sugar_crepe/swap_att acc")
    assert (one.left, one.n) == (pytest.approx(0, abs=1e-9), int(part.sum()))


def test_a_split_stands_against_that_part_alone(scored, tmp_path):
    rows, _ = scored("sugarcrepe", 2, split="swap_att")
    file = compo(tmp_path, **{"sugarcrepe::swap_att": 50.0, "sugarcrepe::swap_obj": 50.0})
    found = against.explain(rows, file, MODEL)
    assert {one.number for one in found} == {"sugarcrepe::swap_att"}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mean_over_relations_is_a_step(scored, tmp_path, seed):
    rows, table = scored("aro-relation", seed)
    names = np.array(table["category"].to_pylist())
    hits = np.array([row[0] > row[1] for row in table["similarities"].to_pylist()])
    theirs = 100 * np.mean([hits[names == name].mean() for name in np.unique(names) if name])
    one = of(against.explain(rows, compo(tmp_path, **{"aro::VG_Relation": theirs}), MODEL), "aro::VG_Relation")
    assert one.ours == pytest.approx(100 * hits.mean())
    assert [(step.cause, step.change) for step in one.steps] == [("aggregation", "accuracy → accuracy (macro)")]
    assert one.left == pytest.approx(0, abs=1e-9)


def test_rows_of_a_variant_are_a_step_where_it_was_scored(scored, tmp_path):
    root = tmp_path / "aro-coco-order"
    layouts.write("aro-coco-order", root)
    table = root / "coco_order.jsonl"
    lines = table.read_text().splitlines()
    row = json.loads(lines[1])
    row["caption_options"][4] = row["caption_options"][0]
    table.write_text("\n".join([lines[0], json.dumps(row), *lines[2:]]) + "\n")
    folder = mteb(tmp_path, "AROCocoOrder", text_acc=1.0)
    rows, _ = scored("aro-coco-order", 3)
    one = of(against.explain(rows, folder, MODEL), "AROCocoOrder text_acc")
    assert "variant with-identical, which was not scored" in one.named["rows"]
    rows, saved = scored("aro-coco-order", 3, variant="with-identical")
    wins = 100 * np.mean([np.argmax(scores) == 0 for scores in saved["similarities"].to_pylist()])
    one = of(against.explain(rows, folder, MODEL), "AROCocoOrder text_acc")
    assert [step.cause for step in one.steps] == ["ties", "rows"]
    assert one.theirs == pytest.approx(wins)


def test_a_mean_of_both_ways_and_a_mean_over_classes_are_steps(scored, tmp_path):
    rows, _ = scored("flickr30k-retrieval", 1, count=1 << 20)
    plain = next(row for row in rows if row.label == "coarse").overall.metrics
    mean = (plain["i2t_r@1"].value + plain["t2i_r@1"].value) / 200
    file = tmp_path / "openclip_results.csv"
    file.write_text(f"name,pretrained,Flickr\nORG,NAME,{mean}\n")
    one = of(against.explain(rows, str(file), MODEL), "Flickr")
    assert one.metric == "i2t_r@1"
    assert [step.cause for step in one.steps] == ["aggregation", "ties"]
    assert one.left == pytest.approx(0, abs=1e-9)
    rows, _ = scored("zeroshot", 1, count=1 << 20, split="pets")
    plain = next(row for row in rows if row.label == "coarse").overall.metrics
    file.write_text(f"name,pretrained,Oxford-IIIT Pet\nORG,NAME,{plain['mean_per_class'].value / 100}\n")
    one = of(against.explain(rows, str(file), MODEL), "Oxford-IIIT Pet")
    assert one.ours == plain["top1"].value
    assert one.steps[0].change == "top1 → mean_per_class"
    assert one.left == pytest.approx(0, abs=1e-9)


def test_answers_without_scores_have_no_rule_of_ties(scored, tmp_path):
    _, table = scored("sugarcrepe", 0)
    lines = [{"id": name, "correct": int(n % 2)} for n, name in enumerate(table["id"].to_pylist())]
    with open(tmp_path / "ids.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    imports.import_results(tmp_path / "ids.csv", "lab", tmp_path / "scores")
    found = against.explain(load_results(tmp_path / "scores"), mteb(tmp_path, "SugarCrepe", text_acc=0.5), MODEL)
    one = of(found, "SugarCrepe text_acc", "lab")
    assert (one.ours, one.left, one.steps) == (50.0, 0.0, ())
    assert "do not tell ties" in one.named["ties"]
    lab = [row for row in load_results(tmp_path / "scores") if row.label == "lab"]
    with pytest.raises(InputError, match=r"of no row here \(lab\) is it known which model it is\. .*--model"):
        against.explain(lab, mteb(tmp_path, "SugarCrepe", text_acc=0.5))


# --- what is known of the peers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", sorted(published.peers()))
def test_definitions_name_what_there_is(peer):
    """Benchmarks, variants, tie rules, parts and metrics are ours, each number is defined once, and sizes agree."""
    seen = set()
    for one in published.definitions(peer):
        module = registry.load("benchmarks", one.benchmark)
        info = module.INFO
        assert one.theirs not in seen
        seen.add(one.theirs)
        assert one.variant in ("", *info.get("variants", {}))
        assert one.ties in ("lose", "win", "half", "argmax")
        assert (one.ties == "argmax") <= (info["metric"] == "quads")
        if one.category and info.get("splits"):
            assert one.category in info["splits"]
        averages = {*getattr(module, "AVERAGES", {}), "macro"}
        for metric in one.metrics:
            base, _, average = metric.partition(" (")
            assert not average or average.rstrip(")") in averages
            assert base.startswith(("accuracy", "i2t", "t2i", "group", "top", "mean_per_class"))
        if not one.category and info["metric"] not in ("recall", "classification") and info.get("size"):
            assert one.rows == info["size"]
    parts: dict[str, int] = {}
    for one in published.definitions(peer):
        if one.benchmark in ("sugarcrepe", "valse") and one.category:
            parts[one.benchmark] = parts.get(one.benchmark, 0) + one.rows
    assert all(count == registry.load("benchmarks", name).INFO["size"] for name, count in parts.items())


@pytest.mark.parametrize(
    ("peer", "number", "value"),
    [
        ("clip_benchmark", "imagenet1k acc1", 63.334),
        ("clip_benchmark", "vtab/caltech101 mean_per_class_recall", 87.8652),
        ("clip_benchmark", "mscoco_captions image_retrieval_recall@5", 55.8457),
        ("openclip", "ImageNet 1k", 63.32),
        ("openclip", "Flickr", 68.84),
        ("openclip", "MSCOCO text retr. R@1", 50.12),
    ],
)
def test_what_is_shipped_says_what_was_published(peer, number, value):
    found = published.chosen(published.figures(peer), "", "open_clip:ViT-B-32-quickgelu/openai", peer)
    assert next(one.value for one in found if one.definition.name == number) == pytest.approx(value)


def test_only_what_has_a_licence_is_shipped():
    there = {path.name for path in published.FOLDER.iterdir()}
    ships = {name for told in published.peers().values() for name in told["ships"]}
    assert there == {"definitions.toml", "LICENSE.clip_benchmark.txt", "LICENSE.open_clip.txt", *ships}
    assert all(told["licence"] == "MIT" for told in published.peers().values() if told["ships"])
    assert sum(path.stat().st_size for path in published.FOLDER.iterdir()) < 100_000


def test_the_names_of_a_backbone():
    assert published.aliases("open_clip:ViT-B-32-quickgelu/openai") == [
        "ViT-B-32-quickgelu/openai", "ViT-B-32/openai", "openai/clip-vit-base-patch32",
    ]  # fmt: skip
    assert published.aliases("hf:openai/clip-vit-base-patch32@abc") == [
        "openai/clip-vit-base-patch32", "ViT-B-32-quickgelu/openai", "ViT-B-32/openai",
    ]  # fmt: skip


def test_the_activation_is_named_where_the_peers_name_leaves_it_open():
    definition = next(one for one in published.definitions("openclip") if one.name == "ImageNet 1k")
    row = results.ResultRow("imagenet", "", "cosine", "reference", "b", "s", results.Summary({}, 0, 0), {})
    for model, named in (("ViT-B-32/openai", True), ("ViT-B-32-quickgelu/openai", False), ("ViT-B-32/laion2b", False)):
        assert against._applies("activation", published.Figure(definition, model, 1.0, ""), row) == named


def test_errors_say_what_to_give(scored, tmp_path):
    rows, _ = scored("winoground")
    for peer, model, match in (
        ("mteb", "", "are not shipped .* Give a result file"),
        ("clip_benchmrk", "", "Did you mean 'clip_benchmark'"),
        ("openclip", "", "none of the benchmarks scored here .winoground."),
        ("clip_benchmark", "", "no number of random:8 .*--model NAME"),
        (mteb(tmp_path, "Winoground", text_acc=0.3), "ORG/NAM", "no model of mteb 'ORG/NAM'. It has ORG/NAME"),
    ):
        with pytest.raises((InputError, UnknownName), match=match) as error:
            against.explain(rows, peer, model)
        assert "\n" not in str(error.value)


def test_tables_and_the_command(scored, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPAL_HOME", str(tmp_path / "none"))
    rows, _ = scored("winoground", 0, count=2)
    peer = mteb(tmp_path, "Winoground", text_acc=0.3125, image_acc=0.1125, accuracy=0.09)
    found = against.explain(rows, peer, MODEL)
    assert {one.label for one in found} == {"cosine", "coarse"}
    text = against.rendered(found, "md")
    assert "| Winoground text_acc | 31.25 |" in text
    assert "ties lose → argmax" in text
    assert "Not in the scores: weights" in text
    assert r"\toprule" in against.rendered(found, "latex")
    lines = list(csv.DictReader(io.StringIO(against.rendered(found, "csv"))))
    assert len(lines) == 6
    told = json.loads(against.rendered(found, "json"))["against"]
    assert told[0]["left"] == float(lines[0]["left"])
    with pytest.raises(UnknownName, match="latex"):
        against.rendered(found, "latx")
    saved = str(tmp_path / "scores")
    code, out, _ = run("report", saved, "--against", peer, "--model", MODEL, "--format", "md")
    assert (code, out) == (0, text)
    out = run("report", saved, "coarse", "--against", peer, "--model", MODEL, "--json")[1]
    assert {one["label"] for one in json.loads(out)["against"]} == {"coarse"}
    assert run("report", saved, "--against", "mteb")[0] == 1
    assert run("report", saved, "--model", MODEL)[0] == 2
    assert run("report", saved, "--against", peer, "--ties", "win")[0] == 2
    assert run("eval", "winoground", "--against", "nobody")[0] == 1


def test_eval_explains_what_it_scored(sugarcrepe, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPAL_HOME", str(tmp_path / "work"))
    peer = mteb(tmp_path, "SugarCrepe", text_acc=0.75)
    what = ["--backbone", "random:4x8", "--root", str(sugarcrepe), "--extract"]
    code, out, error = run("eval", "sugarcrepe", *what, "--against", peer, "--model", MODEL, "--json")
    assert (code, error) == (0, "")
    told = json.loads(out)["against"]
    assert [(one["label"], one["published"]) for one in told] == [("cosine", 75.0)]
