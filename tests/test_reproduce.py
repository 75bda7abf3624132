"""docs/guides/reproduce.md has every published set-up, its command and its row; test_setups.py plans and steps them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from compal import registry
from compal.align import setups
from compal.errors import InputError
from compal.fit_plan import plan_fit
from compal.workspace import Workspace

PAGE = (Path(__file__).parent.parent / "docs" / "guides" / "reproduce.md").read_text(encoding="utf-8")
FITS = [shlex.split(line) for line in re.findall(r"^compal fit ([^\n]+)", PAGE, re.M)]


def test_every_set_up_has_its_command_and_its_row():
    rows = "\n".join(line.partition(" | ")[0] for line in PAGE.splitlines() if line.startswith("| "))
    for name in registry.names("setups"):
        assert any(words[0] == name for words in FITS), name
        tower = next((end for end in ("-pe", "-siglip2") if name.endswith(end)), "")
        assert name in rows or (tower and f"{name.removesuffix(tower)}-pe, -siglip2" in rows), name


@pytest.mark.parametrize("words", FITS, ids=" ".join)
def test_the_data_are_those_of_the_set_up(words):
    told = setups.read(words[0])
    data = words[words.index("--data") + 1]
    assert words[0] in registry.names("setups")
    assert data.startswith(f"{told.dataset}:/data/")
    assert "--backbone" not in words


def test_the_parameters_are_those_of_the_page(tmp_path):
    plan = plan_fit("tflocal", "open_clip:ViT-B-32-quickgelu", "shapes", workspace=Workspace(tmp_path))
    assert plan.parameters == pytest.approx(13.3e6, abs=0.1e6)
    assert "13.3 M parameters" in PAGE


def test_a_wrong_setting_is_found_by_planning(tmp_path):
    with pytest.raises(InputError, match=r"Did you mean 'optim\.chunk'"):
        plan_fit("finetune", "shapes-vit", "shapes", ["optim.chunks=4"], workspace=Workspace(tmp_path))
