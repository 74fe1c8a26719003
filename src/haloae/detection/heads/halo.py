"""Halo attention over good images rebuilds each cell, and a Gaussian a place judges what is left.

Each cell attends, in its block and a halo around it, to the cells of good images
(`heads/nearest_halo.py`), and is rebuilt from the few nearest by one linear map, trained on good
images that are left out of the memory. What good cells have in common, where they lie and in which
of several forms they come, is then in the rebuilt cell; how they vary beyond that is in the
covariance of the residual, a place (docs/adr/0008).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from haloae.config import Config
from haloae.detection.heads.base import Head, Seen, features_of, register_head
from haloae.detection.heads.gaussian import GaussianHead
from haloae.detection.heads.moments import Cells, mapped, moments, softened
from haloae.detection.heads.nearest_halo import NearestHaloHead
from haloae.network.haloae import HaloAEOutput

NEAREST = 3
"""Keys that share a cell's attention."""
RIDGE = 0.03
"""Added to every variance of the residual; channels that vary much have one of about 1."""
SHRINKAGE = 0.1
"""Share of the covariance of all places in that of each."""
PENALTY = 1e-3
"""Ridge of the linear map, in mean variances of what it is given."""
LEAST = 1e-6
"""Least of these."""


@register_head("halo")
class HaloHead(Head):
    """Memory, the map from what attention gives to features, and residuals of good images.

    Args:
        memory: fitted.
        rebuilding: (C, C), from a whitened cell to a cell of features, less a constant a place.
        gaussian: of the residuals of good images.
    """

    leaves_out = False
    attention: ClassVar[type[NearestHaloHead]] = NearestHaloHead
    """What gives each cell the good ones it is rebuilt from; comparisons put others here."""
    rebuilding: Tensor

    def __init__(self, memory: NearestHaloHead, rebuilding: Tensor, gaussian: GaussianHead) -> None:
        super().__init__()
        self.images = gaussian.images
        self.memory = memory
        self.register_buffer("rebuilding", rebuilding)
        self.gaussian = gaussian

    @classmethod
    def check(cls, config: Config) -> None:
        """See `Head.check`."""
        cls.attention.check(config)

    @classmethod
    def fit(cls, config: Config, seen: Callable[[], Iterable[Seen]]) -> Self:
        """Fit the memory, the map, and the Gaussians, with a pass over the images for each."""
        memory = cls.attention.fit(config, seen)

        def attended() -> Iterator[Pair]:
            for index, each in enumerate(seen()):
                features = each.output.features.float()
                without = memory.without(each, index)
                yield Pair(features, without.attend(features, nearest=NEAREST), each.cells)

        rebuilding = cls.learned(memory, attended())
        residuals = (
            Cells(softened(each.features - mapped(each.given, rebuilding)), each.cells)
            for each in attended()
        )
        grid, _ = features_of(config)
        gaussian = GaussianHead.of(moments(residuals), grid, ridge=RIDGE, shrinkage=SHRINKAGE)
        return cls(memory, rebuilding, gaussian)

    @classmethod
    def learned(cls, memory: NearestHaloHead, pairs: Iterable["Pair"]) -> Tensor:
        """The map from what attention gives to features, (C, C).

        Args:
            memory: fitted.
            pairs: features of good images, and what attention gives for each without itself.
        """
        return _regression(pairs)

    @classmethod
    def restore(cls, config: Config, tensors: Mapping[str, Tensor], images: int) -> Self:
        """See `Head.restore`."""
        memory, rebuilding, gaussian = stored_parts(config, tensors)
        return cls(
            cls.attention.restore(config, memory, images),
            rebuilding,
            GaussianHead.restore(config, gaussian, images),
        )

    @classmethod
    def sized(cls, config: Config) -> Self:
        """See `Head.sized`."""
        _, channels = features_of(config)
        return cls(
            cls.attention.sized(config),
            torch.empty(channels, channels),
            GaussianHead.sized(config),
        )

    def without(self, seen: Seen, index: int) -> "HaloHead":
        """Without one image: neither attention nor its place's Gaussian knows it.

        In the map, and in what others attended to, it stays: of many images a small part.
        """
        return type(self)(
            self.memory.without(seen, index), self.rebuilding, self.gaussian.without(seen, index)
        )

    def forward(self, output: HaloAEOutput, image: Tensor) -> Tensor:
        """See `Head.forward`; in standard deviations, of all channels together."""
        features = output.features.float()
        return self.gaussian.distance(softened(features - self.rebuilt(features)))

    def rebuilt(self, features: Tensor) -> Tensor:
        """Each cell out of good ones, up to a constant a place: (B, C, h, w) → the same."""
        return mapped(self.memory.attend(features, nearest=NEAREST), self.rebuilding)


class Pair(NamedTuple):
    """What is to be rebuilt of a good image, and from what; (1, C, h, w) each."""

    features: Tensor
    given: Tensor
    cells: Tensor | None = None
    """See `Seen.cells`."""


Tensors = Mapping[str, Tensor]


def stored_parts(config: Config, tensors: Tensors) -> tuple[Tensors, Tensor, Tensors]:
    """The memory's tensors, the map to features, and the Gaussian's tensors, out of a file's.

    Raises:
        KeyError, ValueError: there is no such map, or it is not of these channels.
    """
    parts: dict[str, dict[str, Tensor]] = {"memory": {}, "gaussian": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    rebuilding, (_, channels) = tensors["rebuilding"], features_of(config)
    if rebuilding.shape != (channels, channels):
        raise ValueError("the map to features is not of these channels")
    return parts["memory"], rebuilding, parts["gaussian"]


def _regression(pairs: Iterable[Pair]) -> Tensor:
    """(C, C) least squares from values to features, each about the mean of its place.

    Args:
        pairs: of good images, at least one.
    """
    count, sums, products = torch.empty(0), torch.empty(0), torch.empty(0)
    for features, given, cells in pairs:
        rows = torch.cat([given, features], dim=1)[0].flatten(1).double()
        counts = rows.new_ones(rows.shape[1]) if cells is None else cells.flatten().to(rows)
        if not len(count):
            count, sums = torch.zeros_like(counts), torch.zeros_like(rows)
            products = rows.new_zeros(len(rows), len(rows))
        rows *= counts
        count += counts
        sums += rows
        products += rows @ rows.T
    return solved(products - sums / count.clamp_min(1) @ sums.T)


def solved(products: Tensor) -> Tensor:
    """(C, C) least squares from values to features.

    Args:
        products: (2C, 2C) sums of them, values before features, each about its mean; it is changed.
    """
    channels = len(products) // 2
    given, wanted = products[:channels, :channels], products[:channels, channels:]
    # Of images that are all the same nothing varies: any map will do.
    given.diagonal().add_(PENALTY * given.diagonal().mean().clamp_min(LEAST))
    solution: Tensor = torch.linalg.solve(given, wanted).T
    return solution.float()
