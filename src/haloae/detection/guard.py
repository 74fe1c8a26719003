"""Whether an image can be judged at all: what a covered, defocused or moved camera changes.

A head says where an image differs from good ones, and to most of them an empty picture is a clean
one. So a few measures of the whole image are limited by those of the good images, as the score is.
They are taken of what the network sees, in NumPy alone, beside any backend.

A camera's fault is everywhere and a defect is somewhere: the measures are those that a change in
less than a third of the picture hardly moves, and each is limited on the side of the fault alone.
"""

import math
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveInt, model_validator

GRID = 16
"""Blocks a side that the picture is averaged in."""
REFUSED = 1e-3
"""Share of good images that may be called unusable, by all measures together."""
HALF_A_STOP = 0.35
"""Natural logarithm of 1.4: so far from every good image a brightness may be, however alike they
are; contrast, sharpness and noise as well."""
TINT = 0.1
"""Shares of the brightness or of the picture, likewise; for the layout, radians."""
LEVEL = 4 / 255
"""Added before a logarithm: differences of a few grey levels in the dark are nothing."""
SAMPLE = 2000
"""Pixels that the noise is measured on, at least."""
BURNT_OUT = 0.99
"""From this value on, a pixel in all of its channels is as bright as can be told."""


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
    "burnt_out": Measure(TINT, more="more overexposed", end=0.9),
    "contrast": Measure(HALF_A_STOP, less="flatter"),
    "sharpness": Measure(HALF_A_STOP, less="blurrier"),
    "noise": Measure(HALF_A_STOP, more="noisier"),
    "red": Measure(TINT, less="less red", more="redder"),
    "blue": Measure(TINT, less="less blue", more="bluer"),
    "colour": Measure(TINT, less="paler", more="more colourful"),
    "layout": Measure(TINT, more="less alike in layout"),
}
"""In the order that they are named in; what each is, `look_at` says, and of the layout `Guard`."""
SIDES = sum((kind.less is not None) + (kind.more is not None) for kind in MEASURES.values())


class Look(NamedTuple):
    """What an image looks like as a whole."""

    values: dict[str, float]
    """By the names of `MEASURES`, without the layout."""
    layout: NDArray[np.float32]
    """(GRID²,) where it is bright and where dark: of mean 0 and length 1, or all 0."""


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

    The layout of an image is the angle in radians between its blocks and the mean of the good
    images': 0 where it is the same picture, π / 2 where it has nothing to do with them. It is
    limited only where the good images are aligned, which is to say so close to their mean that a
    picture that has nothing to do with them would be beyond the limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    images: PositiveInt
    """Good images it was fitted to."""
    limits: dict[str, Limits]
    """By the names of `MEASURES`."""
    mean_layout: tuple[float, ...]
    """(GRID²,), see `Look`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.limits.keys() != MEASURES.keys() or len(self.mean_layout) != GRID**2:
            raise ValueError(f"needs limits of {', '.join(MEASURES)}, and {GRID**2} blocks")
        return self

    @classmethod
    def fit(cls, images: Iterable[NDArray[np.float32]]) -> Self:
        """Fit to good images, gone through once; 1 kB of each is kept meanwhile.

        Args:
            images: at least one, each (3, S, S) RGB in [0, 1].
        """
        looks = [look_at(image) for image in images]
        layouts = np.stack([look.layout for look in looks])
        total = layouts.sum(0)
        values = {name: np.array([look.values[name] for look in looks]) for name in looks[0].values}
        # Each against the mean of the others: with itself in it, it would look more alike.
        values["layout"] = np.array([_angle(layout, total - layout) for layout in layouts])
        limits = {name: _limits(values[name], kind) for name, kind in MEASURES.items()}
        highest = limits["layout"].usable[1]
        if highest is None or highest >= math.pi / 2:
            limits["layout"] = Limits(seen=limits["layout"].seen, usable=(None, None))
        mean = tuple(round(float(value), 4) for value in _unit(total))
        return cls(images=len(looks), limits=limits, mean_layout=mean)

    @cached_property
    def _mean(self) -> NDArray[np.float32]:
        return np.array(self.mean_layout, np.float32)

    @property
    def is_aligned(self) -> bool:
        """True: the layout is limited."""
        return self.limits["layout"].usable != (None, None)

    def why_unusable(self, image: NDArray[np.float32]) -> str | None:
        """What makes an image too unlike the good ones to be judged, in words; None: nothing.

        Args:
            image: (3, S, S) RGB in [0, 1], as the network sees it.

        >>> rng = np.random.default_rng(0)
        >>> good = rng.uniform(0.4, 0.6, (30, 3, 32, 32)).astype(np.float32)
        >>> guard = Guard.fit(good)
        >>> guard.why_unusable(good[0]), guard.why_unusable(good[0] / 3)
        (None, 'darker than the 30 good images by more than 100 times their range')
        """
        look = look_at(image)
        values = {**look.values, "layout": _angle(look.layout, self._mean)}
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


def look_at(image: NDArray[np.float32]) -> Look:
    """Measure an image.

    - ``dark``, ``bright``: logarithm of the brightness that a third of the blocks stays below, and
      that a third is above; brightness is the mean of the channels.
    - ``burnt_out``: share of pixels that are white.
    - ``contrast``: logarithm of standard deviation over mean of the brightness.
    - ``sharpness``, ``noise``: logarithm of the mean and of the median absolute Laplacian.
    - ``red``, ``blue``: how much brighter than green, in shares of the brightness.
    - ``colour``: mean difference of the highest and the lowest channel, likewise.

    Args:
        image: (3, S, S) RGB in [0, 1], S at least 32.
    """
    grey = (image[0] + image[1] + image[2]) / np.float32(3)
    blocks = _in_blocks(grey)
    steps = np.sort(blocks, axis=None)
    # Every other row and column is enough.
    beside = grey[1:-1:2, :-2:2] + grey[1:-1:2, 2::2] + grey[:-2:2, 1:-1:2] + grey[2::2, 1:-1:2]
    laplacian = np.abs(4 * grey[1:-1:2, 1:-1:2] - beside)
    few = np.ascontiguousarray(image[:, ::2, ::2])
    red, green, blue = few.mean((1, 2)).tolist()
    lowest = few.min(0)
    mean = float(blocks.mean())
    variance = float(np.vdot(grey, grey)) / grey.size - mean**2
    # Sampled, as a median takes as long as all the rest.
    sample = laplacian.ravel()[:: max(1, laplacian.size // SAMPLE)]
    values = {
        "dark": _log(float(steps[GRID**2 // 3])),
        "bright": _log(steps[-(GRID**2) // 3]),
        "burnt_out": float((lowest >= BURNT_OUT).mean()),
        "contrast": _log(math.sqrt(max(variance, 0))) - _log(mean),
        "sharpness": _log(float(laplacian.mean())),
        "noise": _log(float(np.median(sample))),
        "red": (red - green) / (mean + LEVEL),
        "blue": (blue - green) / (mean + LEVEL),
        "colour": float((few.max(0) - lowest).mean()) / (mean + LEVEL),
    }
    return Look(values, _unit(blocks.ravel()))


def _limits(values: NDArray[np.float64], kind: Measure) -> Limits:
    """What a measure may be, on the sides that count, given the good images' values."""
    lowest, highest = float(values.min()), float(values.max())
    low = min(-_limit(-values), lowest - kind.floor) if kind.less else None
    high = max(_limit(values), highest + kind.floor) if kind.more else None
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


def _log(value: float) -> float:
    return math.log(value + LEVEL)


def _angle(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """In radians, between one of length 1 or 0 and another of any."""
    return math.acos(min(max(float(one @ _unit(other)), -1.0), 1.0))


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of mean 0 and length 1; all 0 where they are the same but for rounding."""
    centred = values - values.mean()
    length = math.sqrt(centred @ centred)
    return np.asarray(centred / length if length > 1e-4 else 0 * centred, np.float32)


def _in_blocks(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W) → (GRID, GRID) means of its blocks."""
    rows, columns = (_averaging(side) for side in picture.shape)
    return np.asarray(rows @ picture @ columns.T)


@lru_cache
def _averaging(side: int) -> NDArray[np.float32]:
    """(GRID, side): the weights of the pixels in each block's mean."""
    weights = np.zeros((GRID, side), np.float32)
    weights[np.arange(side) * GRID // side, np.arange(side)] = 1
    return np.asarray(weights / weights.sum(1, keepdims=True))
