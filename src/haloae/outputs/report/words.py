"""How the reports put numbers into words."""

from collections.abc import Mapping, Sequence
from typing import Any

from haloae.data.images import shown_path
from haloae.errors import ImageError
from haloae.evaluation.evaluate import Metrics

MOST = 8
"""Images shown of a kind, and errors told."""
METRICS = {
    "image_auroc": "Image AUROC",
    "pixel_auroc": "Pixel AUROC",
    "pixel_aupro": "AUPRO",
    "outline_iou": "Outline IoU",
    "outline_iou_best": "Outline IoU, best threshold",
    "detection_rate": "Detected",
    "false_alarm_rate": "False alarms",
}
"""What is told first of a detector, and what it is called."""


def verdict(metrics: Metrics) -> str:
    """What came out, in one sentence."""
    good, defective = metrics.good, metrics.defective
    called = round((metrics.detection_rate or 0) * defective)
    alarms = round((metrics.false_alarm_rate or 0) * good)
    if not good:
        return (
            f"Finds {called} of {defective} defects; without good test images nothing is known "
            f"about false alarms."
        )
    said = f"{counted(alarms, 'false alarm')} in {counted(good, 'good image')}"
    if not defective:
        return f"Raises {said}; without defective test images nothing is known about what it finds."
    found = f"Finds {called} of {defective} defects with"
    auroc, plain = metrics.image_auroc, metrics.pixel_difference_image_auroc
    against = "" if plain is None else f", against {plain:.2f} for the plain pixel difference"
    if plain is not None and auroc is not None and plain >= auroc:
        how = "worse than" if f"{plain:.2f}" > f"{auroc:.2f}" else "no better than"
        against = f", {how} the plain pixel difference with {plain:.2f}"
    return f"{found} {said}; ranks images with AUROC {auroc:.2f}{against}."


def shown(value: object) -> str:
    """A number with as many digits as mean something; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if 1000 <= value < 1e6 else f"{value:.4g}"
    return shown_path(str(value))


def counted(count: int, thing: str, things: str | None = None) -> str:
    """The number with its noun, in the plural where there is not one."""
    return f"{count} {thing if count == 1 else things or thing + 's'}"


def percent(value: float | None) -> str:
    """A share in percent; a dash for None."""
    return "–" if value is None else f"{100 * value:.3g} %"


def three(value: float | None) -> str:
    """Three digits; a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def limits_of(metrics: Metrics, skipped: Sequence[ImageError], left_out: int) -> list[str]:
    """What is to be known before the figures are believed, a sentence each."""
    limits = []
    if metrics.extrapolated:
        limits.append(
            f"The threshold is a guess at the tail: {metrics.held_out} left-out good images are "
            f"too few to see a false-alarm rate of {percent(metrics.wanted_false_alarm_rate)}, "
            f"which needs {metrics.images_needed}. Expect the rate of false alarms to be off."
        )
    names = {"image": "No image ranking", "pixel": "No pixel metrics"}
    for key, reason in metrics.reasons.items():
        name = names.get(key, f"No {METRICS.get(key, key).lower()}")
        limits.append(f"{name}: {reason}.")
    for kind, count in (("good", metrics.good), ("defective", metrics.defective)):
        if 0 < count < 10:
            limits.append(
                f"Only {counted(count, f'{kind} test image')}: every figure that rests on so few "
                f"is coarse."
            )
    if metrics.unusable:
        limits.append(
            f"Too unlike the training images to be judged, as scores.csv says of each, but counted "
            f"all the same: {counted(metrics.unusable, 'test image')}."
        )
    if left_out:
        limits.append(
            f"Left out of the data set: {counted(left_out, 'file or folder', 'files or folders')}."
        )
    if skipped:
        limits.append(f"Skipped, because it cannot be read: {counted(len(skipped), 'test image')}.")
        limits += [shown_path(str(error)) for error in skipped[:MOST]]
    return limits


def protocol_entries(protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of each part of a protocol, in words."""

    def words(value: object) -> str:
        return "none" if value is None else shown(value)

    return [
        (f"Protocol: {shown_path(name).replace('_', ' ')}", words(value))
        for name, value in protocol.items()
    ]
