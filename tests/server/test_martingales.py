"""The p-values are what they are said to be, and nobody gains by betting against good images."""

import numpy as np
import pytest
from scipy import stats

from haloae.server.martingales import (
    Martingales,
    Rule,
    reference,
    reference_of_ranges,
    tail,
)


def test_a_p_value_is_the_share_that_is_higher_with_a_coin_for_itself_and_its_equals() -> None:
    rng = np.random.default_rng(0)
    known = rng.integers(0, 6, (2000, 20)).astype(float)
    values = rng.integers(-1, 7, 2000).astype(float)
    found = Martingales(reference(known, rng)).add(values, rng) * 21
    higher = (known > values[:, None]).sum(1)
    equal = (known == values[:, None]).sum(1)
    coins = (found - higher) / (equal + 1)
    assert stats.kstest(coins, "uniform").pvalue > 1e-3


def test_what_came_since_counts_as_much_as_a_calibration_image() -> None:
    rng = np.random.default_rng(0)
    bets = Martingales(reference(np.zeros((1, 9)), rng))
    for count in range(10, 40):  # each higher than those that were there in the beginning
        (found,) = bets.add(np.array([float(count)]), rng)
        assert 0 <= found <= (count - 9) / count
    assert bets.add(np.array([-1.0]), rng) == pytest.approx([39.5 / 40], abs=0.5 / 40)


KINDS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "ties": lambda rng, shape: rng.poisson(1.5, shape).astype(float),
    "all the same": lambda rng, shape: np.zeros(shape),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [4, 20, 300])
def test_p_values_of_good_images_are_uniform_and_independent(kind: str, count: int) -> None:
    rng = np.random.default_rng(1)
    rows, images = 400, 60
    values = KINDS[kind](rng, (rows, count + images))
    bets = Martingales(reference(values[:, :count], rng))
    found = np.stack([bets.add(each, rng) for each in values[:, count:].T], 1)
    # Each stream has calibration images of its own, so that what they share would be seen here.
    assert stats.kstest(found.ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest(found.mean(1), stats.norm(0.5, np.sqrt(1 / 12 / images)).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(found[:, :-1].ravel(), found[:, 1:].ravel())[0, 1]) < 0.03


def test_against_calibration_images_alone_they_are_not() -> None:
    """Else the test above would prove nothing."""
    rng = np.random.default_rng(1)
    rows, images, count = 400, 60, 20
    values = rng.normal(size=(rows, count + images))
    known = reference(values[:, :count], rng)
    found = np.stack([Martingales(known).add(each, rng) for each in values[:, count:].T], 1)
    assert stats.kstest(found.mean(1), stats.norm(0.5, np.sqrt(1 / 12 / images)).cdf).pvalue < 1e-9


@pytest.mark.parametrize("is_range", [False, True])
def test_capital_reaches_c_within_t_images_with_a_chance_of_t_in_c(is_range: bool) -> None:
    rng = np.random.default_rng(2)
    rows, images, count = 4000, 60, 30
    values = rng.normal(size=(rows, count + images))
    good = values[:, :count]
    known = reference(good, rng)
    if is_range:
        known = reference_of_ranges(np.stack([good.min(1), good.max(1)], 1), count)
    bets = Martingales(known)
    highest = np.zeros(rows)
    for each in values[:, count:].T:
        bets.add(each, rng)
        highest = np.maximum(highest, bets.evidence)
    for wanted in (200, 1000, 5000):
        share = (highest >= wanted).mean()
        assert share <= images / wanted + 3 * np.sqrt(images / wanted / rows)
    assert (highest >= 200).mean() > 0.02  # a bound that nothing comes near to would be no bet


def test_many_values_are_kept_by_as_many_as_there_is_room_for() -> None:
    rng = np.random.default_rng(3)
    known = reference(rng.normal(size=(2, 5000)), rng)
    assert known.values.shape == (2, 200)
    assert known.weights.sum(1).tolist() == [5001, 5001]
    bets = Martingales(known)
    assert bets.add(np.array([10.0, -10.0]), rng) == pytest.approx(
        [1 / 5001, 5000 / 5001], abs=2e-4
    )


@pytest.mark.parametrize(("bad", "good"), [(1, 20), (1, 1000), (4, 97)])
def test_the_tail_is_that_of_the_beta_binomial(bad: int, good: int) -> None:
    for found, size in ((1, 1), (3, 20), (20, 20), (7, 200)):
        expected = stats.betabinom.sf(found - 1, size, bad, good)
        assert tail(found, size, bad, good) == pytest.approx(expected, rel=1e-6)
    assert tail(0, 20, bad, good) == pytest.approx(1)


def test_a_rule_holds_its_rate_whatever_the_threshold_lets_through() -> None:
    rng = np.random.default_rng(4)
    level, cried = 0.02, 0
    for _ in range(400):
        calibration = rng.random(20)
        scores, rule = rng.random(60), Rule(1, 20)
        cried += any(rule.add(bool(score > calibration.max())) <= level / 60 for score in scores)
    assert cried / 400 <= level + 3 * np.sqrt(level / 400)


def test_a_rule_holds_its_rate_over_a_hundred_thousand_good_images() -> None:
    rng = np.random.default_rng(6)
    once_in, images, lines, cried = 500, 100_000, 2, 0
    for _ in range(lines):
        bad = rng.random(images) > rng.random(100).max()
        rule = Rule(1, 100)
        for is_bad in bad.tolist():
            if rule.add(is_bad) * once_in <= 1:
                rule, cried = Rule(1, 100), cried + 1
    assert 0 < cried <= lines * images / once_in


def test_where_nothing_is_known_to_be_good_nothing_is_unlikely() -> None:
    """As when what comes now is said to be usual, whatever it is."""
    rule = Rule(1, 0)
    assert min(rule.add(True) for _ in range(300)) == 1
    for _ in range(200):
        rule.add(False)
    assert min(rule.add(True) for _ in range(10)) > 1e-3  # as many have come before


def test_a_rule_sees_a_run_of_bad_ones_and_knows_how_many_are_usual() -> None:
    def after(usual: int) -> int:
        rule, rng = Rule(1, 100), np.random.default_rng(5)
        for place in rng.permutation(1000):
            rule.add(bool(place < usual))
        return next(n for n in range(1, 200) if rule.add(True) < 1e-7)

    assert after(0) <= 5
    assert after(0) < after(50) < after(200) < 20
