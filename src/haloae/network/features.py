"""Section B: features of a frozen trunk, all on one grid of a quarter of the image's side."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haloae.config import FEATURE_STRIDE
from haloae.network.trunks import TRUNKS, Tap
from haloae.network.weights import Weights, load_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor) -> Tensor:
    """RGB in [0, 1] → ImageNet-normalised: (..., 3, H, W) → the same shape."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(3, 1, 1)
    return (images - mean) / std


class FeatureExtractor(nn.Module):
    """Frozen trunk whose taps are brought to one grid and concatenated.

    Always in eval mode and never given a gradient, whatever its parent does.

    Args:
        weights: ``auto``, ``bundled``, ``imagenet``, ``random`` or a file, see
            `haloae.network.weights`; None leaves the weights to be loaded later.
        trunk: a name in `haloae.network.trunks.TRUNKS`.
        published_taps: True: VGG19's taps before the last are the published code's, one reflected
            pixel too wide and resampled by nearest (docs/paper-map.md).

    Raises:
        WeightsError: the weights cannot be had or do not fit.
    """

    def __init__(
        self,
        weights: str | Path | None = "auto",
        trunk: str = "vgg19",
        *,
        published_taps: bool = False,
    ) -> None:
        super().__init__()
        self.taps = TRUNKS[trunk].taps
        self.channels = TRUNKS[trunk].channels
        self.published_taps = published_taps
        self.layers = TRUNKS[trunk].build()
        self.source: Weights | None = None
        if weights is not None:
            self.source = load_weights(weights, trunk, self.layers.state_dict())
            self.layers.load_state_dict(self.source.tensors, assign=True)
        # Channels last halves the time of these convolutions on a CPU.
        self.layers.to(memory_format=torch.channels_last)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FeatureExtractor":
        """Stay in eval mode: the trunk is frozen."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Extract features.

        Args:
            image: (B, 3, H, W), ImageNet-normalised RGB, H and W at least 8.

        Returns:
            (B, channels, H // 4, W // 4), at least 0.
        """
        activations = self.layers(image.contiguous(memory_format=torch.channels_last))
        # One at a time: the first activations are far larger than what they are brought to.
        size = image.shape[-2:]
        on_grid = [
            self.to_grid(x, tap, size) for tap, x in zip(self.taps, activations, strict=True)
        ]
        return torch.cat(on_grid, dim=1)

    def to_grid(self, x: Tensor, tap: Tap, size: Sequence[int]) -> Tensor:
        """Bring an activation to the grid of all: linear, and the same for every channel.

        Args:
            x: (B, C, h, w), of the tap, with any number of channels.
            tap: which one it is.
            size: (H, W) of the image.

        Returns:
            (B, C, H // 4, W // 4).
        """
        grid = [side // FEATURE_STRIDE for side in size]
        if self.published_taps:
            # The last tap is followed by no padded convolution, so it alone was not padded.
            padded = tap is not self.taps[-1]
            # Channels last, as the activations lie in memory.
            x = x.permute(0, 2, 3, 1)
            for axis, new in zip((1, 2), grid, strict=True):
                cells = _published_cells(x.shape[axis], new, padded=padded).to(x.device)
                fine: Tensor = x.index_select(axis, cells).unflatten(axis, (new, FEATURE_STRIDE))
                x = fine.mean(axis + 1)
            return x.permute(0, 3, 1, 2)
        if tap.stride < FEATURE_STRIDE:
            return F.avg_pool2d(x, FEATURE_STRIDE // tap.stride)
        if list(x.shape[-2:]) == grid:
            return x
        return F.interpolate(x, size=grid, mode="bilinear", align_corners=False)


def _published_cells(old: int, new: int, *, padded: bool) -> Tensor:
    """(4·new,): which of `old` cells stands where, padded by a reflected one a side, by nearest.

    One axis at a time, because the map of (4·new)² cells would be sixteen times as large as the
    means that are taken of it.
    """
    cells = torch.arange(old)
    if padded:
        cells = torch.cat([cells[1:2], cells, cells[-2:-1]])
    return cells[torch.arange(FEATURE_STRIDE * new) * len(cells) // (FEATURE_STRIDE * new)]
