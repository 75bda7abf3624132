"""The cards of published heads and stores: README.md with the front matter that the hub reads, from what is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__, registry
from ..config import read_toml
from ..eval.results import ResultRow
from ..eval.sources import headline
from ..registry import split_argument
from ..workspace import Workspace
from . import citations, sources
from .bundle import WEIGHTS, Bundle, without_places
from .cite import render

MARK = "<!-- written by compal; remove this line to keep your own text when it is pushed again -->"
FREE = ("Apache-2.0", "MIT", "CC BY 4.0", "CC0")
"""Licences under which what is derived from a data set may be passed on."""


@dataclass(frozen=True)
class Facts:
    """What a card is written from.

    data   name of each dataset or benchmark → its licence
    rows   saved rows of the run, in no card of a store
    """

    repository: str
    licence: str
    backbone: str
    level: str
    data: dict[str, str]
    rows: Sequence[ResultRow] = ()
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def restricted(self) -> dict[str, str]:
        """The data whose licence does not plainly allow to pass on what is made of it."""
        return {name: licence for name, licence in self.data.items() if licence not in FREE}


def facts_of_run(folder: Path, repository: str, licence: str, workspace: Workspace) -> Facts:
    """What is saved of a run: provenance, configuration, result and the rows that were scored with its checkpoint."""
    told = {name: _told(folder / f"{name}.json") for name in ("provenance", "result")}
    told["config"] = read_toml(folder / "config.toml") if (folder / "config.toml").is_file() else {}
    features = told["provenance"].get("features", {})
    data: dict[str, str] = {}
    for table in told["provenance"].get("pairs", {}).values():
        said = table.get("said") or _said(Path(str(table.get("path", ""))))
        name = said.get("dataset") or Path(str(table.get("path", ""))).parent.name
        data[split_argument(name)[0]] = said.get("licence") or _licence(split_argument(name)[0])
    rows = rows_of(folder, workspace)
    named = str(features.get("backbone", "")), str(features.get("level", ""))
    return Facts(repository, licence, *named, data, rows, told)


def facts_of_store(path: Path, repository: str, licence: str) -> Facts:
    """What a store says of itself: its spec, its counts and where its items come from."""
    from ..stores.store import Store

    store = Store.open(path)
    data = {name: _licence(name) for name in citations.items_of(path)}
    return Facts(repository, licence, store.spec.backbone, store.spec.level, data, (), {"info": store.info()})


def rows_of(folder: Path, workspace: Workspace) -> list[ResultRow]:
    """The saved rows of the workspace that were scored with a run's checkpoint, one for each table."""
    from ..eval.results import load_results

    if not any((workspace.path / "scores").rglob("scores.json")):
        return []
    best = (folder / WEIGHTS).resolve()
    found = load_results(workspace.path / "scores")
    return [row for row in found if Path((row.meta.get("scorer") or {}).get("checkpoint", "")).resolve() == best]


def card(facts: Facts, bundle: Bundle, workspace: Workspace) -> str:
    """README.md: front matter and text, from what is saved and nothing else."""
    bibliography = citations.Bibliography(workspace)
    if bundle.kind == "model":
        bibliography.run(bundle.source)
        for row in facts.rows:
            bibliography.scores(row.meta)
        front, body = _model(facts, bundle), _head_text(facts, bundle, workspace)
    else:
        bibliography.store(bundle.source)
        front, body = _dataset(facts), _store_text(facts, bundle)
    cite = ["## Citation", "", "```bibtex", render(bibliography).rstrip("\n"), "```", ""]
    return "\n".join(["---", front, "---", MARK, "", *body, *cite])


def _model(facts: Facts, bundle: Bundle) -> str:
    from huggingface_hub import ModelCardData

    base = base_model(facts.backbone)
    tags = ["vision-language", "compositionality", "image-text-matching", "compal"]
    more = {"eval_results": _results(facts.rows), "model_name": bundle.name} if facts.rows else {}
    told = ModelCardData(
        license=facts.licence.lower(),
        library_name="compal",
        tags=tags,
        pipeline_tag="zero-shot-image-classification",
        base_model=base or None,
        metrics=sorted({name for row in facts.rows for name in headline(row.meta)}) or None,
        **more,  # type: ignore[arg-type]
    )
    return told.to_yaml()


def _results(rows: Sequence[ResultRow]) -> list[Any]:
    from huggingface_hub import EvalResult

    found = []
    for row in rows:
        for name, estimate in row.overall.metrics.items():
            if estimate.value is None or (name not in headline(row.meta) and " (" not in name):
                continue
            interval = f", 95 % interval {estimate.low:.1f} to {estimate.high:.1f}" if _bounded(estimate) else ""
            found.append(
                EvalResult(
                    task_type="zero-shot-image-classification",
                    task_name="Compositional matching",
                    dataset_type=row.benchmark,
                    dataset_name=str(row.meta.get("title", row.benchmark)),
                    dataset_split=row.split or None,
                    dataset_revision=None,
                    metric_type=name,
                    metric_name=f"{name} (%){interval}, n {row.overall.n:,}",
                    metric_value=round(estimate.value, 2),
                )
            )
    return found


def _bounded(estimate: Any) -> bool:
    return estimate.low is not None and estimate.high is not None


def _dataset(facts: Facts) -> str:
    from huggingface_hub import DatasetCardData

    base = base_model(facts.backbone)
    tags = ["compal", "features", "embeddings", "zarr", *([f"base_model:{base}"] if base else [])]
    return DatasetCardData(
        license=facts.licence.lower(), tags=tags, pretty_name=f"{facts.backbone} {facts.level} features (compal)"
    ).to_yaml()


def base_model(backbone: str) -> str:
    """The repository of the hub whose weights a backbone has, "" where it is not known."""
    kind, argument = split_argument(backbone)
    if kind == "hf":
        name = argument.partition("@")[0]
        return name if name.count("/") == 1 and not name.startswith(("/", ".")) else ""
    if kind != "open_clip" or "/" not in argument:
        return ""
    import open_clip

    model, _, tag = argument.partition("/")
    config: Mapping[str, Any] = open_clip.get_pretrained_cfg(model, tag) or {}
    return str(config.get("hf_hub") or "").rstrip("/")


# --- text ---------------------------------------------------------------------------------------------


def _head_text(facts: Facts, bundle: Bundle, workspace: Workspace) -> list[str]:
    config, told, result = (facts.told[name] for name in ("config", "provenance", "result"))
    head, loss = (config.get(name, {}).get("name", "") for name in ("head", "loss"))
    size = told.get("parameters") or result.get("parameters")
    what = f"`{head}` over frozen features of `{facts.backbone}`" if head else f"towers tuned from `{facts.backbone}`"
    lines = [
        f"# {bundle.name}", "",
        f"A head that compal fitted: {what}"
        f"{f' (level `{facts.level}`)' if facts.level else ''}{f', trained with `{loss}`' if loss else ''}"
        f"{f', {size:,} parameters' if size else ''}. The encoder's weights are not in this repository.",
        "", "## Use", "", "```bash", "pip install compal",
        f"compal extract --backbone {facts.backbone} --benchmark shapes{_level(facts)}",
        f"compal eval shapes --backbone {facts.backbone}{_level(facts)} --run hf:{facts.repository}", "```", "",
        "```python", "from compal import api", "from compal.workspace import Workspace", "",
        f'checkpoint = api.checkpoint("hf:{facts.repository}", Workspace.find())', "```", "",
        "Weights are safetensors. The head refuses features of another encoder, level or preprocessing.", "",
    ]  # fmt: skip
    lines += _figures(facts, workspace)
    lines += ["## Training", "", *_data_lines(facts, "Trained on")]
    command = without_places(str(told.get("command", "")), workspace)
    lines += [f"- command: `{command}`"] if command else []
    lines += [f"- seed {told['seed']}, {result['steps']:,} steps, best at {result['best_step']:,}"] if (
        "steps" in result and "best_step" in result and "seed" in told
    ) else []  # fmt: skip
    lines += _made(told)
    return [*lines, "- the complete configuration is `config.toml`, all steps are `metrics.jsonl`", "", *_limits(facts)]


def _figures(facts: Facts, workspace: Workspace) -> list[str]:
    from ..eval.report import render as tables

    if not facts.rows:
        return ["## Results", "", "None are saved with this run.", ""]
    shown = without_places(tables(facts.rows, "md"), workspace).splitlines()
    return ["## Results", "", *shown, ""]


def _limits(facts: Facts) -> list[str]:
    lines = ["## Limits", ""]
    lines += ["- Scores are of the benchmarks above and of no other; on other pictures and captions measure first."]
    lines += ["- A tie counts as a miss. Intervals are over images, not over seeds."]
    lines += [f"- What the encoder `{facts.backbone}` does not see, no head can find in its features.", ""]
    return lines


def _store_text(facts: Facts, bundle: Bundle) -> list[str]:
    info = facts.told["info"]
    remote = f"hf://datasets/{facts.repository}"
    return [
        f"# {bundle.name}", "",
        f"Features of the frozen encoder `{facts.backbone}`, level `{facts.level}`, extracted by"
        f" compal: {info['images']:,} images and {info['texts']:,} captions in"
        f" {info['parts']} parts, {info['bytes']:,} bytes, {info['spec']['dtype']}. Arrays are Zarr v3, captions Arrow,"
        " tables Parquet; every file has a checksum in the manifest.", "",
        "## Use", "", "```bash", "pip install 'compal[hf]'",
        f"compal store pull {bundle.name} --remote {remote}", f"compal store verify {bundle.name}", "```", "",
        "## Data", "", *_data_lines(facts, "Images and captions of"),
        f"- spec: fingerprint `{info['fingerprint'][:16]}`, version {info['manifest']} of the store", "",
        "Pictures are not in this repository; captions are, beside their features.", "",
    ]  # fmt: skip


def _data_lines(facts: Facts, verb: str) -> list[str]:
    return [f"- {verb} `{name}`; licence: {licence}" for name, licence in facts.data.items()]


def _made(told: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in told.get("versions", {}).items())
    commit = f", commit `{told['commit'][:12]}`" if told.get("commit") else ""
    return [f"- with {versions or f'compal {__version__}'}{commit}"]


def _level(facts: Facts) -> str:
    return f" --level {facts.level}" if facts.level not in ("", "tokens") else ""


def _licence(name: str) -> str:
    for kind in ("datasets", "benchmarks"):
        if name in registry.names(kind):
            return sources.said_of(kind, name, "licence") or "unknown"
    return "unknown"


def _said(path: Path) -> dict[str, str]:
    from ..stores.pairs import read_info

    return read_info(path) if path.is_file() else {}


def _told(path: Path) -> dict[str, Any]:
    return citations.read_json(path) if path.is_file() else {}
