"""What `fit --dry-run` says is missing: noun phrases and features as well as stores and pairs."""

from __future__ import annotations

import pytest
from command_line import run

from compal import api
from compal.errors import MissingFeatures
from compal.fit_plan import plan_fit
from compal.workspace import Workspace

ALONE = ("data.validation=",)


def lacking(workspace, recipe="linear-npc"):
    return plan_fit(recipe, "shapes-vit", "shapes", ALONE, workspace=workspace).lacks


def test_phrases_that_are_not_extracted_are_missing(tmp_path):
    workspace = Workspace(tmp_path / "work")
    *_, phrases = lacking(workspace)
    assert phrases.startswith("no noun phrases of shapes, which data.phrases draws. Make them: compal extract ")
    assert phrases.endswith("--backbone shapes-vit --data shapes --level tokens --phrases")
    assert not any("noun phrases" in what for what in lacking(workspace, "linear"))

    asked = {"splits": ["train"], "limit": 6, "workspace": workspace}
    api.extract("shapes-vit", "shapes", **asked)
    assert lacking(workspace, "linear") == ()
    (what,) = lacking(workspace)
    assert "noun phrases of" in what
    assert what.endswith("compal extract --backbone shapes-vit --data NAME --level tokens --phrases")
    code, out, _ = run(
        "fit", "linear-npc", "--backbone", "shapes-vit", "--data", "shapes", "--set", *ALONE, "--dry-run",
        "--work", workspace.path,
    )  # fmt: skip
    assert code == 0
    assert f"lacks  {what}" in out.splitlines()
    assert "12 pairs" in out

    api.extract("shapes-vit", "shapes", phrases=True, **asked)
    assert lacking(workspace) == ()


def test_pairs_whose_features_are_elsewhere_are_missing(tmp_path):
    workspace = Workspace(tmp_path / "work")
    api.extract("shapes-vit", "shapes", ["validation"], limit=4, workspace=workspace)
    api.extract("random", "shapes", ["train"], limit=6, workspace=workspace)
    (what,) = lacking(workspace, "linear")
    assert "the store lacks 12 of the 12 images" in what
    assert plan_fit("linear", "random", "shapes", ALONE, workspace=workspace).pairs == 12
    with pytest.raises(MissingFeatures) as raised:
        api.fit("linear", "shapes-vit", "shapes", settings=ALONE, workspace=workspace)
    assert str(raised.value) == what
