"""The administrator's two commands: keys that are never overwritten, and plain errors."""

import base64
import json
from pathlib import Path

import pytest

from common.errors import LivesnapError
from common.messaging import access
from common.messaging.accounts import password_in
from common.messaging.identity import own_key, trusted
from common.messaging.keys import Keyring, SigningKey
from common.provision import main
from common.settings import SharedSettings
from common.toml import toml


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


def test_accounts_keep_their_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVESNAP_BROKER_URL", "redis://:old@broker:6379/2")
    folder = tmp_path / "accounts"
    assert main(["accounts", str(folder), "manager", "host.h1"]) == 0
    first = (folder / "host.h1.url").read_text()
    assert main(["accounts", str(folder), "host.h1", "host.h2"]) == 0
    assert (folder / "host.h1.url").read_text() == first
    assert first.startswith("redis://host.h1:")
    assert first.endswith("@broker:6379/2\n")
    lines = {line.split()[1]: line for line in (folder / "users.acl").read_text().splitlines()}
    assert list(lines) == ["default", "host.h1", "host.h2", "manager"]
    assert lines["default"] == "user default reset", "whoever has no account gets in no more"
    assert access.redis_hash(password_in(first.strip())) in lines["host.h1"]
    assert "&/2.celeryev/*" in lines["host.h1"]


def test_accounts_of_rabbitmq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVESNAP_BROKER_URL", "amqp://broker/livesnap")
    assert main(["accounts", str(tmp_path / "a"), "manager", "flower", "spm.default"]) == 0
    made = json.loads((tmp_path / "a/definitions.json").read_text())
    assert {user["name"] for user in made["users"]} == {"manager", "flower", "spm.default"}
    assert {each["name"] for each in made["queues"]} == {"manager", "manager.answers", "spm.default", "dead"}
    assert {each["vhost"] for each in made["permissions"]} == {"livesnap"}
    password = password_in((tmp_path / "a/manager.url").read_text().strip())
    stored = base64.b64decode(next(user["password_hash"] for user in made["users"] if user["name"] == "manager"))
    assert access.rabbit_hash(password, stored[:4]) == base64.b64encode(stored).decode()


@pytest.mark.parametrize("name", ["guest", "host.", "host.../x", "spm", "manager.answers", "*", "host.h1 +@all"])
def test_a_name_that_is_no_account(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accounts", str(tmp_path / "accounts"), name]) == 1
    assert not (tmp_path / "accounts").exists()
    assert "no account" in capsys.readouterr().err


def test_a_file_with_secrets_must_be_its_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings file that `livesnap host add` writes, and the broker's URL in a file of its own."""
    key = SigningKey.new("host.h1")
    url = tmp_path / "broker.url"
    url.write_text("redis://host.h1:secret@broker/0\n")
    config = tmp_path / "host.toml"
    own = {"private_key": key.private_pem.decode(), "manager_key": key.public_pem.decode(), "broker_url_file": str(url)}
    config.write_text(toml(own))
    monkeypatch.setenv("LIVESNAP_CONFIG", str(config))
    for file in (config, url):
        for each in (config, url):
            each.chmod(0o600)
        file.chmod(0o640)
        with pytest.raises(LivesnapError, match=f"{file} holds a secret") as refused:
            SharedSettings()
        assert refused.value.code == "settings_invalid"
    url.chmod(0o600)
    settings = SharedSettings()
    assert settings.broker_url == "redis://host.h1:secret@broker/0"
    assert own_key(settings, "host.h1").public_pem == key.public_pem
    assert "PRIVATE" not in repr(settings)
    trusted(settings).verify("manager", key.sign(b"text"), b"text")
