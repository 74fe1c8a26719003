"""Image files that lack pixels without saying so, and small ones that cost much to decode.

Each table maps a name to what writes the file's bytes, from nothing but a seed or a size, so that
tests take a few small ones and a campaign all of them, large.
"""

import io
import struct
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

SIDE = 72
"""Of the images that are damaged: rows and columns."""
_PNG_BITS = {"1": 1, "L": 8, "P": 8, "LA": 16, "RGB": 24, "RGBA": 32}
_PNG_COLOURS = {"1": 0, "L": 0, "P": 3, "LA": 4, "RGB": 2, "RGBA": 6}
_EOB_RUN = 2**15 - 1
"""Most blocks that one symbol of a progressive JPEG calls empty."""


def texture(rng: np.random.Generator, *shape: int) -> NDArray[np.uint8]:
    """Slopes and a little noise, which no encoder makes nothing of."""
    slopes = np.add.outer(*(np.arange(side) for side in shape[:2])) % 200
    slopes = slopes.reshape(*slopes.shape, *(1 for _ in shape[2:]))
    return (slopes + rng.integers(0, 30, shape)).astype(np.uint8)


def encoded(pixels: NDArray[np.uint8] | Image.Image, kind: str, **options: object) -> bytes:
    """A file of Pillow's."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def short_png(
    rng: np.random.Generator, mode: str, rows: int, *, width: int = SIDE, height: int = SIDE
) -> bytes:
    """A PNG with the first `rows` of its rows, in a stream that ends as it should."""
    bits = _PNG_BITS[mode]
    line = 1 + (width * bits + 7) // 8
    values = rng.integers(1, 200, (rows, line)).astype(np.uint8)
    values[:, 0] = 0  # no filter
    header = struct.pack(">IIBBBBB", width, height, min(bits, 8), _PNG_COLOURS[mode], 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if mode == "P" else b""
    pixels = chunk(b"IDAT", zlib.compress(values.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + pixels + chunk(b"IEND", b"")


def interlaced_png(
    rng: np.random.Generator, share: float, *, shape: tuple[int, int] = (SIDE, SIDE)
) -> bytes:
    """An interlaced PNG of the first part of its bytes, in a stream that ends as it should."""
    passes = (
        *((8, 8, 0, 0), (8, 8, 0, 4), (8, 4, 4, 0), (4, 4, 0, 2)),
        *((4, 2, 2, 0), (2, 2, 0, 1), (2, 1, 1, 0)),
    )
    pixels = texture(rng, *shape, 3)
    lines = b"".join(
        b"\0" + row.tobytes()
        for down, right, top, left in passes
        for row in pixels[top::down, left::right]
        if row.size
    )
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *shape[::-1], 8, 2, 0, 0, 1))
    data = chunk(b"IDAT", zlib.compress(lines[: int(share * len(lines))]))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def ended(rng: np.random.Generator, write: "Writer", share: float) -> bytes:
    """A JPEG cut off, and ended as if it were whole."""
    jpeg = write(rng)
    return jpeg[: int(share * len(jpeg))] + b"\xff\xd9"


def jpeg_of_scans(jpeg: bytes, count: int) -> bytes:
    """The first scans of a progressive JPEG."""
    position = 0
    for _ in range(count + 1):
        position = jpeg.index(b"\xff\xda", position + 2)
    return jpeg[: jpeg.rindex(b"\xff\xc4", 0, position)] + b"\xff\xd9"


def zeroed_scan(jpeg: bytes) -> bytes:
    """A JPEG whose pixels are all zeros, as of a file that was never written to the end."""
    start = jpeg.index(b"\xff\xda")
    start += 2 + int.from_bytes(jpeg[start + 2 : start + 4])
    return jpeg[:start] + bytes(len(jpeg) - start - 2) + b"\xff\xd9"


def fax(rng: np.random.Generator, compression: str, *, zeros: bool) -> bytes:
    """A bilevel TIFF with code words that mean nothing, or zeros as of a lost block, in it."""
    picture = Image.fromarray(texture(rng, SIDE, SIDE)).convert("1")
    data = bytearray(encoded(picture, "TIFF", compression=compression))
    start = tifffile.TiffFile(io.BytesIO(data)).pages[0].dataoffsets[0]
    data[start + 400 : start + 500] = bytes(100) if zeros else b"\x01\x55" * 50
    return bytes(data)


def run_bmp(runs: bytes, *, width: int = 4, height: int = 3) -> bytes:
    """A BMP of run-length encoded rows."""
    palette = bytes(1024)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    start = 14 + len(header) + len(palette)
    head = b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start)
    return head + header + palette + runs


def deflated_tiff(rng: np.random.Generator) -> bytes:
    """A 16-bit TIFF, deflated behind a predictor, with a byte of its stream changed."""
    values = texture(rng, SIDE, SIDE).astype(np.uint16) * 200
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, compression="deflate", predictor=True)
    data = bytearray(buffer.getvalue())
    page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    start, length = page.dataoffsets[0], page.databytecounts[0]
    data[start + length // 2] ^= 0x5A
    return bytes(data)


Writer = Callable[[np.random.Generator], bytes]


def _jpegs() -> dict[str, Writer]:
    def colour(rng: np.random.Generator, **options: object) -> bytes:
        return encoded(texture(rng, SIDE, SIDE, 3), "JPEG", quality=90, **options)

    kinds: dict[str, Writer] = {
        "baseline": colour,
        "progressive": lambda rng: colour(rng, progressive=True),
        "restarts": lambda rng: colour(rng, restart_marker_rows=1),
        "grey": lambda rng: encoded(texture(rng, SIDE, SIDE), "JPEG"),
        "cmyk": lambda rng: encoded(Image.fromarray(texture(rng, SIDE, SIDE, 4), "CMYK"), "JPEG"),
    }
    cut = {
        f"jpeg {kind} ended at {share}": partial(ended, write=write, share=share)
        for kind, write in kinds.items()
        for share in (0.5, 0.7, 0.9)
    }
    return cut | {
        "jpeg progressive of one scan": lambda rng: jpeg_of_scans(kinds["progressive"](rng), 1),
        "jpeg progressive of four scans": lambda rng: jpeg_of_scans(kinds["progressive"](rng), 4),
        "jpeg baseline of zeros": lambda rng: zeroed_scan(kinds["baseline"](rng)),
        "jpeg restarts of zeros": lambda rng: zeroed_scan(kinds["restarts"](rng)),
    }


SHORT: dict[str, Writer] = {
    **{
        f"png {mode} of {rows} rows": partial(short_png, mode=mode, rows=rows)
        for mode in _PNG_BITS
        for rows in (0, 1, SIDE // 2, SIDE - 1)
    },
    **{
        f"png interlaced to {share}": partial(interlaced_png, share=share)
        for share in (0.01, 0.5, 0.99)
    },
    "png of one column": lambda rng: short_png(rng, "L", 3, width=1),
    **_jpegs(),
    "tiff fax of group 3, zeros": lambda rng: fax(rng, "group3", zeros=True),
    "tiff fax of group 3, no codes": lambda rng: fax(rng, "group3", zeros=False),
    "tiff fax of group 4, zeros": lambda rng: fax(rng, "group4", zeros=True),
    "tiff fax of group 4, no codes": lambda rng: fax(rng, "group4", zeros=False),
    "bmp ended early": lambda rng: run_bmp(b"\4\1\0\0\4\2\0\1"),
    "bmp ended in a row": lambda rng: run_bmp(b"\4\1\0\0\4\2\0\0\2\3\0\1"),
    "bmp of short rows": lambda rng: run_bmp(b"\3\1\0\0\4\2\0\0\4\3\0\1"),
    "bmp with a jump": lambda rng: run_bmp(b"\4\1\0\0\1\2\0\2\1\0\2\2\0\0\4\3\0\1"),
    "pgm over its maximum": lambda rng: b"P5 4 3 100\n" + bytes(range(95, 107)),
    "pgm of 16 bits over its maximum": lambda rng: b"P5 2 1 1000\n" + struct.pack(">HH", 5, 1001),
    "tiff of 16 bits, deflated": deflated_tiff,
}
"""Files that are well formed, as far as their containers go, but do not hold all their pixels."""


def scans_jpeg(bits: int, *, side: int) -> bytes:
    """A sound progressive JPEG, all grey, with a scan for each bit of each coefficient."""
    blocks = (-(-side // 8)) ** 2
    # The only code of each table, '0', means for the first coefficient: as before; for the others:
    # so many empty blocks, with their number behind it, which may reach beyond the last one.
    empty = _stuffed(f"0{2**14 - 1:014b}" * -(-blocks // _EOB_RUN))
    data = [b"\xff\xd8", _segment(0xDB, b"\0" + bytes([1] * 64))]
    data.append(_segment(0xC2, struct.pack(">BHHBBBB", 8, side, side, 1, 1, 0x11, 0)))
    for table, symbol in ((0x00, 0), (0x10, 0xE0)):
        data.append(_segment(0xC4, bytes([table, 1, *[0] * 15, symbol])))
    data.append(_segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + _stuffed("0" * blocks))
    for bit in reversed(range(bits)):
        before = 0 if bit == bits - 1 else bit + 1
        for place in range(1, 64):
            scan = bytes([1, 1, 0, place, place, before << 4 | bit])
            data.append(_segment(0xDA, scan) + empty)
    return b"".join(data) + b"\xff\xd9"


def _segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def _stuffed(bits: str) -> bytes:
    whole = bits + "1" * (-len(bits) % 8)
    return int(whole, 2).to_bytes(len(whole) // 8).replace(b"\xff", b"\xff\0")


def _in_jpeg(data: bytes) -> bytes:
    """A sound JPEG with something before all else in it."""
    jpeg = encoded(np.full((8, 8), 100, np.uint8), "JPEG")
    return jpeg[:2] + data + jpeg[2:]


def empty_scans_jpeg(scans: int, *, side: int) -> bytes:
    """A progressive JPEG with scans of nothing at all."""
    jpeg = scans_jpeg(1, side=side)
    return jpeg[:-2] + _segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) * scans + jpeg[-2:]


def empty_chunks_png(chunks: int) -> bytes:
    """A sound PNG with empty chunks that decoders step over."""
    png = encoded(np.full((8, 8), 100, np.uint8), "PNG")
    return png[:33] + chunk(b"teSt", b"") * chunks + png[33:]


def animated_webp(side: int) -> bytes:
    """An animation of one frame of one pixel on a large canvas."""
    frame = encoded(np.full((1, 1, 3), 100, np.uint8), "WEBP", lossless=True)[12:]
    size = (side - 1).to_bytes(3, "little")
    body = _riff(b"VP8X", b"\x02\0\0\0" + size + size) + _riff(b"ANIM", bytes(6))
    body += _riff(b"ANMF", bytes(12) + b"\x64\0\0\0" + frame)
    return _riff(b"RIFF", b"WEBP" + body)


def _riff(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def runs_bmp(side: int) -> bytes:
    """A sound BMP of run-length encoded rows, all grey."""
    row = b"\xff\x07" * (side // 255) + bytes([side % 255, 7]) * bool(side % 255) + b"\0\0"
    return run_bmp(row * side + b"\0\1", width=side, height=side)


def many_tags_tiff(tags: int, *, size: int) -> bytes:
    """A TIFF whose tags all point at the same large value."""
    entries = b"".join(
        struct.pack("<HHII", tag, kind, count, value)
        for tag, kind, count, value in (
            *((256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)),
            *((273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 4), (279, 4, 1, 16)),
            *((40000 + number % 20000, 7, size, 0) for number in range(tags)),
        )
    )
    start = max(size, 24)
    count = struct.pack("<H", len(entries) // 12)
    return b"II*\0" + struct.pack("<I", start) + bytes(start - 8) + count + entries + bytes(4)


def deflated_bomb_tiff(side: int) -> bytes:
    """A deflated TIFF of zeros, of 16 bits."""
    buffer = io.BytesIO()
    zeros = np.zeros((side, side), np.uint16)
    tifffile.imwrite(buffer, zeros, compression="deflate", rowsperstrip=side)
    return buffer.getvalue()


BOMBS: dict[str, Callable[[int], bytes]] = {
    "jpeg of 883 sound scans": lambda side: scans_jpeg(14, side=side),
    "jpeg of 2000 empty scans": lambda side: empty_scans_jpeg(2000, side=side),
    "jpeg of fill bytes": lambda count: _in_jpeg(b"\xff" * count),
    "jpeg of empty segments": lambda count: _in_jpeg(b"\xff\xe5\0\2" * count),
    "png of empty chunks": empty_chunks_png,
    "png of one row": lambda side: short_png(
        np.random.default_rng(0), "L", 1, width=side, height=side
    ),
    "webp animated": animated_webp,
    "gif of comments": lambda count: b"GIF89a\4\0\4\0\0\0\0!\xfe" + b"\1a" * count,
    "bmp of runs": runs_bmp,
    "ppm of comments": lambda count: b"P3 4 4 255\n" + b"#\n" * count + b"1 " * 48,
    "tiff of large tags": lambda count: many_tags_tiff(count, size=2**20),
    "tiff deflated": deflated_bomb_tiff,
}
"""By a size of its own: a side in pixels, or a number of parts."""
LARGE = {
    "jpeg of 883 sound scans": 13_000,
    "jpeg of 2000 empty scans": 13_000,
    "jpeg of fill bytes": 20_000_000,
    "jpeg of empty segments": 2_000_000,
    "png of empty chunks": 3_000_000,
    "png of one row": 14_000,
    "webp animated": 13_300,
    "gif of comments": 20_000_000,
    "bmp of runs": 13_300,
    "ppm of comments": 10_000_000,
    "tiff of large tags": 65_000,
    "tiff deflated": 14_000,
}
"""Sizes at which they take many seconds or gigabytes where nothing stops them."""
