"""What is written to a folder of a detector that was measured."""

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from haloae.claims import Results
from haloae.data.folders import Category
from haloae.detection.predictor import Predictor
from haloae.files import write_atomic
from haloae.outputs.report import REPORT

if TYPE_CHECKING:
    from haloae.evaluation.evaluate import Evaluation, Progress
    from haloae.outputs.report.section import Section

EVALUATION = Results("evaluation", ("scores.csv", "metrics.json", REPORT))


def write_evaluation(
    evaluation: "Evaluation",
    detector: Predictor,
    category: Category,
    out: Path,
    *,
    losses: Path | None = None,
    progress: "Progress" = iter,
) -> "Section":
    """Write metrics.json, scores.csv and report.html to a folder.

    Args:
        evaluation: of the detector on the category.
        detector: scores the training images, and a few once more, for the report.
        category: that was scored.
        out: the folder.
        losses: the CSV of the training's losses, for the report; it may be missing.
        progress: wraps the training images, where someone wants to watch.

    Returns:
        What the page says of the category, for a page about several.

    Raises:
        MissingExtraError: what makes the page is not installed.
        OutputError: the folder cannot be written to.
    """
    # Here, as a machine that only predicts has no use for what makes pages.
    from haloae.outputs.report.page import write_report
    from haloae.outputs.report.section import make_section

    text = io.StringIO()
    writer = csv.DictWriter(text, evaluation.rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(evaluation.rows)
    write_atomic(out / "scores.csv", text.getvalue().encode("utf-8", "surrogateescape"))
    metrics = json.dumps(evaluation.metrics.as_dict(), indent=2)
    write_atomic(out / "metrics.json", f"{metrics}\n".encode())
    section = make_section(detector, category, evaluation, losses=losses, progress=progress)
    write_report(out / REPORT, section.name, [section])
    return section
