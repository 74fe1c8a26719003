"""Decoding one image: bit depth, colour, orientation, limits.

Every image becomes RGB, upright, without alpha. Nothing is decoded in part: a file is read whole
and unharmed, or refused with an `ImageError` of one sentence.
"""

import errno
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from haloae.data.decoders import Decoded, check_size, decode, from_pillow, unit_range
from haloae.data.limits import Limits, current_limits
from haloae.data.screening import harmless, read_header
from haloae.data.worker import decode_apart
from haloae.errors import DataError, ImageError
from haloae.files import NotRegularError, open_regular


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
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def read_image(path: str | os.PathLike[str], *, limits: Limits | None = None) -> Image:
    """Decodes a PNG, JPEG, TIFF, WebP, GIF, BMP or PNM file; of several frames, the first.

    8 and 16 bits per channel and floating-point TIFF in [0, 1] keep their precision. EXIF
    orientation is applied. What is not plainly harmless is decoded by another process.

    Args:
        path: of the file.
        limits: of what it may cost; None: those of the whole process, see `limit_images`.

    Raises:
        ImageError: the file is missing, unreadable, not a regular file, empty, truncated,
            corrupted, not one of these formats or over a limit.
    """
    path = Path(path)
    name = shown_path(path)
    limits = limits or current_limits()
    with _opened(path, name, limits) as opened:
        file = harmless(opened, os.fstat(opened.fileno()).st_size)
        if file is not None:
            return _decoded(file, name, limits)
    pixels, depth, grey = decode_apart(path, name, limits)
    return Image(pixels, depth, grey)


def image_from_bytes(data: bytes, name: str, limits: Limits) -> Image:
    """Decodes a file that is in memory, as `read_image` does, without ever writing it anywhere.

    Raises:
        ImageError: as `read_image`.
    """
    if not data:
        raise ImageError(f"{name}: it is empty (0 bytes): send it again.")
    _check_bytes(name, len(data), limits)
    file = harmless(io.BytesIO(data), len(data))
    if file is not None:
        return _decoded(file, name, limits)
    pixels, depth, grey = decode_apart(data, name, limits)
    return Image(pixels, depth, grey)


def is_quick(data: bytes) -> bool:
    """True: decoding takes little time and memory whatever is wrong with it, and no process."""
    return harmless(io.BytesIO(data), len(data)) is not None


def decode_here(source: Path | bytes, name: str, limits: Limits) -> Image:
    """Decodes a file in this process, whatever it is; `read_image` is for callers.

    Raises:
        ImageError: as `read_image`.
    """
    if isinstance(source, bytes):
        return _decoded(io.BytesIO(source), name, limits)
    with _opened(source, name, limits) as file:
        return _decoded(file, name, limits)


def _decoded(file: BinaryIO, name: str, limits: Limits) -> Image:
    return _guarded(name, lambda: _finished(decode(file, name, limits)), limits)


def readable_images(paths: Iterable[Path]) -> tuple[list[Path], list[ImageError]]:
    """Those of the images that can be read, and why each other cannot."""
    images, errors = [], []
    for path in paths:
        try:
            read_image(path)
            images.append(path)
        except ImageError as error:
            errors.append(error)
    return images, errors


def bytes_of(path: str | os.PathLike[str]) -> int:
    """What an image file will take as decoded, as its header tells; 0 where it cannot be read."""
    path = Path(path)
    limits = current_limits()
    try:
        with _opened(path, shown_path(path), limits) as file:
            header = read_header(file)
    except (ImageError, OSError):  # it will be said when the image is read
        return 0
    pixels = limits.pixels if header is None else header.pixels
    is_deep = header is not None and header.is_deep
    return min(pixels, limits.pixels) * 3 * (4 if is_deep else 1)


def image_from(value: object, *, limits: Limits | None = None) -> Image:
    """Takes whatever a caller has: a path, a file's bytes, a Pillow image, an `Image`, an array.

    An array is (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of uint8, uint16, bool, or floats
    in [0, 1]; it is copied. uint16 is divided by 65535, however many of its bits a camera fills:
    12-bit values look nearly black to a detector fitted on others. A Pillow image of 16-bit colour
    was already cut to 8 bits by Pillow: give its path to keep them.

    Args:
        value: the image.
        limits: of what it may cost; None: those of the whole process, see `limit_images`.

    Raises:
        ImageError: it is none of these, or cannot be decoded.
    """
    if isinstance(value, Image):
        return value
    limits = limits or current_limits()
    if isinstance(value, (str, os.PathLike)):
        if not os.fspath(value):
            raise ImageError("the path is empty: give the path of one image file.")
        return read_image(value, limits=limits)
    if isinstance(value, bytes):
        return image_from_bytes(value, "the image", limits)
    if isinstance(value, PILImage.Image):
        picture = value
        check_size("the Pillow image", *picture.size, limits)
        return _guarded(
            "the Pillow image",
            lambda: _finished(from_pillow(picture, "the Pillow image")),
            limits,
        )
    if isinstance(value, np.ndarray):
        return _from_array(value, limits)
    raise ImageError(
        f"expected a path, a Pillow image or a NumPy array, got {type(value).__name__}: "
        f"convert it to one of these."
    )


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
    mask = read_image(path)
    if (mask.height, mask.width) != (height, width):
        raise DataError(
            f"{shown_path(path)}: the mask is {mask.width}×{mask.height} pixels and its image "
            f"{width}×{height}: give a mask of the image's size."
        )
    return np.asarray(mask.pixels.any(axis=2))


def _opened(path: Path, name: str, limits: Limits) -> BinaryIO:
    """Opens a file that holds something, and not too much."""
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file: check the path.") from error
    except PermissionError as error:
        raise ImageError(f"{name}: permission denied: make the file readable.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: this is a folder: give the path of one image file.") from error
    except NotRegularError as error:
        raise ImageError(
            f"{name}: this is a pipe, socket or device: copy the image to a regular file."
        ) from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise ImageError(
                f"{name}: a symbolic link that leads back to itself: link it to a file."
            ) from error
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"{name}: cannot be opened ({reason}): check the path.") from error
    try:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise ImageError(f"{name}: the file is empty (0 bytes): copy or export it again.")
        _check_bytes(name, size, limits)
    except ImageError:
        file.close()
        raise
    return file


def _check_bytes(name: str, size: int, limits: Limits) -> None:
    if size > limits.bytes:
        raise ImageError(
            f"{name}: {size:,} bytes are over the limit of {limits.bytes:,}: crop or shrink it, or "
            f"raise the limit with --limit bytes={size}."
        )


def _guarded(name: str, decode: Callable[[], Image], limits: Limits) -> Image:
    """Runs a decoder on untrusted bytes: whatever it raises becomes one `ImageError`."""
    try:
        with _WITHOUT_WARNINGS:
            return decode()
    except ImageError:
        raise
    except PILImage.DecompressionBombError as error:
        raise ImageError(
            f"{name}: larger than the limit of {limits.pixels:,} pixels or than Pillow's own: crop "
            f"or shrink it."
        ) from error
    except MemoryError as error:
        raise ImageError(
            f"{name}: not enough memory to decode it within the limit of {limits.memory:,} bytes: "
            f"crop or shrink it, or raise the limit with --limit memory={2 * limits.memory}."
        ) from error
    except Exception as error:  # decoders raise anything at all on hostile bytes
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ImageError(
            f"{name}: truncated or corrupted ({reason}): copy or export it again."
        ) from error


def _from_array(array: NDArray[Any], limits: Limits) -> Image:
    if isinstance(array, np.ma.MaskedArray):
        raise ImageError(
            "a masked array says which pixels do not count, and here all do: give "
            "array.filled(value)."
        )
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    kind = (array.dtype.kind, array.dtype.itemsize)
    if not is_image or (kind not in {("u", 1), ("u", 2), ("b", 1)} and kind[0] != "f"):
        raise ImageError(
            f"expected an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, uint16, bool "
            f"or float, got shape {array.shape} of {array.dtype}: convert it."
        )
    check_size("the array", array.shape[1], array.shape[0], limits)
    array = np.asarray(array)
    if kind == ("b", 1):
        array = array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint8:
        return _finished(Decoded(array.copy(), depth=8))
    depth = 16 if kind[0] == "u" else 32
    return _finished(Decoded(unit_range(array, "the array"), depth))


def _finished(decoded: Decoded) -> Image:
    """Makes it RGB on black, upright."""
    array, depth, orientation = decoded
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.shape[2] in (2, 4):
        colour, alpha = pixels[..., :-1], pixels[..., -1:]
        if pixels.dtype == np.uint8:
            pixels = ((colour.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)
        else:
            pixels = colour * alpha
    is_grey = pixels.shape[2] == 1
    if is_grey:
        grey = pixels[..., 0]
        pixels = np.empty((*grey.shape, 3), grey.dtype)
        for channel in range(3):  # twice as fast as np.repeat
            pixels[..., channel] = grey
    if orientation in (5, 6, 7, 8):  # EXIF 5–8 are 1–4 of the image mirrored about its diagonal
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return Image(np.ascontiguousarray(pixels), depth, is_grey)
