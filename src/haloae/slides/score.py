"""Tiles of a slide, read ahead by threads and scored in batches, what has no content left out."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from haloae.data.source import DECODERS
from haloae.detection.parts import top_mean
from haloae.detection.predictor import Predictor
from haloae.errors import ImageError
from haloae.slides.journal import Journal, Tile
from haloae.slides.parts import as_unit, read_part
from haloae.slides.reader import Pixels, Slide
from haloae.slides.tiling import Tiling

BATCH_PIXELS = 8 * 256 * 256
"""That are scored at once: what a network makes of a batch meanwhile is many times as large."""
AHEAD = 2
"""Batches that are read ahead."""
Read = Pixels | ImageError


def score_tiles(
    detector: Predictor,
    slide: Slide,
    journal: Journal,
    numbers: Sequence[int],
    *,
    progress: Callable[[Iterable[Tile]], Iterable[Tile]] = iter,
) -> None:
    """Score those tiles that the journal does not have yet, and put them there.

    A tile that cannot be read, or that the detector makes nothing finite of, is kept as unscored,
    with its reason.

    Args:
        detector: the fitted detector.
        slide: the image.
        journal: of the slide.
        numbers: of tiles, in the order to go through them.
        progress: wraps what is scored where someone wants to watch.

    Raises:
        OutputError: the disk is full, or the like.
    """
    left = [number for number in numbers if number not in journal.tiles]
    for _ in progress(_Sized(len(left), _scored(detector, slide, journal, left))):
        pass


class _Sized:
    """Tiles as they are scored, and how many there will be: so that time left can be told."""

    def __init__(self, count: int, tiles: Iterator[Tile]) -> None:
        self.count = count
        self.tiles = tiles

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tile]:
        return self.tiles


def batch_of(tiling: Tiling) -> int:
    """Tiles that are scored at once."""
    return max(1, BATCH_PIXELS // math.prod(tiling.view.canvas))


def _scored(
    detector: Predictor, slide: Slide, journal: Journal, numbers: Sequence[int]
) -> Iterator[Tile]:
    tiling = journal.tiling
    read = _read_ahead(slide, tiling, numbers)
    while batch := list(islice(read, batch_of(tiling))):
        tiles = [tile for _, tile in batch if not isinstance(tile, ImageError)]
        measured = detector.measure(np.stack([*map(as_unit, tiles)])) if tiles else None
        place = 0
        for number, image in batch:
            if isinstance(image, ImageError):
                tile = Tile(number, math.nan, math.nan, str(image))
                journal.add(tile, None)
            else:
                assert measured is not None  # noqa: S101 - for the type checker
                core = tiling.delivered(number, measured.maps[place])
                tile = _tile(number, core, detector.config.detection.top_share)
                journal.add(tile, None if tile.reason else core)
                place += 1
            yield tile


def _tile(number: int, core: NDArray[np.float32], top_share: float) -> Tile:
    """What is not a number is above no threshold: it would pass for normal."""
    low, high = float(core.min()), float(core.max())
    if np.isfinite((low, high)).all() and low >= 0:
        return Tile(number, float(top_mean(core, top_share)), high)
    reason = f"the model makes a map from {low:g} to {high:g} of it"
    return Tile(number, math.nan, math.nan, reason)


def _read_ahead(slide: Slide, tiling: Tiling, numbers: Iterable[int]) -> Iterator[tuple[int, Read]]:
    """Whole tiles, in order; an error in a bad one's place.

    Args:
        slide: the image.
        tiling: of it.
        numbers: of tiles.
    """
    remaining = iter(numbers)
    waiting: deque[tuple[int, Future[Read]]] = deque()
    pool = ThreadPoolExecutor(DECODERS)
    try:
        while True:
            for number in islice(remaining, AHEAD * batch_of(tiling) + 1 - len(waiting)):
                waiting.append((number, pool.submit(_read, slide, tiling, number)))
            if not waiting:
                return
            number, future = waiting.popleft()
            yield number, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(slide: Slide, tiling: Tiling, number: int) -> Read:
    try:
        view = tiling.view
        return read_part(slide, *tiling.start(number), view.canvas, scale=view.scale)
    except ImageError as error:
        return error
