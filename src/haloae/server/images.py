"""Images of inspections on disk, a folder a day, each with its map: the oldest go.

They are written by a thread of its own, from which nothing that inspects waits. Where the disk is
full or gone, images are left out, which is said; the record of the inspection is the store's.
"""

import io
import re
import zlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Condition, Thread
from typing import NamedTuple, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from haloae.data.regions import Mask
from haloae.detection.prediction import Prediction
from haloae.errors import HaloaeError
from haloae.files import write_atomic
from haloae.server.database import NEAR
from haloae.server.days import Days
from haloae.server.inspection import Given, Inspection, bytes_of, file_of
from haloae.server.inspector import Seen
from haloae.server.problems import Problems
from haloae.server.settings import KeepSettings
from haloae.server.sinks.folder import SUFFIXES, suffix_of

PART = "stored images"
"""What is reported as wrong where they cannot be written."""
REVIEWED = "reviewed"
"""The folder of those that stay whatever their age."""
BREATH = 60.0
"""Seconds between two looks at what is too old, where nothing comes."""
MOST_WAITING = 2**28
"""Bytes of images that wait for the disk; of more, the oldest are left out."""
ID = re.compile("[0-9a-f]{32}")
OURS = re.compile(rf"{ID.pattern}\.[a-z]{{3,4}}")
"""What is removed when it is old: nothing that anybody else has put there."""
MAP = "npz"
LARGEST = 60_000.0
"""Pixel thresholds that a map's value is cut off at: float16 holds it."""
TINY = 1e-30
TORN = (OSError, ValueError, EOFError, KeyError, BadZipFile, zlib.error)
"""What reading a file raises that was removed meanwhile, or torn by a power cut."""


class KeptMap(NamedTuple):
    """Of what was said of an image, that which is drawn; see `Prediction`."""

    grid_map: NDArray[np.float32]
    """(h, w) in pixel thresholds."""
    threshold: float
    """Of the score, in pixel thresholds, too."""
    covered: tuple[float, float]
    cells: Mask | None
    packed: NDArray[np.uint8] | None
    """(H, ⌈W / 8⌉) which pixels count, a bit each; None: all."""

    @classmethod
    def of(cls, prediction: Prediction, threshold: float) -> Self:
        """That of a prediction, with the threshold of its score."""
        limit = max(prediction.pixel_threshold, TINY)
        grid_map = np.minimum(prediction.grid_map / limit, LARGEST).astype(np.float16)
        inside = prediction.inside
        return cls(
            grid_map.astype(np.float32),
            threshold / limit,
            prediction.covered,
            prediction.cells,
            None if inside is None else np.packbits(inside, axis=1),
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file with what `written` gives; one that is torn raises any of `TORN`."""
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            height, width = found["covered"].tolist()
            return cls(
                found["grid_map"].astype(np.float32),
                float(found["threshold"]),
                (height, width),
                found.get("cells"),
                found.get("packed"),
            )

    def written(self) -> bytes:
        """As a file."""
        buffer = io.BytesIO()
        values = self._asdict() | {"grid_map": self.grid_map.astype(np.float16)}
        there = {name: value for name, value in values.items() if value is not None}
        np.savez_compressed(buffer, **there)
        return buffer.getvalue()


class Kept(NamedTuple):
    """An image that was inspected, and its map."""

    data: bytes
    """The image file."""
    suffix: str
    map: KeptMap

    def prediction(self, inspection: Inspection, size: tuple[int, int]) -> Prediction:
        """What was said of the image, for who draws it; `size` is its (H, W)."""
        packed = self.map.packed
        inside = None if packed is None else np.unpackbits(packed, axis=1, count=size[1]) == 1
        return Prediction(
            score=inspection.score,
            p_value=inspection.p_value,
            is_anomalous=inspection.score > inspection.threshold,
            extrapolated=False,
            grid_map=self.map.grid_map,
            size=size,
            covered=self.map.covered,
            pixel_threshold=1.0,
            unusable=inspection.reason,
            threshold=self.map.threshold,
            inside=inside,
            cells=self.map.cells,
        )


class _Waiting(NamedTuple):
    """One that is not written yet."""

    inspection: Inspection
    given: Given
    map: KeptMap

    def kept(self) -> Kept:
        data = file_of(self.given)
        return Kept(data, suffix_of(data), self.map)


class KeptImages:
    """Writes them, from any thread, and reads them.

    Args:
        folder: theirs; it is made where it is missing.
        settings: what is kept, and how much of it.
        problems: is told where they cannot be written.
    """

    def __init__(self, folder: Path, settings: KeepSettings, problems: Problems) -> None:
        self.folder = folder
        self._settings, self._problems = settings, problems
        self._changed = Condition()
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._waiting_bytes = 0
        self._is_closed = False
        self._days = Days(folder, OURS)
        self._writer = Thread(target=self._write_all, name="images", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._writer.start()

    def close(self, seconds: float) -> None:
        """Write what waits, and wait for that so long at most."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._writer.join(seconds)

    def keep(self, inspection: Inspection, seen: Seen) -> None:
        """Have an image written. A listener of the service: returns at once."""
        if not self._is_wanted(inspection):
            return
        kept_map = KeptMap.of(seen.prediction, inspection.threshold)
        with self._changed:
            self._waiting[inspection.id] = _Waiting(inspection, seen.given, kept_map)
            self._waiting_bytes += bytes_of(seen.given)
            while self._waiting_bytes > MOST_WAITING:
                _, dropped = self._waiting.popitem(last=False)
                self._waiting_bytes -= bytes_of(dropped.given)
                self._problems.report(PART, "the disk is too slow: images are left out.")
            self._changed.notify()

    def read(self, inspection: Inspection) -> Kept | None:
        """An inspection's image; None: it was not kept, or is no more."""
        with self._changed:
            waiting = self._waiting.get(inspection.id)
        if waiting is not None:
            return waiting.kept()
        path = self.path_of(inspection)
        if path is None:
            return None
        with suppress(*TORN):
            kept_map = KeptMap.read(path.with_suffix(f".{MAP}"))
            return Kept(path.read_bytes(), path.suffix[1:], kept_map)
        return None

    def path_of(self, inspection: Inspection) -> Path | None:
        """Where an inspection's image lies; None: nowhere."""
        if not ID.fullmatch(inspection.id):
            return None
        folders = (self.folder / REVIEWED, self._day_of(inspection))
        paths = (
            folder / f"{inspection.id}.{suffix}"
            for folder in folders
            for suffix in dict.fromkeys(SUFFIXES.values())
        )
        return next((path for path in paths if path.is_file()), None)

    def hold(self, inspection: Inspection) -> None:
        """Keep an image for good, as somebody has said what it is: models are compared on it.

        Raises:
            OutputError: it cannot be written.
        """
        kept = self.read(inspection)
        if kept is not None:
            for path, data in _files(self.folder / REVIEWED, inspection, kept):
                write_atomic(path, data)

    def _is_wanted(self, inspection: Inspection) -> bool:
        if self._settings.images == "to_review":
            is_near = inspection.score >= NEAR * inspection.threshold
            return inspection.verdict != "normal" or is_near
        return self._settings.images == "all"

    def _day_of(self, inspection: Inspection) -> Path:
        return self.folder / f"{inspection.time.astimezone(UTC):%Y-%m-%d}"

    # How they are written

    def _write_all(self) -> None:
        with suppress(OSError):
            self._days.find()
        while True:
            self._attempt(self._make_room)
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed, BREATH)
                first = next(iter(self._waiting.values()), None)
            if first is not None:
                self._attempt(partial(self._write, first))
                with self._changed:
                    if self._waiting.pop(first.inspection.id, None):
                        self._waiting_bytes -= bytes_of(first.given)
            elif self._is_closed:
                return

    def _attempt(self, act: Callable[[], None]) -> None:
        """Do it; where the disk does not let us, say so."""
        try:
            act()
        except (HaloaeError, OSError) as error:
            self._problems.report(PART, error)

    def _write(self, waiting: _Waiting) -> None:
        inspection = waiting.inspection
        day = self._day_of(inspection)
        for path, data in _files(day, inspection, waiting.kept()):
            write_atomic(path, data, durable=False)
            self._days.add(day.name, len(data))
        self._problems.clear(PART)

    def _make_room(self) -> None:
        """Remove what is too old or too much, the oldest first."""
        first = f"{datetime.now(UTC) - timedelta(days=self._settings.image_days):%Y-%m-%d}"
        while (oldest := self._days.first) is not None:
            if self._days.bytes <= self._settings.image_bytes and oldest >= first:
                return
            self._days.remove_oldest()


def _files(folder: Path, inspection: Inspection, kept: Kept) -> list[tuple[Path, bytes]]:
    """The map first, so that no image is without one."""
    parts = ((MAP, kept.map.written()), (kept.suffix, kept.data))
    return [(folder / f"{inspection.id}.{suffix}", data) for suffix, data in parts]
