"""Boxes around the connected regions of a map, by NumPy alone."""

import numpy as np
from numpy.typing import NDArray

from haloae.detection.prediction import Prediction
from haloae.server.inspection import Box

LONGEST = 2048
"""Pixels of the longer side that regions are told apart at; maps have far fewer cells."""
MOST_BOXES = 64
"""The highest ones; further ones are left out."""


def boxes_of(prediction: Prediction) -> tuple[Box, ...]:
    """Around each region of `Prediction.defects` whose pixels touch, highest peak first.

    Of images whose longer side is above `LONGEST` pixels, regions are those of the map at that
    side, and a box is right to one of its pixels.
    """
    threshold = prediction.mark_above
    if not prediction.grid_map.max() > threshold:  # nor is anything between its cells
        return ()
    height, width = prediction.size
    scale = max(1.0, max(height, width) / LONGEST)
    if scale > 1:
        shape = max(1, round(height / scale)), max(1, round(width / scale))
        anomaly_map = prediction.map_at(shape)
    else:
        anomaly_map = prediction.anomaly_map
    rows, columns = (old / new for old, new in zip((height, width), anomaly_map.shape, strict=True))
    boxes = [
        Box(
            int(left * columns),
            int(top * rows),
            min(width, int(np.ceil(right * columns))),
            min(height, int(np.ceil(bottom * rows))),
            peak,
        )
        for left, top, right, bottom, peak in regions(anomaly_map, threshold)
    ]
    return tuple(sorted(boxes, key=lambda box: -box.peak)[:MOST_BOXES])


def regions(values: NDArray[np.float32], threshold: float) -> list[Box]:
    """Boxes of the regions above a threshold, whose cells touch by a side or a corner.

    Each row's runs of cells are joined to those of the row above that they touch.

    >>> regions(np.array([[0, 2, 0], [0, 0, 3]], np.float32), 1)
    [Box(left=1, top=0, right=3, bottom=2, peak=3.0)]

    Args:
        values: (H, W).
        threshold: a value above it belongs to a region.
    """
    is_above = np.pad(values > threshold, ((0, 0), (1, 1)))
    edges = np.diff(is_above.astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    stops = np.nonzero(edges == -1)[1]
    parents = list(range(len(rows)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    for upper, lower in _touching(rows, starts, stops):
        parents[root(lower)] = root(upper)
    found: dict[int, Box] = {}
    for run, (row, start, stop) in enumerate(
        zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True)
    ):
        box = Box(start, row, stop, row + 1, float(values[row, start:stop].max()))
        other = found.setdefault(root(run), box)
        found[root(run)] = Box(
            min(box.left, other.left),
            min(box.top, other.top),
            max(box.right, other.right),
            max(box.bottom, other.bottom),
            max(box.peak, other.peak),
        )
    return list(found.values())


def _touching(
    rows: NDArray[np.intp], starts: NDArray[np.intp], stops: NDArray[np.intp]
) -> list[tuple[int, int]]:
    """Pairs of runs in rows that follow each other, which touch by a side or a corner."""
    pairs = []
    firsts = np.searchsorted(rows, np.arange(rows[-1] + 2 if len(rows) else 0)).tolist()
    first, last = starts.tolist(), stops.tolist()
    for row in range(1, len(firsts) - 1):
        upper, lower = firsts[row - 1], firsts[row]
        while upper < firsts[row] and lower < firsts[row + 1]:
            if first[upper] <= last[lower] and first[lower] <= last[upper]:
                pairs.append((upper, lower))
            if last[upper] <= last[lower]:
                upper += 1
            else:
                lower += 1
    return pairs
