"""False alarms of whole slides, wanted against got, in worlds where good slides are drawn.

    python -m benchmarks.slide_rates        # a table on the screen

In each world a detector is calibrated on tiles of a few good slides, and new good slides are judged
by the highest of their tiles. A tile's peak is the highest of `CELLS` cells; its value that, or its
weighted mean. `benchmarks.results` puts it into docs/results.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainccinv, ndtri, stdtrit

from benchmarks.tables import Table, texts
from haloae.detection.calibration import Calibration
from haloae.detection.highest import threshold_of_highest
from haloae.outputs.tables import terminal

CELLS = 256
TILES = 384
"""Good tiles that are calibrated on, of all slides together."""
NEW_TILES = 1000
"""Of each new slide."""
MEANS_RATE = 0.05
"""At which weighted means and peaks are as rare."""
REPEATS, NEW = 200, 5
"""Detectors, and new slides that each of them judges."""
Peaks = Callable[[np.random.Generator, int], NDArray[np.float64]]


def rarities(rng: np.random.Generator, tiles: int) -> NDArray[np.float64]:
    """How rare the highest of a tile's cells is among single cells: the share that is above it."""
    return np.asarray(-np.expm1(np.log(rng.random(tiles)) / CELLS))


def gamma(rng: np.random.Generator, tiles: int) -> NDArray[np.float64]:
    """Cells are sums of eight squares of normal numbers, as a distance in a few directions is."""
    return np.asarray(gammainccinv(4, rarities(rng, tiles)))


def lognormal(rng: np.random.Generator, tiles: int) -> NDArray[np.float64]:
    """Logarithms of cells are normal."""
    return np.asarray(np.exp(-0.25 * ndtri(rarities(rng, tiles))))


def neighbours(rng: np.random.Generator, tiles: int) -> NDArray[np.float64]:
    """Gamma, and 32 tiles in a row have much in common."""
    common = np.convolve(rng.normal(size=tiles + 31), np.full(32, 32**-0.5), "valid")
    return np.asarray(gamma(rng, tiles) * np.exp(0.15 * common))


def folds(rng: np.random.Generator, tiles: int) -> NDArray[np.float64]:
    """Gamma, and one tile in twenty has something that makes it half as high again."""
    return gamma(rng, tiles) * np.where(rng.random(tiles) < 0.05, 1.5, 1.0)


def heavy(rng: np.random.Generator, tiles: int) -> NDArray[np.float64]:
    """Logarithms of cells are of Student's t, which is heavier than any power: a world too wild."""
    return np.asarray(np.exp(-0.1 * stdtrit(6, rarities(rng, tiles))))


def means(rng: np.random.Generator, tiles: int) -> NDArray[np.float64]:
    """Gamma, or a tile's mean, lognormal and of its own, weighted to be as rare as such a peak."""
    limit = float(gammainccinv(4, -np.expm1(np.log(1 - MEANS_RATE) / CELLS)))
    own = np.exp(0.4 * rng.normal(size=tiles)) * limit / np.exp(0.4 * -ndtri(MEANS_RATE))
    return np.asarray(np.maximum(gamma(rng, tiles), own))


WORLDS: dict[str, Peaks] = {
    each.__name__: each for each in (gamma, lognormal, neighbours, folds, means, heavy)
}
COLUMNS = (
    "world", "slides differ by", "calibrated on", "wanted", "got", "region by region", "threshold",
)  # fmt: skip


def rates(
    world: Peaks, differ: float, slides: int, rate: float, *, whole: bool, repeats: int = REPEATS
) -> tuple[float, float, float]:
    """False alarms, those of the threshold for one tile, and the threshold over a usual maximum.

    Args:
        world: draws the tiles of a slide.
        differ: standard deviation of the logarithm of what all tiles of a slide share.
        slides: good ones that are calibrated on.
        rate: wanted.
        whole: True: on all tiles of these slides; False: on `TILES` of them.
        repeats: detectors.
    """
    rng = np.random.default_rng([slides, round(1000 * rate), round(100 * differ)])

    def slide(tiles: int) -> NDArray[np.float64]:
        return np.asarray(world(rng, tiles) * np.exp(rng.normal(0, differ)))

    alarms, naive, shares = 0, 0, []
    for _ in range(repeats):
        good = [slide(NEW_TILES if whole else TILES // slides) for _ in range(slides)]
        peaks = tuple(np.sort(np.concatenate(good)).tolist()) if not whole else (1.0,) * 4
        highest = tuple(sorted(float(each.max()) for each in good)) if whole else ()
        calibration = Calibration(
            scores=peaks, peaks=peaks, false_alarm_rate=rate, slides=highest, tail="upper"
        )
        threshold = threshold_of_highest(calibration, NEW_TILES)
        new = np.array([slide(NEW_TILES).max() for _ in range(NEW)])
        alarms += int((new > threshold).sum())
        naive += int((new > calibration.pixel_threshold.value).sum())
        shares.append(threshold / float(np.median(new)))
    count = repeats * NEW
    return alarms / count, naive / count, float(np.median(shares))


def table() -> Table:
    """A row for each world and way to calibrate."""
    rows: list[list[Any]] = []
    for name, world in WORLDS.items():
        for differ in (0.0, 0.05):
            for slides, rate, whole in ((3, 0.01, False), (3, 0.05, False), (19, 0.05, True)):
                got, naive, share = rates(world, differ, slides, rate, whole=whole)
                on = f"{slides} whole slides" if whole else f"{TILES} regions of {slides} slides"
                alone = None if whole else naive
                rows.append([name, differ, on, rate, got, alone, share])
                print(*rows[-1], file=sys.stderr, flush=True)
    digits = {"slides differ by": 2, "wanted": 2, "got": 3, "region by region": 2, "threshold": 2}
    return Table(COLUMNS, rows, digits)


if __name__ == "__main__":
    print(terminal(texts(table()), COLUMNS))
