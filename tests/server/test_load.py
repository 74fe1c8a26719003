"""Under load a request costs little more than its image, and memory stays what it is."""

from pathlib import Path

import pytest
from benchmarks.serving import measure

from conftest import texture
from haloae.deploy.export import export_model
from haloae.detector import Detector
from server.services import coded

CLIENTS = 32
MOST_COST = 1.2
"""Processor time of a request, in that of `Detector.predict` on the same bytes."""
MOST_GROWTH_MB = 20


@pytest.mark.slow
def test_requests_of_many_clients_cost_what_their_images_do(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    minutes = float(request.config.getoption("--load-minutes"))
    detector = Detector.fit([texture(number, 512, 512) for number in range(12)], preset="fast")
    export_model(detector, tmp_path / "part.xml", format="openvino", threads=1)
    image = tmp_path / "image.jpg"
    image.write_bytes(coded(texture(20, 512, 512), "jpeg"))
    found = measure(tmp_path / "part.xml", image, tmp_path, clients=CLIENTS, minutes=minutes)
    assert found["statuses"] == {"200": found["requests"]}
    assert found["ratio"] <= MOST_COST, found
    first, last = found["memory_mb"]
    assert last - first < MOST_GROWTH_MB, found
