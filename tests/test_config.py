"""Strict, complete, hashable settings; errors with a tree, a cure and an exit code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from compal import config, errors
from compal.errors import CompalError, InputError, UnknownName, UsageError


@dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    betas: tuple[float, ...] = (0.9, 0.99)
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    name: str
    steps: int = 1
    inner: Inner = field(default_factory=Inner)
    table: dict[str, int] = field(default_factory=dict)
    maybe: int | None = None
    flag: bool = False


def test_round_trip_is_complete():
    built = config.from_dict(Outer, {"name": "x", "inner": {"lr": 1}, "table": {"k": 2}})
    assert built == Outer("x", inner=Inner(lr=1.0), table={"k": 2})
    assert config.from_dict(Outer, config.to_dict(built)) == built
    assert config.to_dict(built)["inner"] == {"lr": 1.0, "betas": [0.9, 0.99], "kind": "a"}


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        ({"name": "x", "step": 1}, UnknownName, "Did you mean 'steps'"),
        ({"name": "x", "inner": {"lrr": 1}}, UnknownName, r"'inner\.lrr'. Did you mean 'inner\.lr'"),
        ({"name": "x", "steps": "1"}, UsageError, "'steps' must be int"),
        ({"name": "x", "steps": True}, UsageError, "'steps' must be int"),
        ({"name": "x", "flag": 1}, UsageError, "'flag' must be bool"),
        ({"name": "x", "inner": 3}, UsageError, "'inner' must be a table"),
        ({"name": "x", "inner": {"kind": "c"}}, UnknownName, r"value for 'inner\.kind'"),
        ({}, UsageError, "without a value: name"),
    ],
)
def test_wrong_settings_name_the_key(data, error, said):
    with pytest.raises(error, match=said):
        config.from_dict(Outer, data)


def test_settings_on_top():
    data = {"a": {"b": 1}, "c": "x"}
    changed = config.apply_settings(data, ["a.b=2.5", "c=word", "d.e=[1, 2]", "f=true"])
    assert changed == {"a": {"b": 2.5}, "c": "word", "d": {"e": [1, 2]}, "f": True}
    assert data == {"a": {"b": 1}, "c": "x"}
    for wrong in ("a.b", "=1", "c.d=1"):
        with pytest.raises(UsageError):
            config.apply_settings(data, [wrong])


def test_equal_data_equal_fingerprint():
    assert config.fingerprint({"a": 1, "b": "ü"}) == config.fingerprint({"b": "ü", "a": 1})
    assert config.fingerprint({"a": 1}) != config.fingerprint({"a": 1.5})
    with pytest.raises(ValueError, match="JSON"):
        config.canonical({"a": float("nan")})


def test_bad_toml_names_the_file(tmp_path):
    (tmp_path / "x.toml").write_text("a = \n")
    with pytest.raises(InputError, match=r"x\.toml is not valid TOML.*line 1"):
        config.read_toml(tmp_path / "x.toml")
    with pytest.raises(InputError, match="no file"):
        config.read_toml(tmp_path / "y.toml")


def test_the_error_tree_is_as_drawn():
    codes = {"InputError": 1, "UnknownName": 1, "MissingFeatures": 1, "SpecMismatch": 1}
    codes |= {"UsageError": 2, "VerificationError": 3, "RemoteError": 4}
    found = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, CompalError) and value is not CompalError
    }
    assert found == codes
    assert all(name in errors.__doc__ for name in found)
    assert all(
        issubclass(getattr(errors, name), InputError) for name in ("UnknownName", "MissingFeatures", "SpecMismatch")
    )


def test_an_error_is_one_line():
    error = InputError("broken\n  here.", "mend\nit.")
    assert str(error) == "broken here. mend it."
    assert (
        str(UnknownName.among("head", "cosin", ["cosine", "x"]))
        == "no head 'cosin'. Did you mean 'cosine'? Known: cosine, x."
    )
