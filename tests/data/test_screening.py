"""What is plainly harmless, and what a header tells of an image before it is decoded."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import Array, png16, tiff

from faults.bad_images import (
    BOMBS,
    animated_webp,
    empty_chunks_png,
    encoded,
    run_bmp,
    scans_jpeg,
    short_png,
    texture,
)
from haloae.data.images import bytes_of
from haloae.data.screening import harmless, read_header

COLOUR = texture(np.random.default_rng(3), 30, 40, 3)
DEEP = COLOUR.astype(np.uint16) * 200
HARMLESS = {
    "png": encoded(COLOUR, "PNG"),
    "png of 16 bits": png16(DEEP),
    "jpeg": encoded(COLOUR, "JPEG"),
    "jpeg, progressive, with a profile": encoded(
        COLOUR, "JPEG", progressive=True, icc_profile=bytes(200_000)
    ),
    "tiff": encoded(COLOUR, "TIFF"),
    "tiff of 16 bits": tiff(DEEP, rowsperstrip=1),
    "tiff from the other end": tiff(COLOUR, byteorder=">"),
    "bmp": encoded(COLOUR, "BMP"),
    "ppm": b"P6\n# by hand\n40 30\n255\n" + COLOUR.tobytes(),
    "text": b"hello",
    "nothing": b"",
}
RISKY = {
    "png of many chunks": empty_chunks_png(20_000),
    "png of many pixels": short_png(np.random.default_rng(0), "1", 1, width=6000, height=6000),
    "png with much else": encoded(COLOUR, "PNG") + bytes(2**21),
    "jpeg of many scans": scans_jpeg(1, side=40),
    "jpeg of fill bytes": BOMBS["jpeg of fill bytes"](5_000),
    "tiff, compressed": encoded(COLOUR, "TIFF", compression="tiff_lzw"),
    "tiff, tiled": tiff(COLOUR, tile=(16, 16)),
    "tiff of 64 bits": tiff(COLOUR, bigtiff=True),
    "tiff of large tags": BOMBS["tiff of large tags"](10),
    "webp": encoded(COLOUR, "WEBP"),
    "webp animated": animated_webp(50),
    "gif": encoded(COLOUR, "GIF"),
    "bmp of runs": run_bmp(b"\4\1\0\0" * 3),
    "ppm as text": b"P3 1 1 255 1 2 3",
    "ppm of a long comment": b"P6 #" + b"a" * 5000 + b"\n1 1 255\n123",
    "tiff that ends at once": b"II*\0\x08\0\0\0",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_ordinary_files_are_harmless_and_start_at_their_start(name: str) -> None:
    data = HARMLESS[name]
    file = harmless(io.BytesIO(data), len(data))
    assert file is not None
    assert file.read() == data


@pytest.mark.parametrize("name", RISKY)
def test_what_may_cost_more_is_not(name: str) -> None:
    assert harmless(io.BytesIO(RISKY[name]), len(RISKY[name])) is None


@pytest.mark.parametrize(
    "write",
    [
        lambda: encoded(COLOUR, "PNG"),
        lambda: encoded(COLOUR, "JPEG", icc_profile=bytes(200_000)),
        lambda: tiff(COLOUR, compression="lzw"),
        lambda: encoded(COLOUR, "WEBP"),
        lambda: encoded(COLOUR, "WEBP", lossless=True),
        lambda: encoded(COLOUR, "WEBP", exif=b"Exif\0\0"),
        lambda: encoded(COLOUR, "GIF"),
        lambda: encoded(COLOUR, "BMP"),
        lambda: encoded(COLOUR, "PPM"),
    ],
)
def test_a_header_tells_the_size(write: Callable[[], bytes], tmp_path: Path) -> None:
    header = read_header(io.BytesIO(write()))
    assert header is not None
    assert (header.pixels, header.is_deep) == (30 * 40, False)
    (tmp_path / "image").write_bytes(write())
    assert bytes_of(tmp_path / "image") == COLOUR.nbytes


@pytest.mark.parametrize("array", [DEEP, DEEP[..., 0]])
def test_a_header_tells_the_depth(array: Array) -> None:
    pgm = b"P5 40 30 1023\n" + bytes(2400)
    for data in (png16(array), tiff(array), pgm):
        header = read_header(io.BytesIO(data))
        assert header is not None
        assert (header.pixels, header.is_deep) == (30 * 40, True)


def test_what_takes_no_memory_yet(tmp_path: Path) -> None:
    assert bytes_of(tmp_path / "missing.png") == 0
