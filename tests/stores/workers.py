"""Writers that are killed and writers that race: `python workers.py MODE FOLDER` prints one JSON line.

One process imports once and forks the writers, so that a kill costs milliseconds and many moments fit a test.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

from compal.errors import InputError
from compal.stores import upkeep
from compal.stores.spec import FeatureSpec
from compal.stores.store import ImageRows, Quarantined, Store, TextRows
from compal.stores.verify import verify

SPEC = FeatureSpec("random", "seed-0", pooled_dim=4, image_shape=(3, 8), text_dim=5)
STEPS = ("link", "rename", "replace", "fsync", "mkdir", "rmdir", "unlink")
os.fsync = lambda handle: None  # a kill loses nothing that the kernel has; only loss of power would


def images(number, jitter=0.0):
    keys = [f"{number}-{row}" for row in range(3)]
    tokens = np.arange(72).reshape(3, 3, 8) / 16 + number + jitter
    return ImageRows(keys, [f"{key}.jpg" for key in keys], [(6, 4)] * 3, tokens, tokens[:, 0, :4])


def texts(number):
    keys = [f"{number}-x", f"{number}-y"]
    tokens = [np.full((2, 5), number), np.full((1, 5), number + 0.5)]
    return TextRows(keys, ["a cup", "a"], keys, tokens, np.ones((2, 4)), [[(0, 1), (2, 5)], [(-1, -1)]])


def extract(folder, count):
    """What an extraction does: write each part that is not done, commit it."""
    store = Store.create(folder, SPEC)
    for number in range(count):
        if not store.part_done(f"i-{number}"):
            refused = [Quarantined(f"{number}-bad", "image", "bad.jpg", "truncated")]
            store.write_images(f"i-{number}", images(number), refused)
        if not store.part_done(f"t-{number}"):
            store.write_texts(f"t-{number}", texts(number))
        store.commit([f"i-{number}", f"t-{number}"])


def content(folder):
    """File → digest, without what files say of who wrote them and when, and without empty folders."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        raw = path.read_bytes()
        if path.parent.name in ("done", "manifests") or path.name == "head.json":
            data = json.loads(raw)
            for name in ("written", "digest", "parent", "sha256"):
                data.pop(name, None)
            raw = json.dumps(data, sort_keys=True).encode()
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(raw).hexdigest()
    return found


def fork(work, *arguments):
    """Run in a child; 0 if it returned, 1 if it raised."""
    pid = os.fork()
    if pid == 0:
        try:
            work(*arguments)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    return pid


def status(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at_step(work, step, steps=STEPS):
    """Work, and be killed before the system call number `step` among `steps`, those that change the disk."""
    left = [step]

    def counting(real):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in steps:
        setattr(os, name, counting(getattr(os, name)))
    work()


def every_step(folder):
    """Kill an extraction at step 0, 1, 2, … until a run ends before its step comes; resume each and compare."""
    return kill_at_every_step(folder, lambda place: None, lambda place: extract(place, 1))


def every_step_of_upkeep(folder):
    """The same for compaction and collection of two parts."""
    store = Store.create(folder / "template", SPEC)
    for number in range(2):
        store.write_images(f"i-{number}", images(number))
    store.commit(["i-0", "i-1"])

    def prepare(place):
        shutil.copytree(folder / "template", place)

    def work(place):
        upkeep.compact(place)
        upkeep.gc(place, days=0)

    return kill_at_every_step(folder, prepare, work)


def kill_at_every_step(folder, prepare, work):
    prepare(folder / "undisturbed")
    work(folder / "undisturbed")
    expected, step = content(folder / "undisturbed"), 0
    while True:
        place = folder / str(step)
        prepare(place)
        code = status(fork(killed_at_step, lambda place=place: work(place), step))
        if code == 0:
            return {"steps": step}
        assert code == -signal.SIGKILL, code
        readable(place)
        work(place)
        assert content(place) == expected, (step, set(content(place).items()) ^ set(expected.items()))
        assert verify(place) == [], (step, verify(place))
        shutil.rmtree(place)
        step += 1


def readable(folder):
    """Whatever the moment of the kill: a reader sees whole commits or nothing."""
    if (folder / "spec.json").exists():
        store = Store.open(folder)
        numbers = {key.split("-")[0] for key in store.keys("image") | store.keys("text")}
        for number in numbers:
            store.image_tokens([f"{number}-{row}" for row in range(3)])
            if store.keys("text"):
                store.text_tokens([f"{number}-x", f"{number}-y"])


def random_moments(folder, count=8, kills=20):
    """Kill one extraction at random moments, resume each time; then compare with an undisturbed one."""
    started = time.perf_counter()
    extract(folder / "undisturbed", count)
    alone = time.perf_counter() - started
    draw, place, hit = random.Random(0), folder / "killed", 0
    for _ in range(kills):
        pid = fork(extract, place, count)
        time.sleep(draw.uniform(0, alone / 10))
        os.kill(pid, signal.SIGKILL)
        hit += status(pid) == -signal.SIGKILL
        readable(place)
    extract(place, count)
    assert content(place) == content(folder / "undisturbed")
    assert verify(place) == [], verify(place)
    return {"killed": hit}


def keep(folder, count=6):
    """Append, compact, collect, again and again; what is done already is not done again."""
    store = Store.create(folder, SPEC)
    for number in range(count):
        if f"{number}-0" not in store:
            store.write_images(f"i-{number}", images(number))
            store.write_texts(f"t-{number}", texts(number))
            store.commit([f"i-{number}", f"t-{number}"])
        upkeep.compact(folder)
        upkeep.gc(folder, days=0)
        store = Store.open(folder)


def random_moments_of_upkeep(folder, kills=20):
    """Kill `keep` at random moments and resume it, store after store until it was hit so many times."""
    started = time.perf_counter()
    keep(folder / "undisturbed")
    alone, expected = time.perf_counter() - started, content(folder / "undisturbed")
    draw, hit, stores = random.Random(0), 0, 0
    while hit < kills:
        place, stores, code = folder / str(stores), stores + 1, -signal.SIGKILL
        while code == -signal.SIGKILL:
            pid = fork(keep, place)
            time.sleep(draw.uniform(0, alone / 4))
            os.kill(pid, signal.SIGKILL)
            code = status(pid)
            hit += code == -signal.SIGKILL
            readable(place)
        assert code == 0, code
        assert content(place) == expected, set(content(place).items()) ^ set(expected.items())
        assert verify(place) == [], verify(place)
    return {"killed": hit, "stores": stores, "parts": len(Store.open(place).parts)}


def hundred_kills(folder):
    """100 of them."""
    return random_moments_of_upkeep(folder, kills=100)


def writers_and_readers(folder, processes=3, rounds=6, window=1.5):
    """Processes that append, two that compact, one that collects what nobody has needed for `window` seconds, and
    readers that hold a snapshot for less than that."""
    Store.create(folder, SPEC)
    stop = folder.parent / "stop"

    def write(process):
        for number in range(process * rounds, (process + 1) * rounds):
            store = Store.create(folder, SPEC)
            store.write_images(f"i-{number}", images(number))
            store.write_texts(f"t-{number}", texts(number))
            store.commit([f"i-{number}", f"t-{number}"])
            time.sleep(window / rounds)

    def compact(name):
        count = 0
        while not stop.exists():
            try:
                count += len(upkeep.compact(folder).sources)
            except InputError as error:  # what it says to do is what this loop does
                if "others keep rewriting" not in str(error):
                    raise
        Path(folder.parent / name).write_text(str(count))

    def collect(name):
        count = 0
        while not stop.exists():
            count += len(upkeep.gc(folder, days=window / upkeep.DAY).parts)
        Path(folder.parent / name).write_text(str(count))

    def read(name):
        count, draw = 0, random.Random(name)
        while not stop.exists():
            opened = time.monotonic()
            store = Store.open(folder)
            whole(store)
            time.sleep(draw.uniform(0, window / 3))
            try:
                whole(store)
            except Exception:
                if time.monotonic() - opened < window:  # else the machine slept longer than a snapshot is kept
                    raise
            count += 1
        Path(folder.parent / name).write_text(str(count))

    helpers = {"compacted": compact, "compacted too": compact, "collected": collect, "read": read, "read too": read}
    running = [fork(work, name) for name, work in helpers.items()]
    assert [status(pid) for pid in [fork(write, process) for process in range(processes)]] == [0] * processes
    time.sleep(2 * window)
    stop.touch()
    assert [status(pid) for pid in running] == [0] * len(running)
    counts = {name: int((folder.parent / name).read_text()) for name in helpers}
    counts["compacted"] += counts.pop("compacted too")  # which of the two comes first is luck
    return counts | tidied(folder, processes * rounds)


def whole(store):
    """A snapshot holds whole appends, with their values; as the parts lie in it, no key stands twice."""
    numbers = sorted({int(key.split("-")[0]) for key in store.keys("image") | store.keys("text")})
    if numbers:
        tokens = store.image_tokens([f"{number}-{row}" for number in numbers for row in range(3)])
        expected = np.concatenate([images(number).tokens for number in numbers]).astype(np.float16)
        assert (tokens == expected).all()
        padded, mask = store.text_tokens([f"{number}-{row}" for number in numbers for row in "xy"])
        assert padded[:, 0, 0].tolist() == [number + half for number in numbers for half in (0, 0.5)]
        assert mask.sum() == 3 * len(numbers)
    rows = {kind: sum(part.rows for part in store.parts if part.kind == kind) for kind in ("image", "text")}
    assert rows == {"image": 3 * len(numbers), "text": 2 * len(numbers)}


def tidied(folder, appends):
    """Nothing lost, nothing doubled; after a last compaction, and two days, no file is left that nobody needs."""
    store = Store.open(folder)
    whole(store)
    assert store.keys("image") == {f"{number}-{row}" for number in range(appends) for row in range(3)}
    upkeep.compact(folder)
    now = time.time()
    upkeep.time.time = lambda: now + 2 * upkeep.DAY
    upkeep.gc(folder, days=0)
    assert verify(folder) == [], verify(folder)
    store = Store.open(folder)
    whole(store)
    names = {path.stem for path in (folder / "done").iterdir()}
    assert names == {part.name for part in store.parts}
    return {"manifests": store.manifest, "parts": len(store.parts)}


def full_load(folder):
    """8 writers × 20 rounds."""
    return writers_and_readers(folder, processes=8, rounds=20, window=4.0)


def committers(folder, processes=4, each=6):
    """Processes that commit their own parts at the same time: no commit is lost."""

    def work(process):
        store = Store.create(folder, SPEC)
        for number in range(process * each, (process + 1) * each):
            store.write_images(f"i-{number}", images(number))
            store.commit([f"i-{number}"])

    assert [status(pid) for pid in [fork(work, process) for process in range(processes)]] == [0] * processes
    store = Store.open(folder)
    assert verify(folder) == [], verify(folder)
    return {"keys": len(store.keys("image")), "manifests": store.manifest, "uncommitted": store.uncommitted()}


def same_part(folder, processes=4, rounds=6):
    """Processes that write the same parts with other bits: one of them wins, whole."""

    def work(process):
        store = Store.create(folder, SPEC)
        for number in range(rounds):
            store.write_images(f"i-{number}", images(number, jitter=process))
            store.commit([f"i-{number}"])

    assert [status(pid) for pid in [fork(work, process) for process in range(processes)]] == [0] * processes
    store = Store.open(folder)
    assert verify(folder) == [], verify(folder)
    values = [float(store.image_tokens([f"{number}-0"])[0, 0, 0]) - number for number in range(rounds)]
    return {"winners": sorted(set(values)), "keys": len(store.keys("image")), "manifests": store.manifest}


MODES = {
    mode.__name__: mode
    for mode in (
        every_step,
        every_step_of_upkeep,
        random_moments,
        random_moments_of_upkeep,
        hundred_kills,
        writers_and_readers,
        full_load,
        committers,
        same_part,
    )
}

if __name__ == "__main__":
    print(json.dumps(MODES[sys.argv[1]](Path(sys.argv[2]))))
