"""Heads whose statistics are of all places together: for what has no place of its own.

Tiles of a web or a slide, parts that lie anyhow, images of many sizes. Each is the form of the head
of its name where `view.place` is ``anywhere`` (docs/adr/0011).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import NamedTuple, Self

import torch
from torch import Tensor

from haloae.config import Config
from haloae.detection.heads.base import MANY, Head, Seen, features_of, register_head
from haloae.detection.heads.gaussian import RIDGE
from haloae.detection.heads.halo import NEAREST, Pair, solved, stored_parts
from haloae.detection.heads.halo import RIDGE as RESIDUAL_RIDGE
from haloae.detection.heads.moments import Cells, averaged, distance, inverse_root, mapped, softened
from haloae.detection.heads.nearest import CELLS, by_rows, draw
from haloae.detection.heads.nearest_halo import FAR
from haloae.detection.heads.nearest_halo import RIDGE as WHITENING_RIDGE
from haloae.network.haloae import HaloAEOutput
from haloae.network.lean import with_parts

FEW = 30
"""From this many good images on, one is a small part of what their residuals have in common."""
GROUP = 32
"""Keys of which the nearest alone is looked at first."""
FITTING_CELLS = 2**18
"""Cells that what follows attention is fitted to, of all images together, at most."""


class Sums(NamedTuple):
    """Of the cells of good images, float64."""

    cells: int
    total: Tensor
    """(C,)."""
    products: Tensor
    """(C, C)."""

    @classmethod
    def of(cls, cells: Cells) -> Self:
        """Of those of an image."""
        rows = cells.rows.double()
        return cls(len(rows), rows.sum(0), rows.T @ rows)

    def combined(self, other: "Sums", sign: int = 1) -> "Sums":
        """With others' added, or taken away."""
        return Sums(
            self.cells + sign * other.cells,
            self.total + sign * other.total,
            self.products + sign * other.products,
        )

    def mean_and_root(self, ridge: float) -> tuple[Tensor, Tensor]:
        """(C,) and (C, C), a root of the inverse covariance with a ridge; float32."""
        mean = self.total / self.cells
        covariance = self.products / self.cells - mean[:, None] * mean
        covariance.diagonal().add_(ridge)
        return mean.float(), inverse_root(covariance).float()


def _summed(maps: Iterable[Cells]) -> tuple[Sums, int]:
    """Of all images, and how many there are."""
    total: Sums | None = None
    count = 0
    for each in maps:
        sums = Sums.of(each)
        total = sums if total is None else total.combined(sums)
        count += 1
    if total is None:
        raise ValueError("a head is fitted to one image at least")
    return total, count


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
        sums, images = _summed(_averaged(each) for each in seen())
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


@register_head("nearest_halo", anywhere=True)
class SharedMemoryHead(Head):
    """Whitened cells of good images, drawn from all places: the memory that all windows share.

    Args:
        whitening: (C, C), a root of the inverse covariance of all cells.
        keys: (K, C) float16.
        images: good images behind them.
        source: (K,), which image each is from; where it is not known, none can be left out.
    """

    reach = 0
    whitening: Tensor
    keys: Tensor
    lengths: Tensor

    def __init__(
        self, whitening: Tensor, keys: Tensor, images: int, source: Tensor | None = None
    ) -> None:
        super().__init__()
        self.images = images
        self.source = source
        self.register_buffer("whitening", whitening)
        self.register_buffer("keys", keys)
        self.register_buffer("lengths", keys.float().square().sum(1), persistent=False)

    @classmethod
    def fit(cls, config: Config, seen: Callable[[], Iterable[Seen]]) -> Self:
        """Sum up the covariance, then draw the memory."""
        sums, images = _summed(Cells(each.output.features.float(), each.cells) for each in seen())
        _, whitening = sums.mean_and_root(WHITENING_RIDGE)
        maps = (
            Cells(mapped(each.output.features.float(), whitening), each.cells) for each in seen()
        )
        keys, source = draw(maps, CELLS, config.seed)
        return cls(whitening, keys, images, source)

    @classmethod
    def restore(cls, config: Config, tensors: Mapping[str, Tensor], images: int) -> Self:
        """See `Head.restore`."""
        _, channels = features_of(config)
        whitening, keys = tensors["whitening"], tensors["keys"]
        if keys.ndim != 2 or len(keys) < NEAREST or keys.shape[1] != channels:
            raise ValueError(f"a memory of shape {tuple(keys.shape)}")
        if whitening.shape != (channels, channels):
            raise ValueError("the whitening is not of these channels")
        return cls(whitening, keys, images)

    @classmethod
    def sized(cls, config: Config) -> Self:
        """See `Head.sized`."""
        _, channels = features_of(config)
        keys = torch.empty(CELLS, channels, dtype=torch.float16)
        return cls(torch.empty(channels, channels), keys, MANY)

    def without(self, seen: Seen, index: int) -> "SharedMemoryHead":
        """Without one image's cells; of the covariance of all they are too small a part."""
        if self.source is None:
            raise ValueError("a head that was loaded no longer knows its images")
        others = with_parts(self)
        others.images -= 1
        others.lengths = self.lengths.masked_fill(self.source == index, FAR)
        return others

    def forward(self, output: HaloAEOutput, image: Tensor) -> Tensor:
        """See `Head.forward`; in standard deviations, of all channels together."""
        queries = self._queries(output.features.float())
        squared = torch.cat([self._squared(part).amin(3) for part in by_rows(queries)], 1)
        return distance(squared + queries.square().sum(3))

    def attend(self, features: Tensor) -> Tensor:
        """What attention gives for each cell: the mean of the nearest keys.

        Args:
            features: (B, C, h, w) float32 of the network.

        Returns:
            (B, C, h, w) float32, whitened.
        """
        keys = self.keys.float()
        parts = [
            keys[lowest(self._squared(part), NEAREST)].mean(3)
            for part in by_rows(self._queries(features))
        ]
        return torch.cat(parts, 1).movedim(-1, 1)

    def _queries(self, features: Tensor) -> Tensor:
        """(B, h, w, C), whitened."""
        return mapped(features, self.whitening).movedim(1, -1)

    def _squared(self, queries: Tensor) -> Tensor:
        """(B, h, w, K) squared distances to the keys, less the query's own square."""
        rows = queries.flatten(0, 2)
        flat = torch.addmm(self.lengths, rows, self.keys.float().T, alpha=-2)
        squared: Tensor = flat.unflatten(0, queries.shape[:3])
        return squared


def lowest(values: Tensor, count: int) -> Tensor:
    """Where the lowest values are: (..., K) → (..., count), the lowest first.

    As `Tensor.topk`, in a third of its time: none is lower than the lowest of its group, so they
    are in the groups whose lowest are lowest.
    """
    grouped = values.shape[-1] // GROUP * GROUP
    if grouped < count * GROUP:
        return values.topk(count, largest=False).indices
    groups = values[..., :grouped].unflatten(-1, (-1, GROUP))
    best = groups.amin(-1).topk(count, largest=False).indices
    taken = groups.gather(-2, best[..., None].expand(*best.shape, GROUP)).flatten(-2)
    places = best[..., None] * GROUP + torch.arange(GROUP, device=values.device)
    rest = torch.arange(grouped, values.shape[-1], device=values.device)
    places = torch.cat([places.flatten(-2), rest.expand(*values.shape[:-1], -1)], -1)
    taken = torch.cat([taken, values[..., grouped:]], -1)
    return places.gather(-1, taken.topk(count, largest=False).indices)


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
        both, _ = _summed(
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
