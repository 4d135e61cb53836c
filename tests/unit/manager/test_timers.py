"""When the timers are looked at: in time for those that this process sets."""

from datetime import timedelta
from threading import Event, Thread
from typing import Any, cast

from manager.timers import Timers
from tests.fakes.clock import FakeClock
from tests.wait import eventually

NEXT = timedelta(seconds=60)


class Counted(Timers):
    """Finds nothing, for a minute."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(cast("Any", None), cast("Any", None), clock)
        self.sweeps = 0
        self.during: Any = lambda: None

    def sweep(self) -> timedelta:
        self.sweeps += 1
        self.during()
        return NEXT


def test_only_a_timer_that_runs_out_before_the_next_look_is_looked_for() -> None:
    clock, stop = FakeClock(), Event()
    timers = Counted(clock)
    thread = Thread(target=timers.run, args=(stop,))
    thread.start()
    eventually(lambda: timers.sweeps == 1, timeout_s=10, what="the first look")
    eventually(lambda: timers.looks_at == clock.now() + NEXT, timeout_s=10, what="its end")
    timers.wake(clock.now() + 2 * NEXT)
    timers.wake(clock.now() + NEXT)
    timers.wake(clock.now() + NEXT / 2)
    eventually(lambda: timers.sweeps == 2, timeout_s=10, what="the second look")
    eventually(lambda: timers.looks_at == clock.now() + NEXT, timeout_s=10, what="its end")
    timers.wake()
    eventually(lambda: timers.sweeps == 3, timeout_s=10, what="a look at once")
    stop.set()
    timers.wake()
    thread.join(10)
    assert not thread.is_alive()
    assert timers.sweeps == 3


def test_a_timer_that_is_set_during_a_look_may_have_been_missed_by_it() -> None:
    clock, stop = FakeClock(), Event()
    timers = Counted(clock)
    late = [2 * NEXT]
    timers.during = lambda: timers.wake(clock.now() + late.pop()) if late else stop.set()
    thread = Thread(target=timers.run, args=(stop,))
    thread.start()
    eventually(stop.is_set, timeout_s=10, what="the look that was made once more")
    timers.wake()
    thread.join(10)
    assert timers.sweeps == 2
