"""Inspections that nobody made, for what stores or watches them."""

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from haloae.server.inspection import Box, Inspection

START = datetime(2026, 3, 1, 6, 0, tzinfo=UTC)


def inspection(number: int = 0, **changes: Any) -> Inspection:  # noqa: ANN401 - of any field
    """The inspection of a number, a second after the one before it."""
    values: dict[str, Any] = {
        "id": sha256(b"id %d" % number).hexdigest()[:32],
        "time": START + timedelta(seconds=number),
        "source": "camera 1",
        "recipe": "cap",
        "model": sha256(b"model").hexdigest(),
        "image": sha256(b"image %d" % number).hexdigest(),
        "score": 0.5,
        "p_value": 0.25,
        "threshold": 1.0,
        "verdict": "normal",
        "reason": None,
        "boxes": (),
    }
    return Inspection(**values | changes)


def anomalous(number: int, **changes: Any) -> Inspection:  # noqa: ANN401 - of any field
    """One with a defect."""
    boxes = (Box(1, 2, 30, 40, 2.5), Box(50, 60, 70, 80, 1.5))
    told = {"score": 2.0, "p_value": 0.01, "verdict": "anomalous", "boxes": boxes}
    return inspection(number, **told | changes)


def unusable(number: int, **changes: Any) -> Inspection:  # noqa: ANN401 - of any field
    """One of a camera that is covered."""
    told = {
        "verdict": "unusable",
        "reason": "darker than the 31 good images by 4 times their range",
    }
    return inspection(number, **told | changes)
