"""What good images look like to a fitted network, and what score is too high for one.

Everything here comes from good images, each scored as if it had been left out. Nothing of a test
set is seen.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from haloae.config import Fraction

MIN_IMAGES = 4
"""Fewest good images a calibration is made from: three degrees of freedom for the tail fit."""
TINY = 1e-30
LEAST = 1e-2
"""Of the highest value: what is less counts as that. A copy of an image scores next to nothing, and
by the logarithm of nothing anything at all would be usual."""
Tail = Literal["all", "upper"]
LARGEST_LOG = 700.0
"""Its exponential still is a finite float."""


class Threshold(NamedTuple):
    """A limit that good images exceed at a wanted rate."""

    value: float
    extrapolated: bool
    """True: there were too few images to see the rate; the value is a fit to the tail."""


class Unit(BaseModel):
    """What scores and map of a named part of the image are given in: its own thresholds.

    So that parts of which good images vary little and much are held to limits of their own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    score: PositiveFloat
    map: PositiveFloat


class Calibration(BaseModel):
    """Scores of held-out good images and what follows from them.

    >>> calibration = Calibration(
    ...     scores=(1, 2, 3, 4, 5, 6, 7, 8, 9), peaks=(3,) * 9, false_alarm_rate=0.1
    ... )
    >>> calibration.threshold
    Threshold(value=9.0, extrapolated=False)
    >>> calibration.p_value(8.5), calibration.p_value(9.5)
    (0.2, 0.1)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scores: tuple[NonNegativeFloat, ...]
    """Image scores, ascending, each with the other images' statistics."""
    peaks: tuple[NonNegativeFloat, ...]
    """Highest value of each image's anomaly map, ascending."""
    false_alarm_rate: Fraction
    """Share of good images that may be called anomalous."""
    cells: PositiveInt | None = None
    """Fewest that a peak is the highest of; None where peaks are of whole images."""
    mean_weight: NonNegativeFloat = 0.0
    """Of regions of slides: what their mean is multiplied by, to be as rare as a peak as high."""
    regions: tuple[NonNegativeFloat, ...] = ()
    """Value of each good region of slides, ascending: its peak, or its weighted mean, if that is
    higher; empty in files that know of peaks alone."""
    slides: tuple[NonNegativeFloat, ...] = ()
    """Highest value of each whole good slide's regions, ascending, see `highest.py`."""
    tail: Tail = "all"
    """What a threshold that was never seen is fitted to, see `threshold_at`; files that do not say
    have ``all``."""
    fitted_threshold: NonNegativeFloat | None = None
    """Of scores, see `fitted`; None in files that do not say, for which it is computed."""
    fitted_pixel_threshold: NonNegativeFloat | None = None
    """Of peaks."""
    units: tuple[Unit, ...] = ()
    """Of the named parts of the image, that scores, peaks and their thresholds are in."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(len(self.scores), len(self.peaks)) < MIN_IMAGES:
            raise ValueError(f"needs at least {MIN_IMAGES} held-out images")
        for values in (self.scores, self.peaks, self.regions, self.slides):
            if list(values) != sorted(values):
                raise ValueError("scores, peaks, regions and slides must be in ascending order")
        if self.regions and len(self.regions) != len(self.peaks):
            raise ValueError("each region must have a peak and a value")
        return self

    @cached_property
    def threshold(self) -> Threshold:
        """A score above it makes an image anomalous."""
        return self._threshold(self.scores, self.fitted_threshold)

    @cached_property
    def pixel_threshold(self) -> Threshold:
        """A map value above it marks a defect: at most that share of good images has any."""
        return self._threshold(self.peaks, self.fitted_pixel_threshold)

    def _threshold(self, values: Sequence[float], fitted: float | None) -> Threshold:
        if fitted is None:
            return threshold_at(values, self.false_alarm_rate, self.tail)
        return Threshold(fitted, extrapolated=len(values) < self.images_needed)

    def fitted(self) -> Self:
        """The same with its thresholds in it, so that who loads a model needs no quantiles."""
        return self.model_copy(
            update={
                "fitted_threshold": self.threshold.value,
                "fitted_pixel_threshold": self.pixel_threshold.value,
            }
        )

    @property
    def extrapolated(self) -> bool:
        """True: fewer images than the false-alarm rate needs."""
        return self.threshold.extrapolated

    @property
    def set_by(self) -> str | None:
        """Who has set the thresholds, when and in which file, in words; None: they were fitted."""
        return None

    @property
    def images_needed(self) -> int:
        """Held-out images from which the threshold needs no extrapolation."""
        return images_needed(self.false_alarm_rate)

    def p_value(self, score: float) -> float:
        """Share of good images, this one counted with them, that score at least as high.

        ``(1 + number of held-out scores ≥ score) / (n + 1)``, from 1 / (n + 1) to 1.
        """
        return _p_value(self._sorted_scores, score)

    @cached_property
    def _sorted_scores(self) -> np.ndarray:
        return np.asarray(self.scores)


class StatedCalibration(Calibration):
    """A calibration whose thresholds somebody has stated, wherever: they need not be a fit."""

    stated_threshold: Threshold
    stated_pixel_threshold: Threshold
    origin: str | None = None
    """See `set_by`; None: the model file states them."""

    @property
    def set_by(self) -> str | None:
        """See `Calibration.set_by`."""
        return self.origin

    @cached_property
    def threshold(self) -> Threshold:
        """A score above it makes an image anomalous."""
        return self.stated_threshold

    @cached_property
    def pixel_threshold(self) -> Threshold:
        """A map value above it marks a defect."""
        return self.stated_pixel_threshold


def _p_value(ascending: np.ndarray, score: float) -> float:
    at_least = len(ascending) - int(np.searchsorted(ascending, score, side="left"))
    return (1 + at_least) / (len(ascending) + 1)


def images_needed(rate: float) -> int:
    """Fewest held-out images whose p-values can be as small as `rate`.

    >>> images_needed(0.01)
    99
    """
    return math.ceil(1 / rate - 1e-9) - 1


def threshold_at(values: Sequence[float], rate: float, tail: Tail = "upper") -> Threshold:
    """Limit that a good image exceeds with probability `rate` at most.

    With n ≥ 1 / rate - 1 values it is one of them, so that exceeding it means p ≤ rate (conformal
    prediction). With fewer, the logarithms of the values are taken as normal, and the limit is the
    upper prediction limit of one more. ``upper``: by the upper half of the logarithms, k of them,
    median + t(k) · their root mean square distance from it · √(1 + π / 2n). No low value moves it:
    an image that is given twice scores next to nothing where its twin is remembered. Where half of
    them are the lowest, as copies of one image are, it is the highest. ``all``: mean + t(n - 1) ·
    std · √(1 + 1 / n).

    >>> threshold_at([1, 2, 3, 4], rate=0.2)
    Threshold(value=4.0, extrapolated=False)
    >>> threshold_at([1, 2, 3, 4], rate=0.1).extrapolated
    True

    Args:
        values: at least `MIN_IMAGES` of good images, not negative.
        rate: in (0, 1).
        tail: which values a limit that was never seen is fitted to.
    """
    n = len(values)
    if n >= images_needed(rate):
        # exceeding k of them at most is allowed: (1 + k) / (n + 1) ≤ rate
        allowed = min(math.floor(rate * (n + 1) + 1e-9), n) - 1
        return Threshold(float(sorted(values)[n - 1 - allowed]), extrapolated=False)
    from scipy.special import stdtrit

    logs = np.log(np.maximum(np.asarray(values, dtype=np.float64), max(TINY, LEAST * max(values))))
    # By symmetry of t: 1 - rate would lose a tiny rate's digits.
    if tail == "all":
        spread = logs.std(ddof=1) * math.sqrt(1 + 1 / n)
        limit = logs.mean() - stdtrit(n - 1, rate) * spread
    else:
        logs.sort()
        if logs[(n - 1) // 2] == logs[0]:  # half are copies: too little tells how others vary
            return Threshold(float(max(values)), extrapolated=True)
        middle = np.median(logs)
        above = logs[-(n // 2) :] - middle
        spread = math.sqrt(np.square(above).mean() * (1 + math.pi / (2 * n)))
        limit = middle - stdtrit(above.size, rate) * spread
    return Threshold(math.exp(min(limit, LARGEST_LOG)), extrapolated=True)
