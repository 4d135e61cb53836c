"""`python -m common.messaging.start_worker hostagent.worker host@h1 4`: one worker with so many threads.

The same as `celery -A hostagent.worker worker -P threads -c 4 -n host@h1 --without-gossip --without-mingle
--without-heartbeat --loglevel WARNING`, by the same class of Celery; both may be used, also beside each other. This one
leaves out Celery's command line with its plugins (Flower is one, where it is installed) and the libraries for
terminals that they load: 0.2 s of CPU at each start, and 12 MiB for as long as the process lives.
"""

import gc
import sys
from collections.abc import Sequence
from importlib import import_module

from common.errors import LivesnapError


def main(arguments: Sequence[str]) -> int:
    """Run the worker of a module's Celery app until it is told to stop; return its exit status.

    A crash leaves what a crash of `celery worker` leaves: messages that nobody has acknowledged, and no file.
    """
    if len(arguments) != 3 or not arguments[2].isdecimal():
        sys.stderr.write(f"start_worker takes a module, a node's name and a number of threads, not {arguments}\n")
        return 2
    module, node, threads = arguments
    try:
        gc.disable()  # nothing that imports make is garbage: looking for it takes a tenth of their time
        app = import_module(module).app
        gc.freeze()
        gc.enable()
    except LivesnapError as error:
        sys.stderr.write(f"{node} does not start: {error}\n")
        return 1
    worker = app.Worker(
        hostname=node,
        pool_cls="threads",
        concurrency=int(threads),
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
