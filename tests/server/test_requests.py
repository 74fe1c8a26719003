"""One image in, what is said of it out."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from conftest import texture
from haloae import load
from server.services import Start, coded


def test_what_is_said_of_an_image_is_what_the_detector_says(
    start: Start, small_model: Path, good_paths: list[Path]
) -> None:
    client, detector = start(), load(small_model)
    for path in good_paths[:3]:
        found = client.post("/v1/predict", content=path.read_bytes()).json()
        wanted = detector.predict(path)
        assert found["score"] == pytest.approx(wanted.score, rel=1e-5)
        assert (found["p_value"], found["verdict"]) == (wanted.p_value, wanted.verdict)
        assert (found["recipe"], found["source"]) == ("cloth", "request")


def test_pictures_come_on_request(start: Start) -> None:
    found = start().post("/v1/predict?map=png&overlay=png", content=coded(texture(1))).json()
    pictures = [Image.open(io.BytesIO(base64.b64decode(found[key]))) for key in ("map", "overlay")]
    assert [picture.format for picture in pictures] == ["PNG", "PNG"]
    assert pictures[0].size == (40, 40)


def test_an_image_that_must_be_decoded_apart_is_inspected_too(start: Start) -> None:
    client = start()
    webp = client.post("/v1/predict", content=coded(texture(1), "webp")).json()
    assert webp["verdict"] in ("normal", "anomalous")


@pytest.mark.parametrize(
    ("url", "body", "status", "sentence"),
    [
        ("/v1/predict?recipe=felt", b"", 404, "there is no recipe 'felt'"),
        ("/v1/predict?recipe=../../etc/passwd", b"", 404, "there is no recipe"),
        ("/v1/predict", b"", 422, "it is empty (0 bytes)"),
        ("/v1/predict", b"no image", 422, "expected an image, got 8 bytes"),
        ("/v1/predict", coded(texture(1))[:-100], 422, "truncated or corrupted"),
        ("/v1/predict?map=gif", b"", 422, "query.map: Input should be 'png'"),
        ("/v1/nothing", b"", 404, "Not Found"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    start: Start, url: str, body: bytes, status: int, sentence: str
) -> None:
    found = start().post(url, content=body)
    assert found.status_code == status
    assert sentence in found.json()["error"]


def test_of_several_recipes_one_must_be_named(
    start: Start, small_model: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.onnx").write_bytes(small_model.read_bytes())
    client = start(tmp_path)
    assert client.post("/v1/predict", content=b"").status_code == 400
    assert [one["name"] for one in client.get("/v1/recipes").json()] == ["a", "b"]
