"""The ImageNet download, for real, from a server on loopback that does what servers do."""

import gc
import hashlib
import io
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.context import ForkServerContext
from multiprocessing.queues import Queue
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import ResNet18_Weights, resnet18

from haloae.errors import WeightsError
from haloae.network.trunks import TRUNKS
from haloae.network.weights import load_weights

TRUNK = "resnet18"
Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


@dataclass
class Server:
    """A file server on loopback: what it serves, and how."""

    url: str
    body: bytes
    answer: Answer
    requests: list[str] = field(default_factory=list)


def whole(request: BaseHTTPRequestHandler, body: bytes) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def cut_short(request: BaseHTTPRequestHandler, body: bytes) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body[: len(body) // 2])


def changed(request: BaseHTTPRequestHandler, body: bytes) -> None:
    whole(request, body[:-1] + bytes([body[-1] ^ 1]))


def missing(request: BaseHTTPRequestHandler, body: bytes) -> None:
    request.send_error(404)


def slow(request: BaseHTTPRequestHandler, body: bytes) -> None:
    """Answer in pieces, for long enough that two downloads overlap."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    piece = -(-len(body) // 10)
    for start in range(0, len(body), piece):
        request.wfile.write(body[start : start + piece])
        time.sleep(0.05)


@pytest.fixture(scope="module")
def published() -> bytes:
    """As torchvision publishes it: all of a ResNet-18, batch norm and classifier included."""
    torch.manual_seed(5)
    buffer = io.BytesIO()
    torch.save(resnet18().state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture
def server(published: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append(self.path)
            state.answer(self, state.body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Keep stderr clean."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    name = f"resnet18-{hashlib.sha256(published).hexdigest()[:8]}.pth"
    state = Server(f"http://127.0.0.1:{http.server_port}/{name}", published, whole)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("HALOAE_OFFLINE", raising=False)
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", state.url)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def cached(server: Server, tmp_path: Path) -> Path:
    """Where the file belongs."""
    return tmp_path / "torch" / "hub" / "checkpoints" / server.url.rsplit("/", 1)[1]


def expected() -> dict[str, Tensor]:
    return TRUNKS[TRUNK].build().state_dict()


def refusal() -> str:
    with pytest.raises(WeightsError) as caught:
        load_weights("imagenet", TRUNK, expected())
    message = str(caught.value)
    assert "\n" not in message
    assert "--backbone bundled" in message
    return message


def test_download_then_cache(server: Server, cached: Path, published: bytes) -> None:
    first = load_weights("imagenet", TRUNK, expected())
    assert cached.read_bytes() == published
    server.answer = missing
    again = load_weights("imagenet", TRUNK, expected())
    assert (first.name, first.sha256) == ("imagenet", again.sha256)
    assert load_weights("auto", TRUNK, expected()).sha256 == first.sha256
    assert len(server.requests) == 1


def test_without_a_terminal_nothing_is_printed(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    load_weights("imagenet", TRUNK, expected())
    assert capfd.readouterr() == ("", "")


def test_progress_on_a_terminal(
    server: Server,
    cached: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load_weights("imagenet", TRUNK, expected())
    out, err = capsys.readouterr()
    assert out == ""
    assert "100%" in err


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (cut_short, "cut short or changed"),
        (changed, "cut short or changed"),
        (missing, "404: Not Found"),
    ],
)
def test_what_goes_wrong_leaves_nothing_behind(
    answer: Answer, reason: str, server: Server, cached: Path
) -> None:
    server.answer = answer
    assert reason in refusal()
    assert not list(cached.parent.iterdir())
    server.answer = whole
    assert load_weights("imagenet", TRUNK, expected()).name == "imagenet"


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_silent_server_is_given_up(
    server: Server, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()
    server.answer = lambda request, body: done.wait(20) and None
    monkeypatch.setattr("haloae.network.published.TIMEOUT", 0.3)
    start = time.monotonic()
    message = refusal()
    done.set()
    gc.collect()  # the connection that timed out is closed with its exception
    assert time.monotonic() - start < 10
    assert "timed out" in message
    assert socket.getdefaulttimeout() is None
    assert not list(cached.parent.iterdir())


def test_a_server_that_stops_halfway_is_given_up(
    server: Server, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()

    def stall(request: BaseHTTPRequestHandler, body: bytes) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[:1000])
        done.wait(20)

    server.answer = stall
    monkeypatch.setattr("haloae.network.published.TIMEOUT", 0.3)
    message = refusal()
    done.set()
    assert "timed out" in message
    assert not list(cached.parent.iterdir())


@pytest.mark.parametrize("blocked", ["torch", "torch/hub/checkpoints"])
def test_a_cache_that_cannot_be_written(blocked: str, server: Server, tmp_path: Path) -> None:
    """A file where a folder should be: not even root can write below it."""
    path = tmp_path / blocked
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("not a folder")
    message = refusal()
    assert "could not be downloaded" in message
    assert str(path) in message


def download(url: str, environment: dict[str, str], found: "Queue[str]") -> None:
    """What a child does: as a program that is started there and then."""
    os.environ.clear()
    os.environ.update(environment)
    ResNet18_Weights.IMAGENET1K_V1.value.url = url
    found.put(load_weights("imagenet", TRUNK, expected()).sha256)


def test_two_processes_at_once(
    server: Server, cached: Path, published: bytes, processes: ForkServerContext
) -> None:
    server.answer = slow
    found: Queue[str] = processes.Queue()
    arguments = server.url, dict(os.environ), found
    children = [processes.Process(target=download, args=arguments) for _ in range(2)]
    for child in children:
        child.start()
    digests = {found.get(timeout=60) for _ in children}
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert digests == {load_weights("imagenet", TRUNK, expected()).sha256}
    assert len(server.requests) == 2, "neither found the other's file"
    assert [path.name for path in cached.parent.iterdir()] == [cached.name]
    assert cached.read_bytes() == published


def test_a_process_that_is_killed_leaves_the_cache_usable(
    server: Server, cached: Path, processes: ForkServerContext
) -> None:
    server.answer = slow
    arguments = server.url, dict(os.environ), processes.Queue()
    child = processes.Process(target=download, args=arguments)
    child.start()
    while not server.requests:
        time.sleep(0.05)
    child.kill()
    child.join()
    assert not cached.exists()
    server.answer = whole
    assert load_weights("imagenet", TRUNK, expected()).name == "imagenet"
