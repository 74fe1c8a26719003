"""The queue of images and the threads that inspect them, in batches.

Each thread takes one image and, while no other thread is idle, those of its recipe that wait or
come within the stated wait; decodes them, measures them at once, and hands each inspection to all
who listen before it is answered.
"""

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from math import ceil
from threading import Condition, Lock, Thread
from typing import NamedTuple

from haloae.data.images import Image, is_quick
from haloae.data.source import Decoded
from haloae.data.worker import MOST_WORKERS
from haloae.detection.calibration import Calibration
from haloae.detection.prediction import Prediction
from haloae.detection.predictor import Predictor
from haloae.errors import HaloaeError, ImageError
from haloae.server.boxes import boxes_of
from haloae.server.inspection import Given, Inspection
from haloae.server.problems import Problems, RefusedError
from haloae.server.recipes import Loaded, Recipes
from haloae.server.settings import QueueSettings

log = logging.getLogger(__name__)

STAGES = ("queue", "decode", "measure", "judge", "listeners")
"""What the seconds of an inspection are divided into."""
MOST_DECODED = 2**28
"""Bytes of decoded images that a thread holds before it measures them."""
QUICK = 0.05
"""Seconds an image is taken to need until one has been inspected."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What an inspection was made of, for who keeps or draws it."""

    given: Given
    image: Image
    """As decoded."""
    prediction: Prediction
    calibration: Calibration
    """Of the model."""
    began: float
    """When the image was taken in, in seconds since 1970."""
    seconds: dict[str, float]
    """By stage, see `STAGES`; the listeners' is that of those called before."""


class Finished(NamedTuple):
    """One image, inspected."""

    inspection: Inspection
    seen: Seen


Listener = Callable[[Inspection, Seen], None]
"""Is told of each inspection before it is answered, in the thread that made it: what must not be
lost is stored there, and what takes long has a queue of its own. What it raises is reported."""


@dataclass(eq=False)
class _Item:
    given: Given
    recipe: str
    source: str
    future: "Future[Finished]"
    began: float = field(default_factory=time.time)
    taken_in: float = field(default_factory=time.monotonic)
    image: Decoded | None = None
    """Where it was decoded by another process already."""
    detector: Predictor | None = None
    """Which it was decoded for."""
    seconds: dict[str, float] = field(default_factory=dict)


class Inspector:
    """Takes images in, and inspects them.

    Args:
        recipes: where models come from.
        settings: of the queue.
        problems: is told of listeners that fail.
    """

    def __init__(self, recipes: Recipes, settings: QueueSettings, problems: Problems) -> None:
        self.recipes = recipes
        self.settings = settings
        self.problems = problems
        self.listeners: dict[str, Listener] = {}
        """By the name they are reported under; add yours before `start`."""
        self._changed = Condition()
        self._telling = Lock()
        self._waiting: deque[_Item] = deque()
        self._places = 0
        self._idle = 0
        self._is_stopping = False
        self._mean = QUICK
        self._threads = [
            Thread(target=self._work, name=f"inspector-{number}", daemon=True)
            for number in range(settings.threads)
        ]
        self._apart = ThreadPoolExecutor(MOST_WORKERS, "apart")

    @property
    def queued(self) -> int:
        """Images taken in and not answered yet."""
        return self._places

    @property
    def is_taking(self) -> bool:
        """False: it is being stopped."""
        return not self._is_stopping

    def start(self) -> None:
        """Begin to inspect."""
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float) -> None:
        """Take nothing more in, finish what was taken, and wait for that so long at most."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._apart.shutdown(wait=False, cancel_futures=True)

    def submit(
        self, images: Sequence[Given], *, recipe: str, source: str
    ) -> "list[Future[Finished]]":
        """Take images in, all or none of them.

        Args:
            images: as they came.
            recipe: name of the recipe to inspect them with.
            source: ``request``, ``page``, or the name of a source.

        Returns:
            what comes of each: `Finished`, an `ImageError` where it cannot be decoded, or another
            `HaloaeError`. Cancel those that nobody waits for any more.

        Raises:
            RefusedError: 404, there is no such recipe; 429, the queue is full; 503, the service is
                being stopped.
        """
        self.recipes.find(recipe)
        items = [_Item(given, recipe, source, Future()) for given in images]
        with self._changed:
            if self._is_stopping:
                raise RefusedError(503, "the service is being stopped: ask again later.", 5)
            if self._places + len(items) > self.settings.places:
                wait = max(1, ceil(self._places * self._mean / self.settings.threads))
                raise RefusedError(
                    429,
                    f"{self._places} images are waiting, and there are {self.settings.places} "
                    f"places: ask again in {wait} s, or with fewer images at once.",
                    wait,
                )
            self._places += len(items)
            self._waiting += items
            self._changed.notify(len(items))
        for item in items:
            item.future.add_done_callback(self._leave)
        return [item.future for item in items]

    def _leave(self, _: object) -> None:
        with self._changed:
            self._places -= 1
            if self._is_stopping and not self._places:
                self._changed.notify_all()

    def _work(self) -> None:
        while batch := self._take():
            began = time.monotonic()
            try:
                self._inspect(batch)
            except Exception as error:  # whatever it is, the next batch may fare better
                log.exception("an inspection failed")
                self.problems.report("inspector", f"{type(error).__name__}: {error}")
                for item in batch:
                    _fail(item, RefusedError(500, "the inspection failed: see the log."))
            spent = (time.monotonic() - began) / len(batch)
            self._mean += (spent - self._mean) / 16

    def _take(self) -> list[_Item]:
        """The next batch, of one recipe; empty: there will be no more."""
        with self._changed:
            while not self._waiting:
                if self._is_stopping and not self._places:
                    return []
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            batch = [self._waiting.popleft()]
            until = time.monotonic() + self.settings.wait
            while True:
                self._gather(batch)
                left = until - time.monotonic()
                is_full = len(batch) >= self.settings.batch
                if is_full or self._idle or self._is_stopping or left <= 0:
                    break
                self._changed.wait(left)
            if self._waiting:
                self._changed.notify()  # this thread may have been woken in another's place
            return batch

    def _gather(self, batch: list[_Item]) -> None:
        """Move what waits for the same recipe to the batch, as far as other threads are busy."""
        for item in list(self._waiting):
            if len(batch) >= self.settings.batch or self._idle >= len(self._waiting):
                return
            if item.recipe == batch[0].recipe:
                self._waiting.remove(item)
                batch.append(item)

    def _inspect(self, batch: list[_Item]) -> None:
        now = time.monotonic()
        wanted = []
        for item in batch:
            item.seconds.setdefault("queue", now - item.taken_in)
            if now - item.taken_in > self.settings.seconds:
                _fail(item, RefusedError(504, "there was no time left to inspect the image.", 1))
            # Once it runs, it cannot be cancelled, and whoever gave up on it is not heard of.
            elif item.future.running() or (
                not item.future.done() and item.future.set_running_or_notify_cancel()
            ):
                wanted.append(item)
        if not wanted:
            return
        try:
            model = self.recipes.get(batch[0].recipe)
        except HaloaeError as error:
            for item in wanted:
                _fail(item, error)
            return
        ready: list[_Item] = []
        held = 0
        for item in wanted:
            if self._decode(item, model.detector) and item.image:
                ready.append(item)
                held += item.image.image.pixels.nbytes
            if held > MOST_DECODED:
                self._measure(ready, model)
                ready, held = [], 0
        if ready:
            self._measure(ready, model)

    def _decode(self, item: _Item, detector: Predictor) -> bool:
        """Whether the image is decoded now; one that may take long is decoded elsewhere."""
        if item.image is not None and item.detector is detector:
            return True
        if isinstance(item.given, bytes) and not is_quick(item.given):
            with suppress(RuntimeError):  # being stopped: then here
                self._apart.submit(self._decode_apart, item, detector)
                return False
        return self._decode_now(item, detector)

    def _decode_now(self, item: _Item, detector: Predictor) -> bool:
        began = time.monotonic()
        found = detector.decode(item.given)
        item.seconds["decode"] = time.monotonic() - began
        if isinstance(found, ImageError):
            _fail(item, found)
            return False
        item.image, item.detector = found, detector
        return True

    def _decode_apart(self, item: _Item, detector: Predictor) -> None:
        """Decode what another process does, and put it in the first place of the queue."""
        try:
            is_decoded = self._decode_now(item, detector)
        except Exception as error:
            log.exception("an image was not decoded")
            _fail(item, RefusedError(500, f"the image was not decoded ({type(error).__name__})."))
            return
        if is_decoded:
            with self._changed:
                self._waiting.appendleft(item)
                self._changed.notify()

    def _measure(self, items: Sequence[_Item], model: Loaded) -> None:
        began = time.monotonic()
        images = [item.image for item in items if item.image]
        try:
            predictions = model.detector.judge(images)
        except (HaloaeError, MemoryError) as error:
            for item in items:
                _fail(item, RefusedError(503, f"the image was not inspected ({error})."))
            return
        each = (time.monotonic() - began) / len(items)
        for item, image, prediction in zip(items, images, predictions, strict=True):
            item.seconds["measure"] = each
            if isinstance(prediction, ImageError):
                _fail(item, RefusedError(503, str(prediction)))
            else:
                item.future.set_result(self._finished(item, image.image, prediction, model))

    def _finished(
        self, item: _Item, image: Image, prediction: Prediction, model: Loaded
    ) -> Finished:
        began = time.monotonic()
        data = item.given
        calibration = model.detector.calibration
        inspection = Inspection(
            id=secrets.token_hex(16),
            time=datetime.fromtimestamp(item.began, UTC),
            source=item.source,
            recipe=item.recipe,
            model=model.sha256,
            image=sha256(data if isinstance(data, bytes) else data.data).hexdigest(),
            score=prediction.score,
            p_value=prediction.p_value,
            threshold=calibration.threshold.value,
            verdict=prediction.verdict,
            reason=prediction.unusable,
            boxes=boxes_of(prediction),
        )
        seen = Seen(item.given, image, prediction, calibration, item.began, item.seconds)
        item.seconds["judge"] = time.monotonic() - began
        self._tell(inspection, seen)
        return Finished(inspection, seen)

    def _tell(self, inspection: Inspection, seen: Seen) -> None:
        """All listeners hear of inspections in the same order, so that one knows what others do."""
        with self._telling:
            told = time.monotonic()
            for name, listener in self.listeners.items():
                seen.seconds["listeners"] = time.monotonic() - told
                try:
                    listener(inspection, seen)
                    self.problems.clear(name)
                except Exception as error:  # of any kind: inspection goes on
                    kind = "" if isinstance(error, HaloaeError) else f"{type(error).__name__}: "
                    self.problems.report(name, f"{kind}{error}")


def _fail(item: _Item, error: HaloaeError) -> None:
    with suppress(InvalidStateError):  # it has failed already, or nobody waits for it
        item.future.set_exception(error)
