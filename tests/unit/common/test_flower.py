"""Flower asks who its users are, or does not start."""

import os
import subprocess
import sys

import pytest

from common.flower import has_login


@pytest.mark.parametrize(
    ("environment", "words", "is_asked"),
    [
        ({"FLOWER_BASIC_AUTH": "me:secret"}, [], True),
        ({"FLOWER_AUTH": ".*@example.com"}, [], True),
        ({}, ["flower", "--basic_auth=me:secret"], True),
        ({}, ["flower", "--conf", "flowerconfig.py"], True),
        ({"FLOWER_BASIC_AUTH": ""}, ["flower", "--auto_refresh=True"], False),
        ({}, [], False),
    ],
)
def test_a_login_is_found(environment: dict[str, str], words: list[str], is_asked: bool) -> None:
    assert has_login(environment, words) is is_asked


@pytest.mark.slow
def test_without_one_it_does_not_start() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLOWER_")}
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "common.flower", "flower"],
        env=environment | {"LIVESNAP_BROKER_URL": "redis://127.0.0.1:1/0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "set FLOWER_BASIC_AUTH=user:password" in done.stderr
