"""Halo attention over a memory of good images, in its hard form: the nearest good cell in a window.

As in HaloNet (arXiv 2103.12731), the grid is cut into blocks, and the queries of a block share the
keys of the block and of a halo around it. Here the keys are the cells of good images at these
places, and the softmax is as sharp as can be: what is left of it is the distance to the nearest
key. Features are whitened first, by one covariance over all places (docs/adr/0008).

Shape suffixes: B batch, N blocks, P = BLOCK² places of one, M images in memory, K = M · P keys of
a block, G groups of images, C channels, Q = B · P queries of a block, W = the 9 blocks of a window,
X = W · Q queries that a block's keys meet.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from haloae.config import Config
from haloae.detection.heads.base import MANY, Head, Seen, features_of, register_head
from haloae.detection.heads.moments import (
    Cells,
    check_size,
    distance,
    inverse_root,
    mapped,
    moments,
)
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
OUTSIDE = 6e4
"""First channel of a key that is of a cell which does not count, the others being 0: float16 holds
it, and it is nearest only where all of a window are such."""
GROUPS = 10
"""Groups of images in memory. Of the keys of a block, each group's nearest is a candidate: choosing
among these costs a tenth of what choosing among all keys does."""


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
        self.cells: list[Tensor | None] = []
        """See `Seen.cells`."""
        self._generator = torch.Generator().manual_seed(seed)
        self._seen = 0

    def watch(self, seen: Iterable[Seen]) -> Iterable[Seen]:
        """The same images, of which some are kept."""
        for each in seen:
            self._consider(each)
            yield each

    def _consider(self, seen: Seen) -> None:
        place = self._seen
        if place >= MEMORY:
            place = int(torch.randint(self._seen + 1, (), generator=self._generator))
        if place < MEMORY:
            self.images[place : place + 1] = [self._seen]
            self.features[place : place + 1] = [seen.output.features.half().clone()]
            self.cells[place : place + 1] = [seen.cells]
        self._seen += 1


@register_head("nearest_halo")
class NearestHaloHead(Head):
    """Whitened cells of good images, by place.

    Args:
        whitening: (C, C), a root of the inverse covariance of all places.
        memory_NKC: float16, the keys.
        images: good images behind them.
        blocks: rows and columns of them, N together; None: as many of each.
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
        blocks: tuple[int, int] | None = None,
        kept: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.images = images
        self.kept = kept
        self._missing = -memory_NKC.shape[1] % (BLOCK**2 * GROUPS)
        """Keys that the last groups lack."""
        self.blocks = blocks or (math.isqrt(len(memory_NKC)),) * 2
        """Rows and columns of blocks."""
        self.register_buffer("whitening", whitening)
        self.register_buffer("memory", memory_NKC)
        # Converted once, where it need not be small.
        self.register_buffer("keys", self._filled(memory_NKC), persistent=False)
        lengths = F.pad(memory_NKC.float().square().sum(2), (0, self._missing), value=FAR)
        self.register_buffer("lengths", lengths, persistent=False)
        is_there = not memory_NKC.is_meta  # where costs are counted, it holds no values
        self.has_outside = is_there and bool((memory_NKC[..., 0] == OUTSIDE).any())

    @classmethod
    def check(cls, config: Config) -> None:
        """See `Head.check`."""
        check_size(config)
        (height, width), _ = features_of(config)
        if height % BLOCK or width % BLOCK:
            step = config.network.stride * BLOCK
            name, sides = "image_size", f"{config.image_size}"
            if config.canvas != (config.image_size, config.image_size):
                name, sides = "both sides of view.canvas", "×".join(map(str, config.canvas))
            raise ConfigError(
                f"detection.head {config.detection.head!r} cuts the grid into blocks of {BLOCK}²: "
                f"{name} {sides} must be divisible by {step}."
            )

    @classmethod
    def fit(cls, config: Config, seen: Callable[[], Iterable[Seen]]) -> Self:
        """Sum up the covariance and draw the memory in one pass over the images."""
        memory = Memory(config.seed)
        found = moments(
            Cells(each.output.features.float(), each.cells) for each in memory.watch(seen())
        )
        covariance = found.everywhere
        covariance.diagonal().add_(RIDGE)
        whitening = inverse_root(covariance)
        blocks = [
            blocks_of(_without_outside(mapped(each.float(), whitening), cells))
            for each, cells in zip(memory.features, memory.cells, strict=True)
        ]
        keys_NKC = torch.stack(blocks, dim=2)[0].half().flatten(1, 2)
        return cls(whitening, keys_NKC, found.images, blocks=_blocks(config), kept=memory.images)

    @classmethod
    def restore(cls, config: Config, tensors: Mapping[str, Tensor], images: int) -> Self:
        """See `Head.restore`."""
        grid, channels = features_of(config)
        whitening, memory = tensors["whitening"], tensors["memory"]
        keys = memory.shape[1] if memory.ndim == 3 else 0
        if any(side % BLOCK for side in grid) or not keys or keys % BLOCK**2:
            raise ValueError("the memory is not one of whole blocks")
        if memory.shape != (math.prod(_blocks(config)), keys, channels):
            raise ValueError("the memory is not of this grid")
        if whitening.shape != (channels, channels):
            raise ValueError("the whitening is not of these channels")
        return cls(whitening, memory, images, blocks=_blocks(config))

    @classmethod
    def sized(cls, config: Config) -> Self:
        """See `Head.sized`."""
        blocks, (_, channels) = _blocks(config), features_of(config)
        keys = torch.empty(math.prod(blocks), BLOCK**2 * MEMORY, channels, dtype=torch.float16)
        return cls(torch.empty(channels, channels), keys, MANY, blocks=blocks)

    def without(self, seen: Seen, index: int) -> "NearestHaloHead":
        """Without one image's cells; of the covariance of all places it is too small a part."""
        if self.kept is None:
            raise ValueError("a head that was loaded no longer knows its images")
        others = with_parts(self)
        others.images -= 1
        if index in self.kept:
            others.lengths = self.lengths.clone()
            first = self.kept.index(index) * BLOCK**2
            others.lengths[:, first : first + BLOCK**2] = FAR
        return others

    def forward(self, output: HaloAEOutput, image: Tensor) -> Tensor:
        """See `Head.forward`; in standard deviations, of all channels together."""
        query_BNPC = blocks_of(mapped(output.features.float(), self.whitening))
        squared_NQG, _ = self._candidates(query_BNPC)
        squared_NQ = squared_NQG.amin(2) + _by_block(query_BNPC).square().sum(2)
        return self._grid(distance(squared_NQ)[:, :, None])[:, 0]

    def attend(self, features: Tensor, *, nearest: int) -> Tensor:
        """What halo attention gives for each cell: the mean of the nearest keys of its window.

        Args:
            features: (B, C, h, w) float32 of the network.
            nearest: how many keys share a query's attention, the rest has none.

        Returns:
            (B, C, h, w) float32, whitened.
        """
        squared_NQG, which_NQG = self._candidates(blocks_of(mapped(features, self.whitening)))
        chosen = squared_NQG.topk(nearest, dim=2, largest=False).indices
        which = which_NQG.gather(2, chosen)
        values = self._keys().flatten(0, 1)[which]
        if self.has_outside:  # where no key of a window counts, attention gives the mean of all
            values = torch.where(values[..., :1] == OUTSIDE, 0.0, values)
        return self._grid(values.mean(2))

    def _keys(self) -> Tensor:
        return self._filled(self.memory) if torch.compiler.is_exporting() else self.keys

    def _filled(self, memory_NKC: Tensor) -> Tensor:
        return F.pad(memory_NKC.float(), (0, 0, 0, self._missing))

    def _candidates(self, query_BNPC: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest key of each group in each block of a query's window.

        Keys are gone through once: those of a block meet the queries of the nine blocks whose
        window it is in.

        Returns:
            squared distances, less the query's own square, and which of all keys, N · K of them;
            (N, Q, W · G) each.
        """
        around_NXC = torch.cat(
            [self._neighbour(-2 * _by_block(query_BNPC), w, 0.0) for w in range(9)], dim=1
        )
        keys_NKC = self._keys()
        squared_NXK = torch.baddbmm(self.lengths[:, None], around_NXC, keys_NKC.transpose(1, 2))
        least_NXG, place_NXG = squared_NXK.unflatten(2, (GROUPS, -1)).min(3)
        size = keys_NKC.shape[1]
        first_N1G = size * torch.arange(len(keys_NKC), device=keys_NKC.device)[:, None, None]
        first_N1G = first_N1G + size // GROUPS * torch.arange(GROUPS, device=keys_NKC.device)
        # From the block that was in the window, back to the one whose window it was.
        return self._returned(least_NXG, FAR), self._returned(place_NXG + first_N1G, 0)

    def _returned(self, x_NXG: Tensor, outside: float) -> Tensor:
        x_NWQG = x_NXG.unflatten(1, (9, -1))
        return torch.cat([self._neighbour(x_NWQG[:, w], 8 - w, outside) for w in range(9)], dim=2)

    def _grid(self, x_NQC: Tensor) -> Tensor:
        """(N, Q, C) → (B, C, h, w)."""
        grid: Tensor = x_NQC.unflatten(1, (-1, BLOCK, BLOCK)).unflatten(0, self.blocks)
        return grid.permute(2, 5, 0, 3, 1, 4).flatten(4, 5).flatten(2, 3)

    def _neighbour(self, x: Tensor, which: int, outside: float) -> Tensor:
        """(N, …) → the same: of each block, one of the 9 around it, by row; itself the 5th."""
        row, column = divmod(which, 3)
        grid = x.unflatten(0, self.blocks)
        padded = F.pad(grid, (0, 0) * (grid.ndim - 2) + (1, 1, 1, 1), value=outside)
        rows, columns = self.blocks
        return padded[row : row + rows, column : column + columns].flatten(0, 1)


def _blocks(config: Config) -> tuple[int, int]:
    """Rows and columns of blocks."""
    height, width = config.grid
    return height // BLOCK, width // BLOCK


def _without_outside(keys: Tensor, cells: Tensor | None) -> Tensor:
    """(1, C, h, w) keys, those far away that do not count."""
    if cells is None:
        return keys
    far = torch.zeros_like(keys)
    far[:, 0] = OUTSIDE
    return torch.where(cells[:, None], keys, far)


def blocks_of(x: Tensor) -> Tensor:
    """(B, C, h, w) → (B, N, P, C)."""
    height, width = x.shape[2:]
    blocks: Tensor = x.unflatten(3, (width // BLOCK, BLOCK)).unflatten(2, (height // BLOCK, BLOCK))
    return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def _by_block(x_BNPC: Tensor) -> Tensor:
    """(B, N, P, C) → (N, Q, C)."""
    return x_BNPC.permute(1, 0, 2, 3).flatten(1, 2)
