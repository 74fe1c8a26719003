"""Which pixels count: what regions and masks of images say, and masks that do not fit."""

from pathlib import Path

import numpy as np
import pytest

from haloae.data.images import image_from
from haloae.data.regions import (
    EACH,
    FILL,
    Mask,
    Masked,
    Region,
    any_in_cells,
    cells_inside,
    filled,
    region_of,
    shown_inside,
)
from haloae.data.source import Decoded, decoded
from haloae.data.views import View
from haloae.errors import MaskError

SHAPE = (20, 30)


def box(top: int, bottom: int, left: int, right: int) -> Mask:
    mask = np.zeros(SHAPE, bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.ones((5, 6), bool), "the image is 30×20 pixels, and its mask is for 6×5"),
        (box(0, 0, 0, 0), "its masks leave nothing of it"),
        (np.ones(SHAPE), r"expected a mask \(H, W\) of bool, got shape \(20, 30\) of float64"),
        (Path("none.png"), "the mask cannot be used: none.png: no such file"),
    ],
)
def test_a_mask_that_does_not_fit_its_image(mask: object, words: str) -> None:
    item = Masked(np.zeros((*SHAPE, 3), np.uint8), mask)  # type: ignore[arg-type]
    with pytest.raises(MaskError, match=words):
        raise decoded(item, View("squash", (32, 32)))  # type: ignore[misc]


@pytest.mark.parametrize("deep", [False, True])
def test_outside_is_one_colour_before_anything_looks(deep: bool) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*SHAPE, 3), np.uint8)
    image = pixels.astype(np.uint16) * 257 if deep else pixels
    inside = box(4, 12, 6, 20)
    seen = filled(image_from(image), inside)
    limit = 1 if deep else 255
    assert np.allclose(seen.pixels[~inside] / limit, FILL / 255)
    assert (seen.pixels[inside] == image_from(image).pixels[inside]).all()
    both = Masked(Masked(image, inside), box(4, 9, 0, 30))
    read = decoded(both, View("squash", (32, 32)))
    assert isinstance(read, Decoded)
    assert read.inside is not None
    assert (read.inside == box(4, 9, 6, 20)).all()
    assert (read.image.pixels == image_from(image).pixels).all(), "pictures show all of it"


def test_a_cell_counts_where_any_of_its_pixels_does() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width, rows, columns = rng.integers(1, 25, 4)
        mask = rng.random((height, width)) < 0.05
        found = any_in_cells(mask, rows, columns)
        for row, column in np.ndindex(rows, columns):
            across = range(row * height // rows, -(-(row + 1) * height // rows))
            down = range(column * width // columns, -(-(column + 1) * width // columns))
            assert found[row, column] == mask[np.ix_(across, down)].any()


def test_every_view_shows_where_an_image_counts() -> None:
    mask = box(4, 5, 29, 30)
    squashed = View("squash", (32, 32), cell=8)
    assert np.argwhere(shown_inside(mask, squashed)).tolist() == [
        [6, 30],
        [6, 31],
        [7, 30],
        [7, 31],
    ]
    tiles = View("tiles", (16, 16), step=8, cell=8)
    assert (shown_inside(mask, tiles) == mask).all()
    cells = cells_inside(shown_inside(mask, tiles), tiles.cell)
    assert cells.shape == tiles.cells_of(SHAPE)
    assert np.argwhere(cells).tolist() == [[0, 3]]


def test_what_images_have_in_common() -> None:
    region = Region.of(box(2, 18, 3, 25).astype(np.uint8))
    assert region_of(["a", "b"]) is None
    assert region_of([Masked("a", region), Masked("b", region)]) is region
    assert region_of([Masked("a", region), "b"]) == EACH
    assert region_of([Masked("a", box(0, 9, 0, 9))]) == EACH
