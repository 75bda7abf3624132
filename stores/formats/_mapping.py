"""Which arrays of a file are what: by our own names, or by the mapping that the user gives for others' files.

A mapping is flat, text to text. Entries with a dot name arrays: `images.keys = "ids"`, `images.tokens`,
`images.pooled`, `texts.captions`, … (all fields: `_columns.FIELDS`; padded texts take `texts.lengths`, tokens
behind each other `texts.offsets`). Entries without a dot describe the features: `backbone` (needed), `weights`,
`level`, `layer`, `precision`, `normalized`, `image_prefix`, `image_grid` (`14x14`), `context_length`, `dtype`.
Shapes come from the arrays. Where a file has no pooled embeddings, `images.pooled = "=mean"` takes the mean of
the tokens, and the spec says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash

from ...errors import InputError, UnknownName, UsageError
from ..spec import FeatureSpec
from ._columns import FIELDS, MEAN, Source
from ._common import KINDS, PLURAL, check_spec, refuse, spec_of

TEXTS = ("backbone", "weights", "level", "layer", "precision", "dtype")
NUMBERS = ("image_prefix", "context_length")
OWN = {f"{PLURAL[kind]}.{field}" for kind in KINDS for field in FIELDS[kind]}
DESCRIBES = {*TEXTS, *NUMBERS, "normalized", "image_grid"}


def resolve(source: Source, mapping: dict[str, str] | None) -> tuple[FeatureSpec, dict[str, str]]:
    """The spec of the store to write, and our name → the source's name for each array.

    Raises `InputError` if the source is not an export and no mapping is given, or the mapping names what is not
    there; `UnknownName` for entries that a mapping cannot have.
    """
    if mapping is None:
        spec = spec_of(source.label, source.notes)
        return spec, {name: name for name in OWN & source.names()}
    for name in mapping:
        if name not in OWN | DESCRIBES:
            raise UnknownName.among("entry of a mapping", name, OWN | DESCRIBES)
    if not mapping.get("backbone"):
        raise UsageError("the mapping names no backbone", 'Add what computed the features: backbone = "dinov2-vitl14"')
    arrays = {name: place for name, place in mapping.items() if name in OWN}
    spec = _foreign_spec(source, mapping, arrays)
    check_spec(source.label, spec)
    return spec, arrays


def _foreign_spec(source: Source, mapping: dict[str, str], arrays: dict[str, str]) -> FeatureSpec:
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: list[np.dtype[Any]] = []
    extra = {}
    for kind in KINDS:
        plural = PLURAL[kind]
        for field in ("tokens", "pooled"):
            place = arrays.get(f"{plural}.{field}")
            if place == MEAN and field == "pooled":
                extra[f"pooled_{kind}"] = "mean of the tokens"
            elif place:
                shape, dtype = source.describe(place)
                shapes[f"{plural}.{field}"] = shape
                dtypes.append(dtype)
        if any(name.startswith(f"{plural}.") for name in arrays) and f"{plural}.pooled" not in arrays:
            cure = f'Add {plural}.pooled = "NAME" to the mapping; "{MEAN}" takes the mean of the tokens.'
            raise InputError(f"{source.label}: the mapping names no pooled embeddings of the {plural}", cure)
    regions = "images.offsets" in arrays
    image, text = shapes.get("images.tokens", ()), shapes.get("texts.tokens", ())
    if len(image) not in ((2,) if regions else (0, 3)) or len(text) not in (0, 2, 3):
        raise refuse(source.label, f"its tokens are {image or text}", "Map arrays of (items, tokens, channels).")
    widths = {name: shape[-1] for name, shape in shapes.items() if name.endswith(".pooled") and shape}
    if "pooled_image" in extra:
        widths["images.pooled"] = image[-1] if len(image) == 3 else 0
    if "pooled_text" in extra:
        raise InputError("captions are not pooled by their mean here", "Map texts.pooled to an array.")
    if len(set(widths.values())) != 1 or not next(iter(widths.values())):
        raise refuse(source.label, f"its pooled embeddings differ in size: {widths}")
    return FeatureSpec(
        backbone=mapping["backbone"],
        weights=mapping.get("weights") or f"imported-{_digest(source)}",
        pooled_dim=next(iter(widths.values())),
        image_shape=(0, image[-1]) if regions else (image[1:] or (0, 0)),
        image_prefix=_number(mapping, "image_prefix"),
        image_grid=_grid(mapping.get("image_grid", "0x0")),
        text_dim=text[-1] if text else 0,
        context_length=_number(mapping, "context_length"),
        level=mapping.get("level") or ("regions" if regions else "tokens" if image or text else "pooled"),
        layer=mapping.get("layer", "last"),
        normalized=mapping.get("normalized", "false").lower() in ("true", "yes", "1"),
        dtype=mapping.get("dtype") or _dtype(source, dtypes),
        precision=mapping.get("precision", "unknown"),
        extra=extra,
    )


def _digest(source: Source) -> str:
    """What stands for the weights if nobody knows them: the file itself."""
    digest = xxhash.xxh3_128()
    with open(source.label, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _dtype(source: Source, dtypes: list[np.dtype[Any]]) -> str:
    found = np.result_type(*dtypes) if all(dtype.kind == "f" for dtype in dtypes) else np.dtype("O")
    if found.itemsize > 4 or found.kind != "f":
        names = ", ".join(sorted({str(dtype) for dtype in dtypes}))
        raise refuse(source.label, f"its features are {names}", 'Add dtype = "float32" to the mapping to round them.')
    return found.newbyteorder("=").name


def _number(mapping: dict[str, str], name: str) -> int:
    text = mapping.get(name, "0")
    if not text.isdecimal():
        raise UsageError(f"{name} = {text!r} in the mapping is not a number")
    return int(text)


def _grid(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise UsageError(f"image_grid = {text!r} in the mapping is not ROWSxCOLUMNS", 'Example: image_grid = "14x14"')
    return int(rows), int(columns)
