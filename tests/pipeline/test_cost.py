"""The cost estimate: arithmetic by hand, FLOPs counted again, files counted on disk, the guide's table computed."""

import logging
from pathlib import Path

import pytest
from faulty.driver import drive

from compal.pipeline import cost
from compal.pipeline.cost import Machine, Towers, estimate, files_of_a_part
from compal.pipeline.encoder import resolve
from compal.stores.spec import FeatureSpec
from compal.stores.store import Store

GUIDE = (Path(__file__).parent.parent.parent / "docs" / "guides" / "extraction.md").read_text(encoding="utf-8")
POOLED = FeatureSpec("stub", "none", pooled_dim=512, level="pooled")
TOKENS = FeatureSpec("stub", "none", pooled_dim=512, image_shape=(50, 768), text_dim=512, context_length=77)
MACHINE = Machine("x", flops=1e12, utilisation=0.5, decoding=100.0, writing=1e6, price=2.0, requests=0.01)


def test_pooled_by_hand():
    """1,000 images, one part, decoded at 100/s by one of 2 devices; 36,000 captions at 25 GFLOP on 0.5 TFLOP/s, of
    whose 5 parts one device has 3."""
    found = estimate({"image": 1000, "text": 36_000}, POOLED, Towers(1e9, 25e9), MACHINE, 2)
    assert found.hours == pytest.approx((1000 / 100 + 3 * 8192 / 20) / 3600)
    assert found.bytes == 37_000 * 512 * 2
    assert found.parts == 1 + 5  # of 8,192 rows
    assert found.requests == (4 + 4) + 5 * (2 + 4)
    assert found.limit == "compute"
    assert found.price == pytest.approx(found.hours * 2 * 2.0 + found.requests * 0.01 / 1000)


def test_more_devices_than_parts_are_no_faster():
    hours = [estimate({"image": 20_000}, POOLED, Towers(1e9, 1e9), MACHINE, n).hours for n in (1, 2, 3, 300)]
    assert hours == pytest.approx([20_000 / 100 / 3600, *[2 * 8192 / 100 / 3600], *[8192 / 100 / 3600] * 2])


def test_tokens_are_limited_by_writing():
    found = estimate({"image": 10_000}, TOKENS, Towers(1e9, 1e9), MACHINE, 1)
    each = (50 * 768 + 512) * 2
    assert found.bytes == 10_000 * each
    assert found.hours == pytest.approx(10_000 * each / 1e6 / 3600)
    assert (found.limit, found.parts) == ("write", 3)  # of 4,096 rows


@pytest.mark.parametrize("level", ["tokens", "pooled"])
def test_a_part_has_so_many_files(tmp_path, level):
    drive(tmp_path / "store", limit=2, level=level)
    store = Store.open(tmp_path / "store")
    assert {part.kind: len(part.files) for part in store.parts} == {
        kind: files_of_a_part(kind, store.spec) for kind in ("image", "text")
    }


def counted(model):
    """(image, caption) FLOPs of an architecture on the meta device."""
    import open_clip
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    spec = resolve(f"open_clip:{model}")
    logging.getLogger().setLevel(logging.ERROR)  # that it is untrained is meant
    with torch.device("meta"):
        built = open_clip.create_model(model, pretrained=None, pretrained_hf=False, device="meta").eval()
        size = [int(side) for side in spec.preprocess["size"].split("x")]
        found = []
        for encode, inputs in (
            (built.encode_image, torch.empty(1, 3, *size)),
            (built.encode_text, torch.zeros(1, spec.context_length, dtype=torch.long)),
        ):
            with FlopCounterMode(display=False) as counter:
                encode(inputs)
            found.append(counter.get_total_flops())
    return found


@pytest.mark.parametrize(
    "alias", ["clip", pytest.param("siglip2", marks=pytest.mark.slow), pytest.param("pe-l14", marks=pytest.mark.slow)]
)
def test_flops_are_those_of_the_architecture(alias):
    model, towers = cost.BACKBONES[alias]
    assert counted(model) == pytest.approx([towers.image, towers.text], rel=1e-3)


def test_the_guide_holds_the_table_and_its_assumptions():
    """Regenerate with: python -m compal.pipeline.cost"""
    assert cost.table() in GUIDE
    assert cost.assumptions() in GUIDE
