"""What the processes of a run tell each other: JSON and the bytes of tensors. Nothing is pickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Message:
    """text     JSON, in which a tensor stands by its number
    tensors  contiguous, on the host
    """

    text: bytes
    tensors: list[Tensor]


def pack(said: Any) -> Message:
    """`said` made ready to be told: None, bool, int, float, str, `Path`, `Tensor`, or a list, a tuple or a dict (whose
    keys are str) of such.

    Raises `TypeError` for anything else, also for subclasses (named tuples, enumerations, numpy's numbers): what comes
    out is exactly what went in, but for tensors, which are on the host then.
    """
    tensors: list[Tensor] = []
    return Message(json.dumps(_written(said, tensors)).encode(), tensors)


def unpack(message: Message) -> Any:
    """What was packed."""
    return _read(json.loads(message.text), message.tensors)


def broadcast(message: Message | None, rank: int, group: Any) -> Any:
    """What the process `rank` packed, in every process of `group` (gloo); the others give None.

    First the lengths of the text and of a list of dtypes and shapes, then both, then the bytes of each tensor.
    """
    if message is None:
        message = _heard(rank, group)
    else:
        kinds = [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in message.tensors]
        head = json.dumps(kinds).encode()
        dist.broadcast(torch.tensor([len(message.text), len(head)]), rank, group=group)
        dist.broadcast(torch.frombuffer(bytearray(message.text + head), dtype=torch.uint8), rank, group=group)
        for tensor in message.tensors:
            _move(tensor, rank, group)
    return unpack(message)


def _heard(rank: int, group: Any) -> Message:
    lengths = torch.zeros(2, dtype=torch.int64)
    dist.broadcast(lengths, rank, group=group)
    words = torch.empty(int(lengths.sum()), dtype=torch.uint8)
    dist.broadcast(words, rank, group=group)
    both, end = words.numpy().tobytes(), int(lengths[0])
    tensors = [torch.empty(shape, dtype=getattr(torch, kind)) for kind, shape in json.loads(both[end:])]
    for tensor in tensors:
        _move(tensor, rank, group)
    return Message(both[:end], tensors)


def _move(tensor: Tensor, rank: int, group: Any) -> None:
    """Its bytes, in place: gloo does not know every dtype."""
    if tensor.numel():
        dist.broadcast(tensor.view(-1).view(torch.uint8), rank, group=group)


def _written(said: Any, tensors: list[Tensor]) -> Any:
    """What JSON has no word for becomes an object of one member, and so does a dict."""
    kind = type(said)
    if said is None or kind in (bool, int, float, str):
        return said
    if isinstance(said, Path):
        return {"path": str(said)}
    if kind in (Tensor, torch.nn.Parameter):
        tensors.append(said.detach().cpu().contiguous())
        return {"tensor": len(tensors) - 1}
    if kind is list:
        return [_written(one, tensors) for one in said]
    if kind is tuple:
        return {"tuple": [_written(one, tensors) for one in said]}
    if kind is dict and all(type(key) is str for key in said):
        return {"dict": {key: _written(value, tensors) for key, value in said.items()}}
    raise TypeError(f"processes cannot tell each other a {kind.__name__}: {said!r:.60}")


def _read(written: Any, tensors: list[Tensor]) -> Any:
    if isinstance(written, list):
        return [_read(one, tensors) for one in written]
    if not isinstance(written, dict):
        return written
    ((kind, value),) = written.items()
    if kind == "path":
        return Path(value)
    if kind == "tensor":
        return tensors[value]
    if kind == "tuple":
        return tuple(_read(one, tensors) for one in value)
    return {key: _read(one, tensors) for key, one in value.items()}
