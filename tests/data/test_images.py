"""What may be given as an image, what is refused by name, resizing and masks."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from image_files import noise, refusal
from PIL import Image as PILImage

from haloae.data.images import Image, image_from, read_image, read_mask
from haloae.data.limits import Limits
from haloae.data.views import resize
from haloae.errors import ConfigError, DataError, ImageError

GENERATOR_SEED = 7


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(GENERATOR_SEED)


def test_what_is_no_image(tmp_path: Path) -> None:
    contents = {
        "text": b"hello, this is a note\n",
        "zeros": bytes(500),
        "a PDF document": b"%PDF-1.7 ...",
        "a ZIP archive": b"PK\x03\x04....",
        "unknown data": bytes(range(200, 256)),
        "HEIF": b"\0\0\0\x18ftypheic",
    }
    for kind, data in contents.items():
        path = tmp_path / "note.png"
        path.write_bytes(data)
        message = refusal(path)
        assert kind in message
        assert f"{len(data)} bytes" in message


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "0 bytes" in refusal(tmp_path / "empty.png")
    assert "no such file" in refusal(tmp_path / "missing.png")
    assert "no such file" in refusal(tmp_path / "dangling.png")
    assert "this is a folder" in refusal(tmp_path)
    assert "leads back to itself" in refusal(tmp_path / "loop.png")
    assert "pipe" in refusal(tmp_path / "pipe.png")
    assert "device" in refusal(Path("/dev/zero"))
    assert "cannot be opened" in refusal(tmp_path / ("long" * 100))
    assert "cannot be opened" in refusal(tmp_path / "empty.png" / "inside.png")
    with pytest.raises(ImageError, match=r"nul\\x00\.png: cannot be opened"):
        read_image("nul\0.png")


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder anyone can enter, and for root no rights of root: they would open everything."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if is_root:
                os.seteuid(0)


def test_unreadable_file(as_nobody: Path) -> None:
    path = as_nobody / "secret.png"
    path.write_bytes(b"secret")
    path.chmod(0)
    assert "permission denied" in refusal(path)


def test_names_are_shown_on_one_line(tmp_path: Path) -> None:
    for name, shown in {"a\nb\t.png": r"a\nb\t.png", "тест é.png": "тест é.png"}.items():
        (tmp_path / name).write_bytes(b"text")
        with pytest.raises(ImageError) as caught:
            read_image(tmp_path / name)
        assert shown in str(caught.value)
    with pytest.raises(ImageError) as caught:
        read_image(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    assert r"\udcff.png: no such file" in str(caught.value)
    str(caught.value).encode()


def test_image_from_arrays(rng: np.random.Generator) -> None:
    colour = noise(rng, 5, 6, 3)
    image = image_from(colour)
    np.testing.assert_array_equal(image.pixels, colour)
    assert not np.shares_memory(image.pixels, colour)
    assert image_from(image) is image
    for shape in ((5, 6), (5, 6, 1)):
        grey = image_from(np.full(shape, 7, np.uint8))
        assert grey.grey
        assert (grey.pixels == 7).all()
    assert (image_from(np.ones((5, 6), bool)).pixels == 255).all()
    assert image_from(np.ones((5, 6), bool)).depth == 8
    deep = image_from(np.full((5, 6, 3), 65535, ">u2"))
    assert (deep.depth, deep.pixels.dtype, deep.pixels.max()) == (16, np.float32, 1)
    floating = image_from(np.full((5, 6, 4), 0.5))
    assert (floating.depth, floating.pixels.dtype) == (32, np.float32)
    assert (floating.pixels == 0.25).all()
    assert not floating.grey


def test_image_from_paths_and_pictures(tmp_path: Path, rng: np.random.Generator) -> None:
    colour = noise(rng, 5, 6, 3)
    picture = PILImage.fromarray(colour)
    picture.save(tmp_path / "colour.png")
    path = tmp_path / "colour.png"
    for value in (path, str(path), path.read_bytes(), picture):
        np.testing.assert_array_equal(image_from(value).pixels, colour)
    assert image_from(PILImage.fromarray(np.array([[65535]], np.uint16))).depth == 16
    assert image_from(PILImage.new("F", (2, 2), 0.5)).depth == 32


@pytest.mark.parametrize(
    "value",
    [
        None,
        [[1, 2], [3, 4]],
        b"bytes",
        np.zeros((4, 5, 2), np.uint8),
        np.zeros((2, 3, 4, 5), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((0, 5), np.uint8),
        np.zeros((4, 5), np.int64),
        np.zeros((4, 5), object),
        np.full((4, 5), 255.0),
        np.full((4, 5), np.nan),
        PILImage.new("I", (2, 2)),
        PILImage.new("LAB", (2, 2)),
        PILImage.new("RGB", (0, 2)),
    ],
)
def test_image_from_nonsense(value: object) -> None:
    with pytest.raises(ImageError):
        image_from(value)


def test_image_from_what_hides_pixels_or_names_nothing() -> None:
    hidden = np.ma.masked_array(np.zeros((4, 5), np.uint8), np.eye(4, 5, dtype=bool))
    with pytest.raises(ImageError, match=r"a masked array .* give array\.filled\(value\)\."):
        image_from(hidden)
    with pytest.raises(ImageError, match="the path is empty: give the path of one image file"):
        image_from("")
    with pytest.raises(ImageError, match=r"the image: it is empty \(0 bytes\): send it"):
        image_from(b"")


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")


@pytest.mark.parametrize("mode", MODES)
def test_a_pillow_image_of_any_mode_of_8_bits_is_read(mode: str) -> None:
    found = image_from(PILImage.new(mode, (4, 3)))
    assert (found.pixels.shape, found.depth) == ((3, 4, 3), 8)
    assert found.grey == (mode in ("1", "L", "LA"))
    with pytest.raises(ImageError, match="colour mode LAB is not read"):
        image_from(PILImage.new("LAB", (4, 3)))


def test_image_from_keeps_the_limit() -> None:
    with pytest.raises(ImageError, match="9 bytes are over the limit of 8"):
        image_from(bytes(9), limits=Limits(bytes=8))
    for value in (np.zeros((10, 10), np.uint8), PILImage.new("L", (10, 10))):
        with pytest.raises(ImageError, match="over the limit of 99"):
            image_from(value, limits=Limits(pixels=99))


@pytest.mark.parametrize("shape", [(300, 200), (31, 47), (64, 64), (1, 1), (500, 3)])
def test_resize_of_bytes_agrees_with_floats(
    rng: np.random.Generator, shape: tuple[int, int]
) -> None:
    colour = noise(rng, *shape, 3)
    small = resize(image_from(colour), 64)
    assert (small.shape, small.dtype) == ((3, 64, 64), np.float32)
    assert small.flags.c_contiguous
    exact = resize(image_from(colour / 255), 64)
    assert 0 <= exact.min() <= exact.max() <= 1
    np.testing.assert_allclose(small, exact, atol=1.01 / 255)
    np.testing.assert_array_equal(small, resize(image_from(colour), 64))


def test_resize_antialiases_and_keeps_grey() -> None:
    stripes = np.tile(np.array([0, 1], np.float32), (256, 128))
    for values in (stripes, (stripes * 255).astype(np.uint8)):
        small = resize(image_from(values), 32)
        np.testing.assert_allclose(small, 0.5, atol=0.02)
        np.testing.assert_array_equal(small[0], small[2])


def test_resize_to_nothing() -> None:
    with pytest.raises(ConfigError, match="at least 1 pixel, got 0"):
        resize(Image(np.zeros((2, 2, 3), np.uint8), 8, True), 0)


def test_mask(tmp_path: Path) -> None:
    values = np.array([[0, 1, 255], [0, 0, 7]], np.uint8)
    PILImage.fromarray(values).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", shape=(2, 3))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, values > 0)
    with pytest.raises(DataError, match="the mask is 3×2 pixels and its image 2×3"):
        read_mask(tmp_path / "mask.png", shape=(3, 2))
    with pytest.raises(ImageError, match="no such file"):
        read_mask(tmp_path / "none.png", shape=(3, 2))


def test_threads_leave_the_warning_filters_as_they_were(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = tmp_path / "colour.png"
    PILImage.fromarray(noise(rng, 40, 40, 3)).save(path)
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        assert len({image.pixels.tobytes() for image in pool.map(read_image, [path] * 200)}) == 1
    assert list(warnings.filters) == before


def test_import_is_light() -> None:
    code = (
        "import sys, haloae.data.images, haloae.data.folders;"
        "print({'torch', 'tifffile', 'imagecodecs'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
