"""Halo attention over a memory of good images, in its hard form: the nearest good cell in a window.

As in HaloNet, the grid is cut into blocks, and the queries of a block share the keys of the block
and of a halo around it. Here the keys are the cells of good images at these places, and the softmax
is as sharp as can be: what is left of it is the distance to the nearest key. Distances are of
Mahalanobis, under a covariance a block (docs/adr/0008).

Shape suffixes: B batch, N blocks, P = BLOCK² places of one, K keys of one = P · memory, C channels,
W = 9 blocks of a window (a block and its neighbours).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from haloae.config import Config
from haloae.detection.heads.base import Head, Seen, register_head
from haloae.detection.heads.moments import inverse_root, moments
from haloae.errors import ConfigError
from haloae.network.haloae import HaloAEOutput

BLOCK = 2
"""Side of a block of queries, in cells, and width of the halo around it."""
MEMORY = 100
"""Good images kept, at most, drawn at random."""
SHRINKAGE = 0.1
"""How far a block's covariance leans towards that of all places."""
RIDGE = 0.1
"""Added to every variance; channels that vary much have one of about 1."""
FAR = 1e30
"""Squared distance to a key that is not there."""


@register_head("nearest_halo")
class NearestHaloHead(Head):
    """Memory and metric of each block.

    Args:
        memory_NKC: float16, the keys.
        metric_NCC: inverse covariance of each block.
        lengths_NWK: squared length, under the metric of each block of the window around block N,
            of N's keys.
        images: good images that the covariances are made from.
    """

    memory: Tensor
    metric: Tensor
    lengths: Tensor
    keys: Tensor

    def __init__(
        self, memory_NKC: Tensor, metric_NCC: Tensor, lengths_NWK: Tensor, images: int
    ) -> None:
        super().__init__()
        self.images = images
        self.blocks = round(len(memory_NKC) ** 0.5)
        """Blocks a side of the grid."""
        self.kept: list[int] | None = None
        """Which images the memory is of, in its order; None where it is not known any more."""
        self.mean = torch.empty(0)
        """(places, C), known like `kept`."""
        self.register_buffer("memory", memory_NKC)
        # Converted once, where it need not be small.
        self.register_buffer("keys", memory_NKC.float(), persistent=False)
        self.register_buffer("metric", metric_NCC)
        self.register_buffer("lengths", lengths_NWK)

    @classmethod
    def fit(cls, config: Config, seen: Callable[[], Iterable[Seen]]) -> Self:
        """Sum up covariances and draw the memory in one pass over the images."""
        side = config.image_size // config.network.stride
        _check(side)
        generator = torch.Generator().manual_seed(config.seed)
        kept: list[tuple[int, Tensor]] = []

        def watched() -> Iterator[Seen]:
            for index, each in enumerate(seen()):
                place = index
                if index >= MEMORY:  # algorithm R: every image is kept with the same probability
                    place = int(torch.randint(index + 1, (), generator=generator))
                if place < MEMORY:
                    cells = (index, blocks_of(each.output.features)[0].half().clone())
                    kept[place : place + 1] = [cells]
                yield each

        found = moments(watched, lambda features: features)
        places = found.covariance.unflatten(0, (side // BLOCK, BLOCK, side // BLOCK, BLOCK))
        covariance_NCC = places.mean((1, 3)).flatten(0, 1)
        everywhere = found.covariance.mean(0)
        mixed = (1 - SHRINKAGE) * covariance_NCC + SHRINKAGE * everywhere
        mixed.diagonal(dim1=1, dim2=2).add_(RIDGE)
        root_NCC = inverse_root(mixed)
        memory_NKC = torch.stack([cells for _, cells in kept], dim=2).flatten(1, 2)
        head = cls(
            memory_NKC,
            root_NCC.transpose(1, 2) @ root_NCC,
            lengths(memory_NKC, root_NCC),
            found.images,
        )
        head.kept = [index for index, _ in kept]
        head.mean = found.mean
        return head

    @classmethod
    def restore(cls, config: Config, tensors: Mapping[str, Tensor], images: int) -> Self:
        """See `Head.restore`."""
        side = config.image_size // config.network.stride
        _check(side)
        blocks = (side // BLOCK) ** 2
        memory, metric, long = (tensors[name] for name in ("memory", "metric", "lengths"))
        keys, channels = memory.shape[1:]
        if (
            len(memory) != blocks
            or metric.shape != (blocks, channels, channels)
            or long.shape != (blocks, 9, keys)
        ):
            raise ValueError("memory and metric are not those of this grid")
        return cls(memory, metric, long, images)

    def without(self, seen: Seen, index: int) -> "NearestHaloHead":
        """Without one image, in the memory and, exactly (Woodbury), in the covariances.

        With its own deviations in the covariances, an image of few looks far too usual.
        """
        if self.kept is None:
            raise ValueError("a head that was loaded no longer knows its images")
        n = self.images
        own = (1 - SHRINKAGE) * n / (n - 1) ** 2 / BLOCK**2
        side = BLOCK * self.blocks
        mean = self.mean.T.unflatten(1, (side, side))
        deviation_NPC = blocks_of(seen.output.features.float() - mean)[0]
        seen_NCP = self.metric @ deviation_NPC.transpose(1, 2)
        identity = torch.eye(BLOCK**2, device=mean.device)
        rest_NPP = torch.linalg.inv(identity / own - deviation_NPC @ seen_NCP)
        # What is added to the metric, as U Uᵀ; the little more keeps it positive definite.
        rest_NPP = (rest_NPP + rest_NPP.transpose(1, 2)) / 2 + 1e-6 * identity
        added_NCP = seen_NCP @ torch.linalg.cholesky(rest_NPP)
        long = self.lengths + lengths(self.keys, added_NCP.transpose(1, 2))
        if index in self.kept:
            of_image = torch.arange(long.shape[2], device=long.device) % len(self.kept)
            long[:, :, of_image == self.kept.index(index)] = FAR
        metric = self.metric + added_NCP @ added_NCP.transpose(1, 2)
        return NearestHaloHead(self.memory, metric, long, n - 1)

    def forward(self, output: HaloAEOutput, image: Tensor) -> Tensor:
        """See `Head.forward`; in units of standard deviations, all channels together.

        Keys are gone through once: those of a block meet the queries of the nine blocks whose
        window it is in.
        """
        keys_NKC = self.memory.float() if torch.compiler.is_exporting() else self.keys
        query_BNPC = blocks_of(output.features.float())
        batch = query_BNPC.shape[0]
        query_NQC = query_BNPC.permute(1, 0, 2, 3).flatten(1, 2)
        turned_NQC = query_NQC @ self.metric
        around_NWQC = self._neighbours(turned_NQC, 0.0)
        products_NKW = keys_NKC @ around_NWQC.flatten(1, 2).transpose(1, 2)
        products_NKWQ = products_NKW.unflatten(2, (9, -1))
        nearest_NWQ = (self.lengths.transpose(1, 2)[..., None] - 2 * products_NKWQ).amin(1)
        # From the block that was in the window, back to the one whose window it was.
        least_NWQ = torch.stack(
            [self._neighbours(nearest_NWQ[:, w], FAR)[:, 8 - w] for w in range(9)], dim=1
        )
        squared_NQ = (query_NQC * turned_NQC).sum(2) + least_NWQ.amin(1)
        distance = squared_NQ.clamp_min(0).sqrt()
        grid: Tensor = distance.view(self.blocks, self.blocks, batch, BLOCK, BLOCK)
        return grid.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)

    def _neighbours(self, x: Tensor, outside: float) -> Tensor:
        """(N, …) → (N, 9, …): of each block itself and those around it, row by row."""
        grid = x.unflatten(0, (self.blocks, self.blocks))
        padded = F.pad(grid, (0, 0) * (grid.ndim - 2) + (1, 1, 1, 1), value=outside)
        shifted = [
            padded[row : row + self.blocks, column : column + self.blocks]
            for row in range(3)
            for column in range(3)
        ]
        return torch.stack(shifted, dim=2).flatten(0, 1)


def blocks_of(x: Tensor) -> Tensor:
    """(B, C, h, w) → (B, N, P, C)."""
    height, width = x.shape[2:]
    blocks: Tensor = x.unflatten(3, (width // BLOCK, BLOCK)).unflatten(2, (height // BLOCK, BLOCK))
    return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def lengths(keys_NKC: Tensor, roots_NRC: Tensor) -> Tensor:
    """(N, 9, K): |R k|² of each block's keys, with R of the block itself and of those around it."""
    blocks = round(len(keys_NKC) ** 0.5)
    keys = keys_NKC.float()
    grid = F.pad(roots_NRC.unflatten(0, (blocks, blocks)), (0, 0, 0, 0, 1, 1, 1, 1))
    found = []
    for row in range(3):
        for column in range(3):
            roots = grid[row : row + blocks, column : column + blocks].flatten(0, 1)
            found.append((keys @ roots.transpose(1, 2)).square().sum(2))
    return torch.stack(found, dim=1)


def _check(side: int) -> None:
    if side % BLOCK:
        raise ConfigError(
            f"nearest_halo needs a grid that blocks of {BLOCK} divide, and the grid is {side}²: "
            f"change image_size."
        )
