"""The administrator's two commands: keys that are never overwritten, and plain errors."""

from pathlib import Path

import pytest

from common.messaging.keys import Keyring, SigningKey
from common.provision import main


def test_a_key_and_its_public_half(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    assert main(["key", "host.h1", str(tmp_path / "own.key"), str(keys)]) == 0
    signature = SigningKey.load(tmp_path / "own.key", "host.h1").sign(b"text")
    Keyring(keys).verify("host.h1", signature, b"text")


def test_an_existing_key_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.key"
    assert main(["key", "manager", str(own), str(tmp_path)]) == 0
    before = own.read_bytes()
    assert main(["key", "manager", str(own), str(tmp_path)]) == 1
    assert own.read_bytes() == before
    assert "not overwritten" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["key"], ["queues"], ["paint", "it"]])
def test_wrong_usage(words: list[str]) -> None:
    assert main(words) == 2


def test_a_name_that_is_no_sender(tmp_path: Path) -> None:
    assert main(["key", "../evil", str(tmp_path / "own.key"), str(tmp_path)]) == 1
    assert not (tmp_path / "own.key").exists()
