"""Files that cost much are decoded apart: stopped, limited, and nobody else is held up."""

import os
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from image_files import refusal

from faults.bad_images import (
    BOMBS,
    LARGE,
    animated_webp,
    chunk,
    encoded,
    fax,
    scans_jpeg,
    texture,
)
from haloae.data.images import image_from, read_image
from haloae.data.limits import Limits, limit_images
from haloae.data.source import decode_ahead
from haloae.data.views import View
from haloae.errors import ImageError

SMALL = {
    "jpeg of 883 sound scans": 800,
    "jpeg of 2000 empty scans": 800,
    "jpeg of fill bytes": 200_000,
    "jpeg of empty segments": 50_000,
    "png of empty chunks": 50_000,
    "png of one row": 2_000,
    "webp animated": 1_000,
    "gif of comments": 200_000,
    "bmp of runs": 1_000,
    "ppm of comments": 100_000,
    "tiff of large tags": 300,
    "tiff deflated": 1_000,
}


@pytest.fixture
def fine(tmp_path: Path) -> Path:
    """A file that is decoded apart, and that nothing is wrong with."""
    path = tmp_path / "fine.tif"
    path.write_bytes(
        encoded(texture(np.random.default_rng(0), 30, 40, 3), "TIFF", compression="tiff_lzw")
    )
    return path


def children() -> list[int]:
    """Processes that this one has started to decode for it; others that it needs are let alone."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has just ended, or a process
            for child in (task / "children").read_text().split():
                if b"haloae.data.serve" in Path("/proc", child, "cmdline").read_bytes():
                    found.append(int(child))
    return found


def is_running(state: Path) -> bool:
    """Whether a process is there, and not only its exit code."""
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def decodes(program: str, *arguments: Path, cwd: Path | None = None) -> str:
    """What a program prints that stands in no file and guards no main."""
    found = subprocess.run(
        [sys.executable, "-", *map(str, arguments)],
        input=program,
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    return found.stdout.strip()


@pytest.mark.parametrize("name", SMALL)
def test_what_costs_more_than_its_bytes_is_read_or_refused_in_time(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "bomb.bin"
    path.write_bytes(BOMBS[name](SMALL[name]))
    start = time.monotonic()
    with suppress(ImageError):
        read_image(path, limits=Limits(seconds=0.2))
    assert time.monotonic() - start < 30


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_bombs_as_large_as_they_are_sent(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb.bin"
    path.write_bytes(BOMBS[name](LARGE[name]))
    start = time.monotonic()
    with suppress(ImageError):
        read_image(path, limits=Limits(seconds=3))
    assert time.monotonic() - start < 60


def test_one_slow_file_leaves_the_others_their_places(tmp_path: Path, fine: Path) -> None:
    slow = tmp_path / "slow.jpg"
    slow.write_bytes(scans_jpeg(14, side=3_000))
    limit_images(seconds=0.5)
    found = list(decode_ahead([fine, slow, fine, fine], View("squash", (16, 16))))
    said = [str(each) if isinstance(each, ImageError) else "" for each in found]
    assert [bool(text) for text in said] == [False, True, False, False]
    assert said[1].startswith(f"{slow}: decoding it takes more than the limit of 0.5 seconds:")
    assert "--limit seconds=1" in said[1]


def test_bytes_are_decoded_as_their_file_is_and_never_become_one(tmp_path: Path) -> None:
    path = tmp_path / "part.webp"
    path.write_bytes(encoded(texture(np.random.default_rng(0), 300, 400, 3), "WEBP"))
    data, wanted = path.read_bytes(), read_image(path)
    np.testing.assert_array_equal(image_from(data).pixels, wanted.pixels)
    with pytest.raises(ImageError, match="the image: truncated or corrupted"):
        image_from(data[:-100])
    np.testing.assert_array_equal(image_from(data).pixels, wanted.pixels)


def test_memory_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "large.webp"
    path.write_bytes(animated_webp(7_000))
    assert "not enough memory" in refusal(path, memory=500_000_000)


def test_bytes_are_limited_before_any_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.jpg"
    path.write_bytes(encoded(texture(np.random.default_rng(0), 8, 8, 3), "JPEG"))
    os.truncate(path, 2**31)
    assert "2,147,483,648 bytes are over the limit of 1,073,741,824:" in refusal(path)


def test_what_the_libraries_say_is_heard_and_not_printed(
    tmp_path: Path, fine: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fax.tif"
    path.write_bytes(fax(np.random.default_rng(0), "group4", zeros=False))
    assert "Fax4Decode: Bad code word" in refusal(path)
    data = fine.read_bytes()
    path.write_bytes(data[:60] + bytes(40) + data[100:])
    refusal(path)
    assert capfd.readouterr() == ("", "")


def test_what_pillow_logs_is_not_printed(tmp_path: Path) -> None:
    tiff = bytearray(encoded(texture(np.random.default_rng(0), 30, 40, 3), "TIFF"))
    entry = tiff.index(struct.pack("<HH", 277, 3))  # samples a pixel
    tiff[entry + 8 : entry + 10] = struct.pack("<H", 200)
    (tmp_path / "samples.tif").write_bytes(tiff)
    program = (
        "import sys; from haloae import ImageError; from haloae.data.images import read_image\n"
        "try: read_image(sys.argv[1])\n"
        "except ImageError as error: print(error)"
    )
    assert "truncated or corrupted" in decodes(program, tmp_path / "samples.tif")


def test_a_warning_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "exif.png"
    png = encoded(np.zeros((4, 5, 3), np.uint8), "PNG", exif=b"garbage")
    path.write_bytes(png[:33] + chunk(b"teSt", b"") * 20_000 + png[33:])
    read_image(path)
    assert children()
    assert f"{path}: its EXIF block cannot be read" in caplog.text


def test_ordinary_files_start_no_process(tmp_path: Path, fine: Path) -> None:
    for suffix in ("png", "jpg", "tif", "bmp", "ppm"):
        pixels = texture(np.random.default_rng(0), 30, 40, 3)
        kind = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
        (tmp_path / f"plain.{suffix}").write_bytes(encoded(pixels, kind))
    program = (
        "import sys; from pathlib import Path; from haloae.data.images import read_image\n"
        "def count(): return len(Path('/proc/self/task/%d/children' % __import__('os').getpid())"
        ".read_text().split())\n"
        "[read_image(path) for path in sys.argv[1:-1]]; before = count()\n"
        "read_image(sys.argv[-1]); print(before, count())"
    )
    plain = sorted(tmp_path.glob("plain.*"))
    assert len(plain) == 5
    assert decodes(program, *plain, fine) == "0 1"


def test_any_program_can_read_from_threads_and_forks(
    tmp_path: Path, fine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it stands, and whatever its interpreter says when it starts."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("print('welcome', flush=True)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    (tmp_path / "numpy.py").write_text("raise RuntimeError('of the folder it stands in')")
    program = (
        "import os, sys; sys.path[:] = [part for part in sys.path if part]\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from haloae.data.images import read_image\n"
        "def read(_): return read_image(sys.argv[1]).pixels.tobytes()\n"
        "with ThreadPoolExecutor(8) as pool: seen = set(pool.map(read, range(40)))\n"
        "child = os.fork()\n"
        "same = all(read(0) in seen for _ in range(20))\n"
        "if child == 0: os._exit(0 if same else 1)\n"
        "print(len(seen), same, os.waitpid(child, 0)[1])"
    )
    assert decodes(program, fine, cwd=tmp_path) == "welcome\n1 True 0"


def test_a_process_that_was_ended_is_replaced(fine: Path) -> None:
    whole = read_image(fine).pixels
    assert children()
    for child in children():
        os.kill(child, signal.SIGKILL)
    np.testing.assert_array_equal(read_image(fine).pixels, whole)


def test_a_path_is_the_callers_own(
    tmp_path: Path, fine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_image(fine)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/f\xff\n.tif"))
    fine.rename(odd)
    monkeypatch.chdir(tmp_path)
    assert read_image(odd.name).pixels.shape == (30, 40, 3)


@pytest.mark.slow  # it waits, and computes nothing
def test_a_worker_waits_longer_than_it_may_decode(fine: Path) -> None:
    limit_images(seconds=1)
    read_image(fine)
    before = children()
    time.sleep(8)
    read_image(fine)
    assert children() == before


def test_threads_read_what_one_reads(fine: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len({each.pixels.tobytes() for each in pool.map(read_image, [fine] * 40)}) == 1


def test_it_ends_with_its_caller(fine: Path) -> None:
    program = (
        "import os, sys; from haloae.data.images import read_image; from pathlib import Path\n"
        "read_image(sys.argv[1])\n"
        "print(Path('/proc/self/task/%d/children' % os.getpid()).read_text(), flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, fine], capture_output=True, text=True, timeout=60
    )
    state = Path("/proc") / found.stdout.strip() / "stat"
    end = time.monotonic() + 20
    while is_running(state) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(state)
