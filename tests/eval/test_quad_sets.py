"""Sets of 2 images × 2 captions: official layouts, official scores, what breaks."""

from __future__ import annotations

import csv
import dataclasses
import json
import pickle
from pathlib import Path

import layouts
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from judged import drawn, judged
from layouts import eqben as eqben_layout
from layouts import mmvp_vlm as mmvp_layout
from layouts import vismin as vismin_layout
from PIL import Image

from compal import registry
from compal.errors import InputError, UnknownName
from compal.eval.score import evaluate
from compal.eval.sources import QUAD_TRUTH, Sources
from compal.stores.items import caption_key, content_key

NAMES = ("colorswap", "vismin", "naturalbench", "eqben", "mmvp_vlm")


@pytest.fixture
def laid(tmp_path: Path):
    """`laid(name)` → (module, its official layout on disk)."""

    def lay(name: str):
        root = tmp_path / name
        root.mkdir()
        layouts.write(name, root)
        return registry.load("benchmarks", name), root

    return lay


def winoground_score(scores: list[np.ndarray]) -> tuple[float, float, float]:
    """The official scorer of Winoground, which ColorSwap, EqBen, VisMin and NaturalBench took over: c{i}_i{j} is the
    score of caption i with image j."""
    text = image = group = 0
    for values in scores:
        c0_i0, c0_i1, c1_i0, c1_i1 = values[0, 0], values[1, 0], values[0, 1], values[1, 1]
        text_correct = c0_i0 > c1_i0 and c1_i1 > c0_i1
        image_correct = c0_i0 > c0_i1 and c1_i1 > c1_i0
        text, image, group = text + text_correct, image + image_correct, group + (text_correct and image_correct)
    return tuple(100 * count / len(scores) for count in (text, image, group))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("levels", [None, 3])
def test_scores_are_those_of_the_official_scorer_with_and_without_ties(laid, name, levels):
    module, root = laid(name)
    groups = [
        dataclasses.replace(group, id=f"{group.id}/{copy}")
        for copy in range(20)
        for group in module.groups(Sources(root=root))
    ]
    scores = drawn(groups, seed=1, levels=levels)
    found = judged(module, groups, scores)
    assert (found["i2t"], found["t2i"], found["group"]) == pytest.approx(winoground_score(scores))
    assert found["group"] > 0
    for category in {group.category for group in groups} - {""}:
        part = [score for group, score in zip(groups, scores, strict=True) if group.category == category]
        assert found[f"{category}: group"] == pytest.approx(winoground_score(part)[2])


@pytest.mark.parametrize("name", NAMES)
def test_from_a_store_to_a_table(laid, name, filled, tmp_path):
    module, root = laid(name)
    sources = Sources(root=root)
    store = filled(name, sources)
    rows = {row.label: row for row in evaluate(name, sources, store, {}, tmp_path / "out")}
    groups = list(module.groups(sources))
    scores = []
    for group in groups:
        image, text = store.pooled("image", list(group.images)), store.pooled("text", list(group.captions))
        image, text = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (image, text))
        scores.append(image @ text.T)
    expected = winoground_score(scores)
    metrics = rows["cosine"].overall.metrics
    assert tuple(metrics[name].value for name in ("i2t", "t2i", "group")) == pytest.approx(expected)
    assert rows["chance"].overall.metrics["group"].value == pytest.approx(100 / 6)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_image_is_counted_and_left_out_when_told(laid, name):
    module, root = laid(name)
    first = next(iter(module.groups(Sources(root=root))))
    for path in root.rglob("*"):
        if path.suffix in (".png", ".jpg", ".npy") and content_key("image-file", path.read_bytes()) in first.images:
            path.unlink()
            break
    whole = len(list(module.groups(Sources(root=root, allow_missing=True))))
    with pytest.raises(InputError, match="images are not in"):
        list(module.groups(Sources(root=root)))
    sources = Sources(root=root, allow_missing=True)
    assert first.id not in {group.id for group in module.groups(sources)}
    assert len(sources.excluded) >= 1
    assert whole > 0


# --- ColorSwap --------------------------------------------------------------------------------------


def test_colorswap_reads_test_unless_train_is_asked_for(laid):
    module, root = laid("colorswap")
    groups = list(module.groups(Sources(root=root)))
    assert [group.id for group in groups] == ["0", "1", "2"]
    assert [group.id for group in module.groups(Sources(root=root, split="train"))] == ["3", "4"]
    row = json.loads((root / "test.json").read_text())[1]
    assert groups[1].captions == (caption_key(row["caption_1"]), caption_key(row["caption_2"]))
    assert groups[1].images[1] == content_key("image-file", (root / row["image_2"]).read_bytes())


def test_colorswap_shards_give_the_same_groups_as_the_archive(laid, tmp_path):
    module, root = laid("colorswap")
    rows = json.loads((root / "test.json").read_text())
    cells = [
        row | {f"image_{side}": {"bytes": (root / row[f"image_{side}"]).read_bytes(), "path": None} for side in (1, 2)}
        for row in rows
    ]
    shards = tmp_path / "hub" / "data"
    shards.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(cells), shards / "test-00000-of-00001-0123.parquet", row_group_size=2)
    hub = list(module.groups(Sources(root=tmp_path / "hub")))
    disk = list(module.groups(Sources(root=root)))
    assert [(g.id, g.images, g.captions) for g in hub] == [(g.id, g.images, g.captions) for g in disk]


# --- VisMin -----------------------------------------------------------------------------------------


def vismin_cells(root: Path) -> list[dict[str, object]]:
    def image(name: str) -> dict[str, object]:
        return {"bytes": (root / "images" / name).read_bytes(), "path": None}

    return [row | {f"image_{side}": image(row[f"image_{side}"]) for side in (0, 1)} for row in vismin_layout.rows()]


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_vismin_shards_give_the_same_groups_as_a_table(laid, tmp_path, form):
    module, root = laid("vismin")
    cells = vismin_cells(root)
    folder = tmp_path / "hub" / ("data/test" if form == "arrow" else "default/test")
    folder.mkdir(parents=True)
    for number, part in enumerate((cells[:5], cells[5:])):
        table = pa.Table.from_pylist(part)
        if form == "arrow":
            with pa.ipc.new_stream(folder / f"data-0000{number}-of-00002.arrow", table.schema) as stream:
                stream.write_table(table, max_chunksize=2)
        else:
            pq.write_table(table, folder / f"000{number}.parquet", row_group_size=2)
    hub = Sources(root=tmp_path / "hub")
    found = list(module.groups(hub))
    assert [(g.id, g.images, g.captions, g.category) for g in found] == [
        (g.id, g.images, g.captions, g.category) for g in module.groups(Sources(root=root))
    ]
    item = next(item for item in pickle.loads(pickle.dumps(list(module.items(hub)))) if item.kind == "image")
    assert np.array_equal(item.content(), np.asarray(Image.open(root / "images" / "object_0_0.png")))


def test_vismin_categories_are_splits_and_their_mean_is_an_average(laid):
    module, root = laid("vismin")
    assert {group.category for group in module.groups(Sources(root=root, split="counting"))} == {"counting"}
    with pytest.raises(UnknownName, match="Did you mean 'counting'"):
        list(module.groups(Sources(root=root, split="count")))
    groups = list(module.groups(Sources(root=root)))
    assert [group.id for group in groups[:3]] == ["object/0", "object/1", "attribute/0"]
    right, wrong = np.eye(2), 1 - np.eye(2)
    scores = [right if group.category in ("object", "relation") else wrong for group in groups]
    assert judged(module, groups, scores)["group (4-category)"] == 50.0


def test_vismin_names_a_row_of_an_unknown_category(laid):
    module, root = laid("vismin")
    rows = vismin_layout.rows()
    rows[3]["category"] = "colour"
    layouts.write_json(root / "test.json", rows)
    with pytest.raises(InputError, match=r"colour \(.*test\.json row 3\)"):
        list(module.groups(Sources(root=root)))


# --- NaturalBench -----------------------------------------------------------------------------------


def test_naturalbench_is_found_in_its_own_folder_or_in_root(laid):
    module, root = laid("naturalbench")
    inner = list(module.groups(Sources(root=root / "NaturalBench-Retrieval")))
    assert inner == list(module.groups(Sources(root=root)))
    assert [group.id for group in inner] == ["0", "1", "2"]


# --- EqBen ------------------------------------------------------------------------------------------


def test_eqben_parts_and_first_captions(laid):
    module, root = laid("eqben")
    groups = list(module.groups(Sources(root=root)))
    assert [group.category for group in groups] == [part for part in eqben_layout.PARTS for _ in range(2)]
    assert groups[0].captions == (
        caption_key("a hand holds cup 0 of eqbenag"),
        caption_key("a hand drops cup 0 of eqbenag"),
    )
    assert all(group.truth == QUAD_TRUTH for group in groups)
    only = list(module.groups(Sources(root=root, split="eqbenkubric_attr")))
    assert [group.category for group in only] == ["eqbenkubric_attr"] * 2
    assert module.INFO["size"] == 251_048


def test_eqben_frames_of_youcook2_are_blue_green_red(laid):
    module, root = laid("eqben")
    items = [item for item in module.items(Sources(root=root, split="eqbenyoucook2")) if item.kind == "image"]
    frame = np.load(root / "eqbenyoucook2" / "eqbenyoucook2_0_0.npy")
    shown = pickle.loads(pickle.dumps(items))[0].content()
    # The official reader: frame[:, :, [2, 1, 0]].
    assert np.array_equal(shown, frame[:, :, [2, 1, 0]])
    np.save(root / "eqbenyoucook2" / "eqbenyoucook2_0_0.npy", np.zeros((4, 4)))
    with pytest.raises(ValueError, match="not uint8"):
        items[0].content()


def test_eqben_files_of_the_parts_nest_rows_below_videos(laid, tmp_path):
    module, root = laid("eqben")
    whole = list(module.groups(Sources(root=root)))
    (root / "ann_json_finegrained_random.json").unlink()
    for part in eqben_layout.PARTS:
        rows = eqben_layout.rows(part)
        nested = {"video": {"cup": rows}} if part == "eqbenag" else {"video": rows} if part == "eqbengebc" else rows
        layouts.write_json(root / f"{part}.json", nested)
    found = list(module.groups(Sources(root=root)))
    assert sorted((g.id, g.images, g.captions, g.category) for g in found) == sorted(
        (g.id, g.images, g.captions, g.category) for g in whole
    )


def test_eqben_light_images_end_in_jpg(laid):
    module, root = laid("eqben")
    for path in root.rglob("*.png"):
        path.rename(path.with_suffix(".jpg"))
    assert len(list(module.groups(Sources(root=root)))) == 14


def test_eqben_tells_rows_of_the_same_images_apart(laid):
    module, root = laid("eqben")
    rows = eqben_layout.rows("eqbensd")
    layouts.write_json(root / "ann_json_finegrained_random.json", [*rows, rows[0] | {"caption0": "another"}])
    ids = [group.id for group in module.groups(Sources(root=root))]
    assert len(ids) == len(set(ids)) == 3


def test_eqben_refuses_what_is_no_row(laid):
    module, root = laid("eqben")
    layouts.write_json(root / "ann_json_finegrained_random.json", [{"image0": "a.png", "image1": "b.png"}])
    with pytest.raises(InputError, match=r"row 0 has no text 'caption0'"):
        list(module.groups(Sources(root=root)))
    layouts.write_json(root / "ann_json_finegrained_random.json", ["a.png"])
    with pytest.raises(InputError, match=r"row 0 is not a row of image0"):
        list(module.groups(Sources(root=root)))


# --- MMVP-VLM ---------------------------------------------------------------------------------------


def mmvp_official(root: Path, score) -> dict[str, float]:
    """The official evaluate_vlm.py: consecutive rows are a pair, a statement's softmax over its two images > 0.5 says
    image 1, truth is the parity of the id, and a pair counts to the pattern that its place gives."""
    with open(root / "Questions.csv", newline="") as file:
        reader = csv.reader(file)
        next(reader)
        rows = list(reader)
    correct = dict.fromkeys(range(9), 0)
    pairs = len(rows) // 2
    for number in range(pairs):
        (qid1, kind, said1), (qid2, _, said2) = rows[2 * number : 2 * number + 2]
        hits = []
        for said, qid in ((said1, qid1), (said2, qid2)):
            logits = np.array([score(kind, qid1, said), score(kind, qid2, said)], np.float64)
            likely = np.exp(logits - logits.max())
            chosen = "img1" if likely[0] / likely.sum() > 0.5 else "img2"
            hits.append(chosen == ("img1" if int(qid) % 2 == 1 else "img2"))
        correct[number // (pairs // 9)] += all(hits)
    return {mmvp_layout.PATTERNS[n]: 100 * count / (pairs // 9) for n, count in correct.items()}


@pytest.mark.parametrize("levels", [None, 3])
def test_mmvp_figures_are_those_of_softmax_above_a_half(tmp_path, levels):
    module = registry.load("benchmarks", "mmvp_vlm")
    mmvp_layout.write(tmp_path, pairs=15)
    groups = list(module.groups(Sources(root=tmp_path)))
    assert len(groups) == module.INFO["size"] == 135
    scores = drawn(groups, seed=4, levels=levels)
    with open(tmp_path / "Questions.csv", newline="") as file:
        rows = list(csv.reader(file))[1:]
    place = {(kind, qid): divmod(number, 2) for number, (qid, kind, _) in enumerate(rows)}
    said = {text: divmod(number, 2) for number, (_, _, text) in enumerate(rows)}

    def score(kind: str, qid: str, text: str) -> float:
        (pair, image), (_, caption) = place[kind, qid], said[text]
        return float(scores[pair][image, caption])

    official = mmvp_official(tmp_path, score)
    found = judged(module, groups, scores)
    # An equality of the second statement is officially right, and missed here; there is no other difference.
    given = dict.fromkeys(official, 0.0)
    for group, values in zip(groups, scores, strict=True):
        if values[0, 0] > values[1, 0] and values[1, 1] == values[0, 1]:
            given[group.category] += 100 / 15
    assert bool(sum(given.values())) == (levels is not None)
    assert {name: found[f"{name}: t2i"] + given[name] for name in official} == pytest.approx(official)
    assert found["t2i (9-pattern)"] == pytest.approx(found["t2i"])
    assert module.INFO["headline"] == "t2i"


def test_mmvp_prompt_and_pattern_by_place_are_switches(laid):
    module, root = laid("mmvp_vlm")
    groups = list(module.groups(Sources(root=root)))
    assert groups[0].captions[0] == caption_key("a photo of a dog, number 1, facing left")
    bare = next(iter(module.groups(Sources(root=root, variant="bare-statement"))))
    assert bare.captions[0] == caption_key("a dog, number 1, facing left")
    placed = list(module.groups(Sources(root=root, variant="pattern-by-place")))
    assert {group.category for group in placed} == {mmvp_layout.PATTERNS[0]}
    assert len(list(module.groups(Sources(root=root, split="Texts")))) == 1


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (["1,Texts,a dog"], "the last stands alone"),
        (["2,Texts,a dog", "3,Texts,a cat"], r"row 0: ids 2 and 3 .* are not a pair"),
        (["1,Texts,a dog", "2,State and Condition,a cat"], "are not a pair"),
        (["x,Texts,a dog", "2,Texts,a cat"], r"row 0: the id 'x' is not a number"),
        (["1,Texts, ", "2,Texts,a cat"], r"row 0: 'Statement' is empty"),
    ],
)
def test_broken_mmvp_files_are_named(laid, lines, match):
    module, root = laid("mmvp_vlm")
    (root / "Questions.csv").write_text("\n".join(["Question ID,Type,Statement", *lines]) + "\n")
    with pytest.raises(InputError, match=match):
        list(module.groups(Sources(root=root)))


# --- what breaks, for all ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_file_says_where_to_get_it(name, tmp_path):
    module = registry.load("benchmarks", name)
    with pytest.raises(InputError, match=r"(has none of|lacks|has no annotation).*\. Put "):
        list(module.groups(Sources(root=tmp_path)))


@pytest.mark.parametrize(("name", "file"), [("colorswap", "test.json"), ("vismin", "test.json")])
def test_a_row_without_a_caption_is_named(laid, name, file):
    module, root = laid(name)
    rows = json.loads((root / file).read_text())
    del rows[1][module.LAYOUT.columns[3]]
    layouts.write_json(root / file, rows)
    with pytest.raises(InputError, match=rf"{file} row 1 has no text '{module.LAYOUT.columns[3]}'"):
        list(module.groups(Sources(root=root)))


def test_broken_shards_are_named(tmp_path):
    module = registry.load("benchmarks", "colorswap")
    path = tmp_path / "test-00000.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"test-00000\.parquet is not a readable parquet"):
        list(module.groups(Sources(root=tmp_path)))
    pq.write_table(pa.Table.from_pylist([{"caption_1": "a", "image_1": b""}]), path)
    with pytest.raises(InputError, match="lacks the columns caption_2, image_2"):
        list(module.groups(Sources(root=tmp_path)))
