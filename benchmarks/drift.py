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

import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.drift_delays import of_photographs, simulated_delays
from benchmarks.drift_lines import COUNTS, alarms, known, scores_of, simulated
from benchmarks.machine import machine
from benchmarks.script import leave, parser_of
from benchmarks.tables import Table
from haloae.detection.guard import MEASURES
from haloae.server.drift import ANOMALOUS, UNUSABLE
from haloae.server.martingales import Martingales, Rule, reference

PROMISED = {1_000_000: 100_000, 10_000: 20_000}
"""One false alarm in so many images: how many of each line it is tried on."""
OF_A_RULE = 10_000, 100
"""One false alarm in so many images, of a rule for k of n alone; lines that it is tried on."""
CAUSES = 2 * (len(MEASURES) + 1) + 2
"""Watches of a line, each of which has an equal share of its false alarms."""
LONGEST = 20_000
"""Good images, see `against_a_fixed_set`."""


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
                    judged, measures, scores_of(length, rng), once_in=once_in, unusable=unusable
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


def main() -> None:
    """Measure and write."""
    parser = parser_of(__doc__)
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
    print(leave(results, arguments.out))


if __name__ == "__main__":
    main()
