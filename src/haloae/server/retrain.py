"""Fits a new model and compares it with the one in use: a program of its own, at low priority.

    python -m haloae.server.retrain JOB.json

What it is at it prints, a line of JSON each; it ends when its input does, as whoever started it is
gone then. The new model and `ABOUT` are left in the job's folder.
"""

import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from pydantic import BaseModel

from haloae.config import parse_config
from haloae.data.folders import GOOD, Category, Sample
from haloae.data.limits import Limits, limit_images
from haloae.deploy.runtime import Runtime
from haloae.detector import Detector, fit_detector
from haloae.errors import HaloaeError
from haloae.evaluation.evaluate import score
from haloae.files import sha256_of, write_atomic
from haloae.server.models import ABOUT

Step = Literal["fitting", "exporting", "comparing"]
LOWEST = 19
"""Of priorities."""
COMPARED = ("image_auroc", "false_alarm_rate", "detection_rate")
"""Of an evaluation, by names of `Metrics`; there are no masks."""
DEFECT = "defect"


class Job(BaseModel):
    """What is to be done."""

    model: Path
    """In use, that the new one is to take the place of."""
    good: list[Path]
    """Images to fit to."""
    data: str
    """What they are called in the model file."""
    reviewed: list[tuple[Path, bool]]
    """Images to compare on; True: defective. Those that are among the good ones are left out."""
    out: Path
    limits: Limits
    """Of images."""


def retrain(job: Job) -> dict[str, Any]:
    """Do it.

    Returns:
        what `ABOUT` holds.

    Raises:
        HaloaeError: it cannot be done.
    """
    limit_images(**job.limits.model_dump())
    old = Detector.load(job.model, threads=1)
    _say("fitting")
    fitted = fit_detector(job.good, parse_config(old.config.model_dump()), name=job.data)
    path = job.out / job.model.name
    if isinstance(old.backend, Runtime):
        _say("exporting")
        _export(fitted.detector, old.backend, path, job.good)
    else:
        fitted.detector.save(path)
    new = Detector.load(path, threads=1)
    _say("comparing")
    about = {
        "sha256": sha256_of(path),
        "compared_with": sha256_of(job.model),
        "time": datetime.now(UTC).isoformat(),
        "fitted_on": [old.provenance.fitted_on, new.provenance.fitted_on],
        "skipped": len(fitted.skipped),
        "threshold": [old.calibration.threshold.value, new.calibration.threshold.value],
        **_compared(old, new, _kept(job)),
    }
    write_atomic(job.out / ABOUT, json.dumps(about).encode())
    return about


def _export(detector: Detector, like: Runtime, path: Path, good: Sequence[Path]) -> None:
    """In the format that the model in use has."""
    from haloae.deploy.export import EXPORTS, export_model

    precision = like.metadata.precision
    format = next(
        name
        for name, export in EXPORTS.items()
        if export.suffixes[0] == path.suffix.lower() and export.precision == precision
    )
    export_model(
        detector,
        path,
        format=format,
        good=good,
        input_type=like.metadata.input_type,
        overwrite=True,
        threads=1,
    )


def _kept(job: Job) -> list[Sample]:
    """Images to compare on: each once, and none that the new model was fitted to."""
    seen = set()
    for path in job.good:
        with suppress(OSError):
            seen.add(sha256_of(path))
    samples = []
    for path, is_defective in reversed(job.reviewed):  # the last word counts
        with suppress(OSError):
            if (sha256 := sha256_of(path)) not in seen:
                seen.add(sha256)
                samples.append(Sample(path, DEFECT if is_defective else GOOD, None))
    return samples


def _compared(old: Detector, new: Detector, samples: list[Sample]) -> dict[str, Any]:
    """Metrics of both on the images; without any, none."""
    if not samples:
        return {"good": 0, "defective": 0, "metrics": {}}
    root = Path(os.path.commonpath([sample.path.parent for sample in samples]))
    category = Category(root, (), tuple(samples))
    before, after = (score(each, category).metrics for each in (old, new))
    metrics = {name: [getattr(before, name), getattr(after, name)] for name in COMPARED}
    return {"good": after.good, "defective": after.defective, "metrics": metrics}


def _say(step: Step) -> None:
    sys.stdout.write(json.dumps({"step": step}) + "\n")
    sys.stdout.flush()


def _give_way() -> None:
    """Run when nothing else wants to; others that wake see the core as free, where Linux runs."""
    os.nice(LOWEST)
    if hasattr(os, "SCHED_IDLE"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> int:
    """See the module."""
    _give_way()
    Thread(target=_end_with_input, daemon=True).start()
    logging.basicConfig(level=logging.INFO)
    import torch

    torch.set_num_threads(1)
    try:
        retrain(Job.model_validate_json(Path(sys.argv[1]).read_bytes()))
    except HaloaeError as error:
        sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
