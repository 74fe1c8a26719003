"""What the options of commands say of which pixels count: ``--roi``, ``--ignore``, ``--regions``.

Each is a mask in a file, for all images, or a folder of them: one for each image, or one a region.
"""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from haloae.data.folders import IMAGE_SUFFIXES, find_images
from haloae.data.images import shown_path
from haloae.data.regions import MOST_REGIONS, ImageMasks, Mask, Masked, Region, mask_in
from haloae.errors import DataError


class MaskFolders(NamedTuple):
    """Where each image has masks of its own, by the image's path below a folder."""

    roi: Path | None
    """A folder, or one file for all."""
    ignore: Path | None

    def item(self, image: Path, relative: PurePath) -> Masked:
        """An image with its masks.

        Args:
            image: its path.
            relative: its path below the folder that was given; a mask has the same, with any ending
                that images have.

        Raises:
            DataError: one is missing.
        """
        masks = ImageMasks(*(path and _mask_of(path, relative) for path in self))
        return Masked(image, masks)


def read_regions(
    roi: Path | None, ignore: Path | None, regions: Path | None
) -> Region | MaskFolders | None:
    """What the options of a command say of which pixels count; None: all.

    Args:
        roi: an image whose white pixels count, for all images, or a folder of one for each.
        ignore: likewise, whose white pixels do not count.
        regions: a folder of images, each a part, which is called as its file is.

    Raises:
        DataError: a mask is missing or no image, masks are of different sizes, two parts overlap,
            or nothing is left.
    """
    if regions is not None:
        if roi is not None or (ignore is not None and ignore.is_dir()):
            raise DataError(
                f"{shown_path(regions)}: --regions says what counts, the same for all images: "
                f"leave --roi out, and give one mask for all as --ignore."
            )
        return _named_region(regions, ignore)
    given = [path for path in (roi, ignore) if path is not None]
    if not given:
        return None
    if any(path.is_dir() for path in given):
        return MaskFolders(roi, ignore)
    masks = {path: mask_in(path) for path in given}
    _check_alike(masks)
    inside = np.ones(masks[given[0]].shape, bool)
    if roi is not None:
        inside &= masks[roi]
    if ignore is not None:
        inside &= ~masks[ignore]
    _check_left(inside, given)
    return Region.of(inside)


def _named_region(folder: Path, ignore: Path | None) -> Region:
    paths = find_images(folder).images
    if not 1 <= len(paths) <= MOST_REGIONS:
        raise DataError(
            f"{shown_path(folder)}: holds {len(paths)} masks, and each is a region: give from 1 to "
            f"{MOST_REGIONS}."
        )
    masks = {path: mask_in(path) for path in paths}
    left_out = None if ignore is None else mask_in(ignore)
    _check_alike(masks if ignore is None or left_out is None else {**masks, ignore: left_out})
    labels = np.zeros(masks[paths[0]].shape, np.uint8)
    names: dict[str, Path] = {}
    for number, (path, mask) in enumerate(masks.items(), start=1):
        name = shown_path(path.stem)
        if name in names:
            raise DataError(f"{shown_path(path)}: another region is called {name!r}: rename one.")
        if left_out is not None:
            mask = mask & ~left_out
        _check_left(mask, [path] if ignore is None else [path, ignore])
        both = labels[mask]
        if both.any():
            other = list(names.values())[int(both.max()) - 1]
            raise DataError(
                f"{shown_path(path)}: overlaps {shown_path(other)} in {np.count_nonzero(both):,} "
                f"pixels, and each pixel has one threshold: let regions not overlap."
            )
        labels[mask], names[name] = number, path
    return Region.of(labels, list(names))


def _mask_of(path: Path, relative: PurePath) -> Path:
    if not path.is_dir():
        return path
    exact = path / relative
    if exact.is_file():
        return exact
    for suffix in sorted(IMAGE_SUFFIXES):
        for ending in (suffix, suffix.upper()):
            if os.path.lexists(found := exact.with_suffix(ending)):
                return found
    raise DataError(
        f"{shown_path(exact)}: there is no mask for this image: give one for each, by the image's "
        f"path below the folder that is given, or one mask for all."
    )


def _check_alike(masks: dict[Path, Mask]) -> None:
    (first, one), *others = masks.items()
    for path, other in others:
        if other.shape != one.shape:
            raise DataError(
                f"{shown_path(path)}: this mask is {other.shape[1]}×{other.shape[0]} pixels, and "
                f"{shown_path(first)} {one.shape[1]}×{one.shape[0]}: give masks of one size."
            )


def _check_left(inside: Mask, given: Sequence[Path]) -> None:
    if not inside.any():
        raise DataError(
            f"{' and '.join(shown_path(path) for path in given)}: nothing is left that counts: "
            f"give a mask with white pixels for what counts."
        )
