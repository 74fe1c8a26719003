"""The contact sheet: thumbnails of the images that are to be looked at first."""

import heapq
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image as PILImage
from PIL import ImageDraw

from haloae.data.images import shown_path
from haloae.detection.prediction import Prediction, Verdict
from haloae.outputs.pictures import (
    INK,
    PAPER,
    SHADE,
    THUMBNAIL,
    VERDICT_COLOURS,
    draw_sign,
    encoded,
    font,
    readable,
)

SHEET_SIZE = 40
"""Images on a contact sheet."""
COLUMNS, MIN_COLUMNS = 8, 4


class Ranked(NamedTuple):
    """One of the images to look at; they sort by score, the later one first where equal."""

    is_unusable: bool
    """These are above all others."""
    score: float
    order: int
    """Falls from image to image, so that no two are equal."""
    name: str
    """One printable line."""
    p_value: float
    verdict: Verdict
    thumbnail: PILImage.Image | None
    unusable: str | None = None
    """See `Prediction.unusable`."""


class Highest:
    """The unusable and then the highest-scored images of any number, in constant memory."""

    def __init__(self, keep: int = SHEET_SIZE) -> None:
        self._keep = keep
        self._heap: list[Ranked] = []
        self._seen = 0

    def add(
        self,
        name: str,
        prediction: Prediction,
        thumbnail: Callable[[], PILImage.Image | None] = lambda: None,
    ) -> None:
        """Consider one image; its thumbnail is made only where it is among the highest so far."""
        self._seen += 1
        rank = prediction.unusable is not None, prediction.score
        if len(self._heap) == self._keep and rank <= self._heap[0][:2]:
            return
        entry = Ranked(
            *rank,
            -self._seen,
            shown_path(name),
            prediction.p_value,
            prediction.verdict,
            thumbnail(),
            prediction.unusable,
        )
        heapq.heappush(self._heap, entry)
        if len(self._heap) > self._keep:
            heapq.heappop(self._heap)

    def ranked(self) -> list[Ranked]:
        """Unusable and highest score first; of equal scores, the earlier image."""
        return sorted(self._heap, reverse=True)


def draw_sheet(ranked: Sequence[Ranked], headline: str) -> bytes:
    """Thumbnails in the order given, row by row, each with verdict, score and name.

    Returns:
        a JPEG.
    """
    columns = min(COLUMNS, max(MIN_COLUMNS, len(ranked)))
    gap, size, border = 14, 18, 6
    box = THUMBNAIL + 4 * border
    cell_width, cell_height, head = box + gap, box + round(3.2 * size) + gap, 60
    rows = math.ceil(len(ranked) / columns)
    canvas = PILImage.new("RGB", (columns * cell_width + gap, rows * cell_height + head), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((gap, head // 2), headline, INK, font(28), "lm")
    for number, entry in enumerate(ranked):
        left, top = gap + number % columns * cell_width, head + number // columns * cell_height
        colour = VERDICT_COLOURS[entry.verdict]
        draw.rectangle((left, top, left + box - 1, top + box - 1), SHADE)
        if entry.thumbnail is not None:
            small = entry.thumbnail
            place = (left + (box - small.width) // 2, top + (box - small.height) // 2)
            canvas.paste(small, place)
        frame = (left, top, left + box - 1, top + box - 1)
        draw.rectangle(frame, outline=colour, width=2 if entry.verdict == "normal" else border)
        text, middle = top + box + 6, size // 2
        draw_sign(draw, (left, text, size), entry.verdict)
        words = f"{entry.verdict} {readable(entry.score)}"
        draw.text((left + size + 6, text + middle), words, INK, font(size), "lm")
        # Codes for what Pillow's own font has no glyphs for.
        name = entry.name.encode("ascii", "backslashreplace").decode("ascii")
        name = _shortened(name, size - 3, box)
        draw.text((left, text + round(1.4 * size) + middle), name, INK, font(size - 3), "lm")
    return encoded(canvas)


def _shortened(name: str, size: int, width: int) -> str:
    """The name, its middle left out where it does not fit; its end is what tells images apart."""

    def cut(keep: int) -> str:
        head = keep // 3
        return f"{name[:head]}…{name[head - keep :]}"

    measure = font(size).getlength
    if measure(name) <= width:
        return name
    keeps = range(1, len(name))
    fitting = bisect_right(keeps, float(width), key=lambda keep: float(measure(cut(keep))))
    return cut(max(1, fitting))
