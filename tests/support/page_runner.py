"""Runs the blocks of a page in order, in one working folder: Python in one namespace, bash in a shell whose `compal` is
this process, warm. Variables that a block exports and the folder it changes to are those of the next."""

from __future__ import annotations

import contextlib
import io
import linecache
import os
import re
import select
import subprocess
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from pages import Block
from typer.testing import CliRunner

from compal import cli

MOST_STEPS = 20
PATIENCE = 300  # seconds a block may take
# What `compal` means inside a block: write the call into a folder of its own, tell this process, wait for its answer.
SHELL = """
set -euo pipefail
trap 'code=$?; pwd > "$CALLS/pwd"; env -0 > "$CALLS/env"; exit $code' EXIT
compal() {
  local call; call=$(mktemp -d "$CALLS/XXXXXX"); mkfifo "$call/code"
  pwd > "$call/pwd"; env -0 > "$call/env"; printf '%s\\0' "$@" > "$call/words"
  echo "$call" > "$CALLS/asked"
  local code; read -r code < "$call/code"
  cat "$call/out"; cat "$call/err" >&2
  return "$code"
}
"""


class BlockFailed(AssertionError):
    """A block ended with an error; says where, and the end of what it printed."""


class Page:
    """A page that is being run.

    name    of the page, for messages
    folder  the working folder, empty
    calls   a folder for what is private to the runner
    """

    def __init__(self, name: str, folder: Path, calls: Path) -> None:
        self.name, self.calls, self.folder, self.root = name, calls, folder, folder
        self.module = types.ModuleType("__main__")
        self.environment = {key: value for key, value in os.environ.items() if key != "COMPAL_HOME"}
        self.environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

    def run(self, block: Block) -> str:
        """What a block prints, stdout and stderr. Raises `BlockFailed`."""
        code = re.sub(
            r"\boptim\.steps=(\d+)", lambda found: f"optim.steps={min(int(found[1]), MOST_STEPS)}", block.code
        )
        if block.language == "bash":
            return self._bash(code, block.line)
        with inside(self.folder, self.environment, self.root):
            sys.path.insert(0, str(self.folder))  # as in a notebook or at a prompt
            return self._python(code, block.line)

    def _python(self, code: str, line: int) -> str:
        file = f"{self.name}:{line}"
        linecache.cache[file] = (len(code), None, code.splitlines(True), file)
        printed = io.StringIO()
        try:
            with (
                main_is(self.module),
                contextlib.redirect_stdout(printed),
                contextlib.redirect_stderr(printed),
            ):
                exec(compile(code, file, "exec"), self.module.__dict__)
        except (Exception, SystemExit):
            raise self._failed(line, printed.getvalue() + traceback.format_exc()) from None
        return printed.getvalue()

    def _bash(self, code: str, line: int) -> str:
        asked = self.calls / "asked"
        asked.unlink(missing_ok=True)
        os.mkfifo(asked)
        requests = os.open(asked, os.O_RDWR | os.O_NONBLOCK)  # a writer of our own, so that it never ends
        log = self.calls / "log"
        try:
            with log.open("w") as file:
                shell = subprocess.Popen(
                    ["bash", "-c", SHELL + code], env=self.environment | {"CALLS": str(self.calls)}, cwd=self.folder,
                    stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                )  # fmt: skip
                try:
                    self._serve(shell, requests)
                finally:
                    if shell.poll() is None:
                        shell.kill()
                        shell.wait()
        finally:
            os.close(requests)
        printed = log.read_text(errors="replace")
        if shell.returncode:
            raise self._failed(line, f"{printed}\nexit code {shell.returncode}")
        self.folder = Path((self.calls / "pwd").read_text().rstrip("\n"))
        self.environment = read_environment(self.calls / "env")
        return printed

    def _serve(self, shell: subprocess.Popen, requests: int) -> None:
        """Answer the shell's calls of `compal` until it ends."""
        waited = 0.0
        while shell.poll() is None:
            ready, _, _ = select.select([requests], [], [], 0.02)
            waited += 0 if ready else 0.02
            if waited > PATIENCE:
                shell.kill()
            for call in os.read(requests, 1 << 16).decode().split() if ready else ():
                answer(Path(call), self.root)

    def _failed(self, line: int, printed: str) -> BlockFailed:
        return BlockFailed(f"{self.name}, block at line {line}:\n{printed[-4000:]}")


def answer(call: Path, root: Path) -> None:
    """Run a `compal` command that a shell asks for, and let it read the exit code."""
    words = (call / "words").read_bytes().decode().split("\0")[:-1]
    code: int | None = 0
    with (
        inside(Path((call / "pwd").read_text().rstrip("\n")), read_environment(call / "env"), root),
        mock.patch.object(sys, "argv", ["compal", *words]),
        CliRunner().isolation() as (out, err, _),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else bool(ended.code)
        except Exception:
            code = 70
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        (call / "out").write_bytes(out.getvalue())
        (call / "err").write_bytes(err.getvalue())
    (call / "code").write_text(f"{int(code or 0)}\n")


def read_environment(file: Path) -> dict[str, str]:
    """What `env -0` wrote."""
    return dict(entry.split("=", 1) for entry in file.read_text(errors="replace").split("\0") if "=" in entry)


@contextlib.contextmanager
def main_is(module: types.ModuleType) -> Iterator[None]:
    """Meanwhile that is `__main__`. What is imported meanwhile stays: torch cannot be imported twice."""
    before = sys.modules["__main__"]
    sys.modules["__main__"] = module
    try:
        yield
    finally:
        sys.modules["__main__"] = before


@contextlib.contextmanager
def inside(folder: Path, environment: dict[str, str], root: Path) -> Iterator[None]:
    """Meanwhile this process has that working folder, environment and PYTHONPATH. Modules that lie below `root` are
    forgotten afterwards, as by a process of its own."""
    before, path = Path.cwd(), list(sys.path)
    os.chdir(folder)
    try:
        with mock.patch.dict(os.environ, environment, clear=True):
            sys.path[:0] = [
                os.path.abspath(entry) for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry
            ]
            yield
    finally:
        os.chdir(before)
        sys.path[:] = path
        for name, module in list(sys.modules.items()):
            known = getattr(module, "__dict__", {})  # torch's modules make up an attribute of any name
            lies = [known.get("__file__"), *known.get("__path__", ())]  # a bare folder has no file
            if any(str(place).startswith(f"{root}{os.sep}") for place in lies):
                del sys.modules[name]
