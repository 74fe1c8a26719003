"""What an image looks like as a whole: light, contrast, focus, noise, colour, what stands where.

Of what the network sees, in NumPy alone.
"""

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
    """

    def __init__(self, count: int) -> None:
        self.step = max(1, math.ceil(count / MOST))
        self.seen: dict[int, Look] = {}
        """By the image's number."""

    def watch(self, images: Iterable[View]) -> Iterator[View]:
        """The images, in the order of their numbers, each looked at the first time."""
        for number, image in enumerate(images):
            if number % self.step == 0 and number not in self.seen:
                self.seen[number] = look_at(image)
            yield image


def look_at(image: View) -> Look:
    """Measure an image."""
    # Every other row and column is enough, but of neighbours that are compared.
    few = np.ascontiguousarray(image[:, ::2, ::2])
    red, green, blue = blocks = np.stack([_in_blocks(channel) for channel in few])
    bright = blocks.mean(0)
    tints = np.stack([red - green, blue - green, blocks.max(0) - blocks.min(0)])
    grey = (image[0] + image[1] + image[2]) / np.float32(3)
    mean = float(bright.mean())
    contrast, flatter = _mean_and_less(np.square(grey[::2, ::2] - np.float32(mean)))
    beside = grey[1:-1:2, :-2:2] + grey[1:-1:2, 2::2] + grey[:-2:2, 1:-1:2] + grey[2::2, 1:-1:2]
    laplacian = np.abs(4 * grey[1:-1:2, 1:-1:2] - beside)
    sharpness, blurrier = _mean_and_less(laplacian)
    # Sampled, as a median takes as long as all the rest.
    sample = laplacian.ravel()[:: max(1, laplacian.size // SAMPLE)]
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
    values["burnt_out"] = float((few >= BURNT_OUT).all(0).mean())
    spots["burnt_out"] = SPOT
    level = bright + np.float32(LEVEL)
    return Look(values, spots, tints / level, np.log(level))


def _mean_and_less(picture: NDArray[np.float32]) -> tuple[float, float]:
    """The mean of what is not negative, and what it would be with a spot of zeros."""
    blocks = np.sort(_in_blocks(picture))
    return float(blocks.mean()), float(blocks[: round(GRID**2 * (1 - SPOT))].sum()) / GRID**2


def _at(values: NDArray[np.float32], *shares: float) -> list[float]:
    """The values that such shares of them are below."""
    places = [min(int(values.size * share), values.size - 1) for share in shares]
    found: list[float] = np.partition(values, places)[places].tolist()
    return found


def _log(value: float) -> float:
    return math.log(value + LEVEL)


def _in_blocks(picture: NDArray[np.float32]) -> NDArray[np.float32]:
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
