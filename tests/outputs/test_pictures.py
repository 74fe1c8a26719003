"""Pictures for people: what they show, whatever the image; and what predict leaves on disk."""

import io
import json
import os
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from conftest import texture
from data.image_files import png16
from haloae.cli import main
from haloae.config import Config
from haloae.data.images import Image, read_image
from haloae.detection.calibration import Calibration
from haloae.detector import Detector, Prediction, fit_detector
from haloae.errors import OutputError
from haloae.outputs.folder import Counts, predict_to_folder
from haloae.outputs.pictures import (
    BRIGHT,
    MAX_SIDE,
    MIN_WIDTH,
    PAPER,
    VERDICT_COLOURS,
    Highest,
    Ranked,
    draw_overlay,
    draw_sheet,
    readable,
    thumbnail,
)

CALIBRATION = Calibration(
    scores=(0.5, 0.8, 0.9, 1.0), peaks=(1.0, 1.0, 1.0, 1.0), false_alarm_rate=0.25
)
"""Thresholds of 1, and a pixel threshold of 1."""


def prediction_of(anomaly_map: np.ndarray, score: float = 2.0) -> Prediction:
    return Prediction(
        score=score,
        p_value=0.2,
        is_anomalous=score > 1,
        extrapolated=False,
        grid_map=anomaly_map.astype(np.float32),
        size=anomaly_map.shape,
        pixel_threshold=1.0,
    )


def opened(data: bytes) -> np.ndarray:
    picture = PILImage.open(io.BytesIO(data))
    assert picture.format == "JPEG"
    return np.asarray(picture).astype(int)


def is_near(pixels: np.ndarray, colour: Sequence[int], tolerance: int = 60) -> np.ndarray:
    return np.abs(pixels - np.asarray(colour)).max(axis=-1) <= tolerance


def on_disk(path: Path, pixels: np.ndarray) -> Image:
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.dtype == np.uint16:
        path.write_bytes(png16(pixels))
    else:
        PILImage.fromarray(pixels).save(path)
    return read_image(path)


def grey(height: int, width: int, value: int = 128) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


# One overlay


@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (1, 40), (40, 1), (32, 32), (480, 640), (20, 5000), (5000, 20), (2500, 3000)],
)
def test_every_shape_gets_a_picture_of_a_size_to_look_at(
    tmp_path: Path, height: int, width: int
) -> None:
    image = on_disk(tmp_path / "a.png", grey(height, width))
    anomaly = np.zeros((height, width))
    anomaly[height // 2 :, width // 2 :] = 5
    shown = opened(draw_overlay(image, prediction_of(anomaly), CALIBRATION))
    assert shown.shape[1] >= MIN_WIDTH
    assert max(shown.shape) <= 1.25 * MAX_SIDE
    assert is_near(shown, BRIGHT).any()
    small = thumbnail(image, prediction_of(anomaly), CALIBRATION)
    assert max(small.size) <= 210


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("side", [32, 480, 3000])
def test_the_outline_goes_round_the_defect_on_any_ground(
    tmp_path: Path, side: int, value: int
) -> None:
    image = on_disk(tmp_path / "a.png", grey(side, side, value))
    anomaly = np.zeros((side, side))
    low, high = side // 4, side // 2
    anomaly[low:high, low:high] = 5
    shown = opened(draw_overlay(image, prediction_of(anomaly), CALIBRATION))
    bright = is_near(shown, BRIGHT)
    rows, columns = np.nonzero(bright)
    width = shown.shape[1]
    for places in (rows, columns):
        assert places.min() / width == pytest.approx(0.25, abs=0.02)
        assert places.max() / width == pytest.approx(0.5, abs=0.02)
    middle = int(0.375 * width)
    line = np.flatnonzero(bright[middle])
    assert len(line) / width > 0.003, "two crossings of a line that can be seen"
    first = line[0]
    thick = max(1, len(line) // 2)
    assert shown[middle, first - 2 * thick : first].min() < 60, "dark beside bright"


def test_a_single_defective_pixel_of_a_large_image_stays_visible(tmp_path: Path) -> None:
    anomaly = np.zeros((4500, 4500))
    anomaly[3333, 1111] = 3
    image = on_disk(tmp_path / "a.png", grey(4500, 4500))
    assert is_near(opened(draw_overlay(image, prediction_of(anomaly), CALIBRATION)), BRIGHT).any()


def test_a_defect_that_fills_the_image_is_outlined_in_the_margin(tmp_path: Path) -> None:
    image = on_disk(tmp_path / "a.png", grey(480, 480))
    shown = opened(draw_overlay(image, prediction_of(np.full((480, 480), 9.0)), CALIBRATION))
    bright = is_near(shown[:480], BRIGHT)
    assert bright[100, :8].any()
    assert not bright[100:380, 20:460].any()


def test_heat_is_only_where_the_map_is_above_the_threshold(tmp_path: Path) -> None:
    image = on_disk(tmp_path / "a.png", grey(480, 480))
    anomaly = np.full((480, 480), 0.99)
    anomaly[100:200, 100:200] = 3
    shown = opened(draw_overlay(image, prediction_of(anomaly), CALIBRATION))
    heated = shown[..., 0] - shown[..., 2] > 30
    rows, columns = np.nonzero(heated[:480])
    assert (rows.min(), columns.min()) >= (95, 95)
    assert (rows.max(), columns.max()) <= (215, 215)
    assert 0 < shown[150, 150].min() < 128, "translucent"


def test_the_caption_is_below_and_covers_nothing(tmp_path: Path) -> None:
    image = on_disk(tmp_path / "a.png", grey(480, 500))
    for score in (2.0, 0.5):
        shown = opened(draw_overlay(image, prediction_of(np.zeros((480, 500)), score), CALIBRATION))
        inner = shown[10:480, 10:500]
        assert (np.abs(inner - 128) <= 3).all()
        strip = shown[490:]
        assert len(strip) > 20
        assert is_near(strip, PAPER, 5).any()
        assert is_near(strip, (25, 25, 25)).any()
        assert is_near(strip, VERDICT_COLOURS[score > 1], 30).any()
        assert not is_near(strip, VERDICT_COLOURS[score <= 1], 30).any()


@pytest.mark.parametrize("side", [32, 480, 2048, 3000])
def test_text_grows_with_the_picture(tmp_path: Path, side: int) -> None:
    image = on_disk(tmp_path / "a.png", grey(side, side))
    shown = opened(draw_overlay(image, prediction_of(np.zeros((side, side))), CALIBRATION))
    strip = shown.shape[0] - shown.shape[1]
    assert strip / shown.shape[1] > 0.03


def test_a_dim_16_bit_grey_image_can_be_seen(tmp_path: Path) -> None:
    pixels = np.tile(np.linspace(0, 4095, 480).astype(np.uint16), (480, 1))
    image = on_disk(tmp_path / "a.png", pixels)
    assert (image.depth, image.grey) == (16, True)
    shown = opened(draw_overlay(image, prediction_of(np.zeros((480, 480))), CALIBRATION))
    assert shown[240, 20].max() < 20
    assert shown[240, 470].min() > 235
    black = on_disk(tmp_path / "b.png", np.zeros((48, 48), np.uint16))
    assert opened(draw_overlay(black, prediction_of(np.zeros((48, 48))), CALIBRATION)).any()


def test_a_pixel_threshold_of_nothing_is_no_error(tmp_path: Path) -> None:
    nothing = Calibration(scores=(0, 0, 0, 0), peaks=(0, 0, 0, 0), false_alarm_rate=0.25)
    image = on_disk(tmp_path / "a.png", grey(40, 40))
    for value in (0.0, 1e30):
        draw_overlay(image, prediction_of(np.full((40, 40), value)), nothing)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.50477, "1.505"), (999.94, "999.9"), (10663.2, "10663"), (1e9, "1e+09")],
)
def test_numbers_are_readable(value: float, text: str) -> None:
    assert readable(value) == text


# The highest


def test_the_highest_are_ranked_and_the_earlier_wins_a_tie() -> None:
    highest = Highest(keep=3)
    for name, score in (("a", 1), ("b", 3), ("c", 2), ("d", 3), ("e", 2), ("f", 0)):
        highest.add(name, prediction_of(np.zeros((1, 1)), score))
    assert [entry.name for entry in highest.ranked()] == ["b", "d", "c"]


def test_memory_does_not_grow_with_the_images() -> None:
    rng = np.random.default_rng(0)
    empty, made = np.zeros((1, 1)), 0

    def small() -> PILImage.Image:
        nonlocal made
        made += 1
        return PILImage.new("RGB", (64, 64))

    highest = Highest()
    tracemalloc.start()
    for number in range(200):
        highest.add(f"{number}.png", prediction_of(empty, rng.uniform()), small)
    before = tracemalloc.get_traced_memory()[0]
    for number in range(20_000):
        highest.add(f"{number}.png", prediction_of(empty, rng.uniform()), small)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000
    assert len(highest.ranked()) == 40
    assert made < 500, "a thumbnail only where it may be shown"


def test_names_are_one_printable_line() -> None:
    highest = Highest()
    highest.add("new\nline\x1b[31m" + os.fsdecode(b"\xff"), prediction_of(np.zeros((1, 1))))
    (entry,) = highest.ranked()
    assert entry.name == "new\\nline\\x1b[31m\\udcff"
    draw_sheet([entry], "1 of 1")


# The contact sheet


@pytest.mark.parametrize("number", [1, 3, 9, 40])
def test_the_sheet_keeps_the_order_and_shows_the_verdict(number: int) -> None:
    shades = np.linspace(40, 250, number).astype(int)
    ranked = [
        Ranked(
            number - i, -i, "n" * 300, 0.1, i % 2 == 0, PILImage.new("RGB", (200, 200), (s, 0, s))
        )
        for i, s in enumerate(shades.tolist())
    ]
    shown = opened(draw_sheet(ranked, "headline"))
    frames = is_near(shown, VERDICT_COLOURS[True], 25), is_near(shown, VERDICT_COLOURS[False], 25)
    assert frames[0].any()
    assert frames[1].any() == (number > 1)
    purple = (
        (shown[..., 1] < 25) & (np.abs(shown[..., 0] - shown[..., 2]) < 15) & (shown[..., 0] > 30)
    )
    columns = min(8, max(4, number))
    width, found = 14 + 212 + 12, []
    for i in range(number):
        left = 14 + i % columns * width
        rows = np.flatnonzero(purple[:, left + 100])
        starts = rows[np.flatnonzero(np.diff(rows, prepend=-9) > 1)]
        assert len(starts) == -(-(number - i % columns) // columns)
        found.append(shown[starts[i // columns] + 50, left + 100, 0])
    np.testing.assert_allclose(found, shades, atol=4)


# What predict writes


@pytest.fixture(scope="module")
def detector(tiny: Config, good_paths: list[Path]) -> Detector:
    return fit_detector(good_paths, tiny, name="textures", device="cpu").detector


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Two good images, two with a red square, and one that is empty."""
    folder = tmp_path / "parts"
    for i in range(2):
        on_disk(folder / f"good/{i}.png", texture(50 + i))
        spoilt = texture(60 + i)
        spoilt[10:26, 8 : 24 + 6 * i] = (255, 0, 0)
        on_disk(folder / f"bad/{i}.png", spoilt)
    (folder / "empty.png").write_bytes(b"")
    return folder


def lines_of(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def files_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_overlays_of_the_anomalous_all_or_none(
    detector: Detector, parts: Path, tmp_path: Path
) -> None:
    every = {f"overlays/{kind}/{i}.jpg" for kind in ("good", "bad") for i in range(2)}
    for overlays in ("anomalous", "all", "none"):
        out = tmp_path / overlays
        counts = predict_to_folder(detector, [parts], out, maps="none", overlays=overlays)  # type: ignore[arg-type]
        assert isinstance(counts, Counts)
        assert counts.failed == 1
        lines = lines_of(out)
        anomalous = {line["overlay"] for line in lines if line["is_anomalous"]}
        listed = {line["overlay"] for line in lines} - {None}
        assert listed == {"anomalous": anomalous, "all": every, "none": set()}[overlays]
        sheet = set() if overlays == "none" else {"contact_sheet.jpg"}
        assert files_in(out) == listed | sheet | {"predictions.jsonl"}
        scores = [entry.score for entry in counts.highest]
        assert scores == sorted((line["score"] for line in lines if line["score"]), reverse=True)
        assert {entry.thumbnail is None for entry in counts.highest} == {overlays == "none"}


def test_no_picture_of_an_earlier_run_is_left(
    detector: Detector, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    on_disk(parts / "a..b.png", texture(1))
    predict_to_folder(detector, [parts], out, overlays="all")
    mine = out / "overlays/mine.txt"
    mine.write_text("mine")
    predict_to_folder(detector, [parts / "good"], out, overlays="all", overwrite=True)
    assert files_in(out / "overlays") == {"mine.txt", "0.jpg", "1.jpg"}
    predict_to_folder(detector, [parts / "good"], out, maps="none", overlays="none", overwrite=True)
    assert files_in(out) == {"overlays/mine.txt", "predictions.jsonl"}


def test_a_prediction_without_overlays_or_of_something_else_is_replaced(
    detector: Detector, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    outside = tmp_path / "outside.jpg"
    outside.write_text("mine")
    for line in (
        '{"map": "maps/old.png"}',
        '{"overlay": "overlays/../../outside.jpg"}',
        '{"overlay": "/etc/x", "map": 3}',
        "[1]",
        "nonsense",
    ):
        on_disk(out / "maps/old.png", grey(2, 2))
        (out / "predictions.jsonl").write_text(line + "\n")
        predict_to_folder(detector, [parts], out, overwrite=True)
        assert len(lines_of(out)) == 5
        assert (out / "maps/old.png").exists() == ("old" not in line)
    assert outside.read_text() == "mine"


def test_pictures_are_no_inputs(detector: Detector, parts: Path) -> None:
    out = parts / "found"
    for again in (False, True):
        counts = predict_to_folder(detector, [parts], out, overlays="all", overwrite=again)
        assert counts.normal + counts.anomalous == 4
    counts = predict_to_folder(detector, [parts], parts, overlays="all", overwrite=True)
    counts = predict_to_folder(detector, [parts / "good"], parts / "good", overwrite=True)
    assert counts.normal + counts.anomalous == 2


def test_names_that_clash_or_are_too_long(detector: Detector, parts: Path, tmp_path: Path) -> None:
    on_disk(parts / "bad/0.jpg", texture(3))
    on_disk(parts / ("n" * 251 + ".png"), texture(4))
    out = tmp_path / "out"
    predict_to_folder(detector, [parts], out, overlays="all")
    overlays = [line["overlay"] for line in lines_of(out) if line["overlay"]]
    assert len(set(overlays)) == 6
    assert {"overlays/bad/0.jpg", "overlays/bad/0.png.jpg"} <= set(overlays)
    assert files_in(out / "overlays") == {str(name)[len("overlays/") :] for name in overlays}


@pytest.mark.parametrize("name", ["overlays", "contact_sheet.jpg"])
def test_a_picture_that_cannot_be_written(
    detector: Detector, parts: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    if name == "overlays":
        out.mkdir()
        (out / name).write_text("in the way")
    else:
        (out / name).mkdir(parents=True)
    with pytest.raises(OutputError, match=name):
        predict_to_folder(detector, [parts], out, overlays="all", overwrite=True)
    assert not (out / "predictions.jsonl").exists()


def test_hostile_images_get_overlays(detector: Detector, tmp_path: Path) -> None:
    folder, rng = tmp_path / "odd", np.random.default_rng(0)
    on_disk(folder / "one.png", grey(1, 1))
    on_disk(folder / "grey16.png", rng.integers(0, 4000, (33, 40)).astype(np.uint16))
    on_disk(folder / "wide.png", rng.integers(0, 255, (3, 3000, 3)).astype(np.uint8))
    on_disk(folder / "tall.png", rng.integers(0, 255, (3000, 3, 3)).astype(np.uint8))
    out = tmp_path / "out"
    predict_to_folder(detector, [folder], out, overlays="all")
    assert files_in(out / "overlays") == {"one.jpg", "grey16.jpg", "wide.jpg", "tall.jpg"}


def test_the_sheet_and_the_screen_show_the_highest(
    detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = tmp_path / "m.safetensors", tmp_path / "many"
    detector.save(model)
    for i in range(44):
        on_disk(folder / f"{i:02}\n\t.png", texture(i))
    predict = ["predict", str(model), str(folder), "--out", str(tmp_path / "out"), "--threads", "1"]
    assert main(predict) == 0
    printed = capsys.readouterr().out.splitlines()
    start = printed.index("  highest 10 of 44 scores:")
    header, *rows = printed[start + 1 :]
    assert header.split() == ["score", "p-value", "verdict", "image"]
    ranked = sorted(lines_of(tmp_path / "out"), key=lambda line: -float(str(line["score"])))[:10]
    assert [row.split()[-1] for row in rows] == [
        Path(str(line["path"])).name.replace("\n", "\\n").replace("\t", "\\t") for line in ranked
    ]
    assert [float(row.split()[0]) for row in rows] == pytest.approx(
        [line["score"] for line in ranked], rel=1e-3
    )
    assert {row.index(row.split()[-1]) for row in rows} == {header.index("image")}
    with PILImage.open(tmp_path / "out/contact_sheet.jpg") as sheet:
        assert sheet.width > 1600
    assert main([*predict, "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
