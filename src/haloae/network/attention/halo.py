"""Halo attention: every block of queries attends to itself and a halo around it (HaloNet, §3.1).

Shape suffixes as in `haloae.network.attention.base`.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haloae.network.attention.base import Attention, register_attention
from haloae.network.attention.window import WindowAttention, padding_logits

PAIRS_AT_ONCE = 2**19
"""Pairs of a query and a key whose logits are in memory at once on a CPU: they stay in its cache.

In an exported graph and on other devices, that is left to who runs it.
"""


@register_attention("halo")
class HaloAttention(WindowAttention):
    """Block-local multi-head self-attention with separable relative positions.

    Per head, with q scaled by head_dim^-½:
    ``logit(i, j) = q_i·k_j + q_i·(rel_height[Δrow] + rel_width[Δcol])``, Δ = key - query, where
    offset Δ stands in row ``Δ + halo + window - 1`` of its table. Padding around the grid is never
    attended. Cost is linear in the number of positions: H·W·window² pairs.
    """

    def mix_windows(self, q_BHWC: Tensor, kv_BHWC: Tensor, rows: int, columns: int) -> Tensor:
        """Softmax attention in every window: (B·N, block, block, heads·head_dim).

        Positions and mask enter as channels: with q' = [q, row logits, column logits] and
        k' = [k, one-hot row, one-hot column], q'·k' is the whole logit. So the fused kernel needs
        no bias tensor of P·K pairs, forward or backward, and a padding key (its row or its column
        is outside) is masked by W numbers a side instead of W².
        """
        batch, height, width, _ = q_BHWC.shape
        q_BNHPD = self._split_blocks(q_BHWC, rows, columns)
        kv_BNHKD = self._split_windows(kv_BHWC, rows, columns)
        k_BNHKD, v_BNHKD = kv_BNHKD.split(self.heads, dim=1)

        q_BNHYXD = q_BNHPD.unflatten(2, (self.block, self.block))
        row_logits = torch.einsum(
            "nhyxd,ydk->nhyxk", q_BNHYXD, self.offsets(self.rel_height.to(q_BNHYXD.dtype))
        )
        column_logits = torch.einsum(
            "nhyxd,xdk->nhyxk", q_BNHYXD, self.offsets(self.rel_width.to(q_BNHYXD.dtype))
        )
        row_mask = padding_logits(self, q_BHWC, rows, height).repeat_interleave(columns, dim=0)
        column_mask = padding_logits(self, q_BHWC, columns, width).repeat(rows, 1)
        window_shape = (-1, 1, 1, 1, self.window)
        row_logits = row_logits + row_mask.repeat(batch, 1).view(window_shape)
        column_logits = column_logits + column_mask.repeat(batch, 1).view(window_shape)

        place_BNHKW = self.one_hot_places(q_BHWC).expand(*k_BNHKD.shape[:2], -1, -1)
        mixed_BNHPD = F.scaled_dot_product_attention(
            torch.cat([q_BNHPD, row_logits.flatten(2, 3), column_logits.flatten(2, 3)], dim=-1),
            torch.cat([k_BNHKD, place_BNHKW], dim=-1),
            # The fused kernels want values as wide as keys.
            F.pad(v_BNHKD, (0, 2 * self.window)),
            scale=1.0,
        )[..., : self.head_dim]
        blocks: Tensor = mixed_BNHPD.transpose(1, 2).flatten(2)
        # Not len(): it would fix the batch when the network is exported.
        return blocks.view(blocks.shape[0], self.block, self.block, -1)

    def lean(self) -> nn.Module:
        """The same from less work, see `LeanHaloAttention`."""
        return LeanHaloAttention(self)

    def _split_blocks(self, x_BHWC: Tensor, rows: int, columns: int) -> Tensor:
        """(B, H, W, heads·head_dim) → (B·N, heads, P, head_dim), padded to whole blocks."""
        batch, height, width, _ = x_BHWC.shape
        padding = (0, 0, 0, columns * self.block - width, 0, rows * self.block - height)
        blocks = F.pad(x_BHWC, padding).view(
            batch, rows, self.block, columns, self.block, self.heads, self.head_dim
        )
        blocks = blocks.permute(0, 1, 3, 5, 2, 4, 6)
        return blocks.reshape(batch * rows * columns, self.heads, self.block**2, self.head_dim)

    def _split_windows(self, kv_BHWC: Tensor, rows: int, columns: int) -> Tensor:
        """(B, H, W, 2·heads·head_dim) → (B·N, 2·heads, K, head_dim)."""
        windows = self.windows_of(kv_BHWC, rows, columns).flatten(0, 2).flatten(-2)
        windows = windows.view(windows.shape[0], 2 * self.heads, self.head_dim, -1)
        return windows.transpose(-1, -2).contiguous()

    def one_hot_places(self, like: Tensor) -> Tensor:
        """(K, 2·window): the row and the column of each key in its window, one-hot."""
        one_hot = torch.eye(self.window, dtype=like.dtype, device=like.device)
        return torch.cat(
            [one_hot.repeat_interleave(self.window, dim=0), one_hot.repeat(self.window, 1)], dim=1
        )

    def offsets(self, table: Tensor) -> Tensor:
        """(2·window - 1, D) → (block, D, window): embedding of key cell j seen from query cell i.

        Row ``j - i + window - 1``, i counted in the block and j in the window. Slices of the small
        table, not an index into the logits, whose backward pass would cost far more than the rest.
        """
        slides = table.unfold(0, self.window, 1)
        return slides[self.window - self.block :].flip(0)


class LeanHaloAttention(Attention):
    """`HaloAttention` without a gradient: (B, dim, H, W) → the same.

    One projection instead of two, values that are no wider than they must be, and every tensor is
    rearranged once, with whole heads as the smallest piece that moves: exported as they stand, the
    trained module's windows cost the runtimes as much as what is computed from them.

    Args:
        attention: only copied from.
    """

    places: Tensor
    one_hot: Tensor

    def __init__(self, attention: HaloAttention) -> None:
        super().__init__(
            attention.dim,
            block=attention.block,
            halo=attention.halo,
            heads=attention.heads,
            head_dim=attention.head_dim,
        )
        scaled = attention.to_q.weight * self.head_dim**-0.5
        self.to_qkv = nn.Parameter(torch.cat([scaled, attention.to_kv.weight]))
        self.to_out = copy.deepcopy(attention.to_out)
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
        row_mask = padding_logits(self, like, rows, height).repeat_interleave(columns, dim=0)
        column_mask = padding_logits(self, like, columns, width).repeat(rows, 1)
        return torch.cat([row_mask, column_mask], dim=1)[:, None]


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.bmm(torch.bmm(q, k.mT).softmax(-1), v)
