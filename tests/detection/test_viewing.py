"""What is settled by the training images: the view, its sizes, whether places count."""

import logging
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import tiny_trunk  # noqa: F401 - registers it
from conftest import PLAIN, texture
from haloae.config import Config
from haloae.data.choosing import sample
from haloae.data.sampling import Chooser, places
from haloae.detection.tiling import margin_of
from haloae.detection.viewing import canvas_for, regions_of, settled
from haloae.errors import ConfigError, DataError

CONFIG = PLAIN.replace(
    image_size=64, network={"trunk": "tiny", "stride": 8, "autoencoder": False},
    detection={"head": "halo"},
)  # fmt: skip


def aligned(seed: int, height: int = 60, width: int = 100) -> NDArray[np.uint8]:
    """The same bright part on the same place, and noise."""
    pixels = texture(seed, height, width) // 3
    pixels[height // 4 : height // 2, width // 3 : width // 2] += 150
    return pixels


def viewed(config: Config, **view: object) -> Config:
    return config.replace(view=view)


def test_squashed_and_aligned_images_are_not_looked_at() -> None:
    assert settled(CONFIG, ["missing.png"]) is CONFIG
    with pytest.raises(DataError, match="no such file"):
        settled(viewed(CONFIG, place="auto"), ["missing.png"])


@pytest.mark.parametrize("aspect", [0.1, 0.4, 0.75, 1, 1.33, 2.5, 8])
@pytest.mark.parametrize("step", [8, 16])
def test_a_canvas_has_the_aspect_ratio_and_area_of_its_rule(aspect: float, step: int) -> None:
    height, width = canvas_for(aspect, 256, step)
    assert (height % step, width % step) == (0, 0)
    assert width / height == pytest.approx(aspect, rel=0.07)
    pixels = 256**2 * max(aspect, 1 / aspect) ** 0.5
    assert height * width == pytest.approx(pixels, rel=0.25)


def test_fitted_images_have_their_usual_shape_and_places() -> None:
    images = [aligned(seed) for seed in range(8)]
    found = settled(viewed(CONFIG, kind="fit"), images).view
    assert (found.kind, found.place, found.step) == ("fit", "aligned", 16)
    assert found.canvas == canvas_for(100 / 60, 64, 16)


def test_a_person_can_overrule_all_of_it() -> None:
    asked = {"kind": "fit", "place": "anywhere", "canvas": (48, 96)}
    found = settled(viewed(CONFIG, **asked), [aligned(seed) for seed in range(8)]).view
    assert (found.kind, found.place, found.canvas) == ("fit", "anywhere", (48, 96))


def test_tiles_are_as_large_as_the_images_and_overlap_as_far_as_they_must(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "haloae")
    images = [texture(seed, 300 + seed, 90) for seed in range(8)]
    config = settled(viewed(CONFIG, kind="tiles"), images)
    found, margin = config.view, margin_of(config)
    assert (found.place, found.step, found.margin) == ("anywhere", 8, margin)
    assert found.overlap is not None
    assert 2 * margin <= found.overlap < 2 * margin + 8
    assert found.canvas == (312, max(96, found.overlap + 8))
    assert "blended" not in caplog.text
    less = settled(viewed(CONFIG, kind="tiles", overlap=8, canvas=(64, 64)), images).view
    assert (less.overlap, less.canvas) == (8, (64, 64))
    assert "they are blended" in caplog.text


@pytest.mark.parametrize(
    ("sizes", "kind", "why"),
    [
        ([(70, 64)], "squash", "usually square, to a factor of 1.09"),
        ([(40, 140)], "fit", "3.50 times as long as they are short"),
        ([(140, 40), (150, 44)], "fit", "3.50 times as long as they are short"),
        ([(270, 280)], "tiles", "else 8.6 pixels of an image would be seen as one"),
        ([(60, 90), (60, 190)], "squash", "fitted, 50% of the images would have places in common"),
    ],
)
def test_auto_says_what_it_chose_and_why(
    sizes: list[tuple[int, int]], kind: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "haloae")
    images = [aligned(seed, *sizes[seed % len(sizes)]) for seed in range(8)]
    config = CONFIG.replace(image_size=32 if kind == "tiles" else 64)
    assert settled(viewed(config, kind="auto"), images).view.kind == kind
    assert f"view {kind}: " in caplog.text
    assert why in caplog.text


def test_auto_takes_the_next_best_where_tiles_cannot_be_had(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "haloae")
    network = {"autoencoder": True, "attention": {"mode": "global"}}
    config = CONFIG.replace(
        image_size=32, view={"kind": "auto"}, network=network, detection={"head": "autoencoder"}
    )
    assert settled(config, [aligned(seed, 270, 280) for seed in range(8)]).view.kind == "fit"
    assert "cannot be had: view.kind tiles needs attention" in caplog.text


@pytest.mark.parametrize(("odd", "place"), [(1, "aligned"), (3, "anywhere")])
def test_places_mean_nothing_to_images_of_several_shapes(odd: int, place: str) -> None:
    images = [aligned(seed, 60, 160 if seed < odd else 100) for seed in range(12)]
    assert settled(viewed(CONFIG, kind="fit"), images).view.place == place


def test_images_that_cannot_be_read_are_left_out_of_the_sample(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.fromarray(texture(0, 30, 50)).save(tmp_path / "good.png")
    assert sample([tmp_path / "broken.png", tmp_path / "good.png"]).sizes == [(30, 50)]


def test_regions_stand_for_few_large_images_and_none_is_empty_or_twice_there() -> None:
    large = [texture(seed, 400, 330) for seed in range(3)]
    large[0][:200] = 90  # nothing on it
    large[1][200:] = large[1][:200]  # the same again
    config = settled(viewed(CONFIG, kind="tiles", canvas=(64, 64), overlap=0), large)
    regions = regions_of(large, config)
    assert {(region.height, region.width) for region in regions} == {(64, 64)}
    assert 30 < len(regions) <= 66
    assert all(region.pixels.std() > 5 for region in regions)
    again = regions_of(large, config)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(regions, again, strict=True))
    other = regions_of(large, config.replace(seed=1))
    assert not np.array_equal(regions[0].pixels, other[0].pixels)


def test_places_do_not_overlap_and_fill_the_image() -> None:
    found = sorted(places((100, 70), (20, 30), np.random.default_rng(0)))
    assert len(found) == 10
    tops, lefts = zip(*found, strict=True)
    assert np.diff(sorted(set(tops))).tolist() == [20] * 4
    assert max(tops) + 20 <= 100
    assert max(lefts) + 30 <= 70
    assert list(places((10, 10), (20, 30), np.random.default_rng(0))) == [(0, 0)]


def test_a_tile_that_is_empty_or_known_is_not_wanted() -> None:
    chooser, rng = Chooser(), np.random.default_rng(0)
    tile = rng.random((3, 64, 64), dtype=np.float32)
    assert not chooser.wants(np.full_like(tile, 0.5))
    assert chooser.wants(tile)
    assert not chooser.wants(tile + np.float32(0.001))
    assert chooser.wants(tile[:, ::-1])


def test_what_has_no_end_is_refused_before_anything_is_fitted() -> None:
    config = CONFIG.replace(
        view={"kind": "tiles"},
        network={"autoencoder": True, "attention": {"mode": "global"}},
        detection={"head": "autoencoder"},
    )
    with pytest.raises(ConfigError, match="choose halo"):
        settled(config, [texture(seed) for seed in range(8)])
