"""The loss terms against definitions written out anew, and the table of their weights."""

import math

import pytest
import pytorch_msssim
import torch
import torch.nn.functional as F
from torch import Tensor

from haloae.config import LossConfig
from haloae.network.haloae import HaloAE, HaloAEOutput
from haloae.presets import PAPER
from haloae.training.losses import (
    dissimilarity,
    loss_terms,
    loss_weights,
    ssim,
    total_loss,
)

TABLE = {
    0: (0.971, 0.028, 0.001),
    50: (0.681, 0.304, 0.015),
    100: (0.274, 0.625, 0.102),
    150: (0.156, 0.456, 0.389),
    250: (0.112, 0.335, 0.554),
}
"""Epoch → weights of classification, features and image, as published."""
PAPER_LOSS = LossConfig()


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ssim_by_windows(x: Tensor, y: Tensor) -> Tensor:
    """SSIM of every position, one 11×11 window after another, zeros outside."""
    side = torch.arange(-5, 6, dtype=torch.float64)
    window = torch.exp(-(side[:, None] ** 2 + side[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    padded = [F.pad(z.double(), (5,) * 4) for z in (x, y)]
    result = torch.empty(x.shape, dtype=torch.float64)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            a, b = (z[:, :, i : i + 11, j : j + 11] for z in padded)
            mean_a, mean_b, aa, bb, ab = (
                (window * z).sum((2, 3)) for z in (a, b, a * a, b * b, a * b)
            )
            cov, var_a, var_b = ab - mean_a * mean_b, aa - mean_a**2, bb - mean_b**2
            result[:, :, i, j] = ((2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)) / (
                (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
            )
    return result


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (1, 4, 13, 20), (1, 2, 3, 5), (3, 1, 1, 1)])
def test_ssim_equals_windows_one_by_one(shape: tuple[int, ...]) -> None:
    x = random_tensor(*shape)
    y = 0.7 * x + 0.3 * random_tensor(*shape, seed=1)
    assert ssim(x, y).item() == pytest.approx(ssim_by_windows(x, y).mean().item(), abs=1e-5)


def test_ssim_equals_pytorch_msssim_on_zero_padded_images() -> None:
    x = torch.rand(2, 5, 24, 31, generator=torch.Generator().manual_seed(0))
    y = (x + 0.1 * random_tensor(2, 5, 24, 31)).clamp(0, 1)
    padded = [F.pad(z, (5,) * 4) for z in (x, y)]
    assert ssim(x, y).item() == pytest.approx(
        pytorch_msssim.ssim(*padded, data_range=1).item(), abs=1e-5
    )
    interior = ssim_by_windows(x, y)[:, :, 5:-5, 5:-5].mean().item()
    assert interior == pytest.approx(pytorch_msssim.ssim(x, y, data_range=1).item(), abs=1e-5)


def test_ssim_of_equals_is_one_and_of_strangers_is_low() -> None:
    x = random_tensor(1, 2, 12, 12)
    assert ssim(x, x).item() == pytest.approx(1)
    assert ssim(x, random_tensor(1, 2, 12, 12, seed=1)).item() < 0.3


def test_ssim_has_a_finite_gradient_where_images_are_constant() -> None:
    x = torch.zeros(1, 1, 8, 8, requires_grad=True)
    (1 - ssim(x, torch.ones(1, 1, 8, 8))).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(("epoch", "expected"), TABLE.items())
def test_weights_are_the_published_table(epoch: int, expected: tuple[float, ...]) -> None:
    found = tuple(loss_weights(epoch, PAPER_LOSS).values())
    assert found == pytest.approx(expected, abs=0.0006)


def test_weights_sum_to_one_at_every_epoch() -> None:
    for epoch in range(251):
        weights = loss_weights(epoch, PAPER_LOSS).values()
        assert sum(weights) == pytest.approx(1)
        assert min(weights) >= 0


def test_fixed_weights_are_scaled_and_ignore_the_epoch() -> None:
    config = LossConfig(fixed_weights=(1.0, 3.0, 0.0))
    assert loss_weights(0, config) == {"classification": 0.25, "features": 0.75, "image": 0.0}
    assert loss_weights(250, config) == loss_weights(0, config)


def test_absent_terms_leave_their_weight_to_the_others() -> None:
    two, five = torch.tensor(2.0), torch.tensor(5.0)
    weights = {"classification": 0.2, "features": 0.3, "image": 0.5}
    terms = {"classification": two, "features": five, "image": two}
    assert total_loss(terms, weights).item() == pytest.approx(2.9)
    assert total_loss({"features": five}, weights).item() == pytest.approx(5)
    del terms["image"]
    assert total_loss(terms, weights).item() == pytest.approx((0.2 * 2 + 0.3 * 5) / 0.5)


def test_dissimilarity_is_the_sum_of_its_terms() -> None:
    x, y = random_tensor(2, 4, 6, 6), random_tensor(2, 4, 6, 6, seed=1)
    mse = ((x - y) ** 2).sum().item() / x.numel()
    cosine = 1 - ((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))).mean().item()
    similarity = ssim_by_windows(x, y).mean().item()
    assert dissimilarity(x, y, ("mse",)).item() == pytest.approx(mse, rel=1e-5)
    assert dissimilarity(x, y, ("cosine",)).item() == pytest.approx(cosine, rel=1e-5)
    assert dissimilarity(x, y, ("mse", "ssim", "cosine")).item() == pytest.approx(
        mse + 1 - similarity + cosine, rel=1e-5
    )


def three_views(images: int = 2) -> tuple[HaloAEOutput, Tensor]:
    """A made-up output for three views of some images, and the views."""
    output = HaloAEOutput(
        features=random_tensor(3 * images, 4, 6, 6),
        rebuilt=random_tensor(3 * images, 4, 6, 6, seed=1),
        image=random_tensor(3 * images, 3, 24, 24, seed=2),
        logits=random_tensor(3 * images, 2, seed=3),
    )
    return output, random_tensor(3, images, 3, 24, 24, seed=4)


def with_noise_on(value: Tensor | None, rows: slice) -> Tensor:
    assert value is not None
    changed = value.clone()
    changed[rows] += 1
    return changed


def test_features_and_image_look_at_normal_views_only() -> None:
    output, views = three_views()
    before = loss_terms(output, views, PAPER_LOSS)
    pasted = slice(2, None)
    after = loss_terms(
        output._replace(
            features=with_noise_on(output.features, pasted),
            rebuilt=with_noise_on(output.rebuilt, pasted),
            image=with_noise_on(output.image, pasted),
        ),
        torch.cat([views[:1], views[1:] + 1]),
        PAPER_LOSS,
    )
    assert after == before
    normal = slice(1, 2)
    moved = loss_terms(
        output._replace(
            rebuilt=with_noise_on(output.rebuilt, normal), image=with_noise_on(output.image, normal)
        ),
        views,
        PAPER_LOSS,
    )
    assert moved["features"] != before["features"]
    assert moved["image"] != before["image"]


def test_clean_targets_compare_every_view_with_its_normal_view() -> None:
    output, views = three_views()
    config = LossConfig(clean_targets=True, feature_terms=("mse",), image_terms=("mse",))
    terms = loss_terms(output, views, config)
    assert output.image is not None
    features = torch.stack(
        [(output.rebuilt[v * 2 + b] - output.features[b]) ** 2 for v in range(3) for b in range(2)]
    )
    image = torch.stack(
        [(output.image[v * 2 + b] - views[0, b]) ** 2 for v in range(3) for b in range(2)]
    )
    assert terms["features"].item() == pytest.approx(features.mean().item(), rel=1e-5)
    assert terms["image"].item() == pytest.approx(image.mean().item(), rel=1e-5)


def test_features_get_no_gradient_as_targets_need_none() -> None:
    output, views = three_views()
    rebuilt = output.rebuilt.requires_grad_()
    loss_terms(output._replace(rebuilt=rebuilt), views, PAPER_LOSS)["features"].backward()
    assert rebuilt.grad is not None
    assert rebuilt.grad[:2].abs().sum() > 0
    assert not rebuilt.grad[2:].any()


def cross_entropy_by_hand(logits: Tensor, labels: list[int]) -> float:
    losses = [
        -row[label] + math.log(sum(math.exp(value) for value in row))
        for row, label in zip(logits.tolist(), labels, strict=True)
    ]
    return sum(losses) / len(losses)


def test_normal_views_are_class_0_and_pasted_ones_class_1() -> None:
    output, views = three_views()
    assert output.logits is not None
    terms = loss_terms(output, views, PAPER_LOSS)
    assert terms["classification"].item() == pytest.approx(
        cross_entropy_by_hand(output.logits, [0, 0, 1, 1, 1, 1]), rel=1e-5
    )


def test_a_branch_the_network_lacks_has_no_term() -> None:
    output, views = three_views()
    terms = loss_terms(output._replace(image=None, logits=None), views, PAPER_LOSS)
    assert list(terms) == ["features"]
    assert torch.equal(terms["features"], loss_terms(output, views, PAPER_LOSS)["features"])


def test_one_step_of_the_paper_preset() -> None:
    network = HaloAE(
        PAPER.network,
        image_size=64,
        weights="random",
        generator=torch.Generator().manual_seed(0),
    ).train()
    views = random_tensor(3, 2, 3, 64, 64)
    output = network(views.flatten(0, 1))
    terms = loss_terms(output, views, PAPER.loss)
    assert output.image is not None
    assert output.logits is not None
    expected = (
        cross_entropy_by_hand(output.logits.detach(), [0, 0, 1, 1, 1, 1]),
        term_by_hand(output.rebuilt[:2], output.features[:2]),
        term_by_hand(output.image[:2], views[0]),
    )
    found = [term.item() for term in terms.values()]
    assert found == pytest.approx(expected, rel=1e-4)
    assert all(math.isfinite(value) for value in found)
    total = total_loss(terms, loss_weights(100, PAPER.loss))
    weights = loss_weights(100, PAPER.loss).values()
    assert total.item() == pytest.approx(
        sum(w * value for w, value in zip(weights, expected, strict=True)), rel=1e-4
    )
    total.backward()
    trained = [p for p in network.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


def term_by_hand(x: Tensor, y: Tensor) -> float:
    """MSE + (1 - SSIM)."""
    x, y = x.detach(), y.detach()
    side = torch.arange(-5, 6, dtype=torch.float64)
    line = torch.exp(-(side**2) / (2 * 1.5**2))
    window = (line[:, None] * line[None, :] / line.sum() ** 2)[None, None]

    def blur(z: Tensor) -> Tensor:
        return F.conv2d(z.flatten(0, 1)[:, None], window, padding=5)

    a, b = x.double(), y.double()
    mean_a, mean_b, aa, bb, ab = (blur(z) for z in (a, b, a * a, b * b, a * b))
    similarity = ((2 * mean_a * mean_b + 1e-4) * (2 * (ab - mean_a * mean_b) + 9e-4)) / (
        (mean_a**2 + mean_b**2 + 1e-4) * (aa - mean_a**2 + bb - mean_b**2 + 9e-4)
    )
    return float(((a - b) ** 2).mean() + 1 - similarity.mean())
