"""`haloae serve` as a plant runs it: a process, sockets, signals, clients in the wild."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest

from conftest import texture
from haloae import load
from haloae.cli import main
from server.services import coded

IMAGES = np.stack([texture(1), texture(2)])
OPERATOR, ENGINEER = "operators-token-0123456789", "engineers-token-0123456789"


class Served(NamedTuple):
    """A service in a process of its own."""

    url: str
    port: int
    process: subprocess.Popen[str]
    log: Path


@contextmanager
def served(*arguments: object, folder: Path, **environment: str) -> Iterator[Served]:
    """A service of a command line, on any port that is free."""
    log = folder / "serve.log"
    given = map(str, (*arguments, "--port", 0, "--data", folder / "data"))
    with log.open("w") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "haloae", "serve", *given],
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
            env={**os.environ, **environment},
        )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        assert said.startswith("haloae serves at "), log.read_text()
        url = said.split()[-1]
        yield Served(url, int(url.rstrip("/").rpartition(":")[2]), process, log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def spans() -> Iterator[list[bytes]]:
    """The address of an OpenTelemetry collector, and then what it was sent."""
    got: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        got.append(f"http://127.0.0.1:{collector.server_port}".encode())
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield got
        collector.shutdown()


@pytest.fixture(scope="module")
def service(
    small_model: Path, spans: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "serve.toml").write_text("[http]\nreceive = 0.5\nidle = 1\nconnections = 20\n")
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": spans[0].decode(),
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    options = ("--config", folder / "serve.toml")
    with served(small_model, *options, folder=folder, **environment) as service:
        yield service


@pytest.fixture(scope="module")
def wanted(small_model: Path) -> list[float]:
    return [one.score for one in load(small_model).predict(list(IMAGES))]


@pytest.mark.parametrize("binary", [True, False])
def test_triton_s_client_works_unchanged(
    service: Served, wanted: list[float], binary: bool
) -> None:
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(f"127.0.0.1:{service.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "haloae"
    assert client.get_model_metadata("cloth")["inputs"][0]["name"] == "image"
    assert client.get_model_repository_index()[0]["state"] == "READY"
    given = triton.InferInput("image", IMAGES.shape, "UINT8")
    given.set_data_from_numpy(IMAGES, binary_data=binary)
    names = ("score", "verdict", "anomaly_map")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    found = client.infer("cloth", [given], outputs=outputs, request_id="9")
    assert found.as_numpy("score") == pytest.approx(wanted, rel=1e-5)
    assert found.as_numpy("anomaly_map").shape == (2, 8, 8)
    assert found.get_response()["id"] == "9"
    client.unload_model("cloth")
    assert not client.is_model_ready("cloth")
    client.load_model("cloth")
    assert client.is_model_ready("cloth")
    client.close()


def test_triton_s_client_sends_files(service: Served, wanted: list[float]) -> None:
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(f"127.0.0.1:{service.port}")
    given = triton.InferInput("image", [2], "BYTES")
    given.set_data_from_numpy(np.array([coded(image) for image in IMAGES], object))
    assert client.infer("cloth", [given]).as_numpy("score") == pytest.approx(wanted, rel=1e-5)
    client.close()


def test_kserve_s_client_works_unchanged(service: Served, wanted: list[float]) -> None:
    kserve = pytest.importorskip("kserve", reason="305 MB: `uv run --with kserve pytest`")
    url = service.url

    async def ask(binary: bool) -> list[float]:
        client = kserve.InferenceRESTClient(kserve.inference_client.RESTConfig(protocol="v2"))
        assert await client.is_server_live(url)
        assert await client.is_server_ready(url)
        assert await client.is_model_ready(url, "cloth")
        given = kserve.InferInput("image", list(IMAGES.shape), "UINT8")
        given.set_data_from_numpy(IMAGES, binary_data=binary)
        request = kserve.InferRequest("cloth", [given])
        answer = await client.infer(url, request, model_name="cloth")
        await client.close()
        [score] = [output for output in answer.outputs if output.name == "score"]
        return list(score.as_numpy())

    for binary in (True, False):
        assert asyncio.run(ask(binary)) == pytest.approx(wanted, rel=1e-5)


def closes_within(service: Served, seconds: float, *sent: bytes, pause: float = 0.1) -> bool:
    """Whether the service closes a connection on which this is sent, bit by bit."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=seconds) as connection:
        until = time.monotonic() + seconds
        connection.settimeout(pause)
        pieces = iter(sent)
        while time.monotonic() < until:
            try:
                connection.sendall(next(pieces, b""))
                if not connection.recv(4096):
                    return True
            except TimeoutError:
                continue
            except OSError:
                return True
    return False


def test_a_head_that_never_ends_is_not_waited_for(service: Served) -> None:
    assert closes_within(service, 5)
    drip = b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n" + b"x: 1\r\n" * 50
    assert closes_within(service, 5, *(drip[at : at + 3] for at in range(0, len(drip), 3)))


def test_a_body_that_never_comes_is_not_waited_for(service: Served) -> None:
    head = b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as connection:
        connection.sendall(head)
        assert b"408" in connection.recv(4096)


def test_an_answer_on_a_connection_that_is_kept_is_not_held_back(service: Served) -> None:
    """By the system, which waits 40 ms to join small parts of it, unless it is told not to."""
    taken = []
    with httpx.Client() as client:
        for _ in range(40):
            began = time.monotonic()
            client.get(f"{service.url}v2")
            taken.append(time.monotonic() - began)
    assert sorted(taken)[20] < 0.03


def test_connections_are_bounded(service: Served) -> None:
    def status_beside(others: int) -> int:
        with ExitStack() as stack:
            for _ in range(others):
                stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            return httpx.get(f"{service.url}v2", timeout=30).status_code

    # They are closed in half a second, before a busy machine may have asked.
    assert any(status_beside(20) == 503 for _ in range(50))
    assert any(status_beside(0) == 200 for _ in range(50))


def test_what_is_logged_is_json(service: Served) -> None:
    httpx.get(f"{service.url}v2")
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    found = [line for line in lines if line.get("path") == "/v2"]
    assert found[-1].keys() >= {"time", "level", "method", "status", "seconds", "client", "role"}


def test_a_stop_under_load_answers_all_that_was_taken_in(small_model: Path, tmp_path: Path) -> None:
    """Through TLS and tokens, as another machine would ask."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    )
    make += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    subprocess.run(["openssl", *make.split()], check=True, capture_output=True)
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'operator = "{OPERATOR}"\nengineer = "{ENGINEER}"\n')
    options = ("--certificate", certificate, "--key", key, "--token-file", tokens)
    answers: list[int] = []
    with served(small_model, *options, folder=tmp_path) as service:
        assert service.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        headers = {"authorization": f"Bearer {OPERATOR}"}

        def ask() -> None:
            with httpx.Client(verify=trusted, headers=headers) as client:
                while True:
                    try:
                        found = client.post(f"{service.url}v1/predict", content=coded(IMAGES[0]))
                    except httpx.TransportError:  # nobody is there any more
                        return
                    answers.append(found.status_code)

        asking = [threading.Thread(target=ask) for _ in range(4)]
        for thread in asking:
            thread.start()
        while len(answers) < 20:
            time.sleep(0.01)
        service.process.send_signal(signal.SIGTERM)
        for thread in asking:
            thread.join(10)
        assert service.process.wait(10) == 0
    assert set(answers) == {200}
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    assert len([line for line in lines if line["message"] == "request"]) == len(answers)
    assert not [line for line in lines if line["level"] not in ("info",)]
    for secret in (OPERATOR, ENGINEER):
        assert secret not in service.log.read_text()


def test_spans_go_where_the_environment_says(service: Served, spans: list[bytes]) -> None:
    parent = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{parent}-00f067aa0ba902b7-01"}
    httpx.post(f"{service.url}v1/predict", content=coded(IMAGES[0]), headers=headers)
    wanted = (b"inspect", b"decode", b"measure", b"haloae.verdict", bytes.fromhex(parent))

    def are_sent() -> bool:
        return all(name in b"".join(spans) for name in wanted)

    until = time.monotonic() + 10
    while not are_sent() and time.monotonic() < until:
        time.sleep(0.02)
    assert are_sent()


def test_without_its_extra_it_says_which(small_model: Path) -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from haloae.cli import main; "
    code += f"sys.exit(main(['serve', {str(small_model)!r}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "run `pip install 'haloae[serve]'`" in done.stderr


@pytest.fixture
def refused(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """The sentence that a command line is refused with, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> str:
        assert main(["serve", *map(str, arguments)]) == 2
        said = capfd.readouterr().err
        assert said.count("\n") == 1
        return said

    return run


def test_another_address_without_tokens_is_refused(
    refused: Callable[..., str], small_model: Path
) -> None:
    assert "so it needs tokens" in refused(small_model, "--host", "192.0.2.1", "--port", 0)


def test_what_cannot_be_served_is_one_sentence(
    refused: Callable[..., str], small_model: Path, tmp_path: Path
) -> None:
    assert "no such model file or folder" in refused(tmp_path / "none", "--port", 0)
    assert "belong together" in refused(small_model, "--key", tmp_path / "key.pem")
    (tmp_path / "key.pem").write_text("none")
    both = ("--certificate", tmp_path / "key.pem", "--key", tmp_path / "key.pem")
    assert "no certificate with its private key" in refused(small_model, *both)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: cannot be listened on" in refused(small_model, "--port", port)
