"""Between two ends: the formula by hand, the ends bit for bit, and unlike ends refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from compal.align.batches import join
from compal.align.checkpoint import load_scorer, save_scorer
from compal.align.fit import fit
from compal.align.patch import digest, head_ends, interpolate
from compal.align.recipe import FitConfig, OptimConfig, ValidationConfig
from compal.align.scorer import Dims, build_head
from compal.errors import InputError, SpecMismatch

from .conftest import SPEC, image_keys, text_keys

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TFLOCAL = {"width": 16, "layers": 1, "heads": 2, "ffn": 16}


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def states(dtype, seed=0):
    """Two states with what is hard to keep: zeros of both signs, infinities, an integer buffer, a scalar."""
    generator = torch.Generator().manual_seed(seed)
    base, tuned = (
        {
            "w": torch.randn(7, 5, generator=generator).to(dtype),
            "zeros": torch.tensor(zeros, dtype=dtype),
            "mask": torch.tensor([0.0, -torch.inf], dtype=dtype),
            "logit_scale": torch.tensor(scale, dtype=dtype),
            "steps": torch.tensor([3, 4]),
            "flags": torch.tensor([True, False]),
        }
        for zeros, scale in (([-0.0, 0.0, -0.0], 4.6), ([1.0, -1.0, -0.0], 2.3))
    )
    return base, tuned


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_are_reproduced_bit_for_bit(dtype):
    base, tuned = states(dtype)
    for alpha, end in ((0.0, base), (1.0, tuned)):
        found = interpolate(base, tuned, alpha)
        assert found.keys() == end.keys()
        for name, tensor in end.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(bits(found[name]), bits(tensor)), (alpha, name)
            assert found[name].data_ptr() != tensor.data_ptr() or tensor.dtype == torch.float64


def test_the_middle_by_hand():
    base = {"a": torch.tensor([1.0, -2.0, 0.0]), "logit_scale": torch.tensor(4.0)}
    tuned = {"a": torch.tensor([3.0, 2.0, 0.5]), "logit_scale": torch.tensor(1.0)}
    found = interpolate(base, tuned, 0.5)
    assert found["a"].tolist() == [2.0, 0.0, 0.25]
    assert found["logit_scale"].item() == 2.5
    assert interpolate(base, tuned, 0.25)["a"].tolist() == [1.5, -1.0, 0.125]
    assert interpolate(base, tuned, 2.0)["a"].tolist() == [5.0, 6.0, 1.0]
    assert interpolate(base, tuned, -1.0)["a"].tolist() == [-1.0, -6.0, -0.5]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [1e-9, 0.1, 0.5, 0.6, 1 - 1e-9, 1.5])
def test_what_lies_between_is_the_formula_rounded_once(dtype, alpha):
    """Against numpy in long double; next to the ends too, so that no shortcut there hides another formula."""
    base, tuned = states(dtype)
    found = interpolate(base, tuned, alpha)["w"]
    one, two = (state["w"].double().numpy().astype(np.longdouble) for state in (base, tuned))
    share = np.longdouble(alpha)
    exact = torch.from_numpy(((1 - share) * one + share * two).astype(np.float64))
    if dtype == torch.float64:
        torch.testing.assert_close(found, exact, rtol=1e-15, atol=1e-16)
    else:
        assert (found.double() - exact).abs().max() <= (exact.to(dtype).double() - exact).abs().max() * (1 + 1e-6)
    mask = interpolate(base, tuned, alpha)["mask"]
    assert mask.tolist() == [0.0, -torch.inf]


def test_equal_ends_stay_what_they_are():
    base, _ = states(torch.float32)
    found = interpolate(base, {name: tensor.clone() for name, tensor in base.items()}, 0.37)
    assert digest(found) == digest(base)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda state: state.pop("w"), SpecMismatch, "only one of the two has 'w'"),
        (lambda state: state.update(w=torch.zeros(5, 7)), SpecMismatch, r"'w' is \(7, 5\) torch.float32 and \(5, 7\)"),
        (lambda state: state.update(w=torch.zeros(7, 5).half()), SpecMismatch, "torch.float16"),
        (lambda state: state.update(steps=torch.tensor([3, 5])), SpecMismatch, "'steps' holds integers that differ"),
        (lambda state: state.update(flags=torch.tensor([True, True])), SpecMismatch, "'flags' holds integers"),
        (lambda state: state.update(w=torch.full((7, 5), torch.nan)), InputError, "'w' is not finite at alpha = 0.5"),
        (lambda state: state.update(mask=torch.tensor([0.0, torch.inf])), InputError, "'mask' is not finite"),
    ],
)
def test_unlike_ends_are_one_line(change, error, says):
    base, tuned = states(torch.float32)
    change(tuned)
    with pytest.raises(error, match=says) as found:
        interpolate(base, tuned, 0.5)
    assert "\n" not in str(found.value)


def test_a_result_that_overflows_is_refused():
    base, tuned = {"w": torch.tensor([-60000.0]).half()}, {"w": torch.tensor([60000.0]).half()}
    assert interpolate(base, tuned, 0.5)["w"].item() == 0.0
    with pytest.raises(InputError, match="not finite at alpha = 2"):
        interpolate(base, tuned, 2.0)


def save(path, name, options, seed=0, spec=SPEC):
    torch.manual_seed(seed)
    scorer = build_head(name, options, Dims.of(spec))
    save_scorer(path, scorer, spec)
    return scorer


def test_heads_between_two_checkpoints(store, tmp_path):
    one = save(tmp_path / "1.safetensors", "tflocal", TFLOCAL, 1)
    two = save(tmp_path / "2.safetensors", "tflocal", TFLOCAL, 2)
    ends = head_ends(tmp_path / "1.safetensors", tmp_path / "2.safetensors")
    ends.write(tmp_path / "run", interpolate(*ends.states(), 0.5), {})
    made = load_scorer(tmp_path / "run/checkpoints/best.safetensors", SPEC)
    assert (made.head, made.config, made.dims) == (one.head, one.config, one.dims)
    for name, tensor in made.state_dict().items():
        mean = (one.state_dict()[name].double() + two.state_dict()[name].double()) / 2
        assert torch.equal(tensor, mean.float()), name
    batch = join(store, image_keys(3), text_keys(4))
    assert not torch.allclose(made.score(batch), load_scorer(tmp_path / "1.safetensors", SPEC).score(batch))


def run(folder, store, quad_table, head, **settings):
    """A run of a step; with lr = 0 it ends where it began."""
    optim, often = OptimConfig(steps=1, lr=settings.pop("lr", 0.0)), ValidationConfig(every=1)
    config = FitConfig(head=head, optim=optim, validation=often, **settings)
    return fit(config, store, quad_table, None, folder).checkpoint


@pytest.mark.parametrize(("name", "options"), [("linear", {}), ("tflocal", TFLOCAL), ("mlp", {"width": 8})])
def test_a_head_as_it_began_is_the_one_that_fitting_starts_from(store, quad_table, tmp_path, name, options):
    still = run(tmp_path / "still", store, quad_table, {"name": name, **options}, seed=5)
    moved = run(tmp_path / "moved", store, quad_table, {"name": name, **options}, seed=5, lr=0.1)
    before = torch.get_rng_state()
    ends = head_ends(None, moved)
    assert torch.equal(torch.get_rng_state(), before)
    assert digest(ends.states()[0]) == digest(load_scorer(still, SPEC).state_dict())
    assert digest(ends.states()[0]) != digest(ends.states()[1])


def test_linear_began_as_the_identity_whatever_its_seed(tmp_path):
    scorer = save(tmp_path / "x.safetensors", "linear", {})
    scorer.map.weight.data.add_(1.0)
    save_scorer(tmp_path / "x.safetensors", scorer, SPEC)
    base, tuned = head_ends(None, tmp_path / "x.safetensors").states()
    assert torch.equal(base["map.weight"], torch.eye(8))
    assert torch.equal(interpolate(base, tuned, 0.5)["map.weight"], torch.eye(8) + 0.5)


def test_a_run_that_started_from_a_checkpoint_began_there(store, quad_table, tmp_path):
    save(tmp_path / "start.safetensors", "tflocal", TFLOCAL, 7)
    head = {"name": "tflocal", **TFLOCAL}
    moved = run(tmp_path / "run", store, quad_table, head, lr=0.1, init=str(tmp_path / "start.safetensors"))
    began = load_scorer(tmp_path / "start.safetensors", SPEC).state_dict()
    assert digest(head_ends(None, moved).states()[0]) == digest(began)
    (tmp_path / "start.safetensors").unlink()
    with pytest.raises(InputError, match=r"no checkpoint .*start\.safetensors"):
        head_ends(None, moved)


def test_how_a_head_began_is_not_guessed(tmp_path):
    save(tmp_path / "x.safetensors", "tflocal", TFLOCAL)
    with pytest.raises(InputError, match=r"without the config\.toml that says how its 'tflocal' began") as found:
        head_ends(None, tmp_path / "x.safetensors")
    assert "Name the other end" in found.value.cure


@pytest.mark.parametrize(
    ("name", "options", "spec", "says"),
    [
        ("linear", {}, SPEC, "is a 'linear', .* a 'tflocal'"),
        ("tflocal", {**TFLOCAL, "ffn": 32}, SPEC, "differ in ffn"),
        ("tflocal", TFLOCAL, dataclasses.replace(SPEC, weights="1" * 64), "differ in weights"),
    ],
)
def test_two_heads_that_do_not_belong_together(tmp_path, name, options, spec, says):
    save(tmp_path / "a.safetensors", name, options, spec=spec)
    save(tmp_path / "b.safetensors", "tflocal", TFLOCAL)
    with pytest.raises(SpecMismatch, match=says) as found:
        head_ends(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert "\n" not in str(found.value)
