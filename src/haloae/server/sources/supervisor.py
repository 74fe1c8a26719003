"""Sources at work: a thread each, so that one that breaks or hangs stops no other."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Literal

from haloae.errors import ImageError
from haloae.server.kinds import BACK_OFF, BackOff, make_folder, one_line
from haloae.server.sources.base import Source, Taken

log = logging.getLogger(__name__)

Inspect = Callable[[str, bytes, str], object]
"""Inspects an image: recipe, an image file's bytes, the source's name. Comes back when it has been
inspected; raises `ImageError` where the bytes are no image, anything else where it cannot now."""
SourceStatus = Literal["starting", "running", "retrying", "ended", "stopped"]


@dataclass(frozen=True)
class SourceState:
    """How a source is."""

    name: str
    recipe: str
    status: SourceStatus = "starting"
    """``running``: it works; ``retrying``: it is broken, or what it gives cannot be inspected now;
    ``ended``: nothing more will come, as at the end of a video."""
    reason: str | None = None
    """Why it is retrying."""
    since: datetime | None = None
    """When it came to this status, UTC."""
    inspected: int = 0
    """Images, since the start."""
    refused: int = 0
    """Images that could not be read."""
    dropped: int = 0
    """Images of a live source that could not be inspected in time."""
    last: datetime | None = None
    """When its last image was inspected, UTC."""


class Sources:
    """Takes images from all sources and has them inspected, until it is stopped.

    Args:
        sources: their settings.
        inspect: inspects an image; called by several threads at once.
        folder: for what sources keep over a restart; made where it is missing.
        on_change: told each new state, by the thread of that source; must not wait.
        back_off: how long to wait between tries.

    Raises:
        ConfigError: a setting cannot be used.
        MissingExtraError: a package is not installed.
        OutputError: the folder cannot be made.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        inspect: Inspect,
        folder: Path,
        *,
        on_change: Callable[[SourceState], None] = lambda state: None,
        back_off: BackOff = BACK_OFF,
    ) -> None:
        for source in sources:
            source.check()
        if sources:
            make_folder(folder)
        self._stop = Event()
        self._supervisors = [
            _Supervisor(
                source,
                inspect,
                folder / f"source-{source.name}",
                stop=self._stop,
                on_change=on_change,
                back_off=back_off,
            )
            for source in sources
        ]

    def start(self) -> None:
        """Start a thread for each."""
        for supervisor in self._supervisors:
            supervisor.start()

    def states(self) -> list[SourceState]:
        """How they are, in the order of their settings; at any time, from any thread."""
        return [supervisor.state for supervisor in self._supervisors]

    def stop(self, timeout: float = 10.0) -> None:
        """Take no more images, and wait until those in hand are inspected.

        Args:
            timeout: seconds; a source that hangs for longer is left behind.
        """
        self._stop.set()
        end = monotonic() + timeout
        for supervisor in self._supervisors:
            supervisor.join(max(0.0, end - monotonic()))
            if supervisor.is_alive():
                log.warning("source %s: hangs, and is left behind.", supervisor.state.name)


class _Supervisor(Thread):
    """One source."""

    def __init__(
        self,
        source: Source,
        inspect: Inspect,
        memory: Path,
        *,
        stop: Event,
        on_change: Callable[[SourceState], None],
        back_off: BackOff,
    ) -> None:
        super().__init__(name=f"source {source.name}", daemon=True)  # it may hang in a driver
        self.state = SourceState(source.name, source.recipe)
        self._source, self._inspect, self._memory = source, inspect, memory
        self._stop_all, self._on_change, self._back_off = stop, on_change, back_off
        self._pauses = back_off.pauses()

    def run(self) -> None:
        while not self._stop_all.is_set():
            try:
                if self._take_all():
                    self._change("ended")
                    return
            except Exception as error:  # drivers raise anything at all
                self._change("retrying", one_line(error))
                self._stop_all.wait(next(self._pauses))
        self._change("stopped")

    def _take_all(self) -> bool:
        """Inspect what the source gives; True: nothing more will come."""
        images = self._source.images(self._stop_all, self._memory)
        try:
            taken = next(images)
            while not self._stop_all.is_set():
                self._pauses = self._back_off.pauses()
                if taken is None:
                    self._change("running")
                    taken = next(images)
                    continue
                is_image = self._inspected(taken)
                if is_image is None:
                    return False
                taken = images.send(is_image)
        except StopIteration:
            return not self._stop_all.is_set()
        finally:
            images.close()
        return False

    def _inspected(self, taken: Taken) -> bool | None:
        """True: it was inspected, or dropped; False: it is no image; None: stopped before."""
        pauses = self._back_off.pauses()
        while not self._stop_all.is_set():
            try:
                self._inspect(self._source.recipe, taken.image, self._source.name)
            except ImageError as error:
                log.warning("source %s: %s: %s", self.state.name, taken.name, one_line(error))
                self._change("running", refused=self.state.refused + 1)
                return False
            except Exception as error:  # the model is gone, the queue is full: as it may be
                dropped = self.state.dropped + self._source.live
                self._change("retrying", one_line(error), dropped=dropped)
                if self._source.live:
                    return True
                self._stop_all.wait(next(pauses))
                continue
            now = datetime.now(UTC)
            self._change("running", inspected=self.state.inspected + 1, last=now)
            return True
        return None

    def _change(self, status: SourceStatus, reason: str | None = None, **counts: object) -> None:
        before = self.state
        is_new = (status, reason) != (before.status, before.reason)
        since = datetime.now(UTC) if status != before.status else before.since
        self.state = replace(before, status=status, reason=reason, since=since, **counts)  # type: ignore[arg-type]
        if is_new:
            level = logging.WARNING if status == "retrying" else logging.INFO
            because = f": {reason}" if reason else ""
            log.log(level, "source %s: %s%s", before.name, status, because)
            self._on_change(self.state)
