"""One batch's requests, taken to the shards: by memory map, by positioned reads, or past the page cache.

A request names rows of one shard and where they go. All requests of a batch are carried out together, since
the rows of a shuffled batch lie in as many parts as it has rows: what is not cached is asked for at once, and
O_DIRECT reads of all parts share one pool of threads. Within a shard, reads go in the order of the file and
neighbours are fetched by one system call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .buffers import CRC_BYTES, PAGE, Array, Bytes, rooms, row_views, scratch
from .reading import Rows, spread
from .shard import Shard

RUN_SAMPLES = 256  # per system call: two buffers each stay below IOV_MAX = 1,024
DIRECT_BYTES = 2 << 20  # windows of the file, per O_DIRECT read: more would keep other threads idle
BOUNCE_BYTES = 1 << 20  # the same where it lands in the thread's scratch
BOUNCE_GAP = 32 << 10  # between samples that one read fetches: cheaper to read than to ask again


class Request(NamedTuple):
    """`out[positions] = shard[rows]`, rows ascending."""

    shard: Shard
    rows: Rows
    positions: Rows


class Sample(NamedTuple):
    """A row of a shard, where it goes, where it lies in the file, whether its crc32c is to be checked."""

    row: int
    position: int
    offset: int
    due: bool


class Run(NamedTuple):
    """Samples of a shard that one system call fetches, in the order of the file: its bytes [start, end)."""

    shard: Shard
    samples: list[Sample]
    start: int
    end: int


def carry_out(requests: Sequence[Request], out: Array) -> None:
    """Fill `out`, each row of which is contiguous. Raises `VerificationError` where bytes are not what was
    written, `InputError` for another `out`."""
    flat = row_views(out)
    if len(requests) == 1 and len(requests[0].rows) == 1 and requests[0].shard.layout.chunk_rows == 1:
        _read_one(requests[0], flat, out)
        return
    samples: dict[str, list[Request]] = {"map": [], "pread": [], "direct": []}
    for request in requests:
        if request.shard.layout.chunk_rows > 1:
            _copy_rows(request, flat.view(out.dtype))
        else:
            samples[request.shard.reading.mode].append(request)
    for request in samples["map"]:
        request.shard.fetch(request.rows)
    for request in samples["map"]:
        _copy_samples(request, flat)
    for mode in ("pread", "direct"):
        copies = [_distinct(request) for request in samples[mode]]
        present = [_present(request, flat) for request, _, _ in copies]
        if mode == "direct":
            _read_direct(present, flat, rooms(out))
        else:
            _read_positioned(present, flat)
        for _, again, first in copies:
            if len(again):
                flat[again] = flat[first]


def _read_one(request: Request, flat: Bytes, out: Array) -> None:
    """One sample, without the arrays that plan many: they would cost more than its copy."""
    shard, row, position = request.shard, int(request.rows[0]), int(request.positions[0])
    offset, target = int(shard.offsets[row]), flat[position]
    if offset < 0:
        target[:] = 0
    elif shard.reading.mode == "map":
        shard.fetch(request.rows)
        _copy_samples(request, flat)
    else:
        end = offset + shard.payload + CRC_BYTES
        run = Run(shard, [Sample(row, position, offset, shard.checks.due_one(row))], offset, end)
        if shard.reading.mode == "pread":
            buffers = _buffers(run, flat)
            shard.pread(buffers, offset, end - offset)
            _check_run(run, buffers)
        elif offset % PAGE or (room := rooms(out)) is None:
            _read_by_scratch(run, flat)
        else:
            _read_in_place(run, room)


def _distinct(request: Request) -> tuple[Request, Rows, Rows]:
    """Each row once; and the positions of its duplicates, with those to copy from."""
    shard, rows, positions = request
    fresh = np.ones(len(rows), bool)
    fresh[1:] = rows[1:] != rows[:-1]
    if fresh.all():
        return request, positions[:0], positions[:0]
    first = positions[fresh]
    return Request(shard, rows[fresh], first), positions[~fresh], first[np.cumsum(fresh)[~fresh] - 1]


def _present(request: Request, flat: Bytes) -> Request:
    """The rows that have a chunk, in the order of the file; the others are zeros."""
    offsets = request.shard.offsets[request.rows]
    order = np.argsort(offsets, kind="stable")
    absent = int(np.searchsorted(offsets[order], 0))
    flat[request.positions[order[:absent]]] = 0
    return Request(request.shard, request.rows[order[absent:]], request.positions[order[absent:]])


def _runs(request: Request, gap: int, window: int = 0) -> Iterator[Run]:
    """Join up to `RUN_SAMPLES` samples that lie at most `gap` bytes apart and, if `window` is given, in the same
    `window` bytes of the file."""
    shard, rows, positions = request
    size = shard.payload + CRC_BYTES
    offsets = shard.offsets[rows]
    between = np.diff(offsets) - size
    apart = (between < 0) | (between > gap)
    if window:
        apart |= np.diff(offsets // window) > 0
    # Plain lists: per sample, numpy scalars would cost more than the system call.
    columns = rows.tolist(), positions.tolist(), offsets.tolist(), shard.checks.due(rows)
    samples = list(map(Sample, *columns))
    for first, end in pairwise([0, *(np.flatnonzero(apart) + 1).tolist(), len(samples)]):
        for start in range(first, end, RUN_SAMPLES):
            run = samples[start : min(start + RUN_SAMPLES, end)]
            yield Run(shard, run, run[0].offset, run[-1].offset + size)


# --- by memory map -----------------------------------------------------------------------------------------


def _copy_samples(request: Request, flat: Bytes) -> None:
    shard = request.shard
    mapped, payload, due = shard.mapped(), shard.payload, shard.checks.due(request.rows)
    offsets = shard.offsets[request.rows].tolist()
    for row, offset, position, checked in zip(
        request.rows.tolist(), offsets, request.positions.tolist(), due, strict=True
    ):
        target = flat[position]
        if offset < 0:
            target[:] = 0
            continue
        end = offset + payload
        target[:] = mapped[offset:end]
        if checked:  # the copy: it is in the cache now
            shard.check(row, target, mapped[end : end + CRC_BYTES].tobytes())


def _copy_rows(request: Request, out: Array) -> None:
    """Rows of chunks that hold many."""
    shard, rows, positions = request
    chunks, within = np.divmod(rows, shard.layout.chunk_rows)
    shard.fetch(chunks)
    edges = (np.flatnonzero(np.diff(chunks)) + 1).tolist()
    for start, stop in zip([0, *edges], [*edges, len(rows)], strict=True):
        if stop > start:
            chunk = shard.chunk(int(chunks[start]))
            out[positions[start:stop]] = chunk.reshape(len(chunk), -1)[within[start:stop]]


# --- by positioned reads -----------------------------------------------------------------------------------


def _read_positioned(requests: list[Request], flat: Bytes) -> None:
    """What is cached first; then the rest, which the kernel fetches meanwhile."""
    waiting = []
    for request in requests:
        for run in _runs(request, PAGE):
            buffers = _buffers(run, flat)
            got = run.shard.pread_cached(buffers, run.start)
            if got < run.end - run.start:
                waiting.append((run, buffers, got))
            else:
                _check_run(run, buffers)
    for run, _, got in waiting:
        run.shard.advise(run.start + got, run.end - run.start - got)
    for run, buffers, got in waiting:
        run.shard.pread(buffers, run.start, run.end - run.start, got)
        _check_run(run, buffers)


def _buffers(run: Run, flat: Bytes) -> list[Any]:
    """Per sample its row of `flat`, and a scratch for the crc32c and padding up to the next sample."""
    samples = run.samples
    if len(samples) == 1:
        return [flat[samples[0].position], bytearray(CRC_BYTES)]
    buffers: list[Any] = []
    following = [sample.offset for sample in samples[1:]] + [run.end]
    for sample, after in zip(samples, following, strict=True):
        buffers += (flat[sample.position], bytearray(after - sample.offset - run.shard.payload))
    return buffers


def _check_run(run: Run, buffers: list[Any]) -> None:
    for number, sample in enumerate(run.samples):
        if sample.due:
            run.shard.check(sample.row, buffers[2 * number], bytes(buffers[2 * number + 1][:CRC_BYTES]))


# --- past the page cache -----------------------------------------------------------------------------------


def _read_direct(requests: list[Request], flat: Bytes, room: Bytes | None) -> None:
    jobs: list[tuple[Run, bool]] = []
    for request in requests:
        shard = request.shard
        in_place = room is not None and not (shard.offsets[request.rows] % PAGE).any()
        if in_place and room is not None:  # whole pages: what is at most the padding apart is the padding apart
            runs = _runs(request, room.shape[1] - shard.payload - CRC_BYTES, DIRECT_BYTES)
        else:
            runs = _runs(request, BOUNCE_GAP, BOUNCE_BYTES)
        jobs += [(run, in_place) for run in runs]

    def read(job: tuple[Run, bool]) -> None:
        if job[1] and room is not None:
            _read_in_place(job[0], room)
        else:
            _read_by_scratch(job[0], flat)

    if jobs:
        spread(read, jobs, requests[0].shard.reading.threads)


def _read_in_place(run: Run, room: Bytes) -> None:
    """Pages of the file into pages of the buffer, crc32c and padding included."""
    shard, payload = run.shard, run.shard.payload
    buffers = [room[sample.position] for sample in run.samples]
    shard.pread(buffers, run.start, run.end - run.start)
    for sample, buffer in zip(run.samples, buffers, strict=True):
        if sample.due:
            shard.check(sample.row, buffer[:payload], buffer[payload : payload + CRC_BYTES].tobytes())


def _read_by_scratch(run: Run, flat: Bytes) -> None:
    """Any offsets and any buffer: the pages around the run, copied from there."""
    shard, payload = run.shard, run.shard.payload
    first = run.start // PAGE * PAGE
    pages = scratch(-(-(run.end - first) // PAGE) * PAGE)
    shard.pread([pages], first, run.end - first)
    for sample in run.samples:
        start = sample.offset - first
        end = start + payload
        target = flat[sample.position]
        target[:] = pages[start:end]
        if sample.due:
            shard.check(sample.row, target, pages[end : end + CRC_BYTES].tobytes())
