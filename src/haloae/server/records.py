"""What the service keeps of inspections, in one folder: their records, their images."""

import tempfile
from collections import deque
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from haloae.claims import hold_folder
from haloae.errors import DataError, OutputError
from haloae.server.history import Gap
from haloae.server.images import KeptImages
from haloae.server.inspection import Inspection
from haloae.server.inspector import Listener, Seen
from haloae.server.kinds import read_secret
from haloae.server.mirror import Mirror
from haloae.server.problems import Problems
from haloae.server.rows import Stored
from haloae.server.settings import KeepSettings
from haloae.server.store import Store

STORE, IMAGES = "store.db", "images"
RECENT = 50
"""Inspections that are known even where the store cannot be written."""


class Records:
    """Opened when the service starts, and closed when it has stopped.

    Args:
        folder: that everything is kept in; None: one that is gone afterwards.
        settings: what is kept, and for how long.
        problems: is told what cannot be kept.
    """

    store: Store
    images: KeptImages
    folder: Path

    def __init__(self, folder: Path | None, settings: KeepSettings, problems: Problems) -> None:
        self._given = folder
        self._settings, self._problems = settings, problems
        self._recent: deque[Inspection] = deque(maxlen=RECENT)
        self._opened = ExitStack()
        self._is_open = False
        self.mirror: Mirror | None = None
        """To the database of several boxes; None: there is none."""

    def open(self) -> None:
        """Open them, unless they are.

        Raises:
            OutputError: the folder or the store in it cannot be had, or another service has it.
            ConfigError: the database's address cannot be read.
            MissingExtraError: what the database needs is not installed.
        """
        if self._is_open:
            return
        settings = self._settings
        with ExitStack() as opening:  # what fails leaves nothing open
            self.folder = self._given or Path(
                opening.enter_context(tempfile.TemporaryDirectory(prefix="haloae-"))
            )
            opening.enter_context(hold_folder(self.folder))
            self.store = Store(self.folder / STORE, days=settings.days, most_bytes=settings.bytes)
            opening.callback(self.store.close)
            if settings.database is not None:
                url, box = read_secret(settings.database), settings.box
                self.mirror = opening.enter_context(
                    Mirror(
                        self.store.path,
                        url,
                        box=box,
                        on_problem=partial(self._problems.tell, "database"),
                    )
                )
            self._opened = opening.pop_all()
        self.images = KeptImages(self.folder / IMAGES, settings, self._problems)
        self.images.start()
        self._is_open = True

    def close(self, seconds: float) -> None:
        """Write what waits, images so long at most; nothing where they are not open."""
        if not self._is_open:
            return
        self._is_open = False
        self.images.close(seconds)
        self._opened.close()

    def listeners(self) -> dict[str, Listener]:
        """Of the service, by the names they are reported under."""
        return {"store": self._add, "images": lambda *both: self.images.keep(*both)}

    def _add(self, inspection: Inspection, _: Seen) -> None:
        self._recent.append(inspection)
        self.store.add(inspection)
        if words := self.store.state().words:
            raise OutputError(words)

    def last(self, count: int, recipe: str) -> list[Stored]:
        """A recipe's newest inspections, the newest first, whether they are stored yet or not."""
        found: list[Stored] = []
        with suppress(DataError):
            found = self.store.history.last(count, recipe=recipe)
        known = {stored.inspection.id for stored in found}
        newest = max((stored.inspection.time for stored in found), default=None)
        waiting = [
            Stored(0, inspection, None)
            for inspection in reversed(self._recent)
            if inspection.recipe == recipe
            and inspection.id not in known
            and (newest is None or inspection.time > newest)
        ]
        return (waiting + found)[:count]

    def gaps(self, count: int) -> list[Gap]:
        """What was lost, the newest first, whether that is on record yet or not."""
        found: list[Gap] = []
        with suppress(DataError):
            found = self.store.history.gaps(count)
        now = self.store.state().gap
        return ([now] if now else []) + found[: count - (now is not None)]

    def find(self, inspection: str) -> Stored | None:
        """The inspection of an id; None: there is none, or no more."""
        for recent in reversed(self._recent):
            if recent.id == inspection and self.store.state().problem:
                return Stored(0, recent, None)
        return self.store.history.one(inspection)
