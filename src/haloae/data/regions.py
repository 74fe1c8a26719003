"""Which pixels of an image count: a region of all images, or masks of each.

What lies outside is replaced by one colour as soon as an image is decoded, before anything looks at
it. So nothing outside can change what is learnt, scored, drawn or counted.
"""

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from haloae.data.images import Image, read_image, shown_path
from haloae.data.limits import current_limits
from haloae.data.views import View
from haloae.errors import ImageError, MaskError

FILL = 115
"""Of 255: what all channels of a pixel outside are set to, about the mean of photographs."""
MOST_REGIONS = 64
EACH: Literal["each"] = "each"
"""In the place of a `Region`: each image comes with masks of its own."""
Mask = NDArray[np.bool_]
Side = Annotated[int, Field(ge=1, le=2**31)]


class Region(BaseModel):
    """Which pixels count, the same for all images of one size, and in which named part each is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: Side
    """Of the images, in pixels."""
    width: Side
    names: Annotated[tuple[str, ...], Field(max_length=MOST_REGIONS)] = ()
    """Of the parts; of none, all that counts is one part without a name."""
    packed: str
    """Which part each pixel is in, row by row, from 1; 0: in none. Compressed, in base 64."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        found = np.unique(self.labels)
        if found[found > 0].tolist() != [*range(1, self.parts + 1)]:
            raise ValueError("each part must have a pixel, and each pixel's part must be known")
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Region) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[object, ...]:
        # Not what was unpacked since: arrays are not equal or unequal as a whole.
        return self.height, self.width, self.names, self.packed

    @classmethod
    def of(cls, labels: NDArray[np.integer[Any]], names: Sequence[str] = ()) -> Self:
        """From the number of each pixel's part, (H, W), 0 outside."""
        height, width = labels.shape
        data = zlib.compress(labels.astype(np.uint8).tobytes(), 9)
        packed = base64.b64encode(data).decode("ascii")
        return cls(height=height, width=width, names=tuple(names), packed=packed)

    @cached_property
    def labels(self) -> NDArray[np.uint8]:
        """(H, W): the number of each pixel's part, from 1; 0: in none."""
        count = self.height * self.width
        if count > current_limits().pixels:
            raise ValueError("more pixels than an image may have")
        unpacked = zlib.decompressobj().decompress(base64.b64decode(self.packed), count + 1)
        return np.frombuffer(unpacked, np.uint8).reshape(self.height, self.width)

    @cached_property
    def inside(self) -> Mask:
        """(H, W): True where a pixel counts."""
        return np.asarray(self.labels > 0)

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return max(1, len(self.names))

    def inside_of(self, image: Image, name: str) -> Mask:
        """Which pixels of an image count.

        Raises:
            MaskError: the image is of another size.
        """
        _check_size("the region", self.inside, image, name)
        return self.inside

    def item(self, image: Path, relative: PurePath) -> "Masked":
        """An image of which this counts, whatever its path below a folder."""
        return Masked(image, self)


def mask_in(path: Path) -> Mask:
    """(H, W): True where a pixel of the mask in a file is not black.

    Raises:
        MaskError: it cannot be read.
    """
    try:
        return np.asarray(read_image(path).pixels.any(axis=2))
    except ImageError as error:
        raise MaskError(f"the mask cannot be used: {error}") from error


class ImageMasks(NamedTuple):
    """The masks of one image, in files."""

    roi: Path | None
    """White, or any colour, counts."""
    ignore: Path | None
    """White, or any colour, does not."""

    def inside_of(self, image: Image, name: str) -> Mask:
        """Which pixels of an image count.

        Raises:
            MaskError: a mask cannot be read, or is of another size.
        """
        inside = np.ones((image.height, image.width), bool)
        for path, is_roi in ((self.roi, True), (self.ignore, False)):
            if path is not None:
                mask = mask_in(path)
                _check_size(shown_path(path), mask, image, name)
                inside &= mask if is_roi else ~mask
        return inside


@dataclass(frozen=True, eq=False, slots=True)
class Masked:
    """An image of which only a part counts; it can be given wherever an image can.

    Attributes:
        image: whatever an image can be given as, one that is masked already among it.
        region: a mask's path, or (H, W) bool, True where a pixel counts; or what commands make of
            theirs.
    """

    image: Any
    region: "Region | ImageMasks | str | Path | Mask"

    def fingerprint(self) -> bytes:
        """Changes when the mask does, its file's size or, of what is no file, a pixel."""
        region = self.region
        if isinstance(region, Region):
            return region.packed.encode()
        paths = [Path(region)] if isinstance(region, str | Path) else region
        if isinstance(paths, np.ndarray):
            return paths.tobytes()
        names = [f"{path.name!a} {path.stat().st_size}" for path in paths if path is not None]
        return "\n".join(names).encode()

    def inside_of(self, image: Image, name: str) -> Mask:
        """Which pixels of the image, as it was decoded, count by this mask alone.

        Raises:
            MaskError: the mask cannot be read, or is of another size.
        """
        region = self.region
        if isinstance(region, str | Path):
            region = ImageMasks(Path(region), None)
        if isinstance(region, Region | ImageMasks):
            return region.inside_of(image, name)
        inside = np.asarray(region)
        if inside.dtype != np.bool_ or inside.ndim != 2:
            raise MaskError(
                f"{name}: expected a mask (H, W) of bool, got shape {inside.shape} of "
                f"{inside.dtype}: convert it."
            )
        _check_size("its mask", inside, image, name)
        return inside


def inside_of(masks: Sequence[Masked], image: Image, name: str) -> Mask | None:
    """Which pixels of an image count by all of its masks; None: all do, as there are none.

    Raises:
        MaskError: as `Masked.inside_of`, or nothing is left.
    """
    if not masks:
        return None
    inside = np.logical_and.reduce([each.inside_of(image, name) for each in masks])
    if not inside.any():
        raise MaskError(f"{name}: its masks leave nothing of it: make white what counts.")
    return np.asarray(inside)


def region_of(items: Sequence[object]) -> Region | Literal["each"] | None:
    """What all images have in common: the one region, ``each`` their own masks, or None."""
    masks = [item.region for item in items if isinstance(item, Masked)]
    if not masks:
        return None
    first = masks[0]
    is_one = len(masks) == len(items) and isinstance(first, Region)
    return first if is_one and all(mask is first for mask in masks) else EACH  # type: ignore[return-value]


def region_words(region: Region | Literal["each"] | None) -> str:
    """What counts of images, in words."""
    if region is None:
        return "all of every image"
    if not isinstance(region, Region):
        return "what masks of each image's own say"
    share = f"{100 * float(region.inside.mean()):.3g} %"
    words = f"of {region.width}×{region.height} pixels {share}, the same of every image"
    return f"{words}; regions {', '.join(region.names)}" if region.names else words


def filled(image: Image, inside: Mask) -> Image:
    """The image with `FILL` wherever it does not count."""
    value = FILL if image.pixels.dtype == np.uint8 else np.float32(FILL / 255)
    pixels = np.where(inside[..., None], image.pixels, image.pixels.dtype.type(value))
    return Image(pixels, image.depth, image.grey)


def shown_inside(inside: Mask, view: View) -> Mask:
    """(H, W) of an image → of what a view shows of it: True where any of its pixels counts."""
    height, width = inside.shape
    return any_in_cells(inside, *view.size_of((height, width)))


def cells_inside(shown: Mask, cell: int) -> Mask:
    """(H, W) of what is shown → (h, w) of its map: True where any pixel of a cell does."""
    lacking = [(0, -side % cell) for side in shown.shape]
    padded = np.pad(shown, lacking)
    height, width = (side // cell for side in padded.shape)
    return np.asarray(padded.reshape(height, cell, width, cell).any((1, 3)))


def any_in_cells(mask: Mask, height: int, width: int) -> Mask:
    """(H, W) → (height, width): True where any pixel that touches the cell is True.

    >>> any_in_cells(np.array([[True, False, False, False, False]]), 1, 2)
    array([[ True, False]])
    """
    for axis, cells in enumerate((height, width)):
        length = mask.shape[axis]
        bounds = np.empty(2 * cells, np.intp)
        bounds[::2] = np.arange(cells) * length // cells
        bounds[1::2] = -(-(np.arange(cells) + 1) * length // cells)
        mask = np.pad(mask, [(0, int(axis == side)) for side in range(2)])
        mask = np.logical_or.reduceat(mask, bounds, axis=axis).take(range(0, 2 * cells, 2), axis)
    return mask


def _check_size(what: str, mask: Mask, image: Image, name: str) -> None:
    if mask.shape != (image.height, image.width):
        raise MaskError(
            f"{name}: the image is {image.width}×{image.height} pixels, and {what} is for "
            f"{mask.shape[1]}×{mask.shape[0]}: give a mask of the image's size."
        )
