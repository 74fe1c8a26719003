"""What a detector says of one image, and its map at any size."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from haloae.data.regions import Mask, any_in_cells
from haloae.detection.parts import PartScore

log = logging.getLogger(__name__)

Verdict = Literal["normal", "anomalous", "unusable"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
TINY = 1e-6
"""Share of cells that count below which there is no map."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a detector says of one image."""

    score: float
    """Higher is more anomalous; not negative."""
    p_value: float
    """Share of good images that score at least as high, see `Calibration.p_value`."""
    is_anomalous: bool
    """True: the score is above the detector's threshold, which says nothing of an unusable image:
    see `verdict`."""
    extrapolated: bool
    """True: that threshold is a fit to the tail, made from too few good images."""
    grid_map: NDArray[np.float32]
    """(h, w) on the feature grid, on the scale of the pixel threshold."""
    size: tuple[int, int]
    """(H, W) of the image."""
    pixel_threshold: float
    """A map value above it marks a defect."""
    unusable: str | None = None
    """Why no verdict can be had of the score, as the image as a whole is too unlike the good ones,
    in words, see `Guard`; None: it can, or the model has no guard."""
    covered: tuple[float, float] = (1.0, 1.0)
    """How many times the image's height and width `grid_map` covers: the last cells of a map in
    tiles may reach past the image."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Of the image as a whole, see `Guard`; none where the model has no guard."""
    unlike: Mapping[str, str] = field(default_factory=dict)
    """In what the file is unlike all training images (``colour``, ``depth``, ``height``,
    ``width``), and how."""
    threshold: float | None = None
    """A score above it is anomalous; None where that is not known."""
    inside: Mask | None = None
    """(H, W): True where a pixel counts; None: all do. The map is 0 elsewhere."""
    cells: Mask | None = None
    """(h, w): True where a cell of `grid_map` does."""
    parts: Mapping[str, PartScore] = field(default_factory=dict)
    """By the names of the image's parts, where the model has any; the image's score is in units of
    their thresholds, and that of the highest."""

    @property
    def verdict(self) -> Verdict:
        """``unusable`` whatever the score, else by the threshold."""
        if self.unusable is not None:
            return "unusable"
        return "anomalous" if self.is_anomalous else "normal"

    @cached_property
    def anomaly_map(self) -> NDArray[np.float32]:
        """(H, W): `grid_map` at the image's own size; made when it is first asked for."""
        return self.map_at(self.size)

    def map_at(self, size: tuple[int, int]) -> NDArray[np.float32]:
        """The map at another size that the image is shown in, (H, W)."""
        if self.inside is None or self.cells is None:
            return resize_map(self.grid_map, size, self.covered)
        # Between the cells that count alone: what is beside them says nothing about the border.
        shares = resize_map(self.cells.astype(np.float32), size, self.covered)
        known = resize_map(self.grid_map * self.cells, size, self.covered)
        counted = known / np.maximum(shares, TINY) * any_in_cells(self.inside, *size)
        return np.asarray(counted, np.float32)

    @cached_property
    def mark_above(self) -> float:
        """A map value above it is marked as a defect.

        The pixel threshold; where nothing of an anomalous image is above that, what made it so:
        the score's threshold, or half of the map's highest value if that is more.
        """
        peak = float(self.grid_map.max())
        if not self.is_anomalous or self.threshold is None or peak > self.pixel_threshold:
            return self.pixel_threshold
        return max(self.threshold, peak / 2)

    @cached_property
    def defects(self) -> NDArray[np.bool_]:
        """(H, W): True where the map is above `mark_above`."""
        return self.anomaly_map > self.mark_above


class UnlikeCounts:
    """In what the images of a run were unlike the training images, for one line at its end."""

    def __init__(self) -> None:
        self.images = 0
        self.kinds: Counter[str] = Counter()
        self.firsts: dict[str, str] = {}

    def add(self, prediction: Prediction) -> None:
        """Count one image, under each of its kinds."""
        self.images += 1
        self.kinds.update(prediction.unlike.keys())
        self.firsts = {**prediction.unlike, **self.firsts}

    def log(self) -> None:
        """Say it, if there is anything to say."""
        if self.kinds:
            log.warning(
                "of %d images, %s are unlike any of the training images, so their scores may mean "
                "little.",
                self.images,
                ", ".join(
                    f"{count} in {kind} (the first {self.firsts[kind]})"
                    for kind, count in self.kinds.items()
                ),
            )


def resize_map(
    anomaly: NDArray[np.float32],
    size: tuple[int, int],
    covered: tuple[float, float] = (1.0, 1.0),
) -> NDArray[np.float32]:
    """Bilinear resize, (h, w) → `size`, as torch's interpolate does with align_corners=False.

    Pillow's would widen its filter when shrinking, and lower the map's peaks.

    Args:
        anomaly: the map.
        size: (H, W) that it is brought to.
        covered: how many times that size the map covers, each way; what is beyond is cut off.
    """
    rows, columns = (_bilinear(*sides) for sides in zip(anomaly.shape, size, covered, strict=True))
    return np.asarray(rows @ anomaly @ columns.T, dtype=np.float32)


def _bilinear(old: int, new: int, covered: float) -> NDArray[np.float32]:
    """(new, old): the weights of the old cells in each new one, two a row at most."""
    centres = np.clip((np.arange(new) + 0.5) * (old / (covered * new)) - 0.5, 0, old - 1)
    below = np.minimum(centres.astype(np.intp), max(old - 2, 0))
    share = (centres - below).astype(np.float32)
    weights = np.zeros((new, old), np.float32)
    cells = np.arange(new)
    weights[cells, below] = 1 - share
    weights[cells, np.minimum(below + 1, old - 1)] += share
    return weights
