"""Boxes are those of the regions that another implementation finds."""

import numpy as np
import pytest
from scipy import ndimage

from haloae.detection.prediction import Prediction
from haloae.server.boxes import LONGEST, boxes_of, regions


def prediction(grid_map: np.ndarray, size: tuple[int, int]) -> Prediction:
    return Prediction(1, 1, False, False, grid_map.astype(np.float32), size, 1.0)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
def test_regions_are_those_of_scipy(share: float) -> None:
    rng = np.random.default_rng(round(100 * share))
    for height, width in ((1, 1), (1, 9), (9, 1), (23, 31), (64, 64)):
        values = (rng.random((height, width)) < share) * (1 + rng.random((height, width)))
        values = values.astype(np.float32)
        labels, count = ndimage.label(values > 1, np.ones((3, 3)))
        wanted = {
            (s[1].start, s[0].start, s[1].stop, s[0].stop, float(peak))
            for s, peak in zip(
                ndimage.find_objects(labels),
                ndimage.maximum(values, labels, range(1, count + 1)),
                strict=True,
            )
        }
        assert {tuple(box) for box in regions(values, 1)} == wanted


def test_boxes_are_around_the_defects_of_a_prediction() -> None:
    grid_map = np.zeros((8, 8))
    grid_map[2, 3], grid_map[6, 6] = 3, 2
    found = prediction(grid_map, (100, 160))
    labels, _ = ndimage.label(found.defects)
    wanted = [(s[1].start, s[0].start, s[1].stop, s[0].stop) for s in ndimage.find_objects(labels)]
    assert [tuple(box[:4]) for box in boxes_of(found)] == wanted
    assert [round(box.peak) for box in boxes_of(found)] == [3, 2]
    assert boxes_of(prediction(np.ones((8, 8)), (100, 160))) == ()


def test_boxes_of_a_huge_image_hold_what_those_of_a_small_one_hold() -> None:
    grid_map = np.zeros((8, 8))
    grid_map[2:4, 3] = 3
    [small] = boxes_of(prediction(grid_map, (LONGEST, LONGEST)))
    [huge] = boxes_of(prediction(grid_map, (10 * LONGEST, 10 * LONGEST)))
    assert np.asarray(huge[:4]) == pytest.approx(10 * np.asarray(small[:4]), abs=10)
