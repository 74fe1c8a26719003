"""What is wrong at the moment, and what a request is refused with."""

from datetime import UTC, datetime
from threading import Lock
from typing import NamedTuple

from haloae.errors import HaloaeError


class RefusedError(HaloaeError):
    """A request that is not carried out, with the status that HTTP has for it."""

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        """Seconds after which it may be tried again."""


class Problem(NamedTuple):
    """One thing that is wrong."""

    part: str
    """Of the service: ``store``, ``recipe bottle``, ``source camera1``, …"""
    message: str
    """A sentence."""
    since: datetime
    """When it was first said, without having been put right in between; UTC."""
    times: int
    """How often it was said since."""


class Problems:
    """What is wrong with parts of the service: it goes on, and says so wherever anyone looks."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._all: dict[str, Problem] = {}

    def report(self, part: str, message: object) -> None:
        """Say what is wrong with a part; what was said of it before is replaced."""
        with self._lock:
            old = self._all.get(part)
            since = datetime.now(UTC) if old is None else old.since
            times = 1 if old is None else old.times + 1
            self._all[part] = Problem(part, str(message), since, times)

    def clear(self, part: str) -> None:
        """The part works."""
        if part in self._all:
            with self._lock:
                self._all.pop(part, None)

    def tell(self, part: str, message: str | None) -> None:
        """Say what a look at a part has shown, unless that is said; None: the part works."""
        if message is None:
            self.clear(part)
        elif part not in self._all or self._all[part].message != message:
            self.report(part, message)

    def now(self) -> list[Problem]:
        """All that is wrong, oldest first."""
        with self._lock:
            return sorted(self._all.values(), key=lambda problem: problem.since)
