"""Thresholds and p-values against their definitions, by counting, and the rates they promise."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from conftest import PLAIN
from haloae.config import Config
from haloae.data.images import read_image
from haloae.data.views import resize
from haloae.detection.calibration import Calibration, Tail, images_needed, threshold_at
from haloae.detection.good import measure_good
from haloae.detection.heads.autoencoder import AutoencoderHead
from haloae.detection.maps import CHANNEL_SHRINKAGE, SHRINKAGE
from haloae.errors import DataError
from haloae.network.haloae import HaloAE

RATES = ("0.001", "0.003", "0.01", "0.02", "0.05", "0.07", "0.1", "0.15", "0.2", "0.3", "0.5")
RATES = (*RATES, "0.7", "0.9", "0.99")
COUNTS = (4, 5, 6, 8, 9, 10, 14, 18, 19, 20, 29, 49, 50, 60, 98, 99, 100, 199, 332, 333, 334)
COUNTS = (*COUNTS, 998, 999, 1000, 1999)


def scores(count: int, *, ties: bool = False, seed: int = 0) -> list[float]:
    values = np.random.default_rng([seed, count]).lognormal(size=count)
    return sorted((values.round(1) if ties else values).tolist())


def calibration(values: list[float], rate: float = 0.1) -> Calibration:
    return Calibration(
        scores=tuple(values), peaks=tuple(v * 2 for v in values), false_alarm_rate=rate
    )


def exact_p_value(values: list[float], score: float) -> Fraction:
    return Fraction(1 + sum(value >= score for value in values), len(values) + 1)


@pytest.mark.parametrize("ties", [False, True])
def test_p_value_by_counting(ties: bool) -> None:
    values = scores(37, ties=ties)
    found = calibration(values)
    between = [(a + b) / 2 for a, b in pairwise(values)]
    for score in [0.0, *values, *between, max(values) + 1, math.inf]:
        assert found.p_value(score) == pytest.approx(float(exact_p_value(values, score)), abs=1e-12)


def test_p_value_goes_from_one_to_one_in_n_plus_one() -> None:
    found = calibration(scores(24))
    assert found.p_value(0.0) == 1
    assert found.p_value(1e9) == 1 / 25


@pytest.mark.parametrize("value", [math.inf, math.nan, -1.0])
@pytest.mark.parametrize("what", ["scores", "peaks"])
def test_only_finite_scores_of_at_least_nothing_calibrate(what: str, value: float) -> None:
    right = (1.0, 2.0, 3.0, 4.0)
    for wrong in ((1.0, 2.0, 3.0, value), (value, 2.0, 3.0, 4.0)):
        values = {"scores": right, "peaks": right, what: wrong}
        with pytest.raises(ValueError, match=what):
            Calibration(**values, false_alarm_rate=0.1)


@pytest.mark.parametrize("rate", RATES)
def test_images_needed_is_the_fewest_that_reach_the_rate(rate: str) -> None:
    exact = Fraction(rate)
    fewest = next(n for n in range(2000) if Fraction(1, n + 1) <= exact)
    assert images_needed(float(rate)) == fewest


def test_images_needed_of_the_usual_rates() -> None:
    assert [images_needed(rate) for rate in (0.01, 0.05, 0.1, 0.5)] == [99, 19, 9, 1]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rate", RATES)
def test_exceeding_the_threshold_means_a_p_value_up_to_the_rate(rate: str, ties: bool) -> None:
    for count in COUNTS:
        values = scores(count, ties=ties)
        limit = threshold_at(values, float(rate))
        is_enough = Fraction(1, count + 1) <= Fraction(rate)
        assert limit.extrapolated == (not is_enough)
        if not is_enough:
            continue
        assert limit.value in values
        around = values.index(limit.value)
        near = values[max(0, around - 3) : around + 4]
        candidates = [0.0, *near, *(np.nextafter(v, math.inf) for v in near), values[-1] * 2]
        for score in candidates:
            is_rare = exact_p_value(values, score) <= Fraction(rate)
            assert (score > limit.value) == is_rare, (count, score)


@pytest.mark.parametrize(
    ("rate", "count", "above"), [(0.01, 99, 0), (0.01, 199, 1), (0.1, 9, 0), (0.1, 19, 1)]
)
def test_how_many_held_out_images_lie_above(rate: float, count: int, above: int) -> None:
    values = scores(count)
    limit = threshold_at(values, rate)
    assert sum(value > limit.value for value in values) == above
    assert limit.value == values[-1 - above]


def test_order_of_the_values_does_not_matter() -> None:
    values = scores(30)
    shuffled = np.random.default_rng(0).permutation(values).tolist()
    assert threshold_at(shuffled, 0.1) == threshold_at(values, 0.1)
    assert threshold_at(shuffled, 0.001).value == pytest.approx(threshold_at(values, 0.001).value)


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.05])
@pytest.mark.parametrize("count", [4, 7, 18])
def test_with_too_few_images_it_is_a_prediction_limit_of_the_upper_half(
    rate: float, count: int
) -> None:
    logs = sorted(math.log(value) for value in scores(count))
    middle = (logs[(count - 1) // 2] + logs[count // 2]) / 2
    above = [value - middle for value in logs if value > middle]
    spread = math.sqrt(sum(value**2 for value in above) / len(above))
    reach = math.sqrt(1 + math.pi / (2 * count))
    limit = math.exp(middle + stats.t.ppf(1 - rate, len(above)) * spread * reach)
    found = threshold_at(scores(count), rate)
    assert found.extrapolated
    assert found.value == pytest.approx(limit, rel=1e-9)


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.05])
@pytest.mark.parametrize("count", [4, 7, 18])
def test_files_that_do_not_say_have_a_prediction_limit_of_all(rate: float, count: int) -> None:
    values = scores(count)
    logs = [math.log(value) for value in values]
    mean = sum(logs) / count
    std = math.sqrt(sum((value - mean) ** 2 for value in logs) / (count - 1))
    limit = math.exp(mean + stats.t.ppf(1 - rate, count - 1) * std * math.sqrt(1 + 1 / count))
    calibration = Calibration.model_validate(
        {"scores": values, "peaks": values, "false_alarm_rate": rate}
    )
    assert calibration.threshold.extrapolated
    assert calibration.threshold.value == pytest.approx(limit, rel=1e-9)
    assert calibration.pixel_threshold == calibration.threshold


@pytest.mark.parametrize("tail", ["all", "upper"])
@pytest.mark.parametrize("count", [8, 20, 60])
def test_extrapolated_thresholds_keep_the_false_alarm_rate(count: int, tail: Tail) -> None:
    rng = np.random.default_rng(0)
    rates = [
        stats.lognorm.sf(threshold_at(rng.lognormal(size=count).tolist(), 0.01, tail).value, 1)
        for _ in range(2000)
    ]
    assert 0.007 <= np.mean(rates) <= 0.013


def test_images_that_are_given_twice_do_not_raise_the_threshold() -> None:
    """Each is next to its twin, and scores next to nothing when it is left out itself."""
    values = scores(30)
    twins = sorted([0.01, 0.01, 0.02, 0.02, *values[4:]])
    assert threshold_at(twins, 0.01).value == threshold_at(values, 0.01).value
    assert threshold_at(twins, 0.01, "all").value > 2 * threshold_at(values, 0.01, "all").value


@pytest.mark.parametrize("tail", ["all", "upper"])
@pytest.mark.parametrize("others", [1, 5, 12])
@pytest.mark.parametrize("copy", [0.0, 1e-6, 0.02])
def test_copies_of_one_image_leave_the_threshold_within_reach(
    copy: float, others: int, tail: Tail
) -> None:
    """Half of the images are one: by the logarithms of nothing, anything at all would be usual."""
    values = sorted([*[copy] * 12, *scores(others)])
    assert threshold_at(values, 0.01, tail).value < 10 * values[-1]


@pytest.mark.parametrize(("count", "rate"), [(99, 0.01), (60, 0.05), (19, 0.1)])
def test_seen_thresholds_keep_the_false_alarm_rate(count: int, rate: float) -> None:
    rng = np.random.default_rng(1)
    rates = [
        stats.gamma.sf(threshold_at(rng.gamma(2.0, size=count).tolist(), rate).value, 2.0)
        for _ in range(2000)
    ]
    expected = math.floor(rate * (count + 1) + 1e-9) / (count + 1)
    assert np.mean(rates) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("values", [[0.0] * 4, [0.0, 0.0, 0.0, 1.0], [2.0] * 5, [0.0] * 200])
@pytest.mark.parametrize("rate", [0.01, 0.2, 0.3])
def test_zeros_and_ties_give_a_finite_threshold(values: list[float], rate: float) -> None:
    found = threshold_at(values, rate)
    assert math.isfinite(found.value)
    assert found.value >= 0
    if len(set(values)) == 1:
        assert found.value == pytest.approx(values[0], abs=1e-20)


@pytest.mark.parametrize("rate", [1e-4, 1e-9, 1e-15, 1e-17])
def test_tiny_rates_give_a_threshold_that_is_a_finite_number(rate: float) -> None:
    found = threshold_at(scores(4), rate)
    assert found.extrapolated
    assert math.isfinite(found.value)
    assert found.value > max(scores(4))


@pytest.mark.parametrize("rate", [0.999, 1 - 1e-10, 1 - 1e-16])
def test_rates_near_one_give_the_lowest_value(rate: float) -> None:
    assert threshold_at([1.0, 2.0, 3.0, 4.0], rate).value == 1.0


def test_a_lower_rate_never_lowers_the_threshold_that_was_seen() -> None:
    values = scores(500)
    limits = [threshold_at(values, rate).value for rate in (0.5, 0.2, 0.1, 0.05, 0.01, 0.002)]
    assert limits == sorted(limits)


def test_calibration_takes_scores_and_peaks_apart() -> None:
    values = scores(40)
    found = calibration(values, 0.1)
    assert found.threshold == threshold_at(values, 0.1)
    assert found.pixel_threshold == threshold_at([2 * v for v in values], 0.1)
    assert not found.extrapolated
    assert found.images_needed == 9
    few = calibration(values[:4], 0.1)
    assert few.extrapolated
    assert few.pixel_threshold.extrapolated


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.0, 3.0],
        [1.0, 3.0, 2.0, 4.0],
        [-1.0, 2.0, 3.0, 4.0],
        [1.0, 2.0, 3.0, math.nan],
        [1.0, 2.0, 3.0, math.inf],
    ],
)
def test_calibrations_that_make_no_sense_are_refused(values: list[float]) -> None:
    good = [1.0, 2.0, 3.0, 4.0]
    for wrong in ({"scores": values, "peaks": good}, {"scores": good, "peaks": values}):
        with pytest.raises(ValueError, match="validation error"):
            Calibration.model_validate({**wrong, "false_alarm_rate": 0.1})


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, math.nan])
def test_rates_outside_zero_to_one_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="false_alarm_rate"):
        calibration([1.0, 2.0, 3.0, 4.0], rate)


def test_a_calibration_survives_json_exactly() -> None:
    found = calibration(scores(20))
    again = Calibration.model_validate_json(found.model_dump_json())
    assert again == found
    assert again.threshold == found.threshold


@pytest.mark.parametrize("count", [5, 30])
def test_fitted_thresholds_are_kept_and_not_computed_again(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = calibration(scores(count))
    text = found.fitted().model_dump_json()
    monkeypatch.setattr("haloae.detection.calibration.threshold_at", None)
    again = Calibration.model_validate_json(text)
    assert (again.threshold, again.pixel_threshold) == (found.threshold, found.pixel_threshold)
    assert again.fitted() == again


class TestMeasureGood:
    """Every image is scored with the mean of the others."""

    @pytest.fixture
    def network(self, tiny: Config) -> HaloAE:
        config = tiny.network.model_copy(update={"image_decoder": (4,)})
        generator = torch.Generator().manual_seed(0)
        return HaloAE(config, image_size=32, weights="random", generator=generator)

    @pytest.fixture
    def arrays(self, good_paths: list) -> list[np.ndarray]:
        return [resize(read_image(path), 32) for path in good_paths[:5]]

    @pytest.mark.parametrize(
        "kind", ["difference", "channel_difference", "none", "channel", "position", "both"]
    )
    def test_equals_a_loop(self, kind: str, network: HaloAE, arrays: list[np.ndarray]) -> None:
        config = PLAIN.replace(
            image_size=32,
            network={"image_decoder": [4]},
            detection={"normalisation": kind, "sigma": 0.0, "top_share": 0.5, "image_weight": 0.3},
        )
        head, found_scores, found_peaks, _ = measure_good(network, lambda: iter(arrays), config)
        assert isinstance(head, AutoencoderHead)
        usual = head.usual
        features, images = errors_of(network.eval(), arrays)
        assert usual.images == 5
        assert torch.allclose(usual.features.double(), features.mean(0), rtol=1e-4)
        assert usual.image is not None
        assert torch.allclose(usual.image.double(), images.mean(0), rtol=1e-4)
        expected_scores, expected_peaks = [], []
        for index in range(5):
            others = [i for i in range(5) if i != index]
            anomaly = map_by_hand(features[index], features[others].mean(0), 4, kind)
            anomaly += 0.3 * map_by_hand(images[index], images[others].mean(0), 4, kind)
            highest = anomaly.flatten().sort().values[-32:]
            expected_scores.append(highest.mean().item())
            expected_peaks.append(anomaly.max().item())
        assert found_scores == pytest.approx(sorted(expected_scores), rel=1e-4)
        assert found_peaks == pytest.approx(sorted(expected_peaks), rel=1e-4)

    def test_leaving_out_makes_a_difference(
        self, network: HaloAE, arrays: list[np.ndarray]
    ) -> None:
        """Else the loop above would prove nothing."""
        features, _ = errors_of(network.eval(), arrays)
        left_out = map_by_hand(features[0], features[1:].mean(0), 4, "both").mean()
        left_in = map_by_hand(features[0], features.mean(0), 5, "both").mean()
        assert abs(left_out - left_in) > 0.002 * left_in

    def test_too_few(self, network: HaloAE, arrays: list[np.ndarray]) -> None:
        config = PLAIN.replace(image_size=32)
        for count in (0, 3):
            with pytest.raises(DataError, match=f"{count} good images are too few"):
                measure_good(network, lambda count=count: iter(arrays[:count]), config)
        assert len(measure_good(network, lambda: iter(arrays[:4]), config)[1]) == 4


def errors_of(network: HaloAE, arrays: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Squared errors of features and of image cells, one image after another, in float64."""
    features, images = [], []
    for array in arrays:
        image = network.normalise(torch.from_numpy(array)[None])
        with torch.inference_mode():
            output = network(image)
        features.append((output.features - output.rebuilt)[0].double() ** 2)
        assert output.image is not None
        error = (output.image - image)[0].double() ** 2
        images.append(error.reshape(3, 8, 4, 8, 4).mean((2, 4)))
    return torch.stack(features), torch.stack(images)


def map_by_hand(squared: Tensor, good: Tensor, count: int, kind: str) -> Tensor:
    if kind == "difference":
        return (squared.mean(0) - good.mean(0)).abs()
    if kind == "channel_difference":
        usual = count * good + CHANNEL_SHRINKAGE * good.mean((1, 2))[:, None, None]
        return ((squared - good).abs() * (count + CHANNEL_SHRINKAGE) / usual).mean(0)
    if kind in ("channel", "both"):
        size = good.mean((1, 2))[:, None, None]
        squared, good = squared / size, good / size
    if kind in ("none", "channel"):
        return squared.mean(0)
    cell = (count * good.mean(0) + SHRINKAGE * good.mean()) / (count + SHRINKAGE)
    return squared.mean(0) / cell
