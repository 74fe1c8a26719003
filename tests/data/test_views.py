"""What the network sees of an image, how it is cut into tiles, and how their maps are joined."""

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import PLAIN, texture
from haloae.data.images import Image
from haloae.data.views import View, join, pieces, resize, tile_of
from haloae.errors import ConfigError


def image(height: int, width: int) -> Image:
    return Image(texture(0, height, width), 8, False)


def tiled(**changes: object) -> View:
    return View(
        **{"kind": "tiles", "canvas": (64, 96), "step": 16, "overlap": 32, "margin": 16, "cell": 8}
        | changes  # type: ignore[arg-type]
    )


def cells(size: tuple[int, int]) -> NDArray[np.float32]:
    """A map whose every cell has a value of its own."""
    return np.arange(size[0] * size[1], dtype=np.float32).reshape(size)


@pytest.mark.parametrize("size", [(500, 1260), (37, 999), (16, 16), (160, 400), (4000, 90)])
def test_a_fitted_image_keeps_its_aspect_ratio_to_half_a_step(size: tuple[int, int]) -> None:
    view = View("fit", (160, 400), step=16)
    seen = view.size_of(size)
    assert max(s / c for s, c in zip(seen, view.canvas, strict=True)) == 1
    scale = min(c / s for s, c in zip(size, view.canvas, strict=True))
    for side, own in zip(seen, size, strict=True):
        assert side % 16 == 0
        assert side == 32 or abs(side - own * scale) <= 8.5  # thinner ones are widened


@pytest.mark.parametrize("view", [View("squash", (64, 64)), View("fit", (48, 96), step=16)])
def test_what_is_shown_is_all_of_the_image_at_the_size_that_was_said(view: View) -> None:
    of = image(50, 101)
    assert np.array_equal(view.show(of), resize(of, view.size_of((50, 101))))
    assert view.covered((50, 101)) == (1, 1)


def test_tiles_show_every_pixel_as_it_is_or_at_a_scale() -> None:
    of = image(50, 101)
    assert np.array_equal(tiled().show(of), of.pixels.transpose(2, 0, 1) / np.float32(255))
    assert tiled(scale=0.5).show(of).shape == (3, 25, 50)


def test_tiles_cover_each_cell_once_and_have_the_pixels_of_their_place() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = rng.integers(1, 400, 2).tolist()
        view = tiled(overlap=16 * int(rng.integers(0, 4)))
        pixels = rng.random((3, height, width), dtype=np.float32)
        rows, columns = view.cells_of(view.whole((height, width)))
        covered = np.zeros((rows, columns), int)
        for tile, part in pieces(pixels, view):
            assert part.shape == (3, *view.canvas)
            assert (tile.top % view.step, tile.left % view.step) == (0, 0)
            real = pixels[:, tile.top : tile.top + 64, tile.left : tile.left + 96]
            assert np.array_equal(part[:, : real.shape[1], : real.shape[2]], real)
            covered[tile.rows, tile.columns] += 1
            inner = tile.inner(view.cell)
            assert all(0 <= s.start < s.stop for s in inner)
        assert (covered == 1).all()


def test_no_cell_is_taken_from_within_the_margin_of_a_cut() -> None:
    view = tiled(canvas=(96, 96), overlap=64, margin=32)
    whole = view.whole((400, 300))
    for tile in view.tiles((400, 300)):
        for start, delivered, inner, most in zip(
            (tile.top, tile.left), (tile.rows, tile.columns), tile.inner(8), whole, strict=True
        ):
            assert inner.start * 8 >= 32 or delivered.start == 0
            assert 96 - inner.stop * 8 >= 32 or start + 96 == most


@pytest.mark.parametrize("overlap", [0, 16, 48])
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (200, 130), (10, 300)])
def test_joined_tiles_are_the_map_they_were_cut_of(overlap: int, size: tuple[int, int]) -> None:
    view = tiled(overlap=overlap)
    wanted = cells(view.cells_of(view.whole(size)))
    maps = [
        wanted[tile.top // 8 : tile.top // 8 + 8, tile.left // 8 : tile.left // 8 + 12]
        for tile in view.tiles(size)
    ]
    rows, columns = view.cells_of(size)
    assert join(maps, view, size) == pytest.approx(wanted[:rows, :columns], rel=1e-5)


def test_too_small_an_overlap_is_blended_without_a_step() -> None:
    view = tiled(canvas=(64, 64), overlap=32, margin=32)
    left, right = (np.full((8, 8), value, np.float32) for value in (0, 1))
    row = join([left, right], view, (64, 96))[0]
    assert row.tolist() == pytest.approx([0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])


def test_a_random_tile_is_one_of_the_image() -> None:
    pixels = np.random.default_rng(0).random((3, 200, 150), dtype=np.float32)
    tops = set()
    for seed in range(20):
        tile = tile_of(pixels, tiled(), np.random.default_rng(seed))
        top, left = np.argwhere(pixels[0] == tile[0, 0, 0])[0].tolist()
        assert (top % 16, left % 16) == (0, 0)
        inside = pixels[:, top : top + 64, left : left + 96]
        assert np.array_equal(tile[:, : inside.shape[1], : inside.shape[2]], inside)
        tops.add(top)
    assert len(tops) > 3


def test_a_view_that_is_not_settled_cannot_be_had() -> None:
    assert View.of(PLAIN).canvas == (256, 256)
    with pytest.raises(ConfigError, match="settled when a detector is fitted"):
        View.of(PLAIN.replace(view={"kind": "fit"}))
    settled = PLAIN.replace(view={"kind": "fit", "canvas": [160, 400], "step": 8})
    assert View.of(settled).canvas == settled.canvas == (160, 400)
    assert settled.grid == (40, 100)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({"kind": "tiles", "place": "aligned"}, "leave view.place out"),
        ({"kind": "tiles", "canvas": [64, 64], "overlap": 64}, "larger view.canvas"),
        ({"kind": "fit", "canvas": [40, 64], "step": 16}, "whole multiples of 16"),
        ({"kind": "tiles", "scale": 0}, "greater than or equal"),
    ],
)
def test_settings_that_do_not_fit(view: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PLAIN.replace(view=view)
