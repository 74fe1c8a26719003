"""Regions of a slide's map: what is anomalous, how surely, where, how large, and its outline."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from haloae.errors import MissingExtraError
from haloae.slides.journal import Journal
from haloae.slides.tiling import Tiling

BAND = 256
"""Rows of cells that are searched at once."""
MOST_CELLS = 2**22
"""Of a region's box whose outline follows every cell; that of a larger one is coarser."""
ROUNDING = 1e-5
"""By so much a mean of values that are all the same may exceed them, relatively."""
TOUCHING = np.ones((3, 3), np.bool_)
"""Cells that touch at a corner belong together."""
Ring = list[list[float]]
"""Points of a closed line, in pixels of the slide."""
_Filled = tuple[list[NDArray[np.float64]], list[NDArray[np.uint32]]]
"""Of each polygon: its points, and where each of its rings begins among them."""


class Squares(NamedTuple):
    """Regions as large as those that were calibrated on, side by side from the first cell."""

    side: int
    """In cells."""
    peaks: NDArray[np.float32]
    """(rows, columns): the highest value of each; 0 where nothing of it was scored."""
    means: NDArray[np.float32]
    """(rows, columns): its mean, of what was not scored as 0, times the weight."""
    weight: float
    """See `haloae.detection.calibration.Calibration.mean_weight`."""

    @property
    def values(self) -> NDArray[np.float32]:
        """(rows, columns), see `haloae.detection.highest`."""
        return np.maximum(self.peaks, self.means)


def squares_of(journal: Journal, cells: int, weight: float) -> Squares:
    """All of a map's, in constant memory.

    Args:
        journal: of the slide.
        cells: of each: a square number.
        weight: of their means.
    """
    side = math.isqrt(cells)
    high, wide = journal.shape
    peaks, means = [], []
    for top in range(0, high, side):
        values = journal.rows(top, min(top + side, high))
        padded = np.pad(values, [(0, side - len(values)), (0, -wide % side)])
        squares = padded.reshape(side, -1, side)
        peaks.append(squares.max((0, 2)))
        means.append(np.float32(weight) * squares.mean((0, 2)))
    return Squares(side, np.stack(peaks), np.stack(means), weight)


class Finding(NamedTuple):
    """A region above the slide's threshold, with what touches it above the pixel threshold."""

    number: int
    """From 1, the highest first."""
    score: float
    """Its peak, or the weighted mean of a square that it takes up more of than others do."""
    p_value: float
    """Share of good slides that have any value so high."""
    peak: float
    """Its highest map value."""
    area: float
    """In pixels of the slide."""
    box: tuple[int, int, int, int]
    """Left, top, width, height, in pixels of the slide."""
    polygons: list[list[Ring]]
    """Each an outer ring and those of its holes."""


class _Part(NamedTuple):
    """What is known of a region from the bands gone through so far."""

    peak: float
    place: tuple[int, int]
    """Of the peak."""
    cells: int
    top: int
    left: int
    bottom: int
    right: int
    mean: float = 0.0
    """The highest weighted mean of a square above the threshold that it takes up most of."""

    @property
    def value(self) -> float:
        return max(self.peak, self.mean)

    def joined(self, other: "_Part") -> "_Part":
        higher = max(self, other, key=lambda part: part.peak)
        return _Part(
            *higher[:2],
            self.cells + other.cells,
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
            max(self.mean, other.mean),
        )


def find_regions(
    journal: Journal, squares: Squares, *, extent: float, threshold: float
) -> list[tuple[_Part, list[list[Ring]]]]:
    """Regions of touching cells above `extent` that are above `threshold`, highest first.

    By a cell of theirs, or by the value of a square that they take up more of than others do. Of
    each square above the threshold, one is. In constant memory but for what is found.

    Args:
        journal: of the slide.
        squares: of the same.
        extent: how far regions reach; less, where a square above the threshold has no such cell.
        threshold: of values.

    Raises:
        MissingExtraError: scipy or contourpy is not installed.
    """
    is_high = squares.values > threshold
    if (squares.peaks[is_high] <= extent).any():
        extent = threshold / squares.weight * (1 - ROUNDING)
    parts = sorted(
        (part for part in _parts(journal, squares, is_high, extent) if part.value > threshold),
        key=lambda part: (-part.value, part.place),
    )
    return [(part, _outline(journal, part, extent)) for part in parts]


def _parts(
    journal: Journal, squares: Squares, is_high: NDArray[np.bool_], extent: float
) -> Iterator[_Part]:
    """Every region of touching cells above a value."""
    try:
        from scipy import ndimage
    except ImportError as error:
        raise MissingExtraError("scipy", "slides", error) from error
    high, wide = journal.shape
    above: NDArray[np.int64] = np.zeros(wide, np.int64)
    """For each cell of the row above, the number of its region; 0: none."""
    open_parts: dict[int, _Part] = {}
    last, side = 0, squares.side
    band = max(1, BAND // side) * side
    for top in range(0, high, band):
        values = journal.rows(top, min(top + band, high))
        labels, count = ndimage.label(values > extent, TOUCHING)
        found: dict[int, _Part] = {}
        if count:
            wanted = np.arange(1, count + 1)
            peaks = ndimage.maximum_position(values, labels, wanted)
            cells = np.bincount(labels.ravel(), minlength=count + 1)
            for label, (place, box) in enumerate(
                zip(peaks, ndimage.find_objects(labels), strict=True), 1
            ):
                row, column = (int(edge) for edge in place)
                edges = (top + box[0].start, box[1].start, top + box[0].stop, box[1].stop)
                peak = float(values[row, column])
                found[last + label] = _Part(peak, (top + row, column), int(cells[label]), *edges)
        for row, column in np.argwhere(is_high[top // side : -(-(top + band) // side)]).tolist():
            square = labels[row * side :, column * side :][:side, :side]
            most = last + int(np.bincount(square[square > 0]).argmax())
            mean = float(squares.means[top // side + row, column])
            found[most] = found[most]._replace(mean=max(found[most].mean, mean))
        numbers = np.where(labels > 0, labels.astype(np.int64) + last, 0)
        last += count
        renamed = _joined(above, numbers[0], open_parts, found)
        above = np.array([renamed.get(n, n) for n in numbers[-1].tolist()])
        still = set(above.tolist())
        yield from (part for number, part in found.items() if number not in still)
        open_parts = {number: part for number, part in found.items() if number in still}
    yield from open_parts.values()


def _joined(
    above: NDArray[np.int64],
    below: NDArray[np.int64],
    open_parts: Mapping[int, _Part],
    found: dict[int, _Part],
) -> dict[int, int]:
    """Join regions of the band above with those of this one, in `found`; new names of the old."""
    names: dict[int, int] = {}

    def name(number: int) -> int:
        while number in names:
            number = names[number]
        return number

    found |= open_parts
    wide = len(below)
    for shift in (-1, 0, 1):
        one = above[max(0, -shift) : wide - max(0, shift)]
        other = below[max(0, shift) : wide - max(0, -shift)]
        touching = (one > 0) & (other > 0)
        for pair in {*zip(one[touching].tolist(), other[touching].tolist(), strict=True)}:
            first, second = (name(number) for number in pair)
            if first != second:
                names[first] = second
                found[second] = found[second].joined(found.pop(first))
    return {number: name(number) for number in names}


def _outline(journal: Journal, part: _Part, extent: float) -> list[list[Ring]]:
    """Where the map, between its cells, passes through `extent`."""
    try:
        import contourpy
        from scipy import ndimage
    except ImportError as error:
        raise MissingExtraError(str(error.name), "slides", error) from error
    cells = (part.bottom - part.top) * (part.right - part.left)
    factor = math.ceil(math.sqrt(cells / MOST_CELLS))
    values = np.pad(_pooled(journal, part, factor), 1)
    labels, _ = ndimage.label(values > extent, TOUCHING)
    row, column = (
        (edge - first) // factor + 1
        for edge, first in zip(part.place, (part.top, part.left), strict=True)
    )
    is_other = (labels > 0) & (labels != labels[row, column])
    values = np.where(is_other, 0, values).astype(np.float64)
    lines = contourpy.contour_generator(z=values, fill_type="OuterOffset")
    polygons, offsets = cast(_Filled, lines.filled(extent, 2 * float(values.max()) + 1))
    pixels = journal.tiling.pixels
    start = np.array([part.left, part.top])
    found = []
    for points, ends in zip(polygons, offsets, strict=True):
        # Values are those of the cells' middles; the first is the one that was padded.
        placed = ((points - 0.5) * factor + start) * pixels
        rounded = placed.round(1).tolist()
        found.append([rounded[a:b] for a, b in pairwise(ends.tolist())])
    return found


def _pooled(journal: Journal, part: _Part, factor: int) -> NDArray[np.float32]:
    """The highest values of squares of so many cells in the part's box."""
    columns = slice(part.left, part.right)
    bands = []
    step = max(1, BAND // factor) * factor
    for top in range(part.top, part.bottom, step):
        values = journal.window(slice(top, min(top + step, part.bottom)), columns)
        values = np.pad(values, [(0, -side % factor) for side in values.shape])
        bands.append(values.reshape(values.shape[0] // factor, factor, -1, factor).max((1, 3)))
    return np.concatenate(bands)


def as_findings(
    regions: Sequence[tuple[_Part, list[list[Ring]]]],
    tiling: Tiling,
    p_value: Callable[[float], float],
) -> list[Finding]:
    """Regions in pixels of the slide.

    Args:
        regions: of `find_regions`.
        tiling: of the slide.
        p_value: of a value.
    """
    found = []
    for number, (part, polygons) in enumerate(regions, 1):
        box = tiling.box_of(slice(part.top, part.bottom), slice(part.left, part.right))
        area = part.cells * tiling.pixels**2
        p = p_value(part.value)
        found.append(Finding(number, part.value, p, part.peak, area, box, polygons))
    return found


def as_geojson(
    findings: Sequence[Finding],
    unscored: Sequence[tuple[tuple[int, int, int, int], str]],
    microns: tuple[float, float] | None,
) -> dict[str, Any]:
    """A FeatureCollection, coordinates in pixels of the slide, as QuPath reads and writes them.

    Args:
        findings: become features of the class ``Anomaly``.
        unscored: box in pixels of the slide and reason of each tile that was not scored: features
            of the class ``Unscored``.
        microns: across and down, of one pixel; None: areas are in pixels alone.
    """
    features = []
    for finding in findings:
        several = len(finding.polygons) != 1
        values = {
            "name": f"region {finding.number}",
            "score": finding.score,
            "p_value": finding.p_value,
            "peak": finding.peak,
            "area_px": finding.area,
            "box": list(finding.box),
        }
        if microns:
            values["area_um2"] = finding.area * microns[0] * microns[1]
        geometry = {
            "type": "MultiPolygon" if several else "Polygon",
            "coordinates": finding.polygons if several else finding.polygons[0],
        }
        features.append(_feature(geometry, "Anomaly", [213, 94, 0], values))
    for (x, y, width, height), reason in unscored:
        corners = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
        square = {"type": "Polygon", "coordinates": [corners]}
        values = {"name": "unscored", "reason": reason, "box": [x, y, width, height]}
        features.append(_feature(square, "Unscored", [90, 90, 90], values))
    return {"type": "FeatureCollection", "features": features}


def _feature(
    geometry: Mapping[str, Any], kind: str, colour: list[int], values: Mapping[str, Any]
) -> dict[str, Any]:
    about = {"objectType": "annotation", "classification": {"name": kind, "color": colour}}
    return {"type": "Feature", "geometry": geometry, "properties": about | dict(values)}
