"""A detector on a labelled test set: metrics.json, scores.csv and report.html.

Protocol: every image is scored whole, no crop; the model is its last state; for pixel metrics map
and mask are brought to `RESOLUTION`², the map bilinearly, the mask by area (> 0.5). Nothing of the
test set sets a parameter.
"""

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as PILImage

from haloae.data.folders import GOOD, Category, Sample
from haloae.data.images import read_image, read_mask
from haloae.data.views import resize
from haloae.detection.predictor import Prediction, Predictor
from haloae.errors import DataError, ImageError
from haloae.evaluation.metrics import (
    PRO_LIMIT,
    ImageMetrics,
    PixelMetrics,
    area_resize,
    image_metrics,
)
from haloae.files import write_atomic
from haloae.outputs.report.page import REPORT, write_report
from haloae.outputs.report.section import Scored, Section, make_section

RESOLUTION = 256
"""Side of the square on which pixels are compared."""
DIFFERENCE_SIZE = 128
"""Side of the square on which the pixel difference is taken."""
PROTOCOL = {
    "resolution": RESOLUTION,
    "map_resize": "bilinear, from the image's own size",
    "mask_rule": "> 0.5 after area resize",
    "crop": None,
    "checkpoint": "last",
    "thresholds": "from held-out good training images",
    "aupro_fpr_limit": PRO_LIMIT,
    "aupro_005_fpr_limit": 0.05,
}
Progress = Callable[[Iterable[Any]], Iterable[Any]]

COMPARED = ("image_auroc", "pixel_auroc", "pixel_aupro", "false_alarm_rate", "detection_rate")
"""Metrics that a detector and its export are compared in."""


class Evaluation(NamedTuple):
    """What a test set says of a detector."""

    metrics: dict[str, Any]
    """As in metrics.json."""
    rows: list[dict[str, Any]]
    """As in scores.csv, one for each image that could be scored."""
    skipped: list[ImageError]
    section: Section
    """As in report.html."""


def evaluate(
    detector: Predictor,
    category: Category,
    *,
    strict: bool = False,
    progress: Progress = iter,
    losses: Path | None = None,
) -> Evaluation:
    """Score the test set and measure.

    Args:
        detector: the fitted detector.
        category: with test images.
        strict: True: an image that cannot be read is an error; False: it is skipped.
        progress: wraps the samples, then the training images, where someone wants to watch.
        losses: the CSV of the training's losses, for the report; it may be missing.

    Raises:
        DataError: there are no test images, a mask does not fit, or none can be scored.
        ImageError: with `strict`, an image cannot be read; always, if a mask cannot be.
    """
    scored = score(detector, category, strict=strict, progress=progress)
    scored.metrics["pixel_difference_image_auroc"] = pixel_difference(category).auroc
    section = make_section(detector, category, scored, losses=losses, progress=progress)
    return Evaluation(scored.metrics, scored.rows, scored.skipped, section)


def score(
    detector: Predictor, category: Category, *, strict: bool = False, progress: Progress = iter
) -> Scored:
    """Score the test set and measure, without baseline or report; see `evaluate`."""
    if not category.test:
        raise DataError(
            f"{category.root}: holds no test images: give a folder with test/good and "
            f"test/<defect> in it."
        )
    pixels, rows, samples, skipped, unmasked = PixelMetrics(), [], [], [], 0
    seconds = 0.0
    for sample in progress(category.test):
        start = time.perf_counter()
        result = next(detector.stream([sample.path]))
        seconds += time.perf_counter() - start
        if isinstance(result, ImageError):
            if strict:
                raise result
            skipped.append(result)
            continue
        rows.append(_row(sample, result, category.root))
        samples.append(sample)
        if sample.is_anomalous and sample.mask is None:
            unmasked += 1
        else:
            pixels.update(*_comparable(sample, result))
    if not rows:
        raise DataError(f"{category.root}: no test image can be scored: {skipped[0]}")
    metrics = _metrics(rows, pixels, unmasked, detector)
    metrics["ms_per_image"] = 1000 * seconds / len(category.test)
    metrics["skipped"] = len(skipped)
    return Scored(metrics, rows, samples, pixels.curves(), skipped)


def compare(
    before: Predictor, after: Predictor, category: Category, *, progress: Progress = iter
) -> list[tuple[str, float | None, float | None]]:
    """Each of `COMPARED`, of a detector and of what was made of it, on one test set."""
    both = [score(each, category, progress=progress).metrics for each in (before, after)]
    return [(name, both[0][name], both[1][name]) for name in COMPARED]


def write_evaluation(evaluation: Evaluation, out: Path) -> None:
    """Write metrics.json, scores.csv and report.html to a folder.

    Raises:
        OutputError: the folder cannot be written to.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, evaluation.rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(evaluation.rows)
    write_atomic(out / "scores.csv", text.getvalue().encode("utf-8", "surrogateescape"))
    write_atomic(out / "metrics.json", (json.dumps(evaluation.metrics, indent=2) + "\n").encode())
    write_report(out / REPORT, evaluation.section.name, [evaluation.section])


def pixel_difference(category: Category) -> ImageMetrics:
    """The baseline every detector must beat: mean of |image - mean training image|, at 128².

    All `None` where there are no training images or only one class.
    """
    total, count = np.zeros((3, DIFFERENCE_SIZE, DIFFERENCE_SIZE)), 0
    for image in _readable(category.train):
        total, count = total + image, count + 1
    scores, labels = [], []
    if count:
        for sample in category.test:
            for image in _readable([sample.path]):
                scores.append(float(np.abs(image - total / count).mean()))
                labels.append(sample.is_anomalous)
    return image_metrics(np.array(scores), np.array(labels, dtype=bool))


def _readable(paths: Sequence[Path]) -> Iterable[np.ndarray]:
    for path in paths:
        try:
            yield resize(read_image(path), DIFFERENCE_SIZE)
        except ImageError:
            continue


def _row(sample: Sample, prediction: Prediction, root: Path) -> dict[str, Any]:
    return {
        "path": sample.path.relative_to(root).as_posix(),
        "label": sample.label,
        "score": prediction.score,
        "p_value": prediction.p_value,
        "is_anomalous": prediction.is_anomalous,
        "extrapolated": prediction.extrapolated,
    }


def _comparable(sample: Sample, prediction: Prediction) -> tuple[np.ndarray, np.ndarray]:
    """Map and mask at the protocol's resolution; a good image's mask is empty."""
    shape = prediction.anomaly_map.shape
    size = (RESOLUTION, RESOLUTION)
    anomaly = PILImage.fromarray(prediction.anomaly_map).resize(size, PILImage.Resampling.BILINEAR)
    mask = np.zeros(size, dtype=bool)
    if sample.mask is not None:
        mask = area_resize(read_mask(sample.mask, shape=(shape[0], shape[1])), RESOLUTION)
    return np.asarray(anomaly), mask


def _metrics(
    rows: list[dict[str, Any]], pixels: PixelMetrics, unmasked: int, detector: Predictor
) -> dict[str, Any]:
    is_defect = np.array([row["label"] != GOOD for row in rows])
    is_called = np.array([row["is_anomalous"] for row in rows])
    image = image_metrics(np.array([row["score"] for row in rows]), is_defect)
    reasons: dict[str, str] = {}
    if image.auroc is None:
        which = "defective" if is_defect.all() else "good"
        reasons["image"] = f"all test images are {which}: ranking needs both kinds"
    pixel = pixels.compute()
    if unmasked:
        # Defects without a mask would count as normal pixels, or bias the rest.
        pixel = PixelMetrics().compute()
        reasons["pixel"] = f"{unmasked} defective test images have no mask"
    elif pixel.auroc is None:
        reasons["pixel"] = (
            "all scored pixels are of one kind: no mask has a pixel set at this resolution"
        )
    if is_defect.all():
        reasons["false_alarm_rate"] = "there are no good test images"
    if not is_defect.any():
        reasons["detection_rate"] = "there are no defective test images"
    calibration = detector.calibration
    return {
        **{f"image_{name}": value for name, value in image._asdict().items()},
        **{f"pixel_{name}": value for name, value in pixel._asdict().items()},
        "false_alarm_rate": None if is_defect.all() else float(is_called[~is_defect].mean()),
        "detection_rate": float(is_called[is_defect].mean()) if is_defect.any() else None,
        "wanted_false_alarm_rate": calibration.false_alarm_rate,
        "threshold": calibration.threshold.value,
        "extrapolated": calibration.extrapolated,
        "images_needed": calibration.images_needed,
        "held_out": len(calibration.scores),
        "good": int((~is_defect).sum()),
        "defective": int(is_defect.sum()),
        "backbone": detector.provenance.backbone,
        "preset": detector.config.preset,
        "engine": detector.engine,
        "protocol": PROTOCOL,
        "reasons": reasons,
    }
