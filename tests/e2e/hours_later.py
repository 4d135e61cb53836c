"""Takes commands as one more agent process of a host does, whose clock is hours ahead, and prints its answers.

    python -m tests.e2e.hours_later HOURS < commands        (with the agent's own settings in LIVESNAP_CONFIG)

Commands are a JSON list of (sender, signed text, signature), as they crossed the wire. Journal, locks, libvirt and
storage are the host's own; only the clock is not, and the answers go to standard output instead of the broker.
"""

import json
import sys
from datetime import datetime, timedelta

from common import logs
from common.clock import SystemClock
from common.messaging.keys import Keyring, SigningKey
from common.messaging.queues import host_queue
from common.messaging.shell import Shell
from common.messaging.wire import Sealed
from hostagent.agent import Agent
from hostagent.settings import HostSettings
from hostagent.worker import handlers


class LateClock:
    """A clock that is ahead."""

    def __init__(self, by: timedelta) -> None:
        self._by = by

    def now(self) -> datetime:
        """Return a moment in the future."""
        return SystemClock().now() + self._by


def main() -> None:
    """Take every command; print the list of (task, signed text) of what was answered."""
    logs.configure(log_format="text", process="hours-later")
    settings, clock = HostSettings(), LateClock(timedelta(hours=float(sys.argv[1])))
    said: list[tuple[str, str]] = []

    def publish(_queue: str, task: str, sealed: Sealed, _readable: str) -> None:
        said.append((task, sealed.body))

    me = host_queue(settings.host)
    agent = Agent(settings, clock, lambda report: None)
    key, keyring = SigningKey.load(settings.key_file, me), Keyring(settings.keys_dir)
    shell = Shell(me, key, keyring, clock, handlers=handlers(agent), publish=publish)
    agent.start()
    for command in json.load(sys.stdin):
        shell.handle(*command)
    agent.stop()
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main()
