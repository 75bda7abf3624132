"""What processes tell each other arrives as it was, and what cannot be told is an error in all of them."""

from __future__ import annotations

import enum
import math
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from compal.align.messages import pack, unpack

from .test_distributed import clean

SAID = {
    "nothing": None,
    "yes": True,
    "no": False,
    "whole": 2**70,
    "float": 0.1 + 0.2,
    "infinite": [math.inf, -math.inf],
    "words": "Größe \udc80 \n\x00",
    "path": Path("runs") / "linear-01",
    "nested": ([1, (2, [3.0])], {}, {"path": "a key that is a word of the format", "tuple": ()}),
}


def alike(one, other):
    """Equal, and of equal types all the way down; tensors bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.contiguous().reshape(-1).view(torch.uint8).equal(other.reshape(-1).view(torch.uint8))
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            alike(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            alike(*pair)
    else:
        assert one == other


def tensors():
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randn(3, 4, generator=draw)
    return {
        "bfloat16": numbers.bfloat16(),
        "turned": numbers.T,
        "scalar": torch.tensor(-1),
        "empty": torch.zeros(0, 5, dtype=torch.int32),
        "bool": numbers > 0,
        "nan": torch.tensor([math.nan, 1.0], dtype=torch.float64),
    }


def test_what_goes_in_comes_out():
    said = {**SAID, "tensors": tensors(), "again": list(tensors().values())}
    alike(unpack(pack(said)), said)


class Kind(enum.StrEnum):
    ONE = "one"


@pytest.mark.parametrize(
    "said",
    [
        np.float64(1.0),
        np.zeros(3),
        {1: "a key that is no str"},
        namedtuple("Pair", "one two")(1, 2),
        Kind.ONE,
        {"deep": [object()]},
        {1, 2},
        b"bytes",
        lambda: None,
    ],
    ids=lambda said: type(said).__name__,
)
def test_what_cannot_be_told_is_an_error(said):
    with pytest.raises(TypeError, match="cannot tell each other a "):
        pack(said)


SCRIPT = """
import sys
import torch
from compal.align.distributed import open_team
from compal.errors import CompalError
sys.path.insert(0, sys.argv[1])
from tests.align.test_messages import SAID, alike, tensors

team = open_team("cpu", "32-true", devices=3)
said = {**SAID, "tensors": tensors()}
alike(team.led(lambda: said if team.lead else None), said)
alike(team.led(lambda: None), None)
assert team.decided(lambda: team.lead) and not team.decided(lambda: False)
for failing in ((1,), (0, 2), (0, 1, 2)):
    def do():
        if team.rank in failing:
            raise ValueError(f"of rank {team.rank}")
    try:
        team.agreed(do)
    except (ValueError, CompalError) as error:
        first = failing[0]
        own = f"of rank {team.rank}" if team.rank in failing else f"process {first + 1} of 3 has ended: ValueError: "
        assert str(error).startswith(own), error
    else:
        raise AssertionError("no error")
try:
    team.led(lambda: {1, 2})
except TypeError as error:
    assert team.lead
except CompalError as error:
    assert "TypeError: processes cannot tell each other a set" in str(error) and not team.lead
else:
    raise AssertionError("no error")
print(f"all of {team.rank} was told\\n", end="", flush=True)  # in one write, as the others write there too
team.__exit__(None, None, None)
"""


def test_three_processes_tell_each_other(tmp_path):
    """Also when an error comes up in several of them at once."""
    script = tmp_path / "tell.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    command = [sys.executable, str(script), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean(), timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"all of {rank} was told" for rank in range(3)]
