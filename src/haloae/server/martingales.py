"""Bets that what comes is unlike what came before, and rules for k of the last n; NumPy alone.

A p-value against a fixed set of calibration images is valid alone, but as a stream such values are
neither independent nor quite uniform: any test of that fires within some hundred good images. Here
each is taken against the calibration images *and all that came since* (conformal prediction,
online; Vovk, Gammerman and Shafer, 2005), so that in good times they are independent and uniform,
and whoever bets against that gains nothing on average, however long it goes on.
"""

import math
from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SHARES = (0.0, 0.1, 0.5)
"""Of a reference that lie beyond a cut, on either side: bets are on values beyond the cuts."""
STAKES = (0.1, 0.35, 0.95)
"""How many values beyond a cut a bet is on."""
MOST_CUTS = 200
"""Values that a reference is kept by; of more, those that lie evenly in rank."""
MOST = 1e30
"""Capital beyond which nothing is more certain."""
WINDOWS = (20, 200)
"""The n of the rules for k of n."""


class Reference(NamedTuple):
    """What values are ranked among, for each of W measures."""

    values: NDArray[np.float64]
    """(W, G) ascending."""
    weights: NDArray[np.float64]
    """(W, G + 1) of the gaps before, between and after them: the chance that the next value falls
    there, in shares of their sum."""
    order: NDArray[np.float64]
    """(W, G) that decides between a value and its equals, ascending among these: seeded coins."""


def reference(values: NDArray[np.float64], generator: np.random.Generator) -> Reference:
    """Of values that are all known: each gap between neighbours is as likely as any other.

    Args:
        values: (W, N) of N images, in any order.
        generator: of the coins.
    """
    coins = generator.random(values.shape)
    ranked = np.lexsort((coins, values), axis=1)
    count = values.shape[1]
    kept = np.unique(np.linspace(0, count - 1, min(count, MOST_CUTS)).round().astype(int))
    places = ranked[:, kept]
    gaps = np.diff([-1, *kept, count]).astype(float)
    return Reference(
        np.take_along_axis(values, places, 1),
        np.tile(gaps, (len(values), 1)),
        np.take_along_axis(coins, places, 1),
    )


def reference_of_ranges(ranges: NDArray[np.float64], count: int) -> Reference:
    """Of images of which the lowest and the highest value are known: (W, 2) of `count` images.

    Their equals count as inside, as it is not known how many of the images have them.
    """
    weights = np.tile([1.0, count - 1.0, 1.0], (len(ranges), 1))
    return Reference(ranges, weights, np.tile([-1.0, 2.0], (len(ranges), 1)))


class Martingales:
    """Bets on W measures at once, each on its own.

    Of each bet, `capital` is what is in hand if a unit was staked anew on every image
    (Shiryaev and Roberts): in good times it has grown by one an image on average, so the chance
    that it reaches C within t images is t / C at most.
    """

    def __init__(self, known: Reference) -> None:
        self.values, self.order = known.values, known.order
        count, size = self.values.shape
        above = np.cumsum(known.weights[:, ::-1], 1)[:, ::-1]
        self.beyond = np.hstack([above, np.zeros((count, 1))])
        """(W, G + 2) how much lies in each gap and above it, of all that is known; at last, 0."""
        self.rows, self.gaps = np.arange(count), np.arange(size + 2)
        # A cut is named by the first gap above it.
        inside = [min(int(size * share), (size - 1) // 2) for share in SHARES]
        self.cuts = np.array(
            [*(size - place for place in inside), *(1 + place for place in inside)]
        )
        self.is_above = np.arange(len(self.cuts)) < len(SHARES)
        """(cuts,) True: the bet is on values above it; False: on those below."""
        self.capital = np.zeros((count, len(self.cuts), len(STAKES)))

    def add(
        self, values: NDArray[np.float64], generator: np.random.Generator
    ) -> NDArray[np.float64]:
        """Bet on one image's values, pay, and learn from them.

        Args:
            values: (W,), finite.
            generator: of the coins.

        Returns:
            (W,) smoothed p-values: the share of what is known that is higher.
        """
        coins, within = generator.random((2, len(values)))
        column = values[:, None]
        is_equal_below = (self.values == column) & (self.order < coins[:, None])
        gaps = ((self.values < column) | is_equal_below).sum(1)
        total, here = self.beyond[:, 0], self.beyond[self.rows, gaps]
        higher = self.beyond[self.rows, gaps + 1]
        p_values = (higher + within * (here - higher)) / total
        self._pay(p_values[:, None], self.beyond[:, self.cuts] / total[:, None])
        self.beyond += self.gaps <= gaps[:, None]
        return np.asarray(p_values)

    def _pay(self, p_values: NDArray[np.float64], above: NDArray[np.float64]) -> None:
        """What was bet on is paid by how unlikely it was: on average, as much as was staked."""
        has_come = (p_values < above) == self.is_above
        chance = np.where(self.is_above, above, 1 - above)[..., None]
        stake = np.maximum(STAKES, chance)
        paid = np.where(has_come[..., None], stake / chance, (1 - stake) / (1 - chance))
        self.capital = np.minimum((1 + self.capital) * paid, MOST)

    @property
    def evidence(self) -> NDArray[np.float64]:
        """(W,) capital of each measure, which it has spread evenly over its bets."""
        return np.asarray(self.capital.mean((1, 2)))


class Rule:
    """So many of the last n are more than chance, given all that is known of how many there are.

    Args:
        bad: of the calibration images, and one, as the next may be as bad as any of them.
        good: the other calibration images.
    """

    def __init__(self, bad: int, good: int) -> None:
        self.bad, self.good = bad, good
        self.last: deque[bool] = deque(maxlen=max(WINDOWS))

    def add(self, is_bad: bool) -> float:
        """Count one image.

        Returns:
            the chance of so many bad ones among the last n, at most, by the n for which it is
            smallest; 1 after a good one, which makes nothing worse.
        """
        self.last.append(is_bad)
        self.bad, self.good = self.bad + is_bad, self.good + (not is_bad)
        if not is_bad:
            return 1.0
        recent = list(self.last)
        chances = [self._chance(recent[-window:]) for window in WINDOWS]
        return min(1.0, len(WINDOWS) * min(chances))

    def _chance(self, window: list[bool]) -> float:
        found, size = sum(window), len(window)
        return tail(found, size, self.bad - found, self.good - size + found)


def tail(found: int, size: int, bad: int, good: int) -> float:
    """Chance that at least `found` of the next `size` images are bad: beta-binomial.

    With n calibration images of which the k highest are bad, the next image is bad with
    probability (k + 1) / (n + 1), and whether it is tells of those after it.

    >>> round(tail(1, 1, 1, 20), 4), round(tail(2, 2, 1, 20) * 21 * 11, 4)
    (0.0476, 1.0)

    Args:
        found: bad ones.
        size: images.
        bad: k + 1.
        good: n - k; 0: no image is known to be good, so that no number of bad ones is unlikely.
    """
    if good == 0:
        return 1.0
    whole = math.lgamma(bad) + math.lgamma(good) - math.lgamma(bad + good)
    total = 0.0
    for each in range(found, size + 1):
        ways = math.lgamma(size + 1) - math.lgamma(each + 1) - math.lgamma(size - each + 1)
        so = math.lgamma(bad + each) + math.lgamma(good + size - each)
        total += math.exp(ways + so - math.lgamma(bad + good + size) - whole)
    return min(total, 1.0)
