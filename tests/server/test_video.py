"""A video file: every frame once, to its end, over restarts, and what breaks off is said."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from haloae.server.sources import Sources
from haloae.server.sources.video import Video
from server.plant import QUICK, until

cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
FRAMES = 12


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve grey frames, each 20 steps lighter than the one before."""
    path = tmp_path_factory.mktemp("films") / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for number in range(FRAMES):
        writer.write(np.full((48, 64, 3), 20 * number, np.uint8))
    writer.release()
    return path


def frame_number(image: bytes, folder: Path) -> int:
    (folder / "frame.png").write_bytes(image)
    with Image.open(folder / "frame.png") as picture:
        assert picture.size == (64, 48)
        return round(float(np.asarray(picture).mean()) / 20)


def video(path: Path, **changes: object) -> Video:
    return Video.model_validate({"name": "film", "recipe": "bottle", "path": path} | changes)


def run(settings: Video, memory: Path, status: str, inspect: Callable[[bytes], object]) -> Sources:
    sources = Sources([settings], lambda _r, image, _s: inspect(image), memory, back_off=QUICK)
    sources.start()
    until(lambda: sources.states()[0].status == status)
    return sources


def test_every_frame_comes_once_in_order_and_the_end_is_the_end(film: Path, tmp_path: Path) -> None:
    seen: list[bytes] = []
    run(video(film, every=5), tmp_path, "ended", seen.append)
    assert [frame_number(image, tmp_path) for image in seen] == [0, 5, 10]
    run(video(film, every=5), tmp_path, "ended", seen.append).stop()
    assert len(seen) == 3


def test_it_goes_on_where_it_was_stopped(film: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    is_broken = True

    def inspect(image: bytes) -> None:
        if is_broken and len(seen) == 4:
            raise RuntimeError("the model is gone")
        seen.append(frame_number(image, tmp_path))

    run(video(film), tmp_path, "retrying", inspect).stop()
    is_broken = False
    run(video(film), tmp_path, "ended", inspect).stop()
    assert seen == [*range(FRAMES)]


def test_one_that_breaks_off_is_reported_and_gone_on_with_when_it_is_whole(
    film: Path, tmp_path: Path
) -> None:
    data, path = film.read_bytes(), tmp_path / "film.avi"
    path.write_bytes(data[: len(data) * 8 // 10])
    seen: list[int] = []
    sources = run(
        video(path), tmp_path, "retrying", lambda image: seen.append(frame_number(image, tmp_path))
    )
    until(lambda: "breaks off at frame" in str(sources.states()[0].reason))
    half = len(seen)
    assert 0 < half < FRAMES
    until(lambda: sources.states()[0].status == "retrying")
    assert len(seen) == half
    path.write_bytes(data)
    until(lambda: sources.states()[0].status == "ended")
    assert seen[half:] == [*range(FRAMES)]


@pytest.mark.parametrize(
    ("data", "reason"), [(None, "no such file"), (b"none", "cannot be opened")]
)
def test_what_is_no_video_is_reported(data: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "film.avi"
    if data is not None:
        path.write_bytes(data)
    sources = run(video(path), tmp_path, "retrying", lambda image: None)
    assert reason in str(sources.states()[0].reason)
    sources.stop()
