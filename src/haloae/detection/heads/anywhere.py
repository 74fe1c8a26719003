"""Heads whose statistics are of all places together: for what has no place of its own.

Tiles of a web or a slide, parts that lie anyhow, images of many sizes. Each is the form of the head
of its name where `view.place` is ``anywhere`` (docs/adr/0011).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Self

import torch
from torch import Tensor

from haloae.config import Config
from haloae.detection.heads.base import MANY, Head, Seen, features_of, register_head
from haloae.detection.heads.gaussian import RIDGE
from haloae.detection.heads.halo import RIDGE as RESIDUAL_RIDGE
from haloae.detection.heads.halo import Pair, solved, stored_parts
from haloae.detection.heads.moments import Cells, Sums, averaged, mapped, softened, summed
from haloae.detection.heads.shared_memory import SharedMemoryHead
from haloae.network.haloae import HaloAEOutput
from haloae.network.lean import with_parts

FEW = 30
"""From this many good images on, one is a small part of what their residuals have in common."""
FITTING_CELLS = 2**18
"""Cells that what follows attention is fitted to, of all images together, at most."""


@register_head("gaussian", anywhere=True)
class SharedGaussianHead(Head):
    """One mean and one covariance of cells averaged over 3×3.

    Args:
        mean: (C,).
        root: (C, C) of the inverse covariance.
        images: good images behind them.
        sums: that they were made from, where an image is to be left out again.
    """

    reach = 1
    mean: Tensor
    root: Tensor

    def __init__(self, mean: Tensor, root: Tensor, images: int, sums: Sums | None = None) -> None:
        super().__init__()
        self.images = images
        self.sums = sums
        self.register_buffer("mean", mean)
        self.register_buffer("root", root)

    @classmethod
    def fit(cls, config: Config, seen: Callable[[], Iterable[Seen]]) -> Self:
        """See `Head.fit`."""
        sums, images = summed(_averaged(each) for each in seen())
        return cls(*sums.mean_and_root(RIDGE), images, sums)

    @classmethod
    def restore(cls, config: Config, tensors: Mapping[str, Tensor], images: int) -> Self:
        """See `Head.restore`."""
        _, channels = features_of(config)
        mean, root = tensors["mean"], tensors["root"]
        if mean.shape != (channels,) or root.shape != (channels, channels):
            raise ValueError("the Gaussian is not one of these channels")
        return cls(mean, root, images)

    @classmethod
    def sized(cls, config: Config) -> Self:
        """See `Head.sized`."""
        _, channels = features_of(config)
        return cls(torch.empty(channels), torch.empty(channels, channels), MANY)

    def without(self, seen: Seen, index: int) -> "SharedGaussianHead":
        """The Gaussian of the other images' cells."""
        if self.sums is None:
            raise ValueError("a head that was loaded no longer knows its sums")
        others = self.sums.combined(Sums.of(_averaged(seen)), -1)
        return SharedGaussianHead(*others.mean_and_root(RIDGE), self.images - 1)

    def forward(self, output: HaloAEOutput, image: Tensor) -> Tensor:
        """See `Head.forward`; in units of standard deviations, all channels together."""
        return self.distance(averaged(output.features.float()))

    def distance(self, x: Tensor) -> Tensor:
        """Mahalanobis distance of each cell from the mean: (B, C, h, w) → (B, h, w)."""
        whitened = mapped(x - self.mean[:, None, None], self.root)
        return whitened.square().sum(1).sqrt()


@register_head("halo", anywhere=True)
class SharedHaloHead(Head):
    """Each cell is rebuilt from the nearest in the shared memory; one Gaussian judges the rest.

    Args:
        memory: fitted.
        rebuilding: (C, C), from a whitened cell to a cell of features, less a constant.
        gaussian: of the residuals of good images.
        own: sums of each image's residuals, where they are few.
    """

    reach = 1
    rebuilding: Tensor

    def __init__(
        self,
        memory: SharedMemoryHead,
        rebuilding: Tensor,
        gaussian: SharedGaussianHead,
        own: Sequence[Sums] = (),
    ) -> None:
        super().__init__()
        self.images = gaussian.images
        self.memory = memory
        self.own = own
        self.register_buffer("rebuilding", rebuilding)
        self.gaussian = gaussian

    @classmethod
    def fit(cls, config: Config, seen: Callable[[], Iterable[Seen]]) -> Self:
        """Fit the memory, then the map and the Gaussian to a part of each image."""
        memory = SharedMemoryHead.fit(config, seen)
        pairs: list[Pair] = []
        generator = torch.Generator().manual_seed(config.seed)
        for index, each in enumerate(seen()):
            part, cells = _window(each, FITTING_CELLS // memory.images, generator)
            given = memory.without(each, index).attend(part.float())
            pairs.append(Pair(part.half(), given.half(), cells))
        both, _ = summed(
            Cells(torch.cat([each.given, each.features], 1).float(), each.cells) for each in pairs
        )
        rebuilding = solved(both.products - both.total[:, None] * both.total / both.cells)
        own = [
            Sums.of(
                Cells(
                    softened(each.features.float() - mapped(each.given.float(), rebuilding)),
                    each.cells,
                )
            )
            for each in pairs
        ]
        sums = reduce(Sums.combined, own)
        gaussian = SharedGaussianHead(*sums.mean_and_root(RESIDUAL_RIDGE), len(own), sums)
        return cls(memory, rebuilding, gaussian, own if len(own) < FEW else ())

    @classmethod
    def restore(cls, config: Config, tensors: Mapping[str, Tensor], images: int) -> Self:
        """See `Head.restore`."""
        memory, rebuilding, gaussian = stored_parts(config, tensors)
        return cls(
            SharedMemoryHead.restore(config, memory, images),
            rebuilding,
            SharedGaussianHead.restore(config, gaussian, images),
        )

    @classmethod
    def sized(cls, config: Config) -> Self:
        """See `Head.sized`."""
        _, channels = features_of(config)
        return cls(
            SharedMemoryHead.sized(config),
            torch.empty(channels, channels),
            SharedGaussianHead.sized(config),
        )

    def without(self, seen: Seen, index: int) -> "SharedHaloHead":
        """Attention without one image, and, where they are few, the Gaussian of the others."""
        gaussian = self.gaussian
        if self.own and gaussian.sums is not None:
            sums = gaussian.sums.combined(self.own[index], -1)
            gaussian = SharedGaussianHead(*sums.mean_and_root(RESIDUAL_RIDGE), self.images - 1)
        others = with_parts(self, memory=self.memory.without(seen, index), gaussian=gaussian)
        others.images -= 1
        return others

    def forward(self, output: HaloAEOutput, image: Tensor) -> Tensor:
        """See `Head.forward`; in standard deviations, of all channels together."""
        features = output.features.float()
        rebuilt = mapped(self.memory.attend(features), self.rebuilding)
        return self.gaussian.distance(softened(features - rebuilt))


def _averaged(seen: Seen) -> Cells:
    return Cells(averaged(seen.output.features.float()), seen.cells)


def _window(seen: Seen, cells: int, generator: torch.Generator) -> Cells:
    """A part of an image's features, of about so many cells side by side, drawn at random.

    Where not all cells count, it is drawn about one that does.
    """
    features = seen.output.features
    batch, _, height, width = features.shape
    side = max(1, round((cells / batch) ** 0.5))
    rows, columns = min(side, height), min(max(side, side**2 // height), width)
    top, left = (
        int(torch.randint(most - part + 1, (), generator=generator))
        for most, part in ((height, rows), (width, columns))
    )
    if seen.cells is not None:
        counted = seen.cells[0].nonzero()
        chosen = int(torch.randint(len(counted), (), generator=generator))
        middle_row, middle_column = counted[chosen].tolist()
        top = min(max(middle_row - rows // 2, 0), height - rows)
        left = min(max(middle_column - columns // 2, 0), width - columns)
    place = (..., slice(top, top + rows), slice(left, left + columns))
    return Cells(features[place], None if seen.cells is None else seen.cells[place])
