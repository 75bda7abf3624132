"""Writers that are killed and writers that race: `python workers.py MODE FOLDER` prints one JSON line.

One process imports once and forks the writers, so that a kill costs milliseconds and many moments fit a test.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

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
    """File → digest, without what done files say of their writer, and without empty folders."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        raw = path.read_bytes()
        if path.parent.name == "done":
            done = json.loads(raw)
            del done["written"]
            raw = json.dumps(done, sort_keys=True).encode()
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


def killed_at_step(folder, step):
    """Extract, and be killed before the system call number `step` that changes the disk."""
    left = [step]

    def counting(real):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in STEPS:
        setattr(os, name, counting(getattr(os, name)))
    extract(folder, 1)


def every_step(folder):
    """Kill at step 0, 1, 2, … until a run ends before its step comes; resume each and compare."""
    extract(folder / "undisturbed", 1)
    expected, step, killed = content(folder / "undisturbed"), 0, 0
    while True:
        place = folder / str(step)
        code = status(fork(killed_at_step, place, step))
        if code == 0:
            return {"steps": step, "killed": killed}
        assert code == -signal.SIGKILL, code
        killed += 1
        readable(place)
        extract(place, 1)
        assert content(place) == expected, (step, set(content(place).items()) ^ set(expected.items()))
        assert verify(place) == [], (step, verify(place))
        step += 1


def readable(folder):
    """Whatever the moment of the kill: a reader sees whole commits or nothing."""
    if (folder / "spec.json").exists():
        store = Store.open(folder)
        numbers = {key.split("-")[0] for key in store.keys("image") | store.keys("text")}
        for number in numbers:
            store.image_tokens([f"{number}-{row}" for row in range(3)])
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


MODES = {mode.__name__: mode for mode in (every_step, random_moments, committers, same_part)}

if __name__ == "__main__":
    print(json.dumps(MODES[sys.argv[1]](Path(sys.argv[2]))))
