"""Equal spec ⇔ equal fingerprint: every field changes it, nothing else does."""

import dataclasses
import json

import pytest

from compal.errors import UnknownName
from compal.stores.spec import FeatureSpec

FINGERPRINT = "12545b0a31060fa15c3cc458c177f96b45112596062f6597da0f226a925ecfbf"
SPEC = FeatureSpec("open_clip:ViT-B-32/openai", "ab" * 32, pooled_dim=512)
OTHER = {
    "backbone": "open_clip:ViT-B-16/openai",
    "weights": "cd" * 32,
    "pooled_dim": 513,
    "image_shape": (50, 768),
    "image_prefix": 1,
    "image_grid": (7, 7),
    "text_dim": 512,
    "context_length": 77,
    "preprocess": {"size": "224"},
    "tokenizer": {"name": "bpe"},
    "level": "pooled",
    "layer": "second-last",
    "normalized": True,
    "dtype": "float32",
    "precision": "bfloat16",
    "extra": {"activation": "quick_gelu"},
    "format_version": 2,
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(FeatureSpec)])
def test_every_field_changes_the_fingerprint(field):
    changed = dataclasses.replace(SPEC, **{field: OTHER[field]})
    assert getattr(SPEC, field) != OTHER[field]
    assert changed.fingerprint != SPEC.fingerprint
    assert changed.folder != SPEC.folder


def test_the_fingerprint_by_hand():
    """Pinned: a change of this number makes every store on every disk unreachable."""
    assert SPEC.fingerprint == FINGERPRINT
    assert SPEC.folder == f"open-clip-vit-b-32-openai-tokens-{FINGERPRINT[:16]}"


def test_equal_specs_are_equal_whatever_the_order_of_a_dict():
    one = dataclasses.replace(SPEC, preprocess={"size": "224", "mode": "squash"})
    two = dataclasses.replace(SPEC, preprocess={"mode": "squash", "size": "224"})
    assert one == two
    assert one.fingerprint == two.fingerprint


def test_json_round_trip():
    spec = dataclasses.replace(SPEC, image_shape=(50, 768), extra={"activation": "quick_gelu"})
    assert FeatureSpec.from_json(json.loads(spec.to_json())) == spec


def test_an_unknown_field_is_an_error():
    with pytest.raises(UnknownName, match="wieghts"):
        FeatureSpec.from_json({**json.loads(SPEC.to_json()), "wieghts": "x"})
