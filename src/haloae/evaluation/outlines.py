"""How well outlines fit: intersection over union of what is marked and the true defects.

At the images' own size, where outlines are drawn.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haloae.evaluation.metrics import BIN_BITS, add_counts, ordered_bins

BAND = 2**20
"""Pixels that are counted at once, about, so that a large image takes no more memory."""


class OutlineResult(NamedTuple):
    """Intersections over unions in [0, 1], of the pixels of all images together.

    `None` where no pixel is part of a defect.
    """

    iou: float | None
    """Of what the detector marks, at its own threshold."""
    iou_best: float | None
    """At the one threshold of the map that suits the masks best, which only they can tell: where F1
    is highest. What could be reached, not what is to be expected."""


class OutlineMetrics:
    """Outline quality over any number of images, in memory that does not grow with it.

    The map's values are counted in histograms, as `PixelMetrics` does; what is marked is counted
    as it is.
    """

    def __init__(self) -> None:
        self._normal = np.zeros(2**BIN_BITS, dtype=np.int64)
        self._anomalous = np.zeros(2**BIN_BITS, dtype=np.int64)
        self._hits = 0
        """Pixels marked rightly."""
        self._marked = 0

    def update(
        self,
        anomaly_map: NDArray[np.float32],
        marked: NDArray[np.bool_],
        mask: NDArray[np.bool_],
        inside: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count the pixels of one image.

        Args:
            anomaly_map: (H, W) float32, higher = more anomalous.
            marked: (H, W) bool, True = the detector calls the pixel part of a defect.
            mask: (H, W) bool, True = it is.
            inside: (H, W) bool, False = the pixel counts for nothing; None: all count.

        Raises:
            ValueError: the shapes differ, or the map has a NaN.
        """
        shapes = {array.shape for array in (anomaly_map, marked, mask, inside) if array is not None}
        if len(shapes) != 1 or anomaly_map.ndim != 2:
            raise ValueError(f"expected a map and masks of one shape (H, W), got {sorted(shapes)}")
        if np.isnan(anomaly_map).any():
            raise ValueError("expected an anomaly map of numbers, got NaN")
        rows = max(1, BAND // max(1, anomaly_map.shape[1]))
        for first in range(0, len(anomaly_map), rows):
            band = slice(first, first + rows)
            counts = np.True_ if inside is None else inside[band]
            bins, true = ordered_bins(anomaly_map[band]), mask[band]
            add_counts(self._normal, bins[~true & counts])
            add_counts(self._anomalous, bins[true & counts])
            self._hits += int((marked[band] & true & counts).sum())
            self._marked += int((marked[band] & counts).sum())

    def merge(self, other: "OutlineMetrics") -> None:
        """Count the pixels of another state too; exact."""
        self._normal += other._normal
        self._anomalous += other._anomalous
        self._hits += other._hits
        self._marked += other._marked

    def compute(self) -> OutlineResult:
        """Over all pixels so far."""
        total = int(self._anomalous.sum())
        if not total:
            return OutlineResult(None, None)
        # From the highest value down; union = marked + true - hits, and F1 rises with this ratio.
        used = np.flatnonzero(self._normal + self._anomalous)[::-1]
        hits = np.cumsum(self._anomalous[used])
        union = np.cumsum(self._normal[used]) + total
        return OutlineResult(
            iou=self._hits / (self._marked + total - self._hits),
            iou_best=float((hits / union).max()),
        )
