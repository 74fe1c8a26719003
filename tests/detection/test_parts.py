"""What does not count changes nothing: in what is learned, scored, drawn, guarded or exported."""

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import texture
from haloae import ConfigError, Detector, ImageError, MaskError, ModelFileError
from haloae.config import Config
from haloae.data.regions import EACH, FILL, Mask, Masked, Region
from haloae.data.source import ImageLike
from haloae.deploy.export import export_model
from haloae.deploy.runtime import Runtime
from haloae.detection.guard import Guard
from haloae.detection.looks import look_at
from haloae.detection.maps import part_scores, smoothed, smoothed_inside
from haloae.detection.parts import part_scores as part_scores_in_numpy
from haloae.detection.prediction import Prediction
from haloae.detector import fit_detector

SHAPE = (48, 88)
GOOD = 10
LABELS = np.zeros(SHAPE, np.uint8)
LABELS[9:38, 14:45], LABELS[9:38, 45:76] = 1, 2
ONE, NAMED = Region.of(LABELS > 0), Region.of(LABELS, ["left", "right"])


def config_of(tiny: Config, head: str, view: str = "squash", place: str | None = None) -> Config:
    return tiny.replace(
        network={"autoencoder": head == "autoencoder"},
        detection={"head": head, "top_share": 0.2},
        view={"kind": view, "place": place},
    )


def images(outside: int | None, moving: bool) -> list[ImageLike]:
    """Good images and then one with a white square in the left part, and their masks."""
    rng = np.random.default_rng(0)
    items: list[ImageLike] = []
    for number in range(GOOD + 1):
        inside = np.roll(LABELS > 0, number % 3 - 1 if moving else 0, axis=1)
        pixels = texture(number, *SHAPE)
        if number == GOOD:
            pixels[14:24, 20:30] = 255
        noise = rng.integers(0, 256, pixels.shape, np.uint8)
        pixels[~inside] = noise[~inside] if outside is None else outside
        items.append(Masked(pixels, inside) if moving else pixels)
    return items


def fitted(config: Config, region: Region | None, outside: int | None) -> Detector:
    good = images(outside, moving=region is None)[:GOOD]
    items = good if region is None else [Masked(image, region) for image in good]
    return fit_detector(items, config, name="cloth", device="cpu").detector


@pytest.mark.parametrize(
    ("head", "view", "place", "region"),
    [
        ("gaussian", "squash", None, NAMED),
        ("nearest_halo", "squash", None, None),
        ("nearest", "fit", "aligned", ONE),
        ("gaussian", "tiles", None, NAMED),
        pytest.param("halo", "squash", None, None, marks=pytest.mark.slow),
        pytest.param("halo", "fit", "anywhere", None, marks=pytest.mark.slow),
        pytest.param("autoencoder", "squash", None, ONE, marks=pytest.mark.slow),
        pytest.param("autoencoder", "tiles", None, None, marks=pytest.mark.slow),
    ],
)
def test_nothing_outside_changes_anything(
    tiny: Config,
    head: str,
    view: str,
    place: str | None,
    region: Region | None,
    tmp_path: Path,
) -> None:
    said = []
    for outside in (90, None):
        detector = fitted(config_of(tiny, head, view, place), region, outside)
        path = tmp_path / "model.safetensors"
        detector.save(path)
        loaded = Detector.load(path, device="cpu")
        assert loaded.region == (region or EACH)
        found = loaded.predict(images(outside, moving=region is None))
        said.append((detector, found))
    (one, grey), (other, noisy) = said
    assert one.calibration.model_dump() == other.calibration.model_dump()
    assert one.guard is not None
    assert other.guard is not None
    assert one.guard.model_dump() == other.guard.model_dump()
    for a, b in zip(grey, noisy, strict=True):
        assert (a.score, a.verdict, dict(a.parts)) == (b.score, b.verdict, dict(b.parts))
        assert (a.anomaly_map == b.anomaly_map).all()
        assert a.inside is not None
        assert not a.anomaly_map[~a.inside].any()
    assert grey[-1].score > max(each.score for each in grey[:-1])


def test_each_named_region_has_a_threshold_of_its_own(tiny: Config) -> None:
    detector = fitted(config_of(tiny, "gaussian"), NAMED, 90)
    found = detector.predict(images(90, moving=False)[-1])
    assert list(found.parts) == ["left", "right"]
    left, right = found.parts["left"], found.parts["right"]
    assert left.is_anomalous
    assert found.is_anomalous
    assert found.score == pytest.approx(
        max(
            part.score / unit.score
            for part, unit in zip((left, right), detector.calibration.units, strict=True)
        )
    )
    assert left.threshold != right.threshold
    assert found.defects[:, :45].any()
    plain = fitted(config_of(tiny, "gaussian"), ONE, 90).predict(images(90, moving=False)[-1])
    assert plain.parts == {}


def test_all_that_counts_is_as_good_as_no_region(tiny: Config) -> None:
    config = config_of(tiny, "gaussian")
    good = [texture(number, *SHAPE) for number in range(GOOD)]
    everything = Region.of(np.ones(SHAPE, np.uint8))
    plain = fit_detector(good, config, name="cloth", device="cpu").detector
    masked = fit_detector(
        [Masked(image, everything) for image in good], config, name="cloth", device="cpu"
    ).detector
    assert masked.calibration.scores == pytest.approx(plain.calibration.scores, rel=1e-4)
    new = texture(99, *SHAPE)
    assert masked.predict(new).score == pytest.approx(plain.predict(new).score, rel=1e-4)
    assert np.allclose(masked.predict(new).anomaly_map, plain.predict(new).anomaly_map, rtol=1e-3)


def test_a_model_asks_for_the_masks_it_was_fitted_with(tiny: Config, tmp_path: Path) -> None:
    each = fitted(config_of(tiny, "gaussian"), None, 90)
    with pytest.raises(MaskError, match="was fitted to images with masks of their own"):
        each.predict(texture(0, *SHAPE))
    with pytest.raises(MaskError, match="the model is of images with masks of their own"):
        each.calibrated([texture(number, *SHAPE) for number in range(4)])
    with pytest.raises(ConfigError, match="an exported model takes none"):
        export_model(each, tmp_path / "m.onnx", format="onnx")
    stored = fitted(config_of(tiny, "gaussian"), ONE, 90)
    with pytest.raises(ImageError, match="the image is 40×40 pixels, and the region is for 88×48"):
        stored.predict(texture(0))
    other = Masked(texture(0, *SHAPE), LABELS == 1)
    with pytest.raises(MaskError, match="fitted to one region for all, and takes no other masks"):
        stored.predict(other)
    same = stored.predict(Masked(texture(0, *SHAPE), LABELS > 0))
    assert same.score == stored.predict(texture(0, *SHAPE)).score
    tiles = fitted(config_of(tiny, "gaussian", "tiles"), ONE, 90)
    with pytest.raises(ConfigError, match="an exported model takes single tiles"):
        export_model(tiles, tmp_path / "m.onnx", format="onnx")


def test_calibrating_with_masks_keeps_the_head(tiny: Config) -> None:
    config = config_of(tiny, "gaussian")
    plain = fit_detector(
        [texture(number, *SHAPE) for number in range(GOOD)], config, name="cloth", device="cpu"
    ).detector
    others = [Masked(texture(50 + number, *SHAPE), NAMED) for number in range(8)]
    calibrated = plain.calibrated(others)
    assert calibrated.region is NAMED
    assert len(calibrated.calibration.units) == 2
    assert set(calibrated.predict(texture(70, *SHAPE)).parts) == {"left", "right"}
    again = calibrated.calibrated(false_alarm_rate=0.2)
    assert (again.region, again.calibration.units) == (NAMED, calibrated.calibration.units)


@pytest.mark.slow
def test_an_export_has_the_region_in_its_graph(tiny: Config, tmp_path: Path) -> None:
    detector = fitted(config_of(tiny, "gaussian"), NAMED, 90)
    path = tmp_path / "m.onnx"
    export_model(detector, path, format="onnx")
    exported = Detector.load(path)
    assert exported.region == NAMED
    native, found = (each.predict(images(None, moving=False)[-1]) for each in (detector, exported))
    assert found.score == pytest.approx(native.score, rel=1e-3)
    assert found.parts["left"].is_anomalous
    assert np.allclose(found.anomaly_map, native.anomaly_map, rtol=1e-2, atol=1e-3)
    # The bare graph, as another program runs it: what the network sees outside is nothing to it.
    assert isinstance(exported.backend, Runtime)
    pixels = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    changed = pixels.copy()
    changed[:, :, :5], changed[:, :, :, 29:] = 0, 1
    one, other = exported.backend.measure(pixels), exported.backend.measure(changed)
    assert (one.scores == other.scores).all()
    assert (one.maps == other.maps).all()
    with pytest.raises(ModelFileError, match="takes no masks of single images"):
        exported.measure(pixels, np.ones((2, 32, 32), bool))


def test_scores_of_parts_and_smoothing_by_the_definition() -> None:
    rng = np.random.default_rng(0)
    anomaly = rng.random((2, 9, 7)).astype(np.float32)
    members = rng.random((2, 3, 9, 7)) < 0.4
    members[1, 2] = False
    given = torch.from_numpy(anomaly), torch.from_numpy(members).float()
    found = part_scores(*given, top_share=0.3).numpy()
    for image in range(2):
        in_numpy = part_scores_in_numpy(anomaly[image], members[image], 0.3)
        for part in range(3):
            values = sorted(anomaly[image][members[image, part]], reverse=True)
            wanted = np.mean(values[: max(1, round(0.3 * len(values)))]) if values else 0
            assert found[image, part] == pytest.approx(wanted, rel=1e-6)
            assert in_numpy[part] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("smoothing", ["gaussian", "published"])
def test_what_is_beside_a_region_is_not_smoothed_into_it(tiny: Config, smoothing: str) -> None:
    sigma = 0.8 if smoothing == "gaussian" else 0.0
    config = tiny.replace(detection={"smoothing": smoothing, "sigma": sigma}).detection
    cells = torch.zeros(1, 8, 8)
    cells[:, 2:6, 2:7] = 1
    inside = torch.where(cells > 0, 3.0, 1e6)
    assert torch.allclose(smoothed_inside(inside, cells, config), 3 * cells)
    values = torch.rand(2, 8, 8)
    everywhere = smoothed_inside(values, torch.ones(1, 8, 8), config)
    assert torch.allclose(everywhere, smoothed(values, config), rtol=1e-5)


def thin(share: float) -> Mask:
    inside = np.zeros((64, 64), bool)
    inside[20:44, 30 : 30 + round(64 * share)] = True
    return inside


@pytest.mark.parametrize("share", [0.4, 0.1])
def test_the_guard_looks_at_what_counts_alone(share: float) -> None:
    rng, inside = np.random.default_rng(0), thin(share)

    def view(number: int, light: float = 1.0) -> np.ndarray:
        pixels = light * rng.uniform(0.3, 0.6, (3, 64, 64)).astype(np.float32)
        pixels[:, ~inside] = FILL / 255
        return pixels

    guard = Guard.fit(look_at(view(number), inside) for number in range(30))
    assert guard.why_unusable(view(40), inside) is None
    assert str(guard.why_unusable(view(41, light=0.2), inside)).startswith("darker")
    spoilt = view(42)
    look = look_at(spoilt, inside)
    spoilt[:, ~inside] = 1.0
    again = look_at(spoilt, inside)
    assert (again.values, again.layout.tolist()) == (look.values, look.layout.tolist())


def prediction(score: float, peak: float) -> Prediction:
    grid_map = np.array([[0, 0.4 * peak], [0.6 * peak, peak]], np.float32)
    return Prediction(
        score, 0.5, score > 2, False, grid_map, (2, 2), pixel_threshold=4.0, threshold=2.0
    )


def test_an_anomalous_image_is_always_marked_somewhere() -> None:
    assert prediction(1.0, 3.9).mark_above == 4.0, "a normal image is marked above the threshold"
    assert prediction(2.5, 5.0).mark_above == 4.0, "and so is one that has pixels above it"
    faint = prediction(2.5, 3.9)
    assert faint.mark_above == 2.0
    assert faint.defects.tolist() == [[False, False], [True, True]]
