"""How unlikely the highest value of many regions is: many tests of one image, and one verdict.

A region's value is its peak, or its mean times a weight, where that is higher: large regions that
are moderately unusual all over are told from single cells that are as high. The weight makes both
as rare in good regions. A slide has thousands of regions, each of which may be called anomalous at
the rate that one image may. Its verdict holds that rate all the same:

- from whole good slides, where there are enough: p = (1 + slides at least as high) / (slides + 1);
- else from the values of good regions: the logarithms of the highest quarter are taken as the
  quartile and something exponentially distributed, as well as so many tell its scale; and the
  chance that any of `regions` is as high is at most `regions` times that of one, however they
  depend on each other.

The second holds where the new slide's regions are as the good ones are, of slides that were cut,
stained and scanned alike, and where their tail is no heavier than a power (docs/slides.md).
"""

import math
from collections.abc import Sequence

import numpy as np

from haloae.detection.calibration import (
    LARGEST_LOG,
    TINY,
    Calibration,
    Tail,
    images_needed,
    threshold_at,
)

HIGHEST = 0.25
"""Share of the good regions that the tail is fitted to."""


def needs_more_slides(calibration: Calibration) -> int:
    """Whole good slides that are still missing for a verdict that is made from these alone."""
    return max(0, images_needed(calibration.false_alarm_rate) - len(calibration.slides))


def p_value_of_highest(calibration: Calibration, highest: float, regions: int) -> float:
    """Share of good slides, of so many regions each, whose highest value is at least this.

    Args:
        calibration: of the detector.
        highest: value of a region, not negative.
        regions: that it is the highest of, each of the calibration's `cells`; at least 1.

    Returns:
        in (0, 1].
    """
    if not needs_more_slides(calibration):
        return _share_at_least(calibration.slides, highest)
    values = _values(calibration)
    seen = sum(value >= highest for value in values) / len(values)
    quartile, share, count, mean = _tail(values)
    beyond = math.log(max(highest, TINY)) - quartile
    if beyond <= 0:
        return 1.0
    # With the scale integrated out, the tail of an exponential is (1 + x / sum)^-count.
    one = share * math.pow(1 + beyond / (count * mean), -count) if count else 0.0
    return min(1.0, max(regions * max(one, seen), math.ulp(0.0)))


def threshold_of_highest(calibration: Calibration, regions: int) -> float:
    """The value above which a slide of so many regions is anomalous, at the calibration's rate.

    >>> peaks = tuple(1 + n / 100 for n in range(100))
    >>> few = Calibration(scores=peaks, peaks=peaks, false_alarm_rate=0.05)
    >>> [round(threshold_of_highest(few, n), 2) for n in (1, 100, 10_000)]
    [1.96, 2.85, 4.49]
    """
    rate = calibration.false_alarm_rate
    if not needs_more_slides(calibration):
        allowed = math.floor(rate * (len(calibration.slides) + 1) + 1e-9) - 1
        return float(sorted(calibration.slides)[len(calibration.slides) - 1 - allowed])
    values = _values(calibration)
    quartile, share, count, mean = _tail(values)
    beyond = count * mean * (math.pow(share * regions / rate, 1 / count) - 1) if count else 0.0
    fitted = math.exp(min(quartile + max(beyond, 0.0), LARGEST_LOG))
    allowed = math.floor(rate / regions * len(values) + 1e-9)
    return max(fitted, float(values[len(values) - 1 - allowed]))


def weight_of_means(
    peaks: Sequence[float], means: Sequence[float], rate: float, tail: Tail
) -> float:
    """What means of good regions are multiplied by to exceed a limit as often as their peaks do.

    >>> weight_of_means([2, 4, 6, 8], [1, 1, 2, 2], rate=0.2, tail="all")
    4.0

    Args:
        peaks: of good regions.
        means: of the same.
        rate: at which they are to be as rare.
        tail: see `threshold_at`.
    """
    limits = [threshold_at(values, rate, tail).value for values in (peaks, means)]
    return limits[0] / limits[1] if limits[1] > TINY else 0.0


def _values(calibration: Calibration) -> tuple[float, ...]:
    return calibration.regions or calibration.peaks


def _tail(values: Sequence[float]) -> tuple[float, float, int, float]:
    """Upper quartile of the logarithms, share above it, count of those, and their mean excess."""
    logs = np.log(np.maximum(np.asarray(values, np.float64), TINY))
    quartile = float(np.quantile(logs, 1 - HIGHEST))
    above = logs[logs > quartile] - quartile
    mean = float(above.mean()) if above.size else 0.0
    return quartile, above.size / logs.size, int(above.size), mean


def _share_at_least(ascending: Sequence[float], value: float) -> float:
    return (1 + sum(one >= value for one in ascending)) / (len(ascending) + 1)
