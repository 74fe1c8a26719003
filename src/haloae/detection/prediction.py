"""Images in, predictions out: what every detector shares, whatever computes its maps.

Kept apart from `haloae.detection.detector` because an exported model needs no torch.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from haloae.config import Config
from haloae.data.images import Image, image_from, resize
from haloae.detection.calibration import Calibration
from haloae.detection.model_file import Provenance
from haloae.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    ImageLike = str | Path | Image | PILImage | NDArray[Any]

log = logging.getLogger(__name__)

BATCH = 8
"""Images scored at once."""
SIZE_TOLERANCE = 1.25
"""Images up to this many times larger or smaller than any in training are not remarked on."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a detector says of one image."""

    score: float
    """Higher is more anomalous; not negative."""
    p_value: float
    """Share of good images that score at least as high, see `Calibration.p_value`."""
    is_anomalous: bool
    """True: the score is above the detector's threshold."""
    extrapolated: bool
    """True: that threshold is a fit to the tail, made from too few good images."""
    anomaly_map: NDArray[np.float32]
    """(H, W) at the image's own size, on the scale of the pixel threshold."""
    defects: NDArray[np.bool_]
    """(H, W): True where the map is above the pixel threshold."""


class Measured(NamedTuple):
    """What a network makes of a batch of resized images."""

    scores: NDArray[np.float32]
    """(B,)."""
    maps: NDArray[np.float32]
    """(B, h, w), on the feature grid."""


class Predictor(ABC):
    """Decodes, resizes, batches and judges; a subclass says how a batch is measured.

    Scoring one image does not depend on the others scored with it.
    """

    config: Config
    calibration: Calibration
    provenance: Provenance
    _has_warned = False

    @abstractmethod
    def measure(self, images: NDArray[np.float32]) -> Measured:
        """Scores and maps of resized images.

        Args:
            images: (B, 3, S, S) RGB in [0, 1], S the config's image size.
        """

    @overload
    def predict(self, images: "ImageLike") -> Prediction: ...
    @overload
    def predict(self, images: "list[Any] | tuple[Any, ...]") -> list[Prediction]: ...
    def predict(
        self, images: "ImageLike | list[Any] | tuple[Any, ...]"
    ) -> Prediction | list[Prediction]:
        """Score images and outline their defects.

        Args:
            images: a path, a PIL image or an array, (H, W) or (H, W, 3), uint8, uint16 or float in
                [0, 1]; a list of them gives a list.

        Raises:
            ImageError: an image cannot be scored; the message names it.
        """
        if not isinstance(images, list | tuple):
            return self.predict([images])[0]
        found = []
        for result in self.stream(images):
            if isinstance(result, ImageError):
                raise result
            found.append(result)
        return found

    def stream(self, images: "Iterable[ImageLike]") -> Iterator[Prediction | ImageError]:
        """Predict one after the other, in constant memory.

        An image that cannot be scored gives its error, in its place, and the rest go on.
        """
        remaining = iter(images)
        while group := list(islice(remaining, BATCH)):
            read: list[Image | ImageError] = []
            for item in group:
                try:
                    read.append(image_from(item))
                except ImageError as error:
                    read.append(error)
            good = [image for image in read if isinstance(image, Image)]
            for image in good:
                self._warn_if_unlike(image)
            predictions = iter(self._predict_batch(good) if good else ())
            for entry in read:
                yield entry if isinstance(entry, ImageError) else next(predictions)

    def _predict_batch(self, images: Sequence[Image]) -> list[Prediction]:
        measured = self.measure(np.stack([resize(i, self.config.image_size) for i in images]))
        calibration = self.calibration
        predictions = []
        for image, score, small in zip(
            images, measured.scores.tolist(), measured.maps, strict=True
        ):
            full = resize_map(small, (image.height, image.width))
            predictions.append(
                Prediction(
                    score=score,
                    p_value=calibration.p_value(score),
                    is_anomalous=score > calibration.threshold.value,
                    extrapolated=calibration.extrapolated,
                    anomaly_map=full,
                    defects=full > calibration.pixel_threshold.value,
                )
            )
        return predictions

    def _warn_if_unlike(self, image: Image) -> None:
        """Say once that an image is not like those the detector was fitted on."""
        if self._has_warned:
            return
        kinds = self.provenance.images
        unlike = []
        if image.grey not in kinds.grey:
            unlike.append("is grey" if image.grey else "is in colour")
        if image.depth not in kinds.depths:
            unlike.append(f"has {image.depth} bits a channel")
        for name, size, (low, high) in (
            ("high", image.height, kinds.heights),
            ("wide", image.width, kinds.widths),
        ):
            if not low / SIZE_TOLERANCE <= size <= high * SIZE_TOLERANCE:
                unlike.append(f"is {size} pixels {name}")
        if unlike:
            self._has_warned = True
            log.warning(
                "an image %s, unlike any of the training images, so its score may mean little; "
                "this is said once.",
                " and ".join(unlike),
            )


def resize_map(anomaly: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bilinear resize, (h, w) → `size`, as torch's interpolate does with align_corners=False.

    Pillow's would widen its filter when shrinking, and lower the map's peaks.
    """
    rows, columns = (_bilinear(*sides) for sides in zip(anomaly.shape, size, strict=True))
    return np.asarray(rows @ anomaly @ columns.T, dtype=np.float32)


def _bilinear(old: int, new: int) -> NDArray[np.float32]:
    """(new, old): the weights of the old cells in each new one, two a row at most."""
    centres = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    below = np.minimum(centres.astype(np.intp), max(old - 2, 0))
    share = (centres - below).astype(np.float32)
    weights = np.zeros((new, old), np.float32)
    cells = np.arange(new)
    weights[cells, below] = 1 - share
    weights[cells, np.minimum(below + 1, old - 1)] += share
    return weights
