"""A trunk of two small convolutions, for tests of what is not about trunks."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from haloae.network.trunks import Conv2d, Tap, Trunk, register_trunk


class TinyTrunk(nn.Module):
    """Taps at strides 4 and 8."""

    def __init__(self) -> None:
        super().__init__()
        self.near = Conv2d(3, 16, 7, stride=4, padding=3)
        self.far = Conv2d(16, 32, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Iterator[Tensor]:
        """(B, 3, H, W) → (B, 16, H / 4, W / 4) and (B, 32, H / 8, W / 8)."""
        x = F.relu(self.near(x))
        yield x
        yield F.relu(self.far(x))


register_trunk("tiny", Trunk(build=TinyTrunk, taps=(Tap("near", 16, 4), Tap("far", 32, 8))))
