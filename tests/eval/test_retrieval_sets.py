"""COCO, Flickr30k, Crisscrossed Captions: official files, official recall, extended positives, what breaks."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import layouts
import numpy as np
import pytest
from judged import drawn, judged
from layouts import coco_retrieval as coco_layout
from scipy.stats import spearmanr

from compal import registry
from compal.errors import InputError, MissingFeatures, UnknownName
from compal.eval import crisscrossed
from compal.eval.score import evaluate
from compal.eval.sources import Matches, Sources
from compal.stores.items import caption_key, content_key

NAMES = ("coco_retrieval", "flickr30k_retrieval", "cxc")


@pytest.fixture
def laid(tmp_path: Path):
    def lay(name: str):
        root = tmp_path / name
        root.mkdir()
        layouts.write(name, root)
        return registry.load("benchmarks", name), root

    return lay


def clip_benchmark_recall(scores: np.ndarray, right: np.ndarray, k: int) -> tuple[float, float]:
    """CLIP_benchmark's zeroshot_retrieval.py: a query counts if any right candidate is among its top k; image to text,
    then text to image, in percent. scores and right are images × captions."""
    found = []
    for values, mask in ((scores, right), (scores.T, right.T)):
        top = np.argsort(-values, axis=1, kind="stable")[:, :k]
        found.append(100 * float(np.mean(np.take_along_axis(mask, top, axis=1).any(axis=1))))
    return found[0], found[1]


@pytest.mark.parametrize("name", NAMES)
def test_recall_is_that_of_clip_benchmark(laid, name):
    module, root = laid(name)
    group = next(iter(module.groups(Sources(root=root))))
    scores = drawn([group], seed=7)
    found = judged(module, [group], scores)
    for k in (1, 5, 10):
        expected = clip_benchmark_recall(scores[0], group.right(), k)
        assert (found[f"i2t_r@{k}"], found[f"t2i_r@{k}"]) == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_from_a_store_to_a_table(laid, name, filled, tmp_path):
    module, root = laid(name)
    sources = Sources(root=root)
    store = filled(name, sources)
    rows = {row.label: row for row in evaluate(name, sources, store, {}, tmp_path / "out")}
    group = next(iter(module.groups(sources)))
    image, text = store.pooled("image", list(group.images)), store.pooled("text", list(group.captions))
    image, text = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (image, text))
    expected = clip_benchmark_recall(image @ text.T, group.right(), 5)
    metrics = rows["cosine"].overall.metrics
    assert (metrics["i2t_r@5"].value, metrics["t2i_r@5"].value) == pytest.approx(expected)


def test_coco_counts_and_keys(laid):
    module, root = laid("coco_retrieval")
    (group,) = module.groups(Sources(root=root))
    assert (len(group.images), len(group.captions)) == (12, 61)
    name = coco_layout.entries()[1]["filename"]
    assert group.images[1] == content_key("image-file", (root / "val2014" / name).read_bytes())
    assert group.captions[6] == caption_key(coco_layout.entries()[1]["sentences"][0]["raw"])
    assert group.truth.rows[:2] == (tuple(range(6)), tuple(range(6, 11)))
    (five,) = module.groups(Sources(root=root, variant="five-captions"))
    assert len(five.captions) == 60
    (few,) = module.groups(Sources(root=root, limit=3))
    assert (len(few.images), len(few.captions)) == (3, 16)
    with pytest.raises(UnknownName, match="Did you mean 'test'"):
        list(module.groups(Sources(root=root, split="tests")))


def test_a_text_of_two_photographs_is_right_for_both_unless_kept_apart(laid):
    module, root = laid("coco_retrieval")
    entries = coco_layout.entries()
    entries[2]["sentences"][0]["raw"] = entries[0]["sentences"][0]["raw"]
    layouts.write_json(root / "dataset_coco.json", {"images": entries})
    (group,) = module.groups(Sources(root=root))
    assert group.truth.rows[0] == (*range(6), 11)
    assert group.truth.rows[2] == (0, *range(11, 16))
    assert group.captions[0] == group.captions[11]
    (apart,) = module.groups(Sources(root=root, variant="own-captions"))
    assert apart.truth.rows[0] == tuple(range(6))
    # An encoder that knows what each photograph is of: apart, the text of another ties with its own and is missed.
    scores = np.zeros(group.right().shape)
    scores[0, [0, 11]] = scores[2, [0, 11]] = 1
    assert judged(module, [group], [scores])["i2t_r@1"] > judged(module, [apart], [scores])["i2t_r@1"]


def test_the_forms_that_the_field_passes_on_are_one_group(laid, tmp_path):
    module, root = laid("coco_retrieval")
    (whole,) = module.groups(Sources(root=root))
    entries = [entry for entry in coco_layout.entries() if entry["split"] == "test"]
    coco = {
        "images": [{"id": entry["cocoid"], "file_name": entry["filename"]} for entry in entries],
        "annotations": [
            {"id": sentence["sentid"], "image_id": entry["cocoid"], "caption": sentence["raw"]}
            for entry in entries
            for sentence in entry["sentences"]
        ],
    }
    blip = [
        {"image": f"val2014/{entry['filename']}", "caption": [sentence["raw"] for sentence in entry["sentences"]]}
        for entry in entries
    ]
    (root / "dataset_coco.json").unlink()
    for name, content in (("coco_test_karpathy.json", coco), ("coco_karpathy_test.json", blip)):
        layouts.write_json(root / name, content)
        (group,) = module.groups(Sources(root=root))
        assert (group.images, group.captions, group.truth) == (whole.images, whole.captions, whole.truth)
        (root / name).unlink()


def test_flickr30k_as_lines_of_image_and_caption(laid):
    module, root = laid("flickr30k_retrieval")
    (whole,) = module.groups(Sources(root=root))
    data = json.loads((root / "dataset_flickr30k.json").read_text())
    lines = ["image,caption"]
    lines += [f"{image['filename']},{said['raw']}" for image in data["images"] for said in image["sentences"]]
    (root / "dataset_flickr30k.json").unlink()
    path = root / "flickr30k_test_karpathy.txt"
    path.write_text("\n".join(lines) + "\n")
    (group,) = module.groups(Sources(root=root))
    assert (group.images, group.captions, group.truth) == (whole.images, whole.captions, whole.truth)
    path.write_text("\n".join([*lines, "1007129816.jpg, "]) + "\n")
    with pytest.raises(InputError, match=r"flickr30k_test_karpathy\.txt line 62 is not 'image,caption'"):
        list(module.groups(Sources(root=root)))


def test_images_of_2014_under_names_of_2017(laid):
    module, root = laid("coco_retrieval")
    (whole,) = module.groups(Sources(root=root))
    for path in (root / "val2014").iterdir():
        path.rename(path.with_name(path.name.removeprefix("COCO_val2014_")))
    (root / "val2014").rename(root / "val2017")
    (group,) = module.groups(Sources(root=root))
    assert len(group.images) == len(whole.images)


def test_photographs_that_are_missing_take_their_captions_with_them_when_told(laid):
    module, root = laid("coco_retrieval")
    (root / "val2014" / coco_layout.entries()[0]["filename"]).unlink()
    with pytest.raises(InputError, match=r"1 of 12 images .*1 of 12 rows with --allow-missing"):
        list(module.groups(Sources(root=root)))
    sources = Sources(root=root, allow_missing=True)
    (group,) = module.groups(sources)
    assert (len(group.images), len(group.captions), group.truth.width) == (11, 55, 55)
    assert list(sources.excluded) == [f"test/{coco_layout.entries()[0]['filename']}"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"images": [{"filename": "a.jpg", "split": "test"}]}, r"images\[0\] has no 'sentences'"),
        ({"images": [{"filename": "a.jpg", "split": "test", "sentences": [{}]}]}, "sentence 0 has no text 'raw'"),
        (
            {"images": [{"filename": "a.jpg", "split": "val", "sentences": [{"raw": "a"}]}]},
            "no photograph of the split",
        ),
        ({"images": [3]}, r"images\[0\] is not an object"),
        ({"pictures": []}, "has no list 'images'"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}, r"images\[0\] has no caption"),
        ({"images": [], "annotations": [{"image_id": 7, "caption": "a"}]}, "of image 7, which is not in"),
        ([{"image": "a.jpg"}], "row 0 has no 'caption'"),
        ([{"image": "a.jpg", "caption": ["a", " "]}], "row 0: 'caption' is empty"),
        ([{"image": "a.jpg", "caption": ["a"]}] * 2, "'a.jpg' stands there twice"),
    ],
)
def test_broken_annotations_are_named(laid, content, match):
    module, root = laid("coco_retrieval")
    layouts.write_json(root / "dataset_coco.json", content)
    with pytest.raises(InputError, match=match):
        list(module.groups(Sources(root=root)))


def test_no_annotation_says_where_to_get_it(tmp_path):
    for name in NAMES:
        with pytest.raises(InputError, match=r"(has none of|lacks sits_test).*Put "):
            list(registry.load("benchmarks", name).groups(Sources(root=tmp_path)))


# --- Crisscrossed Captions --------------------------------------------------------------------------


def test_cxc_adds_what_people_rate_at_three_or_more(laid):
    module, root = laid("cxc")
    (group,) = module.groups(Sources(root=root))
    (plain,) = registry.load("benchmarks", "coco_retrieval").groups(Sources(root=root))
    assert group.captions == plain.captions
    place = {said["sentid"]: n for n, said in enumerate(s for e in coco_layout.entries() for s in e["sentences"])}
    added = {row: set(group.truth.rows[row]) - set(plain.truth.rows[row]) for row in range(12)}
    # 3.0 counts and 2.99 does not; a caption of the photograph's own stays right whatever it is rated.
    assert {row: new for row, new in added.items() if new} == {0: {place[10]}, 2: {place[1]}}
    assert place[10] in group.truth.rows[1]


def official_rows() -> list[list[str]]:
    with open(layouts.DATA / "cxc" / "sits_test.csv", newline="") as file:
        return list(csv.reader(file))[1:]


def test_cxc_reads_the_official_ratings(tmp_path):
    """150 official rows; the photographs and captions they name, in Karpathy's form."""
    rows = official_rows()
    assert len(rows) == 150
    numbers = list(dict.fromkeys(row[0].split(":")[-1] for row in rows))
    images = list(dict.fromkeys(row[1] for row in rows))
    shares = [numbers[place :: len(images)] or [f"9{place}"] for place in range(len(images))]
    entries = [
        {
            "filename": image,
            "split": "test",
            "sentences": [{"raw": f"caption {number}", "sentid": int(number)} for number in share],
        }
        for image, share in zip(images, shares, strict=True)
    ]
    layouts.write_json(tmp_path / "dataset_coco.json", {"images": entries})
    for image in images:
        layouts.paint(tmp_path / "val2014" / image)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sits_test.csv").write_bytes((layouts.DATA / "cxc" / "sits_test.csv").read_bytes())
    module = registry.load("benchmarks", "cxc")
    (group,) = module.groups(Sources(root=tmp_path))
    own = {(image, number) for image, share in zip(images, shares, strict=True) for number in share}
    rated = {(row[1], row[0].split(":")[-1]) for row in rows if float(row[2]) >= 3}
    assert len(rated) > 20
    assert int(group.right().sum()) == len(own | rated)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("COCO_val2014:sentid:1,a.jpg,high,x", r"sits_test\.csv row 4 is not two names and a rating"),
        ("COCO_val2014:sentid:1,a.jpg,5.5,x", "row 4 is not"),
        ("COCO_val2014:sentid:1", "row 4 is not"),
    ],
)
def test_broken_ratings_are_named(laid, line, match):
    module, root = laid("cxc")
    path = root / "sits_test.csv"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=match):
        list(module.groups(Sources(root=root)))
    path.write_text("caption,image\n")
    with pytest.raises(InputError, match="no third column 'agg_score'"):
        list(module.groups(Sources(root=root)))


def recall_by_hand(unit: np.ndarray, right: list[set[int]], k: int) -> float:
    hits = []
    for row, answers in enumerate(right):
        if answers:
            scores = unit[row] @ unit.T
            best = max(scores[answer] for answer in answers)
            above = [n for n in range(len(unit)) if n != row and n not in answers and scores[n] >= best]
            hits.append(len(above) < k)
    return 100 * float(np.mean(hits))


def test_captions_among_captions_and_images_among_images(laid, filled):
    _, root = laid("cxc")
    sources = Sources(root=root)
    store = filled("cxc", sources)
    found = crisscrossed.judge(store, sources, draws=50, seed=3)
    (group,) = registry.load("benchmarks", "cxc").groups(sources)
    texts, images = (
        store.pooled(kind, list(keys)).astype(np.float64)
        for kind, keys in (("text", group.captions), ("image", group.images))
    )
    texts, images = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (texts, images))
    owners = [row for row, entry in enumerate(coco_layout.entries()[:12]) for _ in entry["sentences"]]
    right = [{n for n, other in enumerate(owners) if other == owner and n != row} for row, owner in enumerate(owners)]
    right[0].add(6)  # sentid 0 and sentid 10 are rated 3.1
    right[6].add(0)
    near = [{1}, {0}, *[set() for _ in range(10)]]
    for k in (1, 5, 10):
        assert found[f"t2t_r@{k}"] == pytest.approx(recall_by_hand(texts, right, k))
        assert found[f"i2i_r@{k}"] == pytest.approx(recall_by_hand(images, near, k))
    assert (found["t2t_n"], found["i2i_n"]) == (61, 2)
    assert (found["sits_n"], found["sts_n"], found["sis_n"]) == (4, 3, 3)


def test_an_image_without_itself_is_nobody_s_answer(laid, filled):
    """The query is no candidate of its own: with one other image that is right and two that tie, it is found or not by
    them alone."""
    unit = np.array([[1, 0], [0.8, 0.6], [0.8, 0.6], [0, 1]], np.float32)
    partners = [np.array([1]), np.array([], np.int64), np.array([0]), np.array([], np.int64)]
    found = crisscrossed._recall("i2i", unit, partners)
    # Row 0: image 2 scores as its partner 1 does, so strictly that is second. Row 2: image 1 is nearer than 0.
    assert found == {"i2i_r@1": 0.0, "i2i_r@5": 100.0, "i2i_r@10": 100.0, "i2i_n": 2}


def test_spearman_is_scipy_s_and_undefined_where_all_are_equal():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 5, 200).astype(float), rng.normal(size=200)
    assert crisscrossed.spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert crisscrossed.spearman(one, one * 2) == pytest.approx(1)
    assert crisscrossed.spearman(np.ones(5), other[:5]) is None


def test_agreement_is_one_for_an_encoder_that_rates_as_people_do():
    rng = np.random.default_rng(1)
    queries, ratings = np.repeat(np.arange(40), 3), rng.uniform(0, 5, 120)
    found = crisscrossed._agreement("sts", queries, ratings**2, ratings, 100, 0)
    assert found == {"sts": pytest.approx(100), "sts_std": pytest.approx(0, abs=1e-9), "sts_n": 120}
    noise = crisscrossed._agreement("sts", queries, rng.normal(size=120), ratings, 100, 0)
    assert abs(noise["sts"]) < 60
    assert noise["sts_std"] > 0
    assert crisscrossed._agreement("sts", queries, np.ones(120), ratings, 10, 0)["sts"] is None
    again = crisscrossed._agreement("sts", queries, ratings**2, ratings, 100, 0)
    assert again == found


def test_a_store_without_the_features_says_how_to_add_them(laid, filled):
    module, root = laid("cxc")
    store = filled("cxc", Sources(root=root, limit=3))
    with pytest.raises(MissingFeatures, match=r"lacks 45 of 61 texts .*compal extract .*--benchmark cxc"):
        crisscrossed.judge(store, Sources(root=root))
    assert isinstance(next(iter(module.groups(Sources(root=root)))).truth, Matches)
