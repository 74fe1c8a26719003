"""A Gaussian a place: the Mahalanobis distance of features to those of good images.

After PaDiM (Defard et al., ICPR 2021 workshops), with features averaged over 3×3 places.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Self

import torch
from torch import Tensor

from haloae.config import Config
from haloae.detection.heads.base import MANY, Head, Seen, features_of, register_head
from haloae.detection.heads.moments import (
    FEWEST,
    Cells,
    Moments,
    averaged,
    by_place,
    check_size,
    inverse_root,
    moments,
)
from haloae.network.haloae import HaloAEOutput
from haloae.network.lean import with_parts

RIDGE = 0.01
"""Added to every variance; channels that vary much have one of about 1."""
CERTAIN = 1e-3
"""Least share of a squared distance's denominator that is left when an image is left out."""


@register_head("gaussian")
class GaussianHead(Head):
    """Mean and covariance of each place.

    Args:
        mean: (P, C).
        whitening: (P, C·(C+1)/2) float16, a root of each place's inverse covariance: the lower
            triangle, row by row.
        grid: (h, w), P of them.
        images: good images behind them.
        own: share of a place's own covariance in what was made the root of.
        seen: (P,), how many of the images count at each place; None: all.
    """

    mean: Tensor
    whitening: Tensor
    roots: Tensor
    small_roots: Tensor

    def __init__(
        self,
        mean: Tensor,
        whitening: Tensor,
        *,
        grid: tuple[int, int],
        images: int,
        own: float = 1.0,
        seen: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.images = images
        self.own = own
        self.seen = seen
        self.left_out = False
        """True: one of its own images is scored, as if it had not been among them."""
        self.register_buffer("mean", mean)
        self.register_buffer("whitening", whitening)
        channels = mean.shape[1]
        small = whitening.new_zeros(len(mean), channels, channels)
        rows, columns = torch.tril_indices(channels, channels)
        small[:, rows, columns] = whitening
        self.register_buffer("small_roots", small, persistent=False)
        # Converted once, where it need not be small.
        self.register_buffer("roots", small.float(), persistent=False)

    @classmethod
    def check(cls, config: Config) -> None:
        """See `Head.check`."""
        check_size(config)

    @classmethod
    def fit(cls, config: Config, seen: Callable[[], Iterable[Seen]]) -> Self:
        """See `Head.fit`."""
        maps = (Cells(averaged(each.output.features.float()), each.cells) for each in seen())
        return cls.of(moments(maps), features_of(config)[0], ridge=RIDGE)

    @classmethod
    def of(
        cls, found: Moments, grid: tuple[int, int], *, ridge: float, shrinkage: float = 0.0
    ) -> Self:
        """From moments of every place.

        Args:
            found: of good images, whose covariances are used up.
            grid: (h, w).
            ridge: added to every variance.
            shrinkage: share of the mean covariance of all places in that of each, 0 to 1.
        """
        covariance = found.covariance
        if shrinkage:
            covariance.lerp_(found.everywhere, shrinkage)
        covariance.diagonal(dim1=1, dim2=2).add_(ridge)
        rows, columns = torch.tril_indices(*covariance.shape[1:])
        whitening = inverse_root(covariance)[:, rows, columns].half()
        own = 1 - shrinkage
        return cls(found.mean, whitening, grid=grid, images=found.images, own=own, seen=found.seen)

    @classmethod
    def restore(cls, config: Config, tensors: Mapping[str, Tensor], images: int) -> Self:
        """See `Head.restore`."""
        grid, channels = features_of(config)
        places = math.prod(grid)
        mean, whitening = tensors["mean"], tensors["whitening"]
        if mean.shape != (places, channels) or whitening.shape != (
            places,
            channels * (channels + 1) // 2,
        ):
            raise ValueError("the Gaussians are not those of this grid")
        return cls(mean, whitening, grid=grid, images=images)

    @classmethod
    def sized(cls, config: Config) -> Self:
        """See `Head.sized`."""
        grid, channels = features_of(config)
        mean = torch.empty(math.prod(grid), channels)
        whitening = torch.empty(len(mean), channels * (channels + 1) // 2, dtype=torch.float16)
        return cls(mean, whitening, grid=grid, images=MANY)

    def without(self, seen: Seen, index: int) -> "GaussianHead":
        """Without one image: its part of the covariance is of rank one (Sherman-Morrison).

        The divisor stays, and so does what is mixed in of all places.
        """
        others = with_parts(self)
        others.left_out = True
        return others

    def forward(self, output: HaloAEOutput, image: Tensor) -> Tensor:
        """See `Head.forward`; in units of standard deviations, all channels together."""
        return self.distance(averaged(output.features.float()))

    def distance(self, x: Tensor) -> Tensor:
        """Mahalanobis distance of each cell from its place's mean: (B, C, h, w) → (B, h, w)."""
        deviations = by_place(x) - self.mean[:, None]
        roots = self.small_roots.float() if torch.compiler.is_exporting() else self.roots
        whitened = torch.bmm(deviations, roots.transpose(1, 2))
        squared = whitened.square().sum(2)
        if self.left_out:
            n, is_own = self._seen(squared)
            own = self.own * n / (n - 1) ** 2
            without = squared / (1 - own * squared).clamp_min(CERTAIN) * (n / (n - 1)) ** 2
            squared = torch.where(is_own, without, squared)
        distance: Tensor = squared.sqrt().T.unflatten(1, self.grid)
        return distance

    def _seen(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(P, 1) each: images behind each place, and where they are behind its own moments."""
        seen = like.new_full((len(like),), self.images) if self.seen is None else self.seen
        is_own = seen >= min(FEWEST, self.images)
        return seen.to(like).clamp_min(2)[:, None], is_own.to(like.device)[:, None]
