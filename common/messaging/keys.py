"""Who signed it: Ed25519 keys of the senders, and the folder of public keys that a process trusts.

A sender's identity is its queue's name (`manager`, `spm.<pool>`, `host.<host>`). Its private key is one PEM file that
only it can read; its public key is `<sender>.pub` in the folder of everybody who listens to it. Such a file may hold
several PEM blocks, so that a key is rotated by adding the new one, restarting the sender, and taking the old one out.
"""

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from common.errors import LivesnapError, MessageRejected
from common.ids import require_name
from common.messaging.queues import MANAGER, host_of, pool_of

MAX_KEYRING_FILE_BYTES: Final = 64 * 1024
_PEM_END: Final = b"-----END PUBLIC KEY-----"
_REVOKED: Final = ".revoked"


def require_sender(sender: str) -> None:
    """Raise ValueError unless `sender` is `manager`, `spm.<pool>` or `host.<host>`: it becomes a file name."""
    if sender == MANAGER:
        return
    name = host_of(sender) or pool_of(sender)
    if name is None:
        raise ValueError(f"not a sender such as 'manager', 'spm.<pool>' or 'host.<host>': {sender[:80]!r}")
    require_name(name)


class SigningKey:
    """A sender's own private key."""

    def __init__(self, private: Ed25519PrivateKey, sender: str) -> None:
        """Hold `private` as `sender`'s; use `generate` or `load`."""
        require_sender(sender)
        self._private = private
        self.sender = sender

    @classmethod
    def new(cls, sender: str) -> "SigningKey":
        """Return a new key, which nobody knows yet."""
        return cls(Ed25519PrivateKey.generate(), sender)

    @classmethod
    def parse(cls, pem: bytes, sender: str, *, where: str) -> "SigningKey":
        """Return the key in a PEM text that stands in `where`. Raises LivesnapError(settings_invalid)."""
        try:
            private = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise LivesnapError("settings_invalid", f"cannot read a private key from {where}: {error}") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise LivesnapError("settings_invalid", f"the key in {where} is not an Ed25519 key")
        return cls(private, sender)

    @classmethod
    def generate(cls, path: Path, sender: str) -> "SigningKey":
        """Make a new key and write it to `path` (PEM, mode 0600), which must not exist.

        A crash leaves either no file or a whole one. Raises LivesnapError(settings_invalid) if the file exists: a key
        that others trust is never overwritten.
        """
        key = cls.new(sender)
        with _whole_file(path, key.private_pem, mode=0o600) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise LivesnapError(
                    "settings_invalid", f"a key exists already at {path}; it is not overwritten"
                ) from None
        return key

    @classmethod
    def load(cls, path: Path, sender: str) -> "SigningKey":
        """Read the key that `generate` wrote.

        Raises LivesnapError(settings_invalid) if it is missing, not an Ed25519 key, or readable by anybody else.
        """
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise LivesnapError("settings_invalid", f"key file {path} is open to others; its mode must be 0600")
            pem = path.read_bytes()
        except OSError as error:
            raise LivesnapError("settings_invalid", f"cannot read a private key from {path}: {error}") from error
        return cls.parse(pem, sender, where=str(path))

    @property
    def private_pem(self) -> bytes:
        """Return the private half as PEM: a secret."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def public_pem(self) -> bytes:
        """Return the public half, as it stands in a `.pub` file."""
        return self._private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, data: bytes) -> bytes:
        """Return the 64 bytes of signature over `data`."""
        return self._private.sign(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A sender's public keys, and the state of the file that they were read from."""

    seen: tuple[int, int, int]
    keys: tuple[Ed25519PublicKey, ...]


class Keyring:
    """The public keys in one folder. Safe to share between threads.

    Each use looks at the file's state again (a few microseconds), so a host joins or is removed without a restart.
    """

    def __init__(self, directory: Path, *, told: Mapping[str, str] | None = None) -> None:
        """Trust the senders whose `<sender>.pub` lies in `directory`, and those whose public key is `told` here."""
        self._directory = directory
        self._told = {sender: _parse_keys(pem.encode()) for sender, pem in (told or {}).items() if pem}
        self._entries: dict[str, _Entry] = {}

    def verify(self, sender: str, signature: bytes, data: bytes) -> None:
        """Return if one of `sender`'s keys signed `data`; raise MessageRejected otherwise."""
        try:
            require_sender(sender)
        except ValueError as error:
            raise MessageRejected("message_rejected", str(error)) from None
        for key in self._keys(sender):
            with suppress(InvalidSignature):
                key.verify(signature, data)
                return
        raise MessageRejected("message_rejected", f"the signature is not that of {sender}")

    def _keys(self, sender: str) -> tuple[Ed25519PublicKey, ...]:
        if sender in self._told:
            return self._told[sender]
        path = self._directory / f"{sender}.pub"
        try:
            now = path.stat()
            seen = (now.st_mtime_ns, now.st_size, now.st_ino)
            entry = self._entries.get(sender)
            if entry is None or entry.seen != seen:
                entry = self._entries[sender] = _Entry(seen=seen, keys=_read_keys(path, now.st_size))
        except FileNotFoundError:
            self._entries.pop(sender, None)
            raise MessageRejected("message_rejected", self._why_unknown(sender)) from None
        except (OSError, ValueError) as error:
            raise MessageRejected("message_rejected", f"cannot read {path}: {error}") from error
        return entry.keys

    def _why_unknown(self, sender: str) -> str:
        if (self._directory / f"{sender}{_REVOKED}").exists():
            return f"{sender} was removed and its key revoked; only with a new key can it come back"
        return f"no public key of {sender} in {self._directory}"

    def is_known(self, sender: str) -> bool:
        """Tell whether this folder has, or had, a key of that sender."""
        return any((self._directory / f"{sender}{suffix}").exists() for suffix in (".pub", _REVOKED))

    def public_text(self, sender: str) -> str:
        """Return the text of a sender's file, '' if there is none."""
        try:
            return (self._directory / f"{sender}.pub").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def revoke(self, sender: str) -> str:
        """Trust `sender` no more, from now on and durably; return the text of its file, which is put aside. Repeatable.

        Raises LivesnapError(settings_invalid) if this folder has never had a key of that sender, or cannot be changed.
        """
        require_sender(sender)
        path, aside = self._directory / f"{sender}.pub", self._directory / f"{sender}{_REVOKED}"
        try:
            with suppress(FileNotFoundError):
                os.rename(path, aside)
                _sync_folder(self._directory)
            return aside.read_text(errors="replace")
        except OSError as error:
            raise LivesnapError(
                "settings_invalid", f"revoking the key of {sender} in {self._directory}: {error}"
            ) from error


def _read_keys(path: Path, size_bytes: int) -> tuple[Ed25519PublicKey, ...]:
    """Read every PEM block of `path`; raise ValueError for a file that is too large or holds another kind of key."""
    if size_bytes > MAX_KEYRING_FILE_BYTES:
        raise ValueError(f"{size_bytes} bytes, at most {MAX_KEYRING_FILE_BYTES}")
    return _parse_keys(path.read_bytes())


def _parse_keys(text: bytes) -> tuple[Ed25519PublicKey, ...]:
    """Read every PEM block; raise ValueError for one that holds another kind of key."""
    keys = []
    for block in text.split(_PEM_END)[:-1]:
        key = load_pem_public_key(block + _PEM_END)
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("not an Ed25519 key")
        keys.append(key)
    return tuple(keys)


def write_public(directory: Path, key: SigningKey) -> None:
    """Put the public half of `key` into `directory` as `<sender>.pub`, unless it stands there already.

    A file that holds it beside others (a rotation under way) is left alone; any other is replaced in one step.
    """
    path = directory / f"{key.sender}.pub"
    with suppress(FileNotFoundError):
        if key.public_pem in path.read_bytes():
            return
    with _whole_file(path, key.public_pem, mode=0o644) as temporary:
        os.rename(temporary, path)


def replace_public(directory: Path, key: SigningKey) -> None:
    """Trust this key of its sender and no earlier one from now on: the file is replaced in one step. Raises OSError."""
    path = directory / f"{key.sender}.pub"
    with _whole_file(path, key.public_pem, mode=0o644) as temporary:
        os.rename(temporary, path)
    (directory / f"{key.sender}{_REVOKED}").unlink(missing_ok=True)


@contextmanager
def _whole_file(path: Path, content: bytes, *, mode: int) -> Iterator[Path]:
    """Yield a synced temporary file beside `path` that holds `content`; then remove it and sync the folder."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
