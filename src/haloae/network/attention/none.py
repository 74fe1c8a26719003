"""No attention: what it is worth is told by leaving it out."""

from torch import Tensor

from haloae.config import AttentionConfig
from haloae.network.attention.base import Attention, register_attention


@register_attention("none")
class NoAttention(Attention):
    """The input itself."""

    @classmethod
    def reach(cls, sizes: AttentionConfig) -> int:
        """See `Attention.reach`."""
        return 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the input."""
        return x
