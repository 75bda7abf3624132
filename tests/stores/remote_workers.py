"""Pushes, pulls and merges that are killed, and that race: `python remote_workers.py MODE FOLDER ENDPOINT BUCKET`.

One process imports once and forks the workers; obstore is used in the forks only, since its threads do not
survive a fork.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
from workers import fork, status  # which also switches fsync off: only loss of power would need it

from compal.stores.remotes.objects import connect
from compal.stores.remotes.shared import SharedStore
from compal.stores.remotes.transfer import merge, pull, push
from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Store, TextRows
from compal.stores.verify import verify
from compal.workspace import Remote

SPEC = FeatureSpec("random", "seed-0", pooled_dim=4, image_shape=(3, 8), text_dim=5)


def make(folder, numbers):
    store = Store.create(folder, SPEC)
    for number in numbers:
        keys = [f"{number}-{row}" for row in range(3)]
        tokens = np.arange(72).reshape(3, 3, 8) / 16 + number
        store.write_images(f"i-{number}", ImageRows(keys, keys, [(6, 4)] * 3, tokens, tokens[:, 0, :4]))
        texts = TextRows(keys, ["a"] * 3, keys, [np.full((1, 5), number)] * 3, np.ones((3, 4)), [[(0, 1)]] * 3)
        store.write_texts(f"t-{number}", texts)
        store.commit([f"i-{number}", f"t-{number}"])
    return store.path


def alone(work, *arguments):
    """Run in a fork; seconds."""
    started = time.perf_counter()
    assert status(fork(work, *arguments)) == 0
    return time.perf_counter() - started


def tree(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in found.items() if not name.startswith(".")}


def whole(folder):
    """Whatever the moment of the kill: the store opens, and every key that it names is read."""
    if (folder / "spec.json").exists():
        store = Store.open(folder)
        store.image_tokens(sorted(store.keys("image")))
        store.text_tokens(sorted(store.keys("text")))


def whole_there(remote):
    """The same of a remote: what its newest manifest lists is there, in its size."""
    shared = SharedStore(connect(remote), SPEC.folder)
    if not shared.exists:
        return
    numbers = shared.numbers()
    assert numbers == list(range(1, len(numbers) + 1))
    if numbers:
        shared.check_chain(0, numbers[-1])
        there = set(shared.objects.names(SPEC.folder))  # an object appears whole
        for part in shared.manifest(numbers[-1]).parts:
            assert {shared.at(path) for path in (f"done/{part.name}.json", *part.files)} <= there, part.name


def same_there(remote, folder):
    shared = SharedStore(connect(remote), SPEC.folder)
    found = {path.removeprefix(f"{SPEC.folder}/") for path in shared.objects.names(SPEC.folder)}
    assert found == set(tree(folder)), found ^ set(tree(folder))
    for path, data in tree(folder).items():
        assert unsigned(path, shared.objects.get(shared.at(path), 1 << 24)) == unsigned(path, data), path


def unsigned(path, data):
    """A done file without who wrote it: two who compute equal bytes each keep their own."""
    if not path.startswith("done/"):
        return data
    return {key: value for key, value in json.loads(data).items() if key not in ("written", "digest")}


def killed(work, kills, seconds, after, *arguments):
    """Kill `work` at random moments, go on each time, until it was hit `kills` times or ran through."""
    draw, hit = random.Random(seconds), 0
    while hit < kills:
        pid = fork(work, *arguments)
        time.sleep(draw.uniform(0, 0.8 * seconds))
        os.kill(pid, signal.SIGKILL)
        if status(pid) == 0:
            break
        hit += 1
        after()
    return hit


def repeatedly(kills, batch, fresh, work, after, final):
    """Kills of several runs, each from the beginning to its end: a killed run that is resumed often is soon done."""
    total, seconds, attempt = 0, fresh("undisturbed"), 0
    while total < kills:
        place = f"killed-{attempt}"
        total += killed(work, min(batch, kills - total), seconds, lambda place=place: after(place), place)
        assert status(fork(work, place)) == 0
        assert status(fork(final, place)) == 0
        attempt += 1
    return {"killed": total, "runs": attempt}


def kill_push(folder, team, kills):
    ann = make(folder / "ann", range(2))

    def work(place):
        push(ann, team(place))

    def after(place):
        alone(whole_there, team(place))
        whole(ann)

    return repeatedly(
        kills, 6, lambda place: alone(work, place), work, after, lambda place: same_there(team(place), ann)
    )


def kill_pull(folder, team, kills):
    ann = make(folder / "ann", range(4))
    alone(push, ann, team("source"))

    def work(place):
        pull(team("source"), SPEC.folder, folder / place)

    def final(place):
        assert tree(folder / place) == tree(ann)
        assert verify(folder / place) == []
        assert not (folder / place / ".incoming").exists()

    return repeatedly(kills, 8, lambda place: alone(work, place), work, lambda place: whole(folder / place), final)


def kill_merge(folder, team, kills):
    ann, bob = make(folder / "ann", range(3)), make(folder / "bob", range(2, 6))

    def work(place):
        merge([ann, bob], folder / place)

    def plain(place):
        return {name: data for name, data in tree(folder / place).items() if name.split("/")[0] not in JOURNAL}

    def final(place):
        assert plain(place) == plain("undisturbed")
        assert Store.open(folder / place).parts == Store.open(folder / "undisturbed").parts
        assert verify(folder / place) == []

    return repeatedly(kills, 8, lambda place: alone(work, place), work, lambda place: whole(folder / place), final)


JOURNAL = ("manifests", "head.json")  # these say when and by whom


def writers(folder, team, count):
    """Members who push their own parts, and one in common, to one bucket at once: nothing lost, nothing doubled."""
    stores = [make(folder / str(who), [0, *range(10 * who, 10 * who + 2)]) for who in range(1, count + 1)]
    pids = [fork(push, store, team("all")) for store in stores]
    assert [status(pid) for pid in pids] == [0] * count

    def check():
        whole_there(team("all"))
        shared = SharedStore(connect(team("all")), SPEC.folder)
        names = [part.name for part in shared.newest().parts]
        wanted = {part.name for store in stores for part in Store.open(store).parts}
        assert len(names) == len(set(names))
        assert set(names) == wanted
        for _ in range(2):  # a shorter history than the remote's is made equal by the first pull
            for store in stores:
                pull(team("all"), SPEC.folder, store)
        same_there(team("all"), stores[0])
        for store in stores:
            assert verify(store) == []
            mine, first = tree(store), tree(stores[0])
            assert mine.keys() == first.keys()
            assert all(unsigned(path, data) == unsigned(path, first[path]) for path, data in mine.items())

    alone(check)
    return {"writers": count}


MODES = {mode.__name__: mode for mode in (kill_push, kill_pull, kill_merge, writers)}

if __name__ == "__main__":
    mode, folder, endpoint, bucket, count = sys.argv[1:]
    options = {"endpoint": endpoint, "allow_http": True, "timeout": 10}

    def team(place):
        return Remote("team", f"s3://{bucket}/{place}", options)

    print(json.dumps(MODES[mode](Path(folder), team, int(count))))
