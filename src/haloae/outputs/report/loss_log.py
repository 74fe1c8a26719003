"""The log of a training's losses, for the report."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from haloae.data.images import shown_path
from haloae.evaluation.metrics import Curve
from haloae.files import open_regular

MOST_LOSS_POINTS = 400


def read_losses(path: Path, *, steps: int | None = None) -> dict[str, Curve]:
    """The terms of a log of losses, each at most `MOST_LOSS_POINTS` long; {} where there is none.

    Neighbours are averaged as the file grows, so memory does not grow with it.

    Args:
        path: of the log.
        steps: that the model took: a log that ends at another is not its own, and is none; None:
            whatever is there.
    """
    try:
        with (
            open_regular(path) as binary,
            io.TextIOWrapper(binary, newline="", encoding="utf-8", errors="replace") as file,
        ):
            reader = csv.reader(file)
            header = next(reader, [])
            terms = [
                place
                for place, name in enumerate(header)
                if name not in ("step", "learning_rate") and not name.endswith("_weight")
            ][:6]
            table, last = _condensed(reader, [0, *terms])
    except (OSError, csv.Error):
        return {}
    if steps not in (None, last):
        return {}
    curves = {}
    for column, place in enumerate(terms, start=1):
        if table.size and (kept := np.isfinite(table[:, column])).any():
            curves[shown_path(header[place])] = Curve(table[kept, 0], table[kept, column])
    return curves


def _condensed(
    rows: Any,  # noqa: ANN401 - a csv.reader
    columns: Sequence[int],
) -> tuple[np.ndarray, float]:
    """Averages of neighbours, and the last step."""
    last = math.nan
    kept: list[np.ndarray] = []
    group: list[list[float]] = []
    size = 1
    for row in rows:
        try:
            values = [float(row[place] or "nan") for place in columns]
        except (ValueError, IndexError):
            continue  # a killed run leaves half a row
        if not math.isfinite(values[0]):
            continue
        last = values[0]
        group.append(values)
        if len(group) == size:
            kept.append(np.mean(group, axis=0))
            group = []
        if len(kept) == MOST_LOSS_POINTS:
            size *= 2
            kept = [(a + b) / 2 for a, b in zip(kept[::2], kept[1::2], strict=True)]
    if group:
        kept.append(np.mean(group, axis=0))
    return np.array(kept), last
