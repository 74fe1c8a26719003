"""What the report says of one category.

What it holds is bounded: a histogram, curves of a few hundred points and a few chosen images,
however many images were scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from haloae._version import __version__
from haloae.data.folders import GOOD, Category
from haloae.data.images import shown_path
from haloae.data.regions import region_words
from haloae.detection.predictor import Predictor
from haloae.errors import EXTRAS, MissingExtraError
from haloae.evaluation.evaluate import Evaluation, Metrics, Progress
from haloae.evaluation.metrics import (
    PRO_LIMIT,
    Curve,
    PixelCurves,
    image_metrics,
    image_roc,
)
from haloae.outputs.report.examples import Gallery, scored_galleries, training_gallery
from haloae.outputs.report.loss_log import read_losses
from haloae.outputs.report.words import (
    counted,
    limits_of,
    percent,
    protocol_entries,
    shown,
    three,
    verdict,
)

try:
    from markupsafe import Markup

    from haloae.outputs.report.charts import (
        Axis,
        Line,
        histogram,
        line_chart,
    )
except ModuleNotFoundError as error:
    if error.name not in EXTRAS:
        raise
    raise MissingExtraError(error.name, EXTRAS[error.name]) from error

MOST_ROWS = 40
"""Rows of a table."""
NUMBERS = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image average precision",
    "image_f1max": "Image F1, best threshold",
    "pixel_difference_image_auroc": "Image AUROC of the plain pixel difference",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel average precision",
    "pixel_f1max": "Pixel F1, best threshold",
    "pixel_aupro": "AUPRO, false-positive rate up to 0.3",
    "pixel_aupro_005": "AUPRO, false-positive rate up to 0.05",
    "outline_iou": "Outlines, intersection over union with the true ones",
    "outline_iou_best": "The same at the threshold that suits these masks best",
    "detection_rate": "Share of defective images found",
    "false_alarm_rate": "Share of good images called defective",
    "wanted_false_alarm_rate": "False-alarm rate asked for",
    "threshold": "Threshold of the score",
    "held_out": "Left-out good images behind the threshold",
    "ms_per_image": "Milliseconds per image",
}


class Tile(NamedTuple):
    """A number that is shown large."""

    label: str
    value: str
    note: str = ""


class Chart(NamedTuple):
    """A drawing; `key` says what its colours mean, as (class, words)."""

    title: str
    drawing: Markup
    note: str = ""
    key: Sequence[tuple[str, str]] = ()
    dots: Sequence[str] = ()
    """Shapes of the key's marks; lines or boxes where empty."""


class DefectRow(NamedTuple):
    """One kind of defect, or the good images."""

    label: str
    images: int
    called: int
    auroc: float | None
    """Against all good images."""
    median: float
    is_good: bool


@dataclass(frozen=True, slots=True)
class Section:
    """What a page says of one category."""

    name: str
    verdict: str
    tiles: Sequence[Tile]
    charts: Sequence[Chart]
    galleries: Sequence[Gallery]
    defects: Sequence[DefectRow]
    defects_left_out: int
    limits: Sequence[str]
    numbers: Sequence[tuple[str, str]]
    settings: Sequence[tuple[str, str]]


def make_section(
    detector: Predictor,
    category: Category,
    evaluation: Evaluation,
    *,
    losses: Path | None = None,
    progress: Progress = iter,
) -> Section:
    """All that the page says of a category; scores the training images, and a few once more.

    Args:
        detector: that did the scoring.
        category: that was scored.
        evaluation: what came out.
        losses: the CSV of the training's losses; where it is None or missing there is no curve.
        progress: wraps the training images where someone wants to watch.
    """
    metrics = evaluation.metrics
    defects, left_out = _defects(evaluation.rows)
    return Section(
        name=shown_path(category.root.resolve().name),
        verdict=verdict(metrics),
        tiles=_tiles(metrics),
        charts=_charts(evaluation, losses),
        galleries=[
            *scored_galleries(detector, category, evaluation),
            *training_gallery(detector, category, progress=progress),
        ],
        defects=defects,
        defects_left_out=left_out,
        limits=limits_of(metrics, evaluation.skipped, len(category.skipped)),
        numbers=[(label, shown(getattr(metrics, key))) for key, label in NUMBERS.items()],
        settings=_settings(detector, metrics),
    )


def _tiles(metrics: Metrics) -> list[Tile]:
    def rate(value: float | None, count: int) -> str:
        return "" if value is None else f"{round(value * count)} of {count}"

    plain = metrics.pixel_difference_image_auroc
    against = "" if plain is None else f"pixel difference: {plain:.3f}"
    best = ""
    if metrics.outline_iou_best is not None:
        best = f"at most {metrics.outline_iou_best:.3f}, test set's best threshold"
    tiles = [
        Tile(
            "Detected",
            percent(metrics.detection_rate),
            rate(metrics.detection_rate, metrics.defective),
        ),
        Tile(
            "False alarms",
            percent(metrics.false_alarm_rate),
            rate(metrics.false_alarm_rate, metrics.good),
        ),
        Tile("Image AUROC", three(metrics.image_auroc), against),
        Tile("Pixel AUROC", three(metrics.pixel_auroc), "every pixel ranked"),
        Tile("AUPRO", three(metrics.pixel_aupro), "overlap per defect"),
        Tile("Outline IoU", three(metrics.outline_iou), best),
    ]
    return [*tiles, Tile("Time", f"{metrics.ms_per_image:.0f} ms", "per image")]


def _charts(evaluation: Evaluation, losses: Path | None) -> list[Chart]:
    metrics, rows = evaluation.metrics, evaluation.rows
    scores = np.array([row["score"] for row in rows])
    is_defect = np.array([row["label"] != GOOD for row in rows])
    curves = None if metrics.pixel_auroc is None else evaluation.curves
    return [
        _score_chart(scores, is_defect, metrics.threshold),
        *_roc_chart(metrics, image_roc(scores, is_defect), curves),
        *_overlap_chart(metrics, curves),
        *_loss_chart(losses),
    ]


def _score_chart(
    scores: NDArray[np.float64], is_defect: NDArray[np.bool_], threshold: float
) -> Chart:
    drawing, above = histogram(scores[~is_defect].tolist(), scores[is_defect].tolist(), threshold)
    note = f"Bars: share of images of their kind. Threshold: {threshold:.4g}."
    if above:
        highest = f"{counted(above, 'score')} up to {shown(float(scores.max()))}"
        note += f" The last bar holds {highest}, too high for this axis."
    return Chart("Scores", drawing, note, [("good", "good"), ("bad", "defective")])


def _roc_chart(metrics: Metrics, roc: Curve | None, curves: PixelCurves | None) -> list[Chart]:
    """Of images and of pixels, as far as there are both kinds of them."""
    lines = [] if roc is None else [Line(f"images, AUROC {metrics.image_auroc:.3f}", roc)]
    if curves:
        lines.append(Line(f"pixels, AUROC {metrics.pixel_auroc:.3f}", curves.roc, 1))
    if not lines:
        return []
    marker = None
    if metrics.false_alarm_rate is not None and metrics.detection_rate is not None:
        marker = metrics.false_alarm_rate, metrics.detection_rate
    drawing = line_chart(lines, x_label="false-positive rate", y_label="share found", marker=marker)
    note = "Circle: images at the threshold." if marker else ""
    return [Chart("ROC", drawing, note, [(f"k{line.kind}", line.label) for line in lines])]


def _overlap_chart(metrics: Metrics, curves: PixelCurves | None) -> list[Chart]:
    if not curves:
        return []
    label = f"AUPRO {metrics.pixel_aupro:.3f}"
    drawing = line_chart(
        [Line(label, curves.pro)],
        x_label="false-positive rate of pixels",
        y_label="mean overlap with a defect",
        x=Axis(0.0, PRO_LIMIT, False),
    )
    note = "How much of each defect is covered, small ones counting as much as large ones."
    return [Chart("Overlap per region", drawing, note, [("k0", label)])]


def _loss_chart(path: Path | None) -> list[Chart]:
    curves = read_losses(path) if path else {}
    if not curves:
        return []
    values = np.concatenate([curve.y for curve in curves.values()])
    last = max(float(curve.x.max()) for curve in curves.values())
    lines = [Line(name, curve, kind) for kind, (name, curve) in enumerate(curves.items())]
    y = Axis.around(values)
    drawing = line_chart(
        lines,
        x_label="step",
        y_label="loss (log)" if y.is_log else "loss",
        x=Axis(0.0, max(last, 1.0), False),
        y=y,
    )
    return [
        Chart(
            "Training", drawing, "Terms before weighting.", [(f"k{n.kind}", n.label) for n in lines]
        )
    ]


def _defects(rows: Sequence[Mapping[str, Any]]) -> tuple[list[DefectRow], int]:
    by_label: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    good = [row["score"] for row in by_label.get(GOOD, [])]
    table = []
    labels = sorted(by_label, key=lambda label: (label == GOOD, label))
    for label in labels:
        scores = [row["score"] for row in by_label[label]]
        auroc = None
        if label != GOOD:
            is_defect = np.arange(len(good) + len(scores)) >= len(good)
            auroc = image_metrics(np.array([*good, *scores]), is_defect).auroc
        called = sum(row["is_anomalous"] for row in by_label[label])
        table.append(
            DefectRow(
                shown_path(label),
                len(scores),
                called,
                auroc,
                median=float(np.median(scores)),
                is_good=label == GOOD,
            )
        )
    # The good images come last and stay.
    if len(table) > MOST_ROWS:
        return [*table[: MOST_ROWS - 1], table[-1]], len(table) - MOST_ROWS
    return table, 0


def _counted(detector: Predictor) -> str:
    words = region_words(detector.region)
    return words if detector.region is None else f"{words}; outside, pictures are dimmed"


def _settings(detector: Predictor, metrics: Metrics) -> list[tuple[str, str]]:
    config, provenance = detector.config, detector.provenance
    return [
        ("haloae", __version__),
        ("Computed by", detector.engine),
        ("Preset", f"{config.preset}, {config.seen}, seed {config.seed}"),
        (
            "Backbone",
            f"{config.network.trunk}, {provenance.backbone} weights, "
            f"sha256 {provenance.backbone_sha256[:12]}",
        ),
        ("What counts", _counted(detector)),
        ("Trained on", shown_path(provenance.fitted(config.training.steps))),
        *protocol_entries(metrics.protocol),
    ]
