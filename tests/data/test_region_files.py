"""What commands are told of which pixels count: masks of files, and masks that cannot be used."""

from collections.abc import Callable
from pathlib import Path, PurePath

import numpy as np
import pytest
from PIL import Image as PILImage

from haloae.data.images import image_from
from haloae.data.region_files import MaskFolders, read_regions
from haloae.data.regions import Mask, Region
from haloae.errors import DataError, HaloaeError

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
