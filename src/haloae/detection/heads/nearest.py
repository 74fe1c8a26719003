"""Nearest neighbour anywhere: the distance of each cell to the nearest of many good cells.

After PatchCore (Roth et al., CVPR 2022), with cells drawn at random.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Self

import torch
from torch import Tensor

from haloae.config import Config
from haloae.detection.heads.base import MANY, Head, Seen, features_of, register_head
from haloae.detection.heads.moments import Cells, averaged, distance
from haloae.network.haloae import HaloAEOutput

CELLS = 8192
"""Good cells kept, but for rounding up: as many of every image."""
AT_ONCE = 2048
"""Cells of an image that are compared with all that are kept at once: 64 MB of distances."""


@register_head("nearest")
@register_head("nearest", anywhere=True)
class NearestHead(Head):
    """A bank of good cells, averaged over 3×3 places.

    Args:
        bank: (K, C) float16.
        images: good images they were drawn from.
        source: (K,), which image each is from; where it is not known, none can be left out.
    """

    reach = 1
    bank: Tensor

    def __init__(self, bank: Tensor, images: int, source: Tensor | None = None) -> None:
        super().__init__()
        self.images = images
        self.source = source
        self.register_buffer("bank", bank)

    @classmethod
    def fit(cls, config: Config, seen: Callable[[], Iterable[Seen]]) -> Self:
        """Draw cells, as many from every image; the more images, the fewer of each."""
        maps = (Cells(averaged(each.output.features.float()), each.cells) for each in seen())
        bank, source = draw(maps, CELLS, config.seed)
        return cls(bank, int(source[-1]) + 1, source)

    @classmethod
    def restore(cls, config: Config, tensors: Mapping[str, Tensor], images: int) -> Self:
        """See `Head.restore`."""
        bank = tensors["bank"]
        if bank.ndim != 2 or not len(bank) or bank.shape[1] != features_of(config)[1]:
            raise ValueError(f"a bank of shape {tuple(bank.shape)}")
        return cls(bank, images)

    @classmethod
    def sized(cls, config: Config) -> Self:
        """See `Head.sized`."""
        (height, width), channels = features_of(config)
        cells = min(CELLS, MANY * height * width)
        return cls(torch.empty(cells, channels, dtype=torch.float16), MANY)

    def without(self, seen: Seen, index: int) -> "NearestHead":
        """The bank without one image's cells."""
        if self.source is None:
            raise ValueError("a head that was loaded no longer knows its images")
        return NearestHead(self.bank[self.source != index], self.images - 1)

    def forward(self, output: HaloAEOutput, image: Tensor) -> Tensor:
        """See `Head.forward`; in the units of the features."""
        cells = averaged(output.features.float()).permute(0, 2, 3, 1)
        bank = self.bank.float()
        lengths = bank.square().sum(1)
        nearest = torch.cat([(lengths - 2 * part @ bank.T).amin(3) for part in by_rows(cells)], 1)
        return distance(nearest + cells.square().sum(3))


def draw(maps: Iterable[Cells], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw cells of good images, as many from every image; the more images, the fewer of each.

    Args:
        maps: of each image.
        count: cells to draw, but for rounding up.
        seed: of the draw.

    Returns:
        (K, C) float16, and (K,) which image each is from.

    Raises:
        ValueError: there is no image.
    """
    generator = torch.Generator().manual_seed(seed)
    cells: list[Tensor] = []
    for each in maps:
        rows = each.rows
        order = torch.randperm(len(rows), generator=generator)[:count]
        cells.append(rows[order.to(rows.device)].half())
        share = -(-count // len(cells))
        cells = [drawn[:share].clone() for drawn in cells]
    if not cells:
        raise ValueError("a head is fitted to one image at least")
    source = torch.cat([torch.full((len(drawn),), i) for i, drawn in enumerate(cells)])
    return torch.cat(cells), source.to(cells[0].device)


def by_rows(cells: Tensor) -> tuple[Tensor, ...]:
    """(B, h, w, C) in parts of whole rows, of some `AT_ONCE` cells of an image each."""
    parts: tuple[Tensor, ...] = cells.split(max(1, AT_ONCE // cells.shape[2]), dim=1)
    return parts
