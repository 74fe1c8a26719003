"""What turns a file's bytes into samples, apart as most of it is how odd formats store them."""

import logging
import os
import struct
from collections.abc import Callable
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags
from PIL import Image as PILImage
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from haloae.data.limits import Limits
from haloae.data.whole import (
    check_deflated,
    check_fax,
    check_jpeg,
    check_png,
    check_runs,
    load_png,
    mended_jpeg,
)
from haloae.errors import ImageError

logger = logging.getLogger(__name__)
# What Pillow logs would reach the terminal where nobody listens; what it raises says the same.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_READERS: dict[bytes, Callable[[BinaryIO], PILImage.Image]] = {
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"\xff\xd8\xff": jpeg_factory,
    b"II*\0": TiffImageFile,
    b"MM\0*": TiffImageFile,
    b"II+\0": TiffImageFile,
    b"RIFF": WebPImageFile,
    b"GIF8": GifImageFile,
    b"BM": BmpImageFile,
} | {b"P%d" % digit: PpmImageFile for digit in range(1, 7)}
_OTHER_KINDS = {
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a gzip archive",
}
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
_TIFF_SAMPLE_KINDS = {1: "unsigned integer", 2: "signed integer", 3: "floating-point"}
_FLOAT_TOLERANCE = 1e-6  # what a resampled or re-saved float image overshoots [0, 1] by


class Decoded(NamedTuple):
    """Samples as a file stores them."""

    array: NDArray[Any]
    """(H, W) or (H, W, C) with C = grey, grey + alpha, RGB or RGBA; uint8, or float32 in [0, 1]."""
    depth: int
    """Bits per channel: 8, 16 or 32 (floating point of any width)."""
    orientation: int = 1
    """EXIF orientation, 1 to 8, still to be applied."""


def decode(file: BinaryIO, name: str, limits: Limits) -> Decoded:
    """Decodes a file from its first byte; raises anything at all on hostile bytes."""
    head = file.read(32)
    reader = next((read for magic, read in _READERS.items() if head.startswith(magic)), None)
    if reader is None or (reader is WebPImageFile and head[8:12] != b"WEBP"):
        size = file.seek(0, os.SEEK_END)
        raise ImageError(
            f"{name}: expected an image, got {size:,} bytes of {_kind(head)}: save it as PNG, JPEG "
            f"or TIFF."
        )
    if reader is TiffImageFile:
        tags = ImageFileDirectory_v2(head[:16] if head[2] == 43 else head[:8])
        file.seek(tags.next)
        tags.load(file)
        check_size(name, tags[256], tags[257], limits)
        # A tile may be larger than the image, and libtiff allocates it whole.
        check_size(name, tags.get(322, 1), tags.get(323, 1), limits)
        if set(tags.get(339, (1,))) & {2, 3} or max(tags.get(258, (1,))) > 8:
            return _decode_deep_tiff(file, tags, name)
        file.seek(0)
        check_fax(file.read() if tags.get(259) in (3, 4) else b"", tags)
    file.seek(0)
    picture = reader(file)
    check_size(name, *picture.size, limits)
    if decode_format := _BY_FORMAT.get(picture.format or ""):
        return decode_format(file, picture, name)
    return from_pillow(picture, name)


def check_size(name: str, width: int, height: int, limits: Limits) -> None:
    """Raises ImageError unless a header's size has pixels, and no more than the limit."""
    if min(width, height) < 1:
        raise ImageError(f"{name}: it has no pixels ({width}×{height}): export it again.")
    if width * height > limits.pixels:
        raise ImageError(
            f"{name}: {width}×{height} pixels are over the limit of {limits.pixels:,}: crop or "
            f"shrink it, or raise the limit with --limit pixels={width * height}."
        )


def _decode_png(file: BinaryIO, picture: PILImage.Image, name: str) -> Decoded:
    position = file.tell()  # where Pillow goes on
    file.seek(0)
    data = file.read()
    check_png(data)
    if data[24] == 16:
        return _decode_png16(data, picture, name)
    file.seek(position)
    load_png(picture, data)
    return from_pillow(picture, name)


def _decode_jpeg(file: BinaryIO, picture: PILImage.Image, name: str) -> Decoded:
    """Decodes a JPEG by libjpeg as Pillow does, but hears what it says of damage."""
    file.seek(0)
    data = file.read()
    check_jpeg(data)
    colours = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}[picture.mode]
    for _ in range(3):
        try:
            array = simplejpeg.decode_jpeg(data, colours)
            break
        except ValueError as error:
            data = mended_jpeg(data, str(error))
    if colours == "CMYK":
        is_inverted = picture.tile[0].args[0] == "CMYK;I"  # type: ignore[attr-defined]
        inks = PILImage.fromarray(~array if is_inverted else array, "CMYK")
        array = np.array(inks.convert("RGB"))
    return Decoded(array, depth=8, orientation=_orientation(picture, name))


def _decode_bmp(file: BinaryIO, picture: PILImage.Image, name: str) -> Decoded:
    decoder, _, offset, arguments = picture.tile[0]  # type: ignore[attr-defined]
    if decoder == "bmp_rle":
        file.seek(0)
        check_runs(file.read(), offset, picture.size, is_half=arguments[1])
    return from_pillow(picture, name)


def _decode_png16(data: bytes, picture: PILImage.Image, name: str) -> Decoded:
    values = unit_range(_imagecodecs(name, "16-bit PNG").png_decode(data), name)
    key = picture.info.get("transparency")
    if key is not None:
        # The colour that means transparent. Compared here because libpng swaps its bytes in grey.
        colours = 1 if isinstance(key, int) else 3
        colour = values.reshape(*values.shape[:2], -1)[..., :colours]
        is_opaque = (colour != unit_range(np.array(key, np.uint16), name)).any(axis=2)
        values = colour * is_opaque[..., None]
    return Decoded(values, depth=16, orientation=_orientation(picture, name))


def _decode_pnm(file: BinaryIO, picture: PILImage.Image, name: str) -> Decoded:
    """Decodes PNM of any maximum: Pillow clips what is over it, and reads it sample by sample."""
    decoder, _, offset, arguments = picture.tile[0]  # type: ignore[attr-defined]
    maximum = arguments[1] if isinstance(arguments, tuple) else 255
    if arguments == "I;16B":
        maximum = 65535
    if decoder == "ppm_plain" and maximum > 255:
        raise ImageError(f"{name}: 16-bit PNM in plain text is not read: save it as 16-bit PNG.")
    if decoder == "ppm_plain" or maximum == 255:
        return from_pillow(picture, name)
    file.seek(offset)
    shape = (picture.height, picture.width, 3 if picture.mode == "RGB" else 1)
    kind = np.dtype("u1" if maximum < 256 else ">u2")
    data = file.read(kind.itemsize * int(np.prod(shape)))
    values = np.frombuffer(data, kind).reshape(shape)
    if values.max() > maximum:
        raise ValueError(f"a value of {values.max()} over its maximum of {maximum}")
    if maximum < 256:
        return Decoded(np.rint(values / maximum * 255).astype(np.uint8), depth=8)
    return Decoded(unit_range(values / np.float32(maximum), name), depth=16)


def _decode_deep_tiff(file: BinaryIO, tags: ImageFileDirectory_v2, name: str) -> Decoded:
    """Decodes TIFF of 16 bits or floats, which Pillow cuts to 8 bits or does not know."""
    kind, bits = max(tags.get(339, (1,))), max(tags.get(258, (1,)))
    photometric, samples = tags.get(262, 1), tags.get(277, 1)
    colours = 3 if photometric == 2 else 1
    if (kind, bits) not in {(1, 16), (3, 16), (3, 32), (3, 64)}:
        raise ImageError(
            f"{name}: {bits}-bit {_TIFF_SAMPLE_KINDS.get(kind, 'unknown')} samples are not read: "
            f"save it with 8 or 16 bits, or as floats from 0 to 1."
        )
    if photometric not in (0, 1, 2) or not 0 <= samples - colours <= 1:
        raise ImageError(
            f"{name}: {bits}-bit TIFF with {samples} channels of colour type {photometric} is not "
            f"read: save it as grey or RGB."
        )
    file.seek(0)
    data = file.read()
    is_apart = tags.get(284, 1) == 2
    check_deflated(data, tags, bits // 8 * (1 if is_apart else samples))
    array = _imagecodecs(name, f"{bits}-bit TIFF").tiff_decode(data)
    if is_apart and samples > 1:
        array = np.moveaxis(array, 0, -1)
    array = array.reshape(tags[257], tags[256], samples)
    values = unit_range(array, name)
    if photometric == 0:
        values[..., 0] = 1 - values[..., 0]
    alpha_kind = tags.get(338, (0,))[0] if samples > colours else None
    if alpha_kind in (0, 1):  # not an alpha at all, or colours already multiplied by it
        values = values[..., :colours]
    return Decoded(values, depth=16 if kind == 1 else 32, orientation=tags.get(274, 1))


def _imagecodecs(name: str, kind: str) -> ModuleType:
    """What decodes the images that Pillow cuts to 8 bits; an extra, as few cameras write them."""
    try:
        import imagecodecs
    except ModuleNotFoundError as error:
        raise ImageError(
            f"{name}: {kind} needs imagecodecs, which is not installed: "
            f"run `pip install 'haloae[deep]'`."
        ) from error
    module: ModuleType = imagecodecs
    return module


_BY_FORMAT = {
    "PNG": _decode_png,
    "JPEG": _decode_jpeg,
    "MPO": _decode_jpeg,
    "PPM": _decode_pnm,
    "BMP": _decode_bmp,
}


def from_pillow(picture: PILImage.Image, name: str) -> Decoded:
    """Decodes what Pillow has opened, and keeps the depth that Pillow keeps."""
    picture.load()
    mode = picture.mode
    orientation = _orientation(picture, name)
    if mode.startswith("I;16"):
        values = unit_range(np.asarray(picture), name)
        return Decoded(values, depth=16, orientation=orientation)
    if mode == "F":
        values = unit_range(np.asarray(picture), name)
        return Decoded(values, depth=32, orientation=orientation)
    if mode not in _MODES:
        raise ImageError(f"{name}: colour mode {mode} is not read: save it as grey or RGB.")
    is_grey = mode in {"1", "L", "LA"}
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
    elif mode != "RGB":
        picture = picture.convert("L" if is_grey else "RGB")
    array = np.array(picture)
    if is_grey and array.ndim == 3:
        array = array[..., [0, 3]]
    return Decoded(array, depth=8, orientation=orientation)


def unit_range(array: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Turns uint16 or floats of any shape into float32 in [0, 1]."""
    values = array.astype(np.float32)
    if array.dtype.kind == "u":
        values /= np.float32(65535)
        return values
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise ImageError(f"{name}: it holds NaN or infinite values: replace them.")
    if low < -_FLOAT_TOLERANCE or high > 1 + _FLOAT_TOLERANCE:
        raise ImageError(
            f"{name}: expected floats from 0 to 1, got {low:.6g} to {high:.6g}: rescale it."
        )
    return values.clip(0, 1, out=values)


def _orientation(picture: PILImage.Image, name: str) -> int:
    """EXIF orientation, 1 to 8; an unreadable EXIF block tells none and spoils no pixel."""
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except (struct.error, SyntaxError, LookupError, TypeError, ValueError, OSError):
        logger.warning("%s: its EXIF block cannot be read, so it is taken as upright.", name)
        return 1
    return value if value in range(1, 9) else 1


def _kind(head: bytes) -> str:
    """What the first bytes of a file that is no image look like."""
    for magic, kind in _OTHER_KINDS.items():
        if head.startswith(magic):
            return kind
    if head[4:8] == b"ftyp":
        return "HEIF, AVIF or video"
    if not any(head):
        return "zeros"
    text = head.decode("utf-8", "ignore")  # the cut may fall inside a character
    return "text" if text and all(c.isprintable() or c.isspace() for c in text) else "unknown data"
