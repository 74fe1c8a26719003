"""Where the tiles of a huge image lie, which cells each of them delivers, and what that costs."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from haloae.config import Config
from haloae.errors import ImageError
from haloae.slides.reader import Slide

COLUMNS = 16
"""Tiles go down the image in bands so wide: what neighbours share is decoded once."""
MOST_COST = 1.6
"""Pixels computed for one that is delivered."""
Box = tuple[int, int, int, int]
"""Left, top, width, height."""


class Cut(NamedTuple):
    """A tile along one side of the image."""

    start: int
    """In pixels."""
    cells: slice
    """Of the whole map: those that it delivers."""


@dataclass(frozen=True)
class Tiling:
    """Equal tiles that overlap, whose delivered cells cover an image without gap or overlap.

    All in pixels at the scale that the image is scored at.
    """

    side: int
    overlap: int
    """That two neighbours share, at least."""
    cell: int
    """Side of a cell of the map."""
    scale: float
    width: int
    """Of the image."""
    height: int

    @classmethod
    def of(cls, config: Config, slide: Slide) -> Self:
        """As a detector was fitted to see images.

        Raises:
            ImageError: a tile is larger than the image.
        """
        cell = config.network.stride
        scale = 1.0
        # An eighth, whole cells on either side.
        overlap = config.image_size // (16 * cell) * 2 * cell
        width, height = (max(1, round(side * scale)) for side in slide.levels[0][:2])
        if config.image_size > min(width, height):
            raise ImageError(
                f"{slide.name}: is {width}×{height} pixels, and a tile of this model has "
                f"{config.image_size}×{config.image_size}: score it with `haloae predict`."
            )
        return cls(config.image_size, overlap, cell, scale, width, height)

    @cached_property
    def rows(self) -> list[Cut]:
        """From top to bottom."""
        return self._cuts(self.height)

    @cached_property
    def columns(self) -> list[Cut]:
        """From left to right."""
        return self._cuts(self.width)

    def _cuts(self, side: int) -> list[Cut]:
        side = -(-side // self.cell) * self.cell
        starts = [*range(0, side - self.side, self.side - self.overlap), side - self.side]
        middles = [
            (there + (here + self.side - there) // 2) // self.cell
            for here, there in pairwise(starts)
        ]
        edges = zip([0, *middles], [*middles, side // self.cell], strict=True)
        return [Cut(start, slice(*ends)) for start, ends in zip(starts, edges, strict=True)]

    @property
    def count(self) -> int:
        """Of tiles."""
        return len(self.rows) * len(self.columns)

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of the map of the whole image."""
        return self.rows[-1].cells.stop, self.columns[-1].cells.stop

    @property
    def cost(self) -> float:
        """Pixels computed for one that is delivered, away from the image's edges."""
        return (self.side / (self.side - self.overlap)) ** 2

    @property
    def pixels(self) -> float:
        """Side of a cell in pixels of the slide itself."""
        return self.cell / self.scale

    def start(self, number: int) -> tuple[int, int]:
        """Left and top edge of a tile."""
        row, column = divmod(number, len(self.columns))
        return self.columns[column].start, self.rows[row].start

    def cells_of(self, number: int) -> tuple[slice, slice]:
        """Rows and columns of the whole map that a tile delivers."""
        row, column = divmod(number, len(self.columns))
        return self.rows[row].cells, self.columns[column].cells

    def delivered(self, number: int, tile_map: NDArray[np.float32]) -> NDArray[np.float32]:
        """The cells that a tile delivers, of its map, (side / cell, side / cell)."""
        left, top = (edge // self.cell for edge in self.start(number))
        rows, columns = self.cells_of(number)
        return tile_map[
            rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]

    def box(self, number: int) -> Box:
        """What a tile delivers, in pixels of the slide itself."""
        return self.box_of(*self.cells_of(number))

    def box_of(self, rows: slice, columns: slice) -> Box:
        """Where cells lie, in pixels of the slide itself, within it."""
        wide, high = (round(side / self.scale) for side in (self.width, self.height))
        left, right = (
            min(wide, round(edge * self.pixels)) for edge in (columns.start, columns.stop)
        )
        top, bottom = (min(high, round(edge * self.pixels)) for edge in (rows.start, rows.stop))
        return left, top, right - left, bottom - top

    def with_content(self, mask: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Numbers of the tiles that deliver any content, in the order that they are to be read in.

        Args:
            mask: of the whole image, of any size.
        """
        wide = self._any_within(mask, self.columns, self.width, axis=1)
        found = self._any_within(wide, self.rows, self.height, axis=0)
        rows, columns = np.nonzero(found)
        order = np.lexsort((columns, rows, columns // COLUMNS))
        return np.asarray((rows * len(self.columns) + columns)[order])

    def _any_within(
        self, mask: NDArray[np.bool_], cuts: list[Cut], side: int, *, axis: int
    ) -> NDArray[np.bool_]:
        """Whether any is True within what each tile delivers of an axis."""
        cells = np.array([(cut.cells.start, cut.cells.stop) for cut in cuts])
        edges = cells * (self.cell * mask.shape[axis] / side)
        first = np.minimum(np.floor(edges[:, 0] + 1e-9).astype(int), mask.shape[axis] - 1)
        last = np.clip(np.ceil(edges[:, 1] - 1e-9).astype(int), first + 1, mask.shape[axis])
        sums = np.insert(np.cumsum(mask, axis=axis, dtype=np.int32), 0, 0, axis=axis)
        return np.asarray(np.take(sums, last, axis) > np.take(sums, first, axis))

    def as_values(self) -> dict[str, Any]:
        """What tells one from another, as JSON holds it."""
        names = ("side", "overlap", "cell", "scale", "width", "height")
        return {name: getattr(self, name) for name in names}
