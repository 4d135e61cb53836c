"""What is printed: the same to a terminal and to a pipe, but for colours and width."""

import io
import os
import pty
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.cli import plain, screen, terminal
from manager.cli.timeline import timeline_of

ROOT = Path(__file__).resolve().parents[4]
COLUMNS = ("NAME", "STATE", "PROBLEM")
SHOW = """
from manager.cli import screen
from manager.cli.timeline import timeline_of
screen.print_table(("NAME", "STATE"), [("web", "needs_operator")], empty="nothing")
screen.print_facts([("state", "completed")])
screen.heading("Timeline")
screen.note("a remark")
screen.failure("a fault", "do this", "vm_busy")
with timeline_of("snapshot of web") as timeline:
    timeline.step({"at": "2026-01-01T10:00:00Z", "ms": 1.0, "step": "pivoting", "detail": "on h1"})
"""
ODD = ["", None, 3, "needs_operator", "日本語の名前", "zażółć", "e\u0301", "web\x1b[2J", "a\u202eb", "x" * 200]
WORDS = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(max_codepoint=0x24F)),
)
ROWS = st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=5)
FACTS = st.lists(st.tuples(st.sampled_from(["id", "consistency"]), WORDS), min_size=1, max_size=5)


def by_rich(show: object, *arguments: object) -> list[str]:
    """Return the lines that Rich prints where there is room for them, without the blanks at their ends."""
    with redirect_stdout(io.StringIO()) as printed, pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "9000")
        assert callable(show)
        show(*arguments)
    return [line.rstrip(" ") for line in printed.getvalue().split("\n")[:-1]]


@given(ROWS)
def test_a_pipe_gets_the_columns_that_a_terminal_shows(rows: list[tuple[object, ...]]) -> None:
    assert plain.table(COLUMNS, rows) == by_rich(terminal.print_table, COLUMNS, rows)


@given(FACTS)
def test_a_pipe_gets_the_facts_that_a_terminal_shows(facts: list[tuple[str, object]]) -> None:
    assert plain.facts(facts) == by_rich(terminal.print_facts, facts)


def test_a_line_is_as_long_as_it_must_be(capsys: pytest.CaptureFixture[str]) -> None:
    long = "y" * 5000
    screen.print_table(("NAME", "PROBLEM"), [("web", long)], empty="nothing")
    screen.print_facts([("problem", long), ("name", ""), ("host", None)])
    assert capsys.readouterr().out.splitlines() == ["NAME  PROBLEM", f"web   {long}", f"problem  {long}"]


def test_an_empty_list_says_so_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    screen.print_table(COLUMNS, (), empty="no machine")
    assert capsys.readouterr() == ("", "no machine\n")


def test_a_failure_has_its_code_and_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    screen.failure("no vm called \x1b[1m", "Try `livesnap vm list`.", "vm_not_found")
    screen.failure("a fault", "", "internal_error")
    assert capsys.readouterr().err.splitlines() == [
        "Error vm_not_found: no vm called \\x1b[1m",
        "  Try `livesnap vm list`.",
        "Error internal_error: a fault",
    ]


def test_a_pipe_that_wants_colours_gets_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from `livesnap vm list | less -R`."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    screen.print_facts([("state", "needs_operator")])
    assert "\x1b[1;31mneeds_operator" in capsys.readouterr().out


def test_a_timeline_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    with timeline_of("snapshot of web") as timeline:
        timeline.waiting("a limit of host h1")
        timeline.waiting("a limit of host h1")
        timeline.waiting("")
        timeline.step({"at": "2026-01-01T10:00:00Z", "ms": 12.34, "step": "pivoting", "detail": ""})
        timeline.trouble("no answer")
        timeline.trouble("no answer")
    assert capsys.readouterr().err.splitlines() == [
        "waiting for a limit of host h1",
        "10:00:00 12.3 ms pivoting",
        "no answer",
    ]


def test_a_terminal_is_shown_colours_and_a_live_timeline() -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", SHOW], stdout=slave, stderr=slave, env=environment) as showing:
        os.close(slave)
        shown = _all_of(master)
    assert showing.returncode == 0, shown
    assert "\x1b[1;31mneeds_operator\x1b[0m" in shown
    for words in ("completed", "Timeline", "a remark", "vm_busy", "do this", "pivoting", "on h1"):
        assert words in shown


def _all_of(master: int) -> str:
    """Return what was printed to a pseudo-terminal until nobody had it any more (Linux says EIO then)."""
    found = b""
    while True:
        try:
            found += os.read(master, 4096)
        except OSError:
            os.close(master)
            return found.decode()
