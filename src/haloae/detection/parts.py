"""The parts of an image that count, on what the network sees of it and on the cells of its map."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haloae.data.regions import Mask, Region, any_in_cells
from haloae.detection.calibration import Unit

Size = tuple[int, int]


class PartScore(NamedTuple):
    """What is said of a named part of an image."""

    score: float
    """Higher is more anomalous; not negative. On a scale of the part's own."""
    threshold: float
    """Of its own; a score above it makes the image anomalous."""
    is_anomalous: bool


@lru_cache(maxsize=4)
def seen_inside(region: Region, canvas: Size) -> Mask:
    """Where a pixel that the network sees counts, as any of the image's that are in it does.

    Args:
        region: of the image.
        canvas: height and width of what the network sees, in pixels.
    """
    return any_in_cells(region.inside, *canvas)


@lru_cache(maxsize=4)
def members_of(region: Region, canvas: Size, grid: Size) -> NDArray[np.bool_]:
    """(parts, rows, columns): which cells of the map are in which part."""
    masks = [region.labels == number for number in range(1, region.parts + 1)]
    return np.stack([any_in_cells(any_in_cells(mask, *canvas), *grid) for mask in masks])


def own_masks(
    seen: Sequence[Mask | None], region: Region | None, canvas: Size
) -> NDArray[np.bool_] | None:
    """What counts of each image of a batch, where that is not what counts of all; else None.

    Args:
        seen: of each image, where a pixel that the network sees counts; None: everywhere.
        region: what counts of all images.
        canvas: height and width of what the network sees, in pixels.

    Returns:
        (B, *canvas).
    """
    if all(mask is None for mask in seen):
        return None
    everywhere = np.ones(canvas, bool)
    usual = everywhere if region is None else seen_inside(region, canvas)
    masks = np.stack([everywhere if mask is None else mask for mask in seen])
    return None if (masks == usual).all() else masks


def part_scores(
    grid_map: NDArray[np.float32],
    members: NDArray[np.bool_],
    units: Sequence[Unit],
    *,
    top_share: float,
) -> list[float]:
    """The score of each part, on its own scale, from a map in the parts' units.

    Args:
        grid_map: (h, w).
        members: (parts, h, w), the cells of each.
        units: of each.
        top_share: of a part's cells that its score is the mean of.
    """
    # Where parts share a cell, its map is in the units of the one that is stricter, see `Parts`.
    limits = np.array([unit.map for unit in units])[:, None, None]
    units_of_cells = np.where(members, limits, np.inf).min(0)
    values = grid_map * np.where(np.isinf(units_of_cells), 1.0, units_of_cells)
    found = []
    for member in members:
        of_part = np.sort(values[member])
        count = max(1, round(top_share * of_part.size))
        found.append(float(of_part[-count:].mean()) if of_part.size else 0.0)
    return found
