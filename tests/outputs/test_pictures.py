"""Pictures for people: what they show, whatever the image."""

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PILImage

from haloae.data.images import image_from
from haloae.detection.calibration import Calibration
from haloae.detection.prediction import Prediction, Verdict
from haloae.outputs.pictures import (
    FOUND,
    MAX_SIDE,
    MIN_WIDTH,
    PAPER,
    RAMP,
    TRUE,
    VERDICT_COLOURS,
    VIEW,
    draw_overlay,
    draw_views,
    readable,
    thumbnail,
)

CALIBRATION = Calibration(
    scores=(0.5, 0.8, 0.9, 1.0), peaks=(1.0, 1.0, 1.0, 1.0), false_alarm_rate=0.25
)
"""Thresholds of 1, and a pixel threshold of 1."""


def prediction_of(
    anomaly_map: np.ndarray,
    score: float = 2.0,
    *,
    size: tuple[int, int] | None = None,
    pixel_threshold: float = 1.0,
) -> Prediction:
    """Of an image of the map's own size, unless another is given."""
    return Prediction(
        score=score,
        p_value=0.2,
        is_anomalous=score > 1,
        extrapolated=False,
        grid_map=anomaly_map.astype(np.float32),
        size=size or anomaly_map.shape,
        pixel_threshold=pixel_threshold,
    )


def opened(data: bytes) -> np.ndarray:
    picture = PILImage.open(io.BytesIO(data))
    assert picture.format == "JPEG"
    return np.asarray(picture).astype(int)


def is_near(pixels: np.ndarray, colour: Sequence[int], tolerance: int = 60) -> np.ndarray:
    return np.abs(pixels - np.asarray(colour)).max(axis=-1) <= tolerance


def grey(height: int, width: int, value: int = 128) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


# One overlay


@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (1, 40), (40, 1), (32, 32), (480, 640), (20, 5000), (5000, 20), (2100, 2500)],
)
def test_every_shape_gets_a_picture_of_a_size_to_look_at(height: int, width: int) -> None:
    image = image_from(grey(height, width))
    rows, columns = min(height, 32), min(width, 32)
    anomaly = np.zeros((rows, columns))
    anomaly[rows // 2 :, columns // 2 :] = 5
    prediction = prediction_of(anomaly, size=(height, width))
    shown = opened(draw_overlay(image, prediction, CALIBRATION))
    assert shown.shape[1] >= MIN_WIDTH
    assert max(shown.shape) <= 1.25 * MAX_SIDE
    assert is_near(shown, FOUND).any()
    small = thumbnail(image, prediction)
    assert max(small.size) <= 210


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("side", [32, 480, 2100])
def test_the_outline_goes_round_the_defect_on_any_ground(side: int, value: int) -> None:
    image = image_from(grey(side, side, value))
    cells = min(side, 128)
    anomaly = np.zeros((cells, cells))
    low, high = cells // 4, cells // 2
    anomaly[low:high, low:high] = 5
    prediction = prediction_of(anomaly, size=(side, side))
    shown = opened(draw_overlay(image, prediction, CALIBRATION))
    bright = is_near(shown, FOUND)
    rows, columns = np.nonzero(bright)
    width = shown.shape[1]
    for places in (rows, columns):
        assert places.min() / width == pytest.approx(0.25, abs=0.02)
        assert places.max() / width == pytest.approx(0.5, abs=0.02)
    middle = int(0.375 * width)
    line = np.flatnonzero(bright[middle])
    assert len(line) / width > 0.003, "two crossings of a line that can be seen"
    first = line[0]
    thick = max(1, len(line) // 2)
    assert shown[middle, first - 2 * thick : first].min() < 60, "dark beside bright"


def test_a_single_defective_pixel_of_a_large_image_stays_visible() -> None:
    anomaly = np.zeros((100, 4500))
    anomaly[77, 1111] = 3
    image = image_from(grey(100, 4500))
    assert is_near(opened(draw_overlay(image, prediction_of(anomaly), CALIBRATION)), FOUND).any()


def test_a_defect_that_fills_the_image_is_outlined_in_the_margin() -> None:
    image = image_from(grey(480, 480))
    shown = opened(draw_overlay(image, prediction_of(np.full((480, 480), 9.0)), CALIBRATION))
    bright = is_near(shown[:480], FOUND)
    assert bright[100, :8].any()
    assert not bright[100:380, 20:460].any()


def test_heat_is_only_where_the_map_is_above_the_threshold() -> None:
    image = image_from(grey(480, 480))
    anomaly = np.full((480, 480), 0.99)
    anomaly[100:200, 100:200] = 3
    shown = opened(draw_overlay(image, prediction_of(anomaly), CALIBRATION))
    heated = shown[..., 0] - shown[..., 2] > 30
    rows, columns = np.nonzero(heated[:480])
    assert (rows.min(), columns.min()) >= (95, 95)
    assert (rows.max(), columns.max()) <= (215, 215)
    assert 0 < shown[150, 150].min() < 128, "translucent"


def test_the_caption_is_below_and_covers_nothing() -> None:
    image = image_from(grey(480, 500))
    for score in (2.0, 0.5):
        shown = opened(draw_overlay(image, prediction_of(np.zeros((480, 500)), score), CALIBRATION))
        inner = shown[10:480, 10:500]
        assert (np.abs(inner - 128) <= 3).all()
        strip = shown[490:]
        assert len(strip) > 20
        assert is_near(strip, PAPER, 5).any()
        assert is_near(strip, (25, 25, 25)).any()
        words: list[Verdict] = ["normal", "anomalous"] if score > 1 else ["anomalous", "normal"]
        assert is_near(strip, VERDICT_COLOURS[words[1]], 30).any()
        assert not is_near(strip, VERDICT_COLOURS[words[0]], 30).any()


def test_the_caption_says_why_an_image_is_unusable() -> None:
    prediction = replace(prediction_of(np.zeros((480, 500))), unusable="darker than " * 12)
    shown, plain = (
        opened(draw_overlay(image_from(grey(480, 500)), each, CALIBRATION))
        for each in (prediction, replace(prediction, unusable=None))
    )
    assert len(shown) >= len(plain) + 30, "lines of their own"
    assert is_near(shown[490:], VERDICT_COLOURS["unusable"], 5).any()
    assert not is_near(shown[490:], VERDICT_COLOURS["anomalous"], 30).any()


@pytest.mark.parametrize("side", [32, 480, 2048, 3000])
def test_text_grows_with_the_picture(side: int) -> None:
    image = image_from(grey(side, side))
    prediction = prediction_of(np.zeros((8, 8)), size=(side, side))
    shown = opened(draw_overlay(image, prediction, CALIBRATION))
    strip = shown.shape[0] - shown.shape[1]
    assert strip / shown.shape[1] > 0.03


def test_a_dim_16_bit_grey_image_can_be_seen() -> None:
    pixels = np.tile(np.linspace(0, 4095, 480).astype(np.uint16), (480, 1))
    image = image_from(pixels)
    assert (image.depth, image.grey) == (16, True)
    shown = opened(draw_overlay(image, prediction_of(np.zeros((480, 480))), CALIBRATION))
    assert shown[240, 20].max() < 20
    assert shown[240, 470].min() > 235
    black = image_from(np.zeros((48, 48), np.uint16))
    assert opened(draw_overlay(black, prediction_of(np.zeros((48, 48))), CALIBRATION)).any()


def test_a_pixel_threshold_of_nothing_is_no_error() -> None:
    nothing = Calibration(scores=(0, 0, 0, 0), peaks=(0, 0, 0, 0), false_alarm_rate=0.25)
    image = image_from(grey(40, 40))
    for value in (0.0, 1e30):
        prediction = prediction_of(np.full((40, 40), value), pixel_threshold=0.0)
        draw_overlay(image, prediction, nothing)
        views = draw_views(image, prediction)
        assert is_near(np.asarray(views.anomaly_map), RAMP[-1 if value else 0], 1).all()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.50477, "1.505"), (999.94, "999.9"), (10663.2, "10663"), (1e9, "1e+09")],
)
def test_numbers_are_readable(value: float, text: str) -> None:
    assert readable(value) == text


# The report's views of one image


@pytest.mark.parametrize(("height", "width"), [(40, 40), (600, 300), (1, 500)])
def test_views_are_of_one_size_but_for_the_margin(height: int, width: int) -> None:
    image = image_from(grey(height, width))
    views = draw_views(image, prediction_of(np.zeros((4, 4)), size=(height, width)))
    assert max(views.image.size) == VIEW
    assert views.anomaly_map.size == views.image.size
    margins = np.subtract(views.outlined.size, views.image.size)
    assert margins[0] == margins[1] <= 16
    outlined = np.asarray(views.outlined).astype(int)
    assert not (is_near(outlined, FOUND) | is_near(outlined, TRUE)).any()


def test_what_is_found_and_what_is_true_are_outlined_each_in_its_colour() -> None:
    anomaly, truth = np.zeros((256, 256)), np.zeros((256, 256), bool)
    anomaly[40:80, 40:80] = 2
    truth[150:200, 100:200] = True
    views = draw_views(image_from(grey(256, 256)), prediction_of(anomaly), truth=truth)
    outlined = np.asarray(views.outlined).astype(int)
    for colour, box in ((FOUND, (40, 80, 40, 80)), (TRUE, (150, 200, 100, 200))):
        rows, columns = np.nonzero(is_near(outlined, colour, 0))
        found = rows.min(), rows.max(), columns.min(), columns.max()
        np.testing.assert_allclose(np.array(found) - 6, np.array(box), atol=5)
    assert (outlined[160:200, 110:200] == 128).all(), "nothing inside"
    assert (np.asarray(views.image) == 128).all()


def test_an_outline_is_closed_at_the_edge_of_the_picture() -> None:
    image, whole = image_from(grey(64, 64)), np.ones((64, 64), bool)
    outlined = draw_views(
        image, prediction_of(np.zeros((8, 8)), size=(64, 64)), truth=whole
    ).outlined
    pixels = np.asarray(outlined).astype(int)
    ring = is_near(pixels, TRUE, 0)
    assert ring.sum(axis=0)[8:-8].tolist() == [4] * (ring.shape[1] - 16), "above and below"
    assert ring.sum(axis=1)[8:-8].tolist() == [4] * (ring.shape[0] - 16), "left and right"
    assert (pixels[10:-10, 10:-10] == 128).all()


def test_a_map_by_itself_is_brightest_from_twice_the_threshold() -> None:
    anomaly = np.repeat([[0.0, 1.0, 2.0, 50.0]], 4, axis=0)
    views = draw_views(image_from(grey(40, 40)), prediction_of(anomaly, size=(40, 40)))
    row = np.asarray(views.anomaly_map)[128].astype(int)
    assert row[0].tolist() == list(RAMP[0])
    assert row[-1].tolist() == row[VIEW * 3 // 4].tolist() == list(RAMP[-1])
    brightness = row.sum(axis=1)
    assert (np.diff(brightness) >= 0).all()
