"""The Open Inference Protocol, byte by byte; its clients in the wild are in test_run.py."""

import base64
import json
import struct
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from conftest import texture
from haloae.server.tensors import MOST_JSON
from server.services import Start, coded

PIXELS = texture(1)
INFER = "/v2/models/cloth/infer"


def tensor(**changes: object) -> dict[str, Any]:
    values = {"name": "image", "datatype": "UINT8", "shape": [40, 40, 3], "data": PIXELS.tolist()}
    return values | changes


def asked(client: TestClient, *inputs: dict[str, Any], **more: object) -> Response:
    return client.post(INFER, json={"inputs": list(inputs), **more})


def outputs(found: Response) -> dict[str, Any]:
    assert found.status_code == 200, found.text
    return {one["name"]: one["data"] for one in found.json()["outputs"]}


def test_pixels_nested_or_flat_and_files_get_the_answer_that_v1_gives(start: Start) -> None:
    client = start()
    wanted = client.post("/v1/predict", content=coded(PIXELS)).json()
    file = base64.b64encode(coded(PIXELS)).decode()
    for given in (
        tensor(),
        tensor(data=PIXELS.ravel().tolist(), shape=[1, 40, 40, 3]),
        tensor(datatype="BYTES", shape=[1], data=[file]),
        tensor(datatype="BYTES", shape=[1, 1], data=[file]),
    ):
        found = outputs(asked(client, given))
        assert found["score"] == [pytest.approx(wanted["score"], rel=1e-6)]
        assert found["verdict"] == [wanted["verdict"]]
        assert json.loads(found["boxes"][0]) == wanted["boxes"]
        assert len(found["anomaly_map"]) == 64


def test_tensors_may_follow_the_json_and_answers_too(start: Start) -> None:
    client = start()
    file = coded(PIXELS)
    data = struct.pack("<I", len(file)) + file
    given = tensor(datatype="BYTES", shape=[2], parameters={"binary_data_size": 2 * len(data)})
    del given["data"]
    head = {"id": "7", "inputs": [given], "outputs": [{"name": "score"}, {"name": "verdict"}]}
    head["outputs"][0]["parameters"] = {"binary_data": True}
    text = json.dumps(head).encode()
    headers = {"inference-header-content-length": str(len(text))}
    found = client.post(INFER, content=text + data + data, headers=headers)
    length = int(found.headers["inference-header-content-length"])
    said, rest = json.loads(found.content[:length]), found.content[length:]
    assert said["id"] == "7"
    assert said["outputs"][0]["parameters"] == {"binary_data_size": 8}
    scores = struct.unpack("<2f", rest)
    verdict = said["outputs"][1]["data"][0]
    wanted = client.post("/v1/predict", content=file).json()
    assert (scores, verdict) == ((pytest.approx(wanted["score"]),) * 2, wanted["verdict"])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (tensor(name="pixels"), "the input is 'image'"),
        (tensor(datatype="FP32"), "of datatype UINT8 or BYTES"),
        (tensor(shape=[40, 40]), "no (n, H, W, 3)"),
        (tensor(shape=[-1, 40, 40, 3]), "no (n, H, W, 3)"),
        (tensor(shape=[40, 41, 3]), "not as many values as the shape says"),
        (tensor(shape=[10**6, 10**6, 3]), "more than the limit of 200,000,000 pixels"),
        (tensor(data=[[1], [2, 3]]), "inhomogeneous"),
        (tensor(data=[0.5] * 4800), "whole numbers"),
        (tensor(data=[256] * 4800), "not from 0 to 255"),
        (tensor(data=[10**30] * 4800), "whole numbers"),
        (tensor(data=None), "neither data nor binary_data_size"),
        (tensor(parameters={"binary_data_size": 5}), "not the number of bytes"),
        (tensor(datatype="BYTES", shape=[1], data=["no base 64"]), "files in base64"),
        (tensor(datatype="BYTES", shape=[2], data=[""]), "as many as the shape says"),
        (tensor(datatype="BYTES", shape=[65], data=["AA=="] * 65), "from 1 to 64 files"),
        (tensor(shape="wide"), "inputs.0.shape"),
    ],
)
def test_what_is_no_image_is_refused(start: Start, given: dict[str, Any], sentence: str) -> None:
    found = asked(start(), given)
    assert found.status_code == 400
    assert sentence in found.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff", b"[]", b"{}", b"1e999"])
def test_what_is_no_request_is_refused(start: Start, body: bytes) -> None:
    found = start().post(INFER, content=body)
    assert found.status_code == 400
    assert "not a request of the Open Inference Protocol V2" in found.json()["error"]


def test_json_that_would_take_much_memory_is_refused(start: Start) -> None:
    found = start().post(INFER, content=b" " * (MOST_JSON + 1))
    assert (found.status_code, "send tensors behind it" in found.text) == (400, True)


@pytest.mark.parametrize("length", ["-1", "99999", "many"])
def test_a_wrong_length_of_the_json_is_refused(start: Start, length: str) -> None:
    headers = {"inference-header-content-length": length}
    assert start().post(INFER, content=b"{}", headers=headers).status_code == 400


def test_a_file_must_be_as_long_as_it_says(start: Start) -> None:
    given = tensor(datatype="BYTES", shape=[1], parameters={"binary_data_size": 6})
    text = json.dumps({"inputs": [given]}).encode()
    headers = {"inference-header-content-length": str(len(text))}
    found = start().post(INFER, content=text + b"\xff\0\0\0ab", headers=headers)
    assert "shorter than the length before it says" in found.json()["error"]


def test_unknown_outputs_recipes_and_codings_are_refused(start: Start) -> None:
    client = start()
    assert "no output 'speed'" in asked(client, tensor(), outputs=[{"name": "speed"}]).text
    for url in ("/v2/models/felt", "/v2/models/felt/ready", "/v2/repository/models/felt/load"):
        ask = client.post if url.endswith("load") else client.get
        assert ask(url).status_code == 404
    packed = client.post(INFER, content=b"", headers={"content-encoding": "gzip"})
    assert packed.status_code == 415


def test_what_is_wrong_with_a_part_is_said_to_whoever_looks(start: Start) -> None:
    client = start()

    def breaks(*_: object) -> None:
        raise OSError("the broker is gone")

    client.app.state.service.inspector.listeners["mqtt"] = breaks
    assert asked(client, tensor()).status_code == 200
    found = client.get("/v2/health").json()
    assert (found["live"], found["ready"]) == (True, True)
    assert [(one["part"], one["message"]) for one in found["problems"]] == [
        ("mqtt", "OSError: the broker is gone")
    ]
    assert 'haloae_problem_times{part="mqtt"} 1.0' in client.get("/metrics").text
