"""Whether alarms of drift hold their rate over good images, and how soon a change of light is seen.

    python -m benchmarks.drift alarms --out runs/drift-alarms [--lines 10]
    python -m benchmarks.drift delays --out runs/drift-delays [--root ROOT --sets tire,kolektor]

Simulated: measures are normal, scores lognormal, calibration images drawn anew for every line. The
alarms are of many lines at once, by the bets of `haloae.server.martingales`; the delays of one
after the other, by `haloae.server.drift.Drift`, with thresholds as the package fits them.
Photographs of ROOT, categories in MVTec layout: the guard is fitted to some good images, streams
are drawn from the others with replacement, and darkened by multiplying their grey values. It leaves
results.json.
"""

import argparse
import json
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import machine
from benchmarks.tables import Table
from haloae.data.folders import load_category
from haloae.data.images import read_image
from haloae.data.views import resize
from haloae.detection.calibration import Calibration, threshold_at
from haloae.detection.guard import MEASURES, TINTS, Guard, Limits
from haloae.detection.looks import look_at
from haloae.detection.prediction import Verdict
from haloae.files import write_atomic
from haloae.server.drift import FIRST, Alarm, Drift
from haloae.server.inspection import Inspection
from haloae.server.martingales import Martingales, reference, reference_of_ranges

COUNTS = (20, 100, 1000)
"""Calibration images."""
SPREADS = (0.02, 0.05, 0.1)
"""Standard deviations of measures among good images; of the logarithm of brightness, for one."""
PROMISED = {1_000_000: 100_000, 10_000: 20_000}
"""One false alarm in so many images: how many of each line it is tried on."""
CAUSES = 2 * (len(MEASURES) + 1) + 2
"""Watches of a line, each of which has an equal share of that."""
LONGEST = 20_000
"""Good images, see `against_a_fixed_set`."""
DARKER = 0.8
BEFORE = (0, 1000)
"""Good images before the light changes."""
MOST = 400
"""Images after that, in which it must be seen."""
DRAWS = 20
RATE = 0.01
SIZE = 256


class Known(NamedTuple):
    """What a recipe is judged by."""

    calibration: Calibration
    guard: Guard


Draw = Callable[[int], NDArray[np.float64]]
"""(N,) → measures of so many images, (N, measures)."""


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
    known: Known, measures: NDArray[np.float64], rng: np.random.Generator, once_in: int, most: int
) -> list[int]:
    """After how many images each alarm was raised; after each, the watch begins anew.

    Args:
        known: what they are judged by.
        measures: (N, measures) of the images, in order.
        rng: of their scores.
        once_in: images, see `Drift`.
        most: alarms to wait for.
    """
    raised: list[Alarm] = []
    drift = Drift(lambda recipe: known, once_in=once_in, on_alarm=raised.append)
    threshold = known.calibration.threshold.value
    blank = Inspection(
        id="", time=datetime.now(UTC), source="", recipe="r", model="", image="", score=0.0,
        p_value=1.0, threshold=threshold, verdict="normal", reason=None, boxes=(),
    )  # fmt: skip
    found = []
    for place, row in enumerate(measures.tolist()):
        score = float(rng.lognormal(0, 0.3))
        verdict: Verdict = "anomalous" if score > threshold else "normal"
        inspected = replace(blank, score=score, verdict=verdict)
        drift.add(inspected, dict(zip(MEASURES, row, strict=True)))
        if raised:
            found.append(place + 1)
            if len(found) == most:
                break
            raised.clear()
            drift.restart("r", accept=False)
    return found


class Fixed(Martingales):
    """The same bets, with p-values against the calibration images alone."""

    def add(
        self, values: NDArray[np.float64], generator: np.random.Generator
    ) -> NDArray[np.float64]:
        """As `Martingales.add`, but nothing is learnt."""
        before = self.beyond.copy()
        p_values = super().add(values, generator)
        self.beyond = before
        return p_values


def against_a_fixed_set(count: int, once_in: int, rng: np.random.Generator) -> int:
    """Good images until bets against calibration images alone cry, of one measure, or `LONGEST`.

    They may cry no more often than `Drift` may of this measure.
    """
    bets = Fixed(reference(rng.normal(size=(1, count)), rng))
    for place in range(LONGEST):
        bets.add(rng.normal(size=1), rng)
        if bets.evidence[0] >= CAUSES * once_in:
            return place + 1
    return LONGEST


class Streams:
    """Good images of several lines at once, and every bet that `Drift` makes on measures and score.

    Args:
        count: calibration images of each line, drawn for it.
        lines: of them.
        once_in: images, see `Drift`.
        rng: of everything.
    """

    def __init__(self, count: int, lines: int, once_in: int, rng: np.random.Generator) -> None:
        self.rng, self.lines = rng, lines
        self.limit = CAUSES * once_in
        good = rng.normal(size=(lines * len(MEASURES), count))
        ranges = np.stack([good.min(1), good.max(1)], 1)
        self.measures = Martingales(reference_of_ranges(ranges, count))
        self.scores = Martingales(reference(rng.lognormal(0, 0.3, (lines, count)), rng))
        self.since: Martingales | None = None
        self.first: list[NDArray[np.float64]] = []

    def see(self) -> int:
        """One more image of each line; the alarms that it raises, after which bets begin anew."""
        values = self.rng.normal(size=self.lines * len(MEASURES))
        scores = self.rng.lognormal(0, 0.3, self.lines)
        every = np.concatenate([values, scores])
        self.measures.add(values, self.rng)
        self.scores.add(scores, self.rng)
        if self.since is not None:
            self.since.add(every, self.rng)
        elif len(self.first) == FIRST:
            self.since = Martingales(reference(np.stack(self.first, 1), self.rng))
        else:
            self.first.append(every)
        bets = [each for each in (self.measures, self.scores, self.since) if each]
        if max(float(each.capital.max()) for each in bets) < self.limit:
            return 0
        raised = set()
        for each in bets:
            for row in np.flatnonzero(each.evidence >= self.limit):
                raised.add(self._line(int(row)))
        for each in bets:
            lines = np.array([self._line(row) for row in range(len(each.capital))])
            each.capital[np.isin(lines, list(raised))] = 0
        return len(raised)

    def _line(self, row: int) -> int:
        """Whose a row is: rows of measures come first, line by line, then those of scores."""
        whole = self.lines * len(MEASURES)
        return row // len(MEASURES) if row < whole else row - whole


def rates(lines: int) -> list[dict[str, Any]]:
    """False alarms of simulated lines."""
    found = []
    for count in COUNTS:
        for once_in, length in PROMISED.items():
            streams = Streams(count, lines, once_in, np.random.default_rng([count, once_in]))
            got = sum(streams.see() for _ in range(length))
            fixed = [
                against_a_fixed_set(count, once_in, np.random.default_rng([count, once_in, draw]))
                for draw in range(10)
            ]
            told = {"count": count, "once_in": once_in, "lines": lines, "length": length}
            found.append(told | {"alarms": got, "fixed": fixed})
            print(found[-1], flush=True)
    return found


def delays(
    name: str, fitted: Callable[[np.random.Generator], tuple[Guard, Draw, Draw]], draws: int
) -> dict[str, Any]:
    """Images until a change of light is seen; None: it was not within `MOST`.

    Args:
        name: of the images.
        fitted: a guard, and how images come before and after the change.
        draws: streams.
    """
    found: dict[str, Any] = {"images": name}
    for before in BEFORE:
        seen = []
        for draw in range(draws):
            rng = np.random.default_rng([before, draw])
            guard, good, dark = fitted(rng)
            measures = np.concatenate([good(before), dark(MOST)])
            raised = alarms(known(guard, rng), measures, rng, 1_000_000, 1)
            # A false alarm before, were there one, would be counted as not seen.
            seen.append(raised[0] - before if raised and raised[0] > before else None)
        found |= {f"after {before}": seen, "count": guard.images}
    print(name, found["count"], [_delay(found[f"after {before}"]) for before in BEFORE], flush=True)
    return found


def simulated_delays() -> list[dict[str, Any]]:
    """Of simulated light."""

    def of(count: int, spread: float) -> dict[str, Any]:
        def fitted(rng: np.random.Generator) -> tuple[Guard, Draw, Draw]:
            def good(images: int) -> NDArray[np.float64]:
                return rng.normal(0, spread, (images, len(MEASURES)))

            def dark(images: int) -> NDArray[np.float64]:
                shift = [np.log(DARKER) if name in ("dark", "bright") else 0 for name in MEASURES]
                return good(images) + shift

            return simulated(count, spread, rng), good, dark

        return delays(f"simulated, ± {100 * spread:.0f} %", fitted, DRAWS)

    return [of(count, spread) for spread in SPREADS for count in COUNTS]


def of_photographs(folder: Path) -> list[dict[str, Any]]:
    """Of a category's good images, darkened."""
    paths = load_category(folder).train
    light = [resize(read_image(path), SIZE) for path in paths]
    looks = [look_at(view) for view in light]
    found = []
    for count in (count for count in COUNTS if count <= len(light) - 20):

        def fitted(rng: np.random.Generator, count: int = count) -> tuple[Guard, Draw, Draw]:
            order = rng.permutation(len(light))
            guard = Guard.fit(looks[place] for place in order[:count])
            others = order[count : count + 60]
            as_they_are, darkened = (
                np.array([_row(guard.measure(light[place] * factor)) for place in others])
                for factor in (np.float32(1), np.float32(DARKER))
            )

            def drawn(rows: NDArray[np.float64]) -> Draw:
                return lambda images: rows[rng.integers(len(rows), size=images)]

            return guard, drawn(as_they_are), drawn(darkened)

        found.append(delays(folder.name, fitted, DRAWS // 2))
    return found


def _row(measures: Mapping[str, float]) -> list[float]:
    return [measures[name] for name in MEASURES]


def _delay(seen: Sequence[int | None]) -> list[float]:
    """Median and 95 % quantile; what was not seen counts as `MOST`."""
    values = [MOST if each is None else each for each in seen]
    return [statistics.median(values), float(np.quantile(values, 0.95))]


def rate_table(results: Mapping[str, Any]) -> Table:
    """False alarms promised and got."""
    rows = []
    for each in results["rates"]:
        images = each["lines"] * each["length"]
        fixed = statistics.median(each["fixed"])
        alone = f"> {LONGEST:,}" if fixed >= LONGEST else f"{fixed:,.0f}"
        most = images / each["once_in"]
        rows.append(
            [each["count"], f"{each['once_in']:,}", images, f"{most:g}", each["alarms"], alone]
        )
    columns = [
        "calibration images", "one false alarm in", "good images", "alarms, at most",
        "alarms", "images to one, if p-values were against the calibration images alone",
    ]  # fmt: skip
    return Table(columns, rows, {})


def delay_table(results: Mapping[str, Any]) -> Table:
    """Images until a fifth less light is seen."""
    rows = []
    for each in results["delays"]:
        cells = []
        for before in BEFORE:
            seen = each[f"after {before}"]
            middle, late = _delay(seen)
            missed = sum(one is None for one in seen)
            cells.append(
                f"{middle:.0f} ({late:.0f})"
                if not missed
                else f"{middle:.0f} ({missed} of {len(seen)} not)"
            )
        rows.append([each["images"], each["count"], *cells])
    columns = ["images", "calibration images", "from the first on", "after 1,000 good ones"]
    return Table(columns, rows, {})


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("alarms", "delays"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, help="of photographs (default: none)")
    parser.add_argument("--sets", metavar="A,B", default="", help="categories of ROOT")
    parser.add_argument("--lines", type=int, default=10, help="whose good images are simulated")
    arguments = parser.parse_args()
    logging.disable()  # of every alarm
    results: dict[str, Any] = {"machine": machine(1)}
    if arguments.part == "alarms":
        results["rates"] = rates(arguments.lines)
    else:
        results["delays"] = simulated_delays()
        for name in arguments.sets.split(",") if arguments.root else ():
            results["delays"] += of_photographs(arguments.root / name)
    write_atomic(arguments.out / "results.json", f"{json.dumps(results)}\n".encode())


if __name__ == "__main__":
    main()
