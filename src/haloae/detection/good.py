"""What good images look like to a fitted network: a head fitted to them, their scores and peaks."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from haloae.config import Config
from haloae.data.regions import Mask, Region
from haloae.data.views import Size, View
from haloae.detection.calibration import MIN_IMAGES, TINY, Tail, Unit, threshold_at
from haloae.detection.heads import Head, Seen, head_of
from haloae.detection.native import parts_of
from haloae.detection.scorer import (
    Parts,
    judge_parts,
    members_in,
    on_grid,
    peaks_of,
    see,
    unusual_of,
)
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
    units: tuple[Unit, ...] = ()
    """Of the named parts of the image, which scores and peaks are in."""


def measure_good(
    network: HaloAE,
    images: Callable[[], Iterable[NDArray[np.float32]]],
    config: Config,
    *,
    head: Head | None = None,
    inside: Callable[[int], Mask | None] = lambda number: None,
    region: Region | None = None,
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
        inside: gives, for the number of an image in this order, (H, W) bool, True where a pixel
            counts; None: all do.
        region: whose named parts have units of their own; None: there are none.

    Raises:
        ConfigError: there is no such head.
        DataError: fewer than 4 images.
        TrainingError: the network's output is not finite.
    """
    used = lean(network, image=config.detection.image_weight > 0)
    device = next(network.parameters()).device
    view = View.of(config)

    def seen() -> Iterator[Seen]:
        for number, image in enumerate(images()):
            mask = inside(number)
            with torch.inference_mode():
                if view.kind == "tiles":
                    each = see_in_tiles(used, image, view, mask)
                else:
                    counts = None if mask is None else torch.from_numpy(mask[None]).to(device)
                    each = see(used, torch.from_numpy(image[None]).to(device), counts)
            yield each  # out of the mode, which would hold for whoever takes it

    parts = parts_of(region, config) if region is not None and region.names else None
    return measure_seen(seen, config, head=head, parts=None if parts is None else parts.to(device))


def measure_seen(
    seen: Callable[[], Iterable[Seen]],
    config: Config,
    *,
    head: Head | None = None,
    parts: Parts | None = None,
) -> Good:
    """What `measure_good` does, of images that a network has seen; arguments and errors are its.

    Args:
        seen: gives them anew at every call.
        config: which head, and how maps and scores are made.
        head: fitted to other images, and kept; None: one is fitted.
        parts: the named parts of the images, all of whose cells count; None: there are none.
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
            members = members_in(each, parts)
            unusual = unusual_of(judging, each, grid)
            score, anomaly = judge_parts(unusual, config.detection, members)
        if not torch.isfinite(anomaly).all():
            raise TrainingError(
                "the anomaly maps of good images are not finite: train anew with a lower "
                "training.learning_rate."
            )
        scores.append(score[0].tolist())
        peaks.append(peaks_of(anomaly, members)[0].tolist())
    units = () if parts is None else _units(fitted, config, scores, peaks)
    return Good(
        fitted,
        _highest(scores, [unit.score for unit in units]),
        _highest(peaks, [unit.map for unit in units]),
        units,
    )


def _units(
    head: Head, config: Config, scores: list[list[float]], peaks: list[list[float]]
) -> tuple[Unit, ...]:
    """The thresholds that each part has by itself: together they hold the rate of false alarms."""
    rate = config.detection.false_alarm_rate / len(scores[0])

    def limits(values: list[list[float]]) -> list[float]:
        tail = tail_of(head)
        columns = zip(*values, strict=True)
        return [max(threshold_at(column, rate, tail).value, TINY) for column in columns]

    both = zip(limits(scores), limits(peaks), strict=True)
    return tuple(Unit(score=score, map=highest) for score, highest in both)


def _highest(values: list[list[float]], units: list[float]) -> tuple[float, ...]:
    """Of each image, that of its parts which is highest in their units; ascending."""
    return tuple(sorted((np.array(values) / (units or [1.0])).max(1).tolist()))


def tail_of(head: Head | type[Head]) -> Tail:
    """What a threshold that was never seen is fitted to, with a kind of head.

    Of images that fit and calibrate, two that are alike make each other look too good.
    """
    return "all" if head.refits else "upper"


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
