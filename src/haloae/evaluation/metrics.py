"""How good scores and anomaly maps are, measured against the truth.

Higher score = more anomalous, always. A metric is `None`, never a made-up number, where only one
class was seen. States merge, so that parts of a test set can be measured apart. scikit-learn and
scipy are imported where they are used, so this file is cheap.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Sign, 8 exponent and 12 mantissa bits: bins 0.02 % wide, 2²¹ of them, 50 MB in three histograms.
BIN_BITS = 21
PRO_LIMIT = 0.3
"""False-positive rate up to which the overlap per region counts."""
CURVE_POINTS = 200
"""Most points of a curve that is to be drawn."""


class ImageResult(NamedTuple):
    """Image-level results in [0, 1], or `None` where one class is missing."""

    auroc: float | None
    ap: float | None
    f1max: float | None


class Curve(NamedTuple):
    """Points to draw, at most `CURVE_POINTS`, by rising x; both in [0, 1]."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]


class PixelCurves(NamedTuple):
    """Against the false-positive rate of pixels."""

    roc: Curve
    """Recall."""
    pro: Curve
    """Mean overlap per region, up to `PRO_LIMIT`."""


class PixelResult(NamedTuple):
    """Pixel-level results in [0, 1], or `None` where one class is missing."""

    auroc: float | None
    ap: float | None
    f1max: float | None
    aupro: float | None
    aupro_005: float | None


def image_metrics(scores: NDArray[np.floating], is_anomalous: NDArray[np.bool_]) -> ImageResult:
    """ROC-AUC, average precision and the best F1 over all thresholds.

    Args:
        scores: (N,) finite floats, higher = more anomalous.
        is_anomalous: (N,) bool, True = the image has a defect.

    Raises:
        ValueError: the shapes differ, or a score is not finite.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    scores = np.asarray(scores, dtype=np.float64)
    is_anomalous = np.asarray(is_anomalous, dtype=bool)
    if scores.ndim != 1 or scores.shape != is_anomalous.shape:
        raise ValueError(
            f"expected scores and is_anomalous of one shape (N,), "
            f"got {scores.shape} and {is_anomalous.shape}"
        )
    if not np.isfinite(scores).all():
        index = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"expected finite scores, got {scores[index]} at index {index}")
    if is_anomalous.all() or not is_anomalous.any():
        return ImageResult(None, None, None)

    precision, recall, _ = precision_recall_curve(is_anomalous, scores)
    # 0/0 where every image above the threshold is good: no true positive, so F1 is 0.
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return ImageResult(
        auroc=float(roc_auc_score(is_anomalous, scores)),
        ap=float(average_precision_score(is_anomalous, scores)),
        f1max=float(f1.max()),
    )


def image_roc(scores: NDArray[np.floating], is_anomalous: NDArray[np.bool_]) -> Curve | None:
    """Share of defective against share of good images that score at least as high.

    `None` where one class is missing; arguments as in `image_metrics`.
    """
    from sklearn.metrics import roc_curve

    if is_anomalous.all() or not is_anomalous.any():
        return None
    false_positive_rate, recall, _ = roc_curve(is_anomalous, scores)
    return _thinned(false_positive_rate, recall)


class ImageMetrics:
    """Image metrics over any number of images: a score and a label is kept of each."""

    def __init__(self) -> None:
        self._scores: list[float] = []
        self._labels: list[bool] = []

    def update(self, score: float, is_anomalous: bool) -> None:
        """Take in one image: its score, finite, and True where it has a defect."""
        self._scores.append(score)
        self._labels.append(is_anomalous)

    def merge(self, other: "ImageMetrics") -> None:
        """Take in the images of another state, after one's own."""
        self._scores += other._scores
        self._labels += other._labels

    def compute(self) -> ImageResult:
        """The metrics over all images so far; all `None` while one class of images is missing.

        Raises:
            ValueError: a score is not finite.
        """
        return image_metrics(np.array(self._scores), np.array(self._labels, dtype=bool))


class _Rates(NamedTuple):
    """Of pixels, as the threshold falls; (K + 1,) each, except for the counts, (K,)."""

    false_positives: NDArray[np.int64]
    true_positives: NDArray[np.int64]
    false_positive_rate: NDArray[np.float64]
    recall: NDArray[np.float64]
    overlap: NDArray[np.float64]


class PixelMetrics:
    """Pixel metrics over any number of anomaly maps, in memory that does not grow with it.

    Pixels are counted in histograms whose bins are the leading bits of their float32 value. Such
    bins need no range beforehand and are equally fine, relative to the value, for maps around
    1e-6 and around 1e6. Pixels of one bin count as ties, which costs less than 1e-3 against exact
    values unless the spread of a map is small against its offset (under about 3 %).

    AUPRO is the area under the mean overlap per region against the false-positive rate, up to a
    limit and divided by it (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021).
    Regions are the 8-connected components of each mask; the rate is over all normal pixels.
    """

    def __init__(self) -> None:
        self._normal = np.zeros(2**BIN_BITS, dtype=np.int64)
        self._anomalous = np.zeros(2**BIN_BITS, dtype=np.int64)
        # Anomalous pixels once more, each worth 1 / area of its region: sums to 1 for a region.
        self._overlap = np.zeros(2**BIN_BITS, dtype=np.float64)

    def update(
        self,
        anomaly_map: NDArray[np.float32],
        mask: NDArray[np.bool_],
        inside: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count the pixels of one image.

        Args:
            anomaly_map: (H, W) float32, any range, higher = more anomalous; infinities rank as
                the lowest and highest value.
            mask: (H, W) bool, True = the pixel is part of a defect.
            inside: (H, W) bool, False = the pixel counts for nothing; None: all count.

        Raises:
            ValueError: the shapes differ or are not (H, W), a mask is not boolean, or the map
                has a NaN.
        """
        if anomaly_map.ndim != 2 or anomaly_map.shape != mask.shape:
            raise ValueError(
                f"expected an anomaly map and a mask of one shape (H, W), "
                f"got {anomaly_map.shape} and {mask.shape}"
            )
        if mask.dtype != np.bool_:
            raise ValueError(f"expected a mask of bool, got {mask.dtype}")
        if np.isnan(anomaly_map).any():
            count = int(np.isnan(anomaly_map).sum())
            raise ValueError(f"expected an anomaly map of numbers, got NaN in {count} pixels")

        bins = ordered_bins(anomaly_map)
        normal = ~mask
        if inside is not None:
            if inside.shape != mask.shape or inside.dtype != np.bool_:
                raise ValueError(
                    f"expected a region of bool {mask.shape}, got {inside.dtype} {inside.shape}"
                )
            normal, mask = normal & inside, mask & inside
        add_counts(self._normal, bins[normal])
        if mask.any():
            add_counts(self._anomalous, bins[mask])
            add_counts(self._overlap, bins[mask], weights=_region_weights(mask)[mask])

    def merge(self, other: "PixelMetrics") -> None:
        """Count the pixels of another state too.

        Exact for everything that is a count; the overlap is a sum of fractions, which may differ
        in its last bit with the order of adding.
        """
        self._normal += other._normal
        self._anomalous += other._anomalous
        self._overlap += other._overlap

    def compute(self) -> PixelResult:
        """The metrics over all pixels so far; all `None` while one class of pixels is missing."""
        rates = self._rates()
        if rates is None:
            return PixelResult(None, None, None, None, None)
        true_positives = rates.true_positives
        flagged = true_positives + rates.false_positives
        f1 = 2 * true_positives / (flagged + true_positives[-1])
        return PixelResult(
            auroc=float(np.trapezoid(rates.recall, rates.false_positive_rate)),
            ap=float(np.sum(np.diff(rates.recall) * true_positives / flagged)),
            f1max=float(f1.max()),
            aupro=_area_up_to(PRO_LIMIT, rates.false_positive_rate, rates.overlap),
            aupro_005=_area_up_to(0.05, rates.false_positive_rate, rates.overlap),
        )

    def curves(self) -> PixelCurves | None:
        """What to draw of all pixels so far; `None` while one class of pixels is missing."""
        rates = self._rates()
        if rates is None:
            return None
        return PixelCurves(
            roc=_thinned(rates.false_positive_rate, rates.recall),
            pro=_thinned(*_up_to(PRO_LIMIT, rates.false_positive_rate, rates.overlap)),
        )

    def _rates(self) -> _Rates | None:
        # From the highest score down: what a falling threshold takes in.
        used = np.flatnonzero(self._normal + self._anomalous)[::-1]
        false_positives = np.cumsum(self._normal[used])
        true_positives = np.cumsum(self._anomalous[used])
        if not used.size or not false_positives[-1] or not true_positives[-1]:
            return None
        return _Rates(
            false_positives,
            true_positives,
            false_positive_rate=_rate_from_zero(false_positives),
            recall=_rate_from_zero(true_positives),
            overlap=_rate_from_zero(np.cumsum(self._overlap[used])),
        )


def area_resize(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Resize a mask so that a pixel is set where more than half of its area was.

    Exact for any ratio, up or down. Pillow's BOX filter is not: it gives a source pixel that is
    cut by an output pixel's edge all of its weight or none.

    Args:
        mask: (H, W) bool.
        size: side of the result in pixels, at least 1.

    Returns:
        (size, size) bool.

    Raises:
        ValueError: the mask is not (H, W) with at least one pixel, or the size is below 1.
    """
    if mask.ndim != 2 or not mask.size or size < 1:
        raise ValueError(
            f"expected a mask (H, W) and a size of at least 1, got {mask.shape} and {size}"
        )
    height, width = mask.shape
    # Whole numbers in float64: exact below 2⁵³, and the product is a fast one.
    area = _coverage(height, size) @ mask.astype(np.float64) @ _coverage(width, size).T
    return np.asarray(2 * area > height * width)


def _coverage(length: int, size: int) -> NDArray[np.float64]:
    """(size, length): overlap of each output with each source pixel, in 1 / size source pixels."""
    output = np.arange(size)[:, None] * length
    source = np.arange(length)[None, :] * size
    overlap = np.minimum(output + length, source + size) - np.maximum(output, source)
    return np.asarray(np.maximum(overlap, 0), dtype=np.float64)


def ordered_bins(values: NDArray[np.float32]) -> NDArray[np.intp]:
    """Bins of the same shape, in [0, 2**BIN_BITS), that rise with the value."""
    # + 0 turns -0.0, whose bits differ, into 0.0, its equal.
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)
    is_negative = bits >> 31 == 1
    # Floats are sign and magnitude: flip all bits below zero, only the sign bit elsewhere.
    ordered = bits ^ np.where(is_negative, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    return (ordered >> (32 - BIN_BITS)).astype(np.intp)


def add_counts(
    histogram: NDArray[np.int64] | NDArray[np.float64],
    bins: NDArray[np.intp],
    *,
    weights: NDArray[np.float64] | None = None,
) -> None:
    """Count `bins` into the histogram, touching only the stretch of it that they span."""
    if bins.size:
        first = int(bins.min())
        counts = np.bincount(bins - first, weights=weights)
        histogram[first : first + counts.size] += counts


def _region_weights(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(H, W): 1 / area of the 8-connected region that a pixel is part of, 0 outside."""
    from scipy.ndimage import label

    regions, _ = label(mask, structure=np.ones((3, 3), dtype=bool))
    weights = 1 / np.bincount(regions.ravel()).clip(min=1)
    weights[0] = 0
    return np.asarray(weights[regions])


def _rate_from_zero(cumulative: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
    """(K,) running totals → (K + 1,) from 0 to 1, the start being a threshold above everything."""
    return np.append(0.0, cumulative / cumulative[-1])


def _area_up_to(limit: float, x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Area under y(x), from 0 to the limit, as a share of the limit; linear between the points."""
    x_inside, y_inside = _up_to(limit, x, y)
    return float(np.trapezoid(y_inside, x_inside) / limit)


def _up_to(
    limit: float, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The part of y(x) with x at most the limit, ending at it; linear between the points."""
    is_inside = x <= limit
    return np.append(x[is_inside], limit), np.append(y[is_inside], np.interp(limit, x, y))


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> Curve:
    """Points of a rising curve, evenly spaced along it, so that a steep start keeps its shape."""
    if x.size > CURVE_POINTS:
        travelled = np.append(0.0, np.cumsum(np.diff(x) / x[-1] + np.diff(y)))
        stops = np.linspace(0, travelled[-1], CURVE_POINTS)
        kept = np.unique(np.searchsorted(travelled, stops).clip(max=x.size - 1))
        x, y = x[kept], y[kept]
    return Curve(x, y)
