"""Chooses what the network should see of images, by a sample of the good ones (docs/views.md)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haloae.config import Place, ViewKind
from haloae.data.images import image_from
from haloae.data.source import ImageLike
from haloae.data.views import Size, resize
from haloae.errors import DataError, ImageError

SAMPLE = 32
"""Images that are looked at, evenly spread."""
SMALL = 32
"""Side of the square that they are looked at on, for what stands where."""
SQUARE = 1.15
"""Longer side over shorter, up to which squashing to a square changes little."""
ALIGNED = 0.5
"""Share of the variance within images that is the same in all of them, from which on places count
as aligned."""


class Sample(NamedTuple):
    """What a choice is made by."""

    sizes: list[Size]
    small: NDArray[np.float32]
    """(n, SMALL, SMALL) brightness."""

    @property
    def aspect(self) -> float:
        """The usual width over height: one that there is."""
        ratios = sorted(width / height for height, width in self.sizes)
        return ratios[(len(ratios) - 1) // 2]

    @property
    def largest(self) -> Size:
        """Largest height and largest width."""
        heights, widths = zip(*self.sizes, strict=True)
        return max(heights), max(widths)


def sample(images: Sequence[ImageLike]) -> Sample:
    """Look at some of the images; those that cannot be read are left out.

    Raises:
        DataError: none can be read.
    """
    count = min(len(images), SAMPLE)
    sizes, small, error = [], [], None
    for number in range(count):
        try:
            image = image_from(images[number * len(images) // count])
        except ImageError as unread:
            error = unread
            continue
        sizes.append((image.height, image.width))
        small.append(resize(image, SMALL).mean(0))
    if not sizes:
        raise DataError(f"no good image can be read: {error}" if error else "there are no images.")
    return Sample(sizes, np.stack(small))


def kind_for(found: Sample, image_size: int) -> tuple[ViewKind, str]:
    """Which view, and why."""
    long = max(found.aspect, 1 / found.aspect)
    if long > SQUARE:
        return "fit", f"images are usually {long:.2f} times as long as wide"
    return "squash", f"images are usually square, to a factor of {long:.2f}"


def place_for(found: Sample) -> tuple[Place, str]:
    """Whether places count, and why."""
    share = shared_variance(found.small)
    place: Place = "aligned" if share >= ALIGNED else "anywhere"
    return place, f"{share:.0%} of what varies within images is the same in all of them"


def shared_variance(small: NDArray[np.float32]) -> float:
    """Share of the variance within images that is the same in all, 0 to 1.

    Args:
        small: (n, h, w).
    """
    n = len(small)
    each = float(small.var(axis=(1, 2)).mean())
    mean = float(small.mean(0).var())
    # What the mean of n images that have nothing in common still varies by.
    unlike = (mean - each / n) / (1 - 1 / n) if n > 1 else mean
    return min(max(unlike / each, 0.0), 1.0) if each > 0 else 1.0
