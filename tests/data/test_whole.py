"""Files that hold fewer pixels than they promise are refused; what is only odd is not."""

import io
import itertools
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from image_files import refusal, tiff
from PIL import Image as PILImage

from faults.bad_images import (
    SHORT,
    SIDE,
    encoded,
    interlaced_png,
    jpeg_of_scans,
    run_bmp,
    runs_bmp,
    short_png,
    texture,
)
from haloae.data.images import read_image
from haloae.data.whole import check_jpeg


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image.bin"


def as_pillow(data: bytes) -> np.ndarray:
    return np.asarray(PILImage.open(io.BytesIO(data)).convert("RGB"))


def test_files_without_all_their_pixels_are_refused_in_one_sentence(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    accepted = []
    for name, write in SHORT.items():
        for seed in range(2):
            path.write_bytes(write(np.random.default_rng(seed)))
            try:
                assert "truncated or corrupted (" in refusal(path), name
            except pytest.fail.Exception:
                accepted.append(name)
    assert accepted == []
    assert capfd.readouterr().err == ""


def test_a_png_that_holds_all_is_read(path: Path, rng: np.random.Generator) -> None:
    for mode in ("1", "L", "P", "LA", "RGB", "RGBA"):
        for width in (1, 2, SIDE):
            path.write_bytes(short_png(rng, mode, SIDE, width=width))
            assert read_image(path).pixels.shape == (SIDE, width, 3)
    path.write_bytes(interlaced_png(np.random.default_rng(5), 1))
    whole = texture(np.random.default_rng(5), SIDE, SIDE, 3)
    np.testing.assert_array_equal(read_image(path).pixels, whole)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (3, 5), (5, 9)])
def test_a_small_interlaced_png_is_read(path: Path, shape: tuple[int, int]) -> None:
    whole = texture(np.random.default_rng(5), *shape, 3)
    path.write_bytes(interlaced_png(np.random.default_rng(5), 1, shape=shape))
    np.testing.assert_array_equal(read_image(path).pixels, whole)
    path.write_bytes(interlaced_png(np.random.default_rng(5), 0.99, shape=shape))
    refusal(path)


def test_no_colour_of_a_last_row_is_mistaken_for_a_missing_one(path: Path) -> None:
    for left, right in itertools.product((170, 171, 172), (57, 58, 59)):
        values = np.array([[0, 0], [left, right]], np.uint8)
        path.write_bytes(encoded(values, "PNG"))
        np.testing.assert_array_equal(read_image(path).pixels[..., 0], values)


def test_jpeg_is_read_as_pillow_reads_it(path: Path, rng: np.random.Generator) -> None:
    colour, grey = texture(rng, 45, 77, 3), texture(rng, 45, 77)
    inks = PILImage.fromarray(texture(rng, 45, 77, 4), "CMYK")
    files = [
        encoded(grey, "JPEG"),
        encoded(inks, "JPEG"),
        encoded(colour, "JPEG", keep_rgb=True),
        encoded(colour, "JPEG", restart_marker_blocks=3),
        encoded(colour, "MPO", save_all=True, append_images=[PILImage.fromarray(grey)]),
        imagecodecs.jpeg8_encode(texture(rng, 45, 77, 4), colorspace="CMYK", outcolorspace="YCCK"),
    ]
    files += [
        encoded(colour, "JPEG", subsampling=sampling, progressive=progressive)
        for sampling in (0, 1, 2)
        for progressive in (False, True)
    ]
    for data in files:
        path.write_bytes(data)
        np.testing.assert_array_equal(read_image(path).pixels, as_pillow(data))


def test_a_jpeg_that_is_odd_but_whole_is_read(path: Path, rng: np.random.Generator) -> None:
    whole = encoded(texture(rng, SIDE, SIDE, 3), "JPEG")
    start = whole.index(b"\xff\xda")
    odd = {
        "padded before its end": whole[:-2] + bytes(400) + whole[-2:],
        "with fill bytes": whole[:2] + b"\xff" * 9 + whole[2:],
        "with a tail": whole + bytes(100) + b"trailing",
        "without the numbers of its coefficients": whole[: start + 11]
        + bytes(3)
        + whole[start + 14 :],
    }
    for what, data in odd.items():
        path.write_bytes(data)
        np.testing.assert_array_equal(read_image(path).pixels, as_pillow(whole), err_msg=what)


def test_a_progressive_jpeg_without_its_last_scan(path: Path, rng: np.random.Generator) -> None:
    whole = encoded(texture(rng, SIDE, SIDE, 3), "JPEG", progressive=True)
    path.write_bytes(jpeg_of_scans(whole, whole.count(b"\xff\xda") - 1))
    assert "scans that refine the JPEG are missing" in refusal(path)


@pytest.mark.parametrize("frame", [b"\xff\xc2", b"\xff\xca"], ids=["Huffman", "arithmetic"])
def test_scans_are_counted_whatever_they_are_coded_by(
    rng: np.random.Generator, frame: bytes
) -> None:
    whole = encoded(texture(rng, SIDE, SIDE, 3), "JPEG", progressive=True)
    whole = whole.replace(b"\xff\xc2", frame, 1)
    check_jpeg(whole)
    with pytest.raises(ValueError, match="are missing"):
        check_jpeg(jpeg_of_scans(whole, 1))


def test_a_bmp_of_runs_that_holds_all_is_read(path: Path) -> None:
    rows = b"\4\1\0\0" + b"\0\4\1\2\3\4\0\0" + b"\2\1\2\2"
    for end in (b"\0\0\0\1", b"\0\1", b""):
        path.write_bytes(run_bmp(rows + end))
        assert read_image(path).pixels.shape == (3, 4, 3)
    path.write_bytes(runs_bmp(600))
    assert read_image(path).pixels.shape == (600, 600, 3)


def test_a_pnm_of_a_small_maximum_is_read_as_pillow_reads_it(
    path: Path, rng: np.random.Generator
) -> None:
    for magic, channels in ((b"P5", 1), (b"P6", 3)):
        for maximum in (1, 100, 254):
            values = rng.integers(0, maximum + 1, (6, 7, channels)).astype(np.uint8)
            path.write_bytes(magic + b"\n# by hand\n7 6\n%d\n" % maximum + values.tobytes())
            np.testing.assert_array_equal(read_image(path).pixels, as_pillow(path.read_bytes()))


def test_a_deflated_tiff_that_does_not_say_how_high_its_parts_are_has_one(path: Path) -> None:
    packed = zlib.compress(np.arange(6, dtype="<u2").tobytes())
    tags = ((256, 3), (257, 2), (258, 16), (259, 8), (262, 1), (273, 8), (277, 1))
    tags = (*tags, (279, len(packed)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = struct.pack("<I", 8 + len(packed))
    head = b"II*\0" + start + packed + struct.pack("<H", len(tags))
    path.write_bytes(head + entries + bytes(4))
    found = read_image(path).pixels[..., 0] * 65535
    np.testing.assert_allclose(found, [[0, 1, 2], [3, 4, 5]], atol=1e-3)


@pytest.mark.parametrize(
    "layout",
    [{"rowsperstrip": 10}, {"tile": (16, 32)}, {"planarconfig": "separate"}, {"predictor": True}],
)
def test_a_deflated_tiff_of_16_bits_is_whole_or_refused(
    path: Path, rng: np.random.Generator, layout: dict[str, object]
) -> None:
    values = texture(rng, 3, 70, 50).astype(np.uint16) * 250
    stored = values if "planarconfig" in layout else values.transpose(1, 2, 0)
    data = bytearray(tiff(stored, photometric="rgb", compression="deflate", **layout))
    path.write_bytes(data)
    expected = values.transpose(1, 2, 0) / 65535
    np.testing.assert_allclose(read_image(path).pixels, expected, atol=1e-7)
    data[len(data) * 2 // 3] ^= 0x5A
    path.write_bytes(data)
    refusal(path)
