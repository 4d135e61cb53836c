"""deploy/settings shows every option as it is: its default, and what its docstring says."""

import os
import tomllib
from typing import Any

import pytest

from tests.settings_example import FILES, FOLDER, as_set, example

NOT_DEFAULTS = {"broker_url_file", "metrics_dir", "host_id", "storage_domains"}
"""Shown with an example, because their default is nothing, or differs from machine to machine."""


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_what_the_settings_are(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == example(name), "run `python -m tests.docs`"


def test_there_is_no_other_file() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_it_sets_nothing_as_it_is(name: str) -> None:
    assert tomllib.loads((FOLDER / name).read_text(encoding="utf-8")) == {}


@pytest.mark.parametrize("name", FILES)
def test_every_option_can_be_uncommented_and_is_the_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [each for each in os.environ if each.startswith("LIVESNAP_")]:
        monkeypatch.delenv(variable)
    settings = FILES[name][0]
    shown: dict[str, Any] = tomllib.loads(as_set((FOLDER / name).read_text(encoding="utf-8")))
    assert set(shown) == set(settings.model_fields)
    defaults = {option: value for option, value in shown.items() if option not in NOT_DEFAULTS}
    assert settings(**defaults) == settings()
