"""Claims on units: one winner each, however many race; the dead and the silent lose theirs, the living never.

Run as a script, this file is the race: `python test_claims.py FOLDER PROCESSES UNITS` prints who took what.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compal.pipeline.claims import FOLDER, Claims

FAR = 3600.0


def race(folder, processes, units):
    """Fork processes that begin at one moment and take what they can; each lives until all have tried everything."""
    start = time.time() + 0.3
    for process in range(processes):
        if os.fork() == 0:
            claims = Claims(folder)
            claims.__enter__()
            while time.time() < start:
                pass
            taken = [unit for unit in range(units) if claims.take(f"u-{unit}")]
            (folder / f"taken-{process}").write_text(json.dumps(taken))
            while len(list(folder.glob("taken-*"))) < processes:
                time.sleep(0.01)
            os._exit(0)
    for _ in range(processes):
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("taken-*"))]
    for path in folder.glob("taken-*"):
        path.unlink()
    return found


def main(folder, processes, units):
    """Two races: for what is free, then for what the dead of the first hold."""
    print(json.dumps([race(Path(folder), int(processes), int(units)) for _ in range(2)]))


def test_of_eight_processes_one_takes_each_unit_free_or_stale(tmp_path):
    command = [sys.executable, __file__, str(tmp_path), "8", "60"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    for taken in json.loads(done.stdout):
        assert sorted(unit for own in taken for unit in own) == list(range(60))
    assert len(list((tmp_path / FOLDER).glob("u-*.2"))) == 60
    with Claims(tmp_path) as claims:
        claims.collect()
    assert not (tmp_path / FOLDER).exists()


def test_taken_is_taken_until_it_is_given_back(tmp_path):
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert one.take("i-1")
        assert one.take("i-1")
        assert not other.take("i-1")
        assert other.take("i-2")
        one.release("i-1")
        one.release("i-1")
        assert other.take("i-1")
    assert not (tmp_path / FOLDER).exists()


def test_a_killed_process_holds_nothing(tmp_path):
    code = (
        "import sys, time, pathlib\nfrom compal.pipeline.claims import Claims\n"
        "claims = Claims(pathlib.Path(sys.argv[1]))\nclaims.__enter__()\n"
        "print(claims.take('i-1'), flush=True)\ntime.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout.readline() == "True\n"
        with Claims(tmp_path) as claims:
            assert not claims.take("i-1")
            child.send_signal(signal.SIGKILL)
            deadline = time.monotonic() + 10
            while not claims.take("i-1"):  # a zombie, not waited for, is as good as dead
                assert time.monotonic() < deadline
                time.sleep(0.01)
            claims.collect()
    assert not (tmp_path / FOLDER).exists()


def foreign(folder, unit, age):
    """A claim of a process on another host that gave a sign `age` seconds ago."""
    path = folder / FOLDER / f"{unit}.1"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"token": "t" * 32, "host": "elsewhere", "pid": 1, "start": "1"}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_another_host_is_judged_by_its_heartbeat(tmp_path):
    foreign(tmp_path, "i-1", 60)
    with Claims(tmp_path) as claims:
        assert not claims.take("i-1")
        claims.collect()
        assert not claims.take("i-1")
        foreign(tmp_path, "i-1", FAR)
        assert claims.take("i-1")
        with Claims(tmp_path) as late:
            assert not late.take("i-1")  # the stale one below does not count any more
    assert not (tmp_path / FOLDER).exists()


def test_a_heartbeat_keeps_all_claims_and_its_end_loses_them(tmp_path):
    with Claims(tmp_path, stale_seconds=0.8) as one, Claims(tmp_path, stale_seconds=0.8) as other:
        assert one.take("i-1")
        assert one.take("i-2")
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert not other.take("i-1")
            time.sleep(0.1)
        one._stop.set()  # as a process that is stopped, or a machine whose network is gone
        time.sleep(1.2)
        assert other.take("i-1")
        one.release("i-1")  # it wakes up, and takes nothing away
        with Claims(tmp_path, stale_seconds=0.8) as third:
            assert not third.take("i-1")
            assert third.take("i-2")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"token": 1}', b'{"pid": "x"}'])
def test_a_damaged_claim_counts_while_it_is_young(tmp_path, content):
    path = foreign(tmp_path, "i-1", 0)
    path.write_bytes(content)
    with Claims(tmp_path) as claims:
        assert not claims.take("i-1")
        os.utime(path, (time.time() - FAR,) * 2)
        assert claims.take("i-1")


def test_a_claim_that_was_made_anew_while_another_looked_stays(tmp_path, monkeypatch):
    """The owner releases and a third claims between the look and the link: the look is void."""
    foreign(tmp_path, "i-1", FAR)
    with Claims(tmp_path) as slow, Claims(tmp_path) as quick:
        link = slow._link

        def interrupted(path):
            (tmp_path / FOLDER / "i-1.1").unlink()
            assert quick.take("i-1")
            return link(path)

        monkeypatch.setattr(slow, "_link", interrupted)
        assert not slow.take("i-1")
        assert quick.take("i-1")
        assert sorted(path.name for path in (tmp_path / FOLDER).glob("i-*")) == ["i-1.1"]


def test_a_file_that_a_collector_took_is_made_again(tmp_path):
    """A process that slept for long may find its own file gone."""
    with Claims(tmp_path) as claims:
        claims._own.unlink()
        assert claims.take("i-1")
        with Claims(tmp_path) as other:
            assert not other.take("i-1")
    assert not (tmp_path / FOLDER).exists()


if __name__ == "__main__":
    main(*sys.argv[1:])
