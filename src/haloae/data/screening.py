"""Which files plainly take little time and memory to decode, told from how they are built.

A few bytes can ask for minutes and gigabytes: empty scans, empty chunks, frames, long comments.
What has none of these costs no more than its pixels and its bytes do, and there are few of both.
All others are decoded apart, see `worker`.
"""

import io
import re
import struct
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

MOST_PIXELS = 2**25
"""Of an image that is harmless: 34 megapixels, 100 MB as 8-bit RGB."""
MOST_BYTES_A_PIXEL = 8
"""RGBA of 16 bits, not compressed."""
SPARE_BYTES = 2**20
"""For metadata: EXIF with its thumbnail, profiles, makers' notes."""
MOST_BYTES = MOST_PIXELS * MOST_BYTES_A_PIXEL + SPARE_BYTES
MOST_CHUNKS = 2**14
"""Of a PNG: encoders write 8 kB and more in each."""
MOST_SEGMENTS = 1000
"""In the header of a JPEG, fill bytes included: cameras write some twenty."""
MOST_SCANS = 32
"""Of a JPEG and what may follow it in the file: progressive ones have ten or so."""
MOST_TAGS = 200
MOST_TAG_VALUES = 2**19
"""Of a TIFF, all tags together: two for each strip."""
_HEADER_BYTES = 4096
_FRAME_STARTS = {*range(0xFFC0, 0xFFD0)} - {0xFFC4, 0xFFC8, 0xFFCC}
_SPACE = rb"(?:\s|#[^\r\n]*[\r\n])+"
_PNM = re.compile(rb"P([1-6])%s(\d{1,9})%s(\d{1,9})(?:%s(\d{1,5}))?\s" % (_SPACE, _SPACE, _SPACE))


class Header(NamedTuple):
    """What an image's header says."""

    pixels: int
    """Width × height."""
    is_deep: bool
    """True: more than 8 bits a channel."""
    is_simple: bool
    """True: as far as the header goes, decoding takes as long as its pixels and bytes ask for."""
    body: int = 0
    """Where the scans of a JPEG begin, in bytes."""


def read_header(file: BinaryIO) -> Header | None:
    """Header of an image, from the start of its file; None where none is found in short time."""
    head = file.read(_HEADER_BYTES)
    read = _reader(head)
    return _header(read, head, file) if read else None


def harmless(file: BinaryIO, size: int) -> BinaryIO | None:
    """The file, where decoding it takes little time and memory whatever is wrong with it.

    Args:
        file: at its start.
        size: of it, in bytes.

    Returns:
        it, in memory where it had to be read; None where it is better decoded apart.
    """
    head = file.read(_HEADER_BYTES)
    read = _reader(head)
    if read and size > MOST_BYTES:
        return None
    data = head + file.read() if read in (_png, _jpeg) else b""
    if data:
        file = io.BytesIO(data)
    if read:
        header = _header(read, head, file)
        if header is None or not header.is_simple:
            return None
        if header.pixels > (MOST_PIXELS // 2 if header.is_deep else MOST_PIXELS):
            return None
        if size > MOST_BYTES_A_PIXEL * header.pixels + SPARE_BYTES:
            return None
        if data and not _has_few_parts(data, header.body):
            return None
    file.seek(0)
    return file


def _header(read: "_Read", head: bytes, file: BinaryIO) -> Header | None:
    try:
        return read(head, file)
    except struct.error:  # it ends there
        return None


def _has_few_parts(data: bytes, body: int) -> bool:
    """Few chunks of a PNG, few scans of a JPEG."""
    if data[:2] == b"\xff\xd8":
        return data.count(b"\xff\xda", body) <= MOST_SCANS
    if len(data) < 12 * MOST_CHUNKS:
        return True
    position = 8
    for _ in range(MOST_CHUNKS):
        if position + 12 > len(data):
            return True
        position += 12 + int.from_bytes(data[position : position + 4])
    return False


def _png(head: bytes, file: BinaryIO) -> Header:
    width, height, depth = struct.unpack_from(">IIB", head, 16)
    return Header(width * height, depth == 16, head[12:16] == b"IHDR")


def _jpeg(head: bytes, file: BinaryIO) -> Header | None:
    position, pixels = 2, None
    for _ in range(MOST_SEGMENTS):
        file.seek(position)
        segment = file.read(9)
        marker, length = struct.unpack_from(">HH", segment)
        if marker == 0xFFDA:
            return None if pixels is None else Header(pixels, False, True, body=position)
        if marker in _FRAME_STARTS:
            height, width = struct.unpack_from(">HH", segment, 5)
            pixels = height * width
        # Anything but a segment here is fill bytes, which decoders step over as well.
        position += 2 + length if 0xFFC0 <= marker < 0xFFFF else 1
    return None


def _tiff(head: bytes, file: BinaryIO) -> Header | None:
    order = "<" if head[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", head, 4)
    file.seek(start)
    (count,) = struct.unpack(order + "H", file.read(2))
    entries = file.read(12 * min(count, MOST_TAGS))
    tags, values = {}, 0
    for place in range(0, 12 * min(count, MOST_TAGS), 12):
        tag, kind, number = struct.unpack_from(order + "HHI", entries, place)
        (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), entries, place + 8)
        if tag == 258 and number > 2:  # bits of each channel do not fit into the entry
            file.seek(struct.unpack_from(order + "I", entries, place + 8)[0])
            (value,) = struct.unpack(order + "H", file.read(2))
        tags[tag] = value
        values += number
    # Tiles may be larger than the image; all compressed ones are libtiff's, which prints.
    is_simple = count <= MOST_TAGS and values <= MOST_TAG_VALUES
    is_simple = is_simple and tags.get(259, 1) == 1 and 322 not in tags
    return Header(tags.get(256, 0) * tags.get(257, 0), tags.get(258, 1) > 8, is_simple)


def _webp(head: bytes, file: BinaryIO) -> Header:
    """Never simple: it is decoded by way of an animation, on several canvases."""
    if head[12:16] == b"VP8X":
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
    elif head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        width, height = 1 + bits % 2**14, 1 + bits // 2**14 % 2**14
    else:
        width, height = (side % 2**14 for side in struct.unpack_from("<HH", head, 26))
    return Header(width * height, False, False)


def _gif(head: bytes, file: BinaryIO) -> Header:
    """Never simple: it is cut into blocks of 255 bytes and less."""
    width, height = struct.unpack_from("<HH", head, 6)
    return Header(width * height, False, False)


def _bmp(head: bytes, file: BinaryIO) -> Header:
    """Simple unless run-length encoded, which Pillow decodes byte by byte."""
    (size,) = struct.unpack_from("<I", head, 14)
    if size == 12:
        width, height = struct.unpack_from("<HH", head, 18)
        return Header(width * height, False, True)
    width, height, compression = struct.unpack_from("<ii4xI", head, 18)
    return Header(abs(width * height), False, compression in (0, 3))


def _pnm(head: bytes, file: BinaryIO) -> Header | None:
    """Simple unless its numbers are text, or its comments long."""
    if not (found := _PNM.match(head)):
        return None
    kind, width, height, maximum = (int(number or 0) for number in found.groups())
    return Header(width * height, kind in (2, 3, 5, 6) and maximum > 255, kind >= 4)


def _unknown(head: bytes, file: BinaryIO) -> None:
    """BigTIFF, for files of 4 GB."""


_Read = Callable[[bytes, BinaryIO], Header | None]
_KINDS: dict[bytes, _Read] = {
    b"\x89PNG": _png,
    b"\xff\xd8\xff": _jpeg,
    b"II*\0": _tiff,
    b"MM\0*": _tiff,
    b"II+\0": _unknown,
    b"RIFF": _webp,
    b"GIF8": _gif,
    b"BM": _bmp,
    **dict.fromkeys((b"P%d" % digit for digit in range(1, 7)), _pnm),
}


def _reader(head: bytes) -> _Read | None:
    return next((read for magic, read in _KINDS.items() if head.startswith(magic)), None)
