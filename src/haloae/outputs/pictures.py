"""Pictures for people: an image with its defects outlined, and a sheet of the highest scores."""

import heapq
import io
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from scipy.ndimage import maximum_filter

from haloae.data.images import Image, shown_path
from haloae.detection.calibration import Calibration
from haloae.detection.predictor import Prediction

MIN_WIDTH = 480
"""Narrower images are enlarged by a whole number, and no caption is narrower, in pixels."""
MAX_SIDE = 2048
"""Larger images are reduced to it, in pixels."""
SHEET_SIZE = 40
"""Images on a contact sheet."""
THUMBNAIL, COLUMNS, MIN_COLUMNS = 200, 8, 4
HOTTEST, HEAT_ALPHA = 3.0, 0.45
"""In pixel thresholds, where the heat, which starts at 1, is full; and how opaque that is."""
YELLOW, RED = (255, 215, 0), (225, 0, 40)
DARK, BRIGHT = (0, 0, 0), (90, 255, 255)
PAPER, INK, SHADE = (255, 255, 255), (25, 25, 25), (205, 205, 205)
# Vermilion and blue of Okabe and Ito, told apart by everyone; shape, word and width say it too.
VERDICT_COLOURS = {True: (213, 94, 0), False: (0, 114, 178)}
TINY = 1e-30

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Pixels = NDArray[np.uint8]


class Ranked(NamedTuple):
    """One of the highest-scored images; they sort by score, the later image first where equal."""

    score: float
    order: int
    """Falls from image to image, so that no two are equal."""
    name: str
    """One printable line."""
    p_value: float
    is_anomalous: bool
    thumbnail: PILImage.Image | None


class Highest:
    """The highest-scored images of any number, in constant memory."""

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
        if len(self._heap) == self._keep and prediction.score <= self._heap[0].score:
            return
        entry = Ranked(
            prediction.score,
            -self._seen,
            shown_path(name),
            prediction.p_value,
            prediction.is_anomalous,
            thumbnail(),
        )
        heapq.heappush(self._heap, entry)
        if len(self._heap) > self._keep:
            heapq.heappop(self._heap)

    def ranked(self) -> list[Ranked]:
        """Highest score first; of equal scores, the earlier image."""
        return sorted(self._heap, reverse=True)


def verdict(is_anomalous: bool) -> str:
    """The word for it."""
    return "anomalous" if is_anomalous else "normal"


def readable(value: float) -> str:
    """Four digits, or all before the point, without an exponent where that can be."""
    return f"{value:.0f}" if 1000 <= value < 1e7 else f"{value:.4g}"


def draw_overlay(image: Image, prediction: Prediction, calibration: Calibration) -> bytes:
    """An image with heat where it is unusual, its defects outlined, and a caption below it.

    Returns:
        a JPEG. The image is enlarged to a width of at least `MIN_WIDTH`, as far as `MAX_SIDE`
        allows, or reduced to that; a margin holds the outlines at its edges.
    """
    picture = _marked(image, prediction, calibration, least=MIN_WIDTH, most=MAX_SIDE)
    width = max(picture.width, MIN_WIDTH, picture.height // 3)
    size = max(17, min(width // 24, max(picture.size) // 40))
    gap = size // 2
    parts = [
        verdict(prediction.is_anomalous).upper(),
        f"score {readable(prediction.score)}",
        f"threshold {readable(calibration.threshold.value)}",
        f"p-value {prediction.p_value:.2g}",
    ]
    lines = _wrap(parts, size, width - 3 * gap - size)
    strip = len(lines) * round(1.4 * size) + gap
    canvas = PILImage.new("RGB", (width, picture.height + strip), PAPER)
    canvas.paste(SHADE, (0, 0, width, picture.height))
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    top = picture.height + gap
    _sign(draw, (gap, top, size), prediction.is_anomalous)
    for number, line in enumerate(lines):
        place = (2 * gap + size, top + number * round(1.4 * size) + size // 2)
        draw.text(place, line, INK, _font(size), "lm")
    return _jpeg(canvas)


def thumbnail(image: Image, prediction: Prediction, calibration: Calibration) -> PILImage.Image:
    """The same marks on a picture of `THUMBNAIL` pixels at most, and its margin."""
    return _marked(image, prediction, calibration, least=THUMBNAIL, most=THUMBNAIL)


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
    draw.text((gap, head // 2), headline, INK, _font(28), "lm")
    for number, entry in enumerate(ranked):
        left, top = gap + number % columns * cell_width, head + number // columns * cell_height
        colour = VERDICT_COLOURS[entry.is_anomalous]
        draw.rectangle((left, top, left + box - 1, top + box - 1), SHADE)
        if entry.thumbnail is not None:
            small = entry.thumbnail
            place = (left + (box - small.width) // 2, top + (box - small.height) // 2)
            canvas.paste(small, place)
        frame = (left, top, left + box - 1, top + box - 1)
        draw.rectangle(frame, outline=colour, width=border if entry.is_anomalous else 2)
        text, middle = top + box + 6, size // 2
        _sign(draw, (left, text, size), entry.is_anomalous)
        words = f"{verdict(entry.is_anomalous)} {readable(entry.score)}"
        draw.text((left + size + 6, text + middle), words, INK, _font(size), "lm")
        name = _shortened(_drawable(entry.name), size - 3, box)
        draw.text((left, text + round(1.4 * size) + middle), name, INK, _font(size - 3), "lm")
    return _jpeg(canvas)


def _marked(
    image: Image, prediction: Prediction, calibration: Calibration, *, least: int, most: int
) -> PILImage.Image:
    width, height = _view_size(image.width, image.height, least=least, most=most)
    limit = max(calibration.pixel_threshold.value, TINY)
    pixels = _heated(_visible(image, (width, height)), prediction.anomaly_map, limit)
    line = max(1, min(math.ceil(max(width, height) / 400), min(width, height) // 16))
    return PILImage.fromarray(_outlined(pixels, prediction.defects, line))


def _view_size(width: int, height: int, *, least: int, most: int) -> tuple[int, int]:
    longest = max(width, height)
    if longest > most:
        return max(1, round(width * most / longest)), max(1, round(height * most / longest))
    factor = min(math.ceil(least / min(width, least)), most // longest)
    return width * factor, height * factor


def _visible(image: Image, size: tuple[int, int]) -> Pixels:
    """(height, width, 3) of the size; deeper images are brightened, most of them being dim."""
    box = PILImage.Resampling.BOX
    if image.pixels.dtype == np.uint8:
        return np.asarray(PILImage.fromarray(image.pixels).resize(size, box))
    channels = [
        PILImage.fromarray(np.ascontiguousarray(image.pixels[..., channel])).resize(size, box)
        for channel in range(3)
    ]
    small = np.stack([np.asarray(channel) for channel in channels], axis=-1)
    white = max(float(np.percentile(small, 99.9)), TINY)
    visible: Pixels = (np.clip(small, 0, white) * (255 / white)).round().astype(np.uint8)
    return visible


def _heated(pixels: Pixels, anomaly_map: NDArray[np.float32], limit: float) -> Pixels:
    """Yellow to red where the map is above the pixel threshold; elsewhere unchanged."""
    capped = np.clip(anomaly_map, 0, HOTTEST * limit)
    size = pixels.shape[1], pixels.shape[0]
    ratio = np.asarray(PILImage.fromarray(capped).resize(size, PILImage.Resampling.BILINEAR))
    ratio = ratio / np.float32(limit)
    strength = ((ratio - 1) / (HOTTEST - 1)).clip(0, 1)[..., None]
    hot = strength[..., 0] > 0
    strength = strength[hot]
    colour = np.asarray(YELLOW) * (1 - strength) + np.asarray(RED) * strength
    alpha = HEAT_ALPHA * np.sqrt(strength)
    heated = pixels.copy()
    heated[hot] = (pixels[hot] * (1 - alpha) + colour * alpha).round()
    return heated


def _outlined(pixels: Pixels, defects: NDArray[np.bool_], line: int) -> Pixels:
    """A bright line between dark ones around each defect, all of it outside; with a margin."""
    height, width = pixels.shape[:2]
    margin = 3 * line
    edges = ((margin, margin), (margin, margin))
    framed = np.pad(pixels, (*edges, (0, 0)))
    framed[:margin] = framed[-margin:] = SHADE
    framed[:, :margin] = framed[:, -margin:] = SHADE
    # Any defect pixel of a cell counts, so that none vanishes when a large image is reduced.
    rows = np.arange(height) * defects.shape[0] // height
    columns = np.arange(width) * defects.shape[1] // width
    small = np.logical_or.reduceat(np.logical_or.reduceat(defects, rows, 0), columns, 1)
    if not small.any():
        return framed
    inside = np.pad(small, edges)
    near, middle, far = (
        maximum_filter(inside, 2 * reach * line + 1, mode="constant") for reach in (1, 2, 3)
    )
    framed[far & ~inside] = DARK
    framed[middle & ~near] = BRIGHT
    return framed


def _sign(draw: ImageDraw.ImageDraw, place: tuple[int, int, int], is_anomalous: bool) -> None:
    """A triangle for anomalous, a disc for normal, at (left, top, size)."""
    left, top, size = place
    colour = VERDICT_COLOURS[is_anomalous]
    if is_anomalous:
        corners = [(left, top + size), (left + size, top + size), (left + size // 2, top)]
        draw.polygon(corners, colour)
    else:
        draw.ellipse((left, top, left + size, top + size), colour)


def _wrap(parts: Sequence[str], size: int, width: int) -> list[str]:
    """The parts side by side, on as many lines as the width asks for."""
    lines = [parts[0]]
    for part in parts[1:]:
        longer = f"{lines[-1]}   {part}"
        if _font(size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def _shortened(name: str, size: int, width: int) -> str:
    """The name, its middle left out where it does not fit; its end is what tells images apart."""
    if len(name) > 2 * width:
        name = name[:width] + name[-width:]
    shown, keep = name, len(name)
    while keep > 1 and _font(size).getlength(shown) > width:
        keep -= 1
        head = keep // 3
        shown = f"{name[:head]}…{name[head - keep :]}"
    return shown


def _drawable(name: str) -> str:
    """The name with codes for what Pillow's own font has no glyphs for."""
    return name.encode("ascii", "backslashreplace").decode("ascii")


@lru_cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _jpeg(picture: PILImage.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=90, subsampling=0)
    return buffer.getvalue()
