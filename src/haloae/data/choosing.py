"""Chooses what the network should see of images, by a sample of the good ones (docs/views.md)."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from haloae.config import Place, ViewKind
from haloae.data.source import ImageLike, opened
from haloae.data.views import Size, View
from haloae.errors import DataError, ImageError, MaskError

SAMPLE = 32
"""Images that are looked at, evenly spread."""
SHRUNK = 8.0
"""Pixels of an image that would be seen as one, each way, from which on it is cut into tiles."""
SQUARE = 1.15
"""Longer side over shorter, up to which squashing to a square bends little."""
USUAL = 0.9
"""Share of images that are seen in one shape, below which they have no places in common."""


class Sample(NamedTuple):
    """What a choice is made by."""

    sizes: list[Size]
    """Heights and widths of good images."""

    @property
    def aspect(self) -> float:
        """The usual width over height: one that there is."""
        ratios = sorted(width / height for height, width in self.sizes)
        return ratios[(len(ratios) - 1) // 2]

    @property
    def long(self) -> float:
        """Longer side over shorter, usually."""
        return max(self.aspect, 1 / self.aspect)

    @property
    def largest(self) -> Size:
        """Largest height and largest width."""
        heights, widths = zip(*self.sizes, strict=True)
        return max(heights), max(widths)


def sample(images: Sequence[ImageLike]) -> Sample:
    """Look at some of the images; those that cannot be read are left out.

    Raises:
        DataError: none can be read.
        MaskError: a mask cannot be read, does not fit its image, or leaves nothing of it.
    """
    count = min(len(images), SAMPLE)
    sizes: list[Size] = []
    error: ImageError | None = None
    for number in range(count):
        try:
            image, *_ = opened(images[number * len(images) // count])
        except MaskError:
            raise
        except ImageError as unread:
            error = unread
            continue
        sizes.append((image.height, image.width))
    if not sizes:
        raise DataError(f"no good image can be read: {error}" if error else "there are no images.")
    return Sample(sizes)


def kind_for(found: Sample, image_size: int, fitted: View) -> tuple[ViewKind, str]:
    """Which view, and why.

    Args:
        found: of the good images.
        image_size: side of the square that they would be squashed to.
        fitted: what would be seen of them, were they fitted.
    """
    shrunk = math.sqrt(float(np.median([math.prod(size) for size in found.sizes]))) / image_size
    if shrunk > SHRUNK:
        return "tiles", f"else {shrunk:.1f} pixels of an image would be seen as one, each way"
    if found.long <= SQUARE:
        return "squash", f"images are usually square, to a factor of {found.long:.2f}"
    usual = in_one_shape(found, fitted)
    if usual < USUAL:
        return "squash", f"fitted, {usual:.0%} of the images would have places in common"
    return "fit", f"images are usually {found.long:.2f} times as long as they are short"


def place_for(found: Sample, view: View) -> tuple[Place, str]:
    """Whether places count, and why.

    Args:
        found: of the good images.
        view: what is seen of them.
    """
    usual = in_one_shape(found, view)
    place: Place = "aligned" if usual >= USUAL else "anywhere"
    return place, f"{usual:.0%} of the images are seen in one shape"


def in_one_shape(found: Sample, view: View) -> float:
    """Share of the images that are seen in the most usual shape."""
    shapes = Counter(view.size_of(size) for size in found.sizes)
    return max(shapes.values()) / len(found.sizes)
