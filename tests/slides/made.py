"""Slides, made piece by piece, so that none of any size stands in memory."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image as PILImage

PART = 128
GLASS = (243, 241, 242)
"""Colour without tissue."""
MICRONS = 0.5
APERIO = (
    "Aperio Image Library v1.0\n{width}x{height} (128x128) JPEG Q=90|AppMag = 20|MPP = {microns}"
)
Pixels = NDArray[np.uint8]
Draw = Callable[[int, int, int, int, int], Pixels]
"""From left, top, width, height and pixels of the slide a pixel to (height, width, 3)."""


def tissue(seed: int, width: int, height: int, *, tumour: bool = False) -> Draw:
    """Nuclei in stroma, two pieces on glass; with a tumour, dense and dark nuclei in one of them.

    What is at a place depends on the place alone, so that a part can be made at any size.
    """
    rng = np.random.default_rng(seed)
    phases, tone = rng.uniform(0, 6, 8), rng.uniform(-4, 4, 3)
    tile = _nuclei(rng)
    centre, radius = (0.42 * width, 0.45 * height), 0.07 * min(width, height)

    def draw(left: int, top: int, wide: int, high: int, step: int) -> Pixels:
        x = ((left + np.arange(wide)) * step + step / 2).astype(np.float32)[None, :]
        y = ((top + np.arange(high)) * step + step / 2).astype(np.float32)[:, None]
        inside = np.zeros((high, wide), np.bool_)
        for (cx, cy), (rx, ry) in (((0.4, 0.42), (0.3, 0.3)), ((0.8, 0.8), (0.14, 0.12))):
            ripple = 1 + 0.08 * np.sin(9 * y / height + phases[0]) * np.cos(7 * x / width)
            inside |= ((x / width - cx) / rx) ** 2 + ((y / height - cy) / ry) ** 2 < ripple
        found = np.empty((high, wide, 3), np.uint8)
        found[:] = GLASS
        if not inside.any():
            return found
        rows, columns = y.astype(int)[:, 0] % len(tile), x.astype(int)[0] % len(tile)
        chosen = tile[np.ix_(rows, columns)].astype(np.float32) + tone
        chosen += (
            6 * np.sin(x / 900 + phases[1])[..., None] * np.cos(y / 700 + phases[2])[..., None]
        )
        if tumour:
            sick = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
            dense = 75 * (np.sin(x / 4) * np.sin(y / 4) > -0.2)[..., None]
            chosen = np.where(sick[..., None], chosen - dense, chosen)
        found[inside] = chosen.clip(0, 255).astype(np.uint8)[inside]
        return found

    return draw


def _nuclei(rng: np.random.Generator, side: int = 512) -> Pixels:
    """Pink stroma with violet nuclei, which goes on where it ends."""
    noise = rng.normal(0, 5, (side, side, 1)).astype(np.float32)
    found = np.array([226, 168, 196], np.float32) + noise
    y, x = np.mgrid[:side, :side]
    found += 8 * np.sin(2 * np.pi * (3 * x + y) * 4 / side)[..., None]
    for cx, cy, radius in zip(
        *rng.integers(0, side, (2, 180)), rng.uniform(3, 6, 180), strict=True
    ):
        reach = int(radius) + 2
        rows, columns = (np.arange(c - reach, c + reach + 1) % side for c in (cy, cx))
        far = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1])
        place = np.ix_(rows, columns)
        share = np.clip(radius - far, 0, 1)[..., None] * 0.8
        found[place] = found[place] * (1 - share) + np.array([104, 66, 146]) * share
    return np.asarray(found.clip(0, 255).astype(np.uint8))


def pieces(draw: Draw, width: int, height: int, step: int) -> Iterator[Pixels]:
    """Tiles of a TIFF, row by row; what is past the end is glass."""
    for top in range(0, height, PART):
        for left in range(0, width, PART):
            part = np.empty((PART, PART, 3), np.uint8)
            part[:] = GLASS
            wide, high = min(PART, width - left), min(PART, height - top)
            part[:high, :wide] = draw(left, top, wide, high, step)
            yield part


def sizes(width: int, height: int) -> list[tuple[int, int, int]]:
    """Halved until both sides are below 1024: width, height, pixels of the slide a pixel."""
    found = [(width, height, 1)]
    while max(found[-1][:2]) >= 600:
        step = 2 * found[-1][2]
        found.append((width // step, height // step, step))
    return found


def write_slide(
    path: Path,
    draw: Draw,
    width: int,
    height: int,
    *,
    kind: str = "tiff",
    **options: Any,  # noqa: ANN401
) -> Path:
    """Write a slide, by its kind: tiff (a pyramid), ome, svs, flat, strips, png or jpeg."""
    if kind in ("png", "jpeg", "strips"):
        format = "tiff" if kind == "strips" else kind
        PILImage.fromarray(draw(0, 0, width, height, 1)).save(path, format, **options)
        return path
    levels = sizes(width, height)[: 1 if kind == "flat" else None]
    common: dict[str, Any] = {
        "tile": (PART, PART),
        "photometric": "rgb",
        "compression": "zlib",
        "compressionargs": {"level": 1},
        "resolution": (10_000 / MICRONS,) * 2,
        "resolutionunit": 3,
        **options,
    }
    about = {"axes": "YXS", "PhysicalSizeX": MICRONS, "PhysicalSizeY": MICRONS}
    described = APERIO.format(width=width, height=height, microns=MICRONS)
    with tifffile.TiffWriter(path, bigtiff=kind == "tiff", ome=kind == "ome") as file:
        for number, (wide, high, step) in enumerate(levels):
            if kind == "ome":
                more = {"metadata": about, "subifds": len(levels) - 1}
                more = more if number == 0 else {"metadata": None, "subfiletype": 1}
            else:
                more = {"metadata": None, "subfiletype": 1 if number and kind == "tiff" else 0}
                more |= {"description": described} if kind == "svs" else {}
            file.write(
                pieces(draw, wide, high, step),
                shape=(high, wide, 3),
                dtype=np.uint8,
                **common,
                **more,
            )
    return path


def damage(path: Path, part: int) -> None:
    """Overwrite the second half of a part of the largest size."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        start, count = page.dataoffsets[part], page.databytecounts[part]
    with path.open("r+b") as file:
        file.seek(start + count // 2)
        file.write(np.random.default_rng(0).bytes(count - count // 2))
