"""Halo attention over a memory of good images, in its hard form: the nearest good cell in a window.

As in HaloNet (arXiv 2103.12731), the grid is cut into blocks, and the queries of a block share the
keys of the block and of a halo around it. Here the keys are the cells of good images at these
places, and the softmax is as sharp as can be: what is left of it is the distance to the nearest
key. Features are whitened first, by one covariance over all places (docs/adr/0008).

Shape suffixes: B batch, N blocks, P = BLOCK² places of one, K keys of one = P · memory,
C channels, Q = B · P queries of one, W = the 9 blocks of a window.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from haloae.config import Config
from haloae.detection.heads.base import MANY, Head, Seen, features_of, register_head
from haloae.detection.heads.moments import check_size, distance, inverse_root, moments
from haloae.errors import ConfigError
from haloae.network.haloae import HaloAEOutput
from haloae.network.lean import with_parts

BLOCK = 2
"""Side of a block of queries, in cells, and width of the halo around it."""
MEMORY = 100
"""Good images kept, at most, drawn at random."""
RIDGE = 0.01
"""Added to every variance; channels that vary much have one of about 1."""
FAR = 1e30
"""Squared distance to a key that is not there."""


class Memory:
    """Draws good images as they come by, each with the same probability (algorithm R).

    Args:
        seed: of the draw.
    """

    def __init__(self, seed: int) -> None:
        self.images: list[int] = []
        """Which were kept."""
        self.features: list[Tensor] = []
        """(1, C, h, w) float16 each."""
        self._generator = torch.Generator().manual_seed(seed)
        self._seen = 0

    def watch(self, seen: Iterable[Seen]) -> Iterable[Seen]:
        """The same images, of which some are kept."""
        for each in seen:
            self._consider(each.output.features)
            yield each

    def _consider(self, features: Tensor) -> None:
        place = self._seen
        if place >= MEMORY:
            place = int(torch.randint(self._seen + 1, (), generator=self._generator))
        if place < MEMORY:
            self.images[place : place + 1] = [self._seen]
            self.features[place : place + 1] = [features.half().clone()]
        self._seen += 1


@register_head("nearest_halo")
class NearestHaloHead(Head):
    """Whitened cells of good images, by place.

    Args:
        whitening: (C, C), a root of the inverse covariance of all places.
        memory_NKC: float16, the keys.
        images: good images behind them.
        kept: which of them the memory holds; None where that is not known any more.
    """

    whitening: Tensor
    memory: Tensor
    keys: Tensor
    lengths: Tensor

    def __init__(
        self,
        whitening: Tensor,
        memory_NKC: Tensor,
        images: int,
        *,
        kept: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.images = images
        self.kept = kept
        self.blocks = round(len(memory_NKC) ** 0.5)
        """Blocks a side of the grid."""
        self.register_buffer("whitening", whitening)
        self.register_buffer("memory", memory_NKC)
        # Converted once, where it need not be small.
        self.register_buffer("keys", memory_NKC.float(), persistent=False)
        self.register_buffer("lengths", self.keys.square().sum(2), persistent=False)

    @classmethod
    def check(cls, config: Config) -> None:
        """See `Head.check`."""
        check_size(config)
        side, _ = features_of(config)
        if side % BLOCK:
            step = config.network.stride * BLOCK
            raise ConfigError(
                f"detection.head {config.detection.head!r} cuts the grid into blocks of {BLOCK}²: "
                f"image_size {config.image_size} must be divisible by {step}."
            )

    @classmethod
    def fit(cls, config: Config, seen: Callable[[], Iterable[Seen]]) -> Self:
        """Sum up the covariance and draw the memory in one pass over the images."""
        memory = Memory(config.seed)
        found = moments(lambda: memory.watch(seen()), lambda features: features)
        covariance = found.covariance.mean(0)
        covariance.diagonal().add_(RIDGE)
        whitening = inverse_root(covariance)
        blocks = [blocks_of(_whitened(each.float(), whitening)) for each in memory.features]
        keys_NKC = torch.stack(blocks, dim=3)[0].half().flatten(1, 2)
        return cls(whitening, keys_NKC, found.images, kept=memory.images)

    @classmethod
    def restore(cls, config: Config, tensors: Mapping[str, Tensor], images: int) -> Self:
        """See `Head.restore`."""
        side, channels = features_of(config)
        whitening, memory = tensors["whitening"], tensors["memory"]
        keys = memory.shape[1] if memory.ndim == 3 else 0
        if side % BLOCK or not keys or keys % BLOCK**2:
            raise ValueError("the memory is not one of whole blocks")
        if memory.shape != ((side // BLOCK) ** 2, keys, channels):
            raise ValueError("the memory is not of this grid")
        if whitening.shape != (channels, channels):
            raise ValueError("the whitening is not of these channels")
        return cls(whitening, memory, images)

    @classmethod
    def sized(cls, config: Config) -> Self:
        """See `Head.sized`."""
        side, channels = features_of(config)
        keys = torch.empty((side // BLOCK) ** 2, BLOCK**2 * MEMORY, channels, dtype=torch.float16)
        return cls(torch.empty(channels, channels), keys, MANY)

    def without(self, seen: Seen, index: int) -> "NearestHaloHead":
        """Without one image's cells; of the covariance of all places it is too small a part."""
        if self.kept is None:
            raise ValueError("a head that was loaded no longer knows its images")
        others = with_parts(self)
        others.images -= 1
        if index in self.kept:
            others.lengths = self.lengths.clone()
            others.lengths[:, self.kept.index(index) :: len(self.kept)] = FAR
        return others

    def forward(self, output: HaloAEOutput, image: Tensor) -> Tensor:
        """See `Head.forward`; in standard deviations, of all channels together.

        Keys are gone through once: those of a block meet the queries of the nine blocks whose
        window it is in.
        """
        keys_NKC = self.memory.float() if torch.compiler.is_exporting() else self.keys
        query_BNPC = blocks_of(_whitened(output.features.float(), self.whitening))
        query_NQC = query_BNPC.permute(1, 0, 2, 3).flatten(1, 2)
        around_NXC = torch.cat([self._neighbour(query_NQC, w, 0.0) for w in range(9)], dim=1)
        products_NKX = keys_NKC @ around_NXC.transpose(1, 2)
        nearest_NX = (self.lengths[:, :, None] - 2 * products_NKX).amin(1)
        nearest_NWQ = nearest_NX.unflatten(1, (9, -1))
        # From the block that was in the window, back to the one whose window it was.
        least_NWQ = torch.stack(
            [self._neighbour(nearest_NWQ[:, w], 8 - w, FAR) for w in range(9)], dim=1
        )
        squared_NQ = query_NQC.square().sum(2) + least_NWQ.amin(1)
        grid: Tensor = distance(squared_NQ).view(
            self.blocks, self.blocks, query_BNPC.shape[0], BLOCK, BLOCK
        )
        return grid.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)

    def _neighbour(self, x: Tensor, which: int, outside: float) -> Tensor:
        """(N, …) → the same: of each block, one of the 9 around it, by row; itself the 5th."""
        row, column = divmod(which, 3)
        grid = x.unflatten(0, (self.blocks, self.blocks))
        padded = F.pad(grid, (0, 0) * (grid.ndim - 2) + (1, 1, 1, 1), value=outside)
        return padded[row : row + self.blocks, column : column + self.blocks].flatten(0, 1)


def blocks_of(x: Tensor) -> Tensor:
    """(B, C, h, w) → (B, N, P, C)."""
    height, width = x.shape[2:]
    blocks: Tensor = x.unflatten(3, (width // BLOCK, BLOCK)).unflatten(2, (height // BLOCK, BLOCK))
    return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def _whitened(features: Tensor, whitening: Tensor) -> Tensor:
    """(B, C, h, w) → the same, of variance 1 in every direction."""
    return F.conv2d(features, whitening[:, :, None, None])
