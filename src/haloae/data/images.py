"""Decoding one image: bit depth, colour, orientation, limits.

Every image becomes RGB, upright, without alpha. Nothing is decoded in part: a file is read whole
and unharmed, or refused with an `ImageError` of one sentence.
"""

import errno
import logging
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
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

from haloae.errors import ConfigError, DataError, ImageError

logger = logging.getLogger(__name__)

MAX_PIXELS = 200_000_000
"""Largest image decoded unless the caller says otherwise: 200 megapixels, 2.4 GB as float32 RGB."""

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


@dataclass(frozen=True, slots=True)
class Image:
    """One decoded image: RGB, upright, alpha composited on black.

    Attributes:
        pixels: (H, W, 3), uint8 in [0, 255] for 8-bit sources, float32 in [0, 1] for deeper ones.
        depth: bits per channel of the source: 8, 16 or 32 (floating point of any width).
        grey: True where the source has a single colour channel; the three channels are then equal.
    """

    pixels: NDArray[Any]
    depth: int
    grey: bool

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return int(self.pixels.shape[1])


class _SharedSilence:
    """Turns warnings off while any thread decodes.

    `warnings.catch_warnings` swaps a list of the whole process: two threads that overlap would
    restore it in the wrong order and leave warnings off for good, so the first one in swaps it and
    the last one out restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._caught: AbstractContextManager[Any] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._caught is not None:
                self._caught.__exit__(None, None, None)


_WITHOUT_WARNINGS = _SharedSilence()


def shown_path(path: str | os.PathLike[str]) -> str:
    """The path as one printable line: control characters and undecodable bytes are escaped."""
    name = os.fspath(path)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Image:
    """Decodes a PNG, JPEG, TIFF, WebP, GIF, BMP or PNM file; of several frames, the first.

    8 and 16 bits per channel and floating-point TIFF in [0, 1] keep their precision. EXIF
    orientation is applied.

    Raises:
        ImageError: the file is missing, unreadable, not a regular file, empty, truncated,
            corrupted, not one of these formats or larger than `max_pixels`.
    """
    path = Path(path)
    name = shown_path(path)
    with _open_regular(path, name) as file:
        return _guarded(name, lambda: _decode(file, name, max_pixels), max_pixels)


def image_from(value: object, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Takes whatever a caller has: a path, a Pillow image, an `Image` or an array.

    An array is (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of uint8, uint16, bool, or floats
    in [0, 1]; it is copied. A Pillow image of 16-bit colour was already cut to 8 bits by Pillow:
    give its path to keep them.

    Raises:
        ImageError: it is none of these, or cannot be decoded.
    """
    if isinstance(value, Image):
        return value
    if isinstance(value, (str, os.PathLike)):
        return read_image(value, max_pixels=max_pixels)
    if isinstance(value, PILImage.Image):
        picture = value
        _check_size("the Pillow image", *picture.size, max_pixels)
        return _guarded(
            "the Pillow image", lambda: _from_pillow(picture, "the Pillow image"), max_pixels
        )
    if isinstance(value, np.ndarray):
        return _from_array(value, max_pixels)
    raise ImageError(
        f"expected a path, a Pillow image or a NumPy array, got {type(value).__name__}: "
        f"convert it to one of these."
    )


def resize(image: Image, size: int) -> NDArray[np.float32]:
    """Squashes the image to a square, as the paper does: the aspect ratio is not kept.

    Bilinear; when shrinking, the filter widens with the scale, so that fine texture does not alias.

    Args:
        image: any decoded image.
        size: side of the square in pixels, at least 1.

    Returns:
        (3, size, size) float32 in [0, 1].

    Raises:
        ConfigError: `size` is below 1.
    """
    if size < 1:
        raise ConfigError(f"the image size must be at least 1 pixel, got {size}.")
    pixels = image.pixels
    if pixels.dtype == np.uint8:
        picture = PILImage.fromarray(np.ascontiguousarray(pixels))
        small = np.asarray(picture.resize((size, size), PILImage.Resampling.BILINEAR))
        return np.ascontiguousarray(small.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)
    channels = [
        PILImage.fromarray(np.ascontiguousarray(pixels[..., channel], dtype=np.float32)).resize(
            (size, size), PILImage.Resampling.BILINEAR
        )
        for channel in range(1 if image.grey else 3)
    ]
    squashed = np.stack([np.asarray(channel) for channel in channels]).clip(0, 1)
    return np.repeat(squashed, 3, axis=0) if image.grey else squashed


def read_mask(path: str | os.PathLike[str], *, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Reads a defect mask: True where the mask's pixel is not black.

    Args:
        path: any image file `read_image` takes.
        shape: (H, W) of the image it belongs to, in pixels.

    Returns:
        (H, W) bool, True on the defect.

    Raises:
        ImageError: the file cannot be decoded.
        DataError: its size differs from `shape`.
    """
    height, width = shape
    mask = read_image(path, max_pixels=max(MAX_PIXELS, height * width))
    if (mask.height, mask.width) != (height, width):
        raise DataError(
            f"{shown_path(path)}: the mask is {mask.width}×{mask.height} pixels and its image "
            f"{width}×{height}: give a mask of the image's size."
        )
    return np.asarray(mask.pixels.any(axis=2))


def _open_regular(path: Path, name: str) -> BinaryIO:
    """Opens a file that holds something; never a FIFO, which would block, nor a device."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name}: this is a folder: give the path of one image file.")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(
                f"{name}: this is a pipe, socket or device: copy the image to a regular file."
            )
        if status.st_size == 0:
            raise ImageError(f"{name}: the file is empty (0 bytes): copy or export it again.")
        return path.open("rb")
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file: check the path.") from error
    except PermissionError as error:
        raise ImageError(f"{name}: permission denied: make the file readable.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise ImageError(
                f"{name}: a symbolic link that leads back to itself: link it to a file."
            ) from error
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"{name}: cannot be opened ({reason}): check the path.") from error


def _guarded(name: str, decode: Callable[[], Image], max_pixels: int) -> Image:
    """Runs a decoder on untrusted bytes: whatever it raises becomes one `ImageError`."""
    try:
        with _WITHOUT_WARNINGS:
            return decode()
    except ImageError:
        raise
    except PILImage.DecompressionBombError as error:
        raise ImageError(
            f"{name}: larger than the limit of {max_pixels:,} pixels or than Pillow's own: crop or "
            f"shrink it."
        ) from error
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to decode it: crop or shrink it.") from error
    except Exception as error:  # decoders raise anything at all on hostile bytes
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ImageError(
            f"{name}: truncated or corrupted ({reason}): copy or export it again."
        ) from error


def _decode(file: BinaryIO, name: str, max_pixels: int) -> Image:
    head = file.read(32)
    reader = next((read for magic, read in _READERS.items() if head.startswith(magic)), None)
    if reader is None or (reader is WebPImageFile and head[8:12] != b"WEBP"):
        size = os.fstat(file.fileno()).st_size
        raise ImageError(
            f"{name}: expected an image, got {size:,} bytes of {_kind(head)}: save it as PNG, JPEG "
            f"or TIFF."
        )
    if reader is TiffImageFile:
        tags = ImageFileDirectory_v2(head[:16] if head[2] == 43 else head[:8])
        file.seek(tags.next)
        tags.load(file)
        _check_size(name, tags[256], tags[257], max_pixels)
        # A tile may be larger than the image, and libtiff allocates it whole.
        _check_size(name, tags.get(322, 1), tags.get(323, 1), max_pixels)
        if set(tags.get(339, (1,))) & {2, 3} or max(tags.get(258, (1,))) > 8:
            return _decode_deep_tiff(file, tags, name)
    file.seek(0)
    picture = reader(file)
    _check_size(name, *picture.size, max_pixels)
    if picture.format in _CHECKS:
        pillow_position = file.tell()
        file.seek(0)
        data = file.read()
        _CHECKS[picture.format](data)
        if picture.format == "PNG" and head[24] == 16:
            return _decode_png16(data, picture, name)
        file.seek(pillow_position)
    if picture.format == "PPM":
        arguments = picture.tile[0].args  # type: ignore[attr-defined]
        maximum = arguments[1] if isinstance(arguments, tuple) else 255
        if maximum > 255 or arguments == "I;16B":
            return _decode_pnm16(file, picture, 65535 if arguments == "I;16B" else maximum, name)
    return _from_pillow(picture, name)


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if min(width, height) < 1:
        raise ImageError(f"{name}: it has no pixels ({width}×{height}): export it again.")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width}×{height} pixels are over the limit of {max_pixels:,}: crop or shrink "
            f"it, or raise max_pixels."
        )


def _check_png(data: bytes) -> None:
    """Raises ValueError unless every critical chunk is whole: Pillow does not check IDAT's CRC."""
    view = memoryview(data)
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        if kind[:1].isupper() and zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(
            view[end - 4 : end]
        ):
            raise ValueError(f"wrong checksum in chunk {kind.decode('ascii', 'replace')}")
        if kind == b"IEND":
            return
        position = end
    raise ValueError("the PNG's end is missing")


def _check_jpeg(data: bytes) -> None:
    """Raises ValueError without an end marker: libjpeg fills a file padded with zeros with grey."""
    position = 2
    while position + 4 <= len(data):
        marker, length = struct.unpack_from(">HH", data, position)
        if marker == 0xFFDA:
            if data.find(b"\xff\xd9", position) > 0:
                return
            break
        # Anything but a segment here is fill bytes, which decoders step over as well.
        position += 2 + length if 0xFFC0 <= marker < 0xFFFF else 1
    raise ValueError("the JPEG's end is missing")


_CHECKS = {"PNG": _check_png, "JPEG": _check_jpeg, "MPO": _check_jpeg}


def _decode_png16(data: bytes, picture: PILImage.Image, name: str) -> Image:
    import imagecodecs

    values = _unit_range(imagecodecs.png_decode(data), name)
    key = picture.info.get("transparency")
    if key is not None:
        # The colour that means transparent. Compared here because libpng swaps its bytes in grey.
        colours = 1 if isinstance(key, int) else 3
        colour = values.reshape(*values.shape[:2], -1)[..., :colours]
        is_opaque = (colour != _unit_range(np.array(key, np.uint16), name)).any(axis=2)
        values = colour * is_opaque[..., None]
    return _finished(values, depth=16, orientation=_orientation(picture, name))


def _decode_pnm16(file: BinaryIO, picture: PILImage.Image, maximum: int, name: str) -> Image:
    decoder, _, offset, _ = picture.tile[0]  # type: ignore[attr-defined]
    if decoder == "ppm_plain":
        raise ImageError(f"{name}: 16-bit PNM in plain text is not read: save it as 16-bit PNG.")
    file.seek(offset)
    shape = (picture.height, picture.width, 3 if picture.mode == "RGB" else 1)
    values = np.frombuffer(file.read(2 * int(np.prod(shape))), ">u2").reshape(shape)
    return _finished(_unit_range(values / np.float32(maximum), name), depth=16)


def _decode_deep_tiff(file: BinaryIO, tags: ImageFileDirectory_v2, name: str) -> Image:
    """Decodes TIFF of 16 bits or floats, which Pillow cuts to 8 bits or does not know."""
    import imagecodecs

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
    array = imagecodecs.tiff_decode(file.read())
    if tags.get(284, 1) == 2 and samples > 1:
        array = np.moveaxis(array, 0, -1)
    array = array.reshape(tags[257], tags[256], samples)
    values = _unit_range(array, name)
    if photometric == 0:
        values[..., 0] = 1 - values[..., 0]
    alpha_kind = tags.get(338, (0,))[0] if samples > colours else None
    if alpha_kind in (0, 1):  # not an alpha at all, or colours already multiplied by it
        values = values[..., :colours]
    return _finished(values, depth=16 if kind == 1 else 32, orientation=tags.get(274, 1))


def _from_pillow(picture: PILImage.Image, name: str) -> Image:
    picture.load()
    mode = picture.mode
    orientation = _orientation(picture, name)
    if mode.startswith("I;16"):
        values = _unit_range(np.asarray(picture), name)
        return _finished(values, depth=16, orientation=orientation)
    if mode == "F":
        values = _unit_range(np.asarray(picture), name)
        return _finished(values, depth=32, orientation=orientation)
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
    return _finished(array, depth=8, orientation=orientation)


def _from_array(array: NDArray[Any], max_pixels: int) -> Image:
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    kind = (array.dtype.kind, array.dtype.itemsize)
    if not is_image or (kind not in {("u", 1), ("u", 2), ("b", 1)} and kind[0] != "f"):
        raise ImageError(
            f"expected an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, uint16, bool "
            f"or float, got shape {array.shape} of {array.dtype}: convert it."
        )
    _check_size("the array", array.shape[1], array.shape[0], max_pixels)
    array = np.asarray(array)
    if kind == ("b", 1):
        array = array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint8:
        return _finished(array.copy(), depth=8)
    return _finished(_unit_range(array, "the array"), depth=16 if kind[0] == "u" else 32)


def _unit_range(array: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Turns uint16 or floats of any shape into float32 in [0, 1]."""
    if array.dtype.kind == "u":
        return array.astype(np.float32) / np.float32(65535)
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise ImageError(f"{name}: it holds NaN or infinite values: replace them.")
    if low < -_FLOAT_TOLERANCE or high > 1 + _FLOAT_TOLERANCE:
        raise ImageError(
            f"{name}: expected floats from 0 to 1, got {low:.6g} to {high:.6g}: rescale it."
        )
    return array.astype(np.float32).clip(0, 1)


def _finished(array: NDArray[Any], *, depth: int, orientation: int = 1) -> Image:
    """(H, W) or (H, W, C) with C = grey, grey + alpha, RGB or RGBA → RGB on black, upright."""
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.shape[2] in (2, 4):
        colour, alpha = pixels[..., :-1], pixels[..., -1:]
        if pixels.dtype == np.uint8:
            pixels = ((colour.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)
        else:
            pixels = colour * alpha
    is_grey = pixels.shape[2] == 1
    if is_grey:
        pixels = np.repeat(pixels, 3, axis=2)
    if orientation in (5, 6, 7, 8):  # EXIF 5–8 are 1–4 of the image mirrored about its diagonal
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return Image(np.ascontiguousarray(pixels), depth, is_grey)


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
