"""From what experiments have left to the tables of results files.

Figures come from the runs' own files, and what is only counted from none.
"""

import csv
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import faults, mutants, service_faults, speed_pages, thresholds
from benchmarks.script import left
from benchmarks.tables import Found, Table
from benchmarks.ways import finished
from haloae.detection.calibration import Calibration
from haloae.detection.good import tail_of
from haloae.detection.heads import head_named
from haloae.detection.model_file import read_model
from haloae.experiments.benchmark import summarise
from haloae.experiments.grid import MEAN
from haloae.training.run_folder import MODEL

FIGURES = {
    "image_auroc": ("image AUROC", 3),
    "pixel_difference": ("pixel difference", 3),
    "pixel_auroc": ("pixel AUROC", 3),
    "pixel_aupro": ("AUPRO", 3),
    "outline_iou": ("outline IoU", 3),
    "outline_iou_best": ("best outline IoU", 3),
    "detection_rate": ("defects detected", 2),
    "false_alarm_rate": ("false alarms", 2),
}
"""A run's metrics: the column each becomes, and its digits."""
WANTED = (0.01, 0.03, 0.05, 0.1)
"""False-alarm rates that a user may ask for."""


def of_runs(make: Callable[[Sequence[Mapping[str, Any]]], Table]) -> Callable[..., Found]:
    """A table of the runs of `haloae benchmark`, or of what runs as it does."""

    def made(folders: Sequence[Path]) -> Found:
        runs = finished(*folders)
        return Found(make(runs), _circumstances(runs))

    return made


def late(module: str) -> Callable[[Sequence[Path]], Found]:
    """The table of a module that is imported late: it adds heads to the package's."""

    def made(folders: Sequence[Path]) -> Found:
        runs = finished(*folders)
        make = importlib.import_module(f"benchmarks.{module}").table
        return Found(make(runs), _circumstances(runs))

    return made


def _circumstances(runs: Sequence[Mapping[str, Any]]) -> str:
    """Versions, weights and seeds of runs."""
    told = {
        "haloae": [run["package_version"] for run in runs],
        "by": [run["metrics"]["engine"] for run in runs],
        "weights": [run["metrics"]["backbone"] for run in runs],
        "seeds": [str(run["seed"]) for run in runs],
    }
    return "; ".join(f"{name} {' and '.join(sorted(set(each)))}" for name, each in told.items())


def benchmark(folders: Sequence[Path]) -> Found:
    """A row for each variant and category, the mean over categories last."""
    runs = finished(*folders)
    for run in runs:
        run["metrics"] |= rates_now(run["at"])
    results = summarise("", runs)
    rows = []
    for found in results["summary"]:
        name = found["category"]
        values = {**found, "pixel_difference": results["pixel_difference"].get(name)}
        if name == MEAN:
            values |= {
                metric: _mean(results["summary"], found["variant"], metric)
                for metric in FIGURES
                if values[metric] is None
            }
        shown = "**mean**" if name == MEAN else name
        rows.append([found["variant"], shown, *(values[metric] for metric in FIGURES)])
    table = Table(["variant", "set", *dict(FIGURES.values())], rows, dict(FIGURES.values()))
    return Found(table, _circumstances(runs))


def _mean(summary: Sequence[Mapping[str, Any]], variant: str, metric: str) -> dict[str, Any] | None:
    """Over the categories that can have the metric: without masks there are no pixel metrics.

    None if the variant lacks one that others have.
    """
    of_categories = [row for row in summary if row["category"] != MEAN and row.get(metric)]
    wanted = {row["category"] for row in of_categories}
    found = [row[metric]["mean"] for row in of_categories if row["variant"] == variant]
    return {"mean": fmean(found), "n": 1} if found and len(found) == len(wanted) else None


def rates_now(run: Path) -> dict[str, float | None]:
    """A run's rates with thresholds as the package fits them now: scores outlive a change of that.

    Args:
        run: a folder with model file and scores.csv.
    """
    header, _ = read_model(run / MODEL)
    above = _above(run, header.calibration.false_alarm_rate)
    return {
        metric: fmean(above[is_good]) if above[is_good] else None
        for metric, is_good in (("detection_rate", False), ("false_alarm_rate", True))
    }


def wanted(folders: Sequence[Path]) -> Found:
    """A row for each set of the first seed: what is found and stopped at each wanted rate."""
    runs = [run for run in finished(*folders) if run["seed"] == 0]
    rows = []
    for run in runs:
        header, _ = read_model(run["at"] / MODEL)
        row = [run["category"], run["metrics"]["image_auroc"], len(header.calibration.scores)]
        for rate in WANTED:
            above = _above(run["at"], rate)
            row.append(f"{100 * fmean(above[False]):.0f} % ({sum(above[True])})")
        rows.append([*row, len(above[True])])
    columns = ["set", "image AUROC", "fitted to", *(f"at {100 * r:g} %" for r in WANTED)]
    return Found(Table([*columns, "good test images"], rows, {}), _circumstances(runs))


def _above(run: Path, rate: float) -> dict[bool, list[bool]]:
    """Of good test images, under True, and of others: whether each is above the threshold."""
    header, _ = read_model(run / MODEL)
    known = header.calibration
    limit = Calibration(
        scores=known.scores,
        peaks=known.peaks,
        false_alarm_rate=rate,
        tail=tail_of(head_named(header.config.detection.head)),
    ).threshold.value
    above: dict[bool, list[bool]] = {True: [], False: []}
    with (run / "scores.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        for row in csv.DictReader(file):
            above[row["label"] == "good"].append(float(row["score"]) > limit)
    return above


def demo(folders: Sequence[Path]) -> Found:
    """A row for each category of `haloae demo`."""
    rows, told = [], set()
    for path in sorted(path for each in folders for path in each.glob("*/metrics.json")):
        metrics = json.loads(path.read_text("utf-8"))
        metrics["pixel_difference"] = metrics["pixel_difference_image_auroc"]
        rows.append([path.parent.name, *(metrics.get(metric) for metric in FIGURES)])
        told.add(f"preset {metrics['preset']}; weights {metrics['backbone']}; {metrics['engine']}")
    return Found(Table(["images", *dict(FIGURES.values())], rows, {}), "; ".join(sorted(told)))


def of_one(make: Callable[[dict[str, Any]], Table]) -> Callable[[Sequence[Path]], Found]:
    """A table of the results.json in one folder."""

    def made(folders: Sequence[Path]) -> Found:
        (results,) = _results(folders)
        return Found(make(results), speed_pages.measured(results))

    return made


def of_several(
    make: Callable[[Sequence[Mapping[str, Any]]], Table],
) -> Callable[[Sequence[Path]], Found]:
    """A table of the results.json in each of several folders, measured on what the first tells."""

    def made(folders: Sequence[Path]) -> Found:
        results = _results(folders)
        return Found(make(results), speed_pages.measured(results[0]))

    return made


def all_splits(folders: Sequence[Path]) -> Found:
    """All splits of `benchmarks.thresholds`'s folders together."""
    results = _results(folders)
    splits = [each for found in results for each in found["splits"]]
    return Found(thresholds.table({"splits": splits}), speed_pages.measured(results[0]))


def tried_again(folders: Sequence[Path]) -> Found:
    """See `benchmarks.mutants`: a first run, and the same again with new tests."""
    told, _ = mutants.results(folders[0])
    return Found(mutants.table(folders), speed_pages.measured(told))


def campaign(folders: Sequence[Path]) -> Found:
    """See `benchmarks.faults`."""
    found = faults.results(folders)
    return Found(faults.table(folders), speed_pages.measured(found[0]) if found else "")


def service_campaign(folders: Sequence[Path]) -> Found:
    """See `benchmarks.service_faults`."""
    found = faults.results(folders)
    return Found(service_faults.table(found), speed_pages.measured(found[0]) if found else "")


def _results(folders: Sequence[Path]) -> list[dict[str, Any]]:
    return [left(each) for each in folders]


def of_code(make: Callable[[], Table]) -> Callable[[Sequence[Path]], Found]:
    """A table that is counted: there are no runs."""
    return lambda _: Found(make())
