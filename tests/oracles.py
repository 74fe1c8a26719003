"""Slow, obvious versions of what the package computes, to compare with."""

from fractions import Fraction

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score


def exact_pixel_metrics(
    anomaly_maps: list[np.ndarray], masks: list[np.ndarray]
) -> dict[str, float]:
    """Every pixel kept, every distinct score a threshold; names as in `PixelResult`."""
    scores = np.concatenate([anomaly_map.ravel() for anomaly_map in anomaly_maps])
    is_anomalous = np.concatenate([mask.ravel() for mask in masks])
    thresholds = np.unique(scores)[::-1]
    true_positives = count_at_least(scores[is_anomalous], thresholds)
    flagged = count_at_least(scores, thresholds)
    return {
        "auroc": float(roc_auc_score(is_anomalous, scores)),
        "ap": float(average_precision_score(is_anomalous, scores)),
        "f1max": float((2 * true_positives / (flagged + is_anomalous.sum())).max()),
        "aupro": exact_aupro(anomaly_maps, masks, limit=0.3),
        "aupro_005": exact_aupro(anomaly_maps, masks, limit=0.05),
    }


def exact_aupro(anomaly_maps: list[np.ndarray], masks: list[np.ndarray], *, limit: float) -> float:
    """Area under FPR → mean overlap per region up to the limit, one trapezoid after another."""
    pairs = list(zip(anomaly_maps, masks, strict=True))
    normal = np.concatenate([anomaly_map[~mask] for anomaly_map, mask in pairs])
    regions = [
        np.array([anomaly_map[position] for position in region])
        for anomaly_map, mask in pairs
        for region in connected_regions(mask)
    ]
    thresholds = np.unique(np.concatenate([normal, *regions]))[::-1]
    rates = count_at_least(normal, thresholds) / len(normal)
    overlaps = np.mean([count_at_least(r, thresholds) / len(r) for r in regions], axis=0)
    area, last_rate, last_overlap = 0.0, 0.0, 0.0
    for rate, overlap in zip(rates, overlaps, strict=True):
        if rate > limit:
            overlap_at_limit = last_overlap + (overlap - last_overlap) * (limit - last_rate) / (
                rate - last_rate
            )
            area += (limit - last_rate) * (last_overlap + overlap_at_limit) / 2
            break
        area += (rate - last_rate) * (last_overlap + overlap) / 2
        last_rate, last_overlap = rate, overlap
    return float(area / limit)


def count_at_least(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """For each threshold, how many scores reach it."""
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")


def connected_regions(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """8-connected regions by flood fill, each a list of (row, column)."""
    unseen = {(int(row), int(column)) for row, column in zip(*np.nonzero(mask), strict=True)}
    regions = []
    while unseen:
        region = [unseen.pop()]
        for row, column in region:  # grows while it is walked
            around = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & unseen
            unseen -= around
            region.extend(around)
        regions.append(region)
    return regions


def best_f1(scores: np.ndarray, is_anomalous: np.ndarray) -> float:
    """The best F1 over every threshold that is one of the scores."""
    results = []
    for threshold in scores:
        is_flagged = scores >= threshold
        hits = np.sum(is_flagged & is_anomalous)
        results.append(2 * hits / (is_flagged.sum() + is_anomalous.sum()))
    return float(max(results))


def area_resize_by_loops(mask: np.ndarray, size: int) -> np.ndarray:
    """Area-average resize and > 1/2, in fractions, one source pixel at a time."""
    height, width = mask.shape
    row_step, column_step = Fraction(height, size), Fraction(width, size)
    result = np.zeros((size, size), dtype=bool)
    for row, column in np.ndindex(size, size):
        covered = Fraction(0)
        for i, j in np.ndindex(height, width):
            tall = min((row + 1) * row_step, i + 1) - max(row * row_step, i)
            wide = min((column + 1) * column_step, j + 1) - max(column * column_step, j)
            if mask[i, j] and tall > 0 and wide > 0:
                covered += tall * wide
        result[row, column] = covered / (row_step * column_step) > Fraction(1, 2)
    return result
