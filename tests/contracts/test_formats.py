"""What every format promises, over all that exist. How exact they are: tests/stores/test_formats.py."""

import inspect

import pytest

from compal import registry

NAMES = registry.names("formats")
every_format = pytest.mark.parametrize("name", NAMES)


def test_the_known_formats_were_collected():
    assert {"faiss", "hdf5", "huggingface", "npz", "safetensors", "webdataset"} <= set(NAMES)


@every_format
def test_the_summary_is_one_plain_line(name):
    assert 20 < len(registry.summary("formats", name)) <= 120


@every_format
def test_suffix_export_and_load(name):
    module = registry.load("formats", name)
    assert module.SUFFIX.startswith(".")
    assert list(inspect.signature(module.export).parameters) == ["store", "path", "keys"]
    if hasattr(module, "load"):
        assert list(inspect.signature(module.load).parameters) == ["path", "folder", "mapping"]


def test_suffixes_tell_formats_apart():
    suffixes = [registry.load("formats", name).SUFFIX for name in NAMES]
    assert len(set(suffixes)) == len(suffixes)


@every_format
def test_listing_imports_no_library(name):
    """Heavy libraries are imported when a format is used, not when it is listed or loaded."""
    source = registry.path("formats", name).read_text(encoding="utf-8").split("\ndef ")[0]
    assert not any(f"import {library}" in source for library in ("h5py", "datasets", "faiss", "webdataset"))
