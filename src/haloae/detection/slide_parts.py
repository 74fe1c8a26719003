"""A head fitted to parts of slides, each of which is judged by one that saw none of its slide."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from haloae.config import Config
from haloae.detection.calibration import MIN_IMAGES
from haloae.detection.good import FOLDS, Good, tail_of
from haloae.detection.heads import Head, Seen, head_of
from haloae.detection.highest import weight_of_means
from haloae.detection.maps import image_score
from haloae.detection.scorer import judge, see, unusual_of
from haloae.errors import DataError, TrainingError
from haloae.network.haloae import HaloAE
from haloae.network.lean import lean
from haloae.network.reach import features_reach

REGION = 32
"""Side of the regions of a part that have a peak and a mean each, in cells."""


class SlideParts(NamedTuple):
    """What images are parts of."""

    groups: Sequence[int]
    """Of each image, which slide it is of."""
    margin: int
    """Pixels at each edge that are there for the sake of what they surround, and no more."""


class SlideRegions(NamedTuple):
    """What was measured of their regions: the fields of `Calibration`."""

    cells: int
    mean_weight: float
    regions: tuple[float, ...]


def measure_slide_parts(
    network: HaloAE,
    images: Callable[[], Iterable[NDArray[np.float32]]],
    config: Config,
    parts: SlideParts,
) -> tuple[Good, SlideRegions]:
    """What `measure_good` does, of parts of slides, whose regions have the peaks.

    Each is scored by a head that saw no part of its slide. What the trunk sees beyond the edges of
    a part is not there, and so they are left out: first what features need, and then what the head
    and the smoothing need.

    Raises:
        DataError: fewer than 4 parts.
        TrainingError: the network's output is not finite.
    """
    used = lean(network, image=config.detection.image_weight > 0)
    device = next(network.parameters()).device
    kind, stride = head_of(config), config.network.stride
    edge = -(-features_reach(config.network) // stride)
    kept = []
    for image in images():
        with torch.inference_mode():
            each = see(used, torch.from_numpy(image[None]).to(device))
            kept.append(_inside(each, edge, stride))
    if len(kept) < MIN_IMAGES:
        raise DataError(
            f"{len(kept)} parts of slides are too few to calibrate on: give at least {MIN_IMAGES}."
        )
    scores: list[float] = []
    peaks: list[float] = []
    means: list[float] = []
    rest = -(-parts.margin // stride) - edge
    for each, judging in _judged(kept, parts.groups, kind, config):
        with torch.inference_mode():
            _, anomaly = judge(unusual_of(judging, each, None), config.detection)
            anomaly = anomaly[:, rest : anomaly.shape[1] - rest, rest : anomaly.shape[2] - rest]
        if not torch.isfinite(anomaly).all():
            raise TrainingError(
                "the anomaly maps of good slides are not finite: train anew with a lower "
                "training.learning_rate."
            )
        scores.append(image_score(anomaly, config.detection.top_share).item())
        peaks += F.max_pool2d(anomaly, REGION).flatten().tolist()
        means += F.avg_pool2d(anomaly, REGION).flatten().tolist()
    good = Good(kind.fit(config, kept.copy), tuple(sorted(scores)), tuple(sorted(peaks)))
    weight = weight_of_means(peaks, means, config.detection.false_alarm_rate, tail_of(good.head))
    values = sorted(max(peak, weight * mean) for peak, mean in zip(peaks, means, strict=True))
    return good, SlideRegions(REGION**2, weight, tuple(values))


def _judged(
    kept: Sequence[Seen], groups: Sequence[int], kind: type[Head], config: Config
) -> Iterator[tuple[Seen, Head]]:
    """Each part, with a head that was fitted to those of other slides, of one by other parts."""
    if len(set(groups)) == 1:
        groups = range(len(kept))
    folds = min(FOLDS, len(set(groups)))
    order = {group: place % folds for place, group in enumerate(sorted(set(groups)))}
    for fold in range(folds):
        own = [order[group] == fold for group in groups]
        others = [each for each, is_own in zip(kept, own, strict=True) if not is_own]
        without = kind.fit(config, others.copy)
        yield from ((each, without) for each, is_own in zip(kept, own, strict=True) if is_own)


def _inside(seen: Seen, edge: int, cell: int) -> Seen:
    """Without some cells at each edge."""
    output, image = seen.output, seen.image

    def cut(values: Tensor, width: int) -> Tensor:
        return values[..., width:-width, width:-width].clone()

    features = cut(output.features, edge)
    rebuilt = features if output.rebuilt is output.features else cut(output.rebuilt, edge)
    made = None if output.image is None else cut(output.image, edge * cell)
    cropped = output._replace(features=features, rebuilt=rebuilt, image=made)
    return Seen(cropped, cut(image, edge * cell))
