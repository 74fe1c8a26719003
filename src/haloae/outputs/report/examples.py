"""Single images for the report: which to show, and how they look at 256 pixels."""

import base64
import heapq
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from haloae.data.folders import Sample
from haloae.data.images import Image, read_image, read_mask, shown_path
from haloae.detection.predictor import Prediction, Predictor
from haloae.errors import DataError, ImageError

MOST = 8
"""Images shown of a kind."""
SIDE = 256
"""Longer side of a picture, in pixels."""
QUALITY = 80
FOUND = (255, 122, 0)
TRUE = (0, 200, 255)
CASING = (0, 0, 0)
RAMP = [(9, 9, 35), (72, 18, 107), (150, 40, 100), (222, 82, 55), (251, 165, 30), (252, 253, 191)]
"""From 0 to twice the pixel threshold: brighter is more unusual, in grey too."""

Progress = Callable[[Iterable[Any]], Iterable[Any]]


class Example(NamedTuple):
    """One image with what was found on it; pictures are data URIs."""

    path: str
    label: str
    score: float
    is_anomalous: bool
    image: str
    anomaly_map: str
    outline: str
    has_mask: bool
    """True: the true defect is outlined too."""


def make_examples(detector: Predictor, root: Path, samples: Sequence[Sample]) -> list[Example]:
    """Score some samples once more and draw them; what cannot be read any more is left out."""
    examples = []
    for sample in samples:
        try:
            image = read_image(sample.path)
            examples.append(_example(detector, root, sample, image))
        except ImageError:
            continue
    return examples


def most_unusual(
    detector: Predictor, paths: Sequence[Path], *, progress: Progress = iter
) -> list[Path]:
    """The images with the highest scores, highest first; those that cannot be read are left out."""

    def scored() -> Iterator[tuple[float, Path]]:
        for path in progress(paths):
            # One at a time: a batch of very large images is a lot of memory.
            result = next(detector.stream([path]))
            if isinstance(result, Prediction):
                yield result.score, path

    return [path for _, path in heapq.nlargest(MOST, scored(), key=lambda found: found[0])]


def spread(ordered: Sequence[int]) -> list[int]:
    """At most `MOST` of a sequence, evenly spaced from its first to its last."""
    places = np.linspace(0, len(ordered) - 1, min(MOST, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def _example(detector: Predictor, root: Path, sample: Sample, image: Image) -> Example:
    prediction = detector.predict(image)
    mask = None
    if sample.mask is not None:
        try:
            mask = read_mask(sample.mask, shape=(image.height, image.width))
        except (ImageError, DataError):
            mask = None
    size = _fitted(image.width, image.height)
    picture = _picture(image, size)
    outlined = picture.copy()
    if mask is not None:
        _outline(outlined, _shrunk(mask, size), TRUE)
    _outline(outlined, _shrunk(prediction.defects, size), FOUND)
    limit = detector.calibration.pixel_threshold.value
    return Example(
        path=shown_path(sample.path.relative_to(root).as_posix()),
        label=shown_path(sample.label),
        score=prediction.score,
        is_anomalous=prediction.is_anomalous,
        image=_data_uri(picture),
        anomaly_map=_data_uri(_coloured(prediction.anomaly_map, size, limit)),
        outline=_data_uri(outlined),
        has_mask=mask is not None,
    )


def _fitted(width: int, height: int) -> tuple[int, int]:
    scale = SIDE / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _picture(image: Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    pixels = image.pixels
    if pixels.dtype != np.uint8:
        # 10 or 12 bits in a file of 16 would be black otherwise.
        pixels = (pixels * (255 / max(float(pixels.max()), 1e-9))).astype(np.uint8)
    small = PILImage.fromarray(pixels).resize(size, PILImage.Resampling.BILINEAR)
    return np.array(small)


def _coloured(
    anomaly_map: NDArray[np.float32], size: tuple[int, int], limit: float
) -> NDArray[np.uint8]:
    small = PILImage.fromarray(anomaly_map).resize(size, PILImage.Resampling.BILINEAR)
    share = np.asarray(small) / max(2 * limit, 1e-30)
    stops = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(share, stops, [colour[c] for colour in RAMP]) for c in range(3)]
    return np.stack(channels, axis=2).astype(np.uint8)


def _shrunk(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """True where any of a pixel is: a defect of one pixel still shows."""
    picture = PILImage.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize(size, PILImage.Resampling.BOX)) > 0


def _outline(
    picture: NDArray[np.uint8], mask: NDArray[np.bool_], colour: tuple[int, int, int]
) -> None:
    """Draw around a mask, in place: three pixels, and a dark one that sets them off."""
    from scipy.ndimage import binary_dilation

    if not mask.any():
        return
    line = binary_dilation(mask, iterations=3)
    picture[binary_dilation(line) & ~line] = CASING
    frame = np.ones_like(mask)
    frame[3:-3, 3:-3] = False
    # Where a defect reaches over the picture's edge, the edge closes its outline.
    picture[line & (~mask | frame)] = colour


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
