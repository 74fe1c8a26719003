"""All that is drawn of an image, in one set of colours: overlay, contact sheet, report's views."""

import io
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFilter, ImageFont

from haloae.data.images import Image
from haloae.data.regions import any_in_cells
from haloae.detection.calibration import Calibration
from haloae.detection.prediction import Prediction, Verdict

Colour = tuple[int, int, int]

MIN_WIDTH = 480
"""Narrower images are enlarged by a whole number, and no caption is narrower, in pixels."""
MAX_SIDE = 2048
"""Larger images are reduced to it, in pixels."""
THUMBNAIL = 200
"""Longer side of the picture of an image among many, in pixels."""
VIEW, VIEW_LINE = 256, 2
"""Longer side of a report's view and width of its lines, in pixels."""
HEAT = [(255, 215, 0), (225, 0, 40)]
"""Yellow to red, laid over an image from one to `HOTTEST` pixel thresholds."""
HOTTEST, HEAT_ALPHA = 3.0, 0.45
RAMP = [(9, 9, 35), (72, 18, 107), (150, 40, 100), (222, 82, 55), (251, 165, 30), (252, 253, 191)]
"""Of a map alone, from 0 to `RAMP_END` pixel thresholds: brighter is more unusual, in grey too."""
RAMP_END = 2.0
FOUND, TRUE, CASING = (90, 255, 255), (255, 122, 0), (0, 0, 0)
"""Outlines of what was found and of the true defect, and the dark lines that set them off."""
DIMMED = 0.45
"""Share of its brightness that is left of what does not count."""
PAPER, INK, SHADE = (255, 255, 255), (25, 25, 25), (205, 205, 205)
# Vermilion and blue of Okabe and Ito, told apart by everyone; shape, word and width say it too.
VERDICT_COLOURS: dict[Verdict, Colour] = {
    "anomalous": (213, 94, 0),
    "normal": (0, 114, 178),
    "unusable": (90, 90, 90),
}
TINY = 1e-30

PictureFormat = Literal["jpeg", "png"]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Pixels = NDArray[np.uint8]


class Views(NamedTuple):
    """One image, its map, and the image with what was found and what is true outlined."""

    image: PILImage.Image
    anomaly_map: PILImage.Image
    outlined: PILImage.Image


def readable(value: float) -> str:
    """Four digits, or all before the point, without an exponent where that can be."""
    return f"{value:.0f}" if 1000 <= value < 1e7 else f"{value:.4g}"


def draw_overlay(
    image: Image,
    prediction: Prediction,
    calibration: Calibration,
    *,
    format: PictureFormat = "jpeg",
) -> bytes:
    """An image with heat where it is unusual, its defects outlined, and a caption below it.

    Returns:
        a JPEG or PNG. The image is enlarged to a width of at least `MIN_WIDTH`, as far as
        `MAX_SIDE` allows, or reduced to that; a margin holds the outlines at its edges.
    """
    picture = _marked(image, prediction, least=MIN_WIDTH, most=MAX_SIDE)
    width = max(picture.width, MIN_WIDTH, picture.height // 3)
    size = max(17, min(width // 24, max(picture.size) // 40))
    gap = size // 2
    parts = [
        prediction.verdict.upper(),
        f"score {readable(prediction.score)}",
        f"threshold {readable(calibration.threshold.value)}",
        f"p-value {prediction.p_value:.2g}",
    ]
    room = width - 3 * gap - size
    lines = _wrap(parts, size, room, gap="   ")
    lines += _wrap((prediction.unusable or "").split(), size, room, gap=" ")
    strip = len(lines) * round(1.4 * size) + gap
    canvas = PILImage.new("RGB", (width, picture.height + strip), PAPER)
    canvas.paste(SHADE, (0, 0, width, picture.height))
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    top = picture.height + gap
    draw_sign(draw, (gap, top, size), prediction.verdict)
    for number, line in enumerate(lines):
        place = (2 * gap + size, top + number * round(1.4 * size) + size // 2)
        draw.text(place, line, INK, font(size), "lm")
    return encoded(canvas, format)


def draw_marked(image: Image, prediction: Prediction, *, most: int = MAX_SIDE) -> bytes:
    """The picture of `draw_overlay` alone: a JPEG of `most` pixels a side and its margin."""
    return encoded(_marked(image, prediction, least=min(MIN_WIDTH, most), most=most))


def thumbnail(image: Image, prediction: Prediction) -> PILImage.Image:
    """The same marks on a picture of `THUMBNAIL` pixels at most, and its margin."""
    return _marked(image, prediction, least=THUMBNAIL, most=THUMBNAIL)


def draw_views(
    image: Image, prediction: Prediction, *, truth: NDArray[np.bool_] | None = None
) -> Views:
    """The views, each of `VIEW` pixels, the outlined one with a margin.

    Args:
        image: as it was decoded.
        prediction: of it.
        truth: (H, W) of the image, True on the defect; None where it is not known.
    """
    scale = VIEW / max(image.width, image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    pixels = _seen(image, prediction, size)
    limit = prediction.pixel_threshold
    shares = _in_thresholds(prediction, size, limit, RAMP_END) / RAMP_END
    outlined = _outlined(pixels, [(truth, TRUE), (prediction.defects, FOUND)], VIEW_LINE)
    return Views(
        PILImage.fromarray(pixels),
        PILImage.fromarray(_coloured(shares, RAMP).round().astype(np.uint8)),
        PILImage.fromarray(outlined),
    )


def _marked(image: Image, prediction: Prediction, *, least: int, most: int) -> PILImage.Image:
    width, height = _view_size(image.width, image.height, least=least, most=most)
    size = width, height
    heat = _in_thresholds(prediction, size, prediction.mark_above, HOTTEST)
    pixels = _heated(_seen(image, prediction, size), heat)
    line = max(1, min(math.ceil(max(size) / 400), min(size) // 16))
    return PILImage.fromarray(_outlined(pixels, [(prediction.defects, FOUND)], line))


def _view_size(width: int, height: int, *, least: int, most: int) -> tuple[int, int]:
    longest = max(width, height)
    if longest > most:
        return max(1, round(width * most / longest)), max(1, round(height * most / longest))
    factor = min(math.ceil(least / min(width, least)), most // longest)
    return width * factor, height * factor


def _seen(image: Image, prediction: Prediction, size: tuple[int, int]) -> Pixels:
    """(height, width, 3) of the size; what does not count is dimmed."""
    pixels = _visible(image, size)
    if prediction.inside is not None:
        outside = ~any_in_cells(prediction.inside, size[1], size[0])
        pixels[outside] = (pixels[outside] * DIMMED).round()
    return pixels


def _visible(image: Image, size: tuple[int, int]) -> Pixels:
    """(height, width, 3) of the size; deeper images are brightened, most of them being dim."""
    is_smaller = size[0] <= image.width and size[1] <= image.height
    how = PILImage.Resampling.BOX if is_smaller else PILImage.Resampling.BILINEAR
    if image.pixels.dtype == np.uint8:
        return np.array(PILImage.fromarray(image.pixels).resize(size, how))
    channels = [
        PILImage.fromarray(np.ascontiguousarray(image.pixels[..., channel])).resize(size, how)
        for channel in range(3)
    ]
    small = np.stack([np.asarray(channel) for channel in channels], axis=-1)
    white = max(float(np.percentile(small, 99.9)), TINY)
    return np.asarray((np.clip(small, 0, white) * (255 / white)).round(), dtype=np.uint8)


def _in_thresholds(
    prediction: Prediction, size: tuple[int, int], threshold: float, most: float
) -> NDArray[np.float32]:
    """(height, width): the map of that size in thresholds, cut off at the most."""
    limit = np.float32(max(threshold, TINY))
    values = prediction.map_at((size[1], size[0]))
    return np.asarray(np.clip(values, 0, most * limit) / limit)


def _coloured(
    shares: NDArray[np.float32], stops: Sequence[tuple[int, int, int]]
) -> NDArray[np.float64]:
    """(…) from 0 to 1 → (…, 3): between the first colour and the last."""
    places = np.linspace(0, 1, len(stops))
    channels = zip(*stops, strict=True)
    return np.stack([np.interp(shares, places, channel) for channel in channels], axis=-1)


def _heated(pixels: Pixels, in_thresholds: NDArray[np.float32]) -> Pixels:
    """Yellow to red where the map is above the pixel threshold; elsewhere unchanged."""
    strength = (in_thresholds - 1) / (HOTTEST - 1)
    is_hot = strength > 0
    strength = strength[is_hot]
    alpha = HEAT_ALPHA * np.sqrt(strength)[:, None]
    heated = pixels.copy()
    heated[is_hot] = (pixels[is_hot] * (1 - alpha) + _coloured(strength, HEAT) * alpha).round()
    return heated


def _outlined(
    pixels: Pixels, outlines: Sequence[tuple[NDArray[np.bool_] | None, Colour]], line: int
) -> Pixels:
    """A bright line between dark ones around each defect, all of it outside; with a margin."""
    height, width = pixels.shape[:2]
    margin = 3 * line
    edges = ((margin, margin), (margin, margin))
    framed = np.pad(pixels, (*edges, (0, 0)))
    framed[:margin] = framed[-margin:] = SHADE
    framed[:, :margin] = framed[:, -margin:] = SHADE
    for defects, colour in outlines:
        if defects is None or not defects.any():
            continue
        inside = np.pad(_shrunk(defects, (height, width)), edges)
        near, middle, far = (_grown(inside, reach * line) for reach in (1, 2, 3))
        framed[far & ~inside] = CASING
        framed[middle & ~near] = colour
    return framed


def _shrunk(defects: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Any defect pixel of a cell counts, so that none vanishes when a large image is reduced."""
    rows, columns = (
        np.arange(new) * old // new for new, old in zip(shape, defects.shape, strict=True)
    )
    return np.logical_or.reduceat(np.logical_or.reduceat(defects, rows, 0), columns, 1)


def _grown(mask: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """True within a square that reaches so many pixels around any that is True."""
    picture = PILImage.fromarray(mask.astype(np.uint8) * 255)
    # A mean over the square, which takes the same time at any size, is above 0 where any is True;
    # made certain after each axis, as one pixel's share of both would round to 0.
    for radius in ((reach, 0), (0, reach)):
        picture = picture.filter(ImageFilter.BoxBlur(radius)).point(lambda value: 255 * (value > 0))
    return np.asarray(picture) > 0


def draw_sign(draw: ImageDraw.ImageDraw, place: tuple[int, int, int], verdict: Verdict) -> None:
    """A triangle for anomalous, a disc for normal, a square for unusable, at (left, top, size)."""
    left, top, size = place
    colour = VERDICT_COLOURS[verdict]
    if verdict == "unusable":
        draw.rectangle((left, top, left + size, top + size), colour)
    elif verdict == "anomalous":
        corners = [(left, top + size), (left + size, top + size), (left + size // 2, top)]
        draw.polygon(corners, colour)
    else:
        draw.ellipse((left, top, left + size, top + size), colour)


def _wrap(parts: Sequence[str], size: int, width: int, *, gap: str) -> list[str]:
    """The parts side by side, on as many lines as the width asks for."""
    lines = list(parts[:1])
    for part in parts[1:]:
        longer = f"{lines[-1]}{gap}{part}"
        if font(size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


@lru_cache
def font(size: int) -> Font:
    """Pillow's own font, `size` pixels high."""
    return ImageFont.load_default(size)


def encoded(picture: PILImage.Image, format: PictureFormat = "jpeg") -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    options = {"compress_level": 1} if format == "png" else {"quality": 90, "subsampling": 0}
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()
