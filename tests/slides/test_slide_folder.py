"""A slide from end to end: map, regions, table, page; damage, kills, full disks."""

import csv
import json
import os
import shutil
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray
from ome_types import from_xml, validate_xml
from PIL import Image as PILImage

from faults.disks import largest_file
from faults.kills import contents, hidden_in, was_killed
from haloae.errors import DataError, ImageError, OutputError
from haloae.slides.folder import SLIDE, slide_to_folder
from haloae.slides.journal import CELLS, JOURNAL, Tile
from slides.darkness import CELL, darkness
from slides.made import MICRONS, damage, tissue, write_slide

WIDTH, HEIGHT = 700, 556
RESULTS = set(SLIDE.files)
DRAW = tissue(1, WIDTH, HEIGHT, tumour=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "a.tif", DRAW, WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def truth() -> NDArray[np.float32]:
    """The map of the whole slide, computed at once."""
    whole = DRAW(0, 0, WIDTH, HEIGHT, 1) / np.float32(255)
    rows, columns = -(-HEIGHT // CELL), -(-WIDTH // CELL)
    lacking = (rows * CELL - HEIGHT, columns * CELL - WIDTH)
    padded = np.pad(whole, ((0, lacking[0]), (0, lacking[1]), (0, 0)), mode="symmetric")
    return np.asarray(1 - padded.reshape(rows, CELL, columns, CELL, 3).mean((1, 3, 4)))


@pytest.fixture(scope="module")
def done(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    slide_to_folder(darkness(), path, out)
    return out


def values_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "slide.json").read_text()))


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "tiles.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_map_is_that_of_the_whole_slide(done: Path, truth: NDArray[np.float32]) -> None:
    found = tifffile.imread(done / "heatmap.ome.tiff")[:, : truth.shape[1]]
    pixel_threshold = values_of(done)["pixel_threshold"]
    expected = np.clip(truth / (2 * pixel_threshold), 0, 1) * 65535
    is_scored = found > 0
    assert 0.3 < is_scored.mean() < 0.9, "glass is left out"
    np.testing.assert_allclose(found[is_scored], expected[is_scored], atol=1)


def test_the_heat_map_is_an_ome_tiff(done: Path) -> None:
    path = done / "heatmap.ome.tiff"
    with tifffile.TiffFile(path) as file:
        validate_xml(file.ome_metadata)
        pixels = from_xml(file.ome_metadata).images[0].pixels
        assert (pixels.size_x, pixels.size_y) == (128, 70), "of whole tiles"
        assert pixels.physical_size_x == CELL * MICRONS
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == (128, 70)
        region = np.asarray(slide.read_region((0, 0), 0, (128, 70)))[..., 0]
    whole = tifffile.imread(path) / 257
    assert whole.max() > 200
    assert np.abs(region - whole).max() <= 1, "in the eight bits that it reads"


def test_regions_lie_where_the_map_is_high(done: Path, truth: NDArray[np.float32]) -> None:
    values, found = values_of(done), json.loads((done / "regions.geojson").read_text())
    assert values["verdict"] == "anomalous"
    assert values["score"] == pytest.approx(truth.max(), rel=1e-5)
    assert values["p_value"] < 0.05
    first = found["features"][0]["properties"]
    assert first["classification"]["name"] == "Anomaly"
    assert first["score"] == values["score"]
    assert first["p_value"] == values["p_value"]
    x, y, width, height = first["box"]
    assert x < 0.42 * WIDTH < x + width
    assert y < 0.45 * HEIGHT < y + height
    assert first["area_um2"] == pytest.approx(first["area_px"] * MICRONS**2)
    ring = np.array(found["features"][0]["geometry"]["coordinates"][0])
    assert (ring[0] == ring[-1]).all()
    low, high = ring.min(0), ring.max(0)
    assert (np.abs(low - [x, y]) <= CELL).all()
    assert (np.abs(high - [x + width, y + height]) <= CELL).all()


def test_the_table_has_a_row_for_each_tile_with_content(done: Path) -> None:
    values, rows = values_of(done), rows_of(done)
    assert len(rows) == values["scored"]
    assert {row["status"] for row in rows} == {"scored"}
    assert max(float(row["peak"]) for row in rows) == pytest.approx(values["score"], rel=1e-5)
    for row in rows:
        assert float(row["slide_p_value"]) >= 1 / 10**6
        assert 0 < float(row["p_value"]) <= 1
    assert sum(int(row["width"]) * int(row["height"]) for row in rows) < WIDTH * HEIGHT


def test_the_page_is_one_file_without_network(done: Path) -> None:
    text = (done / "report.html").read_text()
    assert "Anomalous: " in text
    assert text.count("data:image/") >= 3
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text


def test_the_mask_shows_what_was_scored(done: Path) -> None:
    mask = np.asarray(PILImage.open(done / "content.png"))
    assert mask.shape == (HEIGHT, WIDTH)
    assert set(np.unique(mask)) == {0, 255}
    assert mask[round(0.42 * HEIGHT), round(0.4 * WIDTH)] == 255
    assert mask[:20].max() == 0


def test_a_slide_without_a_tumour_is_normal(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "b.tif", tissue(2, WIDTH, HEIGHT), WIDTH, HEIGHT)
    lenient = darkness(slides=tuple(np.linspace(0.5, 0.6, 40).tolist()))
    outcome, findings = slide_to_folder(lenient, path, tmp_path / "out")
    assert (outcome.verdict, findings, outcome.calibrated_on) == ("normal", [], "40 slides")
    assert json.loads((tmp_path / "out/regions.geojson").read_text())["features"] == []
    assert "nothing above the threshold" in (tmp_path / "out/report.html").read_text()


def test_a_damaged_part_is_marked_and_the_others_are_scored(
    path: Path, done: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copy(path, tmp_path / "a.tif"))
    damage(broken, 2 * 6 + 2)
    slide_to_folder(darkness(), broken, tmp_path / "out")
    values, whole = values_of(tmp_path / "out"), values_of(done)
    assert values["unscored"] > 0
    assert values["scored"] + values["unscored"] >= whole["scored"], "what is there is not known"
    rows = [row for row in rows_of(tmp_path / "out") if row["status"] == "unscored"]
    assert len(rows) == values["unscored"]
    assert all("a.tif: truncated, corrupted" in row["reason"] for row in rows)
    features = json.loads((tmp_path / "out/regions.geojson").read_text())["features"]
    kinds = [each["properties"]["classification"]["name"] for each in features]
    assert kinds.count("Unscored") == values["unscored"]
    assert 128 in np.asarray(PILImage.open(tmp_path / "out/content.png"))
    assert "as far as it was scored" in (tmp_path / "out/report.html").read_text()


def test_what_cannot_be_scored_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    small = write_slide(tmp_path / "s.png", DRAW, 60, 50, kind="png")
    glass = tmp_path / "glass.png"
    PILImage.new("RGB", (200, 200), (243, 241, 242)).save(glass)
    out = tmp_path / "out"
    with pytest.raises(ImageError, match=r"is 60×50 pixels, and a tile of this model has 64×64"):
        slide_to_folder(darkness(), small, out)
    with pytest.raises(DataError, match="nothing but background: give --everything"):
        slide_to_folder(darkness(), glass, out)
    assert not any(out.iterdir())
    assert slide_to_folder(darkness(), glass, out, everything=True)[0].verdict == "normal"


# Stopped, killed, out of room


def stopping(after: int, how: str) -> Any:  # noqa: ANN401
    def progress(tiles: Iterable[Tile]) -> Iterator[Tile]:
        for number, tile in enumerate(tiles, 1):
            yield tile
            if number == after:
                if how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise KeyboardInterrupt

    return progress


def counting(seen: list[Tile]) -> Any:  # noqa: ANN401
    def progress(tiles: Iterable[Tile]) -> Iterator[Tile]:
        for tile in tiles:
            seen.append(tile)
            yield tile

    return progress


def same_but_for_time(out: Path, other: Path) -> None:
    found, expected = contents(out), contents(other)
    assert found.keys() == expected.keys() == RESULTS
    for name in ("tiles.csv", "regions.geojson", "content.png"):
        assert found[name] == expected[name]
    one, two = (tifffile.imread(folder / "heatmap.ome.tiff") for folder in (out, other))
    np.testing.assert_array_equal(one, two)
    assert values_of(out) | {"seconds": 0} == values_of(other) | {"seconds": 0}


def test_a_run_that_is_killed_goes_on_and_loses_a_few_tiles_at_most(
    path: Path, done: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    work = lambda: slide_to_folder(darkness(), path, out, progress=stopping(40, "killed"))  # noqa: E731
    assert was_killed(work)
    assert {CELLS, JOURNAL} <= contents(out).keys()
    with (out / JOURNAL).open("ab") as file:  # as a kill in the middle of a line leaves it
        file.write(b"[12, 0.3")
    with pytest.raises(OutputError, match="is not empty: give --resume"):
        slide_to_folder(darkness(), path, out)
    seen: list[Tile] = []
    slide_to_folder(darkness(), path, out, resume=True, progress=counting(seen))
    assert len(seen) <= values_of(out)["scored"] - 40
    same_but_for_time(out, done)


def test_cells_that_were_not_kept_are_scored_again(path: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        slide_to_folder(darkness(), path, out, progress=stopping(40, "stopped"))
    with (out / CELLS).open("r+b") as file:  # as a power cut may leave it
        file.truncate(4000)
    seen: list[Tile] = []
    slide_to_folder(darkness(), path, out, resume=True, progress=counting(seen))
    assert len(seen) > values_of(out)["scored"] - 40
    same_but_for_time(out, done)


def test_what_another_model_began_is_not_gone_on_with(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        slide_to_folder(darkness(), path, out, progress=stopping(9, "stopped"))
    other = write_slide(tmp_path / "other.tif", DRAW, WIDTH, HEIGHT)
    with pytest.raises(OutputError, match="of another slide, model or setting"):
        slide_to_folder(darkness(), other, out, resume=True)
    assert (out / JOURNAL).exists()


@pytest.mark.parametrize("room", [1000, 12_000])
def test_a_disk_that_fills_while_tiles_are_scored_costs_none(
    path: Path, done: Path, tmp_path: Path, room: int
) -> None:
    out = tmp_path / "out"
    with largest_file(room), pytest.raises(OutputError, match="free some space"):
        slide_to_folder(darkness(), path, out)
    assert contents(out).keys() == {CELLS, JOURNAL}
    slide_to_folder(darkness(), path, out, resume=True)
    same_but_for_time(out, done)


@pytest.mark.parametrize("room", [500, 3000])
def test_a_disk_that_fills_while_results_are_written_costs_none(
    path: Path, done: Path, tmp_path: Path, room: int
) -> None:
    out, last = tmp_path / "out", values_of(done)["scored"]
    with pytest.raises(KeyboardInterrupt):
        slide_to_folder(darkness(), path, out, progress=stopping(last, "stopped"))
    full = pytest.raises(OutputError, match=r"heatmap.ome.tiff: cannot be written.*free some space")
    with largest_file(room), full:
        slide_to_folder(darkness(), path, out, resume=True)
    assert contents(out).keys() == {CELLS, JOURNAL}
    assert not hidden_in(out)
    seen: list[Tile] = []
    slide_to_folder(darkness(), path, out, resume=True, progress=counting(seen))
    assert seen == []
    same_but_for_time(out, done)
