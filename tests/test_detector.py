"""What a fitted detector says of images, however they are given to it."""

import logging
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import texture
from haloae.config import Config
from haloae.data.images import image_from
from haloae.data.views import resize
from haloae.detection.calibration import threshold_at
from haloae.detection.good import measure_good
from haloae.detection.heads.autoencoder import AutoencoderHead
from haloae.detection.maps import Usual, image_score, residual_map, residuals, smooth
from haloae.detection.prediction import Prediction
from haloae.detector import Detector
from haloae.errors import ConfigError, DataError, ImageError
from haloae.machine import resolve_device

LOGGER = "haloae.detection.predictor"


@pytest.fixture(scope="module")
def detector(good_folder: Path, tiny: Config) -> Detector:
    config = tiny.replace(
        training={"steps": 60, "learning_rate": 3e-3}, detection={"false_alarm_rate": 0.2}
    )
    return Detector.fit(good_folder, config=config, device="cpu")


def usual_of(detector: Detector) -> Usual:
    assert isinstance(detector.head, AutoencoderHead)
    return detector.head.usual


def defective(seed: int = 100) -> np.ndarray:
    """A texture with a bright square at rows 8–19 and columns 20–31."""
    pixels = texture(seed)
    pixels[8:20, 20:32] = (250, 40, 250)
    return pixels


def assert_same(one: Prediction, other: Prediction) -> None:
    assert one.score == pytest.approx(other.score, rel=1e-4)
    assert np.allclose(one.anomaly_map, other.anomaly_map, rtol=1e-3, atol=1e-4)


def test_a_defect_scores_higher_and_is_outlined_where_it_is(detector: Detector) -> None:
    good, bad = detector.predict([texture(50), defective(50)])
    assert bad.score > good.score
    assert bad.p_value <= good.p_value
    row, column = divmod(int(bad.anomaly_map.argmax()), 40)
    assert 6 <= row <= 22
    assert 18 <= column <= 34


def test_path_pillow_and_array_are_the_same(detector: Detector, good_paths: list[Path]) -> None:
    with Image.open(good_paths[0]) as picture:
        pixels = np.asarray(picture)
        predictions = [
            detector.predict(good_paths[0]),
            detector.predict(str(good_paths[0])),
            detector.predict(picture),
            detector.predict(pixels),
        ]
    for prediction in predictions[1:]:
        assert prediction.score == predictions[0].score
        assert np.array_equal(prediction.anomaly_map, predictions[0].anomaly_map)
    as_float = detector.predict(pixels.astype(np.float32) / 255)
    assert as_float.score == pytest.approx(predictions[0].score, rel=0.05)


def test_lists_and_tuples_give_lists(detector: Detector, good_paths: list[Path]) -> None:
    assert detector.predict([]) == []
    one = detector.predict([good_paths[0]])
    assert isinstance(one, list)
    assert len(one) == 1
    assert len(detector.predict((good_paths[0], texture(3)))) == 2


def test_a_score_does_not_depend_on_the_rest_of_the_batch(
    detector: Detector, good_paths: list[Path]
) -> None:
    images: list[Any] = [*good_paths, defective(), texture(60, 20, 90), texture(61, 1, 1)]
    together = detector.predict(images)
    reversed_order = detector.predict(images[::-1])[::-1]
    for image, one, other in zip(images, together, reversed_order, strict=True):
        assert_same(one, other)
        assert_same(one, detector.predict(image))
    assert len({round(p.score, 6) for p in together}) == len(images)


@pytest.mark.parametrize("size", [(1, 1), (37, 91), (1, 300), (40, 40), (128, 96)])
def test_maps_have_the_size_of_the_image(detector: Detector, size: tuple[int, int]) -> None:
    found = detector.predict(texture(7, *size))
    assert found.anomaly_map.shape == found.defects.shape == size
    assert found.anomaly_map.dtype == np.float32
    assert found.defects.dtype == np.bool_
    assert np.isfinite(found.anomaly_map).all()


def test_verdicts_follow_from_the_thresholds(detector: Detector, good_paths: list[Path]) -> None:
    calibration = detector.calibration
    found = detector.predict([*good_paths, *(defective(seed) for seed in range(100, 104))])
    for prediction in found:
        assert prediction.is_anomalous == (prediction.score > calibration.threshold.value)
        expected = prediction.anomaly_map > calibration.pixel_threshold.value
        assert np.array_equal(prediction.defects, expected)
        assert prediction.p_value == calibration.p_value(prediction.score)
        assert prediction.extrapolated == calibration.extrapolated
    assert {prediction.is_anomalous for prediction in found} == {True, False}
    assert any(prediction.defects.any() for prediction in found)
    assert not all(prediction.defects.any() for prediction in found)


def test_a_score_is_that_of_the_functions_it_is_made_of(detector: Detector) -> None:
    pixels = resize(image_from(defective()), 32)
    batch = detector.network.normalise(torch.from_numpy(pixels)[None])
    with torch.inference_mode():
        errors = residuals(detector.network(batch), batch)
        small = smooth(residual_map(errors, usual_of(detector), detector.config.detection), 0.8)
    found = detector.predict(defective())
    assert found.score == pytest.approx(image_score(small, 1.0).item(), rel=1e-5)
    assert found.score == pytest.approx(small.mean().item(), rel=1e-5)
    assert found.anomaly_map.max() <= small.max().item() * (1 + 1e-5)


def test_an_image_that_cannot_be_scored_keeps_its_place(
    detector: Detector, good_paths: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(good_paths[0].read_bytes()[:60])
    images: list[Any] = [broken, *good_paths[:9], tmp_path / "missing.png", good_paths[9], 7, None]
    found = list(detector.stream(images))
    wrong = [index for index, result in enumerate(found) if isinstance(result, ImageError)]
    assert wrong == [0, 10, 12, 13]
    assert "broken.png" in str(found[0])
    assert "missing.png" in str(found[10])
    for image, result in zip(images, found, strict=True):
        if isinstance(result, Prediction):
            assert_same(result, detector.predict(image))
    assert all(isinstance(result, ImageError) for result in detector.stream([broken] * 3))
    with pytest.raises(ImageError, match=r"broken\.png"):
        detector.predict([good_paths[0], broken])


def test_one_picture_many_times(detector: Detector, good_paths: list[Path]) -> None:
    """Pillow reads a file that was only opened when it is first used, and by one thread."""
    picture = Image.open(good_paths[0])
    (score,) = {found.score for found in detector.predict([picture] * 16)}
    # Alone, sums may round otherwise than in a batch.
    assert score == pytest.approx(detector.predict(good_paths[0]).score, rel=1e-5)


def test_a_stream_may_have_no_end(detector: Detector) -> None:
    asked = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal asked
        while True:
            asked += 1
            yield texture(asked)

    assert len(list(islice(detector.stream(endless()), 3))) == 3
    assert asked <= 16
    assert list(detector.stream(iter(()))) == []


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (texture(1)[..., 0], "is grey"),
        (texture(1).astype(np.uint16) * 257, "has 16 bits a channel"),
        (texture(1, 60, 40), "is 60 pixels high"),
        (texture(1, 40, 30), "is 30 pixels wide"),
        (texture(1, 20, 90)[..., 0], "is grey and is 20 pixels high and is 90 pixels wide"),
    ],
    ids=["grey", "16 bits", "high", "narrow", "all"],
)
def test_an_unlike_image_is_remarked_on_once(
    image: np.ndarray, said: str, detector: Detector, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = detector.calibrated()
    with caplog.at_level(logging.WARNING, LOGGER):
        fresh.predict(texture(2, 44, 36))
        assert caplog.messages == []
        for _ in range(3):
            fresh.predict([image, texture(2), image])
    assert len(caplog.messages) == 1
    assert said in caplog.messages[0]


def test_calibrated_at_another_rate(detector: Detector) -> None:
    before = detector.calibration
    other = detector.calibrated(false_alarm_rate=0.5)
    assert other.calibration.scores == before.scores
    assert other.calibration.threshold == threshold_at(before.scores, 0.5)
    assert other.calibration.pixel_threshold == threshold_at(before.peaks, 0.5)
    assert other.calibration.threshold.value < before.threshold.value
    assert other.config.detection.false_alarm_rate == 0.5
    assert detector.calibration is before
    assert detector.config.detection.false_alarm_rate == 0.2
    one, two = other.predict(defective()), detector.predict(defective())
    assert one.score == two.score


def test_calibrated_with_other_images(detector: Detector, tmp_path: Path) -> None:
    paths = []
    for seed in range(200, 206):
        paths.append(tmp_path / f"{seed}.png")
        Image.fromarray(texture(seed)).save(paths[-1])
    other = detector.calibrated(paths)
    head, scores, peaks, _ = measure_good(
        detector.network,
        lambda: (resize(image_from(path), 32) for path in paths),
        detector.config,
    )
    assert isinstance(head, AutoencoderHead)
    assert torch.equal(usual_of(other).features, head.usual.features)
    assert not torch.equal(usual_of(other).features, usual_of(detector).features)
    assert (other.calibration.scores, other.calibration.peaks) == (scores, peaks)
    assert other.calibration.false_alarm_rate == 0.2
    assert other.provenance.held_out == 6
    assert detector.provenance.held_out == 4
    assert detector.calibrated([str(path) for path in paths]).calibration == other.calibration
    with pytest.raises(DataError, match="3 good images are too few"):
        detector.calibrated(paths[:3])
    with pytest.raises(ImageError, match=r"gone\.png"):
        detector.calibrated([*paths, tmp_path / "gone.png"])


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0, 1.5, math.nan])
def test_rates_that_are_none(detector: Detector, rate: float) -> None:
    with pytest.raises(ConfigError, match="false_alarm_rate"):
        detector.calibrated(false_alarm_rate=rate)


class TestFit:
    def test_a_folder_and_a_list_give_the_same(
        self, good_folder: Path, good_paths: list[Path], tiny: Config
    ) -> None:
        config = tiny.replace(training={"steps": 2})
        one = Detector.fit(str(good_folder), config=config, device="cpu")
        two = Detector.fit([str(path) for path in good_paths], config=config, device="cpu")
        assert one.provenance.data == good_folder.name
        assert one.calibration == two.calibration
        assert one.provenance.fitted_on == 8

    def test_arrays_and_pillow_images_give_the_same_as_their_files(
        self, good_paths: list[Path], tiny: Config
    ) -> None:
        config = tiny.replace(training={"steps": 2})
        pictures = [Image.open(path) for path in good_paths]
        for picture in pictures:
            picture.load()
        arrays = [np.asarray(picture) for picture in pictures]
        of_files, of_pictures, of_arrays = (
            Detector.fit(images, config=config, device="cpu").calibration
            for images in (good_paths, pictures, arrays)
        )
        assert of_files == of_pictures == of_arrays
        with pytest.raises(DataError, match="too few"):
            Detector.fit(arrays[:3], config=config, device="cpu")

    @pytest.mark.parametrize(("head", "tail"), [("autoencoder", "all"), ("gaussian", "upper")])
    def test_only_images_that_fit_as_well_are_judged_by_the_upper_half(
        self, head: str, tail: str, good_paths: list[Path], tiny: Config
    ) -> None:
        config = tiny.replace(
            network={"autoencoder": head == "autoencoder"},
            detection={"head": head},
            training={"steps": 1},
        )
        detector = Detector.fit(good_paths, config=config, device="cpu")
        assert detector.calibration.tail == tail
        assert detector.calibrated(good_paths[:4]).calibration.tail == tail

    def test_a_seed_replaces_the_config_s(self, good_folder: Path, tiny: Config) -> None:
        config = tiny.replace(training={"steps": 1})
        one = Detector.fit(good_folder, config=config, seed=9, device="cpu")
        assert one.config.seed == 9
        two = Detector.fit(good_folder, config=config.replace(seed=9), device="cpu")
        assert one.calibration == two.calibration

    def test_what_is_refused(self, good_folder: Path, tiny: Config, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no preset is called 'best'"):
            Detector.fit(good_folder, preset="best")
        with pytest.raises(ConfigError, match="no device is called"):
            Detector.fit(good_folder, config=tiny, device="tpu")
        with pytest.raises(DataError):
            Detector.fit(tmp_path, config=tiny, device="cpu")
        with pytest.raises(DataError):
            Detector.fit(tmp_path / "missing", config=tiny, device="cpu")


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("tpu", "cuda:0", ""):
        with pytest.raises(ConfigError, match="choose auto, cpu or cuda"):
            resolve_device(name)


def test_asking_for_cuda_where_there_is_none(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device was found"):
        detector.to("cuda")
    assert detector.to("auto") is detector
