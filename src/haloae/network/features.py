"""Section B: features of a frozen trunk, all on one grid, a quarter of the image's side or less."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haloae.network.reducer import FeatureReducer
from haloae.network.trunks import Tap, trunk_named
from haloae.network.weights import Weights, load_weights


class FeatureExtractor(nn.Module):
    """Frozen trunk whose taps are brought to one grid and concatenated.

    Always in eval mode and never given a gradient, whatever its parent does.

    Args:
        weights: ``auto``, ``bundled``, ``imagenet``, ``random`` or a file, see
            `haloae.network.weights`; None leaves the weights to be loaded later.
        trunk: a name in `haloae.network.trunks.TRUNKS`.
        published_taps: True: VGG19's taps before the last are the published code's, one reflected
            pixel too wide and resampled by nearest (docs/paper-map.md).
        stride: image pixels per cell of the grid, in each direction: 4 or 8.

    Raises:
        ConfigError: no such trunk.
        WeightsError: the weights cannot be had or do not fit.
    """

    def __init__(
        self,
        weights: str | Path | None = "auto",
        trunk: str = "vgg19",
        *,
        published_taps: bool = False,
        stride: int = 4,
    ) -> None:
        super().__init__()
        self.trunk = trunk_named(trunk)
        self.taps = self.trunk.taps
        self.channels = self.trunk.channels
        self.published_taps = published_taps
        self.stride = stride
        self.layers = self.trunk.build()
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

    def normalise(self, images: Tensor) -> Tensor:
        """(..., 3, H, W) RGB in [0, 1] → the same shape, as the trunk wants it."""
        return self.trunk.normalise(images)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Extract features.

        Args:
            image: (B, 3, H, W), of `normalise`, H and W at least 8.

        Returns:
            (B, channels, H // stride, W // stride); at least 0, but for EfficientNet-lite's.
        """
        activations = self.layers(image.contiguous(memory_format=torch.channels_last))
        # One at a time: the first activations are far larger than what they are brought to.
        size = image.shape[-2:]
        on_grid = [
            self.to_grid(x, tap, size) for tap, x in zip(self.taps, activations, strict=True)
        ]
        return torch.cat(on_grid, dim=1)

    def lean(self, reducer: nn.Module) -> nn.Module:
        """Features in the form they are used in, reduced where they are; all weights are shared."""
        return ReducedExtractor(self, reducer) if isinstance(reducer, FeatureReducer) else self

    def to_grid(self, x: Tensor, tap: Tap, size: Sequence[int]) -> Tensor:
        """Bring an activation to the grid of all: linear, and the same for every channel.

        Args:
            x: (B, C, h, w), of the tap, with any number of channels.
            tap: which one it is.
            size: (H, W) of the image.

        Returns:
            (B, C, H // stride, W // stride).
        """
        grid = [side // self.stride for side in size]
        if self.published_taps:
            # The last tap is followed by no padded convolution, so it alone was not padded.
            padded = tap is not self.taps[-1]
            # Channels last, as the activations lie in memory.
            x = x.permute(0, 2, 3, 1)
            for axis, new in zip((1, 2), grid, strict=True):
                cells = _published_cells(x.shape[axis], new * self.stride, padded=padded)
                fine: Tensor = x.index_select(axis, cells.to(x.device))
                fine = fine.unflatten(axis, (new, self.stride))
                x = fine.mean(axis + 1)
            return x.permute(0, 3, 1, 2)
        if tap.stride < self.stride:
            x = F.avg_pool2d(x, self.stride // tap.stride)
        if list(x.shape[-2:]) == grid:
            return x
        return F.interpolate(x, size=grid, mode="bilinear", align_corners=False)


def _published_cells(old: int, new: int, *, padded: bool) -> Tensor:
    """(new,): which of `old` cells stands where, padded by a reflected one a side, by nearest.

    One axis at a time, because the map of new² cells, one a pixel, would be sixteen times as large
    as the means that are taken of it.
    """
    cells = torch.arange(old)
    if padded:
        cells = torch.cat([cells[1:2], cells, cells[-2:-1]])
    return cells[torch.arange(new) * len(cells) // new]


class ReducedExtractor(nn.Module):
    """Trunk and principal components in one: (B, 3, H, W) → (B, reduced, H // stride, W // stride).

    A tap coarser than the grid is reduced where it stands and then enlarged, which is the same, as
    both are linear, and costs a quarter or less; the concatenated taps never exist.

    Args:
        extractor: shared.
        reducer: fitted; shared.
    """

    def __init__(self, extractor: FeatureExtractor, reducer: FeatureReducer) -> None:
        super().__init__()
        self.extractor = extractor
        self.reducer = reducer
        self.taps = extractor.taps

    @property
    def layers(self) -> nn.Module:
        """The trunk's."""
        return self.extractor.layers

    def normalise(self, images: Tensor) -> Tensor:
        """As `FeatureExtractor.normalise`."""
        return self.extractor.normalise(images)

    def forward(self, image: Tensor) -> Tensor:
        """The reduced features."""
        to_grid = self.extractor.to_grid
        weights = self.reducer.weight.split([tap.channels for tap in self.taps], dim=1)
        image = image.contiguous(memory_format=torch.channels_last)
        total: Tensor | None = None
        for tap, weight, x in zip(self.taps, weights, self.layers(image), strict=True):
            is_coarse = tap.stride > self.extractor.stride
            x = x if is_coarse else to_grid(x, tap, image.shape[-2:])
            bias = self.reducer.bias if total is None else None
            part = F.conv2d(x, weight[:, :, None, None], bias)
            part = to_grid(part, tap, image.shape[-2:]) if is_coarse else part
            total = part if total is None else total + part
        assert total is not None  # noqa: S101 - every trunk has taps
        return total
