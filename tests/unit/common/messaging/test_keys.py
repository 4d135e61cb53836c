"""Keys on disk: who may read them, what is never overwritten, and a ring that follows its folder."""

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from common.errors import LivesnapError, MessageRejected
from common.messaging.keys import MAX_KEYRING_FILE_BYTES, Keyring, SigningKey, write_public

DATA = b"what was said"


def make(folder: Path, sender: str = "host.h1", name: str = "own.key") -> SigningKey:
    return SigningKey.generate(folder / name, sender)


def trusted(ring: Keyring, key: SigningKey, data: bytes = DATA) -> bool:
    try:
        ring.verify(key.sender, key.sign(DATA), data)
    except MessageRejected:
        return False
    return True


def test_a_key_is_whole_private_and_alone(tmp_path: Path) -> None:
    key = make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["own.key"]
    assert stat.S_IMODE((tmp_path / "own.key").stat().st_mode) == 0o600
    assert SigningKey.load(tmp_path / "own.key", "host.h1").public_pem == key.public_pem


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    before = make(tmp_path).public_pem
    with pytest.raises(LivesnapError, match="not overwritten"):
        make(tmp_path)
    assert SigningKey.load(tmp_path / "own.key", "host.h1").public_pem == before
    assert [path.name for path in tmp_path.iterdir()] == ["own.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_key_open_to_others_is_not_used(tmp_path: Path, mode: int) -> None:
    make(tmp_path)
    (tmp_path / "own.key").chmod(mode)
    with pytest.raises(LivesnapError, match="0600"):
        SigningKey.load(tmp_path / "own.key", "host.h1")


def test_what_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "own.key"
    with pytest.raises(LivesnapError, match="cannot read"):
        SigningKey.load(path, "host.h1")
    path.touch(0o600)
    with pytest.raises(LivesnapError, match="cannot read"):
        SigningKey.load(path, "host.h1")
    path.write_bytes(generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(LivesnapError, match="Ed25519"):
        SigningKey.load(path, "host.h1")


@pytest.mark.parametrize("sender", ["", "host", "host.", "host.A", "../x", "host.a/b", "spm.é", "api"])
def test_only_queues_are_senders(tmp_path: Path, sender: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        make(tmp_path, sender)
    assert list(tmp_path.iterdir()) == []


def test_a_ring_trusts_its_folder(tmp_path: Path) -> None:
    key, ring = make(tmp_path), Keyring(tmp_path)
    assert not trusted(ring, key)
    write_public(tmp_path, key)
    assert trusted(ring, key), "a host that joins needs no restart of the others"
    assert not trusted(ring, key, b"something else")
    (tmp_path / "host.h1.pub").unlink()
    assert not trusted(ring, key), "nor does one that is removed"


def test_two_senders_with_each_others_keys(tmp_path: Path) -> None:
    one, two, ring = make(tmp_path), make(tmp_path, "host.h2", "two.key"), Keyring(tmp_path)
    write_public(tmp_path, one)
    write_public(tmp_path, two)
    with pytest.raises(MessageRejected, match=r"not that of host\.h2"):
        ring.verify("host.h2", one.sign(DATA), DATA)


def test_rotation(tmp_path: Path) -> None:
    old, new, ring = make(tmp_path), make(tmp_path, name="new.key"), Keyring(tmp_path)
    write_public(tmp_path, old)
    assert (trusted(ring, old), trusted(ring, new)) == (True, False)
    path = tmp_path / "host.h1.pub"
    path.write_bytes(b"a note for people\n" + old.public_pem + new.public_pem)
    assert (trusted(ring, old), trusted(ring, new)) == (True, True)
    write_public(tmp_path, new)
    assert trusted(ring, old), "a start in the middle of a rotation leaves the file alone"
    path.write_bytes(new.public_pem)
    assert (trusted(ring, old), trusted(ring, new)) == (False, True)


def test_a_new_key_replaces_the_old_one(tmp_path: Path) -> None:
    old, new, ring = make(tmp_path), make(tmp_path, name="new.key"), Keyring(tmp_path)
    write_public(tmp_path, old)
    write_public(tmp_path, new)
    assert (trusted(ring, old), trusted(ring, new)) == (False, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host.h1.pub", "new.key", "own.key"]


def _of_another_kind() -> bytes:
    public = generate_private_key(SECP256R1()).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", id="no key inside"),
        pytest.param(_of_another_kind(), id="another kind of key"),
        pytest.param(b"x" * (MAX_KEYRING_FILE_BYTES + 1), id="too large"),
    ],
)
def test_a_broken_file_trusts_nobody(tmp_path: Path, content: bytes) -> None:
    key, ring = make(tmp_path), Keyring(tmp_path)
    (tmp_path / "host.h1.pub").write_bytes(content)
    assert not trusted(ring, key)
    write_public(tmp_path, key)
    assert trusted(ring, key)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    key, ring = make(tmp_path), Keyring(tmp_path)
    os.mkdir(tmp_path / "host.h1.pub")
    assert not trusted(ring, key)


@pytest.mark.parametrize("signature", [b"", b"x", b"x" * 64, b"x" * 1000])
def test_what_is_no_signature(tmp_path: Path, signature: bytes) -> None:
    key = make(tmp_path)
    write_public(tmp_path, key)
    with pytest.raises(MessageRejected, match="not that of"):
        Keyring(tmp_path).verify("host.h1", signature, DATA)


def test_a_revoked_key_is_refused_in_plain_words_until_there_is_a_new_one(tmp_path: Path) -> None:
    old, ring = make(tmp_path), Keyring(tmp_path)
    write_public(tmp_path, old)
    assert trusted(ring, old)
    text = ring.public_text("host.h1")
    assert ring.revoke("host.h1") == text == old.public_pem.decode()
    assert ring.revoke("host.h1") == text, "safe to repeat"
    assert ring.public_text("host.h1") == ""
    with pytest.raises(MessageRejected, match=r"host\.h1 was removed and its key revoked"):
        ring.verify("host.h1", old.sign(DATA), DATA)
    new = make(tmp_path, name="new.key")
    write_public(tmp_path, new)
    assert (trusted(ring, old), trusted(ring, new)) == (False, True)


def test_only_a_key_that_was_there_can_be_revoked(tmp_path: Path) -> None:
    with pytest.raises(LivesnapError) as refused:
        Keyring(tmp_path).revoke("host.h1")
    assert refused.value.code == "settings_invalid"
    with pytest.raises(ValueError, match="not a sender"):
        Keyring(tmp_path).revoke("../h1")
