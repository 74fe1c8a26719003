"""The log of a training's losses, for the report."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from haloae.data.images import shown_path
from haloae.evaluation.metrics import Curve
from haloae.files import open_regular

MOST_LOSS_POINTS = 400


def read_losses(path: Path) -> dict[str, Curve]:
    """The terms of a log of losses, each at most `MOST_LOSS_POINTS` long; {} where there is none.

    Neighbours are averaged as the file grows, so memory does not grow with it.
    """
    try:
        with _rows(path) as reader:
            header: list[str] = next(reader, [])
            terms = [
                place
                for place, name in enumerate(header)
                if name not in ("step", "learning_rate") and not name.endswith("_weight")
            ][:6]
            table = _condensed(reader, [0, *terms])
    except (OSError, csv.Error):
        return {}
    curves = {}
    for column, place in enumerate(terms, start=1):
        if table.size and (kept := np.isfinite(table[:, column])).any():
            curves[shown_path(header[place])] = Curve(table[kept, 0], table[kept, column])
    return curves


def ends_at(path: Path, steps: int) -> bool:
    """Whether a log's last whole row is of this step: of another, it is not that of the model."""
    last = ""
    try:
        with _rows(path) as reader:
            for row in reader:
                last = row[0] if row and row[0].isdigit() else last
    except (OSError, csv.Error):
        return False
    return last == str(steps)


@contextmanager
def _rows(path: Path) -> Iterator[Any]:
    """A csv.reader."""
    with (
        open_regular(path) as file,
        io.TextIOWrapper(file, newline="", encoding="utf-8", errors="replace") as text,
    ):
        yield csv.reader(text)


def _condensed(rows: Any, columns: Sequence[int]) -> np.ndarray:  # noqa: ANN401 - a csv.reader
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
        group.append(values)
        if len(group) == size:
            kept.append(np.mean(group, axis=0))
            group = []
        if len(kept) == MOST_LOSS_POINTS:
            size *= 2
            kept = [(a + b) / 2 for a, b in zip(kept[::2], kept[1::2], strict=True)]
    if group:
        kept.append(np.mean(group, axis=0))
    return np.array(kept)
