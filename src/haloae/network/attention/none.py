"""No attention: what it is worth is told by leaving it out."""

from torch import Tensor

from haloae.network.attention.base import Attention


class NoAttention(Attention):
    """The input itself."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input."""
        return x
