"""Attention of blocks to the windows around them: how a grid is cut and joined, and its padding.

Shape suffixes as in `haloae.network.attention.base`.
"""

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haloae.config import AttentionConfig
from haloae.network.attention.base import Attention, ProjectedAttention


class WindowAttention(ProjectedAttention):
    """Attention of every block of `block` × `block` queries to the window around it.

    The window is `block + 2·halo` on a side. Any grid size: the grid is padded to whole blocks,
    that padding is never attended, and the output is cropped. All kinds have the same state dict,
    so one set of weights can be run in each.
    """

    def __init__(self, dim: int, **sizes: Any) -> None:  # noqa: ANN401 - those of `Attention`
        super().__init__(dim, **sizes)
        self.rel_height = nn.Parameter(torch.empty(2 * self.window - 1, self.head_dim))
        self.rel_width = nn.Parameter(torch.empty(2 * self.window - 1, self.head_dim))
        self.reset_parameters()

    @classmethod
    def reach(cls, sizes: AttentionConfig) -> int:
        """See `Attention.reach`; from one end of the block to the other, and the halo."""
        return sizes.block - 1 + sizes.halo

    @classmethod
    def period(cls, sizes: AttentionConfig) -> int:
        """See `Attention.period`; a block."""
        return sizes.block

    def mix(self, q_BHWC: Tensor, kv_BHWC: Tensor) -> Tensor:
        """Mix values, see `ProjectedAttention`."""
        height, width = q_BHWC.shape[1:3]
        rows, columns = -(-height // self.block), -(-width // self.block)
        blocks = self.mix_windows(q_BHWC, kv_BHWC, rows, columns)
        return self._join_blocks(blocks, rows, columns)[:, :height, :width]

    @abstractmethod
    def mix_windows(self, q_BHWC: Tensor, kv_BHWC: Tensor, rows: int, columns: int) -> Tensor:
        """Mix the values of every window.

        Args:
            q_BHWC: (B, H, W, heads·head_dim), scaled by head_dim^-½.
            kv_BHWC: (B, H, W, 2·heads·head_dim), keys and then values.
            rows: of blocks.
            columns: of blocks.

        Returns:
            (B·N, block, block, heads·head_dim).
        """

    def window_means(self, v_BHWC: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Mean of V over every window's real positions (B·N, C), and their number (B·N,)."""
        height, width = v_BHWC.shape[1:3]
        sums_BNC = self.windows_of(v_BHWC, rows, columns).sum(dim=(-2, -1)).flatten(0, 2)
        inside_rows = is_inside(self, v_BHWC, rows, height)
        inside_columns = is_inside(self, v_BHWC, columns, width)
        count_N = (inside_rows.sum(1)[:, None] * inside_columns.sum(1)[None, :]).flatten()
        count_BN = count_N.repeat(v_BHWC.shape[0])
        return sums_BNC / count_BN[:, None], count_BN

    def to_each_query(self, means_BNC: Tensor) -> Tensor:
        """(B·N, C) → (B·N, block, block, C)."""
        return means_BNC[:, None, None, :].expand(-1, self.block, self.block, -1)

    def _join_blocks(self, blocks: Tensor, rows: int, columns: int) -> Tensor:
        """(B·N, block, block, C) → (B, rows·block, columns·block, C)."""
        grid: Tensor = blocks.unflatten(0, (-1, rows, columns))
        return grid.transpose(2, 3).reshape(
            -1, rows * self.block, columns * self.block, blocks.shape[-1]
        )

    def windows_of(self, x_BHWC: Tensor, rows: int, columns: int) -> Tensor:
        """(B, H, W, C) → (B, rows, columns, C, window, window), zeros around; a view."""
        _, height, width, _ = x_BHWC.shape
        padding = (
            *(0, 0),
            *(self.halo, self.halo + columns * self.block - width),
            *(self.halo, self.halo + rows * self.block - height),
        )
        padded = F.pad(x_BHWC, padding)
        return padded.unfold(1, self.window, self.block).unfold(2, self.window, self.block)


def is_inside(layer: Attention, like: Tensor, blocks: int, size: int) -> Tensor:
    """(blocks, window) bool: True where a window's cell lies on the grid."""
    starts = torch.arange(blocks, device=like.device) * layer.block - layer.halo
    cells = starts[:, None] + torch.arange(layer.window, device=like.device)
    return (cells >= 0) & (cells < size)


def padding_logits(layer: Attention, like: Tensor, blocks: int, size: int) -> Tensor:
    """(blocks, window): 0 for cells that may be attended, else far below any real logit.

    A quarter of the dtype's range: a key outside in rows and columns gets it twice, and it is
    multiplied by the zeros of a one-hot, so it must stay finite.

    Args:
        layer: whose windows they are.
        like: gives dtype and device.
        blocks: in this direction.
        size: of the grid in this direction, in cells.
    """
    is_padding = ~is_inside(layer, like, blocks, size)
    return is_padding.to(like.dtype) * (-torch.finfo(like.dtype).max / 4)
