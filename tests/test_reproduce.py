"""The set-ups of docs/reproduce.md plan: recipe, settings and features fit together, without weights or data."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from compal.errors import InputError
from compal.fit_plan import plan_fit
from compal.workspace import Workspace

PAGE = Path(__file__).parent.parent / "docs" / "reproduce.md"
RANDOM = {
    "clip": "open_clip:ViT-B-32-quickgelu",
    "pe": "open_clip:PE-Core-B-16",
    "siglip2": "open_clip:ViT-B-16-SigLIP2-256",
    "open_clip:ViT-B-16-SigLIP/webli": "open_clip:ViT-B-16-SigLIP",
}


def fits():
    """(recipe, backbone, data, settings) of every `compal fit` of the page."""
    found = []
    for line in re.findall(r"^compal fit ([^\n]+)", PAGE.read_text(encoding="utf-8"), re.M):
        words = shlex.split(line)
        options = dict(zip(words[1::2], words[2::2], strict=True))
        settings = [value for name, value in zip(words[1::2], words[2::2], strict=True) if name == "--set"]
        found.append((words[0], options["--backbone"], options["--data"], tuple(settings)))
    return found


@pytest.mark.parametrize(("recipe", "backbone", "data", "settings"), fits())
def test_it_plans(recipe, backbone, data, settings, tmp_path):
    plan = plan_fit(recipe, RANDOM[backbone], data, settings, workspace=Workspace(tmp_path))
    assert plan.recipe == recipe
    assert plan.parameters > 200_000
    assert any("compal extract" in what for what in plan.lacks)
    assert any(data.partition(":")[2] in what for what in plan.lacks)
    assert plan.pairs is None
    assert not list(tmp_path.iterdir())


def test_the_parameters_are_those_of_the_page(tmp_path):
    plan = plan_fit("tflocal", RANDOM["clip"], "shapes", workspace=Workspace(tmp_path))
    assert plan.parameters == pytest.approx(13.3e6, abs=0.1e6)
    assert "13.3 M parameters" in PAGE.read_text(encoding="utf-8")


def test_a_wrong_setting_is_found_by_planning(tmp_path):
    with pytest.raises(InputError, match=r"Did you mean 'optim\.chunk'"):
        plan_fit("finetune", "shapes-vit", "shapes", ["optim.chunks=4"], workspace=Workspace(tmp_path))
