"""Folders on disk to samples: the MVTec layout, or a plain folder of good images."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Protocol

from haloae.data.images import shown_path
from haloae.data.search import Found, Skipped, is_folder, reason_of, require_folder, search, visible
from haloae.errors import DataError

if TYPE_CHECKING:
    from haloae.data.regions import Masked

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm"}
)
"""File name endings taken for images, in any case."""

GOOD = "good"
"""Label, and folder name, of images without a defect."""
TRAIN, TEST, MASKS = "train", "test", "ground_truth"
"""Folders of the MVTec layout."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One test image and what is known about it.

    Attributes:
        path: the image.
        label: "good", or the name of the defect's folder.
        mask: the image of its defect, or None where there is none on disk or it is good.
    """

    path: Path
    label: str
    mask: Path | None

    @property
    def is_anomalous(self) -> bool:
        """True where the image shows a defect."""
        return self.label != GOOD


class Masks(Protocol):
    """Which pixels count, of all images or of each, see `haloae.data.regions`."""

    def item(self, image: Path, relative: PurePath) -> "Masked":
        """An image with its masks, given its path below the folder of images."""


@dataclass(frozen=True, slots=True)
class Category:
    """One kind of product.

    Attributes:
        root: its folder.
        train: good images to fit on; empty where only test images were given.
        test: labelled images; empty for a plain folder.
        skipped: what was left out, also logged as warnings.
        masks: which pixels of its images count; None: all.
    """

    root: Path
    train: tuple[Path, ...]
    test: tuple[Sample, ...]
    skipped: tuple[Skipped, ...] = ()
    masks: Masks | None = None

    def item(self, image: Path) -> "Path | Masked":
        """One of its images, with its masks if it has any.

        Raises:
            DataError: the mask is missing.
        """
        if self.masks is None:
            return image
        return self.masks.item(image, image.relative_to(self.root))


def find_images(root: str | os.PathLike[str]) -> Found:
    """Finds image files by their ending, in `root` and every folder below it.

    Hidden files and folders (leading dot) are left out. Links to folders are followed, but every
    folder is searched once: a link back up, or to a folder already searched, is skipped, so no
    image comes twice and no loop hangs. Unreadable folders and image names that are no regular
    file are skipped too.

    Returns:
        The images and what was skipped, both sorted by their path relative to `root`.

    Raises:
        DataError: `root` is missing, is not a folder or cannot be read.
    """
    root = Path(root)
    require_folder(root)
    return search(root, IMAGE_SUFFIXES)


def is_category(folder: Path) -> bool:
    """True: a folder of the MVTec layout, with good images to fit on."""
    return is_folder(folder / TRAIN / GOOD)


def is_mask(path: Path, root: Path) -> bool:
    """True: an image below `root` that is a mask of its MVTec layout, and none to score."""
    is_layout = is_folder(root / TEST) and is_folder(root / MASKS)
    return is_layout and path.relative_to(root).parts[0] == MASKS


def find_categories(root: Path, names: Sequence[str] | None = None) -> list[Path]:
    """Folders of a root's categories in MVTec layout, by name; or those asked for, in that order.

    Raises:
        DataError: there is none, or one that is asked for is missing.
    """
    try:
        found = {p.name: p for p in sorted(root.iterdir()) if is_category(p)}
    except OSError as error:
        raise DataError(f"{root}: cannot be read ({error.strerror}): check the path.") from error
    if not found:
        raise DataError(
            f"{root}: holds no category: give a folder of folders with {TRAIN}/{GOOD} and {TEST} "
            f"in them."
        )
    for name in names or ():
        if name not in found:
            raise DataError(f"{root}: holds no category {name!r}: choose of {', '.join(found)}.")
    return [found[name] for name in names] if names else list(found.values())


def load_category(root: str | os.PathLike[str], *, strict: bool = False) -> Category:
    """Reads a category in the MVTec layout, or a plain folder of good images.

    The MVTec layout is `train/good`, `test/<good or defect>` and
    `ground_truth/<defect>/<stem>_mask.*` (or `<stem>.*`); a folder with any of `train/good`, `test`
    and `ground_truth` is one, and any of them may be missing. In any other folder every image below
    it is a good one, and `test` is empty.

    Args:
        root: the folder.
        strict: True: what would be skipped is an error.

    Raises:
        DataError: `root` is missing, not a folder, unreadable, holds no image, or holds several
            categories rather than one; with `strict`, something would be left out.
    """
    root = Path(root)
    require_folder(root)
    train_folder, test_folder = root / TRAIN / GOOD, root / TEST
    is_layout = any(is_folder(part) for part in (train_folder, test_folder, root / MASKS))
    skipped: list[Skipped] = []
    test: list[Sample] = []
    if is_layout:
        train = _images_in(train_folder, skipped) if is_folder(train_folder) else ()
        skipped += _unused_training_images(root / TRAIN)
        if is_folder(test_folder):
            test = _test_samples(root, skipped)
    else:
        _refuse_several_categories(root)
        train = _images_in(root, skipped)
    if strict and skipped:
        first = skipped[0]
        raise DataError(f"{shown_path(first.path)} is left out: {first.reason}.")
    for item in skipped:
        logger.warning("%s is left out: %s.", shown_path(item.path), item.reason)
    if not train and not test:
        left_out = f", {len(skipped)} left out" if skipped else ""
        raise DataError(
            f"{shown_path(root)}: no image found{left_out}: give a folder of good images, or one "
            f"with train/good and test in it."
        )
    return Category(root, train, tuple(test), tuple(skipped))


def good_images(root: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The images to fit on: `train/good` of an MVTec layout, every image of a plain folder.

    Raises:
        DataError: as `load_category`, or there is no good image to fit on.
    """
    train = load_category(root).train
    if not train:
        raise DataError(
            f"{shown_path(root)}: there are test images but none to fit on: put good images in "
            f"train/good."
        )
    return train


def load_held_out(root: str | os.PathLike[str], *, strict: bool = False) -> Category:
    """Reads a plain folder of good images, none of which a detector was fitted on.

    Raises:
        DataError: as `load_category`, or the folder is or holds a part of an MVTec layout.
    """
    root = Path(root)
    is_part = Path(os.path.realpath(root)).parts[-2:] in ((TRAIN, GOOD), (TEST, GOOD))
    if is_part or any(is_folder(root / part) for part in (TRAIN, TEST, MASKS)):
        raise DataError(
            f"{shown_path(root)}: is or holds the training or test images of a data set: give a "
            f"folder of good images alone, none of which the model was fitted on."
        )
    return load_category(root, strict=strict)


def _images_in(folder: Path, skipped: list[Skipped]) -> tuple[Path, ...]:
    """Images below a folder; what is left out is added to `skipped`, an unreadable folder too."""
    found = search(folder, IMAGE_SUFFIXES)
    skipped += found.skipped
    return found.images


def _unused_training_images(train: Path) -> list[Skipped]:
    """Images under `train` that are not in `train/good`: nothing says that they are good."""
    if not is_folder(train):
        return []
    outside: list[Skipped] = []
    images = _images_in(train, outside)
    unused = [path for path in images if path.relative_to(train).parts[0] != GOOD]
    folders = sorted({path.parent for path in unused})
    return [Skipped(folder, "only train/good is used of the training images") for folder in folders]


def _test_samples(root: Path, skipped: list[Skipped]) -> list[Sample]:
    samples: list[Sample] = []
    try:
        entries = sorted(visible(root / TEST), key=lambda entry: entry.name)
    except OSError as error:
        skipped.append(Skipped(root / TEST, reason_of(error)))
        return []
    for entry in entries:
        folder = Path(entry.path)
        if not is_folder(entry):
            if folder.suffix.lower() in IMAGE_SUFFIXES:
                skipped.append(Skipped(folder, "directly under test it has no label"))
            continue
        masks = _masks(root / MASKS / entry.name, skipped) if entry.name != GOOD else {}
        for path in _images_in(folder, skipped):
            inside = path.relative_to(folder)
            mask = masks.get(inside.with_name(f"{inside.stem}_mask")) or masks.get(
                inside.with_suffix("")
            )
            samples.append(Sample(path, entry.name, mask))
    return samples


def _masks(folder: Path, skipped: list[Skipped]) -> dict[Path, Path]:
    """Masks of one defect by their path in its folder, less the ending; of two, the first."""
    if not is_folder(folder):
        return {}
    masks: dict[Path, Path] = {}
    for path in _images_in(folder, skipped):
        masks.setdefault(path.relative_to(folder).with_suffix(""), path)
    return masks


def _refuse_several_categories(root: Path) -> None:
    """A folder of categories would pass for a plain one, its defects for good images."""
    inner = sorted(entry.name for entry in visible(root) if is_category(Path(entry.path)))
    if inner:
        raise DataError(
            f"{shown_path(root)}: it holds {len(inner)} categories, {shown_path(inner[0])} first: "
            f"give the folder of one of them."
        )
