"""The attacks on image files, read one by one."""

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image as PILImage

from faults.bad_images import (
    BOMBS,
    LARGE,
    SHORT,
    animated_webp,
    chunk,
    encoded,
    interlaced_png,
    many_tags_tiff,
    run_bmp,
    runs_bmp,
    short_png,
    texture,
)
from faults.campaign import Attack, Run
from faults.damage import NUMBERS, damaged, generator
from haloae.data.images import Image, read_image
from haloae.errors import HaloaeError, ImageError

SHAPE = (33, 47)
LATE = 60.0
"""Most seconds by the clock that one file may take."""
Writer = Callable[[tuple[int, int]], bytes]


def _tiff(*channels: int, kind: type = np.uint8, **options: Any) -> Writer:  # noqa: ANN401
    def write(shape: tuple[int, int]) -> bytes:
        values = texture(np.random.default_rng(0), *shape, *channels)
        if kind is np.uint16:
            values = values.astype(kind) * 257
        elif kind is not np.uint8:
            values = (values / 255).astype(kind)
        buffer = io.BytesIO()
        colour = "rgb" if channels else "minisblack"
        tifffile.imwrite(buffer, values, photometric=colour, **options)
        return buffer.getvalue()

    return write


def _pillow(mode: str, kind: str, **options: Any) -> Writer:  # noqa: ANN401 - of Pillow
    def write(shape: tuple[int, int]) -> bytes:
        pixels = texture(np.random.default_rng(0), *shape, 3)
        return encoded(PILImage.fromarray(pixels).convert(mode), kind, **options)

    return write


def _deep_png(shape: tuple[int, int]) -> bytes:
    values = texture(np.random.default_rng(0), *shape).astype(np.uint16) * 257
    return encoded(PILImage.fromarray(values), "PNG")  # type: ignore[arg-type]


def _plain(shape: tuple[int, int]) -> bytes:
    values = texture(np.random.default_rng(0), *shape).flatten()
    return b"P2 %d %d 255\n" % shape[::-1] + b" ".join(b"%d" % value for value in values) + b"\n"


WRITERS: dict[str, Writer] = {
    **{f"png {mode}": _pillow(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    "png interlaced": lambda shape: interlaced_png(np.random.default_rng(0), 1, shape=shape),
    "png 16": _deep_png,
    **{f"jpeg {mode}": _pillow(mode, "JPEG") for mode in ("L", "RGB", "CMYK")},
    "jpeg progressive": _pillow("RGB", "JPEG", progressive=True),
    "jpeg restarts": _pillow("RGB", "JPEG", restart_marker_rows=1),
    "tiff raw": _tiff(3),
    "tiff strips": _tiff(rowsperstrip=5),
    "tiff tiles": _tiff(3, tile=(16, 16)),
    "tiff big": _tiff(bigtiff=True),
    **{
        f"tiff {kind}": _pillow("RGB", "TIFF", compression=kind)
        for kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    },
    **{f"tiff {kind}": _pillow("1", "TIFF", compression=kind) for kind in ("group3", "group4")},
    "tiff 16": _tiff(3, kind=np.uint16),
    "tiff 16 deflate": _tiff(kind=np.uint16, compression="deflate", predictor=True),
    "tiff float": _tiff(kind=np.float32),
    "webp": _pillow("RGB", "WEBP"),
    "webp lossless": _pillow("RGBA", "WEBP", lossless=True),
    "gif": _pillow("P", "GIF"),
    **{f"bmp {mode}": _pillow(mode, "BMP") for mode in ("1", "L", "RGB")},
    **{f"pnm {mode}": _pillow(mode, "PPM") for mode in ("1", "L", "RGB")},
    "pnm plain": _plain,
}
NAMES = tuple(WRITERS)
TIFFS = tuple(name for name in NAMES if name.startswith("tiff") and "big" not in name)


@cache
def sound(name: str, shape: tuple[int, int] = SHAPE) -> bytes:
    """A file as it should be."""
    return WRITERS[name](shape)


def sentence(error: HaloaeError, path: Path | None = None) -> str:
    """One sentence, whatever is refused; of a file, with its name in front."""
    assert path is None or str(error).startswith(f"{path}: "), f"it is not named: {error}"
    assert str(error).endswith("."), f"no sentence: {error}"
    assert "\n" not in str(error), f"no sentence: {error}"
    return "refused"


def read(path: Path) -> Image | None:
    """An image file, or None where it is refused in one sentence."""
    try:
        image = read_image(path)
    except ImageError as error:
        sentence(error, path)
        return None
    assert image.pixels.shape == (image.height, image.width, 3), "not an image"
    assert np.isfinite(image.pixels).all(), "pixels that are not finite"
    return image


def _are_equal(one: Image | None, other: Image | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one.pixels, other.pixels)


def of_bytes(ground: Path, *, name: str, write: Callable[[int], bytes]) -> Run:
    """Files that are read or refused, twice alike."""
    path = ground / f"{name}.img"

    def run(number: int) -> str:
        path.write_bytes(write(number))
        found = read(path)
        assert _are_equal(found, read(path)), "another image each time"
        return "refused" if found is None else "read"

    return run


def mutated(number: int) -> bytes:
    """A file of any sort, damaged, sometimes twice."""
    rng = generator("mutated", number)
    data = damaged(sound(NAMES[number % len(NAMES)]), rng)
    return damaged(data, rng) if data and rng.random() < 0.3 else data


def retagged(number: int) -> bytes:
    """A TIFF with something else in one of its tags."""
    rng = generator("tags", number)
    data = bytearray(sound(TIFFS[number % len(TIFFS)]))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entry = start + 2 + 12 * int(rng.integers(count))
    place, form = ((0, "<H"), (2, "<H"), (4, "<I"), (8, "<I"))[
        rng.choice(4, p=(0.1, 0.2, 0.2, 0.5))
    ]
    most = 2 ** (8 * struct.calcsize(form)) - 1
    value = (*NUMBERS, 3, 4, 16, 300, len(data))[rng.integers(len(NUMBERS) + 5)]
    struct.pack_into(form, data, entry + place, min(value, most))
    return bytes(data)


def polyglot(number: int) -> bytes:
    """A file of one sort with one of another behind it."""
    rng = generator("polyglots", number)
    first, second = rng.integers(len(NAMES), size=2)
    return sound(NAMES[first]) + sound(NAMES[second])


def cut_short(number: int) -> bytes:
    """A file that ends early."""
    data = sound(NAMES[number % len(NAMES)])
    return data[: int(generator("cuts", number).integers(len(data)))]


def cut(ground: Path) -> Run:
    """Files that end early are refused, or hold every pixel none the less."""
    path, right = ground / "cut.img", {}
    for name in NAMES:
        path.write_bytes(sound(name))
        right[name] = read(path)

    def run(number: int) -> str:
        name = NAMES[number % len(NAMES)]
        path.write_bytes(cut_short(number))
        found = read(path)
        assert found is None or _are_equal(found, right[name]), f"{name} was read in part"
        return "refused" if found is None else "read"

    return run


SIDES = ((1, 1), (1, 7), (7, 1), (2, 3), (1, 1000), (1000, 1), (32, 4096), (255, 257))


def odd(ground: Path) -> Run:
    """Files of any size are read, in that size."""
    path = ground / "odd.img"

    def run(number: int) -> str:
        shape = SIDES[number % len(SIDES)]
        name = NAMES[number // len(SIDES) % len(NAMES)]
        path.write_bytes(sound(name, shape))
        found = read(path)
        assert found is not None, f"{name} of {shape} is refused"
        assert (found.height, found.width) == shape, f"{name} of {shape} is of another size"
        return "read"

    return run


def short(ground: Path) -> Run:
    """Files that are well formed and lack pixels are refused."""
    path = ground / "short.img"
    writers = list(SHORT.items())

    def run(number: int) -> str:
        name, write = writers[number % len(writers)]
        path.write_bytes(write(generator("short", number)))
        assert read(path) is None, f"{name} is read"
        return "refused"

    return run


def _text_png(kind: bytes, head: bytes) -> bytes:
    """A PNG with a text of 100 MB, deflated."""
    png = encoded(np.full((8, 8), 100, np.uint8), "PNG")
    packed = zlib.compress(bytes(100_000_000), 1)
    return png[:33] + chunk(kind, head + packed) + png[33:]


def _large_jpeg() -> bytes:
    data = bytearray(encoded(np.full((8, 8), 100, np.uint8), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = b"\xff\xdc\xff\xdc"
    return bytes(data)


SIDE = 60_000
CLAIMS: dict[str, Callable[[], bytes]] = {
    "png of zTXt": lambda: _text_png(b"zTXt", b"a\0\0"),
    "png of iTXt": lambda: _text_png(b"iTXt", b"a\0\1\0\0\0"),
    "png of iCCP": lambda: _text_png(b"iCCP", b"a\0\0"),
    "png header": lambda: short_png(np.random.default_rng(0), "1", 1, width=SIDE, height=SIDE),
    "bmp header": lambda: run_bmp(b"\0\1", width=SIDE, height=SIDE),
    "pgm header": lambda: b"P5 60000 60000 255\n" + bytes(100),
    "ppm plain header": lambda: b"P3 60000 60000 255\n1 2 3\n",
    "gif header": lambda: b"GIF89a" + struct.pack("<HH", SIDE, SIDE) + b"\0\0\0",
    "webp header": lambda: animated_webp(SIDE),
    "jpeg header": _large_jpeg,
    "tiff header": lambda: many_tags_tiff(0, size=8),
}


def bombs(ground: Path) -> Run:
    """Small files that ask for much are read or refused in time."""
    path = ground / "bomb.img"
    writers = [partial(BOMBS[name], LARGE[name]) for name in BOMBS]
    writers += [partial(BOMBS[name], LARGE[name] // 10) for name in BOMBS]
    writers += [partial(runs_bmp, 5000), *CLAIMS.values()]

    def run(number: int) -> str:
        path.write_bytes(writers[number]())
        return "refused" if read(path) is None else "read"

    return run


ONE = "images, one by one: "
ATTACKS_ON_IMAGES = {
    "mutated images": Attack(
        ONE + "mutated", 1500, 30, partial(of_bytes, name="mutated", write=mutated)
    ),
    "TIFF tags": Attack(ONE + "TIFF tags", 483, 20, partial(of_bytes, name="tags", write=retagged)),
    "polyglots": Attack(ONE + "two in one", 16, 4, partial(of_bytes, name="poly", write=polyglot)),
    "cut images": Attack(ONE + "cut", 910, 30, cut),
    "odd sizes": Attack(ONE + "sound, of odd sizes", len(SIDES) * len(NAMES), 8, odd),
    "bombs": Attack("bombs", 2 * len(BOMBS) + 1 + len(CLAIMS), 0, bombs),
    "short images": Attack("well formed, with too few pixels", 3 * len(SHORT), 0, short),
}
