"""Scores against brute force, scikit-learn and an independent library (ADEval)."""

import importlib
import tracemalloc
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from haloae.evaluation.metrics import (
    CURVE_POINTS,
    PRO_LIMIT,
    ImageMetrics,
    ImageResult,
    PixelMetrics,
    PixelResult,
    area_resize,
    image_metrics,
    image_roc,
)
from oracles import area_resize_by_loops, best_f1, exact_pixel_metrics

TOLERANCE = 1e-3
DATA = Path(__file__).parents[2].parent / "shared" / "data"
DISTRIBUTIONS = {
    "separated": lambda noise, mask: noise + 6 * mask,
    "overlapping": lambda noise, mask: noise + mask,
    "worse than chance": lambda noise, mask: noise - mask,
    "heavy-tailed, tiny": lambda noise, mask: 1e-6 * np.exp(noise + 2 * mask),
    "heavy-tailed, huge": lambda noise, mask: 1e6 * np.exp(2 * noise + 2 * mask),
    "quantised": lambda noise, mask: np.round(noise + mask),
    "two values": lambda noise, mask: noise + mask > 1,
    "constant": lambda noise, mask: np.full_like(noise, 0.7),
    "negative": lambda noise, mask: -np.exp(noise - mask),
    "with an offset": lambda noise, mask: 10 + 0.3 * noise + 0.6 * mask,
}
Case = tuple[list[np.ndarray], list[np.ndarray]]


def synthetic(name: str, *, seed: int = 0, images: int = 8, side: int = 64) -> Case:
    """Maps and masks; masks have regions from one pixel to a quarter of the image, or none."""
    rng = np.random.default_rng(seed)
    masks = []
    for index in range(images):
        smooth = gaussian_filter(rng.normal(size=(side, side)), side / 16)
        mask = smooth > 2 * smooth.std()
        mask |= rng.random((side, side)) < 0.002
        if index == 0:
            mask[: side // 2, : side // 2] = True
        if index == 1:
            mask[-4:, -4:] = np.eye(4, dtype=bool)  # one region only where corners connect
        masks.append(mask if index % 4 != 3 else np.zeros_like(mask))
    transform = DISTRIBUTIONS[name]
    maps = [transform(rng.normal(size=mask.shape), mask).astype(np.float32) for mask in masks]
    return maps, masks


def real_images() -> Case:
    """Masks of real defects, each with a map of blurred noise plus the mask."""
    paths = sorted((DATA / "magnetic_tile" / "ground_truth").glob("*/*_mask.png"))[::80]
    if not paths:
        pytest.skip("magnetic_tile is not here")
    rng = np.random.default_rng(0)
    masks = [np.asarray(Image.open(path).convert("L")) > 127 for path in paths]
    maps = [
        gaussian_filter(rng.normal(size=mask.shape) + 0.15 * mask, 3).astype(np.float32)
        for mask in masks
    ]
    return maps, masks


def state_of(maps: list[np.ndarray], masks: list[np.ndarray]) -> PixelMetrics:
    metrics = PixelMetrics()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        metrics.update(anomaly_map, mask)
    return metrics


def streamed(maps: list[np.ndarray], masks: list[np.ndarray]) -> PixelResult:
    return state_of(maps, masks).compute()


@pytest.fixture(scope="module")
def adeval() -> Iterator[SimpleNamespace]:
    pytest.importorskip("adeval")
    parts = ("iterative", "metrics", "au_pro")
    with pytest.MonkeyPatch.context() as patch:
        # ADEval 1.1 calls numpy's trapezoid by the name that numpy 2.4 took away.
        patch.setattr(np, "trapz", np.trapezoid, raising=False)
        yield SimpleNamespace(**{name: importlib.import_module(f"adeval.{name}") for name in parts})
    # Importing it lets every process pickle lambdas, which would hide a fault from other tests.
    if "reducer_override" in vars(ForkingPickler):
        del ForkingPickler.reducer_override


def adeval_metrics(
    adeval: SimpleNamespace, maps: list[np.ndarray], masks: list[np.ndarray]
) -> dict:
    """ADEval's figures, from ranks: its linear bins would crush a heavy tail."""
    pixels = np.concatenate([anomaly_map.ravel() for anomaly_map in maps])
    truth = np.concatenate([mask.ravel() for mask in masks]).astype(int)
    distinct, ranks = np.unique(pixels, return_inverse=True)
    ends = np.cumsum([anomaly_map.size for anomaly_map in maps])[:-1]
    accumulator = adeval.iterative.EvalAccumulator(
        0.0, 1.0, -1.0, float(len(distinct)), nstrips=min(2 * len(distinct) + 5, 20_000)
    )
    for rank, mask in zip(np.split(ranks.astype(np.float64), ends), masks, strict=True):
        accumulator.add_anomap(rank.reshape(mask.shape), mask.astype(np.uint8))
    exact = adeval.metrics.compute_pixelwise_retrieval_metrics(pixels, truth)
    misses, false_alarms = exact["optimal_fnr"] * truth.size, exact["optimal_fpr"] * truth.size
    hits = truth.sum() - misses
    with np.errstate(invalid="ignore"):  # its precision above the highest score is 0/0
        auroc = accumulator._auroc(accumulator._pixel_acc)
    return {
        "auroc": auroc,
        "ap": exact["ap"],
        "f1max": 2 * hits / (2 * hits + misses + false_alarms),
        "aupro": accumulator._aupro(),
    }


def assert_close(result: PixelResult, expected: dict[str, float]) -> None:
    measured = {name: getattr(result, name) for name in expected}
    assert measured == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_pixel_metrics_equal_brute_force(name: str, seed: int) -> None:
    maps, masks = synthetic(name, seed=seed)
    assert_close(streamed(maps, masks), exact_pixel_metrics(maps, masks))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_pixel_metrics_equal_adeval(name: str, adeval: SimpleNamespace) -> None:
    maps, masks = synthetic(name)
    assert_close(streamed(maps, masks), adeval_metrics(adeval, maps, masks))


@pytest.mark.parametrize("name", ["separated", "overlapping", "heavy-tailed, huge", "negative"])
def test_aupro_equals_mvtec_code(name: str, adeval: SimpleNamespace) -> None:
    # The data set's own code, which ADEval carries; it counts ties one by one, so none here.
    maps, masks = synthetic(name)
    result = streamed(maps, masks)
    for limit, aupro in ((0.3, result.aupro), (0.05, result.aupro_005)):
        expected, _ = adeval.au_pro.calculate_au_pro(masks, maps, limit, num_thresholds=10_000)
        assert aupro == pytest.approx(expected, abs=TOLERANCE)


def test_pixel_metrics_on_real_masks(adeval: SimpleNamespace) -> None:
    maps, masks = real_images()
    result = streamed(maps, masks)
    assert_close(result, exact_pixel_metrics(maps, masks))
    assert_close(result, adeval_metrics(adeval, maps, masks))


def test_perfect_and_constant_maps() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:4, 2:6] = True
    assert streamed([mask.astype(np.float32)], [mask]) == pytest.approx((1, 1, 1, 1, 1))
    # One tie of all pixels: the curve is the diagonal, and half the limit lies under it.
    prevalence = 8 / 64
    expected = (0.5, prevalence, 2 * prevalence / (1 + prevalence), 0.15, 0.025)
    assert streamed([np.ones((8, 8), np.float32)], [mask]) == pytest.approx(expected)


def test_regions_weigh_the_same_whatever_their_area() -> None:
    mask = np.zeros((32, 32), dtype=bool)
    mask[:16, :16] = True
    mask[30, 30] = True
    only_large_found = mask.astype(np.float32)
    only_large_found[30, 30] = -1
    assert streamed([only_large_found], [mask]).aupro_005 == pytest.approx(0.5)


def test_scores_keep_their_order_across_zero() -> None:
    row = np.array([[-np.inf, -2, -1e-20, 0, 1e-20, 3, np.inf]], dtype=np.float32)
    for cut in range(1, row.size):
        mask = np.arange(row.size)[None] >= cut
        assert streamed([row], [mask]).auroc == 1
    zeros = np.array([[-0.0, 0.0]], dtype=np.float32)
    assert streamed([zeros], [np.array([[False, True]])]).auroc == 0.5


def test_order_of_images_does_not_matter() -> None:
    maps, masks = synthetic("overlapping")
    assert streamed(maps, masks) == pytest.approx(streamed(maps[::-1], masks[::-1]), abs=1e-12)


@pytest.mark.parametrize("name", ["overlapping", "quantised", "constant"])
def test_merged_halves_equal_the_whole(name: str) -> None:
    maps, masks = synthetic(name)
    whole, merged = state_of(maps, masks), state_of(maps[:3], masks[:3])
    merged.merge(state_of(maps[3:], masks[3:]))
    expected, result = whole.compute(), merged.compute()
    assert result[:3] == expected[:3], "exactly, as they are made of counts"
    assert result[3:] == pytest.approx(expected[3:], abs=1e-12), "sums of 1 / area are rounded"
    # Regions of 1, 4, 16 and 256 pixels: sums of such shares are exact, and so is all the rest.
    squares = [np.zeros((64, 64), bool) for _ in maps]
    for number, mask in enumerate(squares):
        side = (1, 2, 4, 16)[number % 4]
        mask[8 : 8 + side, 8 : 8 + side] = True
        mask[40, 40 : 40 + side] = True
    whole, merged = state_of(maps, squares), state_of(maps[:3], squares[:3])
    merged.merge(state_of(maps[3:], squares[3:]))
    merged.merge(PixelMetrics())
    assert merged.compute() == whole.compute()
    for one, other in zip(merged.curves() or (), whole.curves() or (), strict=True):
        np.testing.assert_array_equal(one, other)


def test_merged_images_equal_the_whole() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random(40), rng.random(40) < 0.4
    parts = [ImageMetrics() for _ in range(3)]
    for score, label, part in zip(scores, labels, 20 * [0] + 20 * [1], strict=True):
        parts[part].update(float(score), bool(label))
    assert parts[2].compute() == ImageResult(None, None, None)
    for part in parts[:2]:
        parts[2].merge(part)
    assert parts[2].compute() == image_metrics(scores, labels)


@pytest.mark.parametrize("fill", [None, False, True])
def test_one_class_of_pixels_gives_none(fill: bool | None) -> None:
    maps, _ = synthetic("overlapping")
    pairs = [] if fill is None else [(m, np.full(m.shape, fill)) for m in maps]
    result = streamed([m for m, _ in pairs], [mask for _, mask in pairs])
    assert result == (None, None, None, None, None)


def test_curves_end_where_they_should_and_keep_their_area() -> None:
    rng = np.random.default_rng(0)
    pixels = PixelMetrics()
    assert pixels.curves() is None
    mask = np.zeros((256, 256), bool)
    mask[20:60, 20:60] = True
    pixels.update((rng.normal(size=mask.shape) + 2 * mask).astype(np.float32), mask)
    curves, result = pixels.curves(), pixels.compute()
    assert curves is not None
    assert len(curves.roc.x) <= CURVE_POINTS
    assert (curves.roc.x[0], curves.roc.y[0], curves.roc.x[-1], curves.roc.y[-1]) == (0, 0, 1, 1)
    assert curves.pro.x[-1] == PRO_LIMIT
    assert np.trapezoid(curves.roc.y, curves.roc.x) == pytest.approx(result.auroc, abs=1e-3)
    area = np.trapezoid(curves.pro.y, curves.pro.x) / PRO_LIMIT
    assert area == pytest.approx(result.aupro, abs=1e-3)
    assert image_roc(np.ones(3), np.ones(3, bool)) is None


def test_memory_does_not_grow() -> None:
    maps, masks = synthetic("overlapping", side=48)
    metrics = PixelMetrics()
    sizes, allocated = [], []
    tracemalloc.start()
    try:
        for updates in (10, 190):
            for index in range(updates):
                metrics.update(maps[index % 8] * (index + 1), masks[index % 8])
            sizes.append(sum(array.nbytes for array in vars(metrics).values()))
            allocated.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[0] == sizes[1] < 51e6
    assert allocated[1] - allocated[0] < 50_000


def test_update_names_what_is_wrong() -> None:
    metrics = PixelMetrics()
    anomaly_map, mask = np.zeros((4, 5), np.float32), np.zeros((4, 5), bool)
    with pytest.raises(ValueError, match=r"got \(4, 5\) and \(5, 4\)"):
        metrics.update(anomaly_map, mask.T)
    with pytest.raises(ValueError, match=r"got \(1, 4, 5\) and \(1, 4, 5\)"):
        metrics.update(anomaly_map[None], mask[None])
    with pytest.raises(ValueError, match="got uint8"):
        metrics.update(anomaly_map, mask.astype(np.uint8))
    anomaly_map[1, 2] = np.nan
    with pytest.raises(ValueError, match="NaN in 1 pixels"):
        metrics.update(anomaly_map, mask)
    assert metrics.compute() == PixelResult(None, None, None, None, None)


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_image_f1_equals_every_threshold(levels: int) -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        is_anomalous = rng.random(25) < 0.4
        scores = np.floor(levels * rng.random(25)) - levels / 2 + 0.5 * is_anomalous
        result = image_metrics(scores, is_anomalous)
        assert result.f1max == pytest.approx(best_f1(scores, is_anomalous), abs=1e-12)


def test_image_metrics_by_hand() -> None:
    scores = np.array([0.1, 0.4, 0.35, 0.8], dtype=np.float32)
    is_anomalous = np.array([False, False, True, True])
    assert image_metrics(scores, is_anomalous) == pytest.approx((0.75, 5 / 6, 0.8))
    worst_first = image_metrics(-scores, is_anomalous)
    assert worst_first.auroc == pytest.approx(0.25)


def test_image_metrics_of_one_class() -> None:
    for truth in (np.zeros(3, bool), np.ones(3, bool), np.zeros(0, bool)):
        assert image_metrics(np.arange(len(truth)), truth) == ImageResult(None, None, None)


def test_image_metrics_name_what_is_wrong() -> None:
    truth = np.array([True, False, False])
    with pytest.raises(ValueError, match="got nan at index 1"):
        image_metrics(np.array([0.0, np.nan, 1.0]), truth)
    with pytest.raises(ValueError, match="got inf at index 2"):
        image_metrics(np.array([0.0, 1.0, np.inf]), truth)
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        image_metrics(np.array([0.0, 1.0]), truth)


@pytest.mark.parametrize("shape", [(7, 5), (12, 16), (13, 13), (4, 9), (1, 1)])
@pytest.mark.parametrize("size", [1, 3, 6, 8])
def test_area_resize_equals_loops(shape: tuple[int, int], size: int) -> None:
    # Half-filled at random: exact halves, where rounding would decide, are common.
    mask = np.random.default_rng(0).random(shape) < 0.5
    np.testing.assert_array_equal(area_resize(mask, size), area_resize_by_loops(mask, size))


def test_area_resize_takes_more_than_half() -> None:
    assert not area_resize(np.array([[True, False]]), 1).any()
    assert area_resize(np.array([[True, True, False]]), 1).all()
    mask = np.random.default_rng(0).random((9, 9)) < 0.5
    np.testing.assert_array_equal(area_resize(mask, 9), mask)


def test_area_resize_names_what_is_wrong() -> None:
    for mask, size in (
        (np.ones(4, bool), 2),
        (np.ones((0, 4), bool), 2),
        (np.ones((2, 2), bool), 0),
    ):
        with pytest.raises(ValueError, match="expected a mask"):
            area_resize(mask, size)
