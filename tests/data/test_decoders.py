"""Every odd and hostile sort of file, written on the fly."""

import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from image_files import Array, chunk, encoded, noise, png16, refusal, tiff
from PIL import Image as PILImage
from PIL import ImageOps

from haloae.data.images import image_from, read_image
from haloae.data.limits import Limits
from haloae.data.views import resize
from haloae.errors import ImageError

GENERATOR_SEED = 7


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(GENERATOR_SEED)


@pytest.mark.parametrize("shape", [(13, 17), (13, 17, 3)])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_kept(
    tmp_path: Path, rng: np.random.Generator, shape: tuple[int, ...], suffix: str
) -> None:
    values = noise(rng, *shape, dtype=np.uint16)
    path = tmp_path / f"deep{suffix}"
    path.write_bytes(imagecodecs.png_encode(values) if suffix == ".png" else tiff(values))
    image = read_image(path)
    assert (image.depth, image.grey) == (16, len(shape) == 2)
    assert image.pixels.dtype == np.float32
    expected = values.reshape(13, 17, -1) / 65535
    np.testing.assert_allclose(image.pixels, np.broadcast_to(expected, (13, 17, 3)), atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "lzw"},
        {"compression": "deflate", "predictor": True},
        {"tile": (16, 16)},
        {"rowsperstrip": 4},
        {"planarconfig": "separate"},
        {"byteorder": ">"},
        {"bigtiff": True},
    ],
)
def test_sixteen_bit_tiff_in_every_layout(
    tmp_path: Path, rng: np.random.Generator, options: dict[str, object]
) -> None:
    values = noise(rng, 21, 19, 3, dtype=np.uint16)
    path = tmp_path / "deep.tiff"
    stored = values.transpose(2, 0, 1) if "planarconfig" in options else values
    path.write_bytes(tiff(stored, photometric="rgb", **options))
    np.testing.assert_allclose(read_image(path).pixels, values / 65535, atol=1e-7)


@pytest.mark.parametrize(
    ("suffix", "dtype", "kind"),
    [
        (".png", np.uint16, "16-bit PNG"),
        (".tif", np.uint16, "16-bit TIFF"),
        (".tif", np.float32, "32-bit TIFF"),
    ],
)
def test_the_extra_that_deep_images_need_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, dtype: type, kind: str
) -> None:
    values = np.ones((4, 5), dtype)
    path = tmp_path / f"deep{suffix}"
    path.write_bytes(png16(values) if suffix == ".png" else tiff(values))
    PILImage.new("L", (3, 2), 100).save(tmp_path / f"plain{suffix}")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    said = refusal(path)
    assert f"{path.name}: {kind} needs imagecodecs" in said
    assert "pip install 'haloae[deep]'" in said
    assert read_image(tmp_path / f"plain{suffix}").depth == 8


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(9, 11), (9, 11, 3)])
def test_float_tiff(
    tmp_path: Path, rng: np.random.Generator, shape: tuple[int, ...], dtype: type
) -> None:
    values = rng.random(shape).astype(dtype)
    path = tmp_path / "float.tif"
    path.write_bytes(tiff(values))
    image = read_image(path)
    assert (image.depth, image.grey) == (32, len(shape) == 2)
    expected = np.broadcast_to(values.reshape(9, 11, -1), (9, 11, 3))
    np.testing.assert_allclose(image.pixels, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("value", "reason"), [(1.5, "0 to 1.5"), (-0.5, "-0.5 to 0"), (np.nan, "NaN"), (np.inf, "NaN")]
)
def test_float_tiff_out_of_range(tmp_path: Path, value: float, reason: str) -> None:
    values = np.zeros((4, 5), np.float32)
    values[2, 3] = value
    (tmp_path / "float.tif").write_bytes(tiff(values))
    assert reason in refusal(tmp_path / "float.tif")


def test_float_overshoot_of_rounding_is_clipped(tmp_path: Path) -> None:
    (tmp_path / "float.tif").write_bytes(tiff(np.array([[1 + 5e-7, -5e-7]], np.float32)))
    assert read_image(tmp_path / "float.tif").pixels[0, :, 0].tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint32, np.int32])
def test_other_sample_types_are_refused(tmp_path: Path, dtype: type) -> None:
    (tmp_path / "odd.tif").write_bytes(tiff(np.ones((4, 5), dtype)))
    assert "integer samples are not read" in refusal(tmp_path / "odd.tif")


def test_sixteen_bit_tiff_of_other_colours_is_refused(tmp_path: Path) -> None:
    values = np.ones((4, 5, 4), np.uint16)
    (tmp_path / "cmyk.tif").write_bytes(tiff(values, photometric="separated"))
    assert "save it as grey or RGB" in refusal(tmp_path / "cmyk.tif")


def test_sixteen_bit_white_is_zero(tmp_path: Path) -> None:
    (tmp_path / "inverted.tif").write_bytes(
        tiff(np.array([[0, 65535]], np.uint16), photometric="miniswhite")
    )
    assert read_image(tmp_path / "inverted.tif").pixels[0, :, 0].tolist() == [1, 0]


@pytest.mark.parametrize("maximum", [1023, 65535])
@pytest.mark.parametrize("magic", [b"P5", b"P6"])
def test_sixteen_bit_pnm(
    tmp_path: Path, rng: np.random.Generator, magic: bytes, maximum: int
) -> None:
    shape = (6, 7, 1 if magic == b"P5" else 3)
    values = rng.integers(0, maximum + 1, shape).astype(">u2")
    (tmp_path / "deep.pgm").write_bytes(magic + b"\n7 6\n%d\n" % maximum + values.tobytes())
    image = read_image(tmp_path / "deep.pgm")
    assert image.depth == 16
    np.testing.assert_allclose(
        image.pixels, np.broadcast_to(values / maximum, (6, 7, 3)), atol=1e-7
    )


def test_lossless_formats_agree(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = noise(rng, 12, 15, 3)
    for suffix, options in {
        "png": {},
        "bmp": {},
        "tif": {},
        "webp": {"lossless": True},
        "ppm": {},
    }.items():
        path = tmp_path / f"colour.{suffix}"
        PILImage.fromarray(pixels).save(path, **options)
        image = read_image(path)
        assert (image.depth, image.grey, image.pixels.dtype) == (8, False, np.uint8), suffix
        np.testing.assert_array_equal(image.pixels, pixels)
        assert (image.height, image.width) == (12, 15)


def test_a_tiff_that_does_not_say_how_many_bits_it_has_has_one(tmp_path: Path) -> None:
    tags = ((256, 16), (257, 2), (259, 1), (262, 1), (273, 8), (278, 2), (279, 4))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<I", 12) + b"\xff\0\x0f\xf0"
    path = tmp_path / "bilevel.tif"
    path.write_bytes(data + struct.pack("<H", len(tags)) + entries + bytes(4))
    found = read_image(path)
    assert (found.depth, found.grey) == (8, True)
    black, white = [0] * 8, [255] * 8
    assert found.pixels[..., 0].tolist() == [white + black, black[:4] + white + black[:4]]


def test_grey_and_bilevel(tmp_path: Path) -> None:
    picture = PILImage.new("L", (3, 2), 100)
    picture.save(tmp_path / "grey.png")
    PILImage.new("1", (3, 2), 1).save(tmp_path / "bilevel.png")
    PILImage.new("1", (3, 2), 1).save(tmp_path / "fax.tif", compression="group4")
    assert read_image(tmp_path / "grey.png").pixels.tolist() == [[[100] * 3] * 3] * 2
    for name in ("bilevel.png", "fax.tif"):
        image = read_image(tmp_path / name)
        assert image.grey
        assert (image.pixels == 255).all()


def test_cmyk_jpeg(tmp_path: Path) -> None:
    PILImage.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    pixels = read_image(tmp_path / "red.jpg").pixels
    np.testing.assert_allclose(pixels, np.broadcast_to([255, 0, 0], pixels.shape), atol=3)


def test_palette_with_transparency_goes_on_black(tmp_path: Path) -> None:
    picture = PILImage.new("P", (2, 1))
    picture.putpalette([200, 10, 20, 30, 220, 40])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "opaque.png")
    picture.save(tmp_path / "index.png", transparency=1)
    picture.save(tmp_path / "bytes.png", transparency=bytes([255, 51]))
    assert read_image(tmp_path / "opaque.png").pixels.tolist() == [[[200, 10, 20], [30, 220, 40]]]
    assert read_image(tmp_path / "index.png").pixels.tolist() == [[[200, 10, 20], [0, 0, 0]]]
    assert read_image(tmp_path / "bytes.png").pixels.tolist() == [[[200, 10, 20], [6, 44, 8]]]


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_alpha_goes_on_black(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"alpha.{suffix}"
    PILImage.new("RGBA", (2, 2), (200, 100, 50, 51)).save(path, lossless=True)
    np.testing.assert_allclose(read_image(path).pixels[0, 0], [40, 20, 10], atol=1)


def test_grey_with_alpha(tmp_path: Path) -> None:
    PILImage.new("LA", (2, 2), (200, 51)).save(tmp_path / "la.png")
    image = read_image(tmp_path / "la.png")
    assert image.grey
    assert (image.pixels == 40).all()


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_alpha_goes_on_black(
    tmp_path: Path, rng: np.random.Generator, channels: int, suffix: str
) -> None:
    values = noise(rng, 5, 6, channels, dtype=np.uint16)
    colours = {"photometric": "rgb" if channels == 4 else "minisblack", "planarconfig": "contig"}
    path = tmp_path / f"alpha{suffix}"
    path.write_bytes(
        png16(values) if suffix == ".png" else tiff(values, extrasamples=["unassalpha"], **colours)
    )
    image = read_image(path)
    assert image.grey == (channels == 2)
    expected = values[..., :-1] / 65535 * (values[..., -1:] / 65535)
    np.testing.assert_allclose(image.pixels, np.broadcast_to(expected, (5, 6, 3)), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_transparent_colour(
    tmp_path: Path, rng: np.random.Generator, channels: int
) -> None:
    values = noise(rng, 5, 6, channels, dtype=np.uint16)
    key = chunk(b"tRNS", values[2, 3].astype(">u2").tobytes())
    (tmp_path / "key.png").write_bytes(png16(values, key))
    expected = values / 65535
    expected[2, 3] = 0
    pixels = read_image(tmp_path / "key.png").pixels
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, (5, 6, 3)), atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, rng: np.random.Generator, orientation: int) -> None:
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    for suffix in ("jpg", "png", "tif", "webp"):
        path = tmp_path / f"turned.{suffix}"
        PILImage.fromarray(noise(rng, 8, 24, 3)).save(path, exif=exif)
        with PILImage.open(path) as picture:
            expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
            np.testing.assert_array_equal(read_image(path).pixels, expected, err_msg=suffix)
            np.testing.assert_array_equal(image_from(picture).pixels, expected, err_msg=suffix)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_sixteen_bits(
    tmp_path: Path, rng: np.random.Generator, orientation: int
) -> None:
    values = noise(rng, 4, 7, 3, dtype=np.uint16)
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    shallow = PILImage.fromarray((values >> 8).astype(np.uint8))
    shallow.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(shallow)) / 255
    (tmp_path / "turned.png").write_bytes(
        png16(values, chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    )
    (tmp_path / "turned.tif").write_bytes(tiff(values, extratags=[(274, 3, 1, orientation, True)]))
    for name in ("turned.png", "turned.tif"):
        np.testing.assert_allclose(read_image(tmp_path / name).pixels, expected, atol=1 / 250)


def test_unreadable_exif_spoils_no_pixel(
    tmp_path: Path, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = noise(rng, 4, 5, 3)
    path = tmp_path / "exif.png"
    path.write_bytes(encoded(pixels, "PNG", exif=b"Exif\0\0MM\0*garbage"))
    np.testing.assert_array_equal(read_image(path).pixels, pixels)


def test_first_frame(tmp_path: Path, rng: np.random.Generator) -> None:
    frames = [PILImage.new("RGB", (6, 5), colour) for colour in ("red", "blue", "lime")]
    for name in ("frames.gif", "frames.tif", "frames.webp", "frames.png"):
        frames[0].save(
            tmp_path / name, save_all=True, append_images=frames[1:], lossless=True, loop=0
        )
        pixels = read_image(tmp_path / name).pixels
        assert (pixels == [255, 0, 0]).all(), name
    pages = noise(rng, 3, 6, 5, dtype=np.uint16)
    (tmp_path / "pages.tif").write_bytes(tiff(pages, photometric="minisblack"))
    np.testing.assert_allclose(
        read_image(tmp_path / "pages.tif").pixels[..., 0], pages[0] / 65535, atol=1e-7
    )


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "gif", "pgm"])
def test_a_single_pixel(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pixel.{suffix}"
    PILImage.new("L", (1, 1), 255).save(path)
    image = read_image(path)
    assert image.pixels.shape == (1, 1, 3)
    assert image.pixels.min() >= 250
    assert resize(image, 8).shape == (3, 8, 8)


def bomb_png() -> bytes:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b"")


def test_bombs_are_refused_by_their_header(tmp_path: Path) -> None:
    bombs = {
        "bomb.png": bomb_png(),
        "bomb.ppm": b"P6 60000 60000 255\n",
        "deep.pgm": b"P5 60000 60000 65535\n",
        "bomb.bmp": encoded(np.zeros((2, 2, 3), np.uint8), "BMP").replace(
            struct.pack("<ii", 2, 2), struct.pack("<ii", 60000, 60000)
        ),
    }
    for dtype in (np.uint8, np.uint16):
        bombs[f"{dtype.__name__}.tif"] = tiff(np.zeros((2345, 4), dtype), compression="lzw")
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
        assert "over the limit of 7,000:" in refusal(tmp_path / name, pixels=7000)


def test_the_limit_that_is_advised_is_the_one_to_set(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    path.write_bytes(encoded(np.zeros((7, 11, 3), np.uint8), "PNG"))
    for limit, advised in (("pixels", 77), ("bytes", path.stat().st_size)):
        assert f"--limit {limit}={advised}." in refusal(path, **{limit: advised - 1})
        assert read_image(path, limits=Limits(**{limit: advised})).width == 11


def test_a_tile_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tile.tif"
    path.write_bytes(tiff(np.zeros((4, 4), np.uint16), tile=(160, 160)))
    assert "160×160 pixels are over the limit" in refusal(path, pixels=100)


def test_limit_beyond_pillows_own_does_not_warn(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    PILImage.new("1", (9500, 9500)).save(path)  # Pillow warns from 89 megapixels on
    image = read_image(path)
    assert image.height == 9500
    assert "over the limit" in refusal(path, pixels=9500 * 9500 - 1)


FILES: dict[str, Callable[[Array], bytes]] = {
    "png": lambda pixels: encoded(pixels, "PNG"),
    "png16": lambda pixels: png16(pixels.astype(np.uint16) * 257),
    "jpeg": lambda pixels: encoded(pixels, "JPEG"),
    "progressive": lambda pixels: encoded(pixels, "JPEG", progressive=True),
    "tiff": lambda pixels: encoded(pixels, "TIFF"),
    "tiff-lzw": lambda pixels: encoded(pixels, "TIFF", compression="tiff_lzw"),
    "tiff-jpeg": lambda pixels: encoded(pixels, "TIFF", compression="jpeg"),
    "tiff16": lambda pixels: tiff(pixels.astype(np.uint16) * 257),
    "tiff16-deflate": lambda pixels: tiff(pixels.astype(np.uint16), compression="deflate"),
    "float": lambda pixels: tiff((pixels / 255).astype(np.float32)),
    "webp": lambda pixels: encoded(pixels, "WEBP"),
    "webp-lossless": lambda pixels: encoded(pixels, "WEBP", lossless=True),
    "gif": lambda pixels: encoded(pixels, "GIF"),
    "bmp": lambda pixels: encoded(pixels, "BMP"),
    "ppm": lambda pixels: encoded(pixels, "PPM"),
}


@pytest.mark.parametrize("kind", FILES)
def test_truncated_anywhere(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    data = FILES[kind](noise(rng, 23, 31, 3))
    path = tmp_path / "cut.bin"
    path.write_bytes(data)
    whole = read_image(path).pixels
    cuts = {*range(1, 40), *range(40, len(data), max(1, len(data) // 60))}
    for length in sorted(cuts | set(range(len(data) - 16, len(data)))):
        path.write_bytes(data[:length])
        try:
            pixels = read_image(path).pixels
        except ImageError:
            continue
        np.testing.assert_array_equal(pixels, whole, err_msg=f"{length} of {len(data)} bytes")


@pytest.mark.parametrize("kind", ["png", "png16", "jpeg", "progressive"])
def test_tail_lost_to_zeros(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    """What a full disk or a broken copy leaves: the right length, the end all zeros."""
    data = FILES[kind](noise(rng, 23, 31, 3))
    half = len(data) // 2
    (tmp_path / "holed.bin").write_bytes(data[:half] + bytes(len(data) - half))
    refusal(tmp_path / "holed.bin")


def test_one_flipped_bit_in_png_pixels(tmp_path: Path, rng: np.random.Generator) -> None:
    data = bytearray(FILES["png"](noise(rng, 23, 31, 3)))
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.png").write_bytes(data)
    assert "wrong checksum in chunk IDAT" in refusal(tmp_path / "flipped.png")


@pytest.mark.parametrize("kind", FILES)
def test_mutated_bytes_raise_nothing_else(
    tmp_path: Path, rng: np.random.Generator, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = FILES[kind](noise(rng, 11, 13, 3))
    path = tmp_path / "mutated.bin"
    for trial in range(200):
        mutated = bytearray(data)
        reach = len(data) if trial % 2 else min(len(data), 160)
        for position in rng.integers(0, reach, 1 + trial % 4):
            mutated[position] = rng.integers(256)
        path.write_bytes(mutated)
        try:
            image = read_image(path, limits=Limits(pixels=1_000_000))
        except ImageError:
            continue
        assert image.pixels.shape == (image.height, image.width, 3)
        assert image.pixels.dtype in (np.uint8, np.float32)
    assert "Traceback" not in capfd.readouterr().err
