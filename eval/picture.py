"""What every picture has in common: the libraries that draw, the files that can be written, the look.

Pictures are drawn by altair without a browser, imported when something is drawn (extra `plots`).
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError
from ..stores.files import disk_errors, write_synced

SUFFIXES = (".svg", ".pdf", ".png", ".html")
INK, FAINT = "#1b2733", "#8a97a6"


def check(path: Path, option: str = "--plot") -> None:
    """Raise `UsageError` for a file of another kind than `SUFFIXES`, `InputError` if it is there already or if the
    libraries that draw are not installed; before anything is computed."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{option} {path} ends in no {', '.join(SUFFIXES)}", f"Example: {option} curve.svg")
    if path.exists():
        raise InputError(f"{path} is there already", "Name another file, or remove it.")
    for module in ("altair", "vl_convert"):
        if importlib.util.find_spec(module) is None:
            raise InputError(f"{option} draws with {module}, which is not installed", "pip install 'compal[plots]'")


def styled(chart: Any, title: str, subtitle: str | list[str], **axis: Any) -> Any:
    """The chart with its title and the look of all; `axis` says what else its axes are."""
    import altair as alt

    heading = alt.TitleParams(title, subtitle=subtitle, anchor="start", offset=14)
    return (
        chart.properties(title=heading, background="white")
        .configure_view(stroke=None)
        .configure(font="Helvetica, Arial, sans-serif", padding=16)
        .configure_axis(
            gridColor="#eef1f4", domainColor=FAINT, tickColor=FAINT, labelColor=INK, titleColor=INK,
            titleFontWeight="normal", labelFontSize=11, titleFontSize=12, titlePadding=10, **axis,
        )
        .configure_title(color=INK, subtitleColor=FAINT, fontSize=15, subtitleFontSize=11, subtitlePadding=6)
    )  # fmt: skip


def write(chart: Any, path: Path) -> None:
    """Write a chart as .svg, .pdf, .png (twice the size) or .html (whole in itself). Raises `InputError` for a disk
    that does not take it."""
    kind = path.suffix[1:]
    how: dict[str, Any] = {"scale_factor": 2} if kind == "png" else {"inline": True} if kind == "html" else {}
    buffer: Any = io.BytesIO() if kind in ("png", "pdf") else io.StringIO()
    chart.save(buffer, format=kind, **how)
    value = buffer.getvalue()
    with disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(path, value if isinstance(value, bytes) else value.encode())
