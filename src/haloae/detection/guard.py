"""Whether an image can be judged at all: what a covered, defocused or moved camera changes.

A head says where an image differs from good ones, and to most of them an empty picture is a clean
one. So a few measures of the whole image are limited by those of the good images, as the score is.
They are taken of what the network sees, in NumPy alone, beside any backend.

A camera's fault is everywhere and a defect is somewhere. So each measure is limited on the side of
the fault alone, and no limit is within reach of a spot: of whatever is made of a sixth of a good
picture.
"""

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from haloae.data.regions import Mask
from haloae.detection.looks import GRID, LEVEL, SPOT, Look, View, look_at

KEPT = GRID**2 // 2
"""Blocks that a layout is judged by: a spot in the others makes no difference."""
ALIGNED = math.pi / 6
"""Largest limit of a layout: three quarters of the variance of what stands where is the mean's."""
FEWEST_ALIGNED = 30
"""Fewest good images that a layout is limited by: among fewer, none may stand as some others do."""
REFUSED = 1e-3
"""Share of good images that may be called unusable, by all measures together."""
HALF_A_STOP = 0.35
"""Natural logarithm of 1.4: so far from every good image a brightness may be, however alike they
are; contrast, sharpness and noise as well."""
TINT = 0.1
"""Likewise of a colour, in shares of the brightness, and of the layout, in radians."""
TINTS = ("red", "blue", "colour")
"""Those of the measures that are a mean over blocks, each of which counts within bounds."""


class Measure(NamedTuple):
    """How far from the good images is too far, and what to call it."""

    floor: float
    """How far beyond the last good image the limit is at least."""
    less: str | None = None
    """An image below the lower limit; None: there is none."""
    more: str | None = None
    """An image above the upper limit; None: there is none."""
    end: float | None = None
    """No picture is left from here on, so no limit is beyond it, unless a good image is so far."""


MEASURES = {
    "dark": Measure(HALF_A_STOP, less="darker", end=math.log(2 * LEVEL)),
    "bright": Measure(HALF_A_STOP, more="brighter"),
    "burnt_out": Measure(1.5 * SPOT, more="more overexposed", end=0.9),
    "contrast": Measure(HALF_A_STOP, less="flatter"),
    "sharpness": Measure(HALF_A_STOP, less="blurrier"),
    "noise": Measure(HALF_A_STOP, more="noisier"),
    "red": Measure(TINT, less="less red", more="redder"),
    "blue": Measure(TINT, less="less blue", more="bluer"),
    "colour": Measure(TINT, less="paler", more="more colourful"),
    "layout": Measure(TINT, more="less alike in layout"),
}
"""In the order that they are named in; what each is, `Look` and `Guard` say."""
SIDES = sum((kind.less is not None) + (kind.more is not None) for kind in MEASURES.values())


class Limits(BaseModel):
    """A measure of the good images, and what it may be."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seen: tuple[float, float]
    """The lowest and the highest of good images."""
    usable: tuple[float | None, float | None]
    """The lowest and the highest that can be judged; None: any."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = [
            value for value in (self.usable[0], *self.seen, self.usable[1]) if value is not None
        ]
        if known != sorted(known):
            raise ValueError("what was seen must be within the limits")
        return self

    def is_at_most(self, value: float) -> bool:
        """True: there is an upper limit, and it is not above the value."""
        return self.usable[1] is not None and self.usable[1] <= value

    def beyond(self, value: float) -> float:
        """How far a value is below the lower limit (negative) or above the upper; 0: neither.

        Counted from the last good image, in ranges of the good images; infinite where they have
        none, or where the value is no number.
        """
        low, high = self.usable
        if (low is None or low <= value) and (high is None or value <= high):
            return 0.0
        is_below = low is not None and value < low
        distance = value - self.seen[0] if is_below else value - self.seen[1]
        span = self.seen[1] - self.seen[0]
        if span and math.isfinite(distance):
            return distance / span
        return -math.inf if is_below else math.inf


class Guard(BaseModel):
    """What good images look like as a whole, fitted to them.

    ``red``, ``blue`` and ``colour`` of an image are the means of its blocks' tints, within what
    good images' blocks have and `TINT` beyond it: a spot counts by its size, whatever its colour.
    Its ``layout`` is the angle in radians between its blocks and the mean of the good images', over
    the half that fits best: 0 where it is the same picture, π / 2 where it has nothing to do
    with them. It is limited only where the good images are aligned: where the limit, as found from
    them, is `ALIGNED` at most, and there are `FEWEST_ALIGNED` of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    images: PositiveInt
    """Good images it was fitted to."""
    limits: dict[str, Limits]
    """By the names of `MEASURES`."""
    tints: dict[str, tuple[float, float]]
    """The lowest and the highest that a block counts for, by the names of `TINTS`."""
    mean_layout: tuple[Annotated[float, Field(ge=-5, le=1)], ...]
    """(GRID²,), see `Look`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (*self.limits, *self.tints, len(self.mean_layout)) != (*MEASURES, *TINTS, GRID**2):
            raise ValueError(f"needs {', '.join(MEASURES)}, and {GRID**2} blocks")
        return self

    @classmethod
    def fit(cls, looks: Iterable[Look]) -> Self:
        """Fit to what good images look like, at least one."""
        looks = list(looks)
        values = {name: np.array([look.values[name] for look in looks]) for name in looks[0].values}
        spots = {name: np.array([look.spots[name] for look in looks]) for name in values}
        tints = np.stack([look.tints for look in looks])
        bounds = np.stack([tints.min((0, 2)) - TINT, tints.max((0, 2)) + TINT], axis=1)
        values |= zip(TINTS, _means(tints, bounds).T, strict=True)
        spots |= zip(TINTS, SPOT * (bounds[:, 1] - bounds[:, 0]), strict=True)
        layouts = np.stack([look.layout for look in looks])
        mean = layouts.mean(0)
        # Each against the mean of the others: with itself in it, it would look more alike.
        others = mean + (mean - layouts) / max(1, len(looks) - 1)
        angles = [_angle(*both) for both in zip(layouts, others, strict=True)]
        values["layout"], spots["layout"] = np.array(angles), np.zeros(1)
        limits = {name: _limits(values[name], spots[name], kind) for name, kind in MEASURES.items()}
        if len(looks) < FEWEST_ALIGNED or not limits["layout"].is_at_most(ALIGNED):
            limits["layout"] = Limits(seen=limits["layout"].seen, usable=(None, None))
        return cls(
            images=len(looks),
            limits=limits,
            tints=dict(zip(TINTS, bounds.tolist(), strict=True)),
            mean_layout=tuple(round(value, 3) for value in mean.tolist()),
        )

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Bounds of the tints, (3, 2), and the mean layout."""
        return np.array([*self.tints.values()], np.float32), np.array(self.mean_layout, np.float32)

    @property
    def is_aligned(self) -> bool:
        """True: the layout is limited."""
        return self.limits["layout"].usable != (None, None)

    def why_unusable(self, image: View, inside: Mask | None = None) -> str | None:
        """What makes an image too unlike the good ones to be judged, in words; None: nothing.

        Of what counts of it alone, as `look_at`.

        >>> rng = np.random.default_rng(0)
        >>> good = rng.uniform(0.4, 0.6, (30, 3, 32, 32)).astype(np.float32)
        >>> guard = Guard.fit(map(look_at, good))
        >>> guard.why_unusable(good[0]), guard.why_unusable(good[0] / 3)
        (None, 'darker and blurrier than the 30 good images by up to 42 times their range')
        """
        return self.why(self.measure(image, inside))

    def measure(self, image: View, inside: Mask | None = None) -> dict[str, float]:
        """An image's measures, by the names of `MEASURES`; of what counts of it, as `look_at`."""
        look, (bounds, mean_layout) = look_at(image, inside), self._arrays
        values = look.values | dict(zip(TINTS, _means(look.tints, bounds).tolist(), strict=True))
        values["layout"] = _angle(look.layout, mean_layout)
        return values

    def why(self, values: Mapping[str, float]) -> str | None:
        """See `why_unusable`, of an image's measures."""
        beyond = {name: self.limits[name].beyond(value) for name, value in values.items()}
        words = [
            MEASURES[name].less if far < 0 else MEASURES[name].more
            for name, far in beyond.items()
            if far
        ]
        if not words:
            return None
        if not np.isfinite([*values.values()]).all():
            return "it holds values that are no numbers"
        return _sentence([word for word in words if word], self.images, [*beyond.values()])


def _means(tints: NDArray[np.float32], bounds: NDArray[np.float32]) -> NDArray[np.float32]:
    """(…, 3, GRID²) → (…, 3): means of the blocks, each within the bounds, (3, 2)."""
    return np.asarray(tints.clip(bounds[:, :1], bounds[:, 1:]).mean(-1))


def _limits(values: NDArray[np.float64], spots: NDArray[np.float64], kind: Measure) -> Limits:
    """What a measure may be, on the sides that count, given the good images' values."""
    lowest, highest = float(values.min()), float(values.max())
    low = high = None
    if kind.less:
        low = min(-_limit(-values), lowest - kind.floor, float((values - spots).min()))
    if kind.more:
        high = max(_limit(values), highest + kind.floor, float((values + spots).max()))
    if kind.end is not None:
        low = low if low is None or lowest - kind.floor < kind.end else max(low, kind.end)
        high = high if high is None or highest + kind.floor > kind.end else min(high, kind.end)
    return Limits(seen=(lowest, highest), usable=(low, high))


def _limit(values: NDArray[np.float64]) -> float:
    """Upper prediction limit of one more value, for one of `SIDES` shares of `REFUSED`.

    The k values above the median are taken as the median and something exponentially distributed,
    whose tail is heavier than a normal one. With m the mean of those excesses, one more is above
    k · m · (x^(1 / k) - 1) with probability 1 / x: the few images there are make the limit wide.
    """
    middle = float(np.median(values))
    above = values[values > middle] - middle
    if not above.size:
        return middle
    rarity = above.size / values.size * SIDES / REFUSED
    return middle + float(above.sum()) * (math.pow(rarity, 1 / above.size) - 1)


def _sentence(words: list[str], images: int, beyond: list[float]) -> str:
    listed = " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)
    furthest = max(abs(far) for far in beyond)
    times = "more than 100" if furthest > 100 else f"{'up to ' * (len(words) > 1)}{furthest:.2g}"
    return f"{listed} than the {images} good images by {times} times their range"


def _angle(layout: NDArray[np.float32], mean: NDArray[np.float32]) -> float:
    """In radians, over the half of the blocks that fits best but for the exposure."""
    misfit = layout - mean
    exposure = np.partition(misfit, KEPT)[KEPT]
    kept = np.argpartition(np.abs(misfit - exposure), KEPT)[:KEPT]
    one, other = layout[kept], mean[kept]
    one, other = one - one.mean(), other - other.mean()
    lengths = math.sqrt(float(one @ one) * float(other @ other))
    cosine = float(one @ other) / lengths if lengths > 1e-6 else 0.0
    return math.acos(min(max(cosine, -1.0), 1.0))
