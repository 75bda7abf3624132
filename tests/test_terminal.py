"""How much is said and how it looks: --quiet, --verbose, colour on a terminal and never in a pipe, plain progress."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings

import pexpect
import pytest
from command_line import rows, run, table
from typer.testing import CliRunner

from compal import cli, console
from compal.console import terminal

ANSI = re.compile(r"\x1b\[")
COMPAL = [sys.executable, "-m", "compal"]


@pytest.fixture(autouse=True)
def _plain(tmp_path, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COMPAL_HOME", str(tmp_path / "work"))
    monkeypatch.chdir(tmp_path)
    yield
    terminal.speak()


class Screen(io.StringIO):
    def isatty(self):
        return True


# --- colour --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "on_terminal", "in_pipe"),
    [
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "0"}, True, False),
        ({"CLICOLOR_FORCE": "1"}, True, True),
        ({"CLICOLOR_FORCE": "0"}, True, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, False),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True, True),
    ],
)
def test_who_gets_colour(monkeypatch, given, on_terminal, in_pipe):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert terminal.colour(Screen()) is on_terminal
    assert terminal.colour(io.StringIO()) is in_pipe
    assert bool(ANSI.search(terminal.paint("x", "error", Screen()))) is on_terminal


def test_a_terminal_has_colour_and_a_pipe_has_none():
    line = " ".join([*COMPAL, "ls", "nothing"])
    shown, status = pexpect.run(line, withexitstatus=True, timeout=60, env=dict(os.environ))
    assert status == 1
    assert ANSI.search(shown.decode())
    piped = subprocess.run([*COMPAL, "ls", "nothing"], capture_output=True, text=True, check=False)
    assert piped.returncode == 1
    assert not ANSI.search(piped.stdout + piped.stderr)
    assert piped.stderr.startswith("compal: no kind of part 'nothing'")


@pytest.mark.parametrize("unasked", ["GITHUB_ACTIONS", "PY_COLORS"])
def test_help_in_a_pipe_is_plain_and_as_wide_as_ever(monkeypatch, unasked):
    monkeypatch.setenv(unasked, "1")
    monkeypatch.delenv("COLUMNS", raising=False)
    done = subprocess.run([*COMPAL, "ls", "--help"], capture_output=True, text=True, check=True)
    assert not ANSI.search(done.stdout)
    assert max(map(len, done.stdout.splitlines())) == terminal.WIDTH


def test_json_has_no_colour_even_where_it_is_forced(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, out, _ = run("ls", "heads", "--json")
    assert code == 0
    assert not ANSI.search(out)
    assert "maxsim" in json.loads(out)["heads"]


# --- how much is said --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["-q", "extract"], ["extract", "-q"], ["extract", "--quiet"]])
def test_quiet_leaves_the_result_alone(tmp_path, words):
    path = table(tmp_path / "set", rows(4))
    result = CliRunner().invoke(cli.app, [*words, "--backbone", "random:4x8", "--data", str(path)])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "4 images and 4 captions extracted" in result.stdout


def test_verbose_says_what_is_decided_and_normal_does_not(tmp_path):
    path = table(tmp_path / "set", rows(4))
    words = ["extract", "--backbone", "random:4x8", "--data", str(path)]
    loud = CliRunner().invoke(cli.app, [*words, "--verbose"])
    assert "parts are to be made of 8 items wanted" in loud.stderr
    assert "extract took" in loud.stderr
    normal = CliRunner().invoke(cli.app, words)
    assert "took" not in normal.stderr
    assert "next   compal fit linear" in normal.stderr
    assert "next" not in normal.stdout


def test_one_command_does_not_speak_for_the_next(tmp_path):
    assert CliRunner().invoke(cli.app, ["-q", "ls", "heads"]).exit_code == 0
    assert terminal.level() == terminal.QUIET
    assert CliRunner().invoke(cli.app, ["ls", "heads"]).exit_code == 0
    assert terminal.level() == terminal.NORMAL


def test_quiet_and_verbose_exclude_each_other():
    assert run("-q", "-v", "ls")[0] == 2
    assert "exclude each other" in run("ls", "-q", "-v")[2]


@pytest.mark.parametrize(("level", "heard"), [("quiet", "e"), ("normal", "we"), ("verbose", "diwe")])
def test_what_the_layers_log_is_heard_by_level(capsys, level, heard):
    terminal.speak(quiet=level == "quiet", verbose=level == "verbose")
    log = logging.getLogger("compal.anywhere")
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)(name[0])
    assert capsys.readouterr().err.split() == list(heard)


def test_warnings_of_libraries_are_for_the_verbose():
    code = (
        "import sys, warnings\nfrom compal.console import terminal\nterminal.hush()\nwarnings.warn('first')\n"
        "terminal.speak(verbose=True)\nwarnings.warn('second')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "first" not in done.stderr
    assert "second" in done.stderr
    asked = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)
    assert "first" in asked.stderr
    assert warnings.filters  # those of this process were left alone


def test_a_wrong_command_line_is_one_line():
    for words, said in (
        (["fot"], "no such command 'fot'"),
        (["ls", "--kins"], "no such option: --kins. See: compal ls"),
    ):
        done = subprocess.run([*COMPAL, *words], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert f"compal: {said}" in done.stderr


# --- progress without a terminal ------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def shown(times, total=1000):
    """The lines for (seconds, done) pairs."""
    clock, out = Clock(), io.StringIO()
    lines = terminal.Lines(out, clock)
    for clock.now, done in times:
        lines.show("images", done, total, "  5 images/s ")
    return out.getvalue().splitlines()


def test_a_line_every_tenth_but_not_every_moment():
    assert shown([(n / 10, n) for n in range(1, 1001)]) == [
        *(f"images {n} of 1,000 ({n // 10} %)  5 images/s" for n in range(101, 1000, 100)),
        "images 1,000 of 1,000  5 images/s",
    ]


def test_slow_work_says_something_every_ten_seconds():
    assert [line.split()[1] for line in shown([(4.0 * n, n) for n in range(1, 10)])] == ["4", "7"]


def test_quick_work_is_one_line_and_is_said_once():
    assert shown([(0, 0), (0.1, 500), (0.2, 1000), (0.3, 1000)]) == ["images 1,000 of 1,000  5 images/s"]
    assert shown([(0, 1000), (1, 1000)]) == ["images 1,000 of 1,000  5 images/s"]
    assert shown([(0, 0), (1, 1000), (2, 10), (3, 1000)]) == 2 * ["images 1,000 of 1,000  5 images/s"]
    assert shown([(0, 0)], total=0) == []


def test_bars_are_for_terminals_that_can_move(monkeypatch):
    for screen, term, bars in ((Screen(), "xterm", True), (Screen(), "dumb", False), (io.StringIO(), "xterm", False)):
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("TERM", term)
        with console.Ticking() as ticking:
            ticking.tick("image", 5, 5)
            assert (ticking.bars is not None) is bars
        assert bool(ANSI.search(screen.getvalue())) is bars
        assert "images" in screen.getvalue()
    terminal.speak(quiet=True)
    monkeypatch.setattr(sys, "stderr", Screen())
    with console.Fitting() as fitting:
        fitting.show("step", 5, 5)
    assert sys.stderr.getvalue() == ""


def test_the_pace_is_that_of_the_work_in_hand(monkeypatch):
    """A second extraction is not slowed by the minutes since the first began."""
    now = [0.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    with console.Ticking() as ticking:
        for second, done in ((0, 0), (10, 100)):
            now[0] = second
            first = ticking._pace("images", done, 100)
        ticking.tick("written", 5, 10)
        for second, done in ((500, 0), (502, 40)):
            now[0] = second
            later = ticking._pace("images", done, 80)
    assert first.startswith("10.0 images/s, 0 s left")
    assert later == "20.0 images/s, 2 s left"
