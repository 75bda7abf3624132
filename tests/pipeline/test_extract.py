"""The loop from items to a store: killed, interrupted, repeated, extended; the same bytes and numbers.

Run as a script, this file is the victim of the kill test: `python test_extract.py FOLDER KILLS SEED` makes
one undisturbed store in FOLDER, then forks extractions and kills them at random moments, resuming each time.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compal.errors import InputError, SpecMismatch, UnknownName, UsageError
from compal.pipeline import work as module
from compal.pipeline.encoder import ImageFeatures, TextFeatures, resolve
from compal.pipeline.extract import extract, extract_dataset, splits
from compal.pipeline.plan import ExtractConfig, Nothing, plan
from compal.pipeline.preview import preview
from compal.stores.items import Item, caption_key
from compal.stores.pairs import read_pairs
from compal.stores.spec import FeatureSpec
from compal.stores.store import Store
from compal.stores.verify import verify
from compal.workspace import Workspace

DATA = Path(__file__).parent.parent / "data" / "coco"
SMALL = ExtractConfig(batch_size=4, max_part_rows=8)
GRID, WIDTH, CONTEXT = 2, 3, 6
WRITER = ("written", "digest", "parent", "sha256")


def stub_spec(level="tokens", **changes):
    tokens = {
        "tokens": {"image_shape": (GRID * GRID, WIDTH), "image_grid": (GRID, GRID), "text_dim": WIDTH},
        "regions": {"image_shape": (0, WIDTH), "text_dim": WIDTH},
        "pooled": {},
    }
    fields = {"pooled_dim": WIDTH, "context_length": CONTEXT, "level": level, **tokens[level], **changes}
    return FeatureSpec("stub", "none", **fields)


class Stub:
    """Patch means of an image, word lengths of a caption. Counts what it is asked."""

    def __init__(self, spec):
        self.spec = spec
        self.images, self.texts = 0, []
        self.autocast = None

    def preprocess(self, image):
        small = image.resize((GRID, GRID), Image.Resampling.BOX)
        return torch.from_numpy(np.array(small, np.float32)).permute(2, 0, 1) / 255

    def encode_images(self, pixels):
        self.images += len(pixels)
        self.autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        assert torch.is_inference_mode_enabled()
        tokens = pixels.flatten(2).transpose(1, 2)
        return ImageFeatures(tokens if self.spec.level == "tokens" else None, tokens.mean(1))

    def encode_texts(self, captions):
        self.texts += captions
        words = [caption.split() for caption in captions]
        tokens = [torch.tensor([[float(len(word))] * WIDTH for word in own[:CONTEXT]]) for own in words]
        pooled = torch.stack([own.mean(0) for own in tokens])
        if self.spec.level != "tokens":
            return TextFeatures(None, pooled, [[] for _ in words], [-1] * len(words), [len(w) > CONTEXT for w in words])
        spans = [[(0, 1)] * len(own) for own in tokens]
        cut = [len(own) > CONTEXT for own in words]
        return TextFeatures(tokens, pooled, spans, [len(own) - 1 for own in tokens], cut)


def images(count, start=0):
    def render(number):
        return np.full((6, 6, 3), number % 251, np.uint8)

    return [
        Item.rendered(f"image {n}".encode(), lambda n=n: render(n), f"image {n}") for n in range(start, start + count)
    ]


def captions(count, start=0):
    return [Item.caption(f"caption number {'x' * (n + 1)}", f"caption {n}") for n in range(start, start + count)]


def run(items, folder, spec=None, encoder=None, config=SMALL, **options):
    spec = spec or stub_spec()
    encoder = encoder or Stub(spec)
    return extract(items, spec, folder, config, encoder=encoder, **options), encoder


def content(folder):
    """Every file's bytes, without the record of who wrote it and when, and the checksums that cover that."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.parent.name in ("done", "manifests") or path.name == "head.json":
            record = json.loads(data)
            data = json.dumps({key: value for key, value in record.items() if key not in WRITER}).encode()
        found[path.relative_to(folder).as_posix()] = data
    return found


# --- killed at any moment -----------------------------------------------------------------------------

VICTIM = ExtractConfig(batch_size=8, max_part_rows=16)


def victim_items():
    def render(number):
        time.sleep(0.002)  # so that a kill can fall into the decoding
        return np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)

    made = [Item.rendered(str(n).encode(), lambda n=n: render(n), f"image {n}") for n in range(150)]
    broken = Item("0" * 32, "image", "broken.jpg", Path("/nowhere/broken.jpg"))
    return [*made, broken, *captions(50), Item.caption("", "empty")]


def victim(folder, kill_after):
    """Fork an extraction, kill it after some seconds; whether it was alive when it was killed."""
    child = os.fork()
    if child == 0:
        try:
            extract(victim_items(), resolve("random:16x32"), Path(folder), VICTIM)
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
    if kill_after:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("the extraction failed")
    return os.WIFSIGNALED(status)


def main(arguments):
    folder, kills, seed = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    started = time.perf_counter()
    victim(folder / "undisturbed", 0)
    whole = time.perf_counter() - started
    generator = random.Random(seed)
    killed = stores = 0
    while killed < kills:
        if victim(folder / f"killed-{stores}", generator.uniform(0.0, min(0.25 * whole, 0.6))):
            killed += 1
        else:
            stores += 1
    victim(folder / f"killed-{stores}", 0)
    print(json.dumps({"killed": killed, "stores": stores + 1, "seconds": whole}))


def test_killed_at_twenty_random_moments_and_resumed(tmp_path):
    """Every kill falls on a run that was alive; a store that is finished first is followed by another."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path), "20", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["killed"] == 20
    expected = content(tmp_path / "undisturbed")
    assert len([name for name in expected if name.startswith("done/")]) == 10 + 4
    assert "head.json" in expected
    for number in range(told["stores"]):
        found = content(tmp_path / f"killed-{number}")
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []
        assert verify(tmp_path / f"killed-{number}") == []
    store = Store.open(tmp_path / "killed-0")
    assert sorted(item.reason for item in store.quarantined()) == ["empty caption", "no such file"]
    assert (len(store.keys("image")), len(store.keys("text"))) == (150, 50)


# --- interrupted, repeated, extended ------------------------------------------------------------------


class Interrupting(Stub):
    """Stops after some images, as ctrl-C would."""

    def __init__(self, spec, after, error=KeyboardInterrupt):
        super().__init__(spec)
        self.after, self.error = after, error

    def encode_images(self, pixels):
        if self.images >= self.after:
            raise self.error
        return super().encode_images(pixels)


def test_an_interrupt_keeps_complete_parts_and_shows_nothing(tmp_path):
    items = images(40) + captions(5)
    with pytest.raises(KeyboardInterrupt):
        run(items, tmp_path / "a", encoder=Interrupting(stub_spec(), after=20))
    store = Store.open(tmp_path / "a")
    assert store.keys("image") == set()
    assert len(store.uncommitted()) == 2, "the part that was encoded is written, the one begun is not"
    summary, encoder = run(items, tmp_path / "a")
    assert (encoder.images, summary.images, summary.texts, summary.reused) == (24, 24, 5, 16)
    run(items, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert verify(tmp_path / "a") == []


def test_killed_between_the_last_part_the_manifest_and_the_head(tmp_path):
    items = images(20) + captions(9)
    run(items, tmp_path)
    expected = content(tmp_path)
    for lost in (["head.json"], ["head.json", "manifests/1.json"]):
        for name in lost:
            (tmp_path / name).unlink()
        summary, encoder = run(items, tmp_path)
        assert (encoder.images, summary.reused) == (0, 29)
        assert content(tmp_path) == expected


def test_a_part_whose_done_file_is_gone_is_made_anew(tmp_path):
    items = images(20) + captions(9)
    run(items, tmp_path)
    expected = content(tmp_path)
    next((tmp_path / "done").glob("i-*.json")).unlink()
    summary, encoder = run(items, tmp_path)
    assert encoder.images == summary.images
    assert 0 < summary.images <= 8
    assert content(tmp_path) == expected
    assert verify(tmp_path) == []


def test_complete_parts_of_another_plan_are_committed_first(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(images(40), tmp_path, encoder=Interrupting(stub_spec(), after=20))
    summary, encoder = run(images(60), tmp_path)
    assert (encoder.images, summary.reused) == (60 - 16, 16)
    assert len(Store.open(tmp_path).keys("image")) == 60
    assert verify(tmp_path) == []


def test_the_second_time_nothing_is_loaded_or_encoded(tmp_path, monkeypatch):
    items = images(10) + captions(10)
    run(items, tmp_path)
    before = content(tmp_path)
    monkeypatch.setattr(module, "load_encoder", lambda *_: pytest.fail("loaded an encoder"))
    summary = extract(items, stub_spec(), tmp_path, SMALL)
    assert (summary.images, summary.texts, summary.reused, summary.forward_seconds) == (0, 0, 20, 0.0)
    assert content(tmp_path) == before


def test_another_dataset_adds_only_what_is_missing(tmp_path):
    run(images(10) + captions(10), tmp_path)
    old = content(tmp_path)
    summary, encoder = run(images(10, start=5) + captions(10, start=8), tmp_path)
    assert (encoder.images, len(encoder.texts)) == (summary.images, summary.texts) == (5, 8)
    assert summary.reused == 7
    new = content(tmp_path)
    assert {name: new[name] for name in old if name != "head.json"} == {n: old[n] for n in old if n != "head.json"}
    assert len(Store.open(tmp_path).keys("image")) == 15


def test_the_same_image_and_caption_are_encoded_once(tmp_path):
    twice = [Item(item.key, item.kind, f"again {item.source}", item.content) for item in images(6) + captions(3)]
    summary, encoder = run([*images(6), *captions(3), *twice], tmp_path)
    assert (encoder.images, len(encoder.texts)) == (summary.images, summary.texts) == (6, 3)
    assert Store.open(tmp_path).table("image").num_rows == 6


def test_join_by_key_under_shuffling(tmp_path):
    items = images(30) + captions(30)
    shuffled = random.Random(0).sample(items, len(items))
    run(items, tmp_path / "a")
    run(shuffled, tmp_path / "b", config=ExtractConfig(batch_size=7, max_part_rows=16, seed=5))
    first, second = Store.open(tmp_path / "a"), Store.open(tmp_path / "b")
    assert first.table("image")["key"].to_pylist() != second.table("image")["key"].to_pylist()
    image_keys = [item.key for item in items if item.kind == "image"]
    text_keys = [item.key for item in shuffled if item.kind == "text"]
    np.testing.assert_array_equal(first.image_tokens(image_keys), second.image_tokens(image_keys))
    np.testing.assert_array_equal(first.image_tokens(image_keys)[:, 0, 0], np.float16(np.arange(30) / 255))
    for mine, theirs in zip(first.text_tokens(text_keys), second.text_tokens(text_keys), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(first.pooled("text", text_keys), second.pooled("text", text_keys))


def test_workers_and_repetition_change_no_byte(tmp_path):
    items = images(20) + captions(9)
    run(items, tmp_path / "a")
    run(items, tmp_path / "b", config=ExtractConfig(batch_size=4, max_part_rows=8, workers=5))
    assert content(tmp_path / "a") == content(tmp_path / "b")


# --- what cannot be read ------------------------------------------------------------------------------


def test_unreadable_items_are_listed_counted_and_stop_nothing(tmp_path):
    photo = DATA / "val2017" / "000000422836.jpg"
    data = photo.read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    bad = [Item.image_file(tmp_path / "cut.jpg"), Item.image_file(tmp_path / "missing.jpg")]
    empty = Item.caption("  ", "row 7")
    items = [*bad, Item.image_file(photo), *images(9), empty, *captions(3)]
    summary, _ = run(items, tmp_path / "store")
    reasons = {item.source: item.reason for item in summary.quarantined}
    assert set(reasons) == {"cut.jpg", "missing.jpg", "row 7"}
    assert "truncated" in reasons["cut.jpg"]
    assert reasons["missing.jpg"] == "no such file"
    assert reasons["row 7"] == "empty caption"
    assert (summary.images, summary.texts, summary.reused) == (10, 3, 0)
    assert verify(tmp_path / "store") == []
    again, encoder = run(items, tmp_path / "store")
    assert (encoder.images, again.reused, len(again.quarantined)) == (0, 13, 3), "known and told again"
    (tmp_path / "missing.jpg").write_bytes(data[:-2] + b"\xff\xd9")
    (tmp_path / "cut.jpg").write_bytes(data + b"\0")
    mended = [Item.image_file(tmp_path / "cut.jpg"), Item.image_file(tmp_path / "missing.jpg")]
    third, _ = run(mended, tmp_path / "store")
    assert third.quarantined == []
    assert all(item.key in Store.open(tmp_path / "store") for item in mended)


def test_a_part_of_nothing_readable(tmp_path):
    items = [Item.image_file(tmp_path / f"{n}.jpg") for n in range(3)]
    summary, encoder = run([*items, Item.caption("")], tmp_path / "store")
    assert (len(summary.quarantined), encoder.images, encoder.texts) == (4, 0, [])
    assert verify(tmp_path / "store") == []


def test_no_items_make_an_empty_store(tmp_path):
    summary, _ = run([], tmp_path)
    assert (summary.images, summary.texts, summary.reused) == (0, 0, 0)
    assert Store.open(tmp_path).keys("image") == set()


class Wrong(Stub):
    """Gives one image a value that no store takes."""

    def __init__(self, spec, value):
        super().__init__(spec)
        self.value = value

    def encode_images(self, pixels):
        features = super().encode_images(pixels)
        features.pooled[pixels[:, 0, 0, 0] == 7 / 255] = self.value
        return features


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), r"NaN or infinite\. Check the weights"),
        (1e6, r"overflow float16\. Store them with --dtype float32"),
    ],
)
def test_features_that_no_store_takes_are_named(tmp_path, value, expected):
    items = images(20)
    with pytest.raises(InputError, match=rf"image 7 \({items[7].key}\) .*{expected}"):
        run(items, tmp_path, encoder=Wrong(stub_spec(), value))
    assert Store.open(tmp_path).keys("image") == set()
    summary, _ = run(items, tmp_path)
    assert summary.images + summary.reused == 20
    assert verify(tmp_path) == []


def test_float32_takes_what_float16_does_not(tmp_path):
    spec = stub_spec(dtype="float32")
    items = images(8)
    run(items, tmp_path, spec, Wrong(spec, 1e6))
    assert Store.open(tmp_path).pooled("image", [items[7].key]).max() == np.float32(1e6)


def test_wrong_folders_shapes_and_memory(tmp_path):
    run(images(1), tmp_path / "a")
    other = stub_spec(normalized=True)
    with pytest.raises(SpecMismatch):
        run(images(1), tmp_path / "a", other)
    with pytest.raises(SpecMismatch):
        preview(images(1), other, tmp_path / "a")
    with pytest.raises(InputError, match="gives token states"):
        run(images(1), tmp_path / "b", stub_spec(image_shape=(5, WIDTH)))
    with pytest.raises(InputError, match="no memory for a batch of 1"):
        run(images(9), tmp_path / "c", encoder=Interrupting(stub_spec(), 0, torch.OutOfMemoryError))
    with pytest.raises(UsageError, match="no precision 'int4'"):
        run(images(1), tmp_path / "d", stub_spec(precision="int4"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        run(images(1), tmp_path / "file" / "store")


# --- levels, precision, progress ----------------------------------------------------------------------


def test_level_pooled_keeps_no_tokens(tmp_path):
    spec = stub_spec("pooled", normalized=True)
    items = images(10, start=1) + captions(3)
    run(items, tmp_path, spec)
    store = Store.open(tmp_path)
    pooled = store.pooled("image", [item.key for item in items[:10]]).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-3)
    assert verify(tmp_path) == []
    with pytest.raises(InputError):
        store.image_tokens([items[0].key])


def test_level_regions(tmp_path):
    halves = np.zeros((10, 10, 3), np.uint8)
    halves[:, 5:] = 255
    boxes = ((0.0, 0.0, 0.3, 0.3), (0.7, 0.7, 1.0, 1.0))
    image = Item.rendered(b"halves", lambda: halves, "halves", boxes)
    plain = Item.rendered(b"plain", lambda: halves, "plain")
    text = "red cube above red cube"
    segments = ((0, 8, "object"), (9, 14, "relation"), (15, 23, "object"))
    told, bare = Item.caption(text, "told", segments), Item.caption("a single dog", "bare")
    bad = Item.caption("some other dog", "bad", ((0, 99, "object"),))
    summary, encoder = run([image, plain, told, bare, bad], tmp_path, stub_spec("regions"))
    store = Store.open(tmp_path)
    regions, mask = store.image_regions([image.key, plain.key])
    np.testing.assert_array_equal(mask, [[True, True], [True, False]])
    np.testing.assert_allclose(regions[0, :, 0], [0, 1], atol=1e-3)
    np.testing.assert_allclose(regions[1, 0, 0], 0.5, atol=1e-3)
    np.testing.assert_allclose(store.pooled("image", [image.key, plain.key])[:, 0], [0.5, 0.5], atol=1e-3)
    parts, mask = store.text_tokens([told.key, bare.key])
    np.testing.assert_array_equal(mask.sum(1), [2, 1])
    np.testing.assert_array_equal(parts[0, :2, 0], [3.5, 3.5])
    np.testing.assert_allclose(store.pooled("text", [told.key])[0, 0], (3 + 4 + 5 + 3 + 4) / 5, atol=2e-3)
    assert sorted(encoder.texts) == ["a single dog", "red cube", text], "each string once"
    assert encoder.images == 4
    assert [(item.source, item.reason[:7]) for item in summary.quarantined] == [("bad", "segment")]
    spans = dict(zip(*(store.table("text")[name].to_pylist() for name in ("source", "spans")), strict=True))
    assert [(span["start"], span["end"]) for span in spans["told"]] == [(0, 8), (15, 23)]
    assert [(span["start"], span["end"]) for span in spans["bare"]] == [(0, 12)]
    assert verify(tmp_path) == []


@pytest.mark.parametrize(("precision", "expected"), [("float32", None), ("bfloat16", torch.bfloat16)])
def test_autocast_follows_the_spec(tmp_path, precision, expected):
    _, encoder = run(images(2), tmp_path, stub_spec(precision=precision))
    assert encoder.autocast == expected


def test_truncated_captions_are_counted(tmp_path):
    summary, _ = run([*captions(3), Item.caption("one two three four five six seven")], tmp_path)
    assert (summary.texts, summary.truncated) == (4, 1)


def test_progress_counts_up_to_the_total(tmp_path):
    heard = []
    items = [*images(20), Item.image_file(tmp_path / "none.jpg"), *captions(9), Item.caption("")]
    with pytest.raises(KeyboardInterrupt):
        run(
            items,
            tmp_path / "s",
            encoder=Interrupting(stub_spec(), 10),
            progress=lambda *now: heard.append(now),
        )
    seen = [done for kind, done, _ in heard if kind == "image"]
    heard.clear()
    run(items, tmp_path / "s", progress=lambda *now: heard.append(now))
    for kind, total in (("image", 21), ("text", 10)):
        done = [now for now in heard if now[0] == kind]
        assert [count for _, count, _ in done] == sorted(count for _, count, _ in done)
        assert done[-1] == (kind, total, total)
    assert heard[0][1] > 8, "what the interrupted run completed counts from the start"
    assert seen[-1] <= 12


def test_a_preview_writes_nothing_and_is_right(tmp_path):
    items = images(20) + captions(5)
    before = preview(items, stub_spec(), tmp_path / "s", SMALL)
    assert not (tmp_path / "s").exists()
    assert (before.parts, before.images, before.texts, before.reused) == (4, 20, 5, 0)
    assert before.bytes == 20 * 2 * (4 * WIDTH + WIDTH) + 5 * 2 * (CONTEXT * WIDTH + WIDTH)
    assert before.parts == len(plan(items, Nothing(stub_spec()), SMALL))
    run(items[:10], tmp_path / "s")
    files = content(tmp_path / "s")
    after = preview(items, stub_spec(), tmp_path / "s", SMALL)
    assert (after.images, after.texts, after.reused) == (10, 5, 10)
    assert content(tmp_path / "s") == files


# --- datasets -----------------------------------------------------------------------------------------


def test_a_dataset_and_its_pairs(tmp_path):
    workspace = Workspace(tmp_path / "work")
    spec = resolve("random:4x8")
    data = f"coco:{DATA}"
    assert splits(data, workspace) == ["val2017"]
    assert "train" in splits("shapes", workspace)
    few = extract_dataset(data, "val", spec, workspace, SMALL, limit=2)
    assert (few.images, few.store) == (2, workspace.find_store(spec))
    summary = extract_dataset(data, "val", spec, workspace, SMALL)
    assert (summary.images, summary.reused) == (2, few.images + few.texts)
    pairs = read_pairs(workspace.pairs_path(data, "val"))
    assert pairs.num_rows == 20
    store = Store.open(workspace.find_store(spec))
    assert set(pairs["image"].to_pylist()) == store.keys("image")
    assert set(pairs["caption"].to_pylist()) == store.keys("text")


def test_pairs_of_quarantined_items_are_left_out(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = [("a.png", "good"), ("none.png", "no image"), ("a.png", ""), ("a.png", None)]
    lines = [json.dumps({"image": image, "caption": caption}) for image, caption in rows]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    workspace = Workspace(tmp_path / "work")
    data = f"table:{tmp_path / 't.jsonl'}"
    summary = extract_dataset(data, "train", resolve("random:4x8"), workspace, SMALL)
    assert sorted(item.reason for item in summary.quarantined) == [
        "caption is not text but nothing",
        "empty caption",
        "no such file",
    ]
    pairs = read_pairs(workspace.pairs_path(data, "train"))
    assert pairs["caption"].to_pylist() == [caption_key("good")]


def test_unknown_datasets_and_splits_leave_no_store(tmp_path):
    workspace = Workspace(tmp_path / "work")
    with pytest.raises(UnknownName, match="Did you mean 'coco'"):
        extract_dataset("cocoo:/x", "val", resolve("random"), workspace)
    with pytest.raises(UnknownName, match="no split 'tset'"):
        extract_dataset(f"coco:{DATA}", "tset", resolve("random"), workspace)
    assert not workspace.stores.exists()


if __name__ == "__main__":
    main(sys.argv[1:])
