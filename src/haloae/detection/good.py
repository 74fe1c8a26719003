"""What held-out good images look like to a fitted network: mean residuals, scores, peaks."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haloae.config import DetectionConfig
from haloae.detection.calibration import MIN_IMAGES
from haloae.detection.maps import Residuals, Usual, anomaly_map, image_score, residuals
from haloae.errors import DataError, TrainingError
from haloae.network.haloae import HaloAE
from haloae.network.lean import lean
from haloae.network.trunks import normalise as normalise


def to_batch(images: Sequence[NDArray[np.float32]], network: HaloAE) -> Tensor:
    """(3, S, S) arrays in [0, 1] → (B, 3, S, S), normalised, on the network's device."""
    batch = torch.from_numpy(np.stack(images))
    return network.normalise(batch.to(next(network.parameters()).device))


def measure_good(
    network: HaloAE,
    images: Callable[[], Iterable[NDArray[np.float32]]],
    config: DetectionConfig,
) -> tuple[Usual, tuple[float, ...], tuple[float, ...]]:
    """Mean residuals of held-out good images, and these images' scores and map peaks.

    Each image is scored with the mean of the others, as a new image would be: with its own residual
    in the mean it would look more usual than it is. Two passes, so memory does not grow with
    their number.

    Args:
        network: fitted.
        images: gives the images anew at every call, (3, S, S) float32 in [0, 1] each.
        config: how maps and scores are made.

    Returns:
        The mean residuals; the scores and the peaks, both ascending.

    Raises:
        DataError: fewer than 4 images.
        TrainingError: the network's output is not finite.
    """
    in_use = lean(network, image=config.image_weight > 0)

    def each() -> Iterator[Residuals]:
        for image in images():
            batch = to_batch([image], network)
            with torch.inference_mode():
                yield residuals(in_use(batch), batch)

    total: Residuals | None = None
    n = 0
    for residual in each():
        n += 1
        total = residual if total is None else _combine(total, residual, 1.0)
    if total is None or n < MIN_IMAGES:
        raise DataError(f"{n} good images are too few to calibrate on: give at least {MIN_IMAGES}.")
    scores, peaks = [], []
    for residual in each():
        others = _combine(total, residual, -1.0)
        anomaly = anomaly_map(residual, _usual(others, n - 1), config)
        if not torch.isfinite(anomaly).all():
            raise TrainingError(
                "the anomaly maps of good images are not finite: train anew with a lower "
                "training.learning_rate."
            )
        scores.append(image_score(anomaly, config.top_share).item())
        peaks.append(anomaly.max().item())
    return _usual(total, n), tuple(sorted(scores)), tuple(sorted(peaks))


def _combine(a: Residuals, b: Residuals, sign: float) -> Residuals:
    image = None if a.image is None or b.image is None else a.image + sign * b.image
    return Residuals(a.features + sign * b.features, image)


def _usual(total: Residuals, n: int) -> Usual:
    # Contiguous, as a model file gives them back: sums then round alike before and after.
    image = None if total.image is None else (total.image[0] / n).contiguous()
    return Usual((total.features[0] / n).contiguous(), image, n)
