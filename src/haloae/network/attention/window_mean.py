"""The mean of the values over the window: attention without a query."""

from torch import Tensor

from haloae.network.attention.base import register_attention
from haloae.network.attention.window import WindowAttention


@register_attention("window_mean")
class WindowMean(WindowAttention):
    """The mean of V over the window's real positions, the same for each query of a block.

    Queries, keys and positions stand in the state dict and are never used.
    """

    def mix_windows(self, q_BHWC: Tensor, kv_BHWC: Tensor, rows: int, columns: int) -> Tensor:
        """Mean of V in every window, see `WindowAttention`."""
        means_BNC, _ = self.window_means(kv_BHWC[..., q_BHWC.shape[-1] :], rows, columns)
        return self.to_each_query(means_BNC)
