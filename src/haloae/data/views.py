"""Between an image and what the network sees of it: squashed, fitted, or cut into tiles.

What a view is given, and what it gives back, is an image's own; how large it is to the network is
settled once, when a detector is fitted, and stands in its config (docs/views.md).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from haloae.config import Config, ViewKind
from haloae.data.images import Image
from haloae.errors import ConfigError

WHITE = 255
"""The highest value of 8-bit pixels, which is 1 to the network."""
LEAST_SIDE = 32
"""Least pixels a side of what the network sees: images thinner than that are widened."""
Pixels = NDArray[np.float32]
"""(3, H, W) RGB in [0, 1]."""
Size = tuple[int, int]
"""Height and width."""


def resize(image: Image, size: int | Size) -> Pixels:
    """Brings an image to a size, whatever its aspect ratio.

    Bilinear; when shrinking, the filter widens with the scale, so that fine texture does not alias.

    Args:
        image: any decoded image.
        size: height and width in pixels, at least 1; one number is both.

    Returns:
        (3, height, width) float32 in [0, 1].

    Raises:
        ConfigError: `size` is below 1.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ConfigError(f"the image size must be at least 1 pixel, got {min(height, width)}.")
    pixels, new = image.pixels, (width, height)
    if pixels.dtype == np.uint8:
        small = np.ascontiguousarray(pixels)
        if (image.height, image.width) != (height, width):
            picture = PILImage.fromarray(small)
            small = np.asarray(picture.resize(new, PILImage.Resampling.BILINEAR))
        return np.ascontiguousarray(small.transpose(2, 0, 1), dtype=np.float32) / np.float32(WHITE)
    channels = [
        PILImage.fromarray(np.ascontiguousarray(pixels[..., channel], dtype=np.float32)).resize(
            new, PILImage.Resampling.BILINEAR
        )
        for channel in range(1 if image.grey else 3)
    ]
    resized = np.stack([np.asarray(channel) for channel in channels]).clip(0, 1)
    return np.repeat(resized, 3, axis=0) if image.grey else resized


@dataclass(frozen=True)
class View:
    """What the network sees of images, settled.

    >>> view = View("fit", canvas=(96, 240), step=16)
    >>> view.size_of((500, 1260)), view.size_of((500, 500))
    ((96, 240), (96, 96))
    """

    kind: ViewKind
    canvas: Size
    """What the network is given at once, in pixels, at most: all of an image that is squashed or
    fitted, or a tile."""
    step: int = 1
    """Pixels that sides of fitted images, and sides and places of tiles, are multiples of."""
    overlap: int = 0
    """Pixels that neighbouring tiles share."""
    margin: int = 0
    """Pixels from a cut within which a tile's map may differ from the whole image's."""
    cell: int = 1
    """Side of a cell of the map, in pixels."""
    scale: float = 1.0
    """Of an image that is cut into tiles: 1 is its own resolution."""

    @classmethod
    def of(cls, config: Config) -> "View":
        """The view of a fitted detector's config.

        Raises:
            ConfigError: it is not settled yet.
        """
        view, cell = config.view, config.network.stride
        if view.kind == "squash":
            return cls("squash", (config.image_size, config.image_size), cell=cell)
        if view.kind == "auto" or view.canvas is None or view.step is None:
            raise ConfigError(f"view.kind {view.kind!r} is settled when a detector is fitted.")
        return cls(
            view.kind,
            view.canvas,
            step=view.step,
            overlap=view.overlap or 0,
            margin=view.margin or 0,
            cell=cell,
            scale=view.scale,
        )

    def size_of(self, size: Size) -> Size:
        """Pixels that are seen of an image of a size: those of `show`, whatever is in them."""
        if self.kind == "squash":
            return self.canvas
        if self.kind == "fit":
            scale = min(most / side for most, side in zip(self.canvas, size, strict=True))
            return _both(
                min(most, max(LEAST_SIDE, _whole(round(side * scale), self.step)))
                for most, side in zip(self.canvas, size, strict=True)
            )
        return _both(max(1, round(side * self.scale)) for side in size)

    def show(self, image: Image) -> Pixels:
        """What the network sees, at once or in tiles.

        Squashed: an image of the canvas's size. Fitted: of its own aspect ratio, but for what
        rounding to `step` takes, and of the canvas's size in one direction; there is no padding.
        For tiles: the image at `scale`.

        Returns:
            (3, H, W) float32 in [0, 1], H and W those of `size_of`.
        """
        return resize(image, self.size_of((image.height, image.width)))

    def cells_of(self, shown: Size) -> Size:
        """Rows and columns of the map of what `show` gives; the last may reach past it."""
        return _both(-(-side // self.cell) for side in shown)

    def covered(self, size: Size) -> tuple[float, float]:
        """How many times its own height and width the map of an image of a size covers."""
        shown = self.size_of(size)
        cells = zip(self.cells_of(shown), shown, strict=True)
        height, width = (count * self.cell / side for count, side in cells)
        return height, width

    def whole(self, shown: Size) -> Size:
        """What tiles are cut of: whole steps, and at least a tile, in pixels."""
        sides = zip(shown, self.canvas, strict=True)
        return _both(max(tile, whole_steps(side, self.step)) for side, tile in sides)

    def tiles(self, shown: Size) -> "list[Tile]":
        """The tiles of what `show` gives, by rows; each of the canvas's size."""
        sides = zip(self.whole(shown), self.canvas, strict=True)
        rows, columns = (self._cuts(side, tile) for side, tile in sides)
        return [Tile(*row, *column) for row in rows for column in columns]

    def _cuts(self, side: int, tile: int) -> "list[tuple[int, slice]]":
        """Where tiles start along a side, and the cells that each of them delivers."""
        hop = tile - self.overlap
        starts = [*range(0, side - tile, hop), side - tile]
        ends = []
        for here, there in pairwise(starts):
            middle = there + (here + tile - there) // 2
            ends.append(middle // self.cell)
        return [
            (start, slice(first, last))
            for start, first, last in zip(
                starts, [0, *ends], [*ends, side // self.cell], strict=True
            )
        ]


class Tile(NamedTuple):
    """One tile of an image."""

    top: int
    """In pixels of what is shown."""
    rows: slice
    """Of the whole map: the cells that this tile delivers."""
    left: int
    columns: slice

    def inner(self, cell: int) -> tuple[slice, slice]:
        """What it delivers, in rows and columns of its own map."""
        top, left = self.top // cell, self.left // cell
        return (
            slice(self.rows.start - top, self.rows.stop - top),
            slice(self.columns.start - left, self.columns.stop - left),
        )


def pieces(pixels: Pixels, view: View) -> Iterator[tuple[Tile, Pixels]]:
    """Each tile of what a view shows, with its pixels, (3, height, width) of the canvas.

    What the image lacks of whole steps, and of a whole tile, is mirrored from it, below and at the
    right.
    """
    height, width = view.canvas
    whole = _mirrored(pixels, view)
    for tile in view.tiles(_both(pixels.shape[1:])):
        yield tile, whole[:, tile.top : tile.top + height, tile.left : tile.left + width]


def tile_of(pixels: Pixels, view: View, generator: np.random.Generator) -> Pixels:
    """One tile anywhere, at whole steps: (3, height, width) of the canvas."""
    whole = _mirrored(pixels, view)
    places = zip(whole.shape[1:], view.canvas, strict=True)
    top, left = (
        view.step * int(generator.integers((all_ - tile) // view.step + 1)) for all_, tile in places
    )
    return whole[:, top : top + view.canvas[0], left : left + view.canvas[1]]


def _mirrored(pixels: Pixels, view: View) -> Pixels:
    shown = _both(pixels.shape[1:])
    lacking = [(0, all_ - own) for all_, own in zip(view.whole(shown), shown, strict=True)]
    return np.pad(pixels, ((0, 0), *lacking), mode="symmetric")


def join(maps: Sequence[NDArray[np.float32]], view: View, shown: Size) -> NDArray[np.float32]:
    """The map of an image, of those of its tiles.

    Each cell is the tile's that has it farther from its cuts; where tiles share less than what
    that needs to be the whole image's own value, what they share is blended.

    Args:
        maps: (h, w) each, in the order of `View.tiles`.
        view: that cut them.
        shown: (H, W) of what they were cut of.

    Returns:
        (rows, columns) of `View.cells_of`.
    """
    whole = np.zeros(view.cells_of(view.whole(shown)), maps[0].dtype)
    rows, columns = view.cells_of(shown)
    tiles = view.tiles(shown)
    if view.overlap >= 2 * view.margin:
        for tile, part in zip(tiles, maps, strict=True):
            whole[tile.rows, tile.columns] = part[tile.inner(view.cell)]
        return whole[:rows, :columns]
    weights = np.zeros_like(whole)
    for tile, part in zip(tiles, maps, strict=True):
        top, left = tile.top // view.cell, tile.left // view.cell
        place = slice(top, top + part.shape[0]), slice(left, left + part.shape[1])
        share = np.outer(
            *(
                _ramp(cells.start, cells.stop, most, view.overlap // view.cell)
                for cells, most in zip(place, whole.shape, strict=True)
            )
        )
        whole[place] += share * part
        weights[place] += share
    return (whole / weights)[:rows, :columns]


def _ramp(start: int, stop: int, most: int, shared: int) -> NDArray[np.float32]:
    """(stop - start,): 1, and falling towards the ends, but for those of the image."""
    cells = np.arange(start, stop)
    edges = [np.full(len(cells), np.inf)]
    edges += [cells - start + 1] if start else []
    edges += [stop - cells] if stop < most else []
    share = np.minimum.reduce(edges) / (shared + 1)
    return np.asarray(share.clip(0, 1), np.float32)


def _both(values: Iterable[int]) -> Size:
    height, width = values
    return int(height), int(width)


def _whole(side: int, step: int) -> int:
    """The nearest multiple of a step, at least one."""
    return max(1, round(side / step)) * step


def whole_steps(side: int, step: int) -> int:
    """The next multiple of a step, in pixels, that a side fits into."""
    return -(-side // step) * step
