"""Whether an export says what its detector does."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haloae.data.views import WHITE, Size
from haloae.deploy.runtime import Runtime, as_input
from haloae.detector import Detector

COMPARED = 8
"""Images they are compared on."""
MANY, STRAY = 2000, 50
"""See `largest_but_strays`."""
TINY = 1e-12


class Parity(NamedTuple):
    """How far an exported model is from its detector, relative, on the images compared.

    Relative to the detector's own value, or to the highest of good images that were left out where
    that is higher: what a head was fitted to may score next to nothing.
    """

    score: float
    """Largest difference of a score."""
    map: float
    """Largest difference of a map's value, by the map's highest."""
    images: int


def compare(detector: Detector, runtime: Runtime, images: NDArray[np.float32]) -> Parity:
    """How far the two are apart on images, (n, 3, H, W) in [0, 1]."""
    exported = runtime.measure(images)
    if runtime.metadata.input_type == "uint8":  # of deeper images, it sees them rounded
        images = as_input(images, "uint8").astype(np.float32) / np.float32(WHITE)
    native = detector.measure(images)
    usual = detector.calibration
    peaks = np.maximum(native.maps.max(axis=(1, 2)), max(usual.peaks[-1], TINY))
    differing = np.abs(exported.maps - native.maps).reshape(len(images), -1)
    maps = largest_but_strays(differing) / peaks
    highest = np.maximum(native.scores, max(usual.scores[-1], TINY))
    scores = np.abs(exported.scores - native.scores) / highest
    return Parity(float(scores.max()), float(maps.max()), len(images))


def largest_but_strays(differing: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far maps differ: the largest of each one's differences, of many cells less strict.

    A cell may be as near to two good ones, and which of them is taken is rounding. Where one in
    `MANY` cells is, with its neighbours, they may differ by `STRAY` times as much as the others.

    >>> differences = np.full((1, 2000), 1e-6, np.float32)
    >>> differences[0, 7] = 1e-3
    >>> f"{largest_but_strays(differences)[0]:.0e}"
    '2e-05'

    Args:
        differing: (n, cells).

    Returns:
        (n,).
    """
    ascending = np.sort(differing, axis=1)
    few = differing.shape[1] // MANY
    found: NDArray[np.float32] = np.maximum(ascending[:, -1 - few], ascending[:, -1] / STRAY)
    return found if few else ascending[:, -1]


def textures(size: Size) -> NDArray[np.float32]:
    """Seeded stripes under noise that grows from image to image: (COMPARED, 3, *size)."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: size[0], : size[1]] / max(size)
    images = []
    for noise in np.linspace(0, 0.5, COMPARED):
        frequency = rng.uniform(10, 80, (3, 1, 1))
        stripes = 0.5 + 0.3 * np.sin(frequency * (rows + rng.uniform(-1, 1) * columns))
        images.append(stripes + noise * rng.normal(size=(3, *size)))
    # In whole 255ths, as most images are, so that an export that takes uint8 sees the same.
    rounded: NDArray[np.float32] = np.rint(np.stack(images).clip(0, 1) * WHITE).astype(np.float32)
    return rounded / np.float32(WHITE)
