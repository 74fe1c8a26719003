"""A detector on a labelled test set: its metrics, and what a report of them needs.

Protocol: every image is scored whole, no crop; the model is its last state; for pixel metrics map
and mask are brought to `RESOLUTION`², the map bilinearly, the mask by area (> 0.5); outlines are
compared at the image's own size. Nothing of the test set sets a parameter.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as PILImage

from haloae.data.folders import GOOD, Category, Sample
from haloae.data.images import read_mask
from haloae.data.regions import Masked, Region
from haloae.data.source import decoded
from haloae.data.views import View
from haloae.detection.prediction import Prediction
from haloae.detection.predictor import Predictor
from haloae.errors import DataError, ImageError
from haloae.evaluation.metrics import (
    PRO_LIMIT,
    ImageMetrics,
    ImageResult,
    PixelCurves,
    PixelMetrics,
    area_resize,
)
from haloae.evaluation.outlines import OutlineMetrics

RESOLUTION = 256
"""Side of the square on which pixels are compared."""
DIFFERENCE_SIZE = 128
"""Side of the square on which the pixel difference is taken."""
PROTOCOL = {
    "resolution": RESOLUTION,
    "map_resize": "bilinear, from the image's own size",
    "mask_rule": "> 0.5 after area resize",
    "outlines": "at the image's own size, all pixels together",
    "crop": None,
    "checkpoint": "last",
    "thresholds": "from good training images, left out of the fit",
    "aupro_fpr_limit": PRO_LIMIT,
    "aupro_005_fpr_limit": 0.05,
}
Progress = Callable[[Iterable[Any]], Iterable[Any]]

COMPARED = ("image_auroc", "pixel_auroc", "pixel_aupro", "false_alarm_rate", "detection_rate")
"""Metrics that a detector and its export are compared in."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What metrics.json says, in its order.

    Metrics and rates are in [0, 1], or `None` where one kind of image or pixel is missing: the
    reasons say why.
    """

    image_auroc: float | None
    image_ap: float | None
    image_f1max: float | None
    pixel_auroc: float | None
    pixel_ap: float | None
    pixel_f1max: float | None
    pixel_aupro: float | None
    pixel_aupro_005: float | None
    outline_iou: float | None
    """Intersection over union of the pixels marked and the true ones, at the image's own size."""
    outline_iou_best: float | None
    """The same at the threshold that suits the test set's masks best, which they alone can tell."""
    false_alarm_rate: float | None
    """Share of good images called defective."""
    detection_rate: float | None
    """Share of defective images called so."""
    wanted_false_alarm_rate: float
    """What the threshold was made for."""
    threshold: float
    extrapolated: bool
    """True: the threshold is a fit to the tail, made from too few good images."""
    images_needed: int
    """Held-out good images that would show such a rate."""
    held_out: int
    """Good images behind the threshold."""
    good: int
    """Good test images that were scored."""
    defective: int
    backbone: str
    """Which weights the trunk has."""
    preset: str
    engine: str
    protocol: Mapping[str, Any]
    reasons: Mapping[str, str]
    """A sentence for each kind of metric that is missing."""
    ms_per_image: float
    skipped: int
    """Test images that could not be read."""
    unusable: int = 0
    """Test images that the guard calls unusable; their scores count all the same."""
    pixel_difference_image_auroc: float | None = None
    """Of `pixel_difference`; `None` too where it was not asked for."""

    def as_dict(self) -> dict[str, Any]:
        """As in metrics.json."""
        return asdict(self)


class Evaluation(NamedTuple):
    """What a test set says of a detector."""

    metrics: Metrics
    rows: list[dict[str, Any]]
    """As in scores.csv, one for each image that could be scored."""
    samples: list[Sample]
    """Of the rows, in their order."""
    curves: PixelCurves | None
    """`None` where a kind of pixel or a mask is missing."""
    skipped: list[ImageError]


def evaluate(
    detector: Predictor, category: Category, *, strict: bool = False, progress: Progress = iter
) -> Evaluation:
    """Score the test set and measure.

    Args:
        detector: the fitted detector.
        category: with test images.
        strict: True: an image that cannot be read is an error; False: it is skipped.
        progress: wraps the samples, where someone wants to watch.

    Raises:
        DataError: there are no test images, a mask does not fit, or none can be scored.
        ConfigError: the detector takes no such masks as the category's.
        ImageError: with `strict`, an image cannot be read; always, if a mask cannot be.
    """
    scored = score(detector, category, strict=strict, progress=progress)
    plain = pixel_difference(category, detector.stored_region).auroc
    return scored._replace(metrics=replace(scored.metrics, pixel_difference_image_auroc=plain))


def score(
    detector: Predictor, category: Category, *, strict: bool = False, progress: Progress = iter
) -> Evaluation:
    """Score the test set and measure, without the baseline; see `evaluate`."""
    if not category.test:
        raise DataError(
            f"{category.root}: holds no test images: give a folder with test/good and "
            f"test/<defect> in it."
        )
    images, pixels, outlines = ImageMetrics(), PixelMetrics(), OutlineMetrics()
    unmasked, seconds = 0, 0.0
    rows: list[dict[str, Any]] = []
    samples: list[Sample] = []
    skipped: list[ImageError] = []
    detector.check_masks(category.masks)
    items = [category.item(sample.path) for sample in category.test]
    for sample, item in zip(progress(category.test), items, strict=True):
        start = time.perf_counter()
        result = next(detector.stream([item]))
        seconds += time.perf_counter() - start
        if isinstance(result, ImageError):
            if strict:
                raise result
            skipped.append(result)
            continue
        rows.append(_row(sample, result, category.root))
        samples.append(sample)
        images.update(result.score, sample.is_anomalous)
        if sample.is_anomalous and sample.mask is None:
            unmasked += 1
        else:
            mask = _truth(sample, result)
            pixels.update(*_comparable(result, mask))
            outlines.update(result.anomaly_map, result.defects, mask, result.inside)
    if not rows:
        raise DataError(f"{category.root}: no test image can be scored: {skipped[0]}")
    if unmasked:
        # Defects without a mask would count as normal pixels, or bias the rest.
        pixels, outlines = PixelMetrics(), OutlineMetrics()
    metrics = Metrics(
        **_measured(images, pixels, rows, unmasked),
        **{f"outline_{name}": value for name, value in outlines.compute()._asdict().items()},
        **_circumstances(detector),
        ms_per_image=1000 * seconds / len(category.test),
        skipped=len(skipped),
    )
    return Evaluation(metrics, rows, samples, pixels.curves(), skipped)


def compare(
    before: Predictor, after: Predictor, category: Category, *, progress: Progress = iter
) -> list[tuple[str, float | None, float | None]]:
    """Each of `COMPARED`, of a detector and of what was made of it, on one test set."""
    both = [score(each, category, progress=progress).metrics for each in (before, after)]
    return [(name, getattr(both[0], name), getattr(both[1], name)) for name in COMPARED]


def pixel_difference(category: Category, region: Region | None = None) -> ImageResult:
    """The baseline every detector must beat: mean of |image - mean training image|, at 128².

    All `None` where there are no training images or only one class. What does not count, by the
    category's masks and by the region, is the same in all images.
    """
    view = View("squash", (DIFFERENCE_SIZE, DIFFERENCE_SIZE))

    def shown(paths: Iterable[Path]) -> Iterable[np.ndarray]:
        for path in paths:
            item = category.item(path)
            read = decoded(item if region is None else Masked(item, region), view)
            if not isinstance(read, ImageError):
                yield read.shown

    total, count = np.zeros((3, DIFFERENCE_SIZE, DIFFERENCE_SIZE)), 0
    for image in shown(category.train):
        total, count = total + image, count + 1
    metrics = ImageMetrics()
    if count:
        for sample in category.test:
            for image in shown([sample.path]):
                metrics.update(float(np.abs(image - total / count).mean()), sample.is_anomalous)
    return metrics.compute()


def _row(sample: Sample, prediction: Prediction, root: Path) -> dict[str, Any]:
    return {
        "path": sample.path.relative_to(root).as_posix(),
        "label": sample.label,
        "score": prediction.score,
        "p_value": prediction.p_value,
        "is_anomalous": prediction.is_anomalous,
        "extrapolated": prediction.extrapolated,
        "unusable": prediction.unusable,
    }


def _truth(sample: Sample, prediction: Prediction) -> np.ndarray:
    """(H, W) of the image, True on the defect; a good image has none."""
    if sample.mask is None:
        return np.zeros(prediction.size, dtype=bool)
    return read_mask(sample.mask, shape=prediction.size)


def _comparable(
    prediction: Prediction, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Map, mask and what counts, at the protocol's resolution."""
    size = (RESOLUTION, RESOLUTION)
    # The one place where a map is not resized by `resize_map`: the protocol takes the map at the
    # image's own size, and Pillow's filter averages where it shrinks.
    anomaly = PILImage.fromarray(prediction.anomaly_map).resize(size, PILImage.Resampling.BILINEAR)
    inside = None if prediction.inside is None else area_resize(prediction.inside, RESOLUTION)
    return np.asarray(anomaly), area_resize(mask, RESOLUTION), inside


def _measured(
    images: ImageMetrics, pixels: PixelMetrics, rows: Sequence[Mapping[str, Any]], unmasked: int
) -> dict[str, Any]:
    """What was counted on the test set, and why anything of it is missing."""
    image, pixel = images.compute(), pixels.compute()
    alarms = [row["is_anomalous"] for row in rows if row["label"] == GOOD]
    found = [row["is_anomalous"] for row in rows if row["label"] != GOOD]
    good, defective = len(alarms), len(found)
    reasons: dict[str, str] = {}
    if image.auroc is None:
        which = "defective" if defective else "good"
        reasons["image"] = f"all test images are {which}: ranking needs both kinds"
    if unmasked:
        reasons["pixel"] = f"{unmasked} defective test images have no mask"
    elif pixel.auroc is None:
        reasons["pixel"] = (
            "all scored pixels are of one kind: no mask has a pixel set at this resolution"
        )
    if not good:
        reasons["false_alarm_rate"] = "there are no good test images"
    if not defective:
        reasons["detection_rate"] = "there are no defective test images"
    return {
        **{f"image_{name}": value for name, value in image._asdict().items()},
        **{f"pixel_{name}": value for name, value in pixel._asdict().items()},
        "false_alarm_rate": sum(alarms) / good if good else None,
        "detection_rate": sum(found) / defective if defective else None,
        "good": good,
        "defective": defective,
        "reasons": reasons,
        "unusable": sum(row["unusable"] is not None for row in rows),
    }


def _circumstances(detector: Predictor) -> dict[str, Any]:
    """What was measured, and how."""
    calibration = detector.calibration
    return {
        "wanted_false_alarm_rate": calibration.false_alarm_rate,
        "threshold": calibration.threshold.value,
        "extrapolated": calibration.extrapolated,
        "images_needed": calibration.images_needed,
        "held_out": len(calibration.scores),
        "backbone": detector.provenance.backbone,
        "preset": detector.config.preset,
        "engine": detector.engine,
        "protocol": PROTOCOL,
    }
