"""The page about the kernels: its code runs, and its table names what there is."""

from __future__ import annotations

import re
from pathlib import Path

from compal.align import kernels

PAGE = (Path(__file__).parents[3] / "docs" / "guides" / "kernels.md").read_text(encoding="utf-8")


def test_its_code_runs():
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    names: dict = {}
    exec(compile(block, "docs/guides/kernels.md", "exec"), names)
    assert names["scores"].shape == (8, 8)
    assert names["image"].grad.abs().sum() > 0
    assert (names["same"] - names["scores"]).abs().max() < 1e-5
    assert (
        names["mined"] - kernels.maxsim(names["image"], names["text"], text_mask=names["mask"])[[0, 3], [1, 2]]
    ).abs().max() < 1e-5


def test_it_names_every_kernel():
    told = set(re.findall(r"`(\w+)`", PAGE)) | set(re.findall(r"import (.*)", PAGE)[1].split(", "))
    assert {name for name in kernels.__all__ if not name.startswith("reference_")} - {"Packed", "unpack"} <= told
