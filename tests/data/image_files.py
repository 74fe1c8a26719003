"""Image files of odd sorts, by hand where no library writes them, and how they are refused."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image as PILImage

from haloae.data.images import read_image
from haloae.data.limits import Limits
from haloae.errors import ImageError

Array = NDArray[np.generic]


def refusal(path: Path, **limits: float) -> str:
    """The message `read_image` refuses a file with, checked to be one sentence naming it."""
    with pytest.raises(ImageError) as caught:
        read_image(path, limits=Limits(**limits))
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert "\n" not in message
    return message


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(array: Array, *extra: bytes) -> bytes:
    """A 16-bit PNG by hand, with extra chunks before the pixels."""
    height, width = array.shape[:2]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[array.size // (height * width)]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *extra,
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def encoded(array: Array, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(array).save(buffer, file_format, **options)
    return buffer.getvalue()


def tiff(array: Array, **options: Any) -> bytes:  # noqa: ANN401 - whatever tifffile takes
    buffer = io.BytesIO()
    if array.shape[-1] == 3:
        options.setdefault("photometric", "rgb")
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def noise(rng: np.random.Generator, *shape: int, dtype: type = np.uint8) -> Array:
    return rng.integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)
