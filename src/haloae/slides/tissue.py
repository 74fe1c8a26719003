"""What of a huge image holds anything: the rest is glass, paper or the scanner's void."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageFilter

OVERVIEW = 2048
"""Longest side of the picture that content is found in, in pixels."""
PAPER_VALUE, PAPER_TINT = 200, 26
"""Paper is at least so bright in every channel, and its channels differ by so much at most."""
LEAST_PAPER = 0.02
"""Share of the picture; where less is as bright and flat, there is no background."""
FLAT = 6.0
"""Most that neighbouring pixels of paper differ, as a mean."""
UNLIKE_PAPER = 14
"""Levels of 255 that content differs from the paper in any channel."""
VOID = 5
"""Darkest that a sensor sees: below it in every channel is where nothing was scanned."""


def content_mask(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(h, w) True where an overview shows something.

    Background is what has the colour of the paper (bright, without tint, flat: the median of such
    pixels, if there are any to speak of), and what is black. Where there is neither, everything is
    content: a web, a wafer that fills the picture.

    >>> picture = np.full((40, 40, 3), 240, np.uint8)
    >>> picture[10:20, 10:20] = (180, 90, 150)
    >>> int(content_mask(picture).sum())
    140

    Args:
        picture: (h, w, 3) RGB, see `haloae.slides.parts.overview`.
    """
    low, high = picture.min(2), picture.max(2)
    grey = picture.astype(np.float32).mean(2)
    steps = np.zeros_like(grey)
    steps[:, 1:] = np.abs(np.diff(grey, axis=1))
    steps[1:] = np.maximum(steps[1:], np.abs(np.diff(grey, axis=0)))
    is_paper = (low >= PAPER_VALUE) & (high - low <= PAPER_TINT) & (steps <= FLAT)
    is_void = high <= VOID
    is_content = ~is_void
    if is_paper.mean() >= LEAST_PAPER:
        paper = np.median(picture[is_paper], axis=0)
        differs = np.abs(picture - paper.astype(np.float32)).max(2)
        is_content &= differs > UNLIKE_PAPER
    if is_content.all():
        return np.asarray(is_content)
    # Two of nine: dust of one pixel goes, and what stays grows by one, as edges are half paper.
    marked = PILImage.fromarray(is_content.astype(np.uint8) * 255)
    grown = marked.filter(ImageFilter.RankFilter(3, 7))
    return np.asarray((np.asarray(grown) > 0) & ~is_void)
