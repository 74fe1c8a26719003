"""Regions are found in bands, and are those of the whole map."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from haloae.data.views import View
from haloae.slides.findings import (
    BAND,
    MOST_CELLS,
    as_findings,
    as_geojson,
    find_regions,
    squares_of,
)
from haloae.slides.heatmap import write_heatmap
from haloae.slides.journal import Journal, Tile, open_journal
from haloae.slides.tiling import Tiling


def kept(folder: Path, values: NDArray[np.float32]) -> Iterator[Journal]:
    """A journal that has a map."""
    high, wide = values.shape
    side = min(high, wide)
    tiling = Tiling(View("tiles", (side, side)), wide, high)
    with open_journal(folder, tiling, {}, goes_on=False) as journal:
        for number in range(tiling.count):
            journal.add(Tile(number, 0.0, 0.0), values[tiling.cells_of(number)])
        yield journal


def blobs(seed: int, high: int, wide: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(high, wide)), 4)
    return np.asarray(noise / noise.max(), np.float32).clip(0)


@pytest.mark.parametrize("seed", range(3))
def test_bands_make_no_difference(tmp_path: Path, seed: int) -> None:
    values = blobs(seed, 2 * BAND + 70, 150)
    labels, count = ndimage.label(values > 0.4, np.ones((3, 3), np.bool_))
    peaks = ndimage.maximum(values, labels, range(1, count + 1))
    wanted = sorted(
        (
            (-peak, int((labels == label).sum()))
            for label, peak in enumerate(np.atleast_1d(peaks), 1)
            if peak > 0.6
        ),
    )
    for journal in kept(tmp_path, values):
        regions = find_regions(journal, squares_of(journal, 64, 0.0), extent=0.4, threshold=0.6)
        assert [(-part.peak, part.cells) for part, _ in regions] == wanted
        for part, polygons in regions:
            box = ndimage.find_objects((labels == labels[part.place]).astype(int))[0]
            assert (part.top, part.bottom) == (box[0].start, box[0].stop)
            assert (part.left, part.right) == (box[1].start, box[1].stop)
            assert sum(map(area_of, polygons)) == pytest.approx(part.cells, rel=0.4, abs=6)


def area_of(polygon: list[list[list[float]]]) -> float:
    """Of the outer ring, less those of its holes, which turn the other way."""
    total = 0.0
    for ring in polygon:
        x, y = np.array(ring).T
        total += (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2
    return abs(total)


def test_a_ring_has_a_hole_and_a_diagonal_is_one_region(tmp_path: Path) -> None:
    values = np.zeros((40, 40), np.float32)
    values[5:25, 5:25] = 1
    values[10:20, 10:20] = 0
    values[25:30, 25:30] = 0.8
    for journal in kept(tmp_path, values):
        ((part, polygons),) = find_regions(
            journal, squares_of(journal, 64, 0.0), extent=0.5, threshold=0.9
        )
        assert part.cells == 325
        assert sorted(len(polygon) for polygon in polygons) in ([1, 2], [2])
        assert sum(map(area_of, polygons)) == pytest.approx(325, rel=0.1)
        (found,) = as_findings([(part, polygons)], journal.tiling, lambda peak: 0.01)
        assert found.box == (5, 5, 25, 25)
        feature = as_geojson([found], [], (0.5, 0.25))["features"][0]["properties"]
        assert feature["area_um2"] == 325 * 0.125


def test_the_outline_of_a_huge_region_is_coarse_and_still_there(tmp_path: Path) -> None:
    side = int(MOST_CELLS**0.5) + 200
    values = np.zeros((side, side), np.float32)
    values[3 : side - 5, 7:-9] = 1
    for journal in kept(tmp_path, values):
        ((part, polygons),) = find_regions(
            journal, squares_of(journal, 64, 0.0), extent=0.5, threshold=0.9
        )
        assert part.cells == (side - 8) * (side - 16)
        assert sum(map(area_of, polygons)) == pytest.approx(part.cells, rel=0.01)


def test_smaller_sizes_of_the_heat_map_keep_what_is_high(tmp_path: Path) -> None:
    import tifffile

    values = np.zeros((700, 611), np.float32)
    values[401, 333] = 1
    values[-1, -1] = 3
    for journal in kept(tmp_path, values):
        write_heatmap(journal, tmp_path / "h.ome.tiff", threshold=1.0, microns=None)
    with tifffile.TiffFile(tmp_path / "h.ome.tiff") as file:
        levels = [level.asarray() for level in file.series[0].levels]
    assert [level.shape for level in levels] == [(700, 640), (350, 320), (175, 160), (88, 80)]
    for number, level in enumerate(levels):
        assert level[401 >> number, 333 >> number] == 32768
        assert level[699 >> number, 610 >> number] == 65535
        assert (level > 0).sum() == 2


@pytest.mark.parametrize("top", [BAND - 40, 100])
def test_what_is_moderately_high_all_over_is_found_by_its_mean(tmp_path: Path, top: int) -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(0, 0.3, (2 * BAND + 9, 170)).astype(np.float32)
    values[50, 7] = 0.9  # as high as anything, and alone
    values[top : top + 60, 60:130] += 0.5
    for journal in kept(tmp_path, values):
        squares = squares_of(journal, 32**2, 2.0)
        assert squares.peaks.max() < 1 < squares.values.max()
        ((part, _),) = find_regions(journal, squares, extent=0.45, threshold=1.0)
        assert part.value == squares.values.max()
        assert (part.top, part.left, part.bottom, part.right) == (top, 60, top + 60, 130)
        by_peaks = squares_of(journal, 32**2, 0.0)
        assert find_regions(journal, by_peaks, extent=0.45, threshold=1.0) == []


def test_each_square_above_the_threshold_has_a_region(tmp_path: Path) -> None:
    values = blobs(4, BAND + 70, 150)
    for journal in kept(tmp_path, values):
        squares = squares_of(journal, 16**2, 4.0)
        for threshold in (0.9, 1.2, 2.0, float(squares.values.max())):
            high = squares.values > threshold
            regions = find_regions(journal, squares, extent=0.8, threshold=threshold)
            assert bool(regions) == high.any()
            reached = np.zeros(values.shape, np.bool_)
            for part, _ in regions:
                reached[part.top : part.bottom, part.left : part.right] = True
            for row, column in np.argwhere(high).tolist():
                assert reached[16 * row : 16 * row + 16, 16 * column : 16 * column + 16].any()


def test_a_square_that_is_the_same_all_over_is_a_region_whatever_rounding_does(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(3)
    values = np.repeat(np.repeat(rng.uniform(0.1, 1, (9, 11)), 16, 0), 16, 1).astype(np.float32)
    for journal in kept(tmp_path, values):
        squares = squares_of(journal, 16**2, 3.7)
        for value in squares.values.ravel().tolist():
            threshold = float(np.nextafter(np.float32(value), np.float32(0)))
            assert find_regions(journal, squares, extent=1.0, threshold=threshold)
