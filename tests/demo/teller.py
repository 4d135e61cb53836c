"""Tells the story: headings, sentences, and claims that were checked. Plain text when nobody watches."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.text import Text

WIDTH = 100

Verdict = Literal["true", "left out", "broken"]
_STYLES = {"true": "green", "left out": "yellow", "broken": "bold red"}


class ClaimBroken(AssertionError):
    """Something that the demo says of livesnap was not so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """A chapter that was told, and what became of it."""

    title: str
    verdict: Verdict
    why: str = ""


class Teller:
    """Writes on standard output. `chapters` is what was told so far."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, emoji=False, markup=False, soft_wrap=True)
        self.chapters: list[Chapter] = []

    @contextmanager
    def chapter(self, title: str) -> Iterator[None]:
        """Tell one chapter; what breaks it is told and remembered, and the story goes on. Not so for Ctrl-C."""
        self._heading(title)
        try:
            yield
        except Exception as error:  # noqa: BLE001  the demo's main loop: told here, and it decides the exit status
            why = str(error) or type(error).__name__
            if not isinstance(error, ClaimBroken):
                self._line("BROKEN", f"the chapter could not be told to its end: {why}", _STYLES["broken"])
            self.chapters.append(Chapter(title=title, verdict="broken", why=why))
        else:
            self.chapters.append(Chapter(title=title, verdict="true"))

    def leave_out(self, title: str, why: str) -> None:
        """Say that a chapter cannot be told here."""
        self._heading(title)
        self._line("left out", why, _STYLES["left out"])
        self.chapters.append(Chapter(title=title, verdict="left out", why=why))

    def say(self, text: str) -> None:
        """Tell something in a paragraph of its own."""
        self._console.print()
        self._console.print(Text(textwrap.fill(" ".join(text.split()), WIDTH)))

    def command(self, words: str) -> None:
        """Show a command as it is about to be run."""
        self._console.print()
        self._console.print(Text.assemble(("$ ", "bold green"), (words, "bold")))
        self.flush()

    def show(self, text: str) -> None:
        """Show something as it is, indented."""
        self._console.print(Text(textwrap.indent(text, "  "), style="dim"))

    def claim(self, what: str, held: object, seen: object = "") -> None:
        """Say that `what` is true if it is, else what was seen instead. Raises ClaimBroken."""
        if not held:
            detail = f"{what}; seen: {seen!r}"
            self._line("BROKEN", detail, _STYLES["broken"])
            raise ClaimBroken(detail)
        self._line("holds", what, _STYLES["true"])

    def summary(self, seconds: float) -> None:
        """Tell what became of each chapter."""
        self._console.print()
        self._console.print(Text("━" * WIDTH, style="bold cyan"))
        for chapter in self.chapters:
            why = f": {chapter.why}" if chapter.why else ""
            self._line(chapter.verdict, f"{chapter.title}{why}", _STYLES[chapter.verdict])
        self._console.print(Text(f"\n{seconds:.0f} seconds."))
        self.flush()

    def flush(self) -> None:
        """Write everything, so that what another process prints comes after it."""
        self._console.file.flush()

    @property
    def all_true(self) -> bool:
        """Tell whether no chapter broke."""
        return all(chapter.verdict != "broken" for chapter in self.chapters)

    def _heading(self, title: str) -> None:
        self._console.print()
        self._console.print(Text(f"━━ {title} ".ljust(WIDTH, "━"), style="bold cyan"))

    def _line(self, word: str, text: str, style: str) -> None:
        body = textwrap.fill(text, WIDTH, initial_indent=" " * 11, subsequent_indent=" " * 11).lstrip()
        self._console.print(Text.assemble("  ", (f"{word:<9}", style), body))
