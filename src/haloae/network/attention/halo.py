"""Halo attention: every block of queries attends to itself and a halo around it (HaloNet, §3.1).

Shape suffixes: B batch, N blocks, H heads, P = block² queries, K = window² keys, D = head dim,
W = window = block + 2·halo, Y × X = rows × columns of one block. BN stands for B·N.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haloae.config import AttentionMode


class HaloAttention(nn.Module):
    """Block-local multi-head self-attention with separable relative positions.

    The grid is cut into blocks of `block` × `block` queries; their keys and values come from the
    window of `block + 2·halo` on a side around the block. Per head, with q scaled by head_dim^-½:
    ``logit(i, j) = q_i·k_j + q_i·(rel_height[Δrow] + rel_width[Δcol])``, Δ = key - query, where
    offset Δ stands in row ``Δ + halo + window - 1`` of its table. Any grid size: the grid is padded
    to whole blocks, that padding is never attended, and the output is cropped. Cost is linear in
    the number of positions: H·W·window² pairs.

    Args:
        dim: channels of input and output.
        block: side of a block of queries, in grid cells.
        halo: cells by which the window reaches past the block on each side.
        heads: number of heads.
        head_dim: channels of one head.
        mode: ``halo`` as above; ``published``, what the published code computed with its mask
            inverted: the mean of V over the window where it holds no padding, else zeros;
            ``window_mean``, the mean of V over the window's real positions; ``global``, every
            position attends to every other, without positions; ``none``, the input itself.
        mask_padding: True: zero padding around the grid is never attended (ours);
            False: it is attended with k = v = 0, as in HaloNet. Padding to whole blocks
            is masked either way. Only ``halo`` looks at it.

    The three window modes share one state dict, so one set of weights can be run in each.
    """

    def __init__(
        self,
        dim: int,
        *,
        block: int,
        halo: int,
        heads: int,
        head_dim: int,
        mode: AttentionMode = "halo",
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.block, self.halo = dim, block, halo
        self.heads, self.head_dim = heads, head_dim
        self.mode, self.mask_padding = mode, mask_padding
        self.window = block + 2 * halo
        if mode == "none":
            return
        inner = heads * head_dim
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim)
        if mode != "global":
            self.rel_height = nn.Parameter(torch.empty(2 * self.window - 1, head_dim))
            self.rel_width = nn.Parameter(torch.empty(2 * self.window - 1, head_dim))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Kaiming normal for the projections, normal · head_dim^-½ for the positions."""
        for name, parameter in self.named_parameters():
            if name.startswith("rel_"):
                nn.init.normal_(parameter, std=self.head_dim**-0.5, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x: (B, dim, H, W), any float dtype.

        Returns:
            (B, dim, H, W), before any residual or activation.
        """
        if self.mode == "none":
            return x
        x_BHWC = x.permute(0, 2, 3, 1)
        # Projecting before windows overlap saves (window / block)² of the work.
        q_BHWC = self.to_q(x_BHWC) * self.head_dim**-0.5
        kv_BHWC = self.to_kv(x_BHWC)
        if x.device.type == "cpu":
            # There the fused kernel's backward pass is several times slower in bfloat16.
            precise = torch.promote_types(q_BHWC.dtype, torch.float32)
            with torch.autocast("cpu", enabled=False):
                mixed_BHWC = self._mix(q_BHWC.to(precise), kv_BHWC.to(precise)).to(q_BHWC.dtype)
        else:
            mixed_BHWC = self._mix(q_BHWC, kv_BHWC)
        mixed: Tensor = self.to_out(mixed_BHWC).permute(0, 3, 1, 2)
        return mixed

    def _mix(self, q_BHWC: Tensor, kv_BHWC: Tensor) -> Tensor:
        _, height, width, inner = q_BHWC.shape
        if self.mode == "global":
            q, k, v = (self._heads_of_grid(t) for t in (q_BHWC, *kv_BHWC.split(inner, dim=-1)))
            mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)
            return mixed.transpose(1, 2).reshape(q_BHWC.shape)
        rows, columns = -(-height // self.block), -(-width // self.block)
        if self.mode == "halo":
            blocks = self._attend(q_BHWC, kv_BHWC, rows, columns)
        else:
            blocks = self._average(kv_BHWC[..., inner:], rows, columns)
        return self._join_blocks(blocks, rows, columns)[:, :height, :width]

    def _attend(self, q_BHWC: Tensor, kv_BHWC: Tensor, rows: int, columns: int) -> Tensor:
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
        row_mask = self.padding_logits(q_BHWC, rows, height).repeat_interleave(columns, dim=0)
        column_mask = self.padding_logits(q_BHWC, columns, width).repeat(rows, 1)
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

    def _average(self, v_BHWC: Tensor, rows: int, columns: int) -> Tensor:
        """Mean of V in every window, the same for each of its queries: (B·N, block, block, C)."""
        height, width = v_BHWC.shape[1:3]
        sums_BNC = self._windows(v_BHWC, rows, columns).sum(dim=(-2, -1)).flatten(0, 2)
        inside_rows = self._inside(v_BHWC, rows, height, reach=0)
        inside_columns = self._inside(v_BHWC, columns, width, reach=0)
        count_N = (inside_rows.sum(1)[:, None] * inside_columns.sum(1)[None, :]).flatten()
        means_BNC = sums_BNC / count_N.repeat(v_BHWC.shape[0])[:, None]
        if self.mode == "published":
            has_padding_N = count_N < self.window**2
            means_BNC = means_BNC.masked_fill(has_padding_N.repeat(v_BHWC.shape[0])[:, None], 0.0)
        return means_BNC[:, None, None, :].expand(-1, self.block, self.block, -1)

    def _heads_of_grid(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, heads·head_dim) → (B, heads, H·W, head_dim)."""
        x: Tensor = x_BHWC.flatten(1, 2).unflatten(-1, (self.heads, self.head_dim))
        return x.transpose(1, 2)

    def _split_blocks(self, x_BHWC: Tensor, rows: int, columns: int) -> Tensor:
        """(B, H, W, heads·head_dim) → (B·N, heads, P, head_dim), padded to whole blocks."""
        batch, height, width, _ = x_BHWC.shape
        padding = (0, 0, 0, columns * self.block - width, 0, rows * self.block - height)
        blocks = F.pad(x_BHWC, padding).view(
            batch, rows, self.block, columns, self.block, self.heads, self.head_dim
        )
        blocks = blocks.permute(0, 1, 3, 5, 2, 4, 6)
        return blocks.reshape(batch * rows * columns, self.heads, self.block**2, self.head_dim)

    def _join_blocks(self, blocks: Tensor, rows: int, columns: int) -> Tensor:
        """(B·N, block, block, C) → (B, rows·block, columns·block, C)."""
        grid: Tensor = blocks.unflatten(0, (-1, rows, columns))
        return grid.transpose(2, 3).reshape(
            -1, rows * self.block, columns * self.block, blocks.shape[-1]
        )

    def _windows(self, x_BHWC: Tensor, rows: int, columns: int) -> Tensor:
        """(B, H, W, C) → (B, rows, columns, C, window, window), zeros around; a view."""
        _, height, width, _ = x_BHWC.shape
        padding = (
            *(0, 0),
            *(self.halo, self.halo + columns * self.block - width),
            *(self.halo, self.halo + rows * self.block - height),
        )
        padded = F.pad(x_BHWC, padding)
        return padded.unfold(1, self.window, self.block).unfold(2, self.window, self.block)

    def _split_windows(self, kv_BHWC: Tensor, rows: int, columns: int) -> Tensor:
        """(B, H, W, 2·heads·head_dim) → (B·N, 2·heads, K, head_dim)."""
        windows = self._windows(kv_BHWC, rows, columns).flatten(0, 2).flatten(-2)
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

    def _inside(self, like: Tensor, blocks: int, size: int, *, reach: int) -> Tensor:
        """(blocks, window) bool: True where a window's cell is at most `reach` past the grid."""
        starts = torch.arange(blocks, device=like.device) * self.block - self.halo
        cells = starts[:, None] + torch.arange(self.window, device=like.device)
        return (cells >= -reach) & (cells < size + reach)

    def padding_logits(self, like: Tensor, blocks: int, size: int) -> Tensor:
        """(blocks, window): 0 for cells that may be attended, else far below any real logit.

        A quarter of the dtype's range: a key outside in rows and columns gets it twice, and it is
        multiplied by the zeros of a one-hot, so it must stay finite.
        """
        reach = 0 if self.mask_padding else self.halo
        is_padding = ~self._inside(like, blocks, size, reach=reach)
        return is_padding.to(like.dtype) * (-torch.finfo(like.dtype).max / 4)
