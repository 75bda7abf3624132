"""Several levels in one pass, captions in order of length, units and the specs of what is asked."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from compal.errors import InputError, UnknownName, UsageError
from compal.pipeline import preview, probe, work
from compal.pipeline.captions import captions_of
from compal.pipeline.dual_encoder import DualEncoder
from compal.pipeline.encoder import load_encoder, resolve
from compal.pipeline.extract import extract, extract_levels
from compal.pipeline.forward import Columns, Forward, taken
from compal.pipeline.job import Job, Listing
from compal.pipeline.levels import levels_of, resolve_levels
from compal.pipeline.plan import ExtractConfig, Nothing, plan, plan_units, stretches
from compal.stores.items import Item
from compal.stores.store import Store
from compal.stores.verify import verify

BACKBONE = "open_clip:small/random"
LEVELS = ("tokens", "pooled", "block:-1", "pixels", "regions")
LOADING = 1  # an encoder is held to the model's own embedding on one image when it is loaded
CONFIG = ExtractConfig(batch_size=4, max_part_rows=16)


def images(count):
    def render(number):
        return np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)

    boxes = ((0.0, 0.0, 0.5, 0.5), (0.2, 0.2, 1.0, 1.0))
    return [
        Item.rendered(b"%d" % n, lambda n=n: render(n), f"image {n}", boxes[: n % 3]) for n in range(count)
    ]  # fmt: skip


def captions(count):
    words = [
        "a",
        "red",
        "cube",
        "left",
        "of",
        "two",
        "small",
        "blue",
        "spheres",
        "near",
        "the",
        "old",
        "wooden",
        "door",
    ]
    texts = [" ".join(words[n % 5 : n % 5 + 1 + n % 9]) + f" {n}" for n in range(count)]
    return [Item.caption(text, f"caption {n}", ((0, len(text.split()[0]), "object"),)) for n, text in enumerate(texts)]


def content(folder):
    """The files of a store's parts; done files and manifests say when they were written."""
    kept = ("images", "texts", "tables")
    files = (path for name in kept for path in (folder / name).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def asked(small, monkeypatch):
    """How many images and captions an encoder's towers were asked for."""
    counts = {"images": 0, "texts": 0}
    for kind in counts:
        plain = getattr(DualEncoder, f"{kind}_at")

        def counted(self, first, levels, kind=kind, plain=plain):
            if set(levels) != {"pixels"}:
                counts[kind] += len(first[0] if kind == "texts" else first)
            return plain(self, first, levels)

        monkeypatch.setattr(DualEncoder, f"{kind}_at", counted)
    return counts


def test_several_levels_in_one_pass_are_those_of_one_at_a_time(tmp_path, asked):
    items = images(37) + captions(30) + [Item.caption("", "empty")]
    specs = tuple(resolve(BACKBONE, level) for level in LEVELS)
    job = Job(specs, tuple(tmp_path / "all" / spec.folder for spec in specs), CONFIG)
    decoded = []
    items = [
        dataclasses.replace(item, content=lambda item=item: (decoded.append(item.key), item.content())[1])
        if item.kind == "image"
        else item
        for item in items
    ]
    summaries = extract_levels(items, job)
    assert [summary.level for summary in summaries] == list(LEVELS)
    assert all((summary.images, summary.texts, len(summary.quarantined)) == (37, 30, 1) for summary in summaries)
    assert len(decoded) == 37, "each image is decoded once"
    crops = sum(len(item.boxes) for item in items)
    assert asked["images"] - LOADING == 37 + crops, "one pass for all levels, and one for each crop"
    for spec in specs:
        alone = tmp_path / "alone" / spec.folder
        extract(items, spec, alone, CONFIG)
        assert content(alone) == content(tmp_path / "all" / spec.folder), spec.level
        assert verify(alone) == []


def test_a_level_that_is_there_is_not_made_again(tmp_path, asked):
    items = images(20) + captions(10)
    specs = tuple(resolve(BACKBONE, level) for level in ("tokens", "pooled"))
    job = Job(specs, tuple(tmp_path / spec.folder for spec in specs), CONFIG)
    extract(items[:8] + items[20:], specs[0], job.folders[0], CONFIG)
    before = asked["images"]
    tokens, pooled = extract_levels(items, job)
    assert asked["images"] - before - LOADING == 20, "what one level lacks is not encoded twice"
    assert (tokens.images, tokens.texts, tokens.reused) == (12, 0, 18)
    assert (pooled.images, pooled.texts, pooled.reused) == (20, 10, 0)
    again = extract_levels(items, job)
    assert [(one.images, one.texts, one.forward_seconds) for one in again] == [(0, 0, 0.0)] * 2


@pytest.mark.usefixtures("small")
def test_the_time_of_a_shared_pass_is_that_of_its_levels_together(tmp_path):
    specs = tuple(resolve(BACKBONE, level) for level in ("tokens", "pooled"))
    job = Job(specs, tuple(tmp_path / spec.folder for spec in specs), CONFIG)
    extract_levels(images(16), job)
    stores = [Store.open(folder) for folder in job.folders]
    records = list(preview._records(stores))
    assert [done["written"]["levels"] for done in records] == [2, 2]
    seconds = sum(done["written"]["forward_seconds"] for done in records)
    assert preview._earlier(job, stores) == {"image": pytest.approx(16 / seconds)}


def test_a_backbone_of_one_level_at_a_time_is_loaded_for_another_with_reduced_jpegs():
    class OneLevel:
        spec = resolve("shapes-vit")

    specs = resolve_levels("shapes-vit", "tokens,block:-1", jpeg="reduced")
    other = Forward(OneLevel(), specs, "cpu", 4)._encoder("block:-1")
    assert (other.spec.level, other.spec.preprocess) == ("block:-1", OneLevel.spec.preprocess)


@pytest.mark.usefixtures("small")
def test_flops_are_counted_before_the_towers_are_compiled(tmp_path, monkeypatch):
    order = []

    class Compiled:
        spec = resolve(BACKBONE, "pooled")

        def optimise(self, **_):
            order.append("optimise")

    Store.create(tmp_path / "store", Compiled.spec)
    monkeypatch.setattr(probe, "flops_of_an_image", lambda encoder: order.append("count") or 1.0)
    monkeypatch.setattr(work, "hardware", lambda device: "H100")
    config = dataclasses.replace(CONFIG, compile=True)
    work.Worker(Job((Compiled.spec,), (tmp_path / "store",), config), Compiled(), "cuda")._ready()
    assert order == ["count", "optimise"]


def test_pixels_are_what_the_tower_takes(tmp_path, small):
    spec = resolve(BACKBONE, "pixels")
    items = images(5) + captions(3)
    summary = extract(items, spec, tmp_path, CONFIG)
    encoder = load_encoder(resolve(BACKBONE))
    from PIL import Image

    expected = torch.stack([encoder.preprocess(Image.fromarray(item.content())) for item in items[:5]])
    found = Store.open(tmp_path).image_tokens([item.key for item in items[:5]])
    np.testing.assert_array_equal(found, expected.permute(0, 2, 3, 1).flatten(2).numpy())
    assert summary.images == 5
    assert verify(tmp_path) == []


def test_captions_by_length_are_those_in_order(small):
    encoder = load_encoder(resolve(BACKBONE))
    items = captions(40)
    ready = captions_of(items, encoder.tokenize, cut=False)
    lengths = [ready.tokens.lengths[row] for row in ready.order]
    assert lengths == sorted(lengths)
    assert sorted(ready.order) == list(range(40))
    assert ready.order != list(range(40))
    sorted_tokens = taken(ready.tokens, ready.order)
    assert sorted_tokens.lengths == lengths
    back = Columns(spans=list(sorted_tokens.spans)).put_back(ready.order)
    assert back.spans == list(ready.tokens.spans)


def test_a_store_of_bucketed_captions_is_that_of_captions_one_by_one(tmp_path, small):
    spec = resolve(BACKBONE, dtype="float32")
    items = captions(40)
    extract(items, spec, tmp_path, ExtractConfig(batch_size=8))
    store, encoder = Store.open(tmp_path), load_encoder(spec)
    for item in items:
        alone = encoder.encode_texts([item.content])
        np.testing.assert_allclose(store.text_row(item.key), alone.tokens[0].numpy(), atol=2e-6)
        np.testing.assert_allclose(store.pooled("text", [item.key])[0], alone.pooled[0].numpy(), atol=2e-6)
    spans = dict(zip(*(store.table("text")[name].to_pylist() for name in ("key", "spans")), strict=True))
    assert [(s["start"], s["end"]) for s in spans[items[3].key]] == encoder.encode_texts([items[3].content]).spans[0]


# --- units --------------------------------------------------------------------------------------------


def test_units_hold_the_parts_of_each_level(small):
    specs = [resolve(BACKBONE, level) for level in ("pooled", "tokens")]
    config = ExtractConfig(part_bytes=64 * 200)
    items = images(300) + captions(70)
    units = plan_units(items, [Nothing(spec) for spec in specs], config)
    for spec in specs:
        alone = [part for unit in units for part in unit.parts[spec.level]]
        assert alone == plan(items, Nothing(spec), config)
    for unit in units:
        assert unit.name in {part.name for parts in unit.parts.values() for part in parts}
        for parts in unit.parts.values():
            assert tuple(item for part in parts for item in part.items) == unit.items
        for run, here in stretches(unit):
            assert all(set(run) <= set(part.items) for part in here.values())
    assert len(units) < len(plan(items, Nothing(specs[1]), config))


def test_a_job_is_plain_data():
    specs = (resolve("random:4x8"), resolve("random:4x8", "pooled"))
    folders = tuple(Path("/x", spec.folder) for spec in specs)
    for listing in (None, Listing("coco:/data", "val", 5, "rules", negatives=("/n.parquet", "/m.parquet"))):
        job = Job(specs, folders, ExtractConfig(batch_size=None, workers=3), listing, 7)
        assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
    with pytest.raises(UsageError, match="stands twice"):
        Job((specs[0], specs[0]), folders, ExtractConfig())
    with pytest.raises(UsageError, match="share their backbone"):
        Job((specs[0], resolve("random:4x8", "pooled", precision="bfloat16")), folders, ExtractConfig())


# --- what is asked ------------------------------------------------------------------------------------


def test_levels_by_comma_and_repeated():
    assert levels_of("tokens, pooled") == levels_of(["tokens", "pooled"]) == ["tokens", "pooled"]
    for wrong in ("", "tokens,tokens", ["pooled", "tokens,pooled"]):
        with pytest.raises(UsageError, match="once"):
            levels_of(wrong)
    with pytest.raises((InputError, UnknownName)):
        resolve_levels("random:4x8", "tokens,block:-99")


def test_precision_and_reduced_jpegs_are_part_of_the_spec(small):
    plain = resolve_levels(BACKBONE)[0]
    half = resolve_levels(BACKBONE, precision="bfloat16")[0]
    reduced = resolve_levels(BACKBONE, jpeg="reduced")[0]
    assert half.precision == "bfloat16"
    assert reduced.preprocess["jpeg"].startswith("reduced")
    assert len({plain.fingerprint, half.fingerprint, reduced.fingerprint}) == 3
    with pytest.raises(UnknownName, match="exact, reduced"):
        resolve_levels(BACKBONE, jpeg="half")
    with pytest.raises(UsageError, match="whole images"):
        resolve_levels(BACKBONE, "regions", jpeg="reduced")
    (pooled,) = resolve_levels(BACKBONE, "regions:roi", jpeg="reduced")
    assert pooled.preprocess["jpeg"] == reduced.preprocess["jpeg"], "it crops nothing"
