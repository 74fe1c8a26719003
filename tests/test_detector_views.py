"""A detector sees images as its view says: from fitting to maps, files and exports."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_trunk  # noqa: F401 - registers it
from conftest import PLAIN
from haloae.config import Config
from haloae.data.images import image_from
from haloae.data.source import ImageLike
from haloae.deploy.export import export_model
from haloae.detector import Detector, fit_detector
from haloae.errors import ConfigError, DataError, ImageError
from haloae.outputs.pictures import draw_views

FEATURES = PLAIN.replace(
    image_size=64,
    backbone="random",
    network={"trunk": "tiny", "stride": 8, "reduced_channels": 6, "autoencoder": False},
    detection={"head": "gaussian"},
)
TRAINED = PLAIN.replace(
    image_size=64,
    backbone="random",
    network={
        "trunk": "tiny",
        "reduced_channels": 6,
        "head_channels": 8,
        "encoder": [{"channels": 8}],
        "decoder": [{}],
        "attention": {"block": 4, "halo": 1, "head_dim": 4},
    },
    training={"steps": 4, "batch_size": 2},
)
VIEWS: dict[str, dict[str, Any]] = {
    "fitted": {"kind": "fit", "place": "aligned"},
    "fitted, anywhere": {"kind": "fit", "place": "anywhere"},
    "squashed, anywhere": {"place": "anywhere"},
    "in tiles": {"kind": "tiles"},
    "in blended tiles": {"kind": "tiles", "canvas": (64, 80), "overlap": 16},
    "in tiles at half the size": {"kind": "tiles", "scale": 0.5},
}


def grains(seed: int, height: int = 70, width: int = 150) -> NDArray[np.uint8]:
    """Grey with a little noise, the same everywhere and at every size."""
    rng = np.random.default_rng(seed)
    blocks = rng.normal(128, 6, (height // 4 + 1, width // 4 + 1, 3))
    enlarged = np.kron(blocks, np.ones((4, 4, 1)))[:height, :width]
    pixels: NDArray[np.uint8] = enlarged.clip(0, 255).astype(np.uint8)
    return pixels


def fitted(
    view: dict[str, Any], images: list[ImageLike] | None = None, base: Config = FEATURES
) -> Detector:
    images = images or [grains(seed) for seed in range(8)]
    config = base.replace(view=view)
    return fit_detector(images, config, name="cloth", device="cpu").detector


def defective(height: int = 70, width: int = 150) -> NDArray[np.uint8]:
    """Grains with a bright square at rows 40–55 and columns 100–115."""
    pixels = grains(50, height, width)
    pixels[40:56, 100:116] = (250, 40, 250)
    return pixels


def middle_of(anomaly: NDArray[Any]) -> NDArray[np.float64]:
    """Row and column of the middle of what is above half of the highest value."""
    middle: NDArray[np.float64] = np.argwhere(anomaly > anomaly.max() / 2).mean(0)
    return middle


@pytest.mark.parametrize("name", VIEWS)
def test_a_defect_is_where_it_is_in_the_image_and_a_file_says_the_same(
    name: str, tmp_path: Path
) -> None:
    detector = fitted(VIEWS[name])
    good, bad = detector.predict([grains(51), defective()])
    assert bad.score > good.score
    assert bad.anomaly_map.shape == (70, 150)
    assert middle_of(bad.anomaly_map) == pytest.approx((48, 108), abs=12)
    detector.save(tmp_path / "m.safetensors")
    again = Detector.load(tmp_path / "m.safetensors", device="cpu")
    assert again.config == detector.config
    assert again.predict(defective()).score == pytest.approx(bad.score, rel=1e-5)
    anew = again.calibrated([grains(seed) for seed in range(20, 26)])
    assert len(anew.calibration.scores) == 6


@pytest.mark.parametrize("name", ["gaussian", "halo"])
@pytest.mark.parametrize("place", ["aligned", "anywhere"])
def test_each_head_takes_fitted_images_of_other_shapes(name: str, place: str) -> None:
    images: list[ImageLike] = [grains(seed, 70, 150 - 10 * (seed % 2)) for seed in range(8)]
    detector = fitted(
        {"kind": "fit", "place": place}, images, FEATURES.replace(detection={"head": name})
    )
    height, width = detector.config.grid
    tall = grains(60, 150, 70)
    tall[90:130, 10:50] = (250, 40, 250)
    found = detector.predict(tall)
    assert found.grid_map.shape[0] == height
    assert found.grid_map.shape[1] < width
    assert middle_of(found.anomaly_map) == pytest.approx((110, 30), abs=20)


def test_what_is_not_of_the_image_has_no_part_in_its_score() -> None:
    """An image of another shape is seen alone: whatever the rest of the canvas would hold."""
    detector = fitted({"kind": "fit", "place": "anywhere"})
    small = grains(60, 70, 70)
    seen = detector.view.show(image_from(small))
    assert seen.shape[1:] == detector.view.size_of((70, 70))
    measured = detector.measure(seen[None])
    assert detector.predict(small).score == pytest.approx(float(measured.scores[0]))


def test_tiles_take_images_of_any_size_without_a_remark() -> None:
    detector = fitted(VIEWS["in blended tiles"])
    for size in ((300, 411), (30, 20)):
        found = detector.predict(defective(*size) if min(size) > 120 else grains(3, *size))
        assert found.anomaly_map.shape == size
        assert not found.unlike


def test_a_batch_of_several_shapes_is_scored_as_each_alone() -> None:
    detector = fitted({"kind": "fit", "place": "anywhere"})
    images = [grains(seed, 70, width) for seed, width in enumerate((150, 100, 150, 70))]
    together = detector.predict(images)
    for image, found in zip(images, together, strict=True):
        assert found.score == pytest.approx(detector.predict(image).score, rel=1e-5)


def test_pictures_have_the_map_where_the_image_is() -> None:
    detector = fitted(VIEWS["in tiles"])
    found, image = detector.predict(defective()), image_from(defective())
    views = draw_views(image, found)
    brightness = np.asarray(views.anomaly_map.convert("L"))
    assert brightness.shape == (round(70 * 256 / 150), 256)
    assert middle_of(brightness) * 150 / 256 == pytest.approx((48, 108), abs=12)


def test_the_papers_network_is_trained_and_used_in_tiles() -> None:
    detector = fitted(VIEWS["in tiles"], base=TRAINED)
    assert detector.predict(defective()).anomaly_map.shape == (70, 150)
    assert detector.head.state_dict()["features"].shape == (6, 1, 1)


def test_the_papers_network_is_not_trained_on_fitted_images_of_several_shapes() -> None:
    images: list[ImageLike] = [grains(seed, 70, 150 - 60 * (seed % 2)) for seed in range(8)]
    with pytest.raises(ConfigError, match="trains on images of one shape, and fitted these are of"):
        fitted({"kind": "fit"}, images, TRAINED)
    assert fitted({"kind": "fit"}, base=TRAINED).config.view.kind == "fit"


def test_three_large_images_are_enough_in_tiles() -> None:
    images: list[ImageLike] = [grains(seed, 300, 260) for seed in range(3)]
    detector = fitted({"kind": "tiles", "canvas": (64, 64), "overlap": 16}, images)
    assert detector.provenance.fitted_on > 20
    found = detector.predict(defective(300, 260)).defects
    assert found[40:56, 100:116].any()
    assert not found[100:].any()
    with pytest.raises(DataError, match="too few"):
        fitted({"kind": "tiles"}, [grains(seed, 40, 40) for seed in range(3)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in blended tiles", "fitted"])
def test_an_export_sees_what_the_detector_sees(name: str, tmp_path: Path) -> None:
    detector = fitted(VIEWS[name])
    path = tmp_path / "m.onnx"
    parity = export_model(detector, path, format="onnx")
    assert parity.map < 1e-4
    exported = Detector.load(path)
    images: list[Any] = [defective(), defective(140, 300)]
    for one, other in zip(detector.predict(images), exported.predict(images), strict=True):
        assert other.score == pytest.approx(one.score, rel=1e-4)
        assert np.allclose(one.anomaly_map, other.anomaly_map, rtol=1e-3, atol=1e-3)
    if name == "fitted":
        with pytest.raises(ImageError, match=r"fitted to \d+×\d+, and .*m.onnx takes \d+×\d+ alon"):
            exported.predict(grains(3, 70, 70))
