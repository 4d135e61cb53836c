"""What the documents say is what the code does."""

import re

from tests.docs import README, error_table


def test_readme_lists_every_error_code_as_the_code_has_it() -> None:
    assert error_table() in README.read_text(encoding="utf-8"), "run `python -m tests.docs`"


def test_architecture_names_only_files_that_exist() -> None:
    root = README.parent
    text = (root / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:common|manager|spm|hostagent|tests|deploy)/[\w/.]+)`", text))
    assert len(named) > 20
    assert sorted(name for name in named if not (root / name).exists()) == []
