"""Extraction asks the remotes first: what a teammate has computed is pulled, the rest is computed."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from compal.pipeline.encoder import ImageFeatures, TextFeatures
from compal.pipeline.extract import extract
from compal.pipeline.plan import ExtractConfig
from compal.stores.items import Item
from compal.stores.remotes.transfer import pull, push
from compal.stores.spec import FeatureSpec
from compal.stores.store import Store
from compal.stores.verify import verify
from compal.workspace import Remote

SPEC = FeatureSpec("stub", "none", 3, image_shape=(4, 3), image_grid=(2, 2), text_dim=3, context_length=6)
SMALL = ExtractConfig(batch_size=4, max_part_rows=32)


class Counting:
    """Features from pixels and words; counts what it is asked, or refuses."""

    def __init__(self, refuse=False):
        self.spec, self.asked, self.refuse = SPEC, 0, refuse

    def preprocess(self, image):
        return torch.from_numpy(np.array(image.resize((2, 2)), np.float32)).permute(2, 0, 1) / 255

    def encode_images(self, pixels):
        assert not self.refuse, "a forward pass"
        self.asked += len(pixels)
        tokens = pixels.flatten(2).transpose(1, 2)
        return ImageFeatures(tokens, tokens.mean(1))

    def encode_texts(self, captions):
        assert not self.refuse, "a forward pass"
        self.asked += len(captions)
        tokens = [torch.tensor([[float(len(word))] * 3 for word in caption.split()]) for caption in captions]
        pooled = torch.stack([one.mean(0) for one in tokens])
        spans = [[(0, 1)] * len(one) for one in tokens]
        return TextFeatures(tokens, pooled, spans, [0] * len(tokens), [False] * len(tokens))


def dataset(name, count=20):
    """Images, captions, and one that nobody can read."""

    def render(number):
        return np.full((6, 6, 3), (number * 7 + len(name)) % 251, np.uint8)

    images = [Item.rendered(f"{name} {n}".encode(), lambda n=n: render(n), f"{name} {n}") for n in range(count)]
    captions = [Item.caption(f"caption of {name} {'x' * n}", f"{name} {n}") for n in range(count // 2)]
    return [*images, *captions, Item.image_file(Path("no such picture"), f"{name} bad")]


def member(tmp_path, who):
    return tmp_path / who / SPEC.folder


def run(folder, items, remote=None, refuse=False, **options):
    encoder = Counting(refuse)
    config = dataclasses.replace(SMALL, remotes=(remote,) if remote else ())
    return extract(items, SPEC, folder, config, encoder=encoder, **options), encoder


def tree(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in found.items() if not name.startswith(".")}


def test_a_team_of_three(tmp_path, s3):
    remote = s3()
    ann, bob, eve = (member(tmp_path, who) for who in ("ann", "bob", "eve"))
    first, second = dataset("coco"), dataset("flickr", 12)
    alone, encoder = run(ann, first, remote)
    assert (alone.pulled, alone.notes, encoder.asked) == (0, (), 30), "the bucket is empty"
    push(ann, remote)
    ticks = []
    summary, _ = run(bob, first, remote, refuse=True, progress=lambda *tick: ticks.append(tick))
    assert (summary.pulled, summary.images, summary.texts, summary.reused) == (30, 0, 0, 0)
    assert summary.forward_seconds == 0
    assert summary.saved_seconds == pytest.approx(alone.forward_seconds, abs=0.01)
    assert [item.source for item in summary.quarantined] == ["coco bad"]
    assert {kind for kind, *_ in ticks} == {"pull"}
    assert ticks[-1][1] == ticks[-1][2] > 0
    assert tree(bob) == tree(ann)
    summary, encoder = run(eve, [*first, *second], remote)
    assert (summary.pulled, summary.images, summary.texts, encoder.asked) == (30, 12, 6, 18)
    assert len(summary.quarantined) == 2
    for folder in (bob, eve):
        push(folder, remote)
    for folder in (ann, bob):
        pull(remote, SPEC.folder, folder)
    assert tree(ann) == tree(bob) == tree(eve)
    assert verify(ann) == []
    again, _ = run(ann, [*first, *second], remote, refuse=True)
    assert (again.pulled, again.reused) == (0, 48)
    undisturbed = tmp_path / "undisturbed"
    run(undisturbed, first)
    run(undisturbed, second)
    keys = sorted(Store.open(undisturbed).keys("image"))
    assert (Store.open(ann).image_tokens(keys) == Store.open(undisturbed).image_tokens(keys)).all()


def test_two_who_add_at_once_end_equal(tmp_path, s3):
    remote = s3()
    ann, bob = member(tmp_path, "ann"), member(tmp_path, "bob")
    run(ann, dataset("coco"), remote)
    run(bob, dataset("flickr"), remote)
    for folder in (ann, bob, ann, bob):
        push(folder, remote)
        pull(remote, SPEC.folder, folder)
    pull(remote, SPEC.folder, ann)
    assert tree(ann) == tree(bob)
    summary, _ = run(ann, [*dataset("coco"), *dataset("flickr")], refuse=True)
    assert summary.reused == 60


def test_only_what_is_wanted_is_pulled(tmp_path, s3):
    remote = s3()
    ann, bob = member(tmp_path, "ann"), member(tmp_path, "bob")
    run(ann, dataset("coco"))
    run(ann, dataset("flickr"))
    push(ann, remote)
    summary, encoder = run(bob, [*dataset("flickr"), *dataset("new", 4)], remote)
    assert (summary.pulled, encoder.asked) == (30, 6)
    assert Store.open(bob).keys("image").isdisjoint(item.key for item in dataset("coco"))
    parts = {part.name for part in Store.open(ann).parts}
    assert 0 < len(parts & {part.name for part in Store.open(bob).parts}) < len(parts)


def test_a_share_of_a_part_saves_a_share_of_its_time(tmp_path, s3):
    remote, items = s3(), dataset("coco", 8)[:8]
    ann = member(tmp_path, "ann")
    summary, _ = run(ann, items)
    push(ann, remote)
    (path,) = (ann / "done").glob("i-*.json")
    written = json.loads(path.read_bytes())["written"]
    assert written["forward_seconds"] == pytest.approx(summary.forward_seconds, abs=0.002)
    assert written["hardware"]
    half, _ = run(member(tmp_path, "bob"), items[:4], remote, refuse=True)
    assert half.pulled == 4
    assert half.saved_seconds == pytest.approx(written["forward_seconds"] / 2)


def test_a_remote_that_fails_is_named_and_stops_nothing(tmp_path, s3):
    working, items = s3(), dataset("coco", 4)
    dead = Remote("gone", "s3://bucket/x", {"endpoint": "http://127.0.0.1:9", "allow_http": True, "retries": 0})
    summary, encoder = run(member(tmp_path, "ann"), items, dead)
    assert encoder.asked == 6
    (note,) = summary.notes
    assert note.startswith("remote 'gone' was not used: ")
    push(member(tmp_path, "ann"), working)
    config = dataclasses.replace(SMALL, remotes=(dead, working))
    summary = extract(items, SPEC, member(tmp_path, "bob"), config, encoder=Counting(refuse=True))
    assert (summary.pulled, len(summary.notes)) == (6, 1)
    config = dataclasses.replace(SMALL, remotes=(working, dead))
    summary = extract(items, SPEC, member(tmp_path, "eve"), config, encoder=Counting(refuse=True))
    assert summary.notes == (), "nothing is left to ask for"


def test_a_remote_that_lies_is_named_and_nothing_of_it_is_used(tmp_path):
    remote = Remote("here", f"file://{tmp_path}/shared")
    items = dataset("coco", 4)
    run(member(tmp_path, "ann"), items)
    push(member(tmp_path, "ann"), remote)
    (table,) = (tmp_path / "shared" / SPEC.folder / "tables").glob("i-*")
    table.write_bytes(table.read_bytes()[:-1] + b"?")
    summary, encoder = run(member(tmp_path, "bob"), items, remote)
    assert (summary.pulled, encoder.asked) == (0, 6)
    assert "xxh3_128" in summary.notes[0]
    assert verify(member(tmp_path, "bob")) == []
