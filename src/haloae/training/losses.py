"""The loss terms of the paper and their weights by epoch."""

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from haloae.config import LossConfig, Term
from haloae.network.haloae import HaloAEOutput

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


class Sigmoid(NamedTuple):
    """y = (a - b) / (1 + exp(d · (epoch - c / 2))) + b, from a at the start to b at the end."""

    a: float
    b: float
    c: float
    d: float

    def __call__(self, epoch: int) -> float:
        """Value at an epoch."""
        return (self.a - self.b) / (1 + math.exp(self.d * (epoch - self.c / 2))) + self.b


SCHEDULES: Mapping[str, Sigmoid] = {
    "classification": Sigmoid(1, 0.4, 80, 0.07),
    "features": Sigmoid(-1e-8, 1.2, 150, 0.05),
    "image": Sigmoid(-1e-8, 2, 300, 0.05),
}
"""Of each term, by its name."""


def loss_weights(epoch: int, config: LossConfig) -> dict[str, float]:
    """Weight of each term by its name, summing to one.

    Args:
        epoch: from 0; only the published schedule looks at it.
        config: fixed weights, or None for the schedule.
    """
    raw = config.fixed_weights or [schedule(epoch) for schedule in SCHEDULES.values()]
    total = sum(raw)
    return {name: weight / total for name, weight in zip(SCHEDULES, raw, strict=True)}


def loss_terms(output: HaloAEOutput, views: Tensor, config: LossConfig) -> dict[str, Tensor]:
    """The terms for one batch of views, by name: one for each branch that the network has.

    Features and image are compared over normal views only; with `clean_targets`, over all views,
    each with the features and the image of its normal view.

    Args:
        output: of the network for the views, flattened to (V·B, ...).
        views: (V, B, 3, H, W), normalised: normal views first, then CutPaste ones.
        config: which terms there are.
    """
    normal = views.shape[1]
    compared = len(output.features) if config.clean_targets else normal
    repeats = compared // normal

    def clean(target: Tensor) -> Tensor:
        return target[:normal].float().repeat(repeats, 1, 1, 1)

    terms: dict[str, Tensor] = {}
    if output.logits is not None:
        is_pasted = torch.arange(len(output.logits), device=views.device) >= normal
        terms["classification"] = F.cross_entropy(output.logits.float(), is_pasted.long())
    terms["features"] = dissimilarity(
        output.rebuilt[:compared].float(), clean(output.features), config.feature_terms
    )
    if output.image is not None:
        rebuilt = output.image[:compared].float()
        terms["image"] = dissimilarity(rebuilt, clean(views[0]), config.image_terms)
    return terms


def weights_of(terms: Collection[str], weights: Mapping[str, float]) -> dict[str, float]:
    """Weights of the terms there are, scaled to sum to one."""
    present = sum(weights[name] for name in terms)
    return {name: weights[name] / present for name in terms}


def total_loss(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weighted sum of the terms there are, see `weights_of`."""
    scaled = weights_of(terms, weights)
    return torch.stack([term * scaled[name] for name, term in terms.items()]).sum()


def dissimilarity(x: Tensor, y: Tensor, terms: tuple[Term, ...]) -> Tensor:
    """Sum of the terms named: mean squared error, 1 - SSIM, 1 - cosine over channels.

    Args:
        x: (B, C, H, W) float32.
        y: like x.
        terms: ``mse``, ``ssim``, ``cosine``.
    """
    values = {
        "mse": lambda: F.mse_loss(x, y),
        "ssim": lambda: 1 - ssim(x, y),
        "cosine": lambda: (1 - F.cosine_similarity(x, y, dim=1)).mean(),
    }
    return torch.stack([values[term]() for term in terms]).sum()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean structural similarity, per channel, as published.

    11×11 Gaussian window of σ 1.5, zero padding of 5, C1 = 0.01², C2 = 0.03² whatever the data's
    range.

    Args:
        x: (B, C, H, W) float32.
        y: like x.

    Returns:
        Scalar, at most 1.
    """
    maps = torch.stack([x, y, x * x, y * y, x * y])
    blur_rows, blur_columns = (_gaussian_matrix(size, x) for size in x.shape[-2:])
    # Two small matrix products: on a CPU far faster than a convolution with a channel a group.
    mean_x, mean_y, xx, yy, xy = blur_rows @ maps @ blur_columns.T
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    numerator: Tensor = (2 * mean_x * mean_y + SSIM_C1) * (2 * cov + SSIM_C2)
    denominator = (mean_x**2 + mean_y**2 + SSIM_C1) * (var_x + var_y + SSIM_C2)
    similarity: Tensor = (numerator / denominator).mean()
    return similarity


def _gaussian_matrix(size: int, like: Tensor) -> Tensor:
    """(size, size): each row is the window around one cell, cut off where the grid ends."""
    cells = torch.arange(size, dtype=like.dtype, device=like.device)
    distance = (cells[:, None] - cells[None, :]).abs()
    offsets = torch.arange(SSIM_WINDOW, dtype=like.dtype, device=like.device) - SSIM_WINDOW // 2
    total = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2)).sum()
    weights = torch.exp(-(distance**2) / (2 * SSIM_SIGMA**2)) / total
    return weights * (distance <= SSIM_WINDOW // 2)
