"""Engines end in the same store: killed ranks, killed groups, errors, and runs that share the work by claims."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from faulty.driver import drive
from faulty.process import ended, start
from faulty.same import content

from compal.errors import InputError, UnknownName, UsageError
from compal.pipeline import rank
from compal.pipeline.claims import FOLDER, Claims
from compal.pipeline.encoder import resolve
from compal.pipeline.engines import torchrun
from compal.pipeline.job import Job
from compal.pipeline.mailbox import Postbox
from compal.pipeline.plan import ExtractConfig
from compal.pipeline.rank import Rank, take_part
from compal.stores.store import Store
from compal.stores.verify import verify
from compal.workspace import Remote

LIMIT = 8  # quadruplets: 16 images and 16 captions in units of 8


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The store of one process."""
    folder = tmp_path_factory.mktemp("alone") / "store"
    told = drive(folder, limit=LIMIT)
    assert told["encoded"] == 4 * LIMIT == sum(told["ticks"].values())
    return content(folder)


def test_one_process_leaves_nothing_beside_the_store(expected):
    assert {name.partition("/")[0] for name in expected} <= {
        "spec.json", "head.json", "images", "texts", "tables", "done", "manifests",
    }  # fmt: skip


def test_a_rank_that_is_killed_midway(tmp_path, expected):
    """Its unit is done by others, no part is lost or doubled, and the bytes are those of one process."""
    child = start(
        tmp_path / "store", "torchrun", 2, LIMIT,
        FAULTY_KILL=f"{tmp_path}:2:1", FAULTY_RANK="1", FAULTY_MEET=str(tmp_path),
    )  # fmt: skip
    code, told, error = ended(child)
    assert (code, error) == (0, "")
    assert (tmp_path / "killed-0").exists()
    assert len(told["units"]) == len(set(told["units"])) == 4
    assert told["encoded"] == 4 * LIMIT
    assert content(tmp_path / "store") == expected


def test_an_error_of_a_rank_is_the_error_of_the_run(tmp_path):
    child = start(tmp_path / "store", "torchrun", 1, LIMIT, FAULTY_ERROR="1")
    code, _, error = ended(child)
    assert (code, error) == (1, "compal: the second batch is refused. Choose another one.\n")
    assert not list((tmp_path / "store" / ".staging").iterdir())


def test_a_rank_that_always_dies_is_named_with_its_log(tmp_path):
    child = start(tmp_path / "store", "torchrun", 1, LIMIT, FAULTY_KILL=f"{tmp_path}:1:9")
    code, _, error = ended(child)
    assert code == 1
    assert error.startswith("compal: rank 0 was killed by signal 9, 4 times in all, with 4 units left; its log is")
    assert error.count("\n") == 1
    log = Path(error.split("its log is ")[1].split(". Run")[0])
    assert log.is_file()
    assert len(list(tmp_path.glob("killed-*"))) == 4


def test_a_group_that_is_killed_and_run_again(tmp_path):
    """Ranks are sessions of their own: they end by themselves when whoever started them is gone."""
    folder, units = tmp_path / "store", 12
    child = start(folder, "torchrun", 2, 24, FAULTY_SECONDS="0.4")
    deadline = time.monotonic() + 120
    while not list(folder.glob("done/*")):
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    assert Store.open(folder).keys("image") == set()
    assert len(list(folder.glob("done/*"))) < units
    told = drive(folder, limit=24)
    assert 0 < len(told["units"]) < units
    while list(folder.glob(f"{FOLDER}/*")):  # a rank may be at its last unit
        assert time.monotonic() < deadline
        time.sleep(0.1)
        Claims(folder).collect()
    drive(tmp_path / "alone", limit=24)
    assert content(folder) == content(tmp_path / "alone")
    assert verify(folder) == []


def test_ranks_that_run_already_take_part(tmp_path):
    """Under torchrun rank 0 plans; with other batches a real encoder's values agree to the rounding of fp16."""
    before = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    child = start(tmp_path / "ranks", "torchrun", 0, LIMIT, "shapes-vit", 4, before=before)
    code, told, error = ended(child)
    assert code == 0, error
    assert len(told["units"]) == len(set(told["units"])) == 4
    drive(tmp_path / "alone", limit=LIMIT, backbone="shapes-vit", batch_size=8)
    ranks, alone = (Store.open(tmp_path / name) for name in ("ranks", "alone"))
    for kind in ("image", "text"):
        assert ranks.keys(kind) == alone.keys(kind)
        keys = sorted(ranks.keys(kind))
        assert len(keys) == 2 * LIMIT
        one, other = (store.pooled(kind, keys).astype(np.float32) for store in (ranks, alone))
        assert np.allclose(one, other, rtol=2**-9, atol=2**-12)
    assert {path.name for path in (tmp_path / "ranks").glob(".*")} <= {".staging"}
    assert verify(tmp_path / "ranks") == []


def test_two_runs_at_once_share_the_work(tmp_path):
    """By claims alone: no unit is encoded twice, and each run sees the whole store at its end."""
    folder = tmp_path / "store"
    runs = [start(folder, "local", 0, 24, FAULTY_SECONDS="0.1", FAULTY_MEET=str(tmp_path)) for _ in range(2)]
    results = [ended(child) for child in runs]
    assert [(code, error) for code, _, error in results] == [(0, "")] * 2
    one, other = (set(told["units"]) for _, told, _ in results)
    assert one
    assert other
    assert not one & other
    assert len(one | other) == 12
    drive(tmp_path / "alone", limit=24)
    assert content(folder) == content(tmp_path / "alone")


def test_a_unit_that_another_holds_is_waited_for(tmp_path, expected):
    """It is taken over once it is free; nothing else waits for it."""
    import threading

    folder = tmp_path / "store"
    names = [Path(name).stem for name in expected if name.startswith("done/i-")]
    folder.mkdir()
    with Claims(folder) as other:
        assert other.take(names[0])
        rest = 4 - 1

        def release():
            while len(list(folder.glob("done/*"))) < rest:
                time.sleep(0.05)
            other.release(names[0])

        thread = threading.Thread(target=release)
        thread.start()
        told = drive(folder, limit=LIMIT)
        thread.join()
    assert told["units"][-1] == names[0]
    assert content(folder) == expected


@pytest.mark.slow
def test_the_command_line_under_srun_plans_and_prints_once(tmp_path):
    """Rank 0 is the command and hosts the key-value store; the other works, prints nothing and ends with 0."""
    command = [
        sys.executable, "-m", "compal", "extract", "--backbone", "random:4x8", "--data", "shapes", "--split", "train",
        "--limit", "4", "--engine", "torchrun", "--json", "--work", str(tmp_path / "work"),
    ]  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**told, "RANK": str(number), "LOCAL_RANK": str(number)},
        )
        for number in range(2)
    ]  # fmt: skip
    (out, error), (other, other_error) = [child.communicate(timeout=120) for child in started]
    assert [child.returncode for child in started] == [0, 0], error + other_error
    (done,) = json.loads(out)
    assert (done["images"], done["texts"]) == (8, 8)
    assert other == other_error == ""


def test_a_plan_that_is_gone_is_finished(tmp_path):
    """Rank 0 takes it away once all parts are there, whatever others are about to say or to load."""
    post = Postbox(tmp_path / "gone", "1")
    post.tick("image", 3)
    post.error(InputError("the share is gone"))
    take_part(tmp_path / "gone", Rank(1, 2, 1, 2))
    assert not (tmp_path / "gone").exists()


class Server:
    """A key-value store in a process that has ended, after some messages."""

    def __init__(self, **kept):
        self.kept = {f"compal/{name.removeprefix('_')}": value.encode() for name, value in kept.items()}

    def check(self, keys):
        if not self.kept:
            raise RuntimeError("Connection reset by peer")
        return all(key in self.kept for key in keys)

    def get(self, key):
        if not self.kept:
            raise RuntimeError("Connection reset by peer")
        return self.kept.pop(key)

    def set(self, key, value):
        raise RuntimeError("Broken pipe")


def test_ranks_whose_server_has_ended(monkeypatch, tmp_path):
    """Under srun it is rank 0's: after a plan its end is that of the work, before the first it is an error."""
    monkeypatch.setattr(torchrun._Board, "_only", board := object.__new__(torchrun._Board))
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    board._store, board._count = Server(_0=str(tmp_path / "gone")), 0
    with torchrun.ranks() as leading:
        assert not leading
    board._count = 0
    with pytest.raises(InputError, match="rank 0 has ended without a word"), torchrun.ranks():
        pass
    board.close(Rank(0, 2, 0, 2))


def test_a_rank_decodes_on_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 96)
    for own, ranks, share in ((96, 8, 12), (12, 8, 12), (32, 8, 4), (2, 4, 2), (96, 1, 96)):
        monkeypatch.setattr(rank, "cores", lambda own=own: own)
        assert Rank(0, ranks, 0, ranks).cores == share


def test_ranks_keep_to_the_processor_if_told_so(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    asked = ("cpu", "auto", "cuda", "cuda:3")
    assert [Rank(5, 8, 5, 8).device(one) for one in asked] == ["cpu", "cuda:1", "cuda:1", "cuda:3"]


def test_jobs_that_no_engine_can_do_are_refused_early(tmp_path):
    spec, roi = resolve("random:4x8"), resolve("random:4x8", "regions:roi")
    with pytest.raises(UnknownName, match="torchrun"):
        Job((spec,), (tmp_path,), ExtractConfig(engine="torchrum"))
    with pytest.raises(UsageError, match=r"regions:roi is pooled.* without --through"):
        Job((roi,), (tmp_path,), ExtractConfig(engine="ray", through=Remote("team", tmp_path.as_uri())))


def test_ranks_begin_at_their_own_units_and_differ_in_what_they_take_next():
    names = [f"u{n}" for n in range(7)]
    orders = [Rank(rank, 3, rank, 3).order(names) for rank in range(3)]
    assert [order[:2] for order in orders] == [["u0", "u3"], ["u1", "u4"], ["u2", "u5"]]
    assert all(sorted(order) == names for order in orders)
    assert len({tuple(order[3:]) for order in orders}) == 3


def test_a_rank_is_what_the_environment_says():
    assert Rank.here({"RANK": "1", "WORLD_SIZE": "4"}) is None
    assert Rank.here({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Rank(5, 8, 1, 8)
    assert Rank.here({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}).local_world == 4
