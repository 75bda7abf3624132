"""The quick reader of manifests gives what the plain one gives, whatever the bytes are."""

import json
import random

import pytest

from compal.config import canonical
from compal.errors import VerificationError
from compal.stores.chain import ManifestReader
from compal.stores.history import restore
from compal.stores.manifest import Manifest, manifest_path, numbers, read_manifest


@pytest.fixture
def chain(filled, make_images):
    for name in ("i-2", "i-3"):
        filled.write_images(name, make_images(name))
        filled.commit([name])
    restore(filled.path, 1, note='a "quoted" }],"spec":" note, {"files":')
    return filled.path


def outcome(read, number):
    try:
        return read(number)
    except VerificationError as error:
        return str(error)


def test_the_same_manifests_and_shared_parts(chain, monkeypatch):
    expected = [read_manifest(chain, number) for number in numbers(chain)]
    monkeypatch.setattr("compal.stores.chain.read_manifest", None)  # never needed
    reader = ManifestReader(chain)
    found = [reader.read(number) for number in numbers(chain)]
    assert found == expected
    assert found[0].parts[0] is found[3].parts[0]
    assert found[3].written["note"].startswith('a "quoted"')


def test_empty_and_missing_ones(store):
    store.path.joinpath("manifests").mkdir()
    manifest_path(store.path, 1).write_bytes(Manifest(1, "", store.spec.fingerprint, ()).to_json())
    reader = ManifestReader(store.path)
    assert reader.read(1) == read_manifest(store.path, 1)
    assert outcome(reader.read, 2) == outcome(lambda number: read_manifest(store.path, number), 2)


def variants(text):
    data = json.loads(text)
    entry = data["parts"][0]
    yield json.dumps(data).encode()  # spaces
    yield text.replace(b'"parts":[', b'"parts":[{"files":{}},')
    yield text.replace(b'"spec":"', b'"parts":[],"spec":"')  # a key twice: the last counts
    yield text[:-1] + b',"parts":[]}'
    yield text[:-1] + b',"zzz":1}'
    yield text.replace(b'"number":', b'"number":0')
    yield text.replace(b'{"files":', b'{"files": ', 1)
    yield text.replace(b'{"files":', b'"x",{"files":', 1)
    yield text.replace(b',{"files":', b'{"files":', 1)
    for change in (
        {"parts": [entry, entry]},
        {"parts": [{**entry, "files": {"a": [{}, {"files": {}}]}}]},
        {"parts": [{**entry, "name": '},{"files":'}]},
        {"parts": [[entry]]},
        {"parts": "x"},
        {"written": {"a": [{}], "spec": "y"}},
        {"written": {"files": {"bytes": 1}}},
        {"written": []},
        {"number": 7},
        {"parent": 'a"b'},
        {"spec": 1},
        {"format": 2},
    ):
        yield canonical({**data, **change})


@pytest.mark.parametrize("number", [1, 4])
def test_whatever_the_bytes_are(chain, number):
    """By hand, and 400 random changes of a byte or a run of them."""
    path = manifest_path(chain, number)
    text, draw = path.read_bytes(), random.Random(number)
    damaged = list(variants(text))
    for _ in range(400):
        start, length = draw.randrange(len(text)), draw.choice([1, 1, 1, 5, 60])
        insert = draw.choice([b"", draw.randbytes(1), b'"', b"{", b"}", b",", b'{"files":'])
        damaged.append(text[:start] + insert + text[start + length :])
    reader = ManifestReader(chain)
    reader.read(1)
    for one in damaged:
        path.write_bytes(one)
        assert outcome(reader.read, number) == outcome(lambda number: read_manifest(chain, number), number), one[:300]
