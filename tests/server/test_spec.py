"""The service's description of itself is the one in the docs, and what it does is what it says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.fuzzing import fuzz
from benchmarks.openapi import SPEC, spec

from server.services import Start


def test_the_spec_in_the_docs_is_the_service_s_own() -> None:
    said = "it differs: write it anew by `uv run python -m benchmarks.openapi`"
    assert SPEC.read_text(encoding="utf-8") == spec(), said


def references(value: Any) -> Iterator[str]:  # noqa: ANN401 - any JSON
    """All of them in a description."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    for each in value if isinstance(value, list) else ():
        yield from references(each)


def test_every_reference_in_the_spec_leads_somewhere() -> None:
    said = json.loads(SPEC.read_text(encoding="utf-8"))
    for reference in references(said):
        found = said
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]


def test_the_page_for_people_names_all_that_can_be_asked(start: Start) -> None:
    client = start()
    page = client.get("/docs").text
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        assert all(f"<code>{method.upper()} {path}</code>" in page for method in operations)
    assert "<script" not in page


@pytest.mark.slow
def test_nothing_that_is_asked_makes_it_fail(
    small_model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    wanted = int(request.config.getoption("--fuzz"))
    tally = fuzz(small_model, tmp_path, wanted=wanted, seed=0)
    assert not tally.failed, tally.failed[:3]
    assert tally.statuses["POST /v2/models/{name}/infer"]["200"] > wanted // 1000
