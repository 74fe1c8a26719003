"""Maps and scores against NumPy and SciPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from conftest import PLAIN
from haloae.config import DetectionConfig
from haloae.detection.maps import (
    CHANNEL_SHRINKAGE,
    SHRINKAGE,
    Residuals,
    Usual,
    image_score,
    residual_map,
    residuals,
    smooth,
    smooth_as_published,
    smoothed,
)
from haloae.detection.prediction import resize_map
from haloae.errors import ConfigError
from haloae.network.haloae import HaloAEOutput
from haloae.presets import PAPER

KINDS = ("difference", "channel_difference", "none", "channel", "position", "both")


def squares(*shape: int, seed: int = 0) -> Tensor:
    """Squared errors that differ between channels and cells."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(shape[-3], shape[-2], shape[-1], generator=generator) + 0.1
    return torch.randn(*shape, generator=generator).square() * scale


def settings(**changes: object) -> DetectionConfig:
    return PLAIN.replace(detection=changes).detection


def anomaly_map(residual: Residuals, usual: Usual, config: DetectionConfig) -> Tensor:
    return smoothed(residual_map(residual, usual, config), config)


def published_by_scipy(anomaly: np.ndarray) -> np.ndarray:
    """¼ ½ ¼ along each axis; outside, the cells beside the border's mirrored (reflect-101)."""
    for axis in (1, 2):
        anomaly = ndimage.correlate1d(anomaly, [0.25, 0.5, 0.25], axis, mode="mirror")
    return anomaly


def test_residuals_are_squared_errors_on_the_feature_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    features, rebuilt = torch.randn(2, 2, 5, 4, 4, generator=generator)
    image, rebuilt_image = torch.randn(2, 2, 3, 16, 16, generator=generator)
    found = residuals(HaloAEOutput(features, rebuilt, rebuilt_image, None), image)
    assert torch.allclose(found.features, (features - rebuilt) ** 2)
    assert found.image is not None
    assert found.image.shape == (2, 3, 4, 4)
    cell = ((image - rebuilt_image) ** 2)[1, 2, 4:8, 12:16].mean()
    assert found.image[1, 2, 1, 3].item() == pytest.approx(cell.item(), rel=1e-5)
    assert residuals(HaloAEOutput(features, rebuilt, None, None), image).image is None


def test_published_map_and_score() -> None:
    config = PAPER.detection
    squared, good = squares(3, 6, 9, 7), squares(6, 9, 7, seed=1)
    found = anomaly_map(Residuals(squared, None), Usual(good, None, 9), config)
    expected = np.abs(squared.numpy().mean(1) - good.numpy().mean(0))
    expected = published_by_scipy(expected)
    assert np.allclose(found.numpy(), expected, atol=1e-6)
    assert np.allclose(
        image_score(found, config.top_share).numpy(), expected.mean((1, 2)), atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [3, 100])
def test_each_normalisation(kind: str, count: int) -> None:
    squared, good = squares(3, 6, 9, 7).numpy(), squares(6, 9, 7, seed=1).numpy()
    cell_error = (count * good.mean(0) + SHRINKAGE * good.mean()) / (count + SHRINKAGE)
    channel = good.mean((1, 2), keepdims=True)
    channel_error = (count * good + CHANNEL_SHRINKAGE * channel) / (count + CHANNEL_SHRINKAGE)
    scaled = good / channel
    scaled_error = (count * scaled.mean(0) + SHRINKAGE * scaled.mean()) / (count + SHRINKAGE)
    expected = {
        "difference": np.abs(squared.mean(1) - good.mean(0)),
        "channel_difference": np.abs((squared - good) / channel_error).mean(1),
        "none": squared.mean(1),
        "channel": (squared / channel).mean(1),
        "position": squared.mean(1) / cell_error,
        "both": (squared / channel).mean(1) / scaled_error,
    }[kind]
    found = anomaly_map(
        Residuals(torch.from_numpy(squared), None),
        Usual(torch.from_numpy(good), None, count),
        settings(normalisation=kind, sigma=0.0),
    )
    assert np.allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["channel", "position", "both"])
def test_usual_errors_give_a_map_around_one(kind: str) -> None:
    good = torch.full((6, 9, 7), 0.3) * torch.arange(1, 7).view(6, 1, 1)
    found = anomaly_map(
        Residuals(good[None], None), Usual(good, None, 5), settings(normalisation=kind)
    )
    assert torch.allclose(found, torch.ones(1, 9, 7), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_error_is_more_anomalous_where_it_is(kind: str) -> None:
    good = squares(6, 12, 12, seed=1)
    squared = good[None].repeat(2, 1, 1, 1)
    squared[1, :, 3:5, 8:10] *= 9
    config = settings(normalisation=kind)
    normal, defective = anomaly_map(Residuals(squared, None), Usual(good, None, 9), config)
    assert (defective - normal)[3:5, 8:10].min() > 0
    assert (defective - normal).min() >= -1e-6
    row, column = divmod(int((defective - normal).argmax()), 12)
    assert (row in (3, 4), column in (8, 9)) == (True, True)
    scores = image_score(torch.stack([normal, defective]), 1.0)
    assert scores[1] > scores[0]


@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_finite_where_good_images_have_no_error(kind: str) -> None:
    good = torch.zeros(4, 6, 6)
    found = anomaly_map(
        Residuals(squares(1, 4, 6, 6), None), Usual(good, None, 9), settings(normalisation=kind)
    )
    assert found.isfinite().all()
    assert found.min() >= 0


def test_image_branch_is_added_with_its_weight() -> None:
    squared, good = squares(2, 6, 8, 8), squares(6, 8, 8, seed=1)
    image, good_image = squares(2, 3, 8, 8, seed=2), squares(3, 8, 8, seed=3)
    both = Residuals(squared, image), Usual(good, good_image, 9)
    network = {"image_decoder": (4,)}
    config = PLAIN.replace(detection={"image_weight": 0.25}, network=network).detection
    plain = settings()
    features = anomaly_map(Residuals(squared, None), Usual(good, None, 9), plain)
    images = anomaly_map(Residuals(image, None), Usual(good_image, None, 9), plain)
    assert torch.allclose(anomaly_map(*both, config), features + 0.25 * images, atol=1e-5)
    assert torch.equal(anomaly_map(*both, plain), features)


def test_one_image_does_not_depend_on_the_others() -> None:
    squared, good = squares(3, 6, 9, 7), squares(6, 9, 7, seed=1)
    config, usual = settings(), Usual(good, None, 9)
    together = anomaly_map(Residuals(squared, None), usual, config)
    alone = anomaly_map(Residuals(squared[1:2], None), usual, config)
    assert torch.allclose(together[1:2], alone, rtol=1e-6)


def test_the_published_smoothing_is_binomial_and_mirrors_at_the_border() -> None:
    anomaly = squares(3, 9, 7)
    published = smooth_as_published(anomaly)
    assert np.allclose(published.numpy(), published_by_scipy(anomaly.numpy()), atol=1e-6)
    assert not torch.allclose(smooth(anomaly, 0.8), published, atol=1e-3), "older files'"


def test_a_narrow_gaussian_is_3_by_3_and_repeats_the_border() -> None:
    anomaly = squares(3, 9, 7)
    wanted = [ndimage.gaussian_filter(m, 0.8, radius=1, mode="nearest") for m in anomaly.numpy()]
    assert np.allclose(smooth(anomaly, 0.8).numpy(), np.stack(wanted), atol=1e-6)


def test_the_published_smoothing_takes_no_sigma() -> None:
    with pytest.raises(ConfigError, match=r"smoothing published .* sigma is 2\.0: set sigma to 0"):
        PAPER.replace(detection={"sigma": 2.0})
    assert PLAIN.detection.smoothing == "gaussian", "as files that do not say were made"


@pytest.mark.parametrize("sigma", [0.0, 0.3, 0.8, 1.0, 2.5, 6.0])
def test_smoothing_leaves_a_constant_map_as_it_is(sigma: float) -> None:
    constant = torch.full((2, 5, 8), 0.7)
    assert torch.allclose(smooth(constant, sigma), constant, atol=1e-6)


def test_no_smoothing_is_the_identity() -> None:
    anomaly = squares(2, 5, 8)
    assert smooth(anomaly, 0.0) is anomaly


@pytest.mark.parametrize(("share", "count"), [(1.0, 60), (0.5, 30), (0.1, 6), (0.001, 1)])
def test_score_is_the_mean_of_the_highest_share(share: float, count: int) -> None:
    anomaly = squares(4, 6, 10)
    highest = np.sort(anomaly.numpy().reshape(4, 60), axis=1)[:, -count:]
    assert np.allclose(image_score(anomaly, share).numpy(), highest.mean(1), rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (40, 40), (5, 3), (37, 91), (8, 8), (3, 200)])
@pytest.mark.parametrize("grid", [(8, 8), (1, 1), (2, 5)])
def test_maps_are_resized_as_torch_does(grid: tuple[int, int], size: tuple[int, int]) -> None:
    anomaly = squares(2, *grid)[0]
    wanted = F.interpolate(anomaly[None, None], size=size, mode="bilinear", align_corners=False)
    found = resize_map(anomaly.numpy(), size)
    assert found.dtype == np.float32
    assert found.shape == size
    assert np.allclose(found, wanted[0, 0].numpy(), rtol=1e-5, atol=0)
    assert anomaly.min() <= found.min() * (1 + 1e-6)
    assert found.max() <= anomaly.max() * (1 + 1e-6)


def test_resizing_to_double_is_bilinear_between_cell_centres() -> None:
    anomaly = np.array([[0.0, 4.0]], np.float32)
    assert resize_map(anomaly, (1, 4)).flatten().tolist() == pytest.approx([0, 1, 3, 4])
