"""The network in the form it is used in: the same map from less work.

What the map does not need is left out, batch norm is folded into the convolutions before it, and
transposed convolutions of stride 1 become the ordinary ones they equal. Never trained, never saved.
"""

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from haloae.config import FEATURE_STRIDE
from haloae.network.autoencoder import HaloBlock
from haloae.network.features import FeatureExtractor, FeatureReducer
from haloae.network.haloae import HaloAE
from haloae.network.trunks import Conv2d


class ReducedExtractor(nn.Module):
    """Trunk and principal components in one: (B, 3, H, W) → (B, reduced, H // 4, W // 4).

    A tap coarser than the grid is reduced where it stands and then enlarged, which is the same, as
    both are linear, and costs a quarter or less; the concatenated taps never exist.

    Args:
        extractor: shared.
        reducer: fitted.
    """

    def __init__(self, extractor: FeatureExtractor, reducer: FeatureReducer) -> None:
        super().__init__()
        self.extractor = extractor
        self.reducer = reducer

    def forward(self, image: Tensor) -> Tensor:
        """The reduced features."""
        taps = self.extractor.taps
        weights = self.reducer.weight.split([tap.channels for tap in taps], dim=1)
        image = image.contiguous(memory_format=torch.channels_last)
        total: Tensor | None = None
        for tap, weight, x in zip(taps, weights, self.extractor.layers(image), strict=True):
            is_coarse = tap.stride > FEATURE_STRIDE
            x = x if is_coarse else self.extractor.to_grid(x, tap, image.shape[-2:])
            bias = self.reducer.bias if total is None else None
            part = F.conv2d(x, weight[:, :, None, None], bias)
            part = self.extractor.to_grid(part, tap, image.shape[-2:]) if is_coarse else part
            total = part if total is None else total + part
        assert total is not None  # noqa: S101 - every trunk has taps
        return total


@torch.no_grad()
def fused(network: HaloAE, *, image: bool, dtype: torch.dtype | None = None) -> HaloAE:
    """A lean copy of a trained network, in eval mode.

    Args:
        network: as trained; only copied from, and what it learns later is not followed.
        image: True: keep the image decoder, where there is one.
        dtype: of weights and arithmetic; None keeps the network's, and shares the trunk.

    Returns:
        A network whose features, rebuilt features and image are the same up to rounding, and whose
        logits are None.
    """
    lean = copy.copy(network)
    lean._modules = dict(network._modules)
    lean.classifier = None
    if not image:
        lean.image_decoder = None
    if isinstance(network.reducer, FeatureReducer):
        reduced = ReducedExtractor(network.extractor, network.reducer)
        lean.register_module("extractor", reduced)
        lean.reducer = nn.Identity()
    lean.encoder = copy.deepcopy(network.encoder).eval()
    lean.decoder = copy.deepcopy(network.decoder).eval()
    head = lean.encoder.head
    head[0], head[1] = _folded(*head[:2]), nn.Identity()
    for block in (*lean.encoder.blocks, *lean.decoder.blocks):
        _fold_block(block)
    for part in (lean.encoder, lean.decoder):
        part.requires_grad_(False).to(memory_format=torch.channels_last)
    if dtype not in (None, next(lean.parameters()).dtype):
        lean = copy.deepcopy(lean).to(dtype)
    return lean.eval()


def _fold_block(block: HaloBlock) -> None:
    for number in (1, 2):
        pair = block.get_submodule(f"conv{number}"), block.get_submodule(f"norm{number}")
        block.register_module(f"conv{number}", _folded(*pair))
        block.register_module(f"norm{number}", nn.Identity())
    if isinstance(block.skip, nn.Sequential):
        block.skip = _folded(*block.skip)


def _folded(conv: nn.Module, norm: nn.Module) -> nn.Conv2d:
    """One ordinary convolution that does what the two did."""
    is_transposed = isinstance(conv, nn.ConvTranspose2d)
    # Its types are of `Conv2d` and `BatchNorm2d` alone.
    both: Any = fuse_conv_bn_eval(cast("Any", conv), cast("Any", norm), transpose=is_transposed)
    if not is_transposed:
        return cast("nn.Conv2d", both)
    # Of stride 1: correlation with the kernel turned by 180°, padded to the same size.
    ordinary = Conv2d(both.in_channels, both.out_channels, both.kernel_size, padding="same")
    ordinary.weight = nn.Parameter(both.weight.transpose(0, 1).flip(2, 3))
    ordinary.bias = both.bias
    return ordinary
