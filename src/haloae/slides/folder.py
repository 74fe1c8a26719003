"""One slide's results: scored to the end, or to be gone on with, and then written whole."""

import csv
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from haloae.claims import Results, claim_folder
from haloae.detection.highest import (
    needs_more_slides,
    p_value_of_highest,
    threshold_of_highest,
)
from haloae.detection.predictor import Predictor
from haloae.errors import DataError, ImageError
from haloae.files import write_atomic
from haloae.outputs.report import REPORT
from haloae.slides.findings import Finding, as_findings, as_geojson, find_regions, squares_of
from haloae.slides.heatmap import write_heatmap
from haloae.slides.journal import JOURNAL, Journal, Tile, open_journal
from haloae.slides.page import write_page
from haloae.slides.parts import overview
from haloae.slides.reader import Slide, open_slide
from haloae.slides.score import score_tiles
from haloae.slides.tiling import Tiling
from haloae.slides.tissue import OVERVIEW, content_mask

SUMMARY, TILES, REGIONS = "slide.json", "tiles.csv", "regions.geojson"
HEATMAP, MASK = "heatmap.ome.tiff", "content.png"
SLIDE = Results("slide", (SUMMARY, TILES, REGIONS, HEATMAP, MASK, REPORT), goes_on_from=JOURNAL)
UNREAD = 128
"""In the mask, between background, 0, and content, 255: not scored."""


@dataclass(frozen=True)
class Outcome:
    """What is said of a slide, and what it took: the values of slide.json."""

    slide: str
    read_by: str
    width: int
    """In pixels, as `height`."""
    height: int
    microns: tuple[float, float] | None
    """Across and down, of one pixel."""
    verdict: Literal["normal", "anomalous"]
    score: float
    """Highest value of its regions, see `haloae.detection.highest`."""
    peak: float
    """Highest value of the map."""
    p_value: float
    """Share of good slides whose score is at least as high."""
    threshold: float
    """A score above it makes a slide of so many regions anomalous."""
    pixel_threshold: float
    """How far a region reaches."""
    false_alarm_rate: float
    calibrated_on: str
    """``slides`` or ``regions``: which good ones the p-value compares with, and how many."""
    compared: int
    """Regions of the slide, of the size of the good ones, that its score is the highest of."""
    regions: int
    """That were found."""
    scored: int
    """Tiles, as `background` and `unscored`."""
    background: int
    unscored: int
    tile: tuple[int, int]
    """Height and width in pixels at `scale`, as `tile_overlap`."""
    tile_overlap: int
    scale: float
    computed_per_delivered: float
    """Pixels: the overlap's cost."""
    seconds: float
    """Of the last run, reading and writing included."""
    model: str
    """Tells detectors apart, see `model_of`."""


def slide_to_folder(
    detector: Predictor,
    path: Path,
    out: Path,
    *,
    everything: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[Iterable[Tile]], Iterable[Tile]] = iter,
) -> tuple[Outcome, list[Finding]]:
    """Score a slide of any size, in constant memory.

    A run that is stopped or killed leaves what it has in two files, from which `resume` goes on.

    Args:
        detector: the fitted detector.
        path: of the slide.
        out: folder for slide.json, tiles.csv, regions.geojson, heatmap.ome.tiff, content.png and
            report.html.
        everything: True: background is scored too.
        resume: go on from what a run has left in `out`, if there is any.
        overwrite: True: replace what `out` holds.
        progress: wraps the tiles where someone wants to watch.

    Raises:
        ImageError: the slide cannot be read, or is smaller than a tile.
        DataError: it shows nothing.
        OutputError: `out` is not empty, cannot be written to, or holds what another slide, model or
            setting has left; what was scored stays there to be gone on with.
        MissingExtraError: what is needed is not installed.
    """
    start = time.monotonic()
    slide = open_slide(path)
    tiling = Tiling.of(detector.config, slide)
    identity = {
        "slide": slide.name,
        "bytes": path.stat().st_size,
        "model": model_of(detector),
        "tiling": tiling.as_values(),
        "everything": everything,
    }
    with claim_folder(
        out,
        SLIDE,
        overwrite=overwrite,
        goes_on=lambda folder: resume and (folder / JOURNAL).is_file(),
        way_out="give --resume to go on with what was stopped, or --overwrite",
    ) as folder:
        picture, is_unread = overview(slide, OVERVIEW)
        content = np.ones(picture.shape[:2], np.bool_) if everything else content_mask(picture)
        numbers = tiling.with_content(content | is_unread).tolist()
        if not numbers:
            raise DataError(
                f"{slide.name}: shows nothing but background: give --everything if it is none."
            )
        goes_on = resume and (folder / JOURNAL).is_file()
        with open_journal(folder, tiling, identity, goes_on=goes_on) as journal:
            score_tiles(detector, slide, journal, numbers, progress=progress)
            tiles = [journal.tiles[number] for number in numbers]
            found = _write(detector, slide, journal, tiles, folder, picture, content, start)
    return found


def model_of(detector: Predictor) -> str:
    """Tells apart what scores differently; the same for all thresholds of one detector."""
    known = detector.config.model_dump(mode="json", exclude={"detection": {"false_alarm_rate"}})
    calibration = detector.calibration.model_dump(include={"peaks", "mean_weight"})
    values = [known, calibration, detector.provenance.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _write(
    detector: Predictor,
    slide: Slide,
    journal: Journal,
    tiles: list[Tile],
    folder: Path,
    picture: NDArray[np.uint8],
    content: NDArray[np.bool_],
    start: float,
) -> tuple[Outcome, list[Finding]]:
    """All that is made of a map that is complete."""
    outcome, findings = _judged(detector, slide, journal, tiles)
    tiling, microns = journal.tiling, slide.microns
    size = (microns[0] * tiling.pixels, microns[1] * tiling.pixels) if microns else None
    write_heatmap(journal, folder / HEATMAP, threshold=outcome.pixel_threshold, microns=size)
    unscored = [(tiling.box(tile.number), tile.reason) for tile in tiles if tile.reason]
    geojson = json.dumps(as_geojson(findings, unscored, microns))
    write_atomic(folder / REGIONS, geojson.encode())
    write_atomic(folder / TILES, _csv(tiles, detector, tiling, outcome.compared))
    write_atomic(folder / MASK, _mask(content, [box for box, _ in unscored], slide))
    write_page(folder / REPORT, outcome, findings, slide, journal, picture, unscored)
    outcome = replace(outcome, seconds=round(time.monotonic() - start, 1))
    write_atomic(folder / SUMMARY, f"{json.dumps(asdict(outcome), indent=2)}\n".encode())
    return outcome, findings


def _judged(
    detector: Predictor, slide: Slide, journal: Journal, tiles: list[Tile]
) -> tuple[Outcome, list[Finding]]:
    """What is said of a slide; how long it took is not known yet."""
    tiling, calibration = journal.tiling, detector.calibration
    scored = [tile for tile in tiles if not tile.reason]
    if not scored:
        raise ImageError(f"{tiles[0].reason.rstrip('.')}; and so it is with every other tile.")
    squares = squares_of(journal, _region_cells(detector), calibration.mean_weight)
    compared = max(1, int((squares.peaks > 0).sum()))
    pixel_threshold = calibration.pixel_threshold.value
    threshold = threshold_of_highest(calibration, compared)
    score = float(squares.values.max())
    regions = find_regions(
        journal, squares, extent=min(pixel_threshold, threshold), threshold=threshold
    )
    findings = as_findings(
        regions, tiling, lambda value: p_value_of_highest(calibration, value, compared)
    )
    outcome = Outcome(
        slide=slide.name,
        read_by=slide.kind,
        width=slide.levels[0].width,
        height=slide.levels[0].height,
        microns=slide.microns,
        verdict="anomalous" if score > threshold else "normal",
        score=score,
        peak=max(tile.peak for tile in scored),
        p_value=p_value_of_highest(calibration, score, compared),
        threshold=threshold,
        pixel_threshold=pixel_threshold,
        false_alarm_rate=calibration.false_alarm_rate,
        calibrated_on=f"{len(calibration.peaks)} regions"
        if needs_more_slides(calibration)
        else f"{len(calibration.slides)} slides",
        compared=compared,
        regions=len(findings),
        scored=len(scored),
        background=tiling.count - len(tiles),
        unscored=len(tiles) - len(scored),
        tile=tiling.view.canvas,
        tile_overlap=tiling.view.overlap,
        scale=tiling.view.scale,
        computed_per_delivered=round(tiling.cost, 3),
        seconds=0.0,
        model=model_of(detector),
    )
    return outcome, findings


def _cells(tiling: Tiling, number: int) -> int:
    """That a tile delivers."""
    rows, columns = tiling.cells_of(number)
    return int((rows.stop - rows.start) * (columns.stop - columns.start))


def _region_cells(detector: Predictor) -> int:
    """Of one region that was calibrated on, as a square."""
    each = detector.calibration.cells
    if each is None:  # a file that does not say: its regions are whole images
        kinds = detector.provenance.images
        shown = detector.view.size_of((kinds.heights[0], kinds.widths[0]))
        each = math.prod(detector.view.cells_of(shown))
    return math.isqrt(each) ** 2


def _csv(tiles: list[Tile], detector: Predictor, tiling: Tiling, compared: int) -> bytes:
    """A row for each tile that has content, from left to right and from top to bottom."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("x", "y", "width", "height", "status", "score", "peak", "p_value", "slide_p_value")
    writer.writerow((*columns, "reason"))
    each = _region_cells(detector)
    for tile in sorted(tiles):
        box = tiling.box(tile.number)
        if tile.reason:
            writer.writerow((*box, "unscored", "", "", "", "", tile.reason))
            continue
        own = math.ceil(_cells(tiling, tile.number) / each)
        p_values = (
            p_value_of_highest(detector.calibration, tile.peak, count) for count in (own, compared)
        )
        values = (tile.score, tile.peak, *p_values)
        writer.writerow((*box, "scored", *(f"{value:.6g}" for value in values), ""))
    return text.getvalue().encode()


def _mask(
    content: NDArray[np.bool_], unscored: list[tuple[int, int, int, int]], slide: Slide
) -> bytes:
    """255 where there is content, 128 where that was not scored, 0 for background: a PNG."""
    values = content.astype(np.uint8) * 255
    high, wide = content.shape
    across, down = wide / slide.levels[0].width, high / slide.levels[0].height
    for x, y, width, height in unscored:
        rows = slice(int(y * down), max(int(y * down) + 1, round((y + height) * down)))
        columns = slice(int(x * across), max(int(x * across) + 1, round((x + width) * across)))
        values[rows, columns] = UNREAD
    buffer = io.BytesIO()
    PILImage.fromarray(values).save(buffer, format="png")
    return buffer.getvalue()


def read_outcome(folder: Path) -> dict[str, Any]:
    """What slide.json says of a slide that was scored.

    Raises:
        DataError: it is missing or damaged.
    """
    path = folder / SUMMARY
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {"score": float(values["score"]), "model": str(values["model"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: missing or damaged: score the slide again.") from error
