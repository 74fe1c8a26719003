"""A woven cloth: warp and weft as round threads, each over and under the others, with fibres."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

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
    smooth_noise,
)

PITCH = 6.0
"""Pixels from thread to thread."""
THREADS = 96
"""More than ever are in view, in each direction."""
WARP = np.array([0.075, 0.12, 0.21], np.float32)
WEFT = np.array([0.31, 0.34, 0.37], np.float32)
GROUND = np.array([0.012, 0.012, 0.014], np.float32)
"""Of what is seen through a gap."""
DEPTH = -4.0
"""Height of that."""
DEFECTS = ("cut", "hole", "missing_thread", "pull", "stain")


@dataclass(frozen=True, slots=True)
class _Cloth:
    """All that chance decides about a piece of cloth.

    Attributes:
        x: (SIZE, SIZE) where each pixel lies across the warp, in threads.
        y: the same across the weft.
        warp_width, weft_width: (SIZE, SIZE) share of the pitch a thread fills.
        warp_shade, weft_shade: (THREADS,) each thread's brightness.
        warp_fibres, weft_fibres: (SIZE, SIZE) fine streaks along the threads.
        relief: (SIZE, SIZE) how the cloth lies, in pixels.
    """

    x: Array
    y: Array
    warp_width: Array
    weft_width: Array
    warp_shade: Array
    weft_shade: Array
    warp_fibres: Array
    weft_fibres: Array
    relief: Array


def fabric(rng: Generator, defect: str | None) -> tuple[Surface, Surface]:
    """A piece of cloth without its defect and with it; the same twice where `defect` is None."""
    cloth = _some_cloth(rng)
    before = _weave(cloth)
    if defect is None:
        return before, before
    if defect == "missing_thread":
        return before, _weave(_without_thread(cloth, rng))
    if defect == "pull":
        return before, _pulled(cloth, rng)
    after = before.copy()
    {"cut": _cut, "hole": _hole, "stain": _stain}[defect](after, cloth, rng)
    return before, after


def _some_cloth(rng: Generator) -> _Cloth:
    middle = rng.uniform(0.3, 0.6, 2) * THREADS
    pose = Pose(
        angle=rng.uniform(-0.03, 0.03),
        scale=PITCH * rng.uniform(0.98, 1.02),
        middle=(float(middle[0]), float(middle[1])),
    )
    x, y = pose.on_product()
    x, y = x + 0.07 * smooth_noise(rng, 60), y + 0.07 * smooth_noise(rng, 60)
    widths = rng.normal(0.95, 0.02, (2, THREADS)).astype(np.float32)
    shades = rng.normal(1, 0.05, (2, THREADS)).astype(np.float32)
    slubs = 0.03 * fine_noise(rng, (9, 1.5)), 0.03 * fine_noise(rng, (1.5, 9))
    return _Cloth(
        x=x,
        y=y,
        warp_width=widths[0][x.astype(int)] + slubs[0],
        weft_width=widths[1][y.astype(int)] + slubs[1],
        warp_shade=shades[0],
        weft_shade=shades[1],
        warp_fibres=fine_noise(rng, (2.2, 0.55)),
        weft_fibres=fine_noise(rng, (0.55, 2.2)),
        relief=2.0 * smooth_noise(rng, 80) + 0.25 * smooth_noise(rng, 35),
    )


def _weave(cloth: _Cloth) -> Surface:
    """Twill: each warp thread passes over two of the weft and under one, a step on each time."""
    column, row = np.floor(cloth.x).astype(int), np.floor(cloth.y).astype(int)
    a, b = (cloth.x - column - 0.5) * 2, (cloth.y - row - 0.5) * 2

    def over(i: "np.ndarray", j: "np.ndarray") -> Array:
        return np.where((i + j) % 3 == 0, -1, 1).astype(np.float32)

    here = over(column, row)
    along_y = over(column, row + np.where(b > 0, 1, -1))
    along_x = over(column + np.where(a > 0, 1, -1), row)
    warp_rise = here + (along_y - here) * 0.5 * ramp(0.2, 1.0, np.abs(b))
    weft_rise = -(here + (along_x - here) * 0.5 * ramp(0.2, 1.0, np.abs(a)))
    warp = 1.1 * warp_rise + _round(a / cloth.warp_width) + 0.16 * cloth.warp_fibres
    weft = 1.1 * weft_rise + _round(b / cloth.weft_width) + 0.16 * cloth.weft_fibres
    share = ramp(-0.35, 0.35, warp - weft)[..., None]
    warp_tone = cloth.warp_shade[column] * (1 + 0.17 * cloth.warp_fibres)
    weft_tone = cloth.weft_shade[row] * (1 + 0.11 * cloth.weft_fibres)
    albedo = share * WARP * warp_tone[..., None] + (1 - share) * WEFT * weft_tone[..., None]
    top = np.maximum(warp, weft)
    is_gap = ramp(-1.6, -3.0, top)
    albedo += is_gap[..., None] * (GROUND - albedo)
    return Surface(
        albedo=np.clip(albedo, 0.005, 0.9).astype(np.float32),
        height=(np.maximum(top, DEPTH) + cloth.relief).astype(np.float32),
        gloss=np.full((SIZE, SIZE), 0.012, np.float32),
    )


def _round(across: Array) -> Array:
    """Height of a thread over its axis, `across` being -1 and 1 at its sides."""
    top = 2.2 * np.sqrt(np.maximum(1 - across**2, 0))
    return np.asarray(top - 24.0 * np.maximum(np.abs(across) - 1, 0), np.float32)


def _somewhere(rng: Generator, margin: float) -> tuple[float, float]:
    x, y = rng.uniform(margin, SIZE - margin, 2)
    return float(x), float(y)


def _without_thread(cloth: _Cloth, rng: Generator) -> _Cloth:
    """A thread that broke: gone over some length, and those across it, now loose, draw together."""
    x, y = _somewhere(rng, 30)
    half = rng.uniform(55, 100)
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    is_warp = rng.random() < 0.5
    across, along = (cloth.x, rows - y) if is_warp else (cloth.y, columns - x)
    axis = np.floor(across[int(y), int(x)]) + 0.5
    gone = ramp(half + 4, half - 4, np.abs(along))
    own = 1 - gone * (np.abs(across - axis) <= 0.5)
    others = 1 - 0.45 * gone * ramp(1.2, 0.4, np.abs(across - axis))
    warp, weft = (own, others) if is_warp else (others, own)
    # A thread of no width at all would divide by zero.
    return replace(
        cloth,
        warp_width=np.maximum(cloth.warp_width * warp, 0.02),
        weft_width=np.maximum(cloth.weft_width * weft, 0.02),
    )


def _pulled(cloth: _Cloth, rng: Generator) -> Surface:
    """A snag: something caught the cloth, drew the threads aside and left a pucker and a loop."""
    x, y = _somewhere(rng, 40)
    spot = np.maximum(blot(rng, (x, y), rng.uniform(24, 34), 0.1), 0)
    bump = ramp(0, 0.8, spot)
    angle, pull = rng.uniform(0, 2 * np.pi), rng.uniform(1.6, 2.6)
    surface = _weave(
        replace(
            cloth,
            x=cloth.x + pull * np.cos(angle) * bump,
            y=cloth.y + pull * np.sin(angle) * bump,
            relief=cloth.relief + rng.uniform(10, 15) * bump,
        )
    )
    distance, place = distance_to(curve(rng, (x, y), rng.uniform(26, 42), 1.2), 4)
    loop = ramp(2.8, 1.9, distance)
    colour = (WARP, WEFT)[rng.integers(2)]
    tone = (1.05 + 0.12 * cloth.warp_fibres)[..., None]
    surface.albedo += loop[..., None] * (colour * tone - surface.albedo)
    surface.height += loop * (3 + 12 * place * (1 - place) + np.sqrt(np.maximum(2.8 - distance, 0)))
    return surface


def _cut(surface: Surface, cloth: _Cloth, rng: Generator) -> None:
    """A slit from a blade, gaping in the middle, with frayed sides."""
    points = curve(rng, _somewhere(rng, 45), rng.uniform(45, 90), 0.15)
    distance, place = distance_to(points, 8)
    frayed = 0.5 * (cloth.warp_fibres + cloth.weft_fibres)
    gape = rng.uniform(1.9, 3.2) * np.sqrt(np.maximum(1 - (2 * place - 1) ** 2, 0))
    _open(surface, gape - distance + 0.45 * frayed, frayed)
    _fray(surface, rng, points[rng.integers(len(points), size=7)], length=7)


def _hole(surface: Surface, cloth: _Cloth, rng: Generator) -> None:
    """Torn or worn through: nothing in the middle, loose fibres around it."""
    radius, (x, y) = rng.uniform(9, 15), _somewhere(rng, 30)
    spot = radius * blot(rng, (x, y), radius, 0.16)
    frayed = 0.5 * (cloth.warp_fibres + cloth.weft_fibres)
    _open(surface, spot + 0.9 * frayed, frayed)
    angles = rng.uniform(0, 2 * np.pi, 10)
    edge = 0.8 * radius * np.stack([np.cos(angles), np.sin(angles)], -1)
    _fray(surface, rng, edge + np.array([x, y]), length=11)


def _open(surface: Surface, inside: Array, frayed: Array) -> None:
    """Take the cloth away where `inside` is positive, in pixels from the edge."""
    fringe = ramp(-3.5, -0.8, inside) * ramp(1.0, -0.2, inside) * ramp(-0.8, 0.6, frayed)
    surface.albedo += (0.6 * fringe)[..., None] * (0.8 * WEFT - surface.albedo)
    gone = ramp(-0.4, 0.6, inside)
    surface.albedo += gone[..., None] * (GROUND - surface.albedo)
    surface.height += gone * (surface.height.min() - 1 - surface.height)
    surface.gloss *= 1 - gone


def _fray(surface: Surface, rng: Generator, places: Array, length: float) -> None:
    """Loose ends of threads, lying where they fell."""
    level = np.float32(np.median(surface.height))
    for x, y in places:
        end = curve(rng, (float(x), float(y)), length * rng.uniform(0.7, 1.3), 0.5)
        distance, _ = distance_to(end, 3)
        cover = ramp(1.2, 0.4, distance) * np.float32(0.85)
        colour = (WARP, WEFT)[rng.integers(2)]
        surface.albedo += cover[..., None] * (colour * rng.uniform(0.8, 1.2) - surface.albedo)
        surface.height += cover * (level - surface.height)


def _stain(surface: Surface, cloth: _Cloth, rng: Generator) -> None:
    """Oil, coffee or ink, soaked in along the threads and darker where it dried last."""
    radius = rng.uniform(20, 34)
    wicked = blot(rng, _somewhere(rng, 30), radius, 0.16)
    wicked += 0.035 * (cloth.warp_fibres + cloth.weft_fibres)
    liquid = np.array(
        [(0.45, 0.41, 0.32), (0.50, 0.33, 0.19), (0.26, 0.29, 0.48)][rng.integers(3)], np.float32
    )
    soaked = ramp(0, 0.22, wicked) * rng.uniform(0.75, 1.0)
    rim = ramp(0, 0.1, wicked) * ramp(0.35, 0.12, wicked) * rng.uniform(0.1, 0.5)
    strength = np.minimum(soaked * 0.85 + rim, 1)[..., None]
    surface.albedo *= 1 + strength * (liquid - 1)
