"""How sure a difference between two detectors is: the same test images, drawn again and again.

Reads the scores.csv that `haloae benchmark` has left in each run; `benchmarks.results paired` calls
it. Images are drawn anew with replacement, good and defective ones apart, the same for both
detectors; of a detector with several seeds the mean over these counts, as in the tables of means.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from benchmarks.tables import Table
from benchmarks.ways import counted_as

DRAWS = 2000
ALL = "**mean**"


class Scores(NamedTuple):
    """Of one set's test images by one detector."""

    good: NDArray[np.float64]
    """(seeds, images)."""
    defective: NDArray[np.float64]
    """Likewise."""


def table(runs: Sequence[Mapping[str, Any]], *, mine: str = "default") -> Table:
    """A row for each rival and set: both AUROCs, the difference in points, its 95 % interval.

    Args:
        runs: finished, with ``at``, the folder of each.
        mine: the variant that the others are compared with.
    """
    rows: list[list[Any]] = []
    for rival in dict.fromkeys(run["variant"] for run in runs):
        if rival == mine:
            continue
        groups: dict[str, list[tuple[float, float, NDArray[np.float64]]]] = {}
        for name in dict.fromkeys(run["category"] for run in runs):
            pair = [_scores(runs, variant, name) for variant in (mine, rival)]
            groups.setdefault(counted_as(name), []).append(compared(*pair))
        means = {name: _mean(each) for name, each in groups.items()}
        for name, (ours, theirs, drawn) in {**means, ALL: _mean(list(means.values()))}.items():
            low, high = np.quantile(drawn, [0.025, 0.975])
            interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
            rows.append([rival, name, ours, theirs, f"{100 * (ours - theirs):+.1f}", interval])
    columns = ["rival", "set", f"`{mine}`", "the rival", "points", "95 % interval"]
    return Table(columns, rows, {})


def compared(ours: Scores, theirs: Scores) -> tuple[float, float, NDArray[np.float64]]:
    """AUROCs of both, and the differences, ours less theirs, of every draw.

    Raises:
        ValueError: they are not of the same images.
    """
    sizes = ours.good.shape[1], ours.defective.shape[1]
    if sizes != (theirs.good.shape[1], theirs.defective.shape[1]):
        raise ValueError("the runs to be compared scored different images.")
    generator = np.random.default_rng(0)
    drawn = np.empty(DRAWS)
    for draw in range(DRAWS):
        good, defective = (generator.integers(size, size=size) for size in sizes)
        one, other = (
            auroc(each.good[:, good], each.defective[:, defective]) for each in (ours, theirs)
        )
        drawn[draw] = one - other
    return auroc(*ours), auroc(*theirs), drawn


def auroc(good: NDArray[np.float64], defective: NDArray[np.float64]) -> float:
    """Mean over seeds, (seeds, images) each."""
    count = defective.shape[1]
    ranks = rankdata(np.concatenate([defective, good], axis=1), axis=1)[:, :count].sum(1)
    return float(((ranks - count * (count + 1) / 2) / (count * good.shape[1])).mean())


def _mean(
    each: Sequence[tuple[float, float, NDArray[np.float64]]],
) -> tuple[float, float, NDArray[np.float64]]:
    ours, theirs, drawn = zip(*each, strict=True)
    return float(np.mean(ours)), float(np.mean(theirs)), np.mean(drawn, axis=0)


def _scores(runs: Sequence[Mapping[str, Any]], variant: str, name: str) -> Scores:
    """Of every seed of a variant on a set, images in the order of their names."""
    found = [
        _read(run["at"] / "scores.csv")
        for run in runs
        if (run["variant"], run["category"]) == (variant, name)
    ]
    if not found or any(each.keys() != found[0].keys() for each in found):
        raise ValueError(f"{variant} has no runs on {name}, or its runs scored different images.")
    columns: dict[bool, list[list[float]]] = {True: [], False: []}
    for path in sorted(found[0]):
        columns[found[0][path][0]].append([each[path][1] for each in found])
    return Scores(*(np.array(columns[is_good]).T for is_good in (True, False)))


def _read(path: Path) -> dict[str, tuple[bool, float]]:
    """By image: whether it is good, and its score."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return {
            row["path"]: (row["label"] == "good", float(row["score"]))
            for row in csv.DictReader(file)
        }
