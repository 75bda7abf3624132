"""Parts published one by one on a remote: seen when they are listed, whole, once, whoever else was at it."""

import numpy as np
import pytest

from compal.errors import RemoteError
from compal.stores.remotes.push import claim_path
from compal.stores.remotes.single import begin, forget, list_parts, publish_part, remove_part
from compal.stores.remotes.transfer import offers, pull
from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Store
from compal.stores.verify import verify
from compal.workspace import Remote

SPEC = FeatureSpec("random", "seed-0", pooled_dim=4, image_shape=(3, 8), text_dim=5)


def filled(folder, *numbers, jitter=0.0):
    store = Store.create(folder, SPEC)
    for number in numbers:
        tokens = np.arange(72).reshape(3, 3, 8) / 16 + number + jitter
        keys = [f"{number}-{row}" for row in range(3)]
        store.write_images(f"i-{number}", ImageRows(keys, keys, [(6, 4)] * 3, tokens, tokens[:, 0, :4]))
    return folder


@pytest.fixture(params=["file", "s3"])
def remote(request, tmp_path):
    if request.param == "file":
        return Remote("team", (tmp_path / "remote").as_uri())
    return request.getfixturevalue("s3")()


def test_two_machines_and_one_list(tmp_path, remote):
    """Nothing is seen before it is listed; a third machine then reads what both have made."""
    one, other = filled(tmp_path / "one", 1, 2), filled(tmp_path / "other", 3)
    for folder, names in ((one, ["i-1", "i-2"]), (other, ["i-3"])):
        shared = begin(remote, SPEC)
        for name in names:
            publish_part(folder, name, shared)
            publish_part(folder, name, shared)
            remove_part(folder, name)
            assert not Store.open(folder).part_done(name)
            assert [path for path in folder.rglob("*") if name in path.name] == []
    assert offers(remote, SPEC.folder)
    assert pull(remote, SPEC.folder, tmp_path / "early").items == 0
    assert list_parts(shared, ["i-1", "i-2", "i-3"]) == 1
    assert list_parts(shared, ["i-2"]) == 1
    with pytest.raises(RemoteError, match="lacks part i-4"):
        list_parts(shared, ["i-1", "i-4"])
    assert pull(remote, SPEC.folder, tmp_path / "third").items == 9
    assert verify(tmp_path / "third") == []
    assert Store.open(tmp_path / "third").image_tokens(["3-0"])[0, 0, 0] == 3


def test_the_first_of_two_that_computed_one_part_stays(tmp_path, remote):
    shared = begin(remote, SPEC)
    publish_part(filled(tmp_path / "one", 1), "i-1", shared)
    publish_part(filled(tmp_path / "other", 1, jitter=0.5), "i-1", shared)
    list_parts(shared, ["i-1"])
    pull(remote, SPEC.folder, tmp_path / "third")
    assert Store.open(tmp_path / "third").image_tokens(["1-0"])[0, 0, 0] == 1


def test_what_a_dead_writer_claimed_is_free_once_it_is_forgotten(tmp_path, remote):
    """It died in the midst of its upload, with other bytes under the part's names."""
    shared = begin(remote, SPEC)
    objects = shared.objects
    objects.create(shared.at(claim_path("i-1")), b'{"record": "of other bytes", "time": 99999999999}')
    objects.create(shared.at("tables/i-1.parquet"), b"other bytes")
    folder = filled(tmp_path / "one", 1)
    with pytest.raises(RemoteError, match="another writer has claimed part i-1"):
        publish_part(folder, "i-1", shared)
    forget(shared, "i-1")
    publish_part(folder, "i-1", shared)
    list_parts(shared, ["i-1"])
    pull(remote, SPEC.folder, tmp_path / "third")
    assert verify(tmp_path / "third", deep=True) == []


def test_lists_of_two_leaders_join(tmp_path, remote):
    shared, late = begin(remote, SPEC), begin(remote, SPEC)
    publish_part(filled(tmp_path / "one", 1), "i-1", shared)
    publish_part(filled(tmp_path / "other", 2), "i-2", late)
    real = late.objects.create

    def slow(path, data):
        if path.endswith("manifests/1.json"):
            late.objects.create = real
            assert list_parts(shared, ["i-1"]) == 1
        return real(path, data)

    late.objects.create = slow
    assert list_parts(late, ["i-2"]) == 2
    assert pull(remote, SPEC.folder, tmp_path / "third").items == 6
