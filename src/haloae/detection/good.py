"""What good images look like to a fitted network: a head fitted to them, their scores and peaks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from haloae.config import Config
from haloae.data.views import Size, View
from haloae.detection.calibration import MIN_IMAGES
from haloae.detection.heads import Head, Seen, head_of
from haloae.detection.maps import image_score
from haloae.detection.scorer import judge, on_grid, see, unusual_of
from haloae.detection.tiling import see_in_tiles
from haloae.errors import DataError, TrainingError
from haloae.network.haloae import HaloAE
from haloae.network.lean import lean
from haloae.network.reach import features_reach

FEW = 30
"""From this many good images on, one is a small part of what `Head.without` leaves in."""
FOLDS = 10
"""Heads that are fitted anew where images are fewer, or parts of slides."""
REGION = 32
"""Side of the regions of a part that have a peak each, in cells."""


class Parts(NamedTuple):
    """What the images that a detector is fitted to are parts of: slides, of which it sees few."""

    groups: Sequence[int]
    """Of each image, which slide it is of."""
    margin: int
    """Pixels at each edge that are there for the sake of what they surround, and no more."""


class Good(NamedTuple):
    """What was measured of good images."""

    head: Head
    """Fitted to all of them."""
    scores: tuple[float, ...]
    """Ascending, each by the head as it would be without the image."""
    peaks: tuple[float, ...]
    """Highest value of each image's map, or of each region of a part's, ascending, likewise."""
    cells: int
    """Fewest that a peak is the highest of."""


def measure_good(
    network: HaloAE,
    images: Callable[[], Iterable[NDArray[np.float32]]],
    config: Config,
    *,
    head: Head | None = None,
    parts: Parts | None = None,
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
        parts: of slides: each is scored by a head that saw no other part of its slide either;
            None: each image is on its own.

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
                if view.kind == "tiles" and parts is None:
                    each = see_in_tiles(used, image, view)
                else:
                    each = see(used, torch.from_numpy(image[None]).to(device))
            yield each  # out of the mode, which would hold for whoever takes it

    if parts is None:
        return measure_seen(seen, config, head=head)
    return _measure_parts(seen, config, parts)


def measure_seen(
    seen: Callable[[], Iterable[Seen]],
    config: Config,
    *,
    head: Head | None = None,
) -> Good:
    """What `measure_good` does, of images that a network has seen; arguments and errors are its.

    Args:
        seen: gives them anew at every call.
        config: which head, and how maps and scores are made.
        head: fitted to other images, and kept; None: one is fitted.
    """
    kind = head_of(config)
    grid = None if config.is_anywhere else config.grid
    judged: Iterable[tuple[Seen, Head]]
    if head is None:
        first = list(islice(seen(), MIN_IMAGES if kind.leaves_out else FEW))
        if len(first) < MIN_IMAGES:
            raise _too_few(len(first))
        if kind.leaves_out:
            first.clear()  # they may be large
        fitted = kind.fit(config, _placed(seen, grid))
        if kind.leaves_out or len(first) == FEW:
            judged = _in_turn(seen(), fitted, grid)
        else:
            judged = _crossed(first, kind, config, grid)
    else:
        fitted = head
        judged = ((each, head) for each in seen())
    return _good(fitted, judged, config, grid)


def _good(
    fitted: Head,
    judged: Iterable[tuple[Seen, Head]],
    config: Config,
    grid: Size | None,
    edge: int = 0,
) -> Good:
    """What heads say of images they did not see.

    Args:
        fitted: to all of them.
        judged: each image, and the head that judges it.
        config: how maps and scores are made.
        grid: see `unusual_of`.
        edge: cells around the map of a part that do not count; peaks are then those of regions.
    """
    scores: list[float] = []
    peaks: list[float] = []
    cells: set[int] = set()
    for each, judging in judged:
        with torch.inference_mode():
            score, anomaly = judge(unusual_of(judging, each, grid), config.detection)
            highest = anomaly.amax((1, 2))
            if edge:
                anomaly = anomaly[:, edge:-edge, edge:-edge]
                score = image_score(anomaly, config.detection.top_share)
                highest = F.max_pool2d(anomaly, REGION).flatten()
        if not torch.isfinite(anomaly).all():
            raise TrainingError(
                "the anomaly maps of good images are not finite: train anew with a lower "
                "training.learning_rate."
            )
        scores.append(score.item())
        peaks += highest.tolist()
        cells.add(REGION**2 if edge else anomaly.numel())
    if len(scores) < MIN_IMAGES:
        raise _too_few(len(scores))
    return Good(fitted, tuple(sorted(scores)), tuple(sorted(peaks)), min(cells))


def _measure_parts(seen: Callable[[], Iterable[Seen]], config: Config, parts: Parts) -> Good:
    """What `measure_good` does, of parts of slides.

    What the trunk sees beyond their edges is not there, and so their edges are left out: first what
    features need, and then what the head and the smoothing need.
    """
    kind, stride = head_of(config), config.network.stride
    edge = -(-features_reach(config.network) // stride)
    # A part is seen once: what is kept of it is a few megabytes.
    kept = [_inside(each, edge, stride) for each in seen()]
    fitted = kind.fit(config, kept.copy)
    folds = min(FOLDS, len(set(parts.groups)))
    order = {group: place % folds for place, group in enumerate(sorted(set(parts.groups)))}
    fold_of = [order[group] for group in parts.groups]

    def judged() -> Iterator[tuple[Seen, Head]]:
        if folds == 1:
            yield from _crossed(kept, kind, config, None)
            return
        for fold in range(folds):
            pairs = [*zip(kept, fold_of, strict=True)]
            others = [each for each, own in pairs if own != fold]
            without = kind.fit(config, others.copy)
            yield from ((each, without) for each, own in pairs if own == fold)

    return _good(fitted, judged(), config, None, -(-parts.margin // stride) - edge)


def _inside(seen: Seen, edge: int, cell: int) -> Seen:
    """Without some cells at each edge."""
    output, image = seen

    def cut(values: Tensor, width: int) -> Tensor:
        return values[..., width:-width, width:-width].clone()

    rebuilt = None if output.rebuilt is output.features else cut(output.rebuilt, edge)
    features = cut(output.features, edge)
    made = None if output.image is None else cut(output.image, edge * cell)
    cropped = output._replace(
        features=features, rebuilt=features if rebuilt is None else rebuilt, image=made
    )
    return Seen(cropped, cut(image, edge * cell))


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


def _too_few(count: int) -> DataError:
    return DataError(
        f"{count} good images are too few to calibrate on: give at least {MIN_IMAGES}."
    )
