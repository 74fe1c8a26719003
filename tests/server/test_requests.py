"""One image in, what is said of it out."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from haloae import load
from haloae.server.app import create_app


@pytest.fixture(scope="module")
def client(two_models: list[Path]) -> Iterator[TestClient]:
    with TestClient(create_app(two_models[0]), base_url="http://localhost") as client:
        yield client


def test_what_is_said_of_an_image_is_what_the_detector_says(
    client: TestClient, two_models: list[Path], good_paths: list[Path]
) -> None:
    detector = load(two_models[0])
    for path in good_paths[:3]:
        found = client.post("/v1/predict", content=path.read_bytes()).json()
        wanted = detector.predict(path)
        assert found["score"] == pytest.approx(wanted.score, rel=1e-5)
        assert (found["p_value"], found["verdict"]) == (wanted.p_value, wanted.verdict)
        assert (found["recipe"], found["source"]) == ("m", "request")


def test_pictures_come_on_request(client: TestClient, good_paths: list[Path]) -> None:
    url = "/v1/predict?map=png&overlay=png"
    found = client.post(url, content=good_paths[0].read_bytes()).json()
    pictures = [Image.open(io.BytesIO(base64.b64decode(found[key]))) for key in ("map", "overlay")]
    assert [picture.format for picture in pictures] == ["PNG", "PNG"]
    assert pictures[0].size == (40, 40)
