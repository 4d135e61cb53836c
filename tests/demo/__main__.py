"""`python -m tests.demo`: exit status 0 only if every chapter that could be told here came true."""

import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from tests.bed.need import need
from tests.demo import chapters, leftovers
from tests.demo.stage import Full, Stage, last_words, open_stage
from tests.demo.teller import Teller
from tests.e2e.kit import place

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130

STAGE = "The stage: libvirtd, livesnap, guests that write"
QUIESCED = "(a) A running machine, quiesced"
WITHOUT_AN_AGENT = "(b) A machine without a guest agent"
SHAREABLE = "(c) A disk that cannot be snapshotted"
FULL = "(d) The storage is full at the worst moment"
NOTHING_LEFT = "The end: nothing is left behind"


def main() -> int:
    """Tell the story, clean up, and return the exit status."""
    for number in ENDING:
        signal.signal(number, _interrupt)
    missing = need("guest", "redis-server")
    if missing:
        print(f"The demo cannot run here: {missing}.\nInstall it with: make tools", file=sys.stderr)
        return 1
    teller, begun = Teller(), time.monotonic()
    folder: list[Path] = []
    try:
        _tell(teller, folder)
    except KeyboardInterrupt:
        teller.say("Interrupted.")
        return INTERRUPTED
    finally:
        _ignore_endings()
        for path in folder:
            _check_nothing_is_left(teller, path)
    teller.summary(time.monotonic() - begun)
    return 0 if teller.all_true else 1


def _tell(teller: Teller, folder: list[Path]) -> None:
    """Tell the chapters, and if one broke the logs' last lines; stop what was started, which no second Ctrl-C disturbs.

    `folder` gets the folder below which everything of this run is.
    """
    with ExitStack() as stack:
        here = stack.enter_context(place())
        folder.append(here.root)
        try:
            with teller.chapter(STAGE):
                stage = stack.enter_context(open_stage(teller, here))
            if teller.all_true:
                _chapters(stage)
            if not teller.all_true:
                _show_logs(teller, here.root)
            teller.say("Stopping everything.")
        finally:
            _ignore_endings()


def _chapters(stage: Stage) -> None:
    teller = stage.teller
    with teller.chapter(QUIESCED):
        chapters.quiesced(stage)
    with teller.chapter(WITHOUT_AN_AGENT):
        chapters.without_an_agent(stage)
    with teller.chapter(SHAREABLE):
        chapters.shareable_disk(stage)
    if isinstance(stage.full, Full):
        with teller.chapter(FULL):
            chapters.full_file_system(stage, stage.full)
    else:
        teller.leave_out(FULL, stage.full)


def _show_logs(teller: Teller, folder: Path) -> None:
    for name, text in last_words(folder):
        teller.say(f"The last lines of {name}:")
        teller.show(text)


def _check_nothing_is_left(teller: Teller, folder: Path) -> None:
    with teller.chapter(NOTHING_LEFT):
        left = leftovers.found(folder)
        leftovers.remove(folder)
        teller.claim("no process, no mount and no folder of this demo is left", not left, left)


def _interrupt(number: int, _: object) -> None:
    _ignore_endings()
    raise KeyboardInterrupt(signal.Signals(number).name)


def _ignore_endings() -> None:
    """From here on everything is being stopped: being told to end once more must not leave half of it."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
