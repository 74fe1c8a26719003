"""Outline quality against the definition, pixel by pixel."""

import numpy as np
import pytest

from haloae.evaluation.metrics import PixelMetrics
from haloae.evaluation.outlines import OutlineMetrics, OutlineResult

Case = list[tuple[np.ndarray, np.ndarray, np.ndarray]]
THRESHOLD = 1.0


@pytest.fixture
def case() -> Case:
    """Maps, masks and what counts of four images of different sizes; the last one is good."""
    rng = np.random.default_rng(0)
    images = []
    for index, shape in enumerate([(40, 60), (7, 90), (33, 33), (40, 60)]):
        mask = rng.random(shape) < (0.3 if index < 3 else 0)
        values = (rng.normal(size=shape) + 1.5 * mask).astype(np.float32)
        images.append((values, mask, rng.random(shape) < 0.7))
    return images


def measured(case: Case, *, with_regions: bool) -> OutlineMetrics:
    metrics = OutlineMetrics()
    for values, mask, inside in case:
        metrics.update(values, values > THRESHOLD, mask, inside if with_regions else None)
    return metrics


def by_definition(case: Case, threshold: float, *, with_regions: bool) -> float:
    marked, true = [], []
    for values, mask, inside in case:
        counts = inside if with_regions else np.ones_like(mask)
        marked.append((values > threshold)[counts])
        true.append(mask[counts])
    both = np.concatenate(marked), np.concatenate(true)
    return float((both[0] & both[1]).sum() / (both[0] | both[1]).sum())


@pytest.mark.parametrize("with_regions", [False, True])
def test_what_is_marked_and_the_best_there_is(case: Case, with_regions: bool) -> None:
    found = measured(case, with_regions=with_regions).compute()
    assert found.iou == by_definition(case, THRESHOLD, with_regions=with_regions)
    best = max(
        by_definition(case, threshold, with_regions=with_regions)
        for threshold in np.linspace(-3, 5, 400)
    )
    assert found.iou_best == pytest.approx(best, abs=2e-3)
    assert found.iou_best >= found.iou


def test_the_best_is_where_f1_is_highest(case: Case) -> None:
    pixels = PixelMetrics()
    for values, mask, inside in case:
        pixels.update(values, mask, inside)
    f1 = pixels.compute().f1max
    assert f1 is not None
    assert measured(case, with_regions=True).compute().iou_best == pytest.approx(f1 / (2 - f1))


def test_parts_of_a_test_set_are_put_together(case: Case) -> None:
    parts = [measured(case[:2], with_regions=True), measured(case[2:], with_regions=True)]
    parts[0].merge(parts[1])
    assert parts[0].compute() == measured(case, with_regions=True).compute()


def test_without_a_defect_there_is_nothing_to_compare(case: Case) -> None:
    assert measured(case[3:], with_regions=False).compute() == OutlineResult(None, None)


def test_a_perfect_outline_in_a_large_image_is_one() -> None:
    mask = np.zeros((3, 500_000), bool)
    mask[1, 1000:400_000] = True
    metrics = OutlineMetrics()
    metrics.update(mask.astype(np.float32), mask, mask)
    assert metrics.compute() == OutlineResult(1.0, 1.0)


def test_arrays_that_do_not_fit_are_refused(case: Case) -> None:
    values, mask, inside = case[0]
    for wrong in (mask[1:], mask.T):
        with pytest.raises(ValueError, match="one shape"):
            OutlineMetrics().update(values, mask, wrong)
        with pytest.raises(ValueError, match="expected"):
            PixelMetrics().update(values, mask, wrong)
    with pytest.raises(ValueError, match="NaN"):
        OutlineMetrics().update(np.full_like(values, np.nan), mask, mask, inside)
