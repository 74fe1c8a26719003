"""A Gaussian a place and the nearest good cell in the halo, their maps added.

Aligned parts and surfaces with borders want a covariance a place; objects in any pose want
neighbours and a halo. Neither is right everywhere, and the sum is near the better of the two
(docs/adr/0008).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Self

import torch
from torch import Tensor

from haloae.config import Config
from haloae.detection.heads.base import Head, Seen, register_head
from haloae.detection.heads.gaussian import GaussianHead
from haloae.detection.heads.nearest_halo import NearestHaloHead
from haloae.detection.maps import smooth
from haloae.network.haloae import HaloAEOutput

LEAST = 1e-6
"""Least spread of a map: no two images need differ."""


@register_head("gaussian_halo")
class GaussianHaloHead(Head):
    """Both heads, and how much each of their maps varies on good images.

    Args:
        gaussian: fitted.
        halo: fitted to the same images.
        spread: (2,), standard deviations of their smoothed maps, each image's by heads without it.
    """

    spread: Tensor

    def __init__(self, gaussian: GaussianHead, halo: NearestHaloHead, spread: Tensor) -> None:
        super().__init__()
        self.images = gaussian.images
        self.gaussian = gaussian
        self.halo = halo
        self.register_buffer("spread", spread)

    @classmethod
    def check(cls, config: Config) -> None:
        """See `Head.check`."""
        NearestHaloHead.check(config)

    @classmethod
    def fit(cls, config: Config, seen: Callable[[], Iterable[Seen]]) -> Self:
        """Fit both, then see how they vary."""
        gaussian, halo = GaussianHead.fit(config, seen), NearestHaloHead.fit(config, seen)
        sums, squares, count = torch.zeros(2).double(), torch.zeros(2).double(), 0
        for index, each in enumerate(seen()):
            for which, head in enumerate((gaussian, halo)):
                unusual = smooth(head.without(each, index)(*each), config.detection.sigma)
                sums[which] += unusual.double().sum().cpu()
                squares[which] += unusual.double().square().sum().cpu()
            count += unusual.numel()
        spread = (squares / count - (sums / count).square()).clamp_min(0).sqrt()
        device = gaussian.mean.device
        return cls(gaussian, halo, spread.float().clamp_min(LEAST).to(device))

    @classmethod
    def restore(cls, config: Config, tensors: Mapping[str, Tensor], images: int) -> Self:
        """See `Head.restore`."""
        parts: dict[str, dict[str, Tensor]] = {"gaussian": {}, "halo": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        spread = tensors["spread"]
        if spread.shape != (2,) or not (spread > 0).all():
            raise ValueError("the spread of the maps is none")
        return cls(
            GaussianHead.restore(config, parts["gaussian"], images),
            NearestHaloHead.restore(config, parts["halo"], images),
            spread,
        )

    @classmethod
    def sized(cls, config: Config) -> Self:
        """See `Head.sized`."""
        parts = GaussianHead.sized(config), NearestHaloHead.sized(config)
        return cls(*parts, torch.empty(2))

    def without(self, seen: Seen, index: int) -> "GaussianHaloHead":
        """Both without one image; the spread stays."""
        return GaussianHaloHead(
            self.gaussian.without(seen, index), self.halo.without(seen, index), self.spread
        )

    def forward(self, output: HaloAEOutput, image: Tensor) -> Tensor:
        """See `Head.forward`; in spreads of good images' maps, of both together."""
        gaussian, halo = self.gaussian(output, image), self.halo(output, image)
        total: Tensor = gaussian / self.spread[0] + halo / self.spread[1]
        return total
