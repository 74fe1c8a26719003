"""Parts of a huge image at any scale, and all of it made small."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from haloae.errors import ImageError
from haloae.slides.reader import Pixels, Slide

BLOCK = 1024
"""Side of the squares that an overview is made of, in pixels of the level that is read."""
SMALLEST = 16
"""Pixels of an overview that are read alone where others beside them cannot be."""
Edges = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def as_unit(pixels: Pixels) -> NDArray[np.float32]:
    """(h, w, 3) of whole numbers → (3, h, w) float32 in [0, 1]."""
    most = np.float32(np.iinfo(pixels.dtype).max)
    unit = np.empty((3, *pixels.shape[:2]), np.float32)
    return np.divide(pixels.transpose(2, 0, 1), most, out=unit, dtype=np.float32)


def read_part(slide: Slide, x: int, y: int, size: tuple[int, int], *, scale: float = 1.0) -> Pixels:
    """A part of the image at a scale; past the image's edges it is mirrored.

    Args:
        slide: the image.
        x: left edge, in pixels at that scale, as `y` and `size`; may be negative.
        y: top edge.
        size: height and width, of which some is within the image.
        scale: size that the image is scored at, in (0, 1] of its own.

    Raises:
        ImageError: a part of it is missing or damaged.
    """
    index = max(n for n, level in enumerate(slide.levels) if level.downsample <= 1.02 / scale)
    level = slide.levels[index]
    ratio = 1 / (scale * level.downsample)
    """Pixels of the level for one at the scale."""
    spans, around = [], []
    for start, side, most in ((y, size[0], level.height), (x, size[1], level.width)):
        # As many whole pixels of it as there are, in pixels of the level.
        own = max(0, start), min(start + side, max(1, round(most / ratio)))
        first = min(int(own[0] * ratio + 1e-6), most - 1)
        last = min(int(np.ceil(own[1] * ratio - 1e-6)), most)
        spans.append((first, last, own[0] * ratio - first, own[1] - own[0]))
        around.append((own[0] - start, start + side - own[1]))
    (top, bottom, dy, high), (left, right, dx, wide) = spans
    found = slide.read(index, left, top, right - left, bottom - top)
    if found.shape[:2] != (high, wide):
        box = (dx, dy, min(dx + wide * ratio, right - left), min(dy + high * ratio, bottom - top))
        found = _resized(found, (wide, high), box)
    return np.pad(found, (*around, (0, 0)), mode="symmetric") if any(map(any, around)) else found


def overview(slide: Slide, most: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The whole image, made small.

    Args:
        slide: the image.
        most: longest side in pixels, where the image is larger.

    Returns:
        (h, w, 3) uint8, and (h, w) True where a part of it could not be read.
    """
    longest = max(slide.levels[0][:2])
    fitting = [place for place, level in enumerate(slide.levels) if max(level[:2]) >= most]
    index = max(fitting, default=0)
    level = slide.levels[index]
    shrink = max(1.0, max(level[:2]) / most)
    width, height = (max(1, round(side / shrink)) for side in level[:2])
    small = np.zeros((height, width, 3), np.uint8)
    is_unread = np.zeros((height, width), np.bool_)
    step = max(1, int(BLOCK / shrink)) if longest > most else BLOCK
    for top in range(0, height, step):
        for left in range(0, width, step):
            place = slice(top, min(top + step, height)), slice(left, min(left + step, width))
            _fill(slide, index, place, small, is_unread)
    return small, is_unread


def _fill(
    slide: Slide,
    index: int,
    place: tuple[slice, slice],
    small: NDArray[np.uint8],
    is_unread: NDArray[np.bool_],
) -> None:
    """A part of an overview; where it cannot be read, its quarters, and theirs."""
    try:
        small[place] = _reduced(slide, index, place, small.shape[:2])
    except ImageError:
        rows, columns = place
        if max(rows.stop - rows.start, columns.stop - columns.start) <= SMALLEST:
            is_unread[place] = True
            return
        for high in _halves(rows):
            for wide in _halves(columns):
                _fill(slide, index, (high, wide), small, is_unread)


def _halves(part: slice) -> list[slice]:
    middle = (part.start + part.stop) // 2
    halves = slice(part.start, middle), slice(middle, part.stop)
    return [half for half in halves if half.stop > half.start]


def _reduced(
    slide: Slide, index: int, place: tuple[slice, slice], size: tuple[int, ...]
) -> NDArray[np.uint8]:
    """A part of an overview of some height and width, made of one level."""
    level = slide.levels[index]
    rows, columns = place
    spans = []
    for part, new, old in ((columns, size[1], level.width), (rows, size[0], level.height)):
        start, stop = part.start * old / new, part.stop * old / new
        first, last = int(start), min(old, int(np.ceil(stop)))
        spans.append((first, last, start - first, min(stop, last) - first))
    (left, right, *across), (top, bottom, *down) = spans
    found = slide.read(index, left, top, right - left, bottom - top)
    if found.dtype != np.uint8:
        found = (found >> 8).astype(np.uint8)
    box = (across[0], down[0], across[1], down[1])
    return _resized(found, (columns.stop - columns.start, rows.stop - rows.start), box)


def _resized(pixels: Pixels, size: tuple[int, int], box: Edges) -> Pixels:
    """Bilinear, the filter widened with the scale."""
    how = PILImage.Resampling.BILINEAR
    if pixels.dtype == np.uint8:
        picture = PILImage.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(picture.resize(size, how, box))
    channels = [
        PILImage.fromarray(np.ascontiguousarray(pixels[..., channel], np.float32)).resize(
            size, how, box
        )
        for channel in range(3)
    ]
    return np.stack([np.asarray(each).round() for each in channels], axis=-1).astype(pixels.dtype)
