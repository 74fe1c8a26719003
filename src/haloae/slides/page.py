"""A page about one slide: an overview to zoom into, what was found on it, in one file."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw

from haloae.errors import ImageError
from haloae.outputs.pictures import CASING, FOUND, HEAT, HEAT_ALPHA, HOTTEST
from haloae.slides.findings import Finding
from haloae.slides.journal import Journal
from haloae.slides.parts import as_unit, read_part
from haloae.slides.reader import Slide
from haloae.slides.tiling import Box

if TYPE_CHECKING:
    from pathlib import Path

    from haloae.slides.folder import Outcome

LISTED, SHOWN = 200, 12
"""Regions in the page's table, and those that have a picture from near."""
CROP = 320
"""Side of such a picture, in pixels."""
POINTS = 400
"""Most points of a ring as the page draws it."""


def write_page(
    path: "Path",
    outcome: "Outcome",
    findings: Sequence[Finding],
    slide: Slide,
    journal: Journal,
    picture: NDArray[np.uint8],
    unscored: Sequence[tuple[Box, str]],
) -> None:
    """Write the page.

    Args:
        path: of the file.
        outcome: what is said of the slide.
        findings: the highest first.
        slide: for pictures of the regions.
        journal: whose map is laid over the overview.
        picture: the overview, (h, w, 3).
        unscored: box and reason of each tile that was not scored.

    Raises:
        OutputError: it cannot be written.
        MissingExtraError: what makes pages is not installed.
    """
    from haloae.outputs.report.page import write_slide_report

    high, wide = picture.shape[:2]
    heat = _heat(_small_map(journal, (high, wide)) / max(outcome.pixel_threshold, 1e-30))
    listed = [
        {
            "finding": finding,
            "share": finding.area / (outcome.width * outcome.height),
            "path": _path(finding),
            "crop": _crop(slide, finding) if finding.number <= SHOWN else None,
        }
        for finding in findings[:LISTED]
    ]
    write_slide_report(
        path,
        outcome=outcome,
        overview=_uri(PILImage.fromarray(picture), "JPEG", quality=85),
        heat=_uri(heat, "PNG"),
        listed=listed,
        more=len(findings) - len(listed),
        unscored=unscored[:LISTED],
        facts=_facts(outcome),
    )


def _facts(outcome: "Outcome") -> list[tuple[str, str]]:
    """How the slide was scored."""
    size = f"{outcome.width} × {outcome.height} pixels"
    if outcome.microns:
        size += f", {outcome.microns[0]:.4g} µm each"
    high, wide = outcome.tile
    tiles = (
        f"{wide} × {high} pixels, {outcome.tile_overlap} shared with each neighbour: "
        f"{outcome.computed_per_delivered:g} pixels computed for one delivered"
    )
    compared = f"{outcome.calibrated_on}, all good"
    if outcome.calibrated_on.endswith("regions"):
        compared += f"; the score is the highest of {outcome.compared:,} such regions"
    return [
        ("Slide", size),
        ("Read by", outcome.read_by),
        ("Tiles", tiles),
        ("Scale", f"{outcome.scale:g}"),
        ("Compared with", compared),
        ("Pixel threshold", f"{outcome.pixel_threshold:.4g}"),
        ("Highest value of the map", f"{outcome.peak:.4g}"),
    ]


def _small_map(journal: Journal, size: tuple[int, int]) -> NDArray[np.float32]:
    """The highest value within each pixel of an overview, or that of the cell it lies in."""
    high, wide = journal.shape
    rows, columns = (
        np.arange(new) * old // new for new, old in zip(size, (high, wide), strict=True)
    )
    found = np.empty(size, np.float32)
    for row, start in enumerate(rows):
        stop = max(start + 1, rows[row + 1] if row + 1 < size[0] else high)
        values = journal.rows(int(start), int(stop)).max(0)
        found[row] = np.maximum.reduceat(values, columns)
    return found


def _heat(in_thresholds: NDArray[np.float32]) -> PILImage.Image:
    """Yellow to red where the map is above the pixel threshold; elsewhere nothing."""
    strength = ((in_thresholds - 1) / (HOTTEST - 1)).clip(0, 1)
    layer = np.zeros((*strength.shape, 4), np.uint8)
    for channel, ends in enumerate(zip(*HEAT, strict=True)):
        layer[..., channel] = np.interp(strength, (0, 1), ends)
    layer[..., 3] = np.where(in_thresholds > 1, 255 * (HEAT_ALPHA + 0.3 * strength), 0)
    return PILImage.fromarray(layer)


def _path(finding: Finding) -> str:
    """Outline as the data of an SVG path."""
    lines = []
    for polygon in finding.polygons:
        for ring in polygon:
            few = ring[:: max(1, len(ring) // POINTS)]
            lines.append("M" + "L".join(f"{x:.0f},{y:.0f}" for x, y in few) + "Z")
    return "".join(lines)


def _crop(slide: Slide, finding: Finding) -> str | None:
    """A region from near, outlined; None where its surroundings cannot be read."""
    whole = slide.levels[0]
    x, y, width, height = finding.box
    side = min(max(2 * max(width, height), CROP), whole.width, whole.height)
    left = min(max(0, x + width // 2 - side // 2), whole.width - side)
    top = min(max(0, y + height // 2 - side // 2), whole.height - side)
    scale = min(1.0, CROP / side)
    shown = round(side * scale)
    try:
        pixels = read_part(
            slide, round(left * scale), round(top * scale), (shown, shown), scale=scale
        )
    except ImageError:
        return None
    picture = PILImage.fromarray(
        (as_unit(pixels).transpose(1, 2, 0) * 255).round().astype(np.uint8)
    )
    draw = ImageDraw.Draw(picture)
    for polygon in finding.polygons:
        for ring in polygon:
            points = [((px - left) * scale, (py - top) * scale) for px, py in ring]
            draw.line(points, CASING, 4)
            draw.line(points, FOUND, 2)
    return _uri(picture, "JPEG", quality=85)


def _uri(picture: PILImage.Image, kind: str, **how: Any) -> str:  # noqa: ANN401 - Pillow's
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
