"""The HTML report: what it gathers, what it holds, and in a real browser what it does."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import json
import re
import shutil
import struct
import urllib.request
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import tomli_w
from playwright.sync_api import expect, sync_playwright

from compal import api
from compal.align.recipe import load_recipe
from compal.config import to_dict
from compal.errors import InputError, UnknownName, UsageError
from compal.eval import outcomes, results
from compal.eval.sources import Group, Sources
from compal.eval.viewer import charts, export, gather, pack, page, pictures
from compal.eval.viewer.aligned import Aligner
from compal.eval.viewer.costs import measured
from compal.eval.viewer.items import Options, Shown, order
from compal.eval.viewer.serve import server
from compal.workspace import Workspace

HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">'
CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
OPENS = 2.0  # seconds


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Three methods on 15 quadruplets of the embedded world, and on retrieval among few."""
    workspace = Workspace(tmp_path_factory.mktemp("view"))
    how = {"heads": ["maxsim"], "runs": ["shipped:tflocal"], "backbone": "shapes-vit", "workspace": workspace}
    for name, split in (("shapes", "in_domain"), ("shapes-retrieval", None)):
        api.evaluate(name, sources=Sources(split=split, limit=3), extract_missing=True, **how)
    return results.load_results(workspace.path / "scores")


@pytest.fixture(scope="module")
def found(rows):
    return gather.gather(rows)


def block(text, name):
    """A block of the page, as bytes."""
    inside = re.search(rf'<script type="application/octet-stream" id="b:{re.escape(name)}">([^<]*)</script>', text)
    raw = inside.group(1)
    return base64.b64decode(raw[1:]) if raw.startswith("-") else gzip.decompress(base64.b64decode(raw))


def framed(data):
    (length,) = struct.unpack("<I", data[:4])
    return json.loads(data[4 : 4 + length]), data[4 + length :]


@pytest.fixture(scope="module")
def html(found):
    """The page, one of whose captions and one of whose labels are hostile."""
    patch = pytest.MonkeyPatch()
    own = pictures.captions

    def hostile(stores, wanted):
        told = own(stores, wanted)
        first = min(told)
        return told | {first: dataclasses.replace(told[first], text=HOSTILE, spans=(), segments=())}

    patch.setattr(pictures, "captions", hostile)
    methods = [dataclasses.replace(one, label=HOSTILE) if one.label == "text-only" else one for one in found.methods]
    text = page.render(dataclasses.replace(found, methods=tuple(methods)), Options(items=9), title="A <report> & more")
    patch.undo()
    return text


# --- what is gathered ---------------------------------------------------------------------------------


def test_columns_are_headlines_and_controls_come_first(found):
    assert [column.title for column in found.columns] == [
        "shapes in_domain group", "shapes-retrieval i2t_r@1", "shapes-retrieval t2i_r@1",
    ]  # fmt: skip
    assert [column.role for column in found.columns] == ["composition", "retention", "retention"]
    kinds = [method.kind for method in found.methods]
    assert kinds[:4] == ["chance", "control", "control", "cosine"]
    assert {method.label: method.kind for method in found.methods}["tflocal"] == "tokens"
    assert found.columns[0].limit == 3


def test_a_sample_that_is_not_comparable_is_left_out_and_said(rows):
    other = [dataclasses.replace(row, sample="other") for row in rows if row.label == "cosine" and row.split]
    assert len(gather.gather([*rows, *other]).columns) == 3
    assert any("another sample" in note for note in gather.gather([*rows, *other]).notes)


def test_seeds_of_a_run_are_one_method_also_where_an_option_is_newer_than_the_run(rows, tmp_path):
    """A configuration that lacks an option has its default, so its seed is of the same recipe."""
    saved = next(row for row in rows if row.label == "tflocal" and row.split)
    made = []
    for seed in (0, 1):
        run = tmp_path / "runs" / f"mine-s{seed}"
        (run / "checkpoints").mkdir(parents=True)
        (run / "provenance.json").write_text("{}")
        whole = to_dict(load_recipe("linear", [f"seed={seed}"]))
        if not seed:
            del whole["data"]["phrases"]  # as if it were newer than this run
        (run / "config.toml").write_text(tomli_w.dumps(whole))
        scorer = saved.meta["scorer"] | {"checkpoint": str(run / "checkpoints" / "best.safetensors")}
        table, _ = results.read(Path(saved.folder))
        meta = saved.meta | {"scorer": scorer, "label": run.name}
        made.append(results.row_of(results.save(tmp_path / run.name, table, meta)))
    method = next(one for one in gather.gather(made).methods if one.kind == "tokens")
    assert (method.label, method.seeds) == ("mine", 2)
    assert method.estimate(gather.gather(made).columns[0]).sd == 0.0


def test_costs_are_measured_where_the_weights_are(found):
    costs = {method.label: method.cost for method in measured(found).methods}
    assert costs["tflocal"] > costs["maxsim"] > 0
    assert costs["cosine"] > 0
    assert costs["chance"] is None
    assert costs["random"] is None


# --- charts -------------------------------------------------------------------------------------------


def test_names_of_points_do_not_cover_each_other(found):
    told = charts.axes(found)
    spots = charts.places(found, told, "c1", "c0")
    rows = charts.scatter_rows(found, told, "c1", "c0", spots)
    assert {row["label"] for row in rows} == {"cosine", "maxsim", "tflocal"}
    assert all(row["yl"] <= row["y"] <= row["yh"] for row in rows)
    spec = charts.scatter(charts.scatter_template(), told, "c1", "c0", rows)
    assert spec["datasets"]["chance"] == [{"y": pytest.approx(100 / 6)}]


@pytest.mark.parametrize(("name", "suffix", "begins"), [
    ("tradeoff", "pdf", b"%PDF"), ("categories", "svg", b"<svg"), ("categories", "png", b"\x89PNG"),
])  # fmt: skip
def test_a_chart_is_written_for_papers(found, tmp_path, name, suffix, begins):
    file = tmp_path / f"chart.{suffix}"
    export.export(found, name, file)
    assert file.read_bytes().startswith(begins)


def test_what_cannot_be_drawn_is_said(found, tmp_path):
    with pytest.raises(UnknownName, match="Did you mean"):
        export.export(found, "tradeof", tmp_path / "a.svg")
    with pytest.raises(UnknownName, match="axis"):
        export.export(found, "tradeoff", tmp_path / "a.svg", x="nothing")
    with pytest.raises(InputError, match="no α sweep"):
        export.export(found, "sweep", tmp_path / "a.svg")
    with pytest.raises(UsageError, match="--out"):
        export.export(found, "tradeoff", tmp_path / "a.txt")


# --- the file -----------------------------------------------------------------------------------------


def test_the_file_is_whole_in_itself_and_allows_two_scripts_alone(html):
    assert len(html.encode()) < pack.MOST
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html).group(1)
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.split("style-src")[0]
    script = re.findall(r"<script>(.*?)</script>", html, re.S)
    sources = [*(one.encode() for one in script), block(html, "vega")]
    hashes = [base64.b64encode(hashlib.sha256(one).digest()).decode() for one in sources]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert len(hashes) == 2
    outside = re.sub(r"<script.*?</script>|<code>.*?</code>", "", html, flags=re.S)
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', outside)


def test_maps_are_those_of_the_head(html, found):
    """A byte a value, between the least and the greatest of each pair."""
    report = json.loads(block(html, "report"))
    assert report["viewer"]["aligned"] == ["tflocal", "maxsim"]
    table = json.loads(block(html, "t/t0"))
    head, data = framed(block(html, "i/t0/0"))
    method = next(one for one in found.methods if one.label == "maxsim")
    row = method.first(found.columns[0].table)
    items, _ = results.read(Path(row.folder))
    keys = items["images"][0].as_py(), items["captions"][0].as_py()
    maps = next(Aligner.open(row).maps([keys]))
    told = next(one for one in head["maps"] if one["method"] == "maxsim")
    assert told["grid"] == [8, 8]
    assert tuple(told["rows"]) == maps.rows
    assert data.endswith(maps.data)
    assert len(maps.data) == 64 * sum(maps.rows)
    assert len(table["ids"]) == 15
    scores = np.frombuffer(block(html, "s/t0/0"), "<f4")
    assert len(scores) == 60


def test_items_get_pictures_in_turn_of_their_categories(found):
    column = found.columns[0]
    rows, meta = results.read(Path(found.methods[3].first(column.table).folder))
    hits = {"best": [True] * 15, "cosine": [number % 3 > 0 for number in range(15)]}
    chosen = order([Shown("t0", column, rows, meta, hits=hits)], "best")
    assert len({rows["category"][number].as_py() for _, number in chosen[:5]}) == 5
    assert sorted(number for _, number in chosen) == list(range(15))
    first = {}
    for _, number in chosen:
        first.setdefault(rows["category"][number].as_py(), number)
    told = {rows["category"][number].as_py() for number in range(0, 15, 3)}
    assert all(first[name] % 3 == 0 for name in told)


@pytest.mark.parametrize(("size", "how", "part"), [
    ((100, 50), "squash", [0, 0, 1, 1]), ((100, 50), "shortest", [0.25, 0, 0.75, 1]),
    ((50, 100), "shortest", [0, 0.25, 1, 0.75]), ((100, 50), "longest", [0, -0.5, 1, 1.5]),
])  # fmt: skip
def test_a_map_lies_where_the_encoder_looked(size, how, part):
    assert pictures.covered(*size, {"resize": how}) == part


def test_a_report_is_served_on_this_machine_alone(tmp_path):
    file = tmp_path / "report.html"
    file.write_text("<!doctype html>whole")
    with server(file, 0) as running:
        Thread(target=running.handle_request, daemon=True).start()
        with urllib.request.urlopen(f"http://127.0.0.1:{running.server_port}/") as answer:
            assert answer.read() == file.read_bytes()
        assert running.server_address[0] == "127.0.0.1"
        with pytest.raises(InputError, match="port"):
            server(file, running.server_port)


def test_what_does_not_fit_is_left_out_and_said(found, monkeypatch):
    """A file that may hold few items holds few, and says so."""
    whole = page.render(found)
    monkeypatch.setattr(page, "MOST", len(whole.encode()) - 30_000)
    text = page.render(found)
    assert len(text.encode()) <= len(whole.encode()) - 30_000
    kept = len(re.findall(r'id="b:i/', text))
    assert 0 < kept < 15
    assert any(f"maps of {kept} of 15 items" in note for note in json.loads(block(text, "report"))["viewer"]["notes"])
    assert f"Pictures and maps of {kept} of 15 items" in text


# --- in a browser -------------------------------------------------------------------------------------

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield made
        made.close()


@pytest.fixture(scope="module")
def file(html, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html)
    return path.as_uri()


@pytest.fixture
def opened(browser, file):
    """Opens the page at a width and theme; whatever the console or the network says is kept."""
    contexts = []

    def at(width=1440, theme="light", to="", **how):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme, **how))
        made = contexts[-1].new_page()
        made.said = []
        made.on("console", lambda message: made.said.append(message.text))
        made.on("pageerror", lambda error: made.said.append(str(error)))
        made.on("request", lambda request: made.said.append(request.url) if request.url.startswith("http") else None)
        made.goto(file + to)
        return made

    yield at
    for context in contexts:
        context.close()


@in_a_browser
def test_tables_sort_and_the_best_is_marked(opened):
    seen = opened()
    labels = lambda: seen.locator("#table tbody:last-child th").all_inner_texts()
    before = labels()
    seen.locator("#table thead button").nth(1).click()
    assert seen.locator("#table th").nth(1).get_attribute("aria-sort") == "descending"
    values = [
        float(cell.get_attribute("data-v")) for cell in seen.locator("#table tbody:last-child td:nth-child(2)").all()
    ]
    assert values == sorted(values, reverse=True)
    seen.locator("#table thead button").nth(1).press("Enter")
    assert sorted(labels()) == sorted(before)
    assert seen.locator("#table th").nth(1).get_attribute("aria-sort") == "ascending"
    assert seen.locator("td.best").count() >= 1
    assert seen.locator("h1").inner_text() == "A <report> & more"
    assert HOSTILE in seen.locator("#table").inner_text()
    assert seen.evaluate("window.hacked") is None
    assert seen.said == []


@in_a_browser
def test_items_are_filtered_and_looked_into(opened):
    seen = opened(to="#items")
    seen.wait_for_selector("#v-item table")
    assert seen.locator("#v-list button[data-n]").count() == 15
    seen.select_option("#v-cat", "colour")
    expect(seen.locator("#v-list button[data-n]")).to_have_count(3)
    seen.locator("#v-list button[data-n]").nth(0).click()
    seen.wait_for_selector(".frame.mapped")
    before = seen.locator("#v-item [role=status]").inner_text()
    seen.locator(".matrix .tok").nth(2).click()
    assert seen.locator("#v-item [role=status]").inner_text() != before
    seen.locator(".matrix .tok").nth(2).press("ArrowDown")
    assert seen.locator(".matrix .tok").nth(3).get_attribute("aria-pressed") == "true"
    address = seen.url
    chosen = seen.locator("#v-item h3 small").first.inner_text()
    again = opened(to=address[address.index("#") :])
    again.wait_for_selector("#v-item table")
    assert again.locator("#v-item h3 small").first.inner_text() == chosen
    assert again.locator("#v-cat").input_value() == "colour"
    seen.select_option("#v-cat", "")
    seen.fill("#v-q", "window.hacked")
    expect(seen.locator("#v-list button[data-n]")).to_have_count(1)
    expect(seen.locator("#v-item").first).to_contain_text("window.hacked")
    assert HOSTILE in seen.locator("#v-item").inner_text()
    assert seen.evaluate("window.hacked") is None
    seen.fill("#v-q", "no caption has these")
    expect(seen.locator("#v-list button[data-n]")).to_have_count(0)
    assert seen.said == again.said == []


@in_a_browser
def test_a_right_and_b_wrong_is_what_the_scores_say(opened, found):
    column = found.columns[0]
    hits = {}
    for name in ("tflocal", "cosine"):
        row = next(one for one in found.methods if one.label == name).first(column.table)
        hits[name] = results.read(Path(row.folder))[0]["group"].to_pylist()
    wanted = sum(one and not other for one, other in zip(hits["tflocal"], hits["cosine"], strict=True))
    seen = opened(to="#items?a=tflocal&b=cosine&show=ab")
    seen.wait_for_selector("#v-count:not(:empty)")
    assert seen.locator("#v-count").inner_text() == f"{wanted} of 15 items"


@in_a_browser
@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_section_fits_and_is_accessible(opened, width, theme):
    """No horizontal scroll; axe finds nothing serious. Its script needs to be let in."""
    seen = opened(width, theme, bypass_csp=True)
    assert seen.locator("html").get_attribute("data-theme") == theme
    seen.evaluate((Path(__file__).parents[1] / "data" / "axe.min.js").read_text())
    for section, waits in (("overview", "#table"), ("tradeoffs", "#scatters svg"), ("categories", "#panels svg"),
                           ("items", "#v-item table"), ("runs", "#runs details")):  # fmt: skip
        seen.locator(f'nav a[href="#{section}"]').click()
        seen.wait_for_selector(waits)
        assert seen.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), section
        bad = seen.evaluate(
            "async () => (await axe.run(document, {resultTypes: ['violations']})).violations"
            ".filter((one) => ['serious', 'critical'].includes(one.impact))"
            ".map((one) => [one.id, one.nodes[0].html])"
        )
        assert bad == [], section
    assert seen.said == []


@in_a_browser
def test_charts_follow_the_theme_and_the_axes_that_are_chosen(opened):
    """The library that draws comes into the page when it is needed, under a policy without eval."""
    seen = opened(to="#tradeoffs")
    seen.wait_for_selector("#scatters svg")
    ink = lambda: seen.locator("#scatters svg .role-axis-label text").first.get_attribute("fill")
    assert ink() == "#1b2733"
    seen.locator("#theme").click()
    expect(seen.locator("#scatters svg .role-axis-label text").first).to_have_attribute("fill", "#e4eaf0")
    seen.locator("#scatters select").nth(1).select_option("c2")
    expect(seen.locator("#scatters svg").first).to_contain_text("t2i_r@1")
    seen.reload()
    assert seen.locator("html").get_attribute("data-theme") == "dark"


@in_a_browser
def test_ten_thousand_items_open_in_two_seconds(browser, tmp_path):
    count, rng = 10_000, np.random.default_rng(0)
    truth = ((True, False),)
    groups = [
        Group(str(n), (f"i{n}",), (f"caption {n} right", f"caption {n} wrong"), truth, "abc"[n % 3])
        for n in range(count)
    ]
    meta = {
        "benchmark": "many", "split": "", "title": "many", "metric": "pairs", "chance": {"accuracy": 50.0}, "ks": [1],
        "pools": {}, "averages": {}, "sample": "s", "store": None, "scorer": {}, "seed": 0, "commit": None,
        "command": "", "written": "2026-01-01", "role": "scorer", "groups": count, "notes": [],
        "excluded": {}, "limit": None,
    }  # fmt: skip
    made = []
    for number, name in enumerate(("one", "two", "three")):
        table = outcomes.table(groups, rng.normal(size=2 * count).astype(np.float32), "pairs")
        folder = results.save(tmp_path / "scores" / name, table, meta | {"label": name, "order": number})
        made.append(results.row_of(folder))
    api.Report(made).html(tmp_path / "many.html", items=0)
    context = browser.new_context()
    seen = context.new_page()
    seen.goto((tmp_path / "many.html").as_uri() + "#items")
    seen.wait_for_selector("#v-list button[data-n]")
    taken = seen.evaluate("performance.now()") / 1000
    assert seen.locator("#v-count").inner_text() == "10,000 of 10,000 items"
    context.close()
    assert taken < OPENS, f"{taken:.2f} s"
