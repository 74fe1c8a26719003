"""A camera in the network: the newest frame, and back after it was away."""

import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from haloae.server.sources import Sources
from haloae.server.sources.camera import Camera
from server.plant import QUICK, free_port, until

pytest.importorskip("cv2", reason="opencv-python-headless is not installed")


class MotionJpeg(BaseHTTPRequestHandler):
    """Sends frames without end, 50 a second, each of the grey that `shade` has then."""

    shade = 0
    secret: str | None = None

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        if self.secret is not None and given != f"Basic {self.secret}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            while not self.server.is_stopped:  # type: ignore[attr-defined]
                data = jpeg(type(self).shade)
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
                time.sleep(0.02)
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        pass


def jpeg(shade: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.full((48, 64, 3), shade, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def shade_of(image: bytes) -> int:
    with Image.open(BytesIO(image)) as picture:
        assert picture.format == "PNG"
        return int(np.asarray(picture).mean())


@contextmanager
def streaming(port: int, secret: str | None = None) -> Iterator[type[MotionJpeg]]:
    handler = type("Handler", (MotionJpeg,), {"secret": secret})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.is_stopped = False  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield handler
    finally:
        server.is_stopped = True  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def inspecting(tmp_path: Path, **settings: object) -> Iterator[tuple[list[bytes], Sources]]:
    seen: list[bytes] = []
    camera = Camera.model_validate({"name": "top", "recipe": "bottle", "every": 0.0} | settings)
    sources = Sources([camera], lambda _r, image, _s: seen.append(image), tmp_path, back_off=QUICK)
    sources.start()
    try:
        yield seen, sources
    finally:
        sources.stop()


def test_the_newest_frame_is_inspected_and_a_camera_that_was_away_comes_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "password").write_text("hunter2/@\n")
    port, secret = free_port(), b64encode(b"me:hunter2/@").decode()
    settings = {
        "url": f"http://127.0.0.1:{port}/live.mjpg",
        "user": "me",
        "password_file": tmp_path / "password",
    }
    with inspecting(tmp_path, **settings) as (seen, sources):
        until(lambda: sources.states()[0].status == "retrying")
        assert "cannot be opened" in str(sources.states()[0].reason)
        with streaming(port, secret) as handler:
            until(lambda: len(seen) > 1)
            assert sources.states()[0].status == "running"
            handler.shade = 200
            until(lambda: shade_of(seen[-1]) == 200)
        until(lambda: sources.states()[0].status == "retrying")
        count = len(seen)
        with streaming(port, secret):
            until(lambda: len(seen) > count)
    assert "hunter2" not in "".join((*capfd.readouterr(), caplog.text))


def test_a_camera_that_gives_another_size_is_reported(tmp_path: Path) -> None:
    port = free_port()
    settings = {"url": f"http://127.0.0.1:{port}/", "width": 640, "height": 480}
    with streaming(port), inspecting(tmp_path, **settings) as (seen, sources):
        until(lambda: sources.states()[0].status == "retrying")
        assert "gives 64×48 pixels, not 640×480" in str(sources.states()[0].reason)
    assert seen == []


def test_a_camera_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with inspecting(tmp_path, device=tmp_path / "video9") as (_, sources):
        until(lambda: sources.states()[0].status == "retrying")
        assert "video9: cannot be opened" in str(sources.states()[0].reason)
