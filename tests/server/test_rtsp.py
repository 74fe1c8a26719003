"""A network camera by RTSP, of GStreamer's server: frames, and back after it was away or hung."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from haloae.server.sources import Sources
from haloae.server.sources.camera import Camera
from server.plant import QUICK, free_port, until
from server.test_camera import shade_of, streaming

pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
PYTHON = "/usr/bin/python3"  # the system's, which alone knows its GStreamer
SERVER = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer

if sys.argv[1:]:
    Gst.init(None)
    server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
    server.set_address("127.0.0.1")
    server.set_service(sys.argv[1])
    factory.set_launch(
        "( videotestsrc is-live=true pattern=" + sys.argv[2] + " ! "
        "video/x-raw,format=I420,width=64,height=48,framerate=25/1 ! jpegenc ! "
        "rtpjpegpay name=pay0 )"
    )
    server.get_mount_points().add_factory("/line", factory)
    server.attach(None)
    print("listens", flush=True)
    GLib.MainLoop().run()
"""


@pytest.fixture(scope="module", autouse=True)
def _is_there() -> None:
    try:
        subprocess.run([PYTHON, "-c", SERVER], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("GStreamer's RTSP server is not installed (gir1.2-gst-rtsp-server-1.0)")


@contextmanager
def serving(port: int, pattern: str) -> Iterator[subprocess.Popen[str]]:
    """A camera whose pictures are all white or all black, until it is killed."""
    command = [PYTHON, "-c", SERVER, str(port), pattern]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listens\n"
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def inspecting(tmp_path: Path, ports: dict[str, str]) -> Iterator[tuple[dict, Sources]]:
    """Cameras by their names and addresses, and the images of each."""
    seen: dict[str, list[bytes]] = {name: [] for name in ports}
    cameras = [
        Camera.model_validate({"name": name, "recipe": "bottle", "every": 0.05, "url": url})
        for name, url in ports.items()
    ]
    sources = Sources(
        cameras, lambda _r, image, name: seen[name].append(image), tmp_path, back_off=QUICK
    )
    sources.start()
    try:
        yield seen, sources
    finally:
        sources.stop()


def test_a_camera_that_is_killed_is_reported_and_comes_back_while_another_goes_on(
    tmp_path: Path,
) -> None:
    ports = free_port(), free_port()
    urls = {"top": f"rtsp://127.0.0.1:{ports[0]}/line", "side": f"http://127.0.0.1:{ports[1]}/"}
    with streaming(ports[1]), inspecting(tmp_path, urls) as (seen, sources):
        with serving(ports[0], "white"):
            until(lambda: len(seen["top"]) > 2)
            assert shade_of(seen["top"][-1]) > 200
            assert [each.status for each in sources.states()] == ["running", "running"]
        until(lambda: sources.states()[0].status == "retrying")
        assert f"rtsp://127.0.0.1:{ports[0]}" in str(sources.states()[0].reason)
        until(lambda: "cannot be opened" in str(sources.states()[0].reason))
        count = len(seen["side"])
        until(lambda: len(seen["side"]) > count + 5)
        assert sources.states()[1].status == "running"
        with serving(ports[0], "black"):
            until(lambda: shade_of(seen["top"][-1]) < 50)
            until(lambda: sources.states()[0].status == "running")
    assert sources.states()[1].refused == sources.states()[1].dropped == 0


@pytest.mark.slow
def test_a_camera_that_hangs_is_reported_and_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("camera", "capture"):
        monkeypatch.setattr(f"haloae.server.sources.{module}.WAIT", 2.0)
    port = free_port()
    with (
        serving(port, "white") as process,
        inspecting(tmp_path, {"top": f"rtsp://127.0.0.1:{port}/line"}) as (seen, sources),
    ):
        until(lambda: len(seen["top"]) > 2)
        process.send_signal(signal.SIGSTOP)
        until(lambda: sources.states()[0].status == "retrying")
        count = len(seen["top"])
        process.send_signal(signal.SIGCONT)
        until(lambda: len(seen["top"]) > count + 2)
        assert sources.states()[0].status == "running"
