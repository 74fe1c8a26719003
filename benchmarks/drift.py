"""Whether alarms of drift hold their rate over good images, and how soon changes are seen.

    python -m benchmarks.drift alarms --out runs/drift-alarms-20 --count 20 [--lines 10]
    python -m benchmarks.drift delays --out runs/drift-delays [--root ROOT --sets tire,kolektor]

By `haloae.server.drift.Drift`, all that it watches, with thresholds as the package fits them; after
an alarm it is said to be put right, and the watch begins anew. Simulated: measures are normal,
scores lognormal, calibration images drawn anew for every line; as often unusable as if the guard's
limit were the highest of the calibration images. Photographs of ROOT, categories in MVTec layout:
the guard is fitted to some good images, streams are drawn from the others with replacement, and
spoilt. It leaves results.json.
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
from haloae.detection.looks import View, look_at
from haloae.detection.prediction import Verdict
from haloae.files import write_atomic
from haloae.server.drift import ANOMALOUS, ONCE_IN, UNUSABLE, Alarm, Drift
from haloae.server.inspection import Inspection
from haloae.server.martingales import Martingales, Rule, reference

COUNTS = (20, 100, 1000)
"""Calibration images."""
SPREADS = (0.02, 0.05, 0.1)
"""Standard deviations of measures among good images; of the logarithm of brightness, for one."""
PROMISED = {1_000_000: 100_000, 10_000: 20_000}
"""One false alarm in so many images: how many of each line it is tried on."""
OF_A_RULE = 10_000, 100
"""One false alarm in so many images, of a rule for k of n alone; lines that it is tried on."""
CAUSES = 2 * (len(MEASURES) + 1) + 2
"""Watches of a line, each of which has an equal share of its false alarms."""
LONGEST = 20_000
"""Good images, see `against_a_fixed_set`."""
DARKER = 0.8
BEFORE = (0, 1000)
"""Good images before the change."""
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


def of_a_rule(count: int, once_in: int, length: int, rng: np.random.Generator) -> int:
    """False alarms of a rule for k of n alone, over one line's good images.

    Args:
        count: calibration images; an image is bad that is beyond the highest of them.
        once_in: images among which there is one false alarm, at most.
        length: images.
        rng: of everything.
    """
    bad = rng.random(length) > rng.random(count).max()
    rule, cried = Rule(1, count), 0
    for is_bad in bad.tolist():
        if rule.add(is_bad) * once_in <= 1:
            rule, cried = Rule(1, count), cried + 1
    return cried


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


def rates(count: int, lines: int) -> list[dict[str, Any]]:
    """False alarms of simulated lines, each with so many calibration images."""
    found = []
    for once_in, length in PROMISED.items():
        raised: list[str] = []
        for line in range(lines):
            rng = np.random.default_rng([count, once_in, line])
            judged = known(simulated(count, 1.0, rng), rng)
            measures = rng.normal(size=(length, len(MEASURES)))
            unusable = rng.random(length) > rng.random(count).max()
            raised += [
                what
                for _, what in alarms(
                    judged, measures, _scores(length, rng), once_in=once_in, unusable=unusable
                )
            ]
        fixed = [
            against_a_fixed_set(count, once_in, np.random.default_rng([count, once_in, draw]))
            for draw in range(10)
        ]
        told = {"count": count, "once_in": once_in, "lines": lines, "length": length}
        found.append(told | {"alarms": raised, "fixed": fixed})
        print(found[-1], flush=True)
    once_in, lines = OF_A_RULE
    length = max(PROMISED.values())
    cried = [
        of_a_rule(count, once_in, length, np.random.default_rng([count, line]))
        for line in range(lines)
    ]
    told = {"count": count, "once_in": once_in, "lines": lines, "length": length}
    found.append(told | {"rule": cried})
    print(found[-1], flush=True)
    return found


def _scores(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.lognormal(0, 0.3, count)


class Stream(NamedTuple):
    """What a watch is fitted to, and what it then looks at."""

    guard: Guard
    good: Draw
    changed: Draw
    anomalous: float = 0.0
    """Share of the changed images whose score is far above the threshold."""


def delays(
    name: str, change: str, fitted: Callable[[np.random.Generator], Stream], draws: int
) -> dict[str, Any]:
    """Images until a change is seen; None: it was not within `MOST`.

    Args:
        name: of the images.
        change: in words.
        fitted: draws a stream.
        draws: streams.
    """
    found: dict[str, Any] = {"images": name, "change": change}
    for before in BEFORE:
        seen = []
        for draw in range(draws):
            rng = np.random.default_rng([before, draw])
            stream = fitted(rng)
            measures = np.concatenate([stream.good(before), stream.changed(MOST)])
            scores = _scores(before + MOST, rng)
            scores[before:][rng.random(MOST) < stream.anomalous] *= 10
            raised = alarms(known(stream.guard, rng), measures, scores, most=1)
            # A false alarm before, were there one, would be counted as not seen.
            seen.append(raised[0][0] - before if raised and raised[0][0] > before else None)
        found |= {f"after {before}": seen, "count": stream.guard.images}
    shown = [_delay(found[f"after {before}"]) for before in BEFORE]
    print(name, change, found["count"], shown, flush=True)
    return found


def simulated_delays() -> list[dict[str, Any]]:
    """Of simulated light, and of defects."""

    def of(count: int, spread: float, light: float, share: float, change: str) -> dict[str, Any]:
        def fitted(rng: np.random.Generator) -> Stream:
            def good(images: int) -> NDArray[np.float64]:
                return rng.normal(0, spread, (images, len(MEASURES)))

            def changed(images: int) -> NDArray[np.float64]:
                shift = [np.log(light) if name in ("dark", "bright") else 0 for name in MEASURES]
                return good(images) + shift

            return Stream(simulated(count, spread, rng), good, changed, share)

        return delays(f"simulated, ± {100 * spread:.0f} %", change, fitted, DRAWS)

    dark = [of(count, spread, DARKER, 0.0, A_FIFTH) for spread in SPREADS for count in COUNTS]
    return dark + [
        of(count, SPREADS[0], 1.0, share, f"{share:.0%} anomalous".replace("%", " %"))
        for share in DEFECTS
        for count in COUNTS
    ]


def of_photographs(folder: Path) -> list[dict[str, Any]]:
    """Of a category's good images, spoilt."""
    paths = load_category(folder).train
    light = [resize(read_image(path), SIZE) for path in paths]
    looks = [look_at(view) for view in light]
    found = []
    for change, spoil in SPOILT.items():
        for count in (count for count in COUNTS if count <= len(light) - 20):

            def fitted(
                rng: np.random.Generator,
                count: int = count,
                spoil: Callable[[View], View] = spoil,
            ) -> Stream:
                order = rng.permutation(len(light))
                guard = Guard.fit(looks[place] for place in order[:count])
                others = [light[place] for place in order[count : count + 60]]
                good = np.array([_row(guard.measure(view)) for view in others])
                changed = np.array([_row(guard.measure(spoil(view))) for view in others])

                def drawn(rows: NDArray[np.float64]) -> Draw:
                    return lambda images: rows[rng.integers(len(rows), size=images)]

                return Stream(guard, drawn(good), drawn(changed))

            found.append(delays(folder.name, change, fitted, DRAWS // 2))
    return found


def moved(view: View) -> View:
    """As a camera sees it that was knocked: by a tenth of the width; what is new repeats the edge.

    >>> moved(np.arange(40, dtype=np.float32).reshape(1, 2, 20))[0, 0, :4].tolist()
    [0.0, 0.0, 0.0, 1.0]
    """
    by = view.shape[2] // 10
    return np.pad(view, ((0, 0), (0, 0), (by, 0)), "edge")[..., :-by]


A_FIFTH = "a fifth less light"
DEFECTS = (0.2, 0.5)
"""Share of images that become anomalous."""
SPOILT: dict[str, Callable[[View], View]] = {
    A_FIFTH: lambda view: view * np.float32(DARKER),
    "moved by a tenth": moved,
    "covered": lambda view: view * np.float32(0.02),
}
"""What becomes of a camera's images."""


def _row(measures: Mapping[str, float]) -> list[float]:
    return [measures[name] for name in MEASURES]


def _delay(seen: Sequence[int | None]) -> list[float]:
    """Median and 95 % quantile; what was not seen counts as `MOST`."""
    values = [MOST if each is None else each for each in seen]
    return [statistics.median(values), float(np.quantile(values, 0.95))]


def rate_table(parts: Sequence[Mapping[str, Any]]) -> Table:
    """False alarms promised and got."""
    rows = []
    every = [each for results in parts for each in results["rates"]]
    for each in sorted(every, key=lambda each: ("rule" in each, each["count"])):
        images = each["lines"] * each["length"]
        most = f"{images / each['once_in']:,g}"
        if "rule" in each:
            watched, got, of_rules, alone = "one rule for k of n", sum(each["rule"]), None, None
        else:
            watched, got = "everything", len(each["alarms"])
            of_rules = sum(what in (ANOMALOUS, UNUSABLE) for what in each["alarms"])
            fixed = statistics.median(each["fixed"])
            alone = f"> {LONGEST:,}" if fixed >= LONGEST else f"{fixed:,.0f}"
        promised = f"{each['once_in']:,}"
        rows.append([watched, each["count"], promised, images, most, got, of_rules, alone])
    columns = [
        "watched", "calibration images", "one false alarm in", "good images", "alarms, at most",
        "alarms", "of these, of k of n",
        "images to one, if p-values were against the calibration images alone",
    ]  # fmt: skip
    return Table(columns, rows, {})


def delay_table(results: Mapping[str, Any]) -> Table:
    """Images until a change is seen."""
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
        rows.append([each["change"], each["images"], each["count"], *cells])
    columns = [
        "change", "images", "calibration images", "from the first on", "after 1,000 good ones"
    ]  # fmt: skip
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
    parser.add_argument("--count", type=int, choices=COUNTS, default=20, help="calibration images")
    parser.add_argument("--lines", type=int, default=10, help="whose good images are simulated")
    arguments = parser.parse_args()
    logging.disable()  # of every alarm
    results: dict[str, Any] = {"machine": machine(1)}
    if arguments.part == "alarms":
        results["rates"] = rates(arguments.count, arguments.lines)
    else:
        results["delays"] = simulated_delays()
        for name in arguments.sets.split(",") if arguments.root else ():
            results["delays"] += of_photographs(arguments.root / name)
    write_atomic(arguments.out / "results.json", f"{json.dumps(results)}\n".encode())


if __name__ == "__main__":
    main()
