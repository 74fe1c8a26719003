"""What good images look like to a fitted network: a head fitted to them, their scores and peaks."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from haloae.config import Config
from haloae.data.views import Size, View
from haloae.detection.calibration import MIN_IMAGES
from haloae.detection.heads import Head, Seen, head_of
from haloae.detection.scorer import judge, on_grid, see, unusual_of
from haloae.detection.tiling import see_in_tiles
from haloae.errors import DataError, TrainingError
from haloae.network.haloae import HaloAE
from haloae.network.lean import lean

FEW = 30
"""From this many good images on, one is a small part of what `Head.without` leaves in."""
FOLDS = 10
"""Heads that are fitted anew where images are fewer."""


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
    with their number. Where they are few and the head can leave one out only in part, heads are
    fitted anew to nine tenths of them.

    Args:
        network: fitted.
        images: gives the images anew at every call, as `View.show` makes them.
        config: which head, and how maps and scores are made.
        head: fitted to other images, and kept: these are new to it already; None: one is fitted.

    Raises:
        ConfigError: there is no such head.
        DataError: fewer than 4 images.
        TrainingError: the network's output is not finite.
    """
    used = lean(network, image=config.detection.image_weight > 0)
    device = next(network.parameters()).device
    view = View.of(config)

    def seen() -> Iterator[Seen]:
        for image in images():
            with torch.inference_mode():
                if view.kind == "tiles":
                    each = see_in_tiles(used, image, view)
                else:
                    each = see(used, torch.from_numpy(image[None]).to(device))
            yield each  # out of the mode, which would hold for whoever takes it

    return measure_seen(seen, config, head=head)


def measure_seen(
    seen: Callable[[], Iterable[Seen]], config: Config, *, head: Head | None = None
) -> Good:
    """What `measure_good` does, of images that a network has seen; arguments and errors are its.

    Args:
        seen: gives them anew at every call.
        config: which head, and how maps and scores are made.
        head: fitted to other images, and kept; None: one is fitted.
    """
    kind = head_of(config)
    grid = None if config.is_anywhere else config.grid

    def enough() -> Iterator[Seen]:
        count = 0
        for count, each in enumerate(seen(), 1):  # noqa: B007 - it is used behind the last one
            yield each
        if count < MIN_IMAGES:
            raise DataError(
                f"{count} good images are too few to calibrate on: give at least {MIN_IMAGES}."
            )

    judged: Iterable[tuple[Seen, Head]]
    if head is None:
        fitted = kind.fit(config, _placed(enough, grid))
        if kind.leaves_out or fitted.images >= FEW:
            judged = _in_turn(enough(), fitted, grid)
        else:
            judged = _crossed(list(enough()), kind, config, grid)
    else:
        fitted = head
        judged = ((each, head) for each in enough())
    scores, peaks = [], []
    for each, judging in judged:
        with torch.inference_mode():
            score, anomaly = judge(unusual_of(judging, each, grid), config.detection)
        if not torch.isfinite(anomaly).all():
            raise TrainingError(
                "the anomaly maps of good images are not finite: train anew with a lower "
                "training.learning_rate."
            )
        scores.append(score.item())
        peaks.append(anomaly.max().item())
    return Good(fitted, tuple(sorted(scores)), tuple(sorted(peaks)))


def _placed(seen: Callable[[], Iterable[Seen]], grid: Size | None) -> Callable[[], Iterable[Seen]]:
    """The same images, each on all of a grid."""
    return seen if grid is None else lambda: (on_grid(each, grid) for each in seen())


def _in_turn(seen: Iterable[Seen], head: Head, grid: Size | None) -> Iterator[tuple[Seen, Head]]:
    """Each image, with the head as it would be without it."""
    for index, each in enumerate(seen):
        yield each, head.without(each if grid is None else on_grid(each, grid), index)


def _crossed(
    few: list[Seen], kind: type[Head], config: Config, grid: Size | None
) -> Iterator[tuple[Seen, Head]]:
    """Each image, with a head that was fitted to those of the other folds."""
    folds = min(FOLDS, len(few))
    for fold in range(folds):
        others = [each for index, each in enumerate(few) if index % folds != fold]
        without = kind.fit(config, _placed(others.copy, grid))
        for each in few[fold::folds]:
            yield each, without
