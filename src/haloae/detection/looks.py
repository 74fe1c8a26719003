"""What an image looks like as a whole: light, contrast, focus, noise, colour, what stands where.

Of what the network sees, in NumPy alone.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from haloae.data.regions import Mask

GRID = 16
"""Blocks a side that the picture is averaged in."""
SPOT = 1 / 6
"""Share of the picture that may be anything."""
LEVEL = 4 / 255
"""Added before a logarithm: differences of a few grey levels in the dark are nothing."""
SAMPLE = 2000
"""Pixels that the noise is measured on, at least."""
BURNT_OUT = 0.99
"""From this value on, a pixel in all of its channels is as bright as can be told."""
MOST = 4000
"""Images that are looked at, of any number; 4 kB of each are kept meanwhile."""
CENTRE = np.s_[1:-1:2, 1:-1:2]
BESIDE = (np.s_[1:-1:2, :-2:2], np.s_[1:-1:2, 2::2], np.s_[:-2:2, 1:-1:2], np.s_[2::2, 1:-1:2])
"""Pixels that are compared with the four around each."""
View = NDArray[np.float32]
"""(3, S, S) RGB in [0, 1], S at least 32: an image as the network sees it."""


class Look(NamedTuple):
    """What an image looks like as a whole, in brightness, the mean of its channels, and colour."""

    values: dict[str, float]
    """``dark``, ``bright``: logarithm of the brightness that a third of the blocks stays below, and
    that a third is above. ``burnt_out``: share of pixels that are white. ``contrast``: logarithm of
    the brightness's standard deviation over its mean. ``sharpness``, ``noise``: logarithm of its
    mean and of its median absolute Laplacian."""
    spots: dict[str, float]
    """How far a spot could move each of them towards its limit."""
    tints: NDArray[np.float32]
    """(3, GRID²) of each block, in shares of its brightness: how much brighter than green red and
    blue are, and the highest channel than the lowest."""
    layout: NDArray[np.float32]
    """(GRID²,) logarithm of each block's brightness."""


class Looks:
    """What good images look like, taken as they go by for another purpose, in constant memory.

    Args:
        count: of the images; of more than `MOST` those are looked at that lie evenly.
        inside: gives, for an image's number, (S, S) bool, True where a pixel counts; None: all do.
    """

    def __init__(
        self, count: int, inside: Callable[[int], Mask | None] = lambda number: None
    ) -> None:
        self.inside = inside
        self.step = max(1, math.ceil(count / MOST))
        self.seen: dict[int, Look] = {}
        """By the image's number."""

    def watch(self, images: Iterable[View]) -> Iterator[View]:
        """The images, in the order of their numbers, each looked at the first time."""
        for number, image in enumerate(images):
            if number % self.step == 0 and number not in self.seen:
                self.seen[number] = look_at(image, self.inside(number))
            yield image


def look_at(image: View, inside: Mask | None = None) -> Look:
    """Measure an image.

    Args:
        image: as the network sees it.
        inside: (S, S) bool, True where a pixel counts; None: all do.
    """
    # Every other row and column is enough, but of neighbours that are compared.
    few, blocks_of = np.ascontiguousarray(image[:, ::2, ::2]), _Blocks(inside, np.s_[::2, ::2])
    red, green, blue = blocks = np.stack([blocks_of(channel) for channel in few])
    bright = blocks.mean(0)
    tints = np.stack([red - green, blue - green, blocks.max(0) - blocks.min(0)])
    grey = (image[0] + image[1] + image[2]) / np.float32(3)
    mean = float(bright.mean())
    contrast, flatter = _mean_and_less(blocks_of(np.square(grey[::2, ::2] - np.float32(mean))))
    beside = [grey[place] for place in BESIDE]
    laplacian = np.abs(4 * grey[CENTRE] - (beside[0] + beside[1] + beside[2] + beside[3]))
    edges_of = _Blocks(inside, CENTRE, *BESIDE)
    sharpness, blurrier = _mean_and_less(edges_of(laplacian))
    # Sampled, as a median takes as long as all the rest.
    known = edges_of.counted(laplacian)
    sample = known[:: max(1, known.size // SAMPLE)]
    darker, dark, light, lighter = _at(bright, 1 / 3 - SPOT, 1 / 3, 2 / 3, 2 / 3 + SPOT)
    noise, noisier = _at(sample, 1 / 2, 1 / 2 / (1 - SPOT))
    pairs = {
        "dark": (_log(dark), _log(darker)),
        "bright": (_log(light), _log(lighter)),
        "contrast": (_log(math.sqrt(contrast)) - _log(mean), _log(math.sqrt(flatter)) - _log(mean)),
        "sharpness": (_log(sharpness), _log(blurrier)),
        "noise": (_log(noise), _log(noisier)),
    }
    values = {name: value for name, (value, _) in pairs.items()}
    spots = {name: abs(spotted - value) for name, (value, spotted) in pairs.items()}
    values["burnt_out"] = float(blocks_of.counted(np.all(few >= BURNT_OUT, axis=0)).mean())
    spots["burnt_out"] = SPOT
    level = bright + np.float32(LEVEL)
    return Look(values, spots, tints / level, np.log(level))


def _mean_and_less(blocks: NDArray[np.float32]) -> tuple[float, float]:
    """The mean of what is not negative, and what it would be with a spot of zeros."""
    blocks = np.sort(blocks)
    return float(blocks.mean()), float(blocks[: round(GRID**2 * (1 - SPOT))].sum()) / GRID**2


def _at(values: NDArray[np.float32], *shares: float) -> list[float]:
    """The values that such shares of them are below."""
    places = [min(int(values.size * share), values.size - 1) for share in shares]
    found: list[float] = np.partition(values, places)[places].tolist()
    return found


def _log(value: float) -> float:
    return math.log(value + LEVEL)


class _Blocks:
    """Means of pictures over blocks, of pixels that count.

    A block that none of them is in stands in for one of the others, each as often.

    Args:
        inside: (S, S) bool of the image, True where a pixel counts; None: all do.
        places: which of the image's pixels a value of the pictures is made of.
    """

    def __init__(self, inside: Mask | None, *places: tuple[slice, slice]) -> None:
        self.inside: Mask | None = None
        if inside is None:
            return
        counts = np.logical_and.reduce([inside[place] for place in places])
        # Where the region is so thin that no pixel has its neighbours in it, all of them count.
        self.inside = counts if counts.any() else np.ones_like(counts)
        self.weights = _averaged(self.inside.astype(np.float32))
        known = np.flatnonzero(self.weights)
        self.order = np.arange(GRID**2)
        empty = np.flatnonzero(self.weights == 0)
        self.order[empty] = known[np.arange(len(empty)) % len(known)]

    def __call__(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        """(H, W) → (GRID²,)."""
        if self.inside is None:
            return _averaged(picture)
        sums = _averaged(picture * self.inside)[self.order]
        return np.asarray(sums / self.weights[self.order], np.float32)

    def counted(self, picture: NDArray[Any]) -> NDArray[Any]:
        """The values that count, in a row."""
        return picture.ravel() if self.inside is None else picture[self.inside]


def _averaged(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W) → (GRID²,) means of its blocks."""
    rows, columns = (_averaging(side) for side in picture.shape)
    return np.asarray(rows @ picture @ columns.T, np.float32).ravel()


@lru_cache
def _averaging(side: int) -> NDArray[np.float32]:
    """(GRID, side): the weights of the pixels in each block's mean; blocks may share pixels."""
    weights = np.zeros((GRID, side), np.float32)
    for block in range(GRID):
        weights[block, block * side // GRID : -(-(block + 1) * side // GRID)] = 1
    return np.asarray(weights / weights.sum(1, keepdims=True))
