"""A clock that moves only when it is told to, or when somebody waits by it."""

from datetime import UTC, datetime, timedelta


class FakeClock:
    """Time of day and milliseconds since boot, moving together."""

    def __init__(self, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = now
        self._since_boot = timedelta(hours=1)

    def now(self) -> datetime:
        return self._now

    def boottime_ms(self) -> int:
        return self._since_boot // timedelta(milliseconds=1)

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._since_boot += timedelta(seconds=seconds)
