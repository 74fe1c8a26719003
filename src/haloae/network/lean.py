"""The network in the form it is used in: the same map from less work.

What the map does not need is left out, batch norm is folded into the convolutions before it,
transposed convolutions of stride 1 become the ordinary ones they equal, and attention moves less
data. Never trained, never saved.
"""

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from haloae.config import FEATURE_STRIDE
from haloae.network.attention import HaloAttention
from haloae.network.autoencoder import HaloBlock
from haloae.network.features import FeatureExtractor
from haloae.network.haloae import HaloAE
from haloae.network.reducer import FeatureReducer
from haloae.network.trunks import Conv2d

PAIRS_AT_ONCE = 2**19
"""Pairs of a query and a key whose logits are in memory at once on a CPU: they stay in its cache.

In an exported graph and on other devices, that is left to who runs it.
"""


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


class LeanAttention(HaloAttention):
    """`HaloAttention` of mode ``halo``, without a gradient: (B, dim, H, W) → the same.

    One projection instead of two, values that are no wider than they must be, and every tensor is
    rearranged once, with whole heads as the smallest piece that moves: exported as they stand, the
    trained module's windows cost the runtimes as much as what is computed from them.

    Args:
        attention: only copied from.
    """

    places: Tensor
    one_hot: Tensor

    def __init__(self, attention: HaloAttention) -> None:
        # `none` has no weights of its own.
        super().__init__(
            attention.dim,
            block=attention.block,
            halo=attention.halo,
            heads=attention.heads,
            head_dim=attention.head_dim,
            mode="none",
            mask_padding=attention.mask_padding,
        )
        scaled = attention.to_q.weight * self.head_dim**-0.5
        self.to_qkv = nn.Parameter(torch.cat([scaled, attention.to_kv.weight]))
        self.to_out = attention.to_out
        rows, columns = (attention.offsets(t) for t in (attention.rel_height, attention.rel_width))
        # From a query to the logits of the window's rows and columns, at each cell of a block.
        places = torch.cat(
            [rows.repeat_interleave(self.block, 0), columns.repeat(self.block, 1, 1)], 2
        )
        self.register_buffer("places", places)
        self.register_buffer("one_hot", attention.one_hot_places(rows))

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        height, width = x.shape[-2:]
        block, halo, heads, dim = self.block, self.halo, self.heads, self.head_dim
        rows, columns = -(-height // block), -(-width // block)
        qkv = F.linear(x.permute(0, 2, 3, 1), self.to_qkv)
        past = (columns * block - width, rows * block - height)
        qkv = F.pad(qkv, (0, 0, halo, halo + past[0], halo, halo + past[1]))
        q, kv = qkv.split([heads * dim, 2 * heads * dim], dim=-1)

        # Queries by their place in the block, so that each place is one product.
        q = q[:, halo : halo + rows * block, halo : halo + columns * block]
        q = q.unflatten(1, (rows, block)).unflatten(3, (columns, block)).unflatten(5, (heads, dim))
        q = q.permute(2, 4, 0, 1, 3, 5, 6).reshape(block**2, -1, dim)
        at = torch.bmm(q, self.places)
        at = at.unflatten(1, (-1, rows * columns, heads)) + self._mask(x, rows, columns)
        q = torch.cat([q, at.flatten(1, 3)], dim=-1).transpose(0, 1)

        for axis, blocks in ((1, rows), (2, columns)):
            starts = torch.arange(blocks, device=x.device) * block
            cells = starts[:, None] + torch.arange(self.window, device=x.device)
            kv = kv.index_select(axis, cells.flatten())
        kv = kv.unflatten(1, (rows, -1)).unflatten(3, (columns, -1)).unflatten(5, (2, heads, dim))
        kv = kv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(2, -1, self.window**2, dim)
        k, v = kv.unbind()
        k = torch.cat([k, self.one_hot.expand(k.shape[0], -1, -1)], dim=-1)

        mixed = self._weigh(q, k, v)
        mixed = mixed.unflatten(0, (-1, rows, columns, heads)).unflatten(4, (block, block))
        mixed = mixed.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)
        out: Tensor = self.to_out(mixed[:, :height, :width]).permute(0, 3, 1, 2)
        return out

    def _weigh(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.device.type != "cpu":
            # Of four dimensions: there is no fused kernel for three.
            q, k, v = (tensor.unflatten(0, (-1, self.heads)) for tensor in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, scale=1.0).flatten(0, 1)
        if torch.compiler.is_exporting():
            return _softmax_attention(q, k, v)
        at_once = max(1, PAIRS_AT_ONCE // (q.shape[1] * k.shape[1]))
        parts = zip(*(tensor.split(at_once) for tensor in (q, k, v)), strict=True)
        return torch.cat([_softmax_attention(*part) for part in parts])

    def _mask(self, like: Tensor, rows: int, columns: int) -> Tensor:
        """(N, 1, 2·W): what is added to the logits of a window's rows and columns."""
        height, width = like.shape[-2:]
        row_mask = self.padding_logits(like, rows, height).repeat_interleave(columns, dim=0)
        column_mask = self.padding_logits(like, columns, width).repeat(rows, 1)
        return torch.cat([row_mask, column_mask], dim=1)[:, None]


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.bmm(torch.bmm(q, k.mT).softmax(-1), v)


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
    if block.attention.mode == "halo":
        block.register_module("attention", LeanAttention(block.attention))


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


lean = fused
