"""What a benchmark asks of an encoder beside its table: captions among captions, images among images, agreement with
ratings. No head has a say in it, so it is a table of its own, a row a backbone.

A benchmark that has such figures offers `within(store, sources)`, name → figure in percent, `NAME_std` its standard
deviation over samples where it is a mean over some, `NAME_n` how many it is of; see `crisscrossed.judge`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .results import ResultRow
from .sheets import UNDEFINED, Cell, Sheet
from .sources import Sources

if TYPE_CHECKING:
    from ..stores.store import Store

NOTE = (
    "Of the pooled embeddings by cosine, whatever heads the table above has; strict; ± is the standard deviation over "
    "samples. n: queries, or pairs that people rated."
)


def figures(module: ModuleType, store: Store, sources: Sources) -> dict[str, Any]:
    """`{"within": …}` for a benchmark that has such figures, else {}. Raises what its `within` raises."""
    return {"within": module.within(store, sources)} if hasattr(module, "within") else {}


def plain(row: ResultRow) -> dict[str, Any]:
    """The figures of a saved row's backbone as JSON data, {} where there are none."""
    found = row.meta.get("within")
    return {"within": found} if found and row.backbone else {}


def sheet(title: str, rows: Sequence[ResultRow]) -> Sheet | None:
    """The table of them, a row a backbone; None where there are none."""
    told = {row.backbone: found["within"] for row in rows if (found := plain(row))}
    if not told:
        return None
    names = [name for name in next(iter(told.values())) if not name.endswith(("_std", "_n"))]
    groups = list(dict.fromkeys(name.partition("_")[0] for name in names))
    body = []
    for backbone, found in told.items():
        cells = [Cell(backbone)]
        for name in names:
            cells.append(Cell(_figure(found[name], found.get(f"{name}_std"))))
        body.append((*cells, *(Cell(f"{found[f'{group}_n']:,}") for group in groups)))
    header = ("backbone", *names, *(f"n {group}" for group in groups))
    return Sheet(f"{title}: within a side", header, tuple(body), (NOTE,))


def _figure(value: float | None, spread: float | None) -> str:
    if value is None:
        return UNDEFINED
    return f"{value:.1f}" + ("" if spread is None else f" ± {spread:.1f}")
