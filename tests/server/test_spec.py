"""The service's description of itself is the one in the docs, and what it does is what it says."""

import base64
import json
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from benchmarks.openapi import SPEC, spec
from hypothesis import HealthCheck, strategies
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from conftest import texture
from server.services import Start, coded
from server.test_run import served

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
IMAGES = [coded(texture(0), format) for format in ("png", "jpeg", "gif", "tiff", "bmp", "webp")]


def test_the_spec_in_the_docs_is_the_service_s_own() -> None:
    said = "it differs: write it anew by `uv run python -m benchmarks.openapi`"
    assert SPEC.read_text(encoding="utf-8") == spec(), said


def test_the_page_for_people_names_all_that_can_be_asked(start: Start) -> None:
    client = start()
    page = client.get("/docs").text
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        assert all(f"<code>{method.upper()} {path}</code>" in page for method in operations)
    assert "<script" not in page


@strategies.composite
def damaged(draw: strategies.DrawFn) -> bytes:
    """An image with some bytes replaced, or cut off."""
    data = bytearray(draw(strategies.sampled_from(IMAGES)))
    for _ in range(draw(strategies.integers(0, 4))):
        data[draw(strategies.integers(0, len(data) - 1))] = draw(strategies.integers(0, 255))
    return bytes(data[: draw(strategies.integers(0, len(data)) | strategies.just(len(data)))])


@strategies.composite
def tensors(draw: strategies.DrawFn) -> dict[str, Any]:
    """Images as a tensor of the Open Inference Protocol, or nearly."""
    file = base64.b64encode(draw(damaged())).decode()
    files = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [file]}
    pixels = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 128, 255]}
    chosen = dict(draw(strategies.sampled_from([files, pixels])))
    if draw(strategies.booleans()):
        key = draw(strategies.sampled_from(sorted(chosen)))
        chosen[key] = draw(strategies.none() | strategies.lists(strategies.integers(), max_size=5))
    return chosen


def fuzz(models: Path, folder: Path, count: int) -> None:
    """Ask so many times, and alike whatever there is something to choose in."""
    load_all_checks()
    schemathesis.openapi.media_type("application/octet-stream", damaged() | strategies.binary())
    schema = schemathesis.openapi.from_dict(json.loads(SPEC.read_text()))
    operations = [result.ok() for result in schema.get_all_operations()]
    chosen = [one for one in operations if one.body or list(one.iter_parameters())]
    with served(models, folder=folder) as service, requests.Session() as session:
        for operation in operations:
            # Exactly what it says, and what it says only nearly.
            either = operation.as_strategy() | operation.as_strategy(
                generation_mode=schemathesis.GenerationMode.NEGATIVE
            )

            @hypothesis.settings(
                max_examples=count // len(chosen) + 1,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @hypothesis.seed(0)
            @hypothesis.given(either, strategies.booleans(), tensors())
            def ask(case: schemathesis.Case, is_known: bool, tensor: dict[str, Any]) -> None:
                if is_known and "name" in (case.path_parameters or {}):
                    case.path_parameters["name"] = "cloth"
                if is_known and isinstance(case.body, dict) and "inputs" in case.body:
                    case.body = {"inputs": [tensor]}  # which nobody would hit upon
                found = case.call(base_url=service.url, session=session)
                case.validate_response(found, checks=CHECKS)

            ask()
        assert service.process.poll() is None


@pytest.mark.slow
def test_nothing_that_is_asked_makes_it_fail(
    small_model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    fuzz(small_model, tmp_path, int(request.config.getoption("--fuzz")))
