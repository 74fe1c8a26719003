"""Huge images: tiled TIFF is read by tifffile, vendors' slides by OpenSlide, the rest by libvips.

Which of them reads a file follows from its bytes, not from its name. Nothing is read in part: a
region holds all its pixels, or is refused with an `ImageError` of one sentence.
"""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from haloae.data.images import shown_path
from haloae.errors import EXTRAS, ImageError, MissingExtraError

Pixels = NDArray[Any]
"""(h, w, 3) uint8, or uint16 of deeper images."""
CACHE_BYTES = 64 * 2**20
"""Most that decoded parts of a TIFF are kept in: neighbouring tiles share them."""
MOST_PART = 2**28
"""Bytes of one decoded part of a TIFF."""


class Level(NamedTuple):
    """One size that an image is stored in."""

    width: int
    height: int
    downsample: float
    """Pixels of the whole image for one of these, in each direction."""


class Slide(Protocol):
    """An image that is read by regions, by any number of threads."""

    name: str
    """What it is called in messages."""
    kind: str
    """What reads it, and as what."""
    levels: tuple[Level, ...]
    """The largest first."""
    microns: tuple[float, float] | None
    """Across and down, of one pixel of the largest level; None where the file does not say."""

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """A region, which lies within the level.

        Raises:
            ImageError: a part of it is missing or damaged.
        """


def open_slide(path: Path) -> Slide:
    """Open an image for reading by regions.

    Raises:
        ImageError: no such file, or nothing that can be read.
        MissingExtraError: the extra ``slides`` is not installed.
    """
    name = shown_path(path)
    if not path.is_file():
        what = "this is no file" if os.path.lexists(path) else "no such file"
        raise ImageError(f"{name}: {what}: give the path of one slide.")
    with _packages():
        import openslide
        import tifffile

        with _sentences(name):
            vendor = openslide.OpenSlide.detect_format(str(path))
            if vendor not in (None, "generic-tiff"):
                return _OpenSlide(path, name, vendor)
            try:
                with tifffile.TiffFile(path) as file:
                    if file.pages.first.is_tiled:
                        return _Tiff(file, path, name)
            except tifffile.TiffFileError:  # another format
                pass
            return _Vips(path, name)


def is_pyramid(path: Path) -> bool:
    """True: a tiled TIFF in several sizes; False too where that cannot be told."""
    try:
        import tifffile
    except ImportError:
        return False
    try:
        with tifffile.TiffFile(path) as file:
            return len(_Tiff(file, path, "").levels) > 1 if file.pages.first.is_tiled else False
    except Exception:  # whatever it is, it will be said when it is read
        return False


@contextmanager
def _packages() -> Iterator[None]:
    """What is not installed is said as for every extra."""
    try:
        yield
    except ImportError as error:
        package = (error.name or "pyvips").partition(".")[0]
        if EXTRAS.get(package) != "slides" and not isinstance(error, ModuleNotFoundError):
            raise
        raise MissingExtraError(package, "slides", error) from error


@contextmanager
def _sentences(name: str) -> Iterator[None]:
    """Whatever the libraries raise of a file becomes one `ImageError`."""
    try:
        yield
    except (ImageError, ImportError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything at all on hostile bytes
        reason = " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
        raise ImageError(
            f"{name}: truncated, corrupted or of no format that is read ({reason}): copy or export "
            f"it again, as a tiled TIFF if it is of another format."
        ) from error


class _Tiff:
    """A tiled TIFF, its smaller sizes as pages of their own or as sub-images (OME)."""

    def __init__(self, file: Any, path: Path, name: str) -> None:  # noqa: ANN401 - not typed
        first = file.pages.first
        below = first.pages or file.pages[1:]
        self.name = name
        self.kind = "tifffile, OME-TIFF" if file.is_ome else "tifffile, tiled TIFF"
        self._pages = [first]
        for page in below:
            page = page.aspage()  # a frame says nothing of its tags
            if page.is_tiled and _is_smaller(page.shape, self._pages[-1].shape, first.shape):
                self._pages.append(page)
        for page in self._pages:
            _check_page(page, name)
        self.levels = tuple(
            Level(page.imagewidth, page.imagelength, first.imagewidth / page.imagewidth)
            for page in self._pages
        )
        self.microns = _tiff_microns(file)
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._lock = threading.Lock()
        self._parts: OrderedDict[tuple[int, int], Pixels] = OrderedDict()
        self._bytes = 0

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        page = self._pages[level]
        tall, wide = page.tilelength, page.tilewidth
        across = -(-page.imagewidth // wide)
        found = np.empty((height, width, 3), page.dtype)
        for row in range(y // tall, -(-(y + height) // tall)):
            for column in range(x // wide, -(-(x + width) // wide)):
                part = self._part(level, row * across + column)
                top, left = row * tall - y, column * wide - x
                down, right = max(0, -top), max(0, -left)
                inside = part[down : height - top, right : width - left]
                high, broad = inside.shape[:2]
                found[top + down : top + down + high, left + right : left + right + broad] = inside
        return found

    def _part(self, level: int, index: int) -> Pixels:
        key = level, index
        with self._lock:
            if key in self._parts:
                self._parts.move_to_end(key)
                return self._parts[key]
        with _sentences(self.name):
            part = self._decoded(level, index)
        with self._lock:
            if key not in self._parts:
                self._parts[key] = part
                self._bytes += part.nbytes
            while self._bytes > CACHE_BYTES:
                self._bytes -= self._parts.popitem(last=False)[1].nbytes
        return part

    def _decoded(self, level: int, index: int) -> Pixels:
        """One tile of the file, RGB."""
        page = self._pages[level]
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            raise ImageError(f"{self.name}: a part of it was never written: export it again.")
        data = os.pread(self._file, count, offset)
        if len(data) < count:
            raise ImageError(f"{self.name}: it ends before its last part: copy it again.")
        part = _decode_jpeg(page, data)
        if part is None:
            part = page.decode(data, index, jpegtables=page.jpegtables)[0][0]
        colours = part[..., :3] if part.shape[-1] >= 3 else part[..., :1]
        if page.photometric == 0:  # white is zero
            colours = np.iinfo(colours.dtype).max - colours
        return np.ascontiguousarray(np.broadcast_to(colours, (*part.shape[:2], 3)))


def _decode_jpeg(page: Any, data: bytes) -> Pixels | None:  # noqa: ANN401 - not typed
    """By what tells of damage, where it knows the colours; None: by the other decoder."""
    import simplejpeg

    if page.compression != 7 or page.photometric not in (1, 6) or page.bitspersample != 8:
        return None
    if page.jpegtables:
        data = page.jpegtables[:-2] + data[2:]
    return np.asarray(simplejpeg.decode_jpeg(data, "GRAY" if page.photometric == 1 else "RGB"))


def _check_page(page: Any, name: str) -> None:  # noqa: ANN401 - not typed
    """Refuse what would be read wrongly.

    Raises:
        ImageError: says what it is.
    """
    is_plain = page.planarconfig == 1 and page.photometric in (0, 1, 2, 6)
    if page.dtype not in (np.uint8, np.uint16) or not is_plain:
        raise ImageError(
            f"{name}: a tiled TIFF of {page.dtype}, colours {page.photometric:d} and planes "
            f"{page.planarconfig:d} is not read: export it as grey or RGB of 8 or 16 bits."
        )
    if page.tilewidth * page.tilelength * page.samplesperpixel * page.dtype.itemsize > MOST_PART:
        raise ImageError(
            f"{name}: its parts of {page.tilewidth}×{page.tilelength} pixels are too large: export "
            f"it with parts of 256 or 512."
        )


def _is_smaller(shape: tuple[int, ...], last: tuple[int, ...], first: tuple[int, ...]) -> bool:
    """True: the same picture in a smaller size, and no label or view of the whole glass."""
    if len(shape) != len(first) or shape[2:] != first[2:] or shape[0] >= last[0]:
        return False
    across, down = first[1] / shape[1], first[0] / shape[0]
    return abs(across - down) <= 0.02 * max(across, down) + max(across / shape[1], down / shape[0])


def _tiff_microns(file: Any) -> tuple[float, float] | None:  # noqa: ANN401 - not typed
    """Of OME's own words, else of the resolution, where that has a unit."""
    if file.is_ome:
        from xml.etree import ElementTree as Xml

        units = {"nm": 1e-3, "µm": 1.0, "mm": 1e3, "cm": 1e4}
        for element in Xml.fromstring(file.ome_metadata).iter():  # noqa: S314
            if element.tag.endswith("}Pixels") and "PhysicalSizeX" in element.attrib:
                found = element.attrib
                across = float(found["PhysicalSizeX"])
                across *= units.get(found.get("PhysicalSizeXUnit", "µm"), 0.0)
                down = float(found.get("PhysicalSizeY", found["PhysicalSizeX"]))
                down *= units.get(found.get("PhysicalSizeYUnit", "µm"), 0.0)
                return (across, down) if across > 0 and down > 0 else None
    tags = file.pages.first.tags
    unit = {2: 25_400.0, 3: 10_000.0}.get(getattr(tags.get("ResolutionUnit"), "value", 0))
    both = [getattr(tags.get(key), "value", (0, 1)) for key in ("XResolution", "YResolution")]
    if unit is None or not all(count and per for count, per in both):
        return None
    across, down = (unit * per / count for count, per in both)
    # 72 or 300 dots an inch are what programs write that know nothing of a scale.
    return (across, down) if across < 25 else None


class _OpenSlide:
    """A vendor's slide."""

    def __init__(self, path: Path, name: str, vendor: str) -> None:
        import openslide

        self.name = name
        self.kind = f"OpenSlide, {vendor}"
        self._open: Callable[[], Any] = lambda: openslide.OpenSlide(str(path))
        self._slide = self._open()
        found = self._slide.properties
        sizes = zip(self._slide.level_dimensions, self._slide.level_downsamples, strict=True)
        self.levels = tuple(Level(*size, downsample) for size, downsample in sizes)
        across, down = (found.get(f"openslide.mpp-{axis}") for axis in "xy")
        self.microns = (float(across), float(down)) if across and down else None
        paper = found.get("openslide.background-color", "FFFFFF")
        self._paper = np.array([int(paper[place : place + 2], 16) for place in (0, 2, 4)])

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        slide, downsample = self._slide, self.levels[level].downsample
        place = round(x * downsample), round(y * downsample)
        with _sentences(self.name):
            try:
                found = np.asarray(slide.read_region(place, level, (width, height)))
            except Exception:
                # After one error it answers nothing more; who still reads keeps the old one.
                self._slide = self._open()
                raise
        colours, alpha = found[..., :3], found[..., 3:]
        if alpha.min() == 255:
            return np.ascontiguousarray(colours)
        mixed = colours * (alpha / 255) + self._paper * (1 - alpha / 255)
        return np.asarray(mixed.round(), np.uint8)


class _Vips:
    """What has no parts to choose from: decoded once, into a temporary file where it is large."""

    def __init__(self, path: Path, name: str) -> None:
        import pyvips

        pyvips.block_untrusted_set(True)  # loaders that were never fuzzed
        pyvips.cache_set_max(0)
        self.name = name
        image = pyvips.Image.new_from_file(str(path), access="random", fail_on="error")
        self.kind = f"libvips, {image.get('vips-loader').removesuffix('load')}"
        if image.format not in ("uchar", "ushort"):
            raise ImageError(
                f"{name}: pixels of {image.format} are not read: save it with 8 or 16 bits."
            )
        if image.hasalpha():
            image = image.flatten().cast(image.format)
        if image.interpretation not in ("b-w", "grey16", "srgb", "rgb16", "rgb", "multiband"):
            image = image.colourspace("srgb").cast(image.format)
        self.levels: tuple[Level, ...] = (Level(image.width, image.height, 1.0),)
        self.microns: tuple[float, float] | None = None
        self._image = image
        self._local = threading.local()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        import pyvips

        with _sentences(self.name):
            if not hasattr(self._local, "region"):
                self._local.region = pyvips.Region.new(self._image)
            data = self._local.region.fetch(x, y, width, height)
        dtype = np.uint8 if self._image.format == "uchar" else np.uint16
        found = np.frombuffer(data, dtype).reshape(height, width, -1)
        colours = found[..., :3] if found.shape[2] >= 3 else found[..., :1]
        return np.ascontiguousarray(np.broadcast_to(colours, (height, width, 3)))
