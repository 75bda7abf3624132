"""What people see of negatives: the report as text or markdown, and what a run would do."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from . import print_json

if TYPE_CHECKING:
    from ..pipeline.negation import Plan

EASY = 0.7  # area under the curve from which the report warns
Rows = list[tuple[str, str]]


def show_plan(plan: Plan, as_json: bool) -> None:
    """What a run would do."""
    if as_json:
        print_json(dataclasses.asdict(plan))
        return
    if plan.exists:
        print(f"{plan.path} is there already; nothing would be done")
        return
    print(f"would make negatives of {plan.captions:,} captions")
    for name, value in plan.estimate.items():
        print(f"  {name:<18} {value:,}" if isinstance(value, int | float) else f"  {name:<18} {value}")
    print(f"file   {plan.path}")


def show_report(report: dict[str, Any], format_: str) -> None:
    """A report as "table" (text), "md" or "json"."""
    if format_ == "json":
        print_json(report)
        return
    sections = _sections(report)
    print(_markdown(report, sections) if format_ == "md" else _text(report, sections))


def _sections(report: dict[str, Any]) -> list[tuple[str, Rows]]:
    """(title, [(name, value)]) of what is counted."""
    found, length, overlap, grammar = (report[name] for name in ("yield", "length", "overlap", "grammar"))
    with_negatives = f"{found['with negatives']:,} of {found['captions']:,} ({100 * found['share']:.1f} %)"
    rows = [
        ("captions with negatives", with_negatives),
        ("negatives", f"{found['negatives']:,} ({found['per caption']:.2f} per caption that has any)"),
        *((f"  {kind}", f"{count:,}") for kind, count in found["by type"].items()),
        *((f"none: {why}", f"{count:,} captions") for why, count in list(found["without"].items())[:6]),
        *((f"left out: {why}", f"{count:,} captions") for why, count in list(found["unreadable"].items())[:6]),
        *((f"dropped: {why}", f"{count:,}") for why, count in found["dropped"].items()),
    ]
    words = f"{length['words of captions']:.1f} → {length['words of negatives']:.1f}"
    change = f"{length['change']:+.2f} (at most {length['most lost']} lost, {length['most gained']} gained)"
    overlaps = [
        ("words kept", f"{100 * overlap['words kept']:.1f} %"),
        ("the same words", f"{100 * overlap['same words']:.1f} %"),
        ("captions of the dataset", f"{overlap['captions of the dataset']:,}"),
    ]
    return [
        ("yield", rows),
        ("length", [("words", words), ("change", change)]),
        ("overlap", overlaps),
        ("grammar, of 1,000 texts", [(name, f"{value:.1f}") for name, value in grammar.items()]),
        ("blindness (0.5 cannot be told from captions, 1 always)", _blindness(report["blindness"])),
    ]


def _blindness(found: dict[str, Any]) -> Rows:
    rows = []
    for kind, judged in found.items():
        if judged is None:
            rows.append((kind, "too few captions"))
            continue
        warning = "  easy to tell without an image" if judged["low"] > EASY else ""
        said = f"{judged['auc']:.3f} [{judged['low']:.3f}, {judged['high']:.3f}], {judged['held_out']:,} held out"
        rows.append((kind, said + warning))
    return rows


def _text(report: dict[str, Any], sections: list[tuple[str, Rows]]) -> str:
    lines = []
    width = min(44, max(len(name) for _, rows in sections for name, _ in rows))
    for title, rows in sections:
        lines += [title, *(f"  {name:<{width}}  {value}" for name, value in rows)]
    lines.append("samples")
    for sample in report["samples"]:
        detail = f" ({sample['detail']})" if sample["detail"] else ""
        texts = (f"    - {_line(sample['caption'])}", f"    + {_line(sample['negative'])}")
        lines += [f"  {sample['type']}{detail}", *texts]
    return "\n".join([*lines, f"file   {report['file']}"])


def _line(text: str) -> str:
    return " ".join(text.split())


def _markdown(report: dict[str, Any], sections: list[tuple[str, Rows]]) -> str:
    lines = [f"# {report['file'].rpartition('/')[2]}"]
    for title, rows in sections:
        lines += ["", f"## {title.capitalize()}", "", "| what | value |", "|---|---|"]
        lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    lines += ["", "## Samples", "", "| type | caption | negative | detail |", "|---|---|---|---|"]
    for sample in report["samples"]:
        cells = (_cell(sample[name]) for name in ("type", "caption", "negative", "detail"))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Provenance", "", "| what | value |", "|---|---|"]
    for name, value in report["provenance"].items():
        said = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
        lines.append(f"| {name} | {_cell(said)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
