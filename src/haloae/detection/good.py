"""What good images look like to a fitted network: a head fitted to them, their scores and peaks."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haloae.config import Config
from haloae.detection.calibration import MIN_IMAGES
from haloae.detection.heads import Head, Seen, head_named
from haloae.detection.scorer import judge, see
from haloae.errors import DataError, TrainingError
from haloae.network.haloae import HaloAE
from haloae.network.lean import lean


class Good(NamedTuple):
    """What was measured of good images."""

    head: Head
    """Fitted to all of them."""
    scores: tuple[float, ...]
    """Ascending, each by the head as it would be without the image."""
    peaks: tuple[float, ...]
    """Highest value of each image's map, ascending, likewise."""


def measure_good(
    network: HaloAE,
    images: Callable[[], Iterable[NDArray[np.float32]]],
    config: Config,
    *,
    head: Head | None = None,
) -> Good:
    """Fit the config's head to good images, and score each of them as a new image would be.

    Each image is scored by the head without it: with its own statistics in the head it would look
    more usual than it is. Images are gone through anew for each purpose, so memory does not grow
    with their number.

    Args:
        network: fitted.
        images: gives the images anew at every call, (3, S, S) float32 in [0, 1] each.
        config: which head, and how maps and scores are made.
        head: fitted to other images, and kept: these are new to it already; None: one is fitted.

    Raises:
        ConfigError: there is no such head.
        DataError: fewer than 4 images.
        TrainingError: the network's output is not finite.
    """
    used = lean(network, image=config.detection.image_weight > 0)
    device = next(network.parameters()).device
    count = 0

    def seen() -> Iterator[Seen]:
        for image in pixels():
            with torch.inference_mode():
                each = see(used, image)
            yield each  # out of the mode, which would hold for whoever takes it

    def pixels() -> Iterator[Tensor]:
        nonlocal count
        count = 0
        for image in images():
            count += 1
            yield torch.from_numpy(image[None]).to(device)

    fitted = head
    if fitted is None:
        # A head is fitted to one image at least.
        if any(True for _ in images()):
            fitted = head_named(config.detection.head).fit(config, seen)
        if fitted is None or count < MIN_IMAGES:
            raise _too_few(count)
    scores, peaks = [], []
    for index, each in enumerate(seen()):
        with torch.inference_mode():
            judging = head or fitted.without(each, index)
            score, anomaly = judge(judging(*each), config.detection)
        if not torch.isfinite(anomaly).all():
            raise TrainingError(
                "the anomaly maps of good images are not finite: train anew with a lower "
                "training.learning_rate."
            )
        scores.append(score.item())
        peaks.append(anomaly.max().item())
    if count < MIN_IMAGES:
        raise _too_few(count)
    return Good(fitted, tuple(sorted(scores)), tuple(sorted(peaks)))


def _too_few(count: int) -> DataError:
    return DataError(
        f"{count} good images are too few to calibrate on: give at least {MIN_IMAGES}."
    )
