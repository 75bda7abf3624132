"""The Python API: its signatures are a promise, its import costs nothing, and the stages work from end to end."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest

import compal
from compal import api
from compal.errors import InputError, UnknownName, UsageError

# What users call. A change here is a change for them: keep old calls working where that can be, say in CHANGELOG.md
# what is new or gone, then write the new signature below (the failing test prints it).
SIGNATURES = {
    "evaluate": "(benchmark: str, *, heads: str | Iterable[str] = (), runs: Run | Iterable[Run] = (), "
    "backbone: Features = '', level: str = 'tokens', root: str | os.PathLike[str] | None = None, "
    "images: str | os.PathLike[str] | None = None, split: str | None = None, limit: int | None = None, "
    "variant: str | None = None, allow_missing: bool = False, sources: Sources | None = None, "
    "extract_missing: bool = False, rerank: Rerank | int | str | None = None, candidates: str = 'cosine', "
    "index: str = 'flat', device: str = 'cpu', seed: int = 0, labels: Mapping[str, str] | None = None, "
    "references: Sequence[str] | None = None, remember: bool = True, workspace: Place = None, "
    "progress: Ticker | None = None, extracting: Ticker | None = None) -> Report",
    "extract": "(backbone: str = '', data: str = '', splits: str | Sequence[str] = (), *, benchmark: str = '', "
    "root: str | os.PathLike[str] | None = None, images: str | os.PathLike[str] | None = None, "
    "allow_missing: bool = False, variant: str | None = None, level: str | Sequence[str] = 'tokens', "
    "dtype: str = 'float16', precision: str = 'float32', jpeg: str = 'exact', segments: str = '', "
    "negatives: str | Path | Named = (), phrases: bool = False, limit: int | None = None, device: str = '', "
    "config: ExtractConfig | None = None, workspace: Place = None, progress: Ticker | None = None) -> list[Summary]",
    "fit": "(recipe: str | os.PathLike[str], backbone: Features = '', data: str = '', *, settings: Settings = (), "
    "name: str = '', level: str = '', resident: str = '', deterministic: bool = False, device: str = 'cpu', "
    "resume: bool = False, workspace: Place = None, progress: Callable[[Progress], None] | None = None, "
    "devices: int = 1, nodes: int = 1, log: Sequence[str] = ()) -> RunResult",
    "open_scorer": "(head: Run, backbone: Features = '', *, level: str = 'tokens', device: str = 'cpu', "
    "workspace: Place = None) -> Scorer",
    "open_store": "(backbone: Features = '', level: str = 'tokens', dtype: str = 'float16', workspace: Place = None, "
    "remote: str = '') -> Store",
    "report": "(what: str | os.PathLike[str] | ResultRow | Iterable[str | os.PathLike[str] | ResultRow] = (), *, "
    "seeds: bool = False, ties: str = 'lose', workspace: Place = None) -> Report",
    "Report.compare": "(self, first: str, others: str | Iterable[str] = (), metric: str = '', seed: int = 0) "
    "-> Comparisons",
    "Report.csv": "(self, drop: str | Iterable[str] = ()) -> str",
    "Report.html": "(self, path: str | os.PathLike[str], *, items: int = 240, align: str | Iterable[str] = (), "
    "roots: Paths | None = None, images: Paths | None = None, measure: bool = False, title: str = 'compal report', "
    "workspace: Place = None, progress: Ticker | None = None) -> Path",
    "Report.json": "(self, drop: str | Iterable[str] = ()) -> str",
    "Report.latex": "(self, by_category: bool = False, drop: str | Iterable[str] = ()) -> str",
    "Report.markdown": "(self, by_category: bool = False, drop: str | Iterable[str] = ()) -> str",
    "Report.plot": "(self, chart: str, path: str | os.PathLike[str], x: str = '', y: str = '', measure: bool = False, "
    "progress: Ticker | None = None) -> Path",
    "Report.render": "(self, fmt: str = 'table', by_category: bool = False, drop: str | Iterable[str] = ()) -> str",
    "Report.table": "(self, by_category: bool = False, drop: str | Iterable[str] = ()) -> str",
    "Report.to_dict": "(self, drop: str | Iterable[str] = ()) -> dict[str, Any]",
    "Workspace.at": "(self, path: 'Path') -> 'Workspace'",
    "Workspace.find": "(start: 'Path | None' = None) -> 'Workspace'",
}


def public(name):
    found = compal
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_a_promise(name):
    now, promised = str(inspect.signature(public(name))).replace("'", ""), SIGNATURES[name].replace("'", "")
    assert now == promised, (
        f"compal.{name} has another signature now. If that is meant, say so in CHANGELOG.md and write here: {now}"
    )


def test_every_public_name_is_pinned_and_documented():
    functions = {name for name in compal.__all__ if inspect.isfunction(getattr(compal, name))}
    assert functions <= set(SIGNATURES)
    for name in (*compal.__all__, *SIGNATURES):
        assert inspect.getdoc(public(name)), name
    for name in functions:
        assert "Raises `" in inspect.getdoc(getattr(compal, name)), f"{name} does not say what it raises"
        for argument in set(inspect.signature(getattr(compal, name)).parameters) - {"workspace"}:
            assert argument in inspect.getdoc(getattr(compal, name)), f"{name} does not tell of {argument}"


def test_importing_costs_nothing():
    code = (
        "import sys, compal\nassert compal.__version__ and 'evaluate' in dir(compal)\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'zarr'}\nassert not heavy & set(sys.modules)\n"
        "compal.CompalError, compal.Workspace, compal.evaluate\nassert not heavy & set(sys.modules), 'functions'\n"
        "from compal.align.kernels import maxsim\n"
        "ours = {name.split('.')[1] for name in sys.modules if name.startswith('compal.')}\n"
        "assert not {'stores', 'eval', 'world'} & ours, ours\nassert not {'pyarrow', 'zarr'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_names():
    assert set(compal.__all__) <= set(dir(compal))
    assert not {"TYPE_CHECKING", "annotations"} & set(dir(compal))
    with pytest.raises(AttributeError, match="module 'compal' has no attribute 'evaluat'"):
        compal.evaluat  # noqa: B018
    assert compal.extract is api.extract


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder; nothing is in it yet."""
    return tmp_path_factory.mktemp("api") / "work"


@pytest.fixture(scope="module")
def stages(work):
    """Summaries, run and rows of the three stages, each named as little as possible."""
    seen = []
    done = compal.extract("shapes-vit", "shapes", "train", limit=8, workspace=work, progress=lambda *a: seen.append(a))
    settings = {"optim": {"steps": 3}, "data.batch_size": 4, "data.validation": ""}
    run = compal.fit("linear", settings=settings, name="mine", workspace=str(work), progress=seen.append)
    asked = {"split": "in_domain", "limit": 2, "extract_missing": True, "workspace": work}
    rows = compal.evaluate("shapes", heads="cosine", runs=run, labels={"cosine": "plain"}, **asked)
    return done, run, rows, seen


def test_the_stages_work_from_end_to_end(work, stages, capsys):
    (summary,), run, rows, seen = stages
    assert (summary.images, summary.texts) == (16, 16)
    assert repr(summary).endswith("16 images and 16 captions extracted, 0 were there>")
    assert repr(run) == "<Run mine: 4,096 parameters, 3 steps>"
    assert any(getattr(one, "step", 0) == 3 for one in seen)
    assert ("image", 16, 16) in seen
    assert [row.label for row in rows] == ["chance", "random", "text-only", "cosine", "plain", "mine"]
    assert repr(rows[0]) == "<shapes in_domain: chance, i2t 25.0, t2i 25.0, group 16.7, n 10>"
    assert rows[3].overall.metrics == rows[4].overall.metrics
    assert capsys.readouterr() == ("", "")
    found = compal.Workspace.find().at(work)
    assert (found.state.backbone, found.state.data) == ("shapes-vit", "shapes")


def test_runs_and_stores_are_taken_as_values(work, stages):
    store = compal.open_store(workspace=work)
    assert repr(store).startswith(f"<Store {store.path.name}: 36 images of 65 × 96, ")
    for given in (store, store.spec, store.path, str(store.path), store.path.name, "shapes-vit"):
        assert compal.open_store(given, workspace=work).path == store.path
    same = {"split": "in_domain", "limit": 2, "references": (), "workspace": work}
    for features in ("shapes-vit", store, store.spec):
        for run in (stages[1], "mine", stages[1].run_dir, stages[1].checkpoint):
            found = compal.evaluate("shapes", runs=[run], backbone=features, **same)
            assert found[-1].overall == stages[2][-1].overall, (features, run)
    scorer = compal.open_scorer(stages[1], workspace=work)
    assert (scorer.head, scorer.training) == ("linear", False)
    assert compal.open_scorer("cosine", store).head == "cosine"
    again = compal.fit("linear", settings=["optim.steps=3", "data.batch_size=4", "data.validation="], name="mine",
                       resume=True, workspace=work)  # fmt: skip
    assert (again.steps, again.checkpoint) == (3, stages[1].checkpoint)


def test_a_store_that_lies_elsewhere_is_read_where_it_is(work, stages, tmp_path):
    store = compal.open_store(workspace=work)
    rows = compal.evaluate("shapes", backbone=store, split="in_domain", limit=2, workspace=tmp_path / "other")
    assert rows[3].overall == stages[2][3].overall
    assert compal.Workspace.find().at(tmp_path / "other").state.backbone == ""
    with pytest.raises(UsageError, match="no store of this workspace"):
        compal.evaluate("shapes", backbone=store, extract_missing=True, workspace=tmp_path / "other")


def test_a_report_in_every_form(work, stages, tmp_path):
    rows = stages[2]
    saved = compal.report(workspace=work)
    assert {row.label for row in saved} == {row.label for row in rows}
    assert {row.label for row in compal.report("mine", workspace=work)} == {row.label for row in rows} - {"plain"}
    assert compal.report(rows).table() == rows.table() == repr(rows) + "\n"
    assert "colour (n 2)" in rows.table(by_category=True)
    assert "random" not in rows.markdown(drop="random")
    assert r"\toprule" in rows.latex()
    assert rows.csv().startswith("benchmark,split,")
    assert rows.to_dict() == json.loads(rows.render("json"))
    assert len(rows.to_dict()["results"]) == len(rows)
    shown = rows._repr_html_()
    assert shown.count("<tr>") == 1 + len(rows)
    assert "| mine |" in rows._repr_markdown_()
    for text in (shown, rows._repr_markdown_(), repr(rows)):
        assert str(work) not in text  # a notebook is passed on
    assert str(work) in rows.markdown()
    page = rows.html(tmp_path / "page.html", items=0, workspace=work)
    assert "mine" in page.read_text()
    with pytest.raises(UnknownName, match="categories"):
        rows.plot("category", tmp_path / "categories.svg")


def test_a_comparison_is_paired(stages):
    found = stages[2].compare("cosine", others="mine")
    (one,) = found
    assert (one.first, one.other, one.n, one.metric) == ("cosine", "mine", 10, "group")
    assert one.difference.low <= one.difference.value <= one.difference.high
    assert one.gained - one.lost == round(one.difference.value / 100 * one.n)
    assert "| mine |" in found._repr_markdown_()
    assert found.to_dict()["comparisons"][0]["other"] == "mine"
    assert "<table>" in found._repr_html_()
    assert "against cosine" in repr(found)


def test_wrong_input_is_told_in_one_line(work, stages, tmp_path):
    for call, error, said in (
        (lambda: compal.evaluate("shape", workspace=work), UnknownName, "Did you mean 'shapes'"),
        (lambda: compal.evaluate("shapes", runs="mne", workspace=work), UnknownName, "Did you mean 'mine'"),
        (lambda: compal.evaluate("shapes", heads="tflocal", workspace=work), InputError, "compal fit tflocal"),
        (lambda: compal.evaluate("shapes", split="test", workspace=work), UnknownName, "in_domain"),
        (lambda: compal.evaluate("shapes", workspace=tmp_path), InputError, "compal extract --backbone shapes-vit"),
        (lambda: compal.evaluate("shapes", rerank=10, heads="cosine", workspace=work), UsageError, "retrieval"),
        (lambda: compal.extract(benchmark="shapes", data="shapes", workspace=work), UsageError, "its own items"),
        (lambda: compal.extract(root="x", workspace=work), UsageError, "benchmark=NAME"),
        (lambda: compal.fit("linear", settings={"optim.stps": 3}, workspace=work), UnknownName, "optim.steps"),
        (lambda: compal.fit("liner", workspace=work), UnknownName, "Did you mean 'linear'"),
        (lambda: compal.fit("linear", settings={"optim.steps": 3, "data.validation": ""}, name="mine", workspace=work),
         InputError, "resume"),
        (lambda: compal.open_store(level="pooled", workspace=work), InputError, "--level pooled"),
        (lambda: compal.open_scorer("tflocal", workspace=work), InputError, "must be fitted"),
        (lambda: compal.report("min", workspace=work), UnknownName, "Did you mean 'mine'"),
        (lambda: compal.report(workspace=tmp_path), InputError, "no scores"),
        (lambda: stages[2].render("html"), UnknownName, "report format"),
        (lambda: stages[2].compare("cosine", others="min"), UnknownName, "Did you mean 'mine'"),
    ):  # fmt: skip
        with pytest.raises(error, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, compal.CompalError)
