"""The parts of an image that count, on what the network sees of it and on the cells of its map."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from haloae.data.regions import Mask, Region, cells_inside, shown_inside
from haloae.data.views import View
from haloae.detection.calibration import Unit

PLAIN = Unit(score=1.0, map=1.0)
"""Of a part without thresholds of its own."""


class PartScore(NamedTuple):
    """What is said of a named part of an image."""

    score: float
    """Higher is more anomalous; not negative. On a scale of the part's own."""
    threshold: float
    """Of its own; a score above it makes the image anomalous."""
    is_anomalous: bool


def stored(region: Region | Literal["each"] | None) -> Region | None:
    """Which pixels count of every image, if that is the same for all."""
    return region if isinstance(region, Region) else None


@lru_cache(maxsize=4)
def inside_of(region: Region, view: View) -> Mask:
    """(H, W): where a pixel that a view shows of an image counts."""
    return shown_inside(region.inside, view)


@lru_cache(maxsize=4)
def members_of(region: Region, view: View) -> NDArray[np.bool_]:
    """(R, h, w): which cells of an image's map are in which part."""
    masks = [region.labels == number for number in range(1, region.parts + 1)]
    return np.stack([cells_inside(shown_inside(mask, view), view.cell) for mask in masks])


def units_of_cells(members: NDArray[np.bool_], units: Sequence[Unit]) -> NDArray[np.float32]:
    """(h, w): what a map is given in; where parts share a cell, that of the one that is stricter.

    Args:
        members: (R, h, w).
        units: of each part.
    """
    limits = np.array([unit.map for unit in units])[:, None, None]
    strictest = np.where(members, limits, np.inf).min(0)
    return np.where(np.isinf(strictest), 1.0, strictest).astype(np.float32)


def part_scores(
    anomaly: NDArray[np.float32], members: NDArray[np.bool_], top_share: float
) -> NDArray[np.float64]:
    """(R,): the score of each part, as `haloae.detection.maps.part_scores` has it.

    Args:
        anomaly: (h, w), in no units.
        members: (R, h, w).
        top_share: of a part's cells that its score is the mean of.
    """
    found = []
    for member in members:
        values = np.sort(anomaly[member])
        count = max(1, round(top_share * values.size))
        found.append(float(values[-count:].mean()) if values.size else 0.0)
    return np.array(found)


def top_mean(anomaly: NDArray[np.float32], share: float) -> float:
    """Mean of the highest share of a map, as `haloae.detection.maps.image_score` has it."""
    flat = anomaly.ravel()
    count = max(1, round(share * flat.size))
    return float(np.partition(flat, flat.size - count)[flat.size - count :].mean())
