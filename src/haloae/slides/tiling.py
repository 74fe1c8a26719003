"""Where the tiles of a huge image lie, which cells each of them delivers, and what that costs."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from haloae.config import Config
from haloae.data.views import View, whole_steps
from haloae.errors import ConfigError, ImageError
from haloae.slides.reader import Slide

COLUMNS = 4096
"""Pixels: tiles go down the image in bands so wide; what neighbours share is decoded once."""
Box = tuple[int, int, int, int]
"""Left, top, width, height."""


class Cut(NamedTuple):
    """A tile along one side of the image."""

    start: int
    """In pixels; before the image's own first one, where it is surrounded."""
    cells: slice
    """Of the whole map: those that it delivers."""


@dataclass(frozen=True)
class Tiling:
    """The tiles of one image, which deliver its map without gap or overlap.

    All in pixels at the scale that the image is scored at.
    """

    view: View
    """In tiles."""
    width: int
    """Of the image."""
    height: int

    @classmethod
    def of(cls, config: Config, slide: Slide) -> Self:
        """As a detector was fitted to see images.

        Raises:
            ConfigError: it does not see them in tiles.
            ImageError: a tile is larger than the image.
        """
        view = View.of(config)
        if view.kind != "tiles":
            raise ConfigError(
                f"the model sees all of an image at once (view.kind {view.kind}), and a slide has "
                f"to be seen in tiles: train it on slides, or with --view tiles."
            )
        height, width = view.size_of((slide.levels[0].height, slide.levels[0].width))
        if view.canvas[0] > height or view.canvas[1] > width:
            raise ImageError(
                f"{slide.name}: is {width}×{height} pixels, and a tile of this model has "
                f"{view.canvas[1]}×{view.canvas[0]}: score it with `haloae predict`."
            )
        return cls(view, width, height)

    @property
    def around(self) -> int:
        """Pixels, mirrored, that the image is surrounded with, in whole steps.

        What the network makes of an image's edge is unlike all that it makes of parts of slides.
        """
        return whole_steps(self.view.margin, self.view.step)

    @cached_property
    def rows(self) -> list[Cut]:
        """From top to bottom."""
        tiles = self.view.tiles((self.height + 2 * self.around, self.view.canvas[1]))
        return self._cut([(tile.top, tile.rows) for tile in tiles], self.cells[0])

    @cached_property
    def columns(self) -> list[Cut]:
        """From left to right."""
        tiles = self.view.tiles((self.view.canvas[0], self.width + 2 * self.around))
        return self._cut([(tile.left, tile.columns) for tile in tiles], self.cells[1])

    def _cut(self, tiles: list[tuple[int, slice]], most: int) -> list[Cut]:
        """Without what surrounds the image, and without tiles that deliver nothing of it."""
        before = self.around // self.view.cell
        cuts = [
            Cut(
                start - self.around,
                slice(max(0, cells.start - before), min(cells.stop - before, most)),
            )
            for start, cells in tiles
        ]
        return [cut for cut in cuts if cut.cells.stop > cut.cells.start]

    @property
    def count(self) -> int:
        """Of tiles."""
        return len(self.rows) * len(self.columns)

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of the map of the whole image."""
        return self.view.cells_of((self.height, self.width))

    @property
    def cost(self) -> float:
        """Pixels computed for one that is delivered, away from the image's edges."""
        tall, wide = self.view.canvas
        return tall * wide / ((tall - self.view.overlap) * (wide - self.view.overlap))

    @property
    def pixels(self) -> float:
        """Side of a cell in pixels of the slide itself."""
        return self.view.cell / self.view.scale

    def start(self, number: int) -> tuple[int, int]:
        """Left and top edge of a tile."""
        row, column = divmod(number, len(self.columns))
        return self.columns[column].start, self.rows[row].start

    def cells_of(self, number: int) -> tuple[slice, slice]:
        """Rows and columns of the whole map that a tile delivers."""
        row, column = divmod(number, len(self.columns))
        return self.rows[row].cells, self.columns[column].cells

    def delivered(self, number: int, tile_map: NDArray[np.float32]) -> NDArray[np.float32]:
        """The cells that a tile delivers, of its own map."""
        # Starts are whole cells, of either sign.
        left, top = (edge // self.view.cell for edge in self.start(number))
        rows, columns = self.cells_of(number)
        return tile_map[
            rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]

    def box(self, number: int) -> Box:
        """What a tile delivers, in pixels of the slide itself."""
        return self.box_of(*self.cells_of(number))

    def box_of(self, rows: slice, columns: slice) -> Box:
        """Where cells lie, in pixels of the slide itself, within it."""
        wide, high = (round(side / self.view.scale) for side in (self.width, self.height))
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
        bands = columns // max(1, COLUMNS // self.view.canvas[1])
        order = np.lexsort((columns, rows, bands))
        return np.asarray((rows * len(self.columns) + columns)[order])

    def _any_within(
        self, mask: NDArray[np.bool_], cuts: list[Cut], side: int, *, axis: int
    ) -> NDArray[np.bool_]:
        """Whether any is True within what each tile delivers of an axis."""
        cells = np.array([(cut.cells.start, cut.cells.stop) for cut in cuts])
        edges = cells * (self.view.cell * mask.shape[axis] / side)
        first = np.minimum(np.floor(edges[:, 0] + 1e-9).astype(int), mask.shape[axis] - 1)
        last = np.clip(np.ceil(edges[:, 1] - 1e-9).astype(int), first + 1, mask.shape[axis])
        sums = np.insert(np.cumsum(mask, axis=axis, dtype=np.int32), 0, 0, axis=axis)
        return np.asarray(np.take(sums, last, axis) > np.take(sums, first, axis))

    def as_values(self) -> dict[str, Any]:
        """What tells one from another, as JSON holds it."""
        view = self.view
        return {
            "canvas": list(view.canvas),
            "overlap": view.overlap,
            "cell": view.cell,
            "scale": view.scale,
            "size": [self.width, self.height],
        }
