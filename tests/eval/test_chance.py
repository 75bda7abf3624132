"""A backbone that knows nothing lands at chance within its interval, on every shape of benchmark it can run."""

from __future__ import annotations

import pytest

from compal import api
from compal.eval.sources import Sources
from compal.workspace import Workspace


@pytest.fixture(scope="module")
def cosine(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("work"))
    rows = []
    for benchmark, sources in (("shapes", Sources(split="in_domain", limit=60)), ("shapes-retrieval", Sources())):
        rows += api.evaluate(
            benchmark, backbone="random:4x64", sources=sources, extract_missing=True, workspace=workspace
        )  # fmt: skip
    return {row.benchmark: row for row in rows if row.label == "cosine"}


@pytest.mark.parametrize(
    ("benchmark", "metric"),
    [("shapes", "i2t"), ("shapes", "t2i"), ("shapes", "group"), ("shapes-retrieval", "i2t_r@10")],
)
def test_the_random_backbone_is_at_chance(cosine, benchmark, metric):
    row = cosine[benchmark]
    found = row.overall.metrics[metric]
    assert found.low <= row.meta["chance"][metric] <= found.high
