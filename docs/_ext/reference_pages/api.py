"""The Python API, from the objects themselves: signatures with types, docstrings, public methods."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from .prose import fence, inline, markdown

# Page → modules, each with the names that are its public ones (() = `__all__`, else all that it defines itself).
PAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "top": {"compal": ()},
    "stores": {
        "compal.stores.store": ("Store",),
        "compal.stores.snapshot": (),
        "compal.stores.reading": (),
        "compal.stores.spec": (),
        "compal.stores.items": (),
        "compal.stores.rows": (),
        "compal.stores.pairs": (),
        "compal.stores.manifest": ("Part", "Manifest"),
        "compal.stores.verify": (),
    },
    "heads": {
        "compal.align.scorer": (),
        "compal.align.batches": (),
        "compal.align.fit": (),
        "compal.align.recipe": (),
    },
    "kernels": {"compal.align.kernels": ()},
    "evaluation": {
        "compal.eval.metrics": (),
        "compal.eval.sources": (),
        "compal.eval.results": (),
        "compal.eval.intervals": (),
        "compal.eval.compare": (),
    },
    "common": {
        "compal.workspace": (),
        "compal.registry": (),
        "compal.config": (),
    },
}


@functools.cache
def public(module: str, names: tuple[str, ...]) -> dict[str, Any]:
    """What a module offers, by name, in the order of its file."""
    loaded = importlib.import_module(module)
    offered = names or getattr(loaded, "__all__", ()) or tuple(_defined(loaded))
    found = {name: getattr(loaded, name) for name in offered if name != "__version__"}
    if module == "compal":  # in alphabetical order there: what is called comes first
        found = dict(sorted(found.items(), key=lambda entry: inspect.isclass(entry[1])))
    return {name: value for name, value in found.items() if inspect.isclass(value) or callable(value)}


def _defined(module: ModuleType) -> Iterator[str]:
    for name, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__
        if own and not name.startswith("_") and (inspect.isclass(value) or inspect.isroutine(value)):
            yield name


@functools.cache
def links() -> dict[str, str]:
    """Short name → dotted name, of every class that the pages document; a name that two of them have is none."""
    from . import errors

    found: dict[str, set[str]] = {name: {f"compal.errors.{name}"} for name in errors.classes()}
    for modules in PAGES.values():
        for module, names in modules.items():
            for name, value in public(module, names).items():
                if inspect.isclass(value) and module != "compal":
                    found.setdefault(name, set()).add(f"{module}.{name}")
    return {name: next(iter(dotted)) for name, dotted in found.items() if len(dotted) == 1}


def page(name: str) -> str:
    """Every module of a page."""
    parts = []
    for module, names in PAGES[name].items():
        parts.append(f"## {module}")
        about = inspect.getdoc(importlib.import_module(module))
        if about:
            parts.append(markdown(about, links()))
        parts.append(fence("{py:module}", "").replace("{py:module}\n", f"{{py:module}} {module}\n"))
        parts += [_object(short, value) for short, value in public(module, names).items()]
    return "\n\n".join(parts)


def exceptions() -> str:
    """The classes of errors as objects, for the index and for links."""
    from . import errors

    texts = [fence("{py:module}", "").replace("{py:module}\n", "{py:module} compal.errors\n")]
    for name, cls in errors.classes().items():
        about = f"Exit code {cls.exit_code}. {inline(' '.join((cls.__doc__ or '').split()))}"
        texts.append(fence(f"{{py:exception}} {name}", "\n" + about, "~~~~~"))
    return "\n\n".join(texts)


def _object(name: str, value: Any) -> str:
    """A class or a function of the module that the page is in."""
    if inspect.isclass(value):
        inside = [_about(value, name), *_members(value)]
        return fence(f"{{py:class}} {name}{_signature(value)}", "\n" + "\n\n".join(inside), "~~~~~~~~")
    return fence(f"{{py:function}} {name}{_signature(value)}", "\n" + _about(value, name), "~~~~~~~~")


def _about(value: Any, name: str) -> str:
    text = inspect.getdoc(value) or ""
    generated = dataclasses.is_dataclass(value) and text.startswith(f"{name}(")
    return "" if generated else markdown(text, links())


def _members(cls: type) -> Iterator[str]:
    """The public methods and properties that a class defines itself."""
    for name, member in vars(cls).items():
        if name.startswith("_"):
            continue
        own = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if isinstance(member, property | functools.cached_property):
            getter = member.fget if isinstance(member, property) else member.func
            kind = getattr(getter, "__annotations__", {}).get("return", "")
            option = f":type: {_linked(str(kind), inspect.getmodule(cls))}\n" if kind else ""
            about = markdown(inspect.getdoc(getter) or "", links())
            yield fence(f"{{py:property}} {name}", f"{option}\n{about}", "~~~~~~")
        elif inspect.isfunction(own):
            bound = not isinstance(member, staticmethod)
            option = {classmethod: ":classmethod:\n", staticmethod: ":staticmethod:\n"}.get(type(member), "")
            about = markdown(inspect.getdoc(own) or "", links())
            head = f"{{py:method}} {name}{_signature(own, bound)}"
            yield fence(head, f"{option}\n{about}", "~~~~~~")


def _signature(value: Any, bound: bool = False) -> str:
    """The signature as Sphinx reads it: types by their full names where the reference has them."""
    if inspect.isclass(value) and issubclass(value, list) and value.__init__ is list.__init__:
        return ""
    try:
        signature = inspect.signature(value)
    except (ValueError, TypeError):
        return "()"
    parameters = list(signature.parameters.values())[1 if bound else 0 :]
    shown = [parameter.replace(default=_default(parameter.default)) for parameter in parameters]
    # A string that an annotation is prints in quotes.
    return _linked(str(signature.replace(parameters=shown)).replace("'", ""), inspect.getmodule(value))


class _Shown:
    """A default that prints as it should be read."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _default(value: Any) -> Any:
    if value is inspect.Parameter.empty:
        return value
    if isinstance(value, str):
        return _Shown(f'"{value}"')
    text = repr(value)
    return _Shown("...") if text.startswith("<") or len(text) > 60 else _Shown(text)


def _linked(text: str, module: ModuleType | None) -> str:
    """Annotations are strings in our files; names that the reference documents become dotted, unless they are something
    else in that module."""
    known = vars(module) if module else {}

    def dotted(found: re.Match[str]) -> str:
        name = found[1]
        full = links().get(name, name)
        other = name in known and f"{getattr(known[name], '__module__', '')}.{name}" != full
        return name if other else full

    quoted = re.split(r'("[^"]*")', text)
    for index in range(0, len(quoted), 2):
        quoted[index] = re.sub(r"(?<![\w.])([A-Z]\w+)\b(?!\s*=)", dotted, quoted[index])
    return "".join(quoted)
