"""The demo from end to end: makes images, fits a detector to each category, and measures it."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from haloae.claims import Results, claim_folder
from haloae.config import Config
from haloae.data.folders import load_category
from haloae.demo_set.pictures import write_demo
from haloae.detector import fit_detector
from haloae.experiments.benchmark import evaluate_into
from haloae.experiments.grid import MEASURED
from haloae.outputs.report.page import REPORT, write_report
from haloae.outputs.tables import terminal
from haloae.training.run_folder import MODEL

DATA = "data"
"""Folder of the images, below the demo's own."""
COLUMNS = {
    "image AUROC": "image_auroc",
    "pixel AUROC": "pixel_auroc",
    "AUPRO": "pixel_aupro",
    "pixel difference": "pixel_difference_image_auroc",
    "detected": "detection_rate",
    "false alarms": "false_alarm_rate",
}
"""What the table shows, and what it is called in metrics.json."""


class Outcome(NamedTuple):
    """What came out for one category."""

    category: str
    metrics: dict[str, Any]
    """As in its metrics.json."""
    seconds: float
    """To train and to evaluate."""
    backbone: str
    """The trunk, and which weights it has."""


def run_demo(
    out: Path,
    config: Config,
    *,
    overwrite: bool = False,
    device: str = "auto",
    progress: bool = False,
) -> list[Outcome]:
    """Make the images, train and evaluate.

    Args:
        out: gets ``data/<category>``, beside it ``<category>`` with model and measurements, and
            ``report.html`` about all of them.
        config: of every detector.
        overwrite: True: replace what `out` holds.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: True: show bars on stderr.

    Raises:
        OutputError: `out` is not empty, or something cannot be written.
        WeightsError: the backbone's weights cannot be had.
    """

    def bar(items: Iterable[Any], title: str) -> Iterable[Any]:
        shown: Iterable[Any] = tqdm(items, title, disable=not progress, leave=False)
        return shown

    outcomes, sections = [], []
    with claim_folder(out, Results("demo", (REPORT,)), overwrite=overwrite) as page_folder:
        for folder in write_demo(out / DATA, progress=lambda items: bar(items, "making images")):
            start = time.perf_counter()
            category = load_category(folder)
            with claim_folder(out / folder.name, MEASURED, overwrite=True) as run:
                detector = fit_detector(
                    category.train,
                    config,
                    name=folder.name,
                    run=run,
                    device=device,
                    progress=progress,
                ).detector
                detector.save(run / MODEL)
                metrics, section = evaluate_into(
                    run, detector, category, progress=progress, strict=True
                )
            sections.append(section)
            outcomes.append(
                Outcome(
                    category=folder.name,
                    metrics=metrics,
                    seconds=time.perf_counter() - start,
                    backbone=f"{config.network.trunk}, {detector.provenance.backbone} weights",
                )
            )
        write_report(page_folder / REPORT, "HaloAE demo", sections)
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes for a terminal: the backbone, then a line for each category."""
    rows = []
    for outcome in outcomes:
        values = [f"{outcome.metrics[name]:.3f}" for name in COLUMNS.values()]
        rows.append([outcome.category, *values, f"{outcome.seconds:.0f}"])
    lines = terminal(rows, ["category", *COLUMNS, "seconds"])
    return f"backbone: {outcomes[0].backbone}\n{lines}"
