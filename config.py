"""Frozen dataclasses from and to TOML: strict, complete, hashable.

An unknown key is an error that names the nearest known one; a value of the wrong type is an error that
names the key. What a run saves is the complete configuration, defaults included.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from .errors import InputError, UnknownName, UsageError

T = TypeVar("T")


def from_dict(cls: type[T], data: dict[str, Any], where: str = "") -> T:
    """Build a dataclass from nested dicts. `where` is the dotted key of `data`, for messages."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in data.items():
        dotted = f"{where}.{key}" if where else key
        if key not in fields:
            raise UnknownName.among("setting", dotted, (f"{where}.{name}" if where else name for name in fields))
        values[key] = _convert(hints[key], value, dotted)
    lacking = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if lacking:
        raise UsageError(f"settings without a value: {', '.join(f'{where}.{n}'.lstrip('.') for n in lacking)}")
    return cls(**values)


def _convert(hint: Any, value: Any, dotted: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise UsageError(f"setting '{dotted}' must be a table, not {value!r}")
        return from_dict(typing.cast(type, hint), value, dotted)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(arg for arg in args if arg is not type(None)), value, dotted)
    if origin is typing.Literal:
        if value not in args:
            raise UnknownName.among(f"value for '{dotted}'", str(value), map(str, args))
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(args[0], element, dotted) for element in value)
    if origin is dict and isinstance(value, dict):
        return {str(key): _convert(args[1], element, f"{dotted}.{key}") for key, element in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (type(value) is hint):
        return value
    raise UsageError(f"setting '{dotted}' must be {getattr(hint, '__name__', hint)}, not {value!r}")


def to_dict(config: Any) -> dict[str, Any]:
    """The complete nested dict; `None` values are left out, as TOML has none."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(element) for key, element in value.items() if element is not None}
        if isinstance(value, list | tuple):
            return [clean(element) for element in value]
        return value

    cleaned: dict[str, Any] = clean(dataclasses.asdict(config))
    return cleaned


def canonical(data: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, no NaN. Equal data ⇔ equal bytes."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def fingerprint(data: Any) -> str:
    """sha256 of the canonical JSON, 64 hex digits."""
    return hashlib.sha256(canonical(data)).hexdigest()


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises `InputError` naming the file and the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no file {path}", "Check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None


def apply_settings(data: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """Override nested values by `a.b=value` strings (values are TOML; bare words are strings)."""
    result = json.loads(json.dumps(data))
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {setting!r} is not KEY=VALUE", "Example: --set optim.lr=1e-4")
        try:
            value = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            value = text
        node = result
        *parents, leaf = key.strip().split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UsageError(f"--set {key}: '{parent}' is a value, not a table")
        node[leaf] = value
    return typing.cast(dict[str, Any], result)
