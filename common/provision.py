"""What a fleet's administrator does once per process: its key, its account at the broker, and (RabbitMQ) its queue.

    python -m common.provision key SENDER KEY_FILE KEYS_DIR     a new private key, its public half into KEYS_DIR
    python -m common.provision queues QUEUE…                    declare them at the broker of the settings
    python -m common.provision accounts FOLDER ACCOUNT…         a password for each account, in files below FOLDER:
                                                                ACCOUNT.url for its process, and all of them as Redis'
                                                                users.acl or RabbitMQ's definitions.json

A sender is `manager`, `spm.<pool>` or `host.<host>`: the name of its queue. The broker's URL comes from
`LIVESNAP_BROKER_URL` or the settings file, never from an argument: it may hold a password. An
account is named as its sender, or it is `flower`, `client` or `registrar` (common/messaging/access.py says what each
may do).
"""

import sys
from pathlib import Path

from common.errors import LivesnapError
from common.messaging.accounts import write_accounts
from common.messaging.broker import declare_queues
from common.messaging.keys import SigningKey, require_sender, write_public
from common.settings import SharedSettings


def main(words: list[str]) -> int:
    """Carry out one command line; return its exit status: 0 done, 1 failed (nothing overwritten), 2 wrong usage."""
    try:
        match words:
            case ["key", sender, key_file, keys_dir]:
                write_public(Path(keys_dir), SigningKey.generate(Path(key_file), sender))
            case ["queues", *queues] if queues:
                for queue in queues:
                    require_sender(queue)
                declare_queues(SharedSettings().broker_url, queues)
            case ["accounts", folder, *accounts] if accounts:
                for path in write_accounts(Path(folder), SharedSettings().broker_url, accounts):
                    sys.stdout.write(f"{path}\n")
            case _:
                sys.stderr.write(__doc__ or "")
                return 2
    except (LivesnapError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
