"""Which pixels count: masks of files against what they say, and masks that cannot be used."""

from collections.abc import Callable
from pathlib import Path, PurePath

import numpy as np
import pytest
from PIL import Image as PILImage

from haloae.data.images import image_from
from haloae.data.regions import (
    EACH,
    FILL,
    Mask,
    Masked,
    MaskFolders,
    Region,
    any_in_cells,
    cells_inside,
    filled,
    read_regions,
    region_of,
    shown_inside,
)
from haloae.data.source import Decoded, decoded
from haloae.data.views import View
from haloae.errors import DataError, HaloaeError, MaskError

SHAPE = (20, 30)


def box(top: int, bottom: int, left: int, right: int) -> Mask:
    mask = np.zeros(SHAPE, bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str, Mask], Path]:
    def write(name: str, mask: Mask) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(mask.astype(np.uint8) * 255).save(path)
        return path

    return write


def test_what_is_white_counts_and_what_is_ignored_does_not(
    save: Callable[[str, Mask], Path],
) -> None:
    roi, hole = box(2, 18, 3, 25), box(5, 8, 5, 9)
    both = read_regions(save("roi.png", roi), save("hole.png", hole), None)
    assert isinstance(both, Region)
    assert (both.inside == (roi & ~hole)).all()
    alone = read_regions(None, save("hole.png", hole), None)
    assert isinstance(alone, Region)
    assert (alone.inside == ~hole).all()
    assert read_regions(None, None, None) is None


def test_named_regions_are_called_as_their_files(save: Callable[[str, Mask], Path]) -> None:
    left, right, hole = box(2, 18, 3, 12), box(2, 18, 12, 25), box(5, 8, 5, 9)
    folder = save("parts/pins.png", left).parent
    save("parts/body.png", right)
    found = read_regions(None, save("hole.png", hole), folder)
    assert isinstance(found, Region)
    assert found.names == ("body", "pins")
    assert (found.labels == 1).tolist() == right.tolist()
    assert (found.labels == 2).tolist() == (left & ~hole).tolist()
    again = Region.model_validate_json(found.model_dump_json())
    assert again == found
    assert hash(again) == hash(found)
    assert (again.labels == found.labels).all()


def test_masks_of_single_images_are_found_by_path(save: Callable[[str, Mask], Path]) -> None:
    roi = save("masks/good/a.png", box(2, 18, 3, 25)).parents[1]
    ignored = save("hole.png", box(5, 8, 5, 9))
    masks = read_regions(roi, ignored, None)
    assert isinstance(masks, MaskFolders)
    item = masks.item(Path("data/good/a.jpeg"), PurePath("good/a.jpeg"))
    image = image_from(np.zeros((*SHAPE, 3), np.uint8))
    inside = item.inside_of(image, "a.jpeg")
    assert (inside == (box(2, 18, 3, 25) & ~box(5, 8, 5, 9))).all()
    with pytest.raises(DataError, match=r"good/b\.png: there is no mask for this image: give one"):
        masks.item(Path("data/good/b.png"), PurePath("good/b.png"))


def test_what_cannot_be_used_is_said_in_a_sentence(save: Callable[[str, Mask], Path]) -> None:
    roi, black = save("roi.png", box(2, 18, 3, 25)), save("black.png", box(0, 0, 0, 0))
    small = save("small.png", np.ones((5, 6), bool))
    text = roi.with_name("text.png")
    text.write_text("no image")
    overlapping = save("parts/a.png", box(2, 18, 3, 12)).parent
    save("parts/b.png", box(2, 18, 10, 25))
    empty = roi.with_name("nothing")
    empty.mkdir()
    cases = [
        ((black, None, None), "black.png: nothing is left that counts"),
        ((roi, roi, None), "roi.png and .*roi.png: nothing is left that counts"),
        ((roi, small, None), "small.png: this mask is 6×5 pixels, and .*roi.png 30×20"),
        ((text, None, None), "the mask cannot be used: .*text.png: expected an image"),
        ((roi.with_name("none.png"), None, None), "the mask cannot be used: .*no such file"),
        ((None, None, overlapping), "b.png: overlaps .*a.png in 32 pixels"),
        ((roi, None, overlapping), "--regions says what counts.*leave --roi out"),
        ((None, None, empty), "nothing: holds 0 masks"),
    ]
    for given, words in cases:
        with pytest.raises(HaloaeError, match=words) as caught:
            read_regions(*given)
        assert "\n" not in str(caught.value)


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
