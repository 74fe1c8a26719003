"""A procedural data set in the MVTec layout: a woven cloth and a circuit board, good and defective.

Every image has random numbers of its own, so that it is the same whatever is made beside it. Good
and defective ones differ in pose, light, focus and noise from the same distributions.
"""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image as PILImage

from haloae.data import folders
from haloae.data.folders import GOOD
from haloae.demo_set import board, fabric
from haloae.demo_set.scene import Mask, Surface, changed_pixels, photograph, shade, some_light
from haloae.errors import OutputError
from haloae.files import write_atomic

TRAIN, TEST_GOOD, TEST_EACH = 60, 36, 13
"""Images to train on, good test images, and test images of each defect."""
CATEGORIES: dict[
    str, tuple[Callable[[Generator, str | None], tuple[Surface, Surface]], tuple[str, ...]]
] = {
    "board": (board.board, board.DEFECTS),
    "fabric": (fabric.fabric, fabric.DEFECTS),
}
"""What draws each category's surfaces, and its defects."""
Progress = Callable[[Iterable[Any]], Iterable[Any]]


class Picture(NamedTuple):
    """One image of the set.

    Attributes:
        pixels: (SIZE, SIZE, 3) RGB.
        mask: True where the defect changes something, before focus and noise.
    """

    pixels: NDArray[np.uint8]
    mask: Mask


class _Planned(NamedTuple):
    """An image to make, and where: the rest of its path is the same for image and mask."""

    category: str
    part: str
    defect: str | None
    number: int

    @property
    def label(self) -> str:
        return self.defect or GOOD

    @property
    def image(self) -> Path:
        return Path(self.category, self.part, self.label, f"{self.number:03}.png")

    @property
    def mask(self) -> Path:
        return Path(self.category, folders.MASKS, self.label, f"{self.number:03}_mask.png")


def write_demo(folder: Path, *, progress: Progress = iter) -> list[Path]:
    """Write the whole set, always the same one.

    Args:
        folder: gets a folder for each category; images of an earlier time are replaced.
        progress: wraps the images to make where someone wants to watch.

    Returns:
        The categories' folders.

    Raises:
        OutputError: it cannot be written to, or holds images that are not of the set.
    """
    planned = _plan()
    _refuse_other_images(folder, planned)
    for item in progress(planned):
        picture = make_picture(item.category, item.defect, (item.part == "train", item.number))
        _write_png(folder / item.image, picture.pixels)
        if item.defect is not None:
            _write_png(folder / item.mask, picture.mask.astype(np.uint8) * 255)
    return [folder / category for category in CATEGORIES]


def make_picture(category: str, defect: str | None, key: tuple[int, ...]) -> Picture:
    """One image and its mask; `key` tells it from others of its category and defect."""
    draw, defects = CATEGORIES[category]
    kind = 0 if defect is None else 1 + defects.index(defect)
    rng = np.random.default_rng([list(CATEGORIES).index(category), kind, *key])
    before, after = draw(rng, defect)
    light = some_light(rng)
    return Picture(
        photograph(shade(after, light), rng),
        changed_pixels(before, after, light),
    )


def _plan() -> list[_Planned]:
    planned = []
    for category, (_, defects) in CATEGORIES.items():
        planned += [_Planned(category, folders.TRAIN, None, number) for number in range(TRAIN)]
        planned += [_Planned(category, folders.TEST, None, number) for number in range(TEST_GOOD)]
        for defect in defects:
            planned += [
                _Planned(category, folders.TEST, defect, number) for number in range(TEST_EACH)
            ]
    return planned


def _refuse_other_images(folder: Path, planned: list[_Planned]) -> None:
    """Images that someone put there would be trained on, or tested, as if they were of the set."""
    ours = {path for item in planned for path in (item.image, item.mask)}
    for category in CATEGORIES:
        for path in sorted((folder / category).rglob("*")):
            if path.is_file() and path.relative_to(folder) not in ours:
                raise OutputError(f"{path}: is not of the demo: choose another --out.")


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    data = io.BytesIO()
    PILImage.fromarray(pixels).save(data, "PNG", compress_level=3)
    write_atomic(path, data.getvalue(), durable=False)
