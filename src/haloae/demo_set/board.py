"""A circuit board with its parts: each a little off its place, some missing or swapped."""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from haloae.demo_set.layout import (
    BOARD,
    CORNER,
    MARGIN,
    PARTS,
    SCALE,
    SIZES,
    UPRIGHT,
    Part,
    bare_board,
)
from haloae.demo_set.parts import draw_part
from haloae.demo_set.scene import (
    SIZE,
    Array,
    Pose,
    Surface,
    blot,
    curve,
    distance_to,
    fine_noise,
    ramp,
    sample,
    smooth_noise,
)

MASKED = np.array([0.012, 0.105, 0.050], np.float32)
"""The green mask over the bare material."""
TRACE = np.array([0.028, 0.185, 0.080], np.float32)
"""The same over copper."""
COPPER = np.array([0.68, 0.46, 0.30], np.float32)
TINNED = np.array([0.52, 0.50, 0.44], np.float32)
WHITE = np.array([0.62, 0.63, 0.58], np.float32)
DARK = np.array([0.01, 0.01, 0.01], np.float32)
TRAY = np.array([0.022, 0.023, 0.026], np.float32)
THICKNESS = 5.0
DENTABLE = ("crystal", "electrolytic")
"""Kinds of soft sheet metal."""
POLAR = ("electrolytic", "tantalum")
"""Kinds that look otherwise the wrong way round, and fit no other pads."""
ALIKE = ("capacitor", "diode", "led", "resistor")
"""Kinds that fit the same pads."""
LOOSE = (*ALIKE, "crystal", "electrolytic", "tantalum")
"""Kinds that a machine places, and may forget."""
DEFECTS = ("dent", "missing_part", "scratch", "stain", "swapped_part")


class _Blank(NamedTuple):
    """All that chance decides about a board, its parts aside."""

    pose: Pose
    grain: Array
    waves: Array
    """(SIZE, SIZE) unevenness of the mask."""


def board(rng: Generator, defect: str | None) -> tuple[Surface, Surface]:
    """A board without its defect and with it; the same twice where `defect` is None."""
    # A fixture holds it, so that it moves little.
    middle = BOARD / 2 + rng.uniform(-0.4, 0.4, 2)
    pose = Pose(
        angle=rng.uniform(-0.006, 0.006),
        scale=SIZE / (BOARD + 2 * MARGIN) * rng.uniform(0.996, 1.004),
        middle=(float(middle[0]), float(middle[1])),
    )
    blank = _Blank(pose, fine_noise(rng, (0.7, 0.7)), smooth_noise(rng, 12))
    parts = [_placed(part, rng) for part in PARTS]
    before = _assemble(blank, parts)
    if defect is None:
        return before, before
    if defect == "missing_part":
        gone = rng.choice([i for i, part in enumerate(parts) if part.kind in LOOSE])
        return before, _assemble(blank, parts[:gone] + parts[gone + 1 :])
    if defect == "swapped_part":
        return before, _assemble(blank, _swapped(parts, rng))
    after = before.copy()
    if defect == "dent":
        _dent(after, blank.pose, parts, rng)
    else:
        {"scratch": _scratch, "stain": _stain}[defect](after, rng)
    return before, after


def _placed(part: Part, rng: Generator) -> Part:
    """A part as the machine sets it down."""
    x, y = rng.normal(0, 0.15, 2)
    return part._replace(x=part.x + x, y=part.y + y, turn=part.turn + rng.normal(0, 0.007))


def _assemble(blank: _Blank, parts: list[Part]) -> Surface:
    product = blank.pose.on_product()
    x, y = ((axis + MARGIN) * SCALE for axis in product)
    copper, metal, white, hole = (sample(layer, x, y) for layer in bare_board())
    albedo = np.broadcast_to(MASKED, (SIZE, SIZE, 3)).copy()
    for cover, colour in ((copper, TRACE), (white, WHITE), (metal, TINNED), (hole, DARK)):
        albedo += cover[..., None] * (colour - albedo)
    albedo *= (1 + 0.05 * blank.grain + 0.03 * blank.waves)[..., None]
    is_masked = (1 - metal) * (1 - hole)
    surface = Surface(
        albedo=albedo,
        height=0.7 * copper * (1 - metal) + 0.3 * metal - 3.0 * hole + 0.1 * blank.waves,
        gloss=0.035 * is_masked + 0.22 * metal * (1 - hole),
    )
    _lay_in_tray(surface, *product)
    for part in parts:
        draw_part(surface, part, pose=blank.pose, product=product, grain=blank.grain)
    return surface


def _lay_in_tray(surface: Surface, x: Array, y: Array) -> None:
    """Turn what is beyond the board's edge into the matt tray below it."""
    dx, dy = (np.abs(axis - BOARD / 2) - BOARD / 2 + CORNER for axis in (x, y))
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)
    beyond = ramp(-0.4, 0.4, outside - CORNER)
    surface.albedo += beyond[..., None] * (TRAY - surface.albedo)
    surface.height += beyond * (-THICKNESS - surface.height)
    surface.gloss *= 1 - beyond


def _swapped(parts: list[Part], rng: Generator) -> list[Part]:
    """A wrong part in one place, or the right one the wrong way round."""
    place = rng.choice([i for i, part in enumerate(parts) if part.kind in (*ALIKE, *POLAR)])
    part = parts[place]
    if part.kind in ALIKE:
        others = [kind for kind in ALIKE if kind != part.kind]
        part = part._replace(kind=others[rng.integers(len(others))])
    else:
        part = part._replace(turn=part.turn + 2 * UPRIGHT)
    return [*parts[:place], part, *parts[place + 1 :]]


def _dent(surface: Surface, pose: Pose, parts: list[Part], rng: Generator) -> None:
    """Sheet metal pushed in, with the paint of what hit it."""
    soft = [part for part in parts if part.kind in DENTABLE]
    part = soft[rng.integers(len(soft))]
    length, width = SIZES[part.kind]
    reach = min(length, width)
    radius = rng.uniform(0.45, 0.65) * reach if reach > 10 else 0.9 * reach
    room = np.maximum(np.array([length, width]) - radius - 2, 0) * 0.8
    x, y = rng.uniform(-room, room)
    spot = np.maximum(
        blot(rng, pose.in_image(part.x + x, part.y + y), radius * pose.scale, 0.12), 0
    )
    bowl = ramp(0, 0.9, spot)
    surface.height -= np.float32(rng.uniform(6.5, 9.5)) * bowl
    scuffed = bowl * ramp(-0.3, 1.2, smooth_noise(rng, 5)) * np.float32(0.5)
    surface.albedo *= (1 - scuffed)[..., None]
    surface.gloss *= 1 - scuffed


def _scratch(surface: Surface, rng: Generator) -> None:
    """A tool that slipped: a bundle of lines down to the copper, deeper in places."""
    x, y = rng.uniform(70, SIZE - 70, 2)
    points = curve(rng, (float(x), float(y)), rng.uniform(70, 115), 0.12)
    for offset in rng.normal(0, 4.5, (rng.integers(5, 9), 2)):
        distance, place = distance_to(points + offset.astype(np.float32), 5)
        width = rng.uniform(1.0, 2.0) * np.sqrt(np.maximum(1 - (2 * place - 1) ** 2, 0))
        cover = np.clip(width - distance + 0.5, 0, 1) * ramp(-1.2, 0.2, smooth_noise(rng, 9))
        surface.albedo += (0.9 * cover)[..., None] * (COPPER - surface.albedo)
        surface.height -= 1.2 * cover
        surface.gloss *= 1 - 0.6 * cover


def _stain(surface: Surface, rng: Generator) -> None:
    """Flux that was not washed off, amber and glossy, or the white bloom that water leaves."""
    x, y = rng.uniform(65, SIZE - 65, 2)
    spot = blot(rng, (float(x), float(y)), rng.uniform(22, 34), 0.2)
    rim = ramp(0, 0.08, spot) * ramp(0.32, 0.1, spot)
    pooled = ramp(0, 0.15, spot) * np.float32(rng.uniform(0.7, 0.95)) + 0.3 * rim
    if rng.random() < 0.6:
        amber = np.array((0.80, 0.52, 0.20), np.float32)
        surface.albedo *= 1 + pooled[..., None] * (amber - 1)
        surface.albedo += pooled[..., None] * np.array((0.115, 0.062, 0.008), np.float32)
        surface.gloss += 0.05 * pooled
    else:
        patchy = pooled * ramp(-1.6, 0.8, smooth_noise(rng, 5))
        surface.albedo += (0.7 * patchy)[..., None] * (np.float32(0.5) - surface.albedo)
        surface.gloss *= 1 - 0.8 * patchy
