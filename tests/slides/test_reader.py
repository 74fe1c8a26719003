"""Regions of every kind of file hold their pixels, or are refused in a sentence."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from haloae.errors import ImageError
from haloae.slides.parts import as_unit, overview, read_part
from haloae.slides.reader import open_slide
from slides.made import MICRONS, damage, tissue, write_slide

WIDTH, HEIGHT = 650, 550
DRAW = tissue(0, WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def whole() -> NDArray[np.uint8]:
    return DRAW(0, 0, WIDTH, HEIGHT, 1)


def refusal(ask: Callable[[], object], *parts: str) -> None:
    with pytest.raises(ImageError) as caught:
        ask()
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("kind", "options", "read_by", "levels"),
    [
        ("tiff", {}, "tifffile, tiled TIFF", 2),
        ("tiff", {"compression": "jpeg", "compressionargs": None}, "tifffile, tiled TIFF", 2),
        ("ome", {}, "tifffile, OME-TIFF", 2),
        ("flat", {}, "tifffile, tiled TIFF", 1),
        ("strips", {}, "libvips, tiff", 1),
        ("svs", {"compression": "jpeg", "compressionargs": None}, "OpenSlide, aperio", 2),
        ("png", {}, "libvips, png", 1),
        ("jpeg", {"quality": 95}, "libvips, jpeg", 1),
    ],
)
def test_regions_are_those_of_the_image(
    tmp_path: Path,
    whole: NDArray[np.uint8],
    kind: str,
    options: dict[str, object],
    read_by: str,
    levels: int,
) -> None:
    path = write_slide(tmp_path / "a.bin", DRAW, WIDTH, HEIGHT, kind=kind, **options)
    slide = open_slide(path)
    assert slide.kind == read_by
    assert [level[:2] for level in slide.levels] == [(WIDTH, HEIGHT), (325, 275)][:levels]
    expected = (
        None if read_by.startswith("libvips") else pytest.approx((MICRONS, MICRONS), rel=1e-3)
    )
    assert slide.microns == expected
    is_lossy = "jpeg" in (kind, options.get("compression"))
    for x, y, width, height in ((0, 0, 150, 100), (100, 125, 155, 150), (500, 450, 150, 100)):
        found = slide.read(0, x, y, width, height)
        truth = whole[y : y + height, x : x + width]
        assert found.shape == truth.shape
        off = np.abs(found.astype(int) - truth)
        assert off.mean() < 3 if is_lossy else off.max() == 0
    small, is_unread = overview(slide, 130)
    assert np.abs(small - whole.reshape(110, 5, 130, 5, 3).mean((1, 3))).mean() < 5
    assert not is_unread.any()


def test_sixteen_bits_and_grey_are_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 65536, (300, 400), dtype=np.uint16)
    path = tmp_path / "deep.tif"
    for photometric in ("minisblack", "miniswhite"):
        tifffile.imwrite(path, grey, tile=(128, 128), photometric=photometric)
        expected = grey if photometric == "minisblack" else 65535 - grey
        found = as_unit(open_slide(path).read(0, 100, 50, 200, 130))
        np.testing.assert_allclose(found, np.stack([expected[50:180, 100:300] / 65535] * 3), 1e-6)


def test_a_square_at_a_scale_is_that_of_the_image_made_small(
    tmp_path: Path, whole: NDArray[np.uint8]
) -> None:
    slide = open_slide(write_slide(tmp_path / "a.tif", DRAW, WIDTH, HEIGHT))
    np.testing.assert_array_equal(read_part(slide, 40, 60, (128, 128)), whole[60:188, 40:168])
    half = whole.reshape(275, 2, 325, 2, 3).mean((1, 3))
    fifth = whole.reshape(110, 5, 130, 5, 3).mean((1, 3))
    for scale, truth in ((0.5, half), (0.2, fifth)):
        found = read_part(slide, 30, 20, (80, 80), scale=scale)
        assert np.abs(found - truth[20:100, 30:110]).mean() < 5, scale


def test_past_the_edge_a_square_is_mirrored(tmp_path: Path, whole: NDArray[np.uint8]) -> None:
    slide = open_slide(write_slide(tmp_path / "a.tif", DRAW, WIDTH, HEIGHT))
    found = read_part(slide, 630, 530, (32, 32))
    assert found.shape == (32, 32, 3)
    np.testing.assert_array_equal(found[:20, :20], whole[530:, 630:])
    np.testing.assert_array_equal(found[20:, :20], whole[549:537:-1, 630:])


@pytest.mark.parametrize("compression", ["zlib", "jpeg"])
def test_a_damaged_part_is_refused_and_the_others_are_read(
    tmp_path: Path, whole: NDArray[np.uint8], compression: str
) -> None:
    options = {"compression": compression, "compressionargs": None}
    path = write_slide(tmp_path / "a.tif", DRAW, WIDTH, HEIGHT, **options)
    damage(path, 7)
    slide = open_slide(path)
    for _ in range(2):
        refusal(lambda: slide.read(0, 150, 150, 64, 64), "a.tif: truncated, corrupted")
    assert np.abs(slide.read(0, 0, 0, 500, 100) - whole[:100, :500].astype(int)).mean() < 3
    small, is_unread = overview(slide, 650)
    assert 0.02 < is_unread.mean() < 0.2
    assert small[~is_unread].any()


def test_a_vendor_s_slide_is_read_on_after_an_error(
    tmp_path: Path, whole: NDArray[np.uint8]
) -> None:
    options = {"compression": "jpeg", "compressionargs": None}
    path = write_slide(tmp_path / "a.svs", DRAW, WIDTH, HEIGHT, kind="svs", **options)
    damage(path, 7)
    slide = open_slide(path)
    assert slide.kind == "OpenSlide, aperio"
    refusal(lambda: slide.read(0, 150, 150, 64, 64), "a.svs: ", "copy or export it again")
    found = slide.read(0, 0, 0, 500, 100)
    assert np.abs(found - whole[:100, :500].astype(int)).mean() < 3


def test_a_file_that_was_cut_off_is_refused_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    rng = np.random.default_rng(0)
    tifffile.imwrite(path, rng.integers(0, 255, (512, 512), np.uint8), tile=(128, 128))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    slide = open_slide(path)
    assert slide.read(0, 0, 0, 100, 100).any()
    refusal(lambda: slide.read(0, 400, 400, 64, 64), "a.tif: it ends before its last part")


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_truncated_image_is_never_read_in_part(tmp_path: Path, kind: str) -> None:
    path = write_slide(tmp_path / "a", DRAW, WIDTH, HEIGHT, kind=kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refusal(lambda: open_slide(path).read(0, 0, 1000, 64, 64), "a: truncated, corrupted")


def test_what_is_no_slide_is_refused(tmp_path: Path) -> None:
    refusal(lambda: open_slide(tmp_path / "none.svs"), "none.svs: no such file")
    refusal(lambda: open_slide(tmp_path), "this is no file")
    (tmp_path / "text.svs").write_text("text")
    refusal(lambda: open_slide(tmp_path / "text.svs"), "text.svs: ", "no format that is read")
    path = tmp_path / "float.tif"
    tifffile.imwrite(path, np.zeros((256, 256), np.float32), tile=(128, 128))
    refusal(lambda: open_slide(path), "float32", "8 or 16 bits")
    tifffile.imwrite(path, np.zeros((64, 64), np.float32))
    refusal(lambda: open_slide(path), "float", "8 or 16 bits")
