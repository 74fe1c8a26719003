"""One inspected image, as the service, its store, its sinks and its page pass it on."""

import io
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from haloae.detection.prediction import Verdict

Given = bytes | NDArray[np.uint8]
"""An image as it comes in: a file's bytes, or pixels (H, W, 3) RGB."""


def bytes_of(given: Given) -> int:
    """That an image takes in memory, as it came."""
    return len(given) if isinstance(given, bytes) else given.nbytes


def file_of(given: Given) -> bytes:
    """An image as a file: as it came, or a PNG of the pixels, which takes a while."""
    if isinstance(given, bytes):
        return given
    buffer = io.BytesIO()
    PILImage.fromarray(given).save(buffer, format="png")
    return buffer.getvalue()


class Box(NamedTuple):
    """Around one connected region of a map above its threshold, in the image's pixels."""

    left: int
    top: int
    right: int
    """One past the last column."""
    bottom: int
    """One past the last row."""
    peak: float
    """The map's highest value in it."""


@dataclass(frozen=True)
class Inspection:
    """What was said of one image, and by what."""

    id: str
    """32 hexadecimal digits, never given twice."""
    time: datetime
    """When the image was taken in, with its time zone, UTC."""
    source: str
    """``request``, ``page``, or the name of a source."""
    recipe: str
    """Name of the recipe, a model file's stem."""
    model: str
    """sha256 of the model file, hexadecimal."""
    image: str
    """sha256 of the image's bytes, hexadecimal."""
    score: float
    p_value: float
    threshold: float
    verdict: Verdict
    reason: str | None
    """Why the image is unusable; None: it is not."""
    boxes: tuple[Box, ...]

    def as_record(self) -> dict[str, Any]:
        """Plain values, as JSON holds them; the time in ISO 8601."""
        return {
            "id": self.id,
            "time": self.time.isoformat(),
            "source": self.source,
            "recipe": self.recipe,
            "model": self.model,
            "image": self.image,
            "score": self.score,
            "p_value": self.p_value,
            "threshold": self.threshold,
            "verdict": self.verdict,
            "reason": self.reason,
            "boxes": [box._asdict() for box in self.boxes],
        }
