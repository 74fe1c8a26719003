"""Parts of slides to train on: the same for a seed, as many of each, none empty or twice."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

import tiny_trunk  # noqa: F401 - registers the trunk
from haloae.config import Config
from haloae.detection.viewing import PART, in_parts, in_slides
from haloae.detector import Detector, fit_detector
from haloae.errors import DataError
from haloae.slides.folder import slide_to_folder
from haloae.slides.sample import find_slides, sample_tiles
from slides.made import tissue, write_slide

SIDE = 1100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good slides, the last of them nearly empty."""
    folder = tmp_path_factory.mktemp("slides")
    for seed in range(3):
        draw = tissue(seed, SIDE if seed < 2 else 3 * SIDE, SIDE)
        write_slide(folder / f"{seed}.tif", draw, SIDE, SIDE)
    return folder


@pytest.fixture(scope="module")
def config(tiny: Config) -> Config:
    return tiny.replace(network={"autoencoder": False}, detection={"head": "gaussian"})


def test_parts_are_drawn_by_the_seed_and_balanced(folder: Path, config: Config) -> None:
    paths = find_slides(folder)
    assert [path.name for path in paths] == ["0.tif", "1.tif", "2.tif"]
    one, again = (sample_tiles(paths, in_parts(config)) for _ in range(2))
    other = sample_tiles(paths, in_parts(config.replace(seed=1)))
    same = [np.array_equal(a.pixels, b.pixels) for a, b in zip(one.tiles, again.tiles, strict=True)]
    assert all(same)
    assert any(
        not np.array_equal(a.pixels, b.pixels) for a, b in zip(one.tiles, other.tiles, strict=False)
    )
    counts = Counter(one.groups)
    assert set(counts) == {0, 1, 2}
    assert max(counts.values()) - min(counts.values()) <= 3
    for tile in one.tiles:
        assert tile.pixels.shape[:2] == in_parts(config).canvas
        assert tile.pixels.std() > 2, "glass is left out"


def test_three_slides_make_a_detector_that_scores_slides(
    folder: Path, config: Config, tmp_path: Path
) -> None:
    sampled = sample_tiles(find_slides(folder), in_parts(config))
    fitted = fit_detector(
        sampled.tiles, config, name="slides", device="cpu", slides_of=sampled.groups
    )
    fitted.detector.save(tmp_path / "m.safetensors")
    detector = Detector.load(tmp_path / "m.safetensors", device="cpu")
    view, calibration = detector.config.view, detector.calibration
    assert (view.kind, view.place) == ("tiles", "anywhere")
    assert calibration.cells == 32**2
    regions = (PART // config.network.stride // 32) ** 2
    assert len(calibration.peaks) == len(sampled.tiles) * regions
    assert len(calibration.scores) == len(sampled.tiles)
    limit = calibration.pixel_threshold.value
    over_by_peak = sum(peak > limit for peak in calibration.peaks)
    over = sum(value > limit for value in calibration.regions)
    assert over_by_peak <= over <= 2 * over_by_peak + 1, "means are weighted to be as rare"
    assert calibration.mean_weight > 1
    path = write_slide(tmp_path / "a.tif", tissue(5, SIDE, SIDE), SIDE, SIDE)
    outcome, _ = slide_to_folder(detector, path, tmp_path / "out")
    assert outcome.verdict == "normal"
    assert outcome.compared >= 4
    at_rate = detector.calibrated(false_alarm_rate=0.2).calibration
    assert at_rate.regions == calibration.regions


def test_tiles_of_slides_are_as_large_as_their_overlap_asks_for(config: Config) -> None:
    overlap = 320
    view = {"canvas": (576, 576), "overlap": overlap, "margin": 160}
    parts = in_parts(config).replace(view=view)
    side = in_slides(parts, None).canvas[0]
    assert (side / (side - overlap)) ** 2 <= 1.6
    assert in_slides(parts, (1024, 1024)).canvas == (1024, 1024)


def test_a_folder_of_slides_is_told_from_one_of_images(config: Config, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    PILImage.new("RGB", (30, 30)).save(tmp_path / "b.png")
    assert find_slides(tmp_path) == []
    assert find_slides(tmp_path / "none") == []
    (tmp_path / "c.svs").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds slides and other images, a\.png first"):
        find_slides(tmp_path)
    with pytest.raises(DataError, match=r"no slide can be read: .*c\.svs"):
        sample_tiles([tmp_path / "c.svs"], in_parts(config))
