"""Whether a file holds every pixel that its header promises: what the decoders do not tell."""

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from PIL import Image as PILImage

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
"""First column and row, and steps to the next, of each pass of an interlaced one."""
_MARKS = (171, 58)
_JPEG_FRAMES = {0xFFC0, 0xFFC1, 0xFFC2, 0xFFC9, 0xFFCA}
"""Sequential and progressive ones, which hold coefficients; lossless ones hold pixels."""
_ALL_COEFFICIENTS = 2**64 - 1
_END_OF_LINE = "000000000001"
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_INFLATED_AT_ONCE = 2**20
_DEFLATE = (8, 32946)
"""TIFF's names for it, of its own and of Adobe."""


def check_png(data: bytes) -> None:
    """Raises ValueError unless every critical chunk is whole: Pillow does not check IDAT's CRC."""
    view = memoryview(data)
    for kind, start, end in _png_chunks(data):
        crc = data[end : end + 4]
        if kind[:1].isupper() and zlib.crc32(view[start - 4 : end]) != int.from_bytes(crc):
            raise ValueError(f"wrong checksum in chunk {kind.decode('ascii', 'replace')}")
        if kind == b"IEND":
            return
    raise ValueError("the PNG's end is missing")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind of each chunk, and where its content begins and ends, as far as they are whole."""
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            return
        yield kind, position + 8, end
        position = end + 4


def load_png(picture: PILImage.Image, data: bytes) -> None:
    """Decodes a PNG of 8 bits, or raises ValueError where its rows end early.

    Pillow takes a stream that ends early, and leaves the rest as it finds it. So two pixels of the
    last row are marked before; where the marks are still there, and in interlaced files, whose
    rows come in another order, the rows are counted.
    """
    width, height = picture.size
    canvas = PILImage.new(picture.mode, picture.size, None).im
    bands = canvas.bands
    marked = {}
    for x, mark in zip((0, width - 1), _MARKS, strict=True):
        canvas.putpixel((x, height - 1), mark if bands == 1 else (mark,) * bands)
        marked[x, height - 1] = canvas.getpixel((x, height - 1))
    picture.im = canvas
    picture.load()
    is_marked = all(canvas.getpixel(place) == mark for place, mark in marked.items())
    if is_marked or picture.info.get("interlace"):
        _count_png_rows(data)


def _count_png_rows(data: bytes) -> None:
    """Raises ValueError where a PNG's stream holds less than its header promises."""
    width, height, depth, colour, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * _PNG_CHANNELS[colour]
    expected = 0
    for left, top, right, down in _PNG_PASSES if is_interlaced else ((0, 0, 1, 1),):
        columns, rows = -((left - width) // right), -((top - height) // down)
        expected += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
    inflate, count = zlib.decompressobj(), 0
    for kind, start, end in _png_chunks(data):
        waiting = data[start:end] if kind == b"IDAT" else b""
        while waiting and not inflate.eof and count < expected:
            count += len(inflate.decompress(waiting, _INFLATED_AT_ONCE))
            waiting = inflate.unconsumed_tail
    if count < expected:
        raise ValueError(f"its rows end at {count:,} of {expected:,} bytes")


class _Scans(NamedTuple):
    """What the header of a JPEG says of what follows it."""

    start: int
    """Of the first scan, in bytes."""
    channels: bytes
    """By the numbers that scans name them by; none in a lossless one."""
    is_progressive: bool


def check_jpeg(data: bytes) -> None:
    """Raises ValueError without an end, or where scans are missing.

    libjpeg takes a progressive file of its first scan, a blur, for a whole one.
    """
    header = _read_jpeg_header(data)
    end = data.find(b"\xff\xd9", header.start)
    if end < 0:
        raise ValueError("the JPEG's end is missing")
    missing = dict.fromkeys(header.channels, _ALL_COEFFICIENTS)
    position = header.start
    while any(missing.values()) and 0 <= position < end:
        count = data[position + 4]
        first, last, bit = data[position + 5 + 2 * count : position + 8 + 2 * count]
        if not header.is_progressive:
            first, last, bit = 0, 63, 0
        if bit & 15 == 0:  # complete to the last bit
            for channel in data[position + 5 : position + 5 + 2 * count : 2]:
                done = (1 << last + 1) - (1 << first)
                missing[channel] = missing.get(channel, 0) & ~done
        position = data.find(b"\xff\xda", position + 2)
    if any(missing.values()):
        raise ValueError("scans that refine the JPEG are missing")


def _read_jpeg_header(data: bytes) -> _Scans:
    position, channels, is_progressive = 2, b"", False
    while position + 10 <= len(data):
        marker, length = struct.unpack_from(">HH", data, position)
        if marker in _JPEG_FRAMES:
            channels = data[position + 10 : position + 2 + length : 3]
            is_progressive = marker & 3 == 2
        if marker == 0xFFDA:
            break
        # Anything but a segment here is fill bytes, which decoders step over as well.
        position += 2 + length if 0xFFC0 <= marker < 0xFFFF else 1
    return _Scans(position, channels, is_progressive)


def mended_jpeg(data: bytes, warning: str) -> bytes:
    """A JPEG without what libjpeg warns of but which costs no pixel; else raises ValueError.

    Some cameras pad an image before its end, and some telephones leave out of a sequential scan
    that it holds all coefficients.
    """
    start = _read_jpeg_header(data).start
    if found := re.search(r"(\d+) extraneous bytes before marker 0xd9", warning):
        end = data.index(b"\xff\xd9", start)
        return data[: end - int(found[1])] + data[end:]
    if "Invalid SOS parameters for sequential" in warning:
        place = start + 5 + 2 * data[start + 4]
        return data[:place] + b"\0\x3f\0" + data[place + 3 :]
    raise ValueError(warning)


def check_runs(data: bytes, start: int, size: tuple[int, int], *, is_half: bool) -> None:
    """Raises ValueError where the runs of a BMP leave a pixel out, which Pillow paints black.

    Args:
        data: the whole file.
        start: where the runs begin, in bytes.
        size: width and height.
        is_half: True: two pixels a byte.
    """
    width, height = size
    position, x, y = start, 0, 0
    while position + 2 <= len(data) and y < height:
        count, value = data[position], data[position + 1]
        position += 2
        if count:
            x += count
        elif value == 2:
            break  # a jump
        elif value > 2:
            x += value
            used = (value + 1) // 2 if is_half else value
            position += used + used % 2
        elif x < width:
            break
        else:
            x, y = 0, y + 1
            if value == 1:  # the end of all rows, not of this one
                break
    if y < height - 1 or (y < height and x < width):
        raise ValueError(f"its pixels end in row {y + 1} of {height}")


def check_deflated(data: bytes, tags: Mapping[int, Any], bytes_a_pixel: int) -> None:
    """Raises ValueError unless each part of a deflated TIFF is whole: libtiff does not mind.

    Args:
        data: the whole file.
        tags: of its first image.
        bytes_a_pixel: of one channel's, where channels are stored apart.
    """
    if tags.get(259) not in _DEFLATE:
        return
    width, rows = tags.get(322, tags[256]), tags.get(323, tags.get(278, tags[257]))
    across = -(-tags[256] // width)
    down = -(-tags[257] // rows)
    parts = zip(tags[324 if 324 in tags else 273], tags[325 if 324 in tags else 279], strict=True)
    for number, (start, length) in enumerate(parts):
        last = 322 not in tags and number // across % down == down - 1
        height = tags[257] - rows * (down - 1) if last else rows
        inflated = zlib.decompress(data[start : start + length])
        if len(inflated) < width * height * bytes_a_pixel:
            raise ValueError(f"part {number + 1} ends at {len(inflated):,} bytes")


def check_fax(data: bytes, tags: Mapping[int, Any]) -> None:
    """Raises ValueError where a fax (a TIFF of group 3 or 4) ends before its last row.

    libtiff takes the code of an end wherever it comes, and leaves the rest white or as it was.
    """
    group = {3: 3, 4: 4}.get(tags.get(259, 1))
    if group is None or not {273, 279} <= tags.keys():
        return
    rows = min(tags.get(278, tags[257]), tags[257])
    for number, (start, length) in enumerate(zip(tags[273], tags[279], strict=True)):
        strip = data[start : start + length]
        if tags.get(266) == 2:  # the first bit is the lowest
            strip = strip.translate(_REVERSED)
        bits = f"{int.from_bytes(strip):0{8 * length}b}"
        if group == 4:
            _, _, rest = bits.partition(_END_OF_LINE)
            is_whole = "1" not in rest.removeprefix(_END_OF_LINE)
        else:
            found = bits.count(_END_OF_LINE)  # none: its writer leaves them out
            is_whole = found == 0 or found >= min(rows, tags[257] - number * rows) - 1
        if not is_whole:
            raise ValueError(f"the fax ends early in strip {number + 1}")
