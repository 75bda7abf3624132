"""The errors a user can meet, from the code that raises them: what is said, and the cure."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path

from compal import errors, registry

from .prose import code, fence, inline


@dataclasses.dataclass(frozen=True, order=True)
class Message:
    """A sentence that some line of the code raises; what is known only then stands in braces."""

    room: str
    file: str
    what: str
    cure: str


def classes() -> dict[str, type[errors.CompalError]]:
    """Every class of error by name, the root first."""
    found = inspect.getmembers(errors, inspect.isclass)
    ours = {name: cls for name, cls in found if issubclass(cls, errors.CompalError)}
    return dict(sorted(ours.items(), key=lambda entry: (entry[1].exit_code, len(entry[1].__mro__), entry[0])))


def page() -> str:
    """The tree, then of each class what it means and every message."""
    known = messages()
    parts = [fence("text", "\n".join((inspect.getdoc(errors) or "").splitlines()[2:]))]
    for name, cls in classes().items():
        parts += [f"## {name}", f"Exit code {cls.exit_code}. {inline(' '.join((cls.__doc__ or '').split()))}"]
        rooms: dict[str, list[Message]] = {}
        for message in sorted(set(known.get(name, []))):
            rooms.setdefault(message.room, []).append(message)
        for room, said in rooms.items():
            parts.append(f"### {name} in {room}")
            parts += [_entry(message) for message in said]
    return "\n\n".join(parts)


def _entry(message: Message) -> str:
    cure = inline(message.cure) if message.cure else "–"
    return f"{code(message.what)}\n: {cure} *{code(message.file)}*"


def sources() -> Iterator[Path]:
    """The files of the package: its folders are those of the root that are packages."""
    yield from sorted(registry.ROOT.glob("*.py"))
    for package in sorted(registry.ROOT.glob("*/__init__.py")):
        yield from sorted(package.parent.rglob("*.py"))


def messages() -> dict[str, list[Message]]:
    """Class of error → what is raised with it."""
    found: dict[str, list[Message]] = {name: [] for name in classes()}
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        relative = path.relative_to(registry.ROOT)
        room = relative.parts[0] if len(relative.parts) > 1 else "the top"
        reader = Reader(tree)
        for node in filter(lambda one: isinstance(one, ast.Call), ast.walk(tree)):
            said = reader.said(node)
            if said:
                found[said[0]].append(Message(room, relative.as_posix(), said[1], said[2]))
    return found


class Reader:
    """Reads the messages of one file."""

    def __init__(self, tree: ast.Module) -> None:
        self.constants = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        self.known = classes()

    def said(self, node: ast.AST) -> tuple[str, str, str] | None:
        """(class, what, cure) of `UnknownName.among(…)` and of `Error(…)`, raised at once or kept for later."""
        if not isinstance(node, ast.Call):
            return None
        given = {str(keyword.arg): keyword.value for keyword in node.keywords}
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr == "among":
            given |= dict(zip(("kind", "name", "known", "cure"), node.args, strict=False))
            if "name" not in given or ast.unparse(called.value) not in self.known:
                return None
            what = f"no {self.text(given['kind'])} '{{{ast.unparse(given['name'])}}}'"
            cure = self.text(given["cure"]) if "cure" in given else ""
            return "UnknownName", what, f"Names the nearest, lists those that are known. {cure}".strip()
        name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
        if name not in self.known or not (node.args or given):
            return None
        if any(isinstance(argument, ast.Starred) for argument in node.args):
            return None
        given |= dict(zip(("what", "cure"), node.args, strict=False))
        return name, self.text(given.get("what")), self.text(given.get("cure"))

    def text(self, node: ast.expr | None) -> str:
        """What an expression says, as far as the code tells."""
        if node is None:
            return ""
        if isinstance(node, ast.Constant):
            return " ".join(str(node.value).split()) if str(node.value).strip() else str(node.value)
        if isinstance(node, ast.JoinedStr):
            return " ".join("".join(self._piece(value) for value in node.values).split())
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return f"{self.text(node.left)}{self.text(node.right)}"
        if isinstance(node, ast.IfExp):
            return " / ".join(text for text in (self.text(node.body), self.text(node.orelse)) if text)
        if isinstance(node, ast.Name) and isinstance(self.constants.get(node.id), ast.Constant | ast.JoinedStr):
            return self.text(self.constants[node.id])
        return f"{{{ast.unparse(node)}}}"

    def _piece(self, node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            return str(node.value)
        value = node.value if isinstance(node, ast.FormattedValue) else node
        if isinstance(value, ast.Name) and isinstance(self.constants.get(value.id), ast.Constant):
            return self.text(value)
        return f"{{{ast.unparse(value)}}}"
