"""A prediction as a line of JSON and as the bytes of a map."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from haloae.detection.prediction import Prediction
from haloae.errors import ImageError
from haloae.outputs.encode import as_record, encode_map


def prediction_of(anomaly_map: np.ndarray, pixel_threshold: float) -> Prediction:
    return Prediction(
        score=2.5,
        p_value=0.25,
        is_anomalous=True,
        extrapolated=False,
        grid_map=anomaly_map.astype(np.float32),
        size=anomaly_map.shape,
        pixel_threshold=pixel_threshold,
    )


def test_a_record_has_every_key_for_a_prediction_and_for_an_error() -> None:
    prediction = prediction_of(np.zeros((2, 3)), 1.0)
    record = as_record("a.png", prediction, map="maps/a.png", overlay=None)
    assert record == {
        "path": "a.png",
        "score": 2.5,
        "p_value": 0.25,
        "is_anomalous": True,
        "extrapolated": False,
        "verdict": "anomalous",
        "unusable": None,
        "unlike": [],
        "regions": {},
        "map": "maps/a.png",
        "overlay": None,
        "error": None,
    }
    error = as_record("b.png", ImageError("b.png: broken."), map=None, overlay=None)
    assert list(error) == list(record)
    assert {key: value for key, value in error.items() if value is not None} == {
        "path": "b.png",
        "error": "b.png: broken.",
    }
    assert json.loads(json.dumps([record, error])) == [record, error]


@pytest.mark.parametrize("threshold", [0.5, 3.0])
def test_half_the_range_of_a_png_is_the_threshold(threshold: float) -> None:
    shares = np.array([[0, 0.5, 1], [1.5, 2, 40]])
    data = encode_map(prediction_of(shares * threshold, threshold), "png")
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG"
        values = np.asarray(picture)
    assert values.dtype == np.uint16
    np.testing.assert_allclose(values / 65535, np.minimum(shares / 2, 1), atol=1e-5)


def test_a_tiff_holds_the_values_and_a_threshold_of_nothing_is_no_error() -> None:
    anomaly = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    with Image.open(io.BytesIO(encode_map(prediction_of(anomaly, 1.0), "tiff"))) as picture:
        assert picture.format == "TIFF"
        np.testing.assert_array_equal(np.asarray(picture), anomaly)
    assert encode_map(prediction_of(np.zeros((2, 2)), 0.0), "png")
