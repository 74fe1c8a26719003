"""Sinks at work: a queue and a thread each, so that none slows inspection or another sink."""

import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Literal

from haloae.data.images import shown_path
from haloae.errors import DataError, OutputError
from haloae.server.history import History
from haloae.server.inspection import Inspection
from haloae.server.kinds import BACK_OFF, BackOff, make_folder, one_line
from haloae.server.sinks.base import Connection, Item, Seen, ServiceState, Sink, UnwantedError
from haloae.server.sinks.waiting import Waiting

log = logging.getLogger(__name__)

MOST_WAITING = 20_000
"""Inspections that wait for one sink: at one a second, over five hours."""
MOST_WAITING_BYTES = 256 * 2**20
"""Of their images."""
LOOK = 0.2
"""Seconds between looks at whether to stop, where there is nothing to do."""
SinkStatus = Literal["starting", "running", "retrying", "stopped"]


@dataclass(frozen=True)
class SinkState:
    """How a sink is."""

    name: str
    status: SinkStatus = "starting"
    """``retrying``: it is broken, and what comes waits."""
    reason: str | None = None
    """Why it is retrying."""
    since: datetime | None = None
    """When it came to this status, UTC."""
    delivered: int = 0
    """Inspections, since the start."""
    refused: int = 0
    """Inspections that the other end did not want."""
    dropped: int = 0
    """Inspections for which there was no room in the queue."""
    waiting: int = 0
    """Inspections in the queue now."""
    trouble: str | None = None
    """Why what waits is not kept on disk, where it should be."""


class Sinks:
    """Hands every inspection on to all sinks, until it is stopped.

    Args:
        sinks: their settings.
        folder: for what waits, over a restart; made where it is missing.
        most_waiting: inspections that may wait for one sink; those beyond are dropped and counted.
        on_change: told each new status and reason, and when inspections are dropped, by any
            thread; must not wait.
        back_off: how long to wait between tries.

    Raises:
        ConfigError: a setting cannot be used.
        MissingExtraError: a package is not installed.
        OutputError: the folder cannot be made, or what waits in it cannot be read.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        folder: Path,
        *,
        most_waiting: int = MOST_WAITING,
        on_change: Callable[[SinkState], None] = lambda state: None,
        back_off: BackOff = BACK_OFF,
    ) -> None:
        for sink in sinks:
            sink.check()
        if sinks:
            make_folder(folder)
        self._workers = []
        for sink in sinks:
            file = folder / f"sink-{sink.name}.sqlite" if sink.keeps else None
            waiting = _waiting(file, most_waiting)
            self._workers.append(_Worker(sink, waiting, on_change, back_off))

    def catch_up(self, history: History, image_of: Callable[[str], bytes]) -> None:
        """Before the start: offer what was stored and has not come this far, as after a kill.

        Args:
            history: of the store, to which inspections go before they are offered.
            image_of: gives the image of the inspection of an id, for items that have lost theirs;
                nothing, where it is not kept.
        """
        for worker in self._workers:
            worker.catch_up(history, image_of)

    def start(self) -> None:
        """Start a thread for each."""
        for worker in self._workers:
            worker.start()

    def offer(self, inspection: Inspection, seen: Seen) -> None:
        """Put an inspection into every queue; returns at once, and never raises."""
        record = inspection.as_record()
        for worker in self._workers:
            worker.offer(Item(record, seen.given if worker.sink.wants_image else b""))

    def tell(self, state: ServiceState) -> None:
        """Let every sink that passes it on know how the service is; returns at once."""
        for worker in self._workers:
            worker.service = state

    def states(self) -> list[SinkState]:
        """How they are, in the order of their settings; at any time, from any thread."""
        return [worker.current() for worker in self._workers]

    def stop(self, timeout: float = 10.0) -> None:
        """Deliver what waits where it can be; the rest is kept on disk by sinks that do so.

        Args:
            timeout: seconds; a sink that hangs for longer is left behind.
        """
        for worker in self._workers:
            worker.closing.set()
        end = monotonic() + timeout
        for worker in self._workers:
            worker.end(max(0.0, end - monotonic()))


def _waiting(file: Path | None, most: int) -> Waiting:
    try:
        return Waiting(most=most, most_bytes=MOST_WAITING_BYTES, file=file)
    except (sqlite3.Error, ValueError) as error:
        raise OutputError(
            f"{shown_path(str(file))}: what waits there cannot be read ({one_line(error)}): check "
            f"the folder, or delete the file and lose what waits."
        ) from error


class _Worker(Thread):
    """One sink."""

    def __init__(
        self,
        sink: Sink,
        waiting: Waiting,
        on_change: Callable[[SinkState], None],
        back_off: BackOff,
    ) -> None:
        super().__init__(name=f"sink {sink.name}", daemon=True)  # it may hang in the network
        self.sink = sink
        self.closing = Event()
        self.service = ServiceState("starting")
        self._waiting, self._on_change, self._back_off = waiting, on_change, back_off
        self._pauses = back_off.pauses()
        self._state = SinkState(sink.name)
        self._dropped = 0
        self._image_of: Callable[[str], bytes] = lambda _: b""

    def current(self) -> SinkState:
        waiting = self._waiting
        return replace(
            self._state, dropped=self._dropped, waiting=len(waiting), trouble=waiting.trouble
        )

    def offer(self, item: Item) -> None:
        if not self._waiting.put(item):
            self._dropped += 1
            if self._dropped.bit_count() == 1:  # 1, 2, 4, 8, …: said, but not without end
                log.error("sink %s: no room, %d dropped so far.", self.sink.name, self._dropped)
                self._on_change(self.current())

    def catch_up(self, history: History, image_of: Callable[[str], bytes]) -> None:
        self._image_of = image_of
        if not self.sink.keeps:
            return
        try:
            if self._waiting.mark is None:
                self._waiting.begin_after(history.newest())
                return
            before = len(self._waiting)
            for inspection in history.after(self._waiting.mark):
                self.offer(Item(inspection.as_record()))
            if missed := len(self._waiting) - before:
                log.warning("sink %s: %d from before the start follow.", self.sink.name, missed)
        except DataError as error:
            log.warning("sink %s: what it may have missed is not known: %s", self.sink.name, error)

    def run(self) -> None:
        while True:
            try:
                with self.sink.opened() as connection:
                    self._deliver_all(connection)
                    break
            except Exception as error:  # networks and disks raise anything at all
                self._change("retrying", one_line(error))
            if self.closing.wait(next(self._pauses)):
                break
        self._change("stopped")

    def end(self, timeout: float) -> None:
        """Wait for it; what waits is written down, or said to be lost."""
        end = monotonic() + timeout
        if self.is_alive():
            self.join(timeout)
        self._waiting.close(max(1.0, end - monotonic()))
        if left := len(self._waiting):
            how = "stay on disk" if self.sink.keeps and not self._waiting.trouble else "are lost"
            log.warning("sink %s: %d not delivered, and %s.", self.sink.name, left, how)

    def _deliver_all(self, connection: Connection) -> None:
        """Until it is closing and nothing waits."""
        told = None
        while True:
            if told != (service := self.service):
                connection.tell(service)
                told = service
            entry = self._waiting.first(LOOK)
            if entry is None:
                self._change("running")
                if self.closing.is_set():
                    return
                continue
            try:
                connection.deliver(self._whole(entry.item))
                self._change("running", delivered=self._state.delivered + 1)
            except UnwantedError as error:
                name = entry.item.record["id"]
                log.error("sink %s: %s is not wanted: %s", self.sink.name, name, one_line(error))
                self._change("running", refused=self._state.refused + 1)
            self._waiting.remove_first()
            self._pauses = self._back_off.pauses()

    def _whole(self, item: Item) -> Item:
        """With its image, which items from before the start have lost."""
        if self.sink.wants_image and not item.size:
            return item._replace(given=self._image_of(item.record["id"]))
        return item

    def _change(self, status: SinkStatus, reason: str | None = None, **counts: int) -> None:
        before = self._state
        since = datetime.now(UTC) if status != before.status else before.since
        self._state = replace(before, status=status, reason=reason, since=since, **counts)  # type: ignore[arg-type]
        if (status, reason) != (before.status, before.reason):
            level = logging.WARNING if status == "retrying" else logging.INFO
            log.log(level, "sink %s: %s%s", before.name, status, f": {reason}" if reason else "")
            self._on_change(self.current())
