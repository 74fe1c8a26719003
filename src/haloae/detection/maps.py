"""Residuals → anomaly map → image score. Pure functions; higher is more anomalous, always."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from haloae.config import DetectionConfig
from haloae.network.haloae import HaloAEOutput

SHRINKAGE = 1.0
"""Good images' worth of evidence that residuals are the same everywhere."""
CHANNEL_SHRINKAGE = 3.0
"""The same where channels are told apart: the error of one channel at one place is noisier."""
TINY = 1e-12


class Residuals(NamedTuple):
    """Squared errors of a batch, on the feature grid (h, w)."""

    features: Tensor
    """(B, C, h, w)."""
    image: Tensor | None
    """(B, 3, h, w), averaged over each cell; None without the image branch."""


class Usual(NamedTuple):
    """Mean squared errors of good images; `image` as in `Residuals`, without the batch."""

    features: Tensor
    """(C, h, w)."""
    image: Tensor | None
    """(3, h, w)."""
    images: int
    """Good images behind the means."""


def residuals(output: HaloAEOutput, image: Tensor) -> Residuals:
    """Squared errors of features and image.

    Args:
        output: of the network.
        image: (B, 3, H, W), what it was given; H and W are whole cells.
    """
    features = (output.features.float() - output.rebuilt.float()).square()
    if output.image is None:
        return Residuals(features, None)
    errors = (image.float() - output.image.float()).square()
    return Residuals(features, F.avg_pool2d(errors, errors.shape[-1] // features.shape[-1]))


def residual_map(residual: Residuals, usual: Usual, config: DetectionConfig) -> Tensor:
    """How unusual each cell's error is, before smoothing.

    ``difference`` (published): |mean over channels - the same on good images|.
    ``channel_difference``: the mean over channels of |error - the same on good images|, in units of
    the usual error of that channel and place: one channel cannot make up for another.
    The others divide by the error's usual size, so that 1 is usual: of its ``channel``, of its
    ``position``, or of ``both``; ``none`` takes the mean over channels as it is.

    Returns:
        (B, h, w) float32, at least 0.
    """
    result = _branch_map(residual.features, usual.features, usual.images, config)
    if config.image_weight and residual.image is not None and usual.image is not None:
        image = _branch_map(residual.image, usual.image, usual.images, config)
        result = result + config.image_weight * image
    return result


def _branch_map(squared: Tensor, usual: Tensor, count: int, config: DetectionConfig) -> Tensor:
    how = config.normalisation
    if how == "difference":
        return (squared.mean(1) - usual.mean(0)).abs()
    per_channel = usual.mean(dim=(1, 2), keepdim=True).clamp_min(TINY)
    if how == "channel_difference":
        scale = (count * usual + CHANNEL_SHRINKAGE * per_channel) / (count + CHANNEL_SHRINKAGE)
        return ((squared - usual).abs() / scale).mean(1)
    if how in ("channel", "both"):
        squared, usual = squared / per_channel, usual / per_channel
    result = squared.mean(1)
    if how in ("position", "both"):
        per_cell = usual.mean(0)
        # A handful of good images says little about one cell: lean towards the mean of all.
        shrunk = (count * per_cell + SHRINKAGE * per_cell.mean()) / (count + SHRINKAGE)
        result = result / shrunk.clamp_min(TINY)
    return result


def smoothing_reach(config: DetectionConfig) -> int:
    """Cells beyond its own that one of a smoothed map is made of, in any direction."""
    return 1 if config.smoothing == "published" else _radius(config.sigma)


def smoothed(anomaly: Tensor, config: DetectionConfig) -> Tensor:
    """A map smoothed as the config says: (B, h, w) → the same shape."""
    if config.smoothing == "published":
        return smooth_as_published(anomaly)
    return smooth(anomaly, config.sigma)


def smoothed_inside(anomaly: Tensor, cells: Tensor, config: DetectionConfig) -> Tensor:
    """A map smoothed as the config says, among the cells that count alone; 0 outside of them.

    Args:
        anomaly: (B, h, w).
        cells: (B or 1, h, w) float32, 1 where a cell counts, else 0.
        config: how.
    """
    weights = smoothed(cells, config)
    result: Tensor = cells * smoothed(anomaly * cells, config) / weights.clamp_min(TINY)
    return result


def smooth_as_published(anomaly: Tensor) -> Tensor:
    """Binomial kernel, ¼ ½ ¼ along each axis; past the border the cells before it, mirrored.

    >>> smooth_as_published(torch.tensor([[[16.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]))
    tensor([[[4., 2., 0.],
             [2., 1., 0.],
             [0., 0., 0.]]])

    Args:
        anomaly: (B, h, w), two cells a side at least.
    """
    kernel = anomaly.new_tensor([0.25, 0.5, 0.25])
    x = F.pad(anomaly.unsqueeze(1), (1, 1, 1, 1), mode="reflect")
    x = F.conv2d(x, kernel.view(1, 1, -1, 1))
    return F.conv2d(x, kernel.view(1, 1, 1, -1)).squeeze(1)


def smooth(anomaly: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing, cut off at 1.25 σ, the border's cells repeated outside.

    >>> one_cell = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]])
    >>> smooth(one_cell, sigma=0.8)[0, 1]
    tensor([0.1248, 0.2725, 0.1248])

    Args:
        anomaly: (B, h, w).
        sigma: in cells; 0 leaves the map as it is.
    """
    if not sigma:
        return anomaly
    radius = _radius(sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=anomaly.dtype, device=anomaly.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    x = F.pad(anomaly.unsqueeze(1), (radius,) * 4, mode="replicate")
    x = F.conv2d(x, kernel.view(1, 1, -1, 1))
    return F.conv2d(x, kernel.view(1, 1, 1, -1)).squeeze(1)


def _radius(sigma: float) -> int:
    """Cells that the Gaussian is cut off after."""
    return math.ceil(1.25 * sigma)


def image_score(anomaly: Tensor, top_share: float) -> Tensor:
    """Mean of the highest `top_share` of each map; 1 is the published mean of all.

    >>> image_score(torch.tensor([[[0.0, 1.0], [2.0, 5.0]]]), top_share=0.5)
    tensor([3.5000])

    Args:
        anomaly: (B, h, w).
        top_share: in (0, 1].

    Returns:
        (B,) float32.
    """
    flat = anomaly.flatten(1)
    count = max(1, round(top_share * flat.shape[1]))
    return flat.topk(count, dim=1).values.mean(1)


def part_scores(anomaly: Tensor, members: Tensor, top_share: float) -> Tensor:
    """What `image_score` is of an image, of each of its parts: 0 of one that has no cell.

    >>> anomaly = torch.tensor([[[0.0, 1.0], [2.0, 5.0]]])
    >>> members = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]]])
    >>> part_scores(anomaly, members, top_share=1.0)
    tensor([[0.5000, 3.5000]])

    Args:
        anomaly: (B, h, w), at least 0.
        members: (B or 1, R, h, w) float32, 1 where a cell is in the part, else 0.
        top_share: of a part's cells, in (0, 1].

    Returns:
        (B, R) float32.
    """
    values = (anomaly[:, None] * members).flatten(2)
    sizes = members.flatten(2).sum(2)
    counts = (top_share * sizes).round().clamp_min(1)
    most = max(1, round(top_share * values.shape[2]))
    # Cells outside are 0, and so are among the highest only where there is none other.
    highest = values.topk(most, dim=2).values
    is_counted = torch.arange(most, device=values.device) < counts[:, :, None]
    return (highest * is_counted).sum(2) / counts
