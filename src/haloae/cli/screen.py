"""What the commands say about a detector, its scores, its model file, and what went wrong."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haloae.cli.shared import shown
from haloae.outputs.tables import terminal

if TYPE_CHECKING:
    from haloae.detection.calibration import Calibration
    from haloae.detection.guard import Guard
    from haloae.detection.model_file import Header
    from haloae.detector import Fitted
    from haloae.evaluation.evaluate import Metrics
    from haloae.outputs.folder import Counts

SHOWN = 10
"""Images that are listed."""


def calibration_lines(calibration: "Calibration") -> str:
    """The threshold, where it comes from, and whether to trust it."""
    if calibration.set_by:
        return f"  threshold {calibration.threshold.value:.6g}, {calibration.set_by}"
    text = (
        f"  threshold {calibration.threshold.value:.6g}, for a false-alarm rate of "
        f"{calibration.false_alarm_rate:g}, from {len(calibration.scores)} left-out good images"
    )
    if calibration.extrapolated:
        text += (
            f"\n  extrapolated: so small a rate needs {calibration.images_needed} left-out images; "
            f"the threshold is a fit to the tail"
        )
    return text


def fitting_lines(fitted: "Fitted", model: Path, things: str) -> str:
    """What a detector was fitted to, its threshold, what counts, and whether it is finished.

    Args:
        fitted: the detector, and how it went.
        model: the file it was saved as.
        things: what it was fitted to, in the plural.
    """
    from haloae.data.regions import region_words
    from haloae.training.run_folder import LOSS_LOG

    detector = fitted.detector
    how = f"to {detector.provenance.fitted_on} good {things}"
    if detector.config.network.autoencoder:
        how = f"in {fitted.steps} of {detector.config.training.steps} steps; losses in {LOSS_LOG}"
    lines = [f"{shown(model)}: fitted {how}", calibration_lines(detector.calibration)]
    if detector.region is not None:
        lines.append(f"  counts: {region_words(detector.region)}")
    if not fitted.is_finished:
        lines.append("  stopped before the end of its schedule: --resume goes on")
    return "\n".join(lines)


def slide_lines(calibration: "Calibration") -> str:
    """What a slide's verdict compares with."""
    from haloae.detection.highest import needs_more_slides

    slides, rate = len(calibration.slides), calibration.false_alarm_rate
    if missing := needs_more_slides(calibration):
        return (
            f"  slides are judged by the tail of {len(calibration.peaks)} good regions: a "
            f"false-alarm rate of {rate:g} needs {slides + missing} good slides, and there are "
            f"{slides}"
        )
    return f"  slides are judged by {slides} good slides, for a false-alarm rate of {rate:g}"


def highest_scores(counts: "Counts") -> str:
    """The highest scores as a table; names come last, as their width on a screen is not known."""
    from haloae.outputs.pictures import readable

    listed = counts.highest[:SHOWN]
    rows = [(readable(one.score), f"{one.p_value:.2g}", one.verdict, one.name) for one in listed]
    table = terminal(rows, ("score", "p-value", "verdict", "image"), align="rrl", indent=True)
    first = ", the unusable first" if counts.unusable else ""
    scored = counts.normal + counts.anomalous + counts.unusable
    reasons = [f"  {one.name}: {one.unusable}" for one in listed if one.unusable]
    return "\n".join([f"  highest {len(listed)} of {scored} scores{first}:", table, *reasons])


def metric_lines(metrics: "Metrics") -> str:
    """The metrics that are numbers, and why others are missing."""
    rows = [
        (name, "-" if value is None else f"{value:.4g}")
        for name, value in metrics.as_dict().items()
        if isinstance(value, float) or value is None
    ]
    reasons = [f"  no {name}: {reason}" for name, reason in metrics.reasons.items()]
    if metrics.unusable:
        reasons.append(f"  unusable: {metrics.unusable} of the test images, counted all the same")
    return "\n".join([terminal(rows, align="l", indent=True), *reasons])


def comparison_lines(compared: Iterable[tuple[str, float | None, float | None]], title: str) -> str:
    """Metrics of a detector and of what was made of it."""
    rows = [
        [name, *("-" if value is None else f"{value:.4f}" for value in both)]
        for name, *both in compared
    ]
    return terminal(rows, [title, "before", "after"], indent=True)


def model_lines(header: "Header", calibration: "Calibration", parameters: int) -> str:
    """What a model file says of itself.

    Args:
        header: of the file.
        calibration: in force, see `haloae.detection.calibration_file.in_force`.
        parameters: of its network.
    """
    from haloae.data.regions import region_words

    provenance, config = header.provenance, header.config
    by_rate = f"at a false-alarm rate of {calibration.false_alarm_rate:g}"
    rows = {
        "format": f"{header.format_version}, written by haloae {header.package_version}",
        "preset": f"{config.preset}, {config.seen}, seed {config.seed}",
        "backbone": f"{config.network.trunk}, {provenance.backbone} "
        f"(sha256 {provenance.backbone_sha256[:12]})",
        "parameters": f"{parameters:,}",
        "training": provenance.fitted(config.training.steps),
        "threshold": f"{calibration.threshold.value:.6g} {calibration.set_by or by_rate}",
        "pixel threshold": f"{calibration.pixel_threshold.value:.6g}",
        "extrapolated": f"yes, {calibration.images_needed} left-out images would be needed"
        if calibration.extrapolated
        else "no",
        "input guard": _guard_words(header.guard),
        "counts": region_words(header.region),
    }
    return terminal(rows.items(), align="l", indent=True)


def _guard_words(guard: "Guard | None") -> str:
    if guard is None:
        return "none: the file is from before there was one; `haloae calibrate` fits one"
    aligned = "aligned" if guard.is_aligned else "not aligned, so their layout is not looked at"
    return f"fitted to {guard.images} good images, {aligned}"


def model_values(header: "Header", calibration: "Calibration", parameters: int) -> dict[str, Any]:
    """The same and more, as plain values for a script."""
    return header.model_dump(mode="json") | {
        "parameters": parameters,
        "threshold": calibration.threshold.value,
        "pixel_threshold": calibration.pixel_threshold.value,
        "extrapolated": calibration.extrapolated,
        "images_needed": calibration.images_needed,
        "set_by": calibration.set_by,
    }


def report_skipped(reasons: Iterable[object]) -> None:
    """Name what was skipped, for each its own sentence."""
    for reason in reasons:
        print(f"haloae: skipped: {reason}", file=sys.stderr)


def report_run(run: Mapping[str, Any], *, quiet: bool) -> None:
    """Say how a run of the benchmark went."""
    name = f"{run['variant']}, {run['category']}, seed {run['seed']}"
    if "error" in run:
        print(f"haloae: failed: {name}: {run['error']}", file=sys.stderr)
    elif not quiet:
        auroc = run["metrics"]["image_auroc"]
        figure = "-" if auroc is None else f"{auroc:.3f}"
        print(f"{name}: image AUROC {figure}, {run['seconds']:.0f} s", flush=True)
