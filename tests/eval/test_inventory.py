"""What is here and what is not, and how to get it."""

from __future__ import annotations

import layouts

from compal import registry
from compal.eval.inventory import inventory


def test_every_benchmark_is_listed_with_what_it_lacks(tmp_path):
    roots = {"sugarcrepe": tmp_path / "full", "bivlc": tmp_path / "empty", "winoground": tmp_path / "nowhere"}
    layouts.write("sugarcrepe", tmp_path / "full")
    (tmp_path / "empty").mkdir()
    found = {entry.name: entry for entry in inventory(roots.get)}
    assert list(found) == registry.names("benchmarks")
    assert (found["sugarcrepe"].state, found["sugarcrepe"].lacks) == ("present", "")
    assert found["shapes"].state == "generated"
    assert found["bivlc"].state == "incomplete"
    assert "neither parquet shards nor a CSV" in found["bivlc"].lacks
    assert "imirandam/BiVLC" in found["bivlc"].get
    assert "no folder" in found["winoground"].lacks
    for name, entry in found.items():
        assert bool(entry.get) == bool(entry.lacks), name
        if name not in roots and entry.state != "generated":
            assert (entry.state, name in entry.lacks) == ("absent", True)


def test_missing_photographs_are_what_is_missing(tmp_path):
    layouts.write("sugarcrepe", tmp_path)
    for path in (tmp_path / "val2017").iterdir():
        path.unlink()
    entry = next(
        e for e in inventory(lambda name: tmp_path if name == "sugarcrepe" else None) if e.name == "sugarcrepe"
    )
    assert entry.state == "incomplete"
    assert "19 of 19 images are not in" in entry.lacks
