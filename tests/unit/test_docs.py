"""What the documents say is what the code does."""

import re

import typer.core
import typer.main

from manager.cli.app import COMMANDS, app
from tests.docs import README, error_table


def test_readme_lists_every_error_code_as_the_code_has_it() -> None:
    assert error_table() in README.read_text(encoding="utf-8"), "run `python -m tests.docs`"


def test_architecture_names_only_files_that_exist() -> None:
    root = README.parent
    text = (root / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:common|manager|spm|hostagent|tests|deploy)/[\w/.]+)`", text))
    assert len(named) > 20
    assert sorted(name for name in named if not (root / name).exists()) == []


def test_readme_lists_every_command_and_no_other() -> None:
    reference = README.read_text(encoding="utf-8").split("## Command line")[1].split("`VM`, `SNAPSHOT`")[0]
    shown = set()
    for row in reference.splitlines():
        words = re.findall(r"`(?:livesnap )?([^`]+)`", row.split("|")[1]) if row.startswith("|") else []
        group = words[0].split()[0] if words else ""
        for word in words:
            name = re.sub(r" ?(--|[A-Z]).*", "", word)
            shown.add(name if name.startswith(group) else f"{group} {name}")
    assert shown == {" ".join(words) for name in COMMANDS for words in _commands(name)}


def _commands(name: str) -> list[tuple[str, ...]]:
    """Return the words of a command, or of each command of the group of that name."""
    found = typer.main.get_group(app).get_command(typer.Context(typer.main.get_command(app)), name)
    return [(name, each) for each in found.commands] if isinstance(found, typer.core.TyperGroup) else [(name,)]
