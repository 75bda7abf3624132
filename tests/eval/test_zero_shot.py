"""Zero-shot classification: the table of sets, every official layout, shards, folders, prompts, what breaks."""

from __future__ import annotations

import dataclasses
import io
import pickle
import tarfile
from pathlib import Path

import layouts
import numpy as np
import pytest
from judged import drawn, judged
from layouts import imagefolder as folder_layout
from layouts import zeroshot as zeroshot_layout
from PIL import Image

from compal import registry
from compal.errors import InputError, UnknownName
from compal.eval import metrics
from compal.eval.benchmarks import _class_layouts, _labelled
from compal.eval.score import evaluate
from compal.eval.sources import Sources, check
from compal.stores.items import caption_key, content_key

# Rows, classes and prompts of the published test splits, as the literature counts them.
PUBLISHED = {
    "imagenet": (50_000, 1000, 80),
    "cifar10": (10_000, 10, 18),
    "cifar100": (10_000, 100, 18),
    "food101": (25_250, 101, 1),
    "pets": (3_669, 37, 1),
    "flowers": (6_149, 102, 1),
    "sun397": (19_850, 397, 2),
    "cars": (8_041, 196, 8),
    "dtd": (1_880, 47, 8),
    "caltech101": (6_084, 102, 34),
    "fgvc_aircraft": (3_333, 100, 2),
}


@pytest.fixture
def laid(tmp_path: Path):
    def lay(name: str):
        root = tmp_path / name
        root.mkdir()
        layouts.write(name, root)
        return registry.load("benchmarks", name), root

    return lay


def only(module, sources: Sources):
    (group,) = module.groups(sources)
    return group


# --- the table --------------------------------------------------------------------------------------


def test_the_table_has_the_published_sizes_and_prompts():
    table = _labelled.table()
    assert list(table) == list(PUBLISHED)
    found = {name: (row["rows"], row["classes"], len(_labelled.templates()[name])) for name, row in table.items()}
    assert found == PUBLISHED
    assert set(_labelled.templates()) == set(table)
    assert all("{c}" in prompt for prompts in _labelled.templates().values() for prompt in prompts)
    for name, row in table.items():
        assert row["metric"] in ("top1", "mean_per_class")
        assert all(row[field].strip() for field in ("title", "licence", "url", "files"))
        assert bool(row.get("names")) == (name in _labelled.class_names())
        if row.get("names"):
            assert len(_labelled.class_names()[name]) == row["classes"]
    per_class = {name for name, row in table.items() if row["metric"] == "mean_per_class"}
    assert per_class == {"pets", "flowers", "caltech101", "fgvc_aircraft"}


def test_two_names_of_imagenet_stand_for_two_classes_each():
    names = _labelled.class_names()["imagenet"]
    assert {name for name in names if names.count(name) > 1} == {"missile", "sunglasses"}


# --- the ten sets in their official layouts ---------------------------------------------------------


def labelled(root: Path, name: str):
    return _class_layouts.known_set("zeroshot", name, root / name, Sources(root=root))


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "imagenet"])
def test_every_official_layout_gives_two_images_of_each_of_six_classes(laid, name):
    _, root = laid("zeroshot")
    found = labelled(root, name)
    assert len(found.rows) == 12
    labels = [label for _, label, _ in found.rows]
    assert sorted(labels) == sorted([*range(6)] * 2)
    assert all(found.images.has(image) for image, _, _ in found.rows)
    assert len({found.images.item(image).key for image, _, _ in found.rows}) == 12


@pytest.mark.parametrize(
    ("name", "image", "called"),
    [
        ("food101", "images/apple_pie/10000.jpg", "apple pie"),
        ("pets", "images/american_bulldog_2.jpg", "American Bulldog"),
        ("flowers", "image_00003.jpg", "flower 1"),
        ("sun397", "a/apartment_building/outdoor/sun_apartment_buildingoutdoor0.jpg", "apartment building outdoor"),
        ("cars", "00008.jpg", "Maker Model 1 Sedan 2012"),
        ("dtd", "images/polka-dotted/polka-dotted_0001.jpg", "polka-dotted"),
        ("caltech101", "Faces_easy/Faces_easy_0000.jpg", "centered face"),
        ("fgvc_aircraft", "images/0034540.jpg", "F-16A B"),
        ("cifar10", "7", "beignets"),
        ("cifar100", "0", "apple pie"),
    ],
)
def test_an_image_has_the_class_that_the_official_files_say(laid, name, image, called):
    _, root = laid("zeroshot")
    found = labelled(root, name)
    label = {row: label for row, label, _ in found.rows}[image]
    assert found.classes[label] == called


def test_cifar_pixels_are_three_planes(laid):
    _, root = laid("zeroshot")
    data = (root / "cifar100" / "cifar-100-binary" / "test.bin").read_bytes()
    found = labelled(root, "cifar100")
    item = pickle.loads(pickle.dumps(found.images.item("1")))
    pixels = item.content()
    assert pixels.shape == (32, 32, 3)
    planes = np.frombuffer(data[3074 + 2 : 2 * 3074], np.uint8).reshape(3, 32, 32)
    assert pixels[5, 9].tolist() == planes[:, 5, 9].tolist()


def test_all_ten_are_categories_and_one_is_a_split(laid):
    module, root = laid("zeroshot")
    groups = check(list(module.groups(Sources(root=root))), "classification")
    assert [group.category for group in groups] == list(module.SETS)
    one = only(module, Sources(root=root, split="dtd"))
    assert one == next(group for group in groups if group.id == "dtd")
    assert only(module, Sources(root=root / "dtd", split="dtd")).images == one.images
    items = [item.key for item in module.items(Sources(root=root))]
    assert len(items) == len(set(items))
    with pytest.raises(UnknownName, match="Did you mean 'cifar10'"):
        list(module.groups(Sources(root=root, split="cifar")))


def test_the_mean_of_ten_is_over_sets(laid):
    module, root = laid("zeroshot")
    groups = list(module.groups(Sources(root=root)))
    scores = [group.right() * 1.0 if group.id in ("cars", "dtd", "pets") else 1.0 - group.right() for group in groups]
    found = judged(module, groups, scores)
    assert found["top1 (10-set)"] == pytest.approx(30)
    assert found["cars: top1"] == 100
    assert found["flowers: top1"] == 0


def test_sets_that_are_not_there(laid):
    module, root = laid("zeroshot")
    (root / "cars").rename(root / "vehicles")
    with pytest.raises(InputError, match=r"has no folder cars\..*--allow-missing"):
        list(module.groups(Sources(root=root)))
    sources = Sources(root=root, allow_missing=True)
    assert len(list(module.groups(sources))) == 9
    assert list(sources.excluded) == ["cars"]


def test_another_number_than_the_published_is_noted(laid):
    module, root = laid("zeroshot")
    sources = Sources(root=root, split="dtd")
    list(module.groups(sources))
    assert list(sources.notes) == [
        "Describable Textures (DTD): 12 images, the published test split has 1,880",
        "Describable Textures (DTD): 6 classes, the published test split has 47",
    ]


def test_limit_takes_images_of_every_class(laid):
    module, root = laid("zeroshot")
    group = only(module, Sources(root=root, split="food101", limit=1))
    assert len(group.images) == 6
    assert sorted(row for (row,) in group.truth.rows) == list(range(6))


@pytest.mark.parametrize(
    ("name", "file", "content", "match"),
    [
        ("dtd", "labels/test1.txt", b"banded\n", r"labels/test1\.txt line 1 is not of the official form: 'banded'"),
        ("pets", "annotations/test.txt", b"# list\n", "names no image"),
        ("cifar10", "cifar-10-batches-bin/test_batch.bin", bytes(3074), "3,074 bytes, no multiple of 3,073"),
        ("cifar10", "cifar-10-batches-bin/test_batch.bin", bytes([9]) + bytes(3072), "record 0: class 9 of 6"),
        ("cars", "cars_test_annos_withlabels.mat", b"not a mat", r"annos_withlabels\.mat is not a readable \.mat"),
        ("flowers", "classnames.txt", b"one\ntwo\n", r"classnames\.txt names 2 classes, and the images are of 6"),
        ("pets", "classnames.txt", b"\n", r"classnames\.txt is empty"),
    ],
)
def test_broken_sets_are_named(laid, name, file, content, match):
    module, root = laid("zeroshot")
    (root / name / file).write_bytes(content)
    with pytest.raises(InputError, match=match):
        list(module.groups(Sources(root=root, split=name)))


def test_a_missing_image_of_a_list_is_counted(laid):
    module, root = laid("zeroshot")
    (root / "fgvc_aircraft" / "data" / "images" / "0034500.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 12 images .*fgvc-aircraft-2013b\.tar\.gz"):
        list(module.groups(Sources(root=root, split="fgvc_aircraft")))
    assert len(only(module, Sources(root=root, split="fgvc_aircraft", allow_missing=True)).images) == 11


def test_nothing_of_a_set_says_what_it_needs(tmp_path):
    (tmp_path / "sun397").mkdir()
    module = registry.load("benchmarks", "zeroshot")
    with pytest.raises(InputError, match=r"SUN397: .* has no folder of a class.*Testing_01\.txt of Partitions\.zip"):
        list(module.groups(Sources(root=tmp_path, split="sun397")))


# --- prompts and names ------------------------------------------------------------------------------


def test_every_class_has_the_ensemble_of_its_set(laid):
    module, root = laid("zeroshot")
    group = only(module, Sources(root=root, split="cifar10"))
    assert len(group.captions) == 6 * 18
    assert group.classes == tuple(number for number in range(6) for _ in range(18))
    assert group.captions[18] == caption_key("a photo of a beignets.")
    assert group.captions[18 + 1] == caption_key("a blurry photo of a beignets.")
    alone = only(module, Sources(root=root, split="cifar10", variant="one-prompt"))
    assert alone.captions == tuple(
        caption_key(f"a photo of a {kind.replace('_', ' ')}.") for kind in zeroshot_layout.KINDS
    )


def test_classes_of_one_name_are_one_answer_unless_counted_apart(laid):
    module, root = laid("imagenet")
    path = root / "classnames.txt"
    path.write_text(path.read_text().replace("rocket", "missile"))
    group = only(module, Sources(root=root))
    assert group.truth.rows[-4:] == ((5, 6),) * 4
    assert group.captions[5 * 80 : 6 * 80] == group.captions[6 * 80 :]
    apart = only(module, Sources(root=root, variant="names-apart"))
    assert apart.truth.rows[-4:] == ((5,), (5,), (6,), (6,))
    # Equal prompts score equally. An encoder that knows all seven otherwise:
    scores = group.right() * 1.0
    assert judged(module, [group], [scores])["top1"] == 100
    assert judged(module, [apart], [scores])["top1"] == pytest.approx(100 * 10 / 14)


def test_imagenet_names_are_those_of_clip_in_order_of_wnid(laid):
    module, root = laid("imagenet")
    (root / "classnames.txt").unlink()
    with pytest.raises(InputError, match="table of ImageNet-1k names 1,000 classes, and the images are of 7"):
        list(module.groups(Sources(root=root)))
    for number in range(993):
        layouts.paint(root / "val" / f"n9{number:07d}" / "a.JPEG")
    group = only(module, Sources(root=root, limit=1))
    assert (len(group.images), len(group.captions), group.truth.width) == (1000, 80_000, 1000)
    assert group.captions[80] == caption_key("a bad photo of a goldfish.")
    assert group.truth.rows[1] == (1,)


def test_figures_are_those_of_clip_benchmark(laid):
    """CLIP_benchmark: the share of logits.argmax that is right, top 5 by topk, and scikit-learn's balanced accuracy,
    which is the mean of the classes' recalls."""
    module, root = laid("imagefolder")
    group = only(module, Sources(root=root))
    group = dataclasses.replace(
        group,
        images=tuple(f"{key}/{copy}" for copy in range(9) for key in group.images),
        truth=dataclasses.replace(group.truth, rows=group.truth.rows * 9),
    )
    scores = drawn([group], seed=5)[0]
    scores[::2] += 2 * group.right()[::2]
    target = group.right().argmax(axis=1)
    chosen = scores.argmax(axis=1)
    top5 = np.argsort(-scores, axis=1)[:, :5]
    recalls = [np.mean(chosen[target == label] == label) for label in range(6)]
    found = judged(module, [group], [scores])
    assert found["top1"] == pytest.approx(100 * np.mean(chosen == target))
    assert found["top5"] == pytest.approx(100 * np.mean((top5 == target[:, None]).any(axis=1)))
    exact = metrics.classification(scores, group.right())
    assert exact["mean_per_class"] == pytest.approx(100 * np.mean(recalls))


def clip_zero_shot(images: np.ndarray, prompts: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """CLIP_benchmark's zero_shot_classifier and logits: a class is the mean of its prompts' embeddings of length 1,
    itself made of length 1."""

    def unit(values: np.ndarray) -> np.ndarray:
        return values / np.linalg.norm(values, axis=-1, keepdims=True)

    weights = [unit(unit(prompts[classes == label]).mean(axis=0)) for label in range(classes.max() + 1)]
    return unit(images) @ np.stack(weights).T


@pytest.mark.parametrize(("name", "split"), [("imagefolder", None), ("zeroshot", "cars"), ("imagenet", None)])
def test_from_a_store_to_a_table_as_clip_makes_its_ensembles(laid, name, split, filled, tmp_path):
    module, root = laid(name)
    sources = Sources(root=root, split=split)
    store = filled(name, sources)
    rows = {row.label: row for row in evaluate(name, sources, store, {}, tmp_path / "out")}
    group = only(module, sources)
    images, prompts = (
        store.pooled(kind, list(keys)).astype(np.float64)
        for kind, keys in (("image", group.images), ("text", group.captions))
    )
    logits = clip_zero_shot(images, prompts, np.array(group.classes))
    target = group.right().argmax(axis=1)
    chosen = logits.argmax(axis=1)
    figures = {name: estimate.value for name, estimate in rows["cosine"].overall.metrics.items()}
    assert figures["top1"] == pytest.approx(100 * np.mean(chosen == target))
    recalls = [np.mean(chosen[target == label] == label) for label in np.unique(target)]
    assert figures["mean_per_class"] == pytest.approx(100 * np.mean(recalls))
    assert rows["chance"].overall.metrics["top1"].value == pytest.approx(100 / group.truth.width)
    assert rows["cosine"].overall.n == len(group.images)


# --- folders and shards of one's own ----------------------------------------------------------------


def test_a_folder_is_a_class_called_as_it_is(laid):
    module, root = laid("imagefolder")
    found = _class_layouts.folders("imagefolder", root / "test")
    assert found.classes == ("apple pie", "bibimbap", "ceviche", "Donuts", "edamame", "falafel")
    group = only(module, Sources(root=root))
    assert group.captions[:2] == (caption_key("a photo of apple pie."), caption_key("a dish of apple pie."))
    picture = root / "test" / "Donuts" / "Donuts_1.png"
    row = group.images.index(content_key("image-file", picture.read_bytes()))
    assert group.truth.rows[row] == (3,)


def test_splits_are_folders_names_a_file_and_prompts_imagenet_s_by_default(laid):
    module, root = laid("imagefolder")
    for name in folder_layout.CLASSES[:2]:
        layouts.paint(root / "val" / name / "a.png")
    assert only(module, Sources(root=root, split="val")).truth.width == 2
    with pytest.raises(UnknownName, match="Did you mean 'val'"):
        list(module.groups(Sources(root=root, split="vall")))
    (root / "templates.txt").unlink()
    (root / "classnames.txt").write_text("\n".join("abcdef") + "\n")
    group = only(module, Sources(root=root))
    assert len(group.captions) == 6 * 80
    assert group.captions[0] == caption_key("a bad photo of a a.")
    assert only(module, Sources(root=root / "test")).images == group.images


def write_shard(path: Path, samples: list[tuple[str, bytes, str | None]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, picture, label in samples:
            for ending, data in (("webp", picture), ("cls", None if label is None else label.encode())):
                if data is not None:
                    member = tarfile.TarInfo(f"{name}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", lossless=True)
    return stream.getvalue()


def shards(root: Path) -> None:
    """11 shards of one sample each, so that 10.tar comes after 2.tar by number."""
    for number in range(11):
        write_shard(root / "test" / f"{number}.tar", [(f"s{number:07d}", picture(number), str(number % 6))])
    (root / "classnames.txt").write_text("\n".join("abcdef") + "\n")


def test_shards_as_clip_benchmark_exports_them(tmp_path):
    shards(tmp_path)
    module = registry.load("benchmarks", "imagefolder")
    group = only(module, Sources(root=tmp_path))
    assert [row for (row,) in group.truth.rows] == [number % 6 for number in range(11)]
    assert group.images == tuple(content_key("image-file", picture(number)) for number in range(11))
    items = pickle.loads(pickle.dumps([item for item in module.items(Sources(root=tmp_path)) if item.kind == "image"]))
    assert items[10].content.read() == picture(10)
    # Any known set may lie so, too.
    (tmp_path / "classnames.txt").write_text("\n".join(f"texture {name}" for name in "abcdef") + "\n")
    known = only(registry.load("benchmarks", "zeroshot"), Sources(root=tmp_path, split="dtd"))
    assert known.images == group.images
    assert known.captions[0] == caption_key("a photo of a texture a texture.")


def test_broken_shards_are_named(tmp_path):
    shards(tmp_path)
    module = registry.load("benchmarks", "imagefolder")
    write_shard(tmp_path / "test" / "3.tar", [("s3", picture(3), "6")])
    with pytest.raises(InputError, match=r"3\.tar sample 's3': class 6 of 6"):
        list(module.groups(Sources(root=tmp_path)))
    write_shard(tmp_path / "test" / "3.tar", [("s3", picture(3), None)])
    with pytest.raises(InputError, match=r"3\.tar sample 's3' has no \.cls"):
        list(module.groups(Sources(root=tmp_path)))
    (tmp_path / "test" / "3.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(InputError, match=r"3\.tar is not a readable tar"):
        list(module.groups(Sources(root=tmp_path)))
    (tmp_path / "classnames.txt").unlink()
    with pytest.raises(InputError, match=r"has shards and no classnames\.txt"):
        list(module.groups(Sources(root=tmp_path)))


@pytest.mark.parametrize(
    ("prepare", "match"),
    [
        (lambda root: (root / "templates.txt").write_text("a photo\n"), r"templates\.txt line 1 has no \{c\}"),
        (lambda root: (root / "test" / "empty").mkdir(), "empty holds no picture"),
        (lambda root: (root / "classnames.txt").write_text("a\n"), r"classnames\.txt names 1 classes"),
    ],
)
def test_broken_folders_are_named(laid, prepare, match):
    module, root = laid("imagefolder")
    prepare(root)
    with pytest.raises(InputError, match=match):
        list(module.groups(Sources(root=root)))


def test_one_class_is_no_choice(tmp_path):
    layouts.paint(tmp_path / "dogs" / "a.png")
    with pytest.raises(InputError, match="one class, and there is nothing to choose from"):
        list(registry.load("benchmarks", "imagefolder").groups(Sources(root=tmp_path)))
