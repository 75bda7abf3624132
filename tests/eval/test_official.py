"""Ours against the official scorers' code paths, told again here, on the same similarities.

Official rows are read from the files in the official order of options, scores come from the keys of images and
captions and have few values, so that there are ties; what an official argmax does with them is the benchmark's tie
rule, and ours under that rule must equal it; ours is strict by default.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import layouts
import numpy as np
import pytest

from compal import registry
from compal.eval import results
from compal.eval.benchmarks import aro_relation as aro_relation_module
from compal.eval.references import random_scores
from compal.eval.score import Options, evaluate
from compal.eval.sources import Sources, check
from compal.stores.items import caption_key

LEVELS = 4
FINE = (100, 101)
"""Seeds whose scores have a million values, so that no two of a row are equal."""
SEEDS = (*range(5), *FINE)
MORE = (*range(12), *FINE)


def levels(seed: int, image: str, captions: list[str], count: int = LEVELS) -> np.ndarray:
    """Similarities (C,) of an image key to caption keys, of `count` values, float32."""
    pairs = np.array([(0, place) for place in range(len(captions))])
    return (np.floor(random_scores(seed)([image], captions, pairs) * count) / count).astype(np.float32)


class Scored:
    """A benchmark in its official layout, its groups, and scores of every image and caption text."""

    def __init__(self, name: str, root: Path, seed: int, count: int = 0, **how):
        layouts.write(name, root)
        self.root, self.seed, self.count = root, seed, count or (1 << 20 if seed in FINE else LEVELS)
        self.module = registry.load("benchmarks", name)
        self.groups = check(list(self.module.groups(Sources(root=root, **how))), self.module.INFO["metric"])

    def official(self, row: int, texts: list[str], image: int = 0) -> np.ndarray:
        """Scores of the texts with the row's image, in the order of the texts."""
        return levels(self.seed, self.groups[row].images[image], [caption_key(text) for text in texts], self.count)

    def ours(self, rule: str = "lose") -> tuple[dict[str, float | None], dict[str, dict[str, float | None]]]:
        """Our figures over all and by category under a rule of ties."""
        found = [
            levels(self.seed, image, list(group.captions), self.count)
            for group in self.groups
            for image in group.images
        ]
        meta = {
            "metric": self.module.INFO["metric"],
            "ks": (1,),
            "pair_ks": self.module.INFO.get("ks", ()),
            "pools": getattr(self.module, "POOLS", {}),
            "averages": getattr(self.module, "AVERAGES", {}),
            "seed": 0,
        }
        table = results.table(self.groups, np.concatenate(found), meta["metric"])
        overall, parts = results.summarise(table, meta, rule)
        values = {name: estimate.value for name, estimate in overall.metrics.items()}
        return values, {part: {m: e.value for m, e in found.metrics.items()} for part, found in parts.items()}


def tied(scored: Scored) -> int:
    """How many groups have two equal scores."""
    rows = ([levels(scored.seed, image, list(g.captions), scored.count) for image in g.images] for g in scored.groups)
    return sum(any(len(set(row)) < len(row) for row in one) for one in rows)


@pytest.mark.parametrize("seed", SEEDS)
def test_sugarcrepe(tmp_path: Path, seed: int):
    """evaluate of main_eval.py, a share a subset; the lab's table pools the rows, or those of each type."""
    scored = Scored("sugarcrepe", tmp_path, seed)
    right: dict[str, list[int]] = {}
    number = 0
    for name in scored.module.SUBSETS:
        for data in json.loads((tmp_path / f"{name}.json").read_text()).values():
            positive, negative = scored.official(number, [data["caption"], data["negative_caption"]])
            right.setdefault(name, []).append(1 if positive > negative else 0)
            number += 1
    shares = {name: 100 * sum(hits) / len(hits) for name, hits in right.items()}
    kinds = [
        [hit for name in right if name.startswith(kind) for hit in right[name]] for kind in ("replace", "swap", "add")
    ]
    ours, parts = scored.ours()
    assert {name: parts[name]["accuracy"] for name in shares} == pytest.approx(shares)
    assert ours["accuracy"] == pytest.approx(100 * sum(map(sum, right.values())) / number)
    assert ours["accuracy (7-subset)"] == pytest.approx(np.mean(list(shares.values())))
    assert ours["accuracy (3-category)"] == pytest.approx(np.mean([100 * np.mean(hits) for hits in kinds]))
    assert number == 20
    assert bool(tied(scored)) == (seed not in FINE)


@pytest.mark.parametrize("seed", SEEDS)
def test_sugarcrepe_pp(tmp_path: Path, seed: int):
    """VLMs/test_Variants_CLIP.py of Sri-Harsha/scpp."""
    scored = Scored("sugarcrepe-pp", tmp_path, seed)
    total = p1 = p2 = both = 0
    for name in ("replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj"):
        for line in json.loads((tmp_path / f"{name}.json").read_text()):
            texts = [line["caption"], line["caption2"], line["negative_caption"]]
            first, second, negative = scored.official(total, texts)
            total += 1
            both += int(first > negative and second > negative)
            p1 += int(first > negative)
            p2 += int(second > negative)
    ours, _ = scored.ours()
    assert ours["itt"] == pytest.approx(100 * both / total)
    assert ours["p1_neg"] == pytest.approx(100 * p1 / total)
    assert ours["p2_neg"] == pytest.approx(100 * p2 / total)
    assert bool(tied(scored)) == (seed not in FINE)


def test_the_text_only_task_of_sugarcrepe_pp(tmp_path: Path, filled):
    """evaluate_ulms.py and VLMs/test_Variants_CLIP.py: cosines between the captions alone."""
    layouts.write("sugarcrepe-pp", tmp_path)
    sources = Sources(root=tmp_path)
    store = filled("sugarcrepe-pp", sources)
    correct = []
    for name in ("replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj"):
        for line in json.loads((tmp_path / f"{name}.json").read_text()):
            keys = [caption_key(line[field]) for field in ("caption", "caption2", "negative_caption")]
            vectors = store.pooled("text", keys).astype(np.float64)
            p1, p2, negative = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            correct.append(p1 @ p2 > p1 @ negative and p1 @ p2 > p2 @ negative)
    options = Options(references=("cosine",))
    row = evaluate("sugarcrepe-pp", sources, store, {}, tmp_path / "out", options=options)[-1]
    assert 0 < sum(correct) < len(correct)
    assert row.overall.metrics["tot"].value == pytest.approx(100 * np.mean(correct))


def two_options(scored: Scored, table: str) -> tuple[list[dict], np.ndarray]:
    """Rows of an ARO file and whether its argmax over [false, true] is the true one."""
    rows = json.loads((scored.root / table).read_text())
    options = [[row["false_caption"], row["true_caption"]] for row in rows]
    scores = np.stack([scored.official(number, texts) for number, texts in enumerate(options)])[:, None, :]
    return rows, np.argmax(np.squeeze(scores, axis=1), axis=-1) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_aro_relation(tmp_path: Path, seed: int):
    """VG_Relation.evaluate_scores and the notebook's mean without the symmetric relations."""
    scored = Scored("aro-relation", tmp_path, seed)
    rows, right = two_options(scored, "visual_genome_relation.json")
    names = np.array([row["relation_name"] for row in rows])
    accuracy = {name: right[names == name].mean() for name in np.unique(names)}
    kept = {name: 100 * value for name, value in accuracy.items() if name not in ("next to", "near", "of")}
    ours, parts = scored.ours()
    assert len(kept) == 2 < len(accuracy)
    assert ours["accuracy (macro)"] == pytest.approx(np.mean(list(kept.values())))
    assert ours["accuracy"] == pytest.approx(100 * right.mean())
    assert {name: part["accuracy"] for name, part in parts.items()} == pytest.approx(kept)


@pytest.mark.parametrize("seed", SEEDS)
def test_aro_attribution(tmp_path: Path, seed: int):
    """VG_Attribution.evaluate_scores: pairs of attributes with 25 rows or more."""
    scored = Scored("aro-attribution", tmp_path, seed)
    rows, right = two_options(scored, "visual_genome_attribution.json")
    names = np.array(["_".join(row["attributes"]) for row in rows])
    kept = [right[names == name].mean() for name in np.unique(names) if (names == name).sum() >= 25]
    ours, parts = scored.ours()
    assert len(kept) == 2
    assert ours["accuracy (macro)"] == pytest.approx(100 * np.mean(kept))
    assert ours["accuracy"] == pytest.approx(100 * right.mean())
    assert set(parts) == {"red_white", "old_young"}
    assert bool(tied(scored)) == (seed not in FINE)


def order_rows(root: Path, table: str) -> list[dict]:
    return [json.loads(line) for line in (root / table).read_text().splitlines()[1:]]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["aro-coco-order", "aro-flickr30k-order"])
def test_aro_order(tmp_path: Path, name: str, seed: int):
    """COCO_Order.evaluate_scores: the caption stands first and argmax lets it win ties."""
    scored = Scored(name, tmp_path, seed)
    options = [row["caption_options"] for row in order_rows(tmp_path, scored.module.TABLE)]
    scores = np.stack([scored.official(number, texts) for number, texts in enumerate(options)])
    official = 100 * np.mean(np.argmax(scores, axis=-1) == 0)
    assert scored.module.INFO["tie_rule"] == "win"
    assert scored.ours(scored.module.INFO["tie_rule"])[0]["accuracy"] == pytest.approx(official)
    strict = 100 * np.mean([row[0] > row[1:].max() for row in scores])
    assert scored.ours()[0]["accuracy"] == pytest.approx(strict)


def test_a_shuffle_that_equals_its_caption_decides_under_strict_rules_alone(tmp_path: Path):
    """Official: won by the order of options. Ours: no negative; as a negative by variant, it can only be lost."""
    layouts.write("aro-coco-order", tmp_path)
    table = tmp_path / "coco_order.jsonl"
    lines = table.read_text().splitlines()
    row = json.loads(lines[1])
    row["caption_options"][4] = row["caption_options"][0]
    table.write_text("\n".join([lines[0], json.dumps(row), *lines[2:]]) + "\n")
    module = registry.load("benchmarks", "aro-coco-order")
    corrected = list(module.groups(Sources(root=tmp_path)))
    published = list(module.groups(Sources(root=tmp_path, variant="with-identical")))
    assert [len(group.captions) for group in corrected] == [4, 5, 5]
    assert [len(group.captions) for group in published] == [5, 5, 5]
    texts = np.array([caption_key(text) for text in row["caption_options"]])
    scores = np.where(texts == texts[0], 1.0, 0.0)
    assert np.argmax(scores) == 0
    for groups, expected in ((corrected, 100.0), (published, 200 / 3)):
        values = np.concatenate([[float(key == g.captions[0]) for key in g.captions] for g in groups])
        meta = {"metric": "pairs", "ks": (1,), "pools": {}, "averages": {}, "seed": 0}
        found = results.summarise(results.table(groups, values.astype(np.float32), "pairs"), meta)[0]
        assert found.metrics["accuracy"].value == pytest.approx(expected)


@pytest.mark.parametrize("variant", [None, "unvalidated"])
@pytest.mark.parametrize("seed", SEEDS)
def test_valse(tmp_path: Path, variant: str | None, seed: int):
    """The pairwise accuracy of lxmert_valse_eval.py: score of the caption above the foil's, valid rows only."""
    scored = Scored("valse", tmp_path, seed, variant=variant)
    accuracy, number = {}, 0
    for name in scored.module.PIECES:
        count = pairwise = 0
        for foil in json.loads((tmp_path / "data" / f"{name}.json").read_text()).values():
            if foil["mturk"]["caption"] >= 2 or variant:
                caption, other = scored.official(number, [foil["caption"], foil["foil"]])
                pairwise += int(caption > other)
                count += 1
                number += 1
        accuracy[name] = 100 * pairwise / count
    ours, parts = scored.ours()
    assert {name: parts[name]["accuracy"] for name in accuracy} == pytest.approx(accuracy)
    assert ours["accuracy (11-piece)"] == pytest.approx(np.mean(list(accuracy.values())))
    assert number == len(scored.groups)


def controlled(scored: Scored, name: str, table: str, start: int) -> dict[str, float]:
    """Controlled_Images.evaluate_scores: individual, pair and set accuracy of one of the two sets."""
    dataset = json.loads((scored.root / table).read_text())
    scores = np.stack([scored.official(start + n, row["caption_options"]) for n, row in enumerate(dataset)])
    right = np.argmax(scores, axis=-1) == 0
    by_things: dict[tuple[str, str], dict[str, bool]] = {}
    for row, hit in zip(dataset, right, strict=True):
        words = row["image_path"].split("/")[-1].split("_")
        by_things.setdefault((words[0], words[-1][:-5]), {})[words[1]] = bool(hit)
    others = ("on", "under") if name == "A" else ("in-front", "behind")
    pairs = sum((d["left"] and d["right"]) + (d[others[0]] and d[others[1]]) for d in by_things.values())
    whole = sum(sum(d.values()) == 4 for d in by_things.values())
    return {
        "accuracy": 100 * right.mean(),
        "pair": pairs * 100 / (len(dataset) / 2),
        "set": whole * 100 / (len(dataset) / 4),
    }


@pytest.mark.parametrize("seed", MORE)
@pytest.mark.parametrize(
    ("name", "table"), [("A", "controlled_images_dataset.json"), ("B", "controlled_clevr_dataset.json")]
)
def test_whatsup(tmp_path: Path, name: str, table: str, seed: int):
    scored = Scored("whatsup", tmp_path, seed, split=name)
    assert scored.module.INFO["tie_rule"] == "win"
    ours, _ = scored.ours(scored.module.INFO["tie_rule"])
    assert {metric: ours[metric] for metric in ("accuracy", "pair", "set")} == pytest.approx(
        controlled(scored, name, table, 0)
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_whatsup_qa(tmp_path: Path, seed: int):
    """COCO_QA.evaluate_scores and VG_QA.evaluate_scores: argmax over [right, wrong], by preposition."""
    scored = Scored("whatsup-qa", tmp_path, seed)
    number, by_set = 0, {}
    for name, table in scored.module.TABLES.items():
        hits = []
        for _, right, wrong in json.loads((tmp_path / table).read_text()):
            hits.append(np.argmax(scored.official(number, [right, wrong])) == 0)
            number += 1
        by_set[name] = 100 * np.mean(hits)
    ours, parts = scored.ours(scored.module.INFO["tie_rule"])
    assert {name: parts[name]["accuracy"] for name in by_set} == pytest.approx(by_set)
    assert ours["accuracy (COCO)"] == pytest.approx((by_set["coco_one"] + by_set["coco_two"]) / 2)


def quadruple(scored: Scored, number: int, first: str, second: str) -> np.ndarray:
    """Scores (2 images, 2 captions)."""
    return np.stack([scored.official(number, [first, second], image) for image in (0, 1)])


@pytest.mark.parametrize("seed", SEEDS)
def test_winoground(tmp_path: Path, seed: int):
    """text_correct, image_correct and group_correct of the Winoground card."""
    scored = Scored("winoground", tmp_path, seed)
    text = image = group = 0
    rows = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        (c0_i0, c1_i0), (c0_i1, c1_i1) = quadruple(scored, number, row["caption_0"], row["caption_1"])
        text_correct = c0_i0 > c1_i0 and c1_i1 > c0_i1
        image_correct = c0_i0 > c0_i1 and c1_i1 > c1_i0
        text += text_correct
        image += image_correct
        group += text_correct and image_correct
    ours, _ = scored.ours()
    expected = {"i2t": text, "t2i": image, "group": group}
    assert ours == pytest.approx({name: 100 * value / len(rows) for name, value in expected.items()})


@pytest.mark.parametrize("seed", MORE)
def test_bivlc(tmp_path: Path, seed: int):
    """evaluate_BiVLC of src/CLIP_fine_tuning/CLIP_utils.py: four strict comparisons, their two pairs, all of them."""
    scored = Scored("bivlc", tmp_path, seed)
    found: dict[str, list[bool]] = {"i2t": [], "t2i": [], "group": []}
    with open(tmp_path / "rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        matrix = quadruple(scored, number, row["caption"], row["negative_caption"])
        (pos_pos, pos_neg), (neg_pos, neg_neg) = matrix
        found["i2t"].append(pos_pos > pos_neg and neg_neg > neg_pos)
        found["t2i"].append(pos_pos > neg_pos and neg_neg > pos_neg)
        found["group"].append(found["i2t"][-1] and found["t2i"][-1])
    ours, parts = scored.ours()
    expected = {name: 100 * np.mean(hits) for name, hits in found.items()}
    assert ours == pytest.approx(expected)
    assert parts["swap"] == pytest.approx(expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_cola(tmp_path: Path, seed: int):
    """ColaMultiObjAcc of scripts/eval.py."""
    scored = Scored("cola", tmp_path, seed)
    rows = json.loads((tmp_path / "data" / scored.module.TABLE).read_text())
    right = []
    for number, (_, first, _, second) in enumerate(rows):
        preds = quadruple(scored, number, first, second)
        right.append(preds[0, 0] > preds[1, 0] and preds[1, 1] > preds[0, 1])
    assert scored.ours()[0]["t2i"] == pytest.approx(100 * np.mean(right))


@pytest.mark.parametrize("seed", SEEDS)
def test_vl_checklist(tmp_path: Path, seed: int):
    """The ITC branch of vl_checklist/evaluate.py: the first text of each side."""
    scored = Scored("vl-checklist", tmp_path, seed)
    accuracy, number = {}, 0
    for name, part in scored.module.PARTS.items():
        hits = []
        for _, texts in json.loads((tmp_path / "data" / part.path).read_text()):
            positive, negative = scored.official(number, [texts["POS"][0], texts["NEG"][0]])
            hits.append(positive > negative)
            number += 1
        accuracy[name] = 100 * np.mean(hits)
    _, parts = scored.ours()
    assert {name: parts[name]["accuracy"] for name in accuracy} == pytest.approx(accuracy)


@pytest.mark.parametrize("seed", SEEDS)
def test_crepe(tmp_path: Path, seed: int):
    """get_one2many_rank of crepe_eval_utils.py, R@1, 3 and 5; argsort leaves the order of ties open: there are none."""
    scored = Scored("crepe", tmp_path, seed, count=1 << 20)
    ranks = []
    for group in scored.groups:
        scores = levels(seed, group.images[0], list(group.captions), scored.count)
        ranks.append(int(np.where(np.argsort(-scores) == 0)[0][0]))
    ours, _ = scored.ours()
    for metric, k in (("accuracy", 1), ("r@3", 3), ("r@5", 5)):
        assert ours[metric] == pytest.approx(100 * np.mean(np.array(ranks) < k))


def test_the_symmetric_relations_are_those_of_the_notebook():
    """157 names; the three that the test above leaves out are among them, and what is asymmetric is not."""
    symmetric = aro_relation_module.SYMMETRIC
    assert len(symmetric) == 157
    assert {"next to", "near", "of", "sitting next to", "wrapped in", "adjusting"} <= symmetric
    assert not {"on", "to the left of", "holding", "riding", "wearing", ""} & symmetric
    assert all(name == name.strip() for name in symmetric)
