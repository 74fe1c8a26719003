"""The verdict of many tiles holds its false-alarm rate, in worlds whose rates are known."""

import numpy as np
import pytest
from benchmarks.slide_rates import WORLDS, rates

from haloae.detection.calibration import Calibration
from haloae.detection.highest import needs_more_slides, p_value_of_highest, threshold_of_highest

PEAKS = tuple(np.sort(np.random.default_rng(0).gamma(8, 1, 200)).tolist())


def calibration(*, rate: float = 0.05, slides: tuple[float, ...] = ()) -> Calibration:
    return Calibration(scores=PEAKS, peaks=PEAKS, false_alarm_rate=rate, slides=slides)


@pytest.mark.parametrize("world", ["gamma", "neighbours"])
def test_good_slides_are_called_anomalous_no_more_often_than_wanted(world: str) -> None:
    for slides, whole in ((3, False), (19, True)):
        got, naive, share = rates(WORLDS[world], 0.03, slides, 0.05, whole=whole, repeats=30)
        assert got < 0.05 + 3 * (0.05 * 0.95 / 150) ** 0.5
        assert share < 2, "a defect twice as high as good slides' highest is found"
        if not whole:
            assert naive > 0.9, "what one tile may be exceeded by, nearly every slide exceeds"


@pytest.mark.parametrize("slides", [(), tuple(np.linspace(20, 30, 19).tolist())])
@pytest.mark.parametrize("tiles", [1, 30, 1000])
def test_the_threshold_is_where_the_p_value_is_the_rate(
    slides: tuple[float, ...], tiles: int
) -> None:
    for rate in (0.05, 0.2):
        of = calibration(rate=rate, slides=slides)
        threshold = threshold_of_highest(of, tiles)
        assert p_value_of_highest(of, threshold * (1 + 1e-9), tiles) <= rate * (1 + 1e-6)
        assert p_value_of_highest(of, threshold * (1 - 1e-9), tiles) >= rate * (1 - 1e-6)


def test_more_tiles_ask_for_more() -> None:
    of, tiles = calibration(), 10_000
    assert threshold_of_highest(of, 1) < threshold_of_highest(of, 100)
    assert threshold_of_highest(of, 100) < threshold_of_highest(of, tiles)
    values = [p_value_of_highest(of, value, tiles) for value in (0.0, 10.0, 30.0, 60.0, 1e300)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1
    assert 0 < values[-1] < 1e-6


def test_slides_count_from_as_many_on_as_the_rate_needs() -> None:
    assert needs_more_slides(calibration(rate=0.01)) == 99
    assert needs_more_slides(calibration(slides=tuple(range(1, 19)))) == 1
    assert needs_more_slides(calibration(slides=tuple(range(1, 20)))) == 0


def test_equal_peaks_are_no_trouble() -> None:
    same = Calibration(scores=(1.0,) * 8, peaks=(1.0,) * 8, false_alarm_rate=0.05)
    assert threshold_of_highest(same, 100) == 1
    assert p_value_of_highest(same, 1.0, 100) == 1
    assert p_value_of_highest(same, 1.1, 100) < 0.05
