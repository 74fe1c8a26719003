"""What a kind of attention must offer, the table they stand in, and what most share.

Shape suffixes, in all kinds: B batch, N blocks, H heads, P = block² queries, K = window² keys,
D = head dim, W = window = block + 2·halo, Y × X = rows × columns of one block. BN stands for B·N.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from haloae.config import AttentionConfig
from haloae.errors import ConfigError


class Attention(nn.Module, ABC):
    """A kind of attention: (B, dim, H, W) → the same shape, on any grid.

    Every kind is given all sizes and heeds those it has a use for.

    Args:
        dim: channels of input and output.
        block: side of a block of queries, in grid cells.
        halo: cells by which the window reaches past the block on each side.
        heads: number of heads.
        head_dim: channels of one head.
    """

    def __init__(
        self,
        dim: int,
        *,
        block: int,
        halo: int,
        heads: int,
        head_dim: int,
    ) -> None:
        super().__init__()
        self.dim, self.block, self.halo = dim, block, halo
        self.heads, self.head_dim = heads, head_dim
        self.window = block + 2 * halo

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x: (B, dim, H, W), any float dtype.

        Returns:
            (B, dim, H, W), before any residual or activation.
        """

    @classmethod
    def reach(cls, sizes: AttentionConfig) -> int | None:
        """Cells beyond its own that one sees in any direction, at most; None: no end is known."""
        return None

    @classmethod
    def period(cls, sizes: AttentionConfig) -> int:
        """Cells by which a grid can be moved so that what comes of it moves along."""
        return 1

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial weights.

        Kaiming normal for the projections, normal · head_dim^-½ for positions (``rel_…``), zeros
        for biases.
        """
        for name, parameter in self.named_parameters():
            if name.startswith("rel_"):
                nn.init.normal_(parameter, std=self.head_dim**-0.5, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, generator=generator)

    def lean(self) -> nn.Module:
        """The layer in the form it is used in: the same without a gradient, of weights its own."""
        return copy.deepcopy(self)


A = TypeVar("A", bound=Attention)
ATTENTION: dict[str, type[Attention]] = {}
"""By the name that `network.attention.mode` has."""


def register_attention(name: str) -> Callable[[type[A]], type[A]]:
    """Put a kind into the table, under a name of its own."""

    def register(kind: type[A]) -> type[A]:
        ATTENTION[name] = kind
        return kind

    return register


def attention_named(name: str) -> type[Attention]:
    """The kind of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in ATTENTION:
        known = ", ".join(map(repr, ATTENTION))
        raise ConfigError(f"network.attention.mode is {name!r}: choose one of {known}.")
    return ATTENTION[name]


class ProjectedAttention(Attention):
    """Attention of queries, keys and values that are linear maps of the input."""

    def __init__(self, dim: int, **sizes: Any) -> None:  # noqa: ANN401 - those of `Attention`
        super().__init__(dim, **sizes)
        inner = self.heads * self.head_dim
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, see `Attention`."""
        x_BHWC = x.permute(0, 2, 3, 1)
        # Projecting before windows overlap saves (window / block)² of the work.
        q_BHWC = self.to_q(x_BHWC) * self.head_dim**-0.5
        kv_BHWC = self.to_kv(x_BHWC)
        if x.device.type == "cpu":
            # There the fused kernel's backward pass is several times slower in bfloat16.
            precise = torch.promote_types(q_BHWC.dtype, torch.float32)
            with torch.autocast("cpu", enabled=False):
                mixed_BHWC = self.mix(q_BHWC.to(precise), kv_BHWC.to(precise)).to(q_BHWC.dtype)
        else:
            mixed_BHWC = self.mix(q_BHWC, kv_BHWC)
        mixed: Tensor = self.to_out(mixed_BHWC).permute(0, 3, 1, 2)
        return mixed

    @abstractmethod
    def mix(self, q_BHWC: Tensor, kv_BHWC: Tensor) -> Tensor:
        """Mix the values of every position.

        Args:
            q_BHWC: (B, H, W, heads·head_dim), scaled by head_dim^-½.
            kv_BHWC: (B, H, W, 2·heads·head_dim), keys and then values.

        Returns:
            (B, H, W, heads·head_dim).
        """
