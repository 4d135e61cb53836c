"""What stands in a state directory before anything starts."""

import stat
import tomllib
from pathlib import Path

import pytest

from common.messaging.keys import Keyring, SigningKey
from common.toml import Settings, toml
from manager.standalone.layout import StateDir
from manager.standalone.options import Options, StorageRoot
from manager.standalone.prepare import prepare

SENDERS = ("manager", "spm.default", "host.h1")
BROKER = "amqp://user:password@broker.example//"


def options_for(state_dir: Path, **changed: str) -> Options:
    storage = (StorageRoot(name="images", path=state_dir),)
    given = {"broker_url": BROKER, "host_id": "h1", **changed}
    return Options(state_dir=state_dir, libvirt_uri="qemu:///session?socket=/a b", storage=storage, **given)  # type: ignore[arg-type]


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    made = StateDir(root=tmp_path / "state")
    made.make()
    return made


def files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_toml_says_what_was_meant() -> None:
    settings: Settings = {"url": 'a"b\\c\t☃😀', "port": 8470, "storage_domains": {"a.b": "/srv/x y", "c": '"'}}
    assert tomllib.loads(toml(settings)) == settings


def test_every_sender_has_a_key_that_the_others_trust(state: StateDir) -> None:
    prepare(options_for(state.root), state)
    for sender in SENDERS:
        key = SigningKey.load(state.own_keys / f"{sender}.key", sender)
        Keyring(state.public_keys).verify(sender, key.sign(b"words"), b"words")


def test_nothing_is_readable_by_others(state: StateDir) -> None:
    prepare(options_for(state.root), state)
    assert stat.S_IMODE(state.root.stat().st_mode) == 0o700
    secret = [state.token, *state.settings.iterdir(), *state.own_keys.iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}


def test_keys_token_and_settings_stay_over_a_second_start(state: StateDir) -> None:
    first = prepare(options_for(state.root), state)
    before = files(state.root)
    assert prepare(options_for(state.root, host_id=""), state) == first
    assert files(state.root) == before


def test_settings_follow_the_options(state: StateDir) -> None:
    prepared = prepare(options_for(state.root), state)
    host = tomllib.loads((state.settings / "host.toml").read_text())
    assert host["libvirt_uri"] == "qemu:///session?socket=/a b"
    assert host["storage_domains"] == {"images": str(state.root)}
    assert host["broker_url"] == BROKER
    assert prepared.redis_conf is None
    assert prepared.queues == SENDERS


def test_no_two_processes_share_a_key(state: StateDir) -> None:
    prepare(options_for(state.root), state)
    named = [tomllib.loads(path.read_text())["key_file"] for path in state.settings.glob("*.toml")]
    assert len(set(named)) == len(named) == len(SENDERS)
