"""The memory that all windows share, where what is seen has no place of its own."""

from collections.abc import Callable, Iterable, Mapping
from typing import Self

import torch
from torch import Tensor

from haloae.config import Config
from haloae.detection.heads.base import MANY, Head, Seen, features_of, register_head
from haloae.detection.heads.halo import NEAREST
from haloae.detection.heads.moments import Cells, distance, mapped, summed
from haloae.detection.heads.nearest import CELLS, by_rows, draw
from haloae.detection.heads.nearest_halo import FAR, RIDGE
from haloae.network.haloae import HaloAEOutput
from haloae.network.lean import with_parts

GROUP = 32
"""Keys of which the nearest alone is looked at first."""


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
        sums, images = summed(Cells(each.output.features.float(), each.cells) for each in seen())
        _, whitening = sums.mean_and_root(RIDGE)
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

    As `Tensor.topk`, which sorts more: none is lower than the lowest of its group, so they are in
    the groups whose lowest are lowest.
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
