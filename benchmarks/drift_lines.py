"""Lines whose good images are simulated, watched as the service watches them."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haloae.detection.calibration import Calibration, threshold_at
from haloae.detection.guard import MEASURES, TINTS, Guard, Limits
from haloae.detection.prediction import Verdict
from haloae.server.drift import ONCE_IN, Alarm, Drift
from haloae.server.inspection import Inspection

COUNTS = (20, 100, 1000)
"""Calibration images."""
RATE = 0.01


class Known(NamedTuple):
    """What a recipe is judged by."""

    calibration: Calibration
    guard: Guard


def simulated(count: int, spread: float, rng: np.random.Generator) -> Guard:
    """A guard that was fitted to images with such measures."""
    good = rng.normal(0, spread, (len(MEASURES), count))
    limits = {
        name: Limits(seen=(float(row.min()), float(row.max())), usable=(None, None))
        for name, row in zip(MEASURES, good, strict=True)
    }
    bounds = dict.fromkeys(TINTS, (0.0, 0.0))
    return Guard(images=count, limits=limits, tints=bounds, mean_layout=(0.0,) * 256)


def known(guard: Guard, rng: np.random.Generator) -> Known:
    """With scores of as many images."""
    scores = tuple(sorted(rng.lognormal(0, 0.3, guard.images).tolist()))
    limit = threshold_at(scores, RATE).value
    calibration = Calibration(
        scores=scores,
        peaks=scores,
        false_alarm_rate=RATE,
        fitted_threshold=limit,
        fitted_pixel_threshold=limit,
    )
    return Known(calibration, guard)


def alarms(
    known: Known,
    measures: NDArray[np.float64],
    scores: NDArray[np.float64],
    *,
    once_in: int = ONCE_IN,
    most: int = 10**9,
    unusable: NDArray[np.bool_] | None = None,
) -> list[tuple[int, str]]:
    """After how many images each alarm was raised, and of what; after each, it is put right.

    Args:
        known: what they are judged by.
        measures: (N, measures) of the images, in order.
        scores: (N,).
        once_in: images, see `Drift`.
        most: alarms to wait for.
        unusable: (N,) what cannot be judged; None: what the guard refuses.
    """
    raised: list[Alarm] = []
    drift = Drift(lambda recipe: known, once_in=once_in, on_alarm=raised.append)
    threshold = known.calibration.threshold.value
    blank = Inspection(
        id="", time=datetime.now(UTC), source="", recipe="r", model="", image="", score=0.0,
        p_value=1.0, threshold=threshold, verdict="normal", reason=None, boxes=(),
    )  # fmt: skip
    found = []
    for place, (row, score) in enumerate(zip(measures.tolist(), scores.tolist(), strict=True)):
        values = dict(zip(MEASURES, row, strict=True))
        is_refused = known.guard.why(values) if unusable is None else unusable[place]
        verdict: Verdict = "anomalous" if score > threshold else "normal"
        verdict = "unusable" if is_refused else verdict
        drift.add(replace(blank, score=score, verdict=verdict), values)
        if raised:
            found += [(place + 1, alarm.what) for alarm in raised]
            if len(found) >= most:
                break
            raised.clear()
            drift.restart("r", accept=False)
    return found


def scores_of(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Of good images, (count,)."""
    return rng.lognormal(0, 0.3, count)
