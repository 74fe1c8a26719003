"""Parts to train on, out of a few huge images: by a seed, as many of each, none empty or twice."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haloae.config import Config
from haloae.data.folders import IMAGE_SUFFIXES
from haloae.data.images import Image, image_from, shown_path
from haloae.data.limits import current_limits
from haloae.data.sampling import Chooser
from haloae.data.screening import read_header
from haloae.errors import DataError, ImageError
from haloae.slides.parts import as_unit, overview, read_part
from haloae.slides.reader import Slide, is_pyramid, open_slide
from haloae.slides.tiling import Tiling
from haloae.slides.tissue import OVERVIEW, content_mask

VENDORS = frozenset({".bif", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".vms", ".vmu", ".zvi"})
"""Endings of files that nothing but slides have, in any case."""
LEAST, OF_EACH = 96, 12
"""Parts that are wanted of all slides together, and of each where there are many."""
MOST_PIXELS = 2**27
"""Of all parts together: three bytes each."""


class Sampled(NamedTuple):
    """Tiles of slides."""

    tiles: list[Image]
    groups: list[int]
    """Of each tile, which slide it is of."""
    skipped: list[ImageError]
    """One for each tile or slide that could not be read."""


def find_slides(folder: Path) -> list[Path]:
    """The slides of a folder, by name, if it is one of slides; else none.

    It is one where a file has a vendor's ending, is a tiled TIFF in several sizes, or has more
    pixels than the limit of an image.

    Raises:
        DataError: it holds both slides and other images.
    """
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if _is_image(path))
    slides = [path for path in files if _is_slide(path)] if files and _any_slide(files) else []
    if slides and (others := [path for path in files if path not in slides]):
        raise DataError(
            f"{shown_path(folder)}: holds slides and other images, {shown_path(others[0].name)} "
            f"first: give a folder of one kind."
        )
    return slides


def sample_tiles(
    paths: Sequence[Path],
    config: Config,
    *,
    progress: Callable[[Iterable[Path]], Iterable[Path]] = iter,
) -> Sampled:
    """Draw tiles as the slides will be scored in, the same ones for a seed.

    Each slide gives as many, or what it has, and the others more; a tile like one that was drawn
    before is left out, and so is background.

    Args:
        paths: of the slides.
        config: of the detector that is to be fitted: the tiles' size, and the seed.
        progress: wraps the slides where someone wants to watch.

    Raises:
        DataError: no slide can be read.
    """
    skipped: list[ImageError] = []
    found: list[tuple[Slide, Tiling, NDArray[np.intp]]] = []
    for index, path in enumerate(progress(paths)):
        try:
            slide = open_slide(path)
            tiling = Tiling.of(config, slide)
        except ImageError as error:
            skipped.append(error)
            continue
        picture, is_unread = overview(slide, OVERVIEW)
        numbers = tiling.with_content(content_mask(picture) & ~is_unread)
        found.append(
            (slide, tiling, np.random.default_rng([config.seed, 3, index]).permutation(numbers))
        )
    if not found:
        raise DataError(f"no slide can be read: {skipped[0]}")
    wanted = min(max(LEAST, OF_EACH * len(found)), MOST_PIXELS // math.prod(config.canvas))
    shares = _shares([len(numbers) for _, _, numbers in found], wanted)
    tiles: list[Image] = []
    groups: list[int] = []
    chooser = Chooser()
    for group, ((slide, tiling, numbers), share) in enumerate(zip(found, shares, strict=True)):
        left = share
        for number in numbers.tolist():
            if not left:
                break
            view = tiling.view
            try:
                pixels = read_part(slide, *tiling.start(number), view.canvas, scale=view.scale)
            except ImageError as error:
                skipped.append(error)
                continue
            if chooser.wants(as_unit(pixels)):
                tiles.append(image_from(pixels))
                groups.append(group)
                left -= 1
    return Sampled(tiles, groups, skipped)


def _shares(available: Sequence[int], wanted: int) -> list[int]:
    """As many of each as there are, evenly, together as many as are wanted.

    >>> _shares([5, 100, 100], 105)
    [5, 50, 50]
    """
    shares = [0] * len(available)
    for place, index in enumerate(sorted(range(len(available)), key=lambda i: available[i])):
        left = wanted - sum(shares)
        shares[index] = min(available[index], left // (len(available) - place))
    return shares


def _is_image(path: Path) -> bool:
    is_known = path.suffix.lower() in VENDORS | IMAGE_SUFFIXES
    return is_known and not path.name.startswith(".") and path.is_file()


def _any_slide(files: Sequence[Path]) -> bool:
    """By endings, and by what the first file is: a folder of images may be large."""
    return _is_slide(files[0]) or any(path.suffix.lower() in VENDORS for path in files)


def _is_slide(path: Path) -> bool:
    if path.suffix.lower() in VENDORS or is_pyramid(path):
        return True
    try:
        with path.open("rb") as file:
            header = read_header(file)
    except OSError:
        return False
    return header is not None and header.pixels > current_limits().pixels
