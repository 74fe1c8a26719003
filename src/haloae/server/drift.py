"""Whether what comes is still like the good images: what has changed, and alarms that hold a rate.

Watched are the guard's measures of every image (light, focus, colour, place), the scores of normal
images, and how many images are anomalous or unusable. With images like the good ones, the chance
of any alarm within t of them is t / `once_in` at most, all causes together: each has an equal
share of it, see `haloae.server.martingales`.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from threading import Lock
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from haloae.detection.calibration import MIN_IMAGES, Calibration
from haloae.detection.guard import MEASURES, Guard
from haloae.server.inspection import Inspection
from haloae.server.martingales import (
    Martingales,
    Reference,
    Rule,
    reference,
    reference_of_ranges,
)

log = logging.getLogger(__name__)

ONCE_IN = 1_000_000
FIRST = 100
"""Inspections that later ones are compared with, besides the good images."""
RECENT = 20
"""Inspections by whose median it is said how things are now; at first, by the last `LEAST`."""
LEAST = 5
SCORE, ANOMALOUS, UNUSABLE = "score", "anomalous", "unusable"


class Kind(NamedTuple):
    """How a change of a measure is spoken of, and from where on it is one."""

    what: str
    less: str
    more: str
    floor: float
    """Smaller changes are nothing, however sure."""
    is_logarithm: bool = False
    """True: a difference is a factor."""
    grows_with: str = ""
    """A measure whose changes change this one by as much or less, which says nothing."""


KINDS = {
    "dark": Kind("brightness", "darker", "brighter", 0.05, is_logarithm=True),
    "bright": Kind("brightness", "darker", "brighter", 0.05, is_logarithm=True),
    "burnt_out": Kind("brightness", "less overexposed", "more overexposed", 0.01),
    "contrast": Kind("contrast", "flatter", "richer in contrast", 0.05, is_logarithm=True),
    "sharpness": Kind("focus", "blurrier", "sharper", 0.05, True, "bright"),
    "noise": Kind("noise", "less noisy", "noisier", 0.05, True, "bright"),
    "red": Kind("colour", "less red", "redder", 0.02),
    "blue": Kind("colour", "less blue", "bluer", 0.02),
    "colour": Kind("colour", "paler", "more colourful", 0.02),
    "layout": Kind("place", "more alike in layout", "less alike in layout", 0.03),
    SCORE: Kind("scores", "lower", "higher", 0.05),
}
"""By the names of the guard's measures, and of the score, which counts in thresholds."""


class Alarm(NamedTuple):
    """Something that has changed; it stands until somebody says that it is put right."""

    recipe: str
    what: str
    """``brightness``, ``contrast``, ``focus``, ``noise``, ``colour``, ``place``, ``scores``,
    ``anomalous`` or ``unusable``."""
    words: str
    """What has changed, and by how much, when the alarm was raised."""
    time: datetime
    """When it was raised."""
    images: int
    """Inspected since the watch began."""


class DriftState(NamedTuple):
    """How one recipe's images are compared with the good ones."""

    recipe: str
    images: int
    """Inspected since the watch began."""
    alarms: tuple[Alarm, ...]
    """By `what`, one each."""
    evidence: Mapping[str, float]
    """That a measure has changed, from 0 to 1, where the alarm is."""
    change: Mapping[str, float]
    """Of a measure, between what is usual and the median of the last inspections."""


class Judge(Protocol):
    """What a recipe's images are judged by, such as a `haloae.Detector`."""

    @property
    def calibration(self) -> Calibration:
        """Its scores of good images."""

    @property
    def guard(self) -> Guard | None:
        """Its measures of good images; None: there are none."""


class Drift:
    """Watches every recipe, from any thread.

    Args:
        judge_of: what is behind a recipe's name now.
        once_in: images among which there is one false alarm on average, at most.
        seed: of the coins that decide between equals.
        on_alarm: is called with each alarm that is raised.
    """

    def __init__(
        self,
        judge_of: Callable[[str], Judge],
        *,
        once_in: int = ONCE_IN,
        seed: int = 0,
        on_alarm: Callable[[Alarm], None] = lambda alarm: None,
    ) -> None:
        self._judge_of = judge_of
        self._once_in = once_in
        self._on_alarm = on_alarm
        self._generator = np.random.default_rng(seed)
        self._lock = Lock()
        self._recipes: dict[str, tuple[tuple[str, float], _Recipe]] = {}
        """With the model and threshold that each is watched with: with others, it begins anew."""

    def add(self, inspection: Inspection, measures: Mapping[str, float]) -> None:
        """Look at an inspection.

        Args:
            inspection: of any recipe.
            measures: of the image by the guard, see `Prediction.measures`; none: it has no guard.
        """
        name, version = inspection.recipe, (inspection.model, inspection.threshold)
        with self._lock:
            known = self._recipes.get(name)
            if known is None or known[0] != version:
                watch = _Recipe(self._judge_of(name), inspection.threshold, self._generator)
                known = self._recipes[name] = (version, watch)
            raised = known[1].add(inspection, measures, self._once_in)
        for alarm in raised:
            log.warning("recipe %s: %s", alarm.recipe, alarm.words)
            self._on_alarm(alarm)

    def restart(self, recipe: str, *, accept: bool) -> None:
        """Take back a recipe's alarms and watch it anew.

        Args:
            recipe: its name; one that is not watched is left alone.
            accept: True: what comes from now on is what is usual, whatever the good images were;
                False: they still say it, as the cause is put right.
        """
        with self._lock:
            if known := self._recipes.pop(recipe, None):
                version, _ = known
                judge = None if accept else self._judge_of(recipe)
                self._recipes[recipe] = (version, _Recipe(judge, version[1], self._generator))

    def alarms(self) -> list[Alarm]:
        """All that stand, the oldest first."""
        with self._lock:
            found = [
                alarm for _, watch in self._recipes.values() for alarm in watch.alarms.values()
            ]
        return sorted(found, key=lambda alarm: alarm.time)

    def state(self) -> list[DriftState]:
        """Of every recipe that was used, by name."""
        with self._lock:
            return [
                watch.state(name, self._once_in)
                for name, (_, watch) in sorted(self._recipes.items())
            ]


class _Recipe:
    """One recipe's watches."""

    def __init__(
        self, judge: Judge | None, threshold: float, generator: np.random.Generator
    ) -> None:
        guard = judge and judge.guard
        scores = np.array(judge.calibration.scores if judge else ())
        normal = scores[scores < threshold] / (threshold or 1.0)
        above = int((scores > threshold).sum())
        ranges = np.array([guard.limits[name].seen for name in MEASURES]) if guard else None
        self.threshold = threshold or 1.0
        self.measures = _Watch(
            tuple(MEASURES),
            None if ranges is None or not guard else reference_of_ranges(ranges, guard.images),
            generator,
        )
        self.score = _Watch(
            (SCORE,),
            reference(normal[None], generator) if normal.size >= MIN_IMAGES else None,
            generator,
        )
        self.rules = {
            ANOMALOUS: Rule(1 + above, scores.size - above),
            UNUSABLE: Rule(1, guard.images if guard else scores.size),
        }
        self.causes = 2 * (len(MEASURES) + 1) + len(self.rules)
        self.images = 0
        self.alarms: dict[str, Alarm] = {}

    def add(
        self, inspection: Inspection, measures: Mapping[str, float], once_in: int
    ) -> list[Alarm]:
        """Look at one; the alarms that are raised by it."""
        self.images += 1
        limit = once_in * self.causes
        found: dict[str, str] = {}
        values = np.array([measures.get(name, math.nan) for name in MEASURES])
        if np.isfinite(values).all():
            found |= self.measures.add(values, limit)
        if inspection.verdict == "normal":
            found |= self.score.add(np.array([inspection.score / self.threshold]), limit)
        for name, is_bad in (
            (UNUSABLE, inspection.verdict == "unusable"),
            (ANOMALOUS, inspection.verdict == "anomalous"),
        ):
            if name == ANOMALOUS and inspection.verdict == "unusable":
                continue  # nothing can be said of it
            rule = self.rules[name]
            if rule.add(is_bad) * limit <= 1:
                last = list(rule.last)[-RECENT:]
                found.setdefault(name, f"{sum(last)} of the last {len(last)} are {name}")
        raised = [
            Alarm(inspection.recipe, what, words, inspection.time, self.images)
            for what, words in found.items()
            if what not in self.alarms
        ]
        self.alarms |= {alarm.what: alarm for alarm in raised}
        return raised

    def state(self, name: str, once_in: int) -> DriftState:
        """See `DriftState`."""
        limit = once_in * self.causes
        evidence: dict[str, float] = {}
        change: dict[str, float] = {}
        for watch in (self.measures, self.score):
            shares = np.log1p(watch.evidence()) / math.log1p(limit)
            evidence |= zip(watch.names, shares.clip(0, 1).tolist(), strict=True)
            change |= watch.change(RECENT)
        return DriftState(name, self.images, tuple(self.alarms.values()), evidence, change)


class _Watch:
    """Some measures of the same images: against the good ones, and against the first that came."""

    def __init__(
        self, names: tuple[str, ...], good: Reference | None, generator: np.random.Generator
    ) -> None:
        self.names = names
        self.generator = generator
        self.bets = [Martingales(good)] if good else []
        self.usual = [np.median(good.values, 1)] if good else []
        """Of each of the bets: of the good images, of which the two ends may be all that is known,
        the middle."""
        self.first: list[NDArray[np.float64]] = []
        self.recent: deque[NDArray[np.float64]] = deque(maxlen=RECENT)

    def add(self, values: NDArray[np.float64], limit: float) -> dict[str, str]:
        """Look at an image's values; what has changed, and how, in words."""
        self.recent.append(values)
        for bets in self.bets:
            bets.add(values, self.generator)
        if len(self.first) < FIRST:
            self.first.append(values)
            if len(self.first) == FIRST:
                known = np.stack(self.first, 1)
                self.bets.append(Martingales(reference(known, self.generator)))
                self.usual.append(np.median(known, 1))
        is_sure = self.evidence() >= limit
        if not is_sure.any():
            return {}
        changes = self.change(LEAST)
        sizes = {
            name: abs(changes[name]) / KINDS[name].floor
            for name, sure in zip(self.names, is_sure.tolist(), strict=True)
            if sure
        }
        # Of several measures of the same, the one that has changed most comes last.
        found = sorted((name for name in sizes if sizes[name] >= 1), key=sizes.__getitem__)
        return {KINDS[name].what: _words(KINDS[name], changes[name]) for name in found}

    def evidence(self) -> NDArray[np.float64]:
        """(W,) the highest capital of any bets."""
        return np.asarray(np.max([np.zeros(len(self.names)), *self._capital()], 0))

    def _capital(self) -> list[NDArray[np.float64]]:
        return [bets.evidence for bets in self.bets]

    def change(self, images: int) -> dict[str, float]:
        """From what is usual to the median of the last images, where both are known."""
        if not self.bets or not self.recent:
            return {}
        surest = np.argmax(self._capital(), 0)
        usual = np.take_along_axis(np.array(self.usual), surest[None], 0)[0]
        now = np.median(list(self.recent)[-images:], 0)
        found: dict[str, float] = dict(zip(self.names, (now - usual).tolist(), strict=True))
        for name in self.names:
            light = found.get(KINDS[name].grows_with, 0.0)
            found[name] -= min(max(found[name], min(light, 0.0)), max(light, 0.0))
        return found


def _words(kind: Kind, change: float) -> str:
    how = kind.more if change > 0 else kind.less
    if kind.is_logarithm:
        return f"{kind.what}: {abs(math.expm1(change)):.0%} {how} than usual"
    return f"{kind.what}: {how} than usual, by {abs(change):.2g}"
