"""Which papers a part is made of, read from its own file without importing it.

A part names them by arXiv number or DOI (`arXiv 2604.11496`, `arXiv:2604.11496`, `doi:10.1162/…`) in its first line, in
the `citation` or `source` of its INFO, or in `CITE`: a tuple of them, or for a part that takes an argument a dict from
regular expressions of the argument to tuples. A bare number in brackets counts where a line would be too long.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from .. import registry

_ARXIV = re.compile(r"(?<![\w.])(\d{2}(?:0[1-9]|1[0-2])\.\d{4,5})(?:v\d+)?(?![\w.]*\d)")
_DOI = re.compile(r"\bdoi:\s*(10\.\d{4,9}/[^\s;,)]+[\w/])", re.I)
INFO_KEYS = ("citation", "source")


def sources_in(text: str) -> tuple[str, ...]:
    """The papers that a text names, as `arXiv:NUMBER` and `doi:…`, in order and once each."""
    found = [
        (match.start(), f"arXiv:{match[1]}") for match in _ARXIV.finditer(_DOI.sub(lambda m: " " * len(m[0]), text))
    ]
    found += [(match.start(), f"doi:{match[1].lower()}") for match in _DOI.finditer(text)]
    return tuple(dict.fromkeys(source for _, source in sorted(found)))


def of_part(kind: str, name: str, argument: str = "") -> tuple[str, ...]:
    """The papers of a part of the project; of an `argument` those that `CITE` gives it. Raises `UnknownName`."""
    told = registry.summary(kind, name)
    file = registry.path(kind, name)
    cited: Any = ()
    if file.suffix == ".py":
        literals = _literals(file.read_text(encoding="utf-8"))
        told = "\n".join([told, *(str(literals.get(key, "")) for key in INFO_KEYS)])
        cited = literals.get("CITE", ())
    if isinstance(cited, dict):
        cited = [source for pattern, those in cited.items() if re.search(pattern, argument, re.I) for source in those]
    return tuple(dict.fromkeys([*sources_in(told), *cited]))


def said_of(kind: str, name: str, key: str) -> str:
    """What INFO says of a part, "" where it does not: its `citation`, its `licence`. Raises `UnknownName`."""
    return str(_literals(registry.path(kind, name).read_text(encoding="utf-8")).get(key, ""))


def _literals(code: str) -> dict[str, Any]:
    """CITE, and the texts of INFO by key; a text that is another module's constant is read there by `_elsewhere`."""
    found: dict[str, Any] = {}
    for node in ast.parse(code).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        if "CITE" in names:
            found["CITE"] = ast.literal_eval(node.value)
        if "INFO" in names and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant):
                    found[str(key.value)] = _text(value)
    return found


def _text(node: ast.expr) -> str:
    """A constant text; of `_module.NAME` the text that NAME is in that file of benchmarks or datasets; else ""."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        for kind in ("benchmarks", "datasets"):
            file = registry.ROOT / registry.KINDS[kind].folder / f"{node.value.id}.py"
            for line in ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else ():
                if (
                    isinstance(line, ast.Assign)
                    and isinstance(line.value, ast.Constant)
                    and any(isinstance(target, ast.Name) and target.id == node.attr for target in line.targets)
                ):
                    return str(line.value.value)
    return ""
