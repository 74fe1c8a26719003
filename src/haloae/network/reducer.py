"""Features reduced to principal components of good images (docs/adr/0002)."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haloae.errors import ConfigError

DEAD = 1e-6
"""A channel that varies less than this share of the liveliest is taken for constant."""
FLOOR = 0.1
"""Share of the mean variance of its tap that is added to each channel's, see `FeatureReducer`."""


class FeatureReducer(nn.Module):
    """Features scaled per channel and reduced to principal components: one 1×1 convolution.

    A channel is divided by the root of its variance plus a share of its tap's mean variance, over
    good images. So one that is quiet on them is not made as loud as the others, noise and all.

    Not in the paper, see docs/adr/0002-reduced-features.md. Fitted once on good images by `fit`,
    then frozen.

    Args:
        taps: channels of each tap, in the order of the features.
        reduced: principal components kept, at most the channels of all taps.

    Raises:
        ConfigError: more components than channels.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, taps: Sequence[int], reduced: int) -> None:
        super().__init__()
        self.taps = list(taps)
        channels = sum(taps)
        if reduced > channels:
            raise ConfigError(
                f"network.reduced_channels is {reduced}, and the features have {channels} channels."
            )
        self.register_buffer("weight", torch.eye(reduced, channels))
        self.register_buffer("bias", torch.zeros(reduced))

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, H, W) → (B, reduced, H, W), mean 0 over the images it was fitted on."""
        return F.conv2d(features, self.weight[:, :, None, None], self.bias)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fit to features of good images.

        Args:
            batches: (B, channels, H, W) each; only their sums are kept.
        """
        channels = self.weight.shape[1]
        total = torch.zeros(channels, dtype=torch.float64)
        products = torch.zeros(channels, channels, dtype=torch.float64)
        count = 0
        shift = torch.zeros(channels)
        for batch in batches:
            rows = batch.float().permute(0, 2, 3, 1).flatten(0, 2)
            if count == 0:
                # Near the mean, so that products in float32 do not cancel.
                shift = rows.mean(0)
            rows = rows - shift
            total += rows.sum(0, dtype=torch.float64).cpu()
            products += (rows.T @ rows).double().cpu()
            count += len(rows)
        mean = total / count
        covariance = products / count - mean[:, None] * mean[None, :]
        variance = covariance.diagonal().clamp_min(0)
        floored = torch.cat([tap + FLOOR * tap.mean() for tap in variance.split(self.taps)])
        # A channel that never varies says nothing, and is left out.
        std = variance.sqrt()
        scale = torch.where(std > DEAD * std.max(), floored.rsqrt(), 0.0)
        _, vectors = torch.linalg.eigh(covariance * (scale[:, None] * scale[None, :]))
        reduced = len(self.weight)
        components = vectors.flip(1)[:, :reduced].T
        # A sign is arbitrary; fixed, so that the same images give the same weights everywhere.
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        weight = components * largest.sign() * scale
        mean = mean + shift.double().cpu()
        self.weight.copy_(weight)
        self.bias.copy_(-weight @ mean)
