"""The demo set: its layout, that it is the same everywhere, and that its masks are exact."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from haloae.data.folders import load_category
from haloae.data.images import read_image, read_mask
from haloae.demo_set.pictures import (
    CATEGORIES,
    TEST_EACH,
    TEST_GOOD,
    TRAIN,
    make_picture,
    write_demo,
)
from haloae.demo_set.scene import SIZE, changed_pixels, encode, shade, some_light
from haloae.errors import OutputError
from haloae.evaluation.evaluate import pixel_difference

DEFECTS = [(category, defect) for category, (_, all_) in CATEGORIES.items() for defect in all_]


FEWER = {"TRAIN": 12, "TEST_GOOD": 10, "TEST_EACH": 4}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first images of every kind: each is the same whatever is made beside it."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        for name, count in FEWER.items():
            patch.setattr(f"haloae.demo_set.pictures.{name}", count)
        write_demo(folder)
    return folder


def test_there_are_enough_images_to_measure_with() -> None:
    assert TRAIN >= 40
    assert TEST_GOOD >= 30
    assert all(TEST_EACH * len(defects) >= 60 for _, defects in CATEGORIES.values())


def test_the_layout_is_mvtec_s(demo: Path) -> None:
    assert sorted(path.name for path in demo.iterdir()) == sorted(CATEGORIES)
    for name, (_, defects) in CATEGORIES.items():
        category = load_category(demo / name)
        labels = [sample.label for sample in category.test]
        assert not category.skipped
        assert len(category.train) == FEWER["TRAIN"]
        assert labels.count("good") == FEWER["TEST_GOOD"]
        assert len(labels) == FEWER["TEST_GOOD"] + FEWER["TEST_EACH"] * len(defects)
        assert set(labels) == {"good", *defects}
        for sample in category.test:
            assert read_image(sample.path).pixels.shape[:2] == (SIZE, SIZE)
            if sample.is_anomalous:
                assert sample.mask is not None
                share = read_mask(sample.mask, shape=(SIZE, SIZE)).mean()
                assert 0.0005 < share < 0.2, sample.path
                assert sample.mask == (
                    demo / name / "ground_truth" / sample.label / f"{sample.path.stem}_mask.png"
                )


def test_the_pixel_difference_cannot_tell(demo: Path) -> None:
    for name in CATEGORIES:
        auroc = pixel_difference(load_category(demo / name)).auroc
        assert auroc is not None
        assert auroc <= 0.8, name


def test_no_image_comes_twice(demo: Path) -> None:
    images = [path for path in demo.rglob("*.png") if "ground_truth" not in path.parts]
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in images}) == len(images)


@pytest.mark.parametrize(("category", "defect"), DEFECTS)
def test_a_picture_is_the_same_every_time(demo: Path, category: str, defect: str) -> None:
    picture = make_picture(category, defect, (0, 3))
    written = demo / category / "test" / defect / "003.png"
    assert np.array_equal(np.asarray(PILImage.open(written)), picture.pixels)
    mask = demo / category / "ground_truth" / defect / "003_mask.png"
    assert np.array_equal(np.asarray(PILImage.open(mask)) == 255, picture.mask)


@pytest.mark.parametrize(("category", "defect"), DEFECTS)
def test_masks_are_exact(category: str, defect: str) -> None:
    rng = np.random.default_rng(11)
    before, after = CATEGORIES[category][0](rng, defect)
    light = some_light(rng)
    mask = changed_pixels(before, after, light)
    seen = 255 * np.abs(encode(shade(after, light)) - encode(shade(before, light))).max(axis=-1)
    assert seen[~mask].max() <= 4
    assert (seen[mask] > 4).mean() > 0.7
    assert seen.max() > 25, "nobody would see it"


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_good_picture_has_no_mask(category: str) -> None:
    picture = make_picture(category, None, (0, 0))
    assert not picture.mask.any()
    assert picture.pixels.std() > 10
    assert 40 < picture.pixels.mean() < 200


def test_a_set_is_written_over_but_not_beside_other_images(tmp_path: Path) -> None:
    strange = tmp_path / "board/train/good/mine.png"
    strange.parent.mkdir(parents=True)
    strange.write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"mine\.png: is not of the demo"):
        write_demo(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [strange]


def test_images_are_made_without_torch() -> None:
    code = """
import sys
from haloae.demo_set.pictures import make_picture
make_picture("fabric", None, (0, 0))
print([name for name in ("torch", "sklearn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
