"""Accounts at the broker as files: a password for each, and what the broker's administrator loads.

One folder, mode 0700. Every file is readable by its owner only:

    <account>.url       the broker's URL with the account and its password: the process's `broker_url_file`
    users.acl           Redis: all accounts with the hashes of their passwords, and no default user (an `aclfile`)
    definitions.json    RabbitMQ: users with hashes, permissions, exchanges, queues (`rabbitmqctl import_definitions`)

A password is made once; asking again keeps it, and adds to the other file what is new.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from common.images.files import write_whole
from common.messaging import access
from common.messaging.topology import topology
from common.messaging.urls import is_redis
from common.settings import private_text

ACL_FILE = "users.acl"
DEFINITIONS_FILE = "definitions.json"
_SUFFIX = ".url"


def new_password() -> str:
    """Return 192 random bits: too many to be guessed, so that a plain hash may be shown."""
    return secrets.token_hex(24)


def url_as(url: str, account: str, password: str) -> str:
    """Return the broker's URL `url` with this account in place of whoever stands there."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(account, safe='')}:{quote(password, safe='')}@{place}"))


def password_in(url: str) -> str:
    """Return the password in a broker's URL, '' if there is none."""
    return unquote(urlsplit(url).password or "")


def redis_database(url: str) -> int:
    """Return the number of the Redis database that a URL names, 0 if it names none."""
    path = urlsplit(url).path.strip("/")
    return int(path) if path.isdecimal() else 0


def virtual_host(url: str) -> str:
    """Return the virtual host in RabbitMQ's URL as kombu reads it: `/name` is `name`; nothing and `//` are `/`."""
    return unquote(urlsplit(url).path[1:]) or "/"


def write_accounts(folder: Path, url: str, accounts: Sequence[str]) -> tuple[Path, ...]:
    """Make the accounts that are missing and write all files anew; return those that were written.

    Safe to repeat; a crash leaves whole files, and repeating makes them agree. Raises ValueError for a name that is no
    account, LivesnapError(settings_invalid) for a file that others can read, OSError.
    """
    for account in accounts:
        access.require_account(account)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    made = []
    for account in accounts:
        path = folder / f"{account}{_SUFFIX}"
        if not path.exists():
            write_whole(path, url_as(url, account, new_password()) + "\n", mode=0o600)
            made.append(path)
    known = {path.name.removesuffix(_SUFFIX): private_text(path).strip() for path in sorted(folder.glob(f"*{_SUFFIX}"))}
    passwords = {account: password_in(text) for account, text in known.items()}
    name, text = (ACL_FILE, _acl(passwords, url)) if is_redis(url) else (DEFINITIONS_FILE, definitions(passwords, url))
    write_whole(folder / name, text, mode=0o600)
    return (*made, folder / name)


def _acl(passwords: dict[str, str], url: str) -> str:
    lines = ["user default reset"]
    for account, password in passwords.items():
        rules = access.redis_rules(account, database=redis_database(url))
        lines.append(" ".join(["user", account, "reset", "on", access.redis_hash(password), *rules]))
    return "\n".join(lines) + "\n"


def definitions(passwords: Mapping[str, str], url: str) -> str:
    """Return what RabbitMQ is to load (`rabbitmqctl import_definitions`): accounts with hashes, queues, exchanges."""
    vhost = virtual_host(url)
    document: dict[str, Any] = {
        "vhosts": [{"name": vhost}],
        "users": [rabbit_user(account, password) | {"name": account} for account, password in passwords.items()],
        "permissions": [rabbit_permissions(account) | {"user": account, "vhost": vhost} for account in passwords],
        **topology([account for account in passwords if account not in access.OTHERS], vhost),
    }
    return json.dumps(document, indent=1) + "\n"


def rabbit_user(account: str, password: str) -> dict[str, Any]:
    """Return a user as definitions and the management API hold it."""
    return {
        "password_hash": access.rabbit_hash(password, secrets.token_bytes(4)),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": ",".join(access.rabbit_permissions(account).tags),
    }


def rabbit_permissions(account: str) -> dict[str, str]:
    """Return an account's permissions as definitions and the management API hold them."""
    rights = access.rabbit_permissions(account)
    return {"configure": rights.configure, "write": rights.write, "read": rights.read}
