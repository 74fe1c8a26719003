"""What the published code computed with its mask inverted (docs/published-code.md)."""

from torch import Tensor

from haloae.network.attention.base import register_attention
from haloae.network.attention.window import WindowAttention


@register_attention("published")
class PublishedAttention(WindowAttention):
    """The mean of V over the window where it holds no padding, else zeros.

    Queries, keys and positions stand in the state dict and are never used.
    """

    def mix_windows(self, q_BHWC: Tensor, kv_BHWC: Tensor, rows: int, columns: int) -> Tensor:
        """Mean of V in every whole window, see `WindowAttention`."""
        means_BNC, count_BN = self.window_means(kv_BHWC[..., q_BHWC.shape[-1] :], rows, columns)
        has_padding_BN = count_BN < self.window**2
        return self.to_each_query(means_BNC.masked_fill(has_padding_BN[:, None], 0.0))
