"""Every position attends to every other, without positions."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from haloae.network.attention.base import ProjectedAttention, register_attention


@register_attention("global")
class GlobalAttention(ProjectedAttention):
    """Softmax attention over the whole grid: cost is quadratic in the number of positions."""

    def __init__(self, dim: int, **sizes: Any) -> None:  # noqa: ANN401 - those of `Attention`
        super().__init__(dim, **sizes)
        self.reset_parameters()

    def mix(self, q_BHWC: Tensor, kv_BHWC: Tensor) -> Tensor:
        """Mix values, see `ProjectedAttention`."""
        parts = (q_BHWC, *kv_BHWC.chunk(2, dim=-1))
        q, k, v = (self._heads_of_grid(part) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return mixed.transpose(1, 2).reshape(q_BHWC.shape)

    def _heads_of_grid(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, heads·head_dim) → (B, heads, H·W, head_dim)."""
        x: Tensor = x_BHWC.flatten(1, 2).unflatten(-1, (self.heads, self.head_dim))
        return x.transpose(1, 2)
