"""Procedural pictures, a class each: natural statistics and regular structure, no data needed.

Every function draws one (S, S, 3) float32 picture in [0, 1] from a generator and nothing else.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Picture = NDArray[np.float32]
Plane = NDArray[np.float64]


def draw(number: int, seed: int, size: int) -> Picture:
    """Picture of a number: the families take turns, the rest is drawn."""
    rng = np.random.default_rng([seed, number])
    picture = FAMILIES[number % len(FAMILIES)](rng, size)
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    light = 1 + rng.uniform(-0.5, 0.5) * rows + rng.uniform(-0.5, 0.5) * columns
    picture = np.clip(picture, 0, 1) ** np.exp(rng.normal(0, 0.3)) * light[..., None]
    drawn: Picture = np.clip(picture, 0, 1).astype(np.float32)
    return drawn


def noise(rng: np.random.Generator, size: int, slope: float, stretch: float = 1.0) -> Plane:
    """Coloured noise, amplitude 1/f^slope, stretched along a random direction; mean 0, std 1."""
    angle = rng.uniform(0, np.pi)
    fy, fx = np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij")
    along, across = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
    frequency = np.hypot(along * stretch, across / stretch)
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.normal(size=(size, size))) / frequency**slope
    spectrum[0, 0] = 0
    plane = np.fft.irfft2(spectrum, s=(size, size))
    scaled: Plane = plane / (plane.std() + 1e-9)
    return scaled


def palette(rng: np.random.Generator, count: int) -> Plane:
    """(count, 3) colours around a common one, as in one scene."""
    spread = rng.uniform(0.05, 0.35)
    grey = rng.random() < 0.25
    colours = rng.uniform(0.15, 0.85, 3) + rng.normal(0, spread, (count, 3))
    return np.repeat(colours[:, :1], 3, axis=1) if grey else colours


def tinted(rng: np.random.Generator, plane: Plane) -> Picture:
    """A plane in [0, 1] → a picture, by way of a few colours."""
    colours = palette(rng, int(rng.integers(2, 5)))
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(plane, stops, colours[:, c]) for c in range(3)], -1)


def unit(plane: Plane) -> Plane:
    """Stretch to [0, 1], leaving out the extreme hundredths."""
    low, high = np.quantile(plane, [0.01, 0.99])
    scaled: Plane = np.clip((plane - low) / (high - low + 1e-9), 0, 1)
    return scaled


def coordinates(rng: np.random.Generator, size: int, warp: float) -> tuple[Plane, Plane]:
    """Rotated pixel coordinates, bent by smooth noise of `warp` pixels."""
    rows, columns = np.mgrid[:size, :size].astype(float)
    angle = rng.uniform(0, np.pi)
    u = columns * np.cos(angle) + rows * np.sin(angle) + warp * noise(rng, size, 2)
    v = rows * np.cos(angle) - columns * np.sin(angle) + warp * noise(rng, size, 2)
    return u, v


def coloured_noise(rng: np.random.Generator, size: int) -> Picture:
    """Noise of correlated channels, as clouds, cast metal, plaster."""
    planes = [noise(rng, size, rng.uniform(0.3, 2), np.exp(rng.normal(0, 0.5))) for _ in range(3)]
    mixed = np.stack(planes, -1) @ (rng.normal(0, 0.3, (3, 3)) + np.ones((3, 3)))
    drawn: Picture = palette(rng, 1)[0] + rng.uniform(0.05, 0.15) * mixed
    return drawn


def dead_leaves(rng: np.random.Generator, size: int) -> Picture:
    """Shapes that occlude each other, sizes by a power law, each with a texture of its own."""
    rows, columns = np.mgrid[:size, :size].astype(float)
    count = int(rng.integers(20, 160))
    colours = palette(rng, count)
    grain = noise(rng, size, rng.uniform(0.3, 1.5))
    picture = tinted(rng, unit(grain))
    smallest = rng.uniform(2, 8)
    for colour in colours:
        radius = min(smallest * rng.uniform(0.0, 1) ** -0.5, size / 3)
        y, x = rows - rng.uniform(0, size), columns - rng.uniform(0, size)
        angle = rng.uniform(0, 2 * np.pi)
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        v = v * np.exp(rng.normal(0, 0.4))
        kind = rng.integers(3)
        distance = (
            np.hypot(u, v) if kind == 0
            else np.maximum(abs(u), abs(v)) if kind == 1
            else np.maximum(u, np.maximum(-0.5 * u + 0.87 * v, -0.5 * u - 0.87 * v)) * 1.5
        )  # fmt: skip
        shade = 1 + rng.normal(0, 0.3) * u / radius
        fill = (
            colour * shade[..., None]
            + rng.uniform(0, 0.12) * np.roll(grain, rng.integers(size), axis=1)[..., None]
        )
        inside = np.clip(radius - distance, 0, 1)[..., None]
        picture = picture * (1 - inside) + fill * inside
    return picture


def weave(rng: np.random.Generator, size: int) -> Picture:
    """Threads over and under each other."""
    u, v = coordinates(rng, size, rng.uniform(0, 3))
    period = rng.uniform(4, 24, 2)
    repeat = int(rng.integers(2, 5))
    i, j = np.floor(u / period[0]).astype(int), np.floor(v / period[1]).astype(int)
    across, along = u / period[0] - i - 0.5, v / period[1] - j - 0.5
    over = ((i + j * int(rng.integers(1, repeat + 1))) % repeat) == 0
    round_u, round_v = 1 - (2 * across) ** 2, 1 - (2 * along) ** 2
    height = np.where(over, round_u * (0.6 + 0.4 * round_v), round_v * (0.6 + 0.4 * round_u))
    colours = palette(rng, 2)
    picture = np.where(over[..., None], colours[0], colours[1]) * (0.3 + 0.8 * height[..., None])
    drawn: Picture = (
        picture + rng.uniform(0.01, 0.08) * noise(rng, size, rng.uniform(0, 1))[..., None]
    )
    return drawn


def wood(rng: np.random.Generator, size: int) -> Picture:
    """Rings cut lengthwise, with fibres."""
    u, v = coordinates(rng, size, rng.uniform(1, 8))
    rings = np.hypot(v - rng.uniform(-size, 2 * size), u * rng.uniform(0.02, 0.3))
    grain = np.sin(rings * 2 * np.pi / rng.uniform(4, 30))
    fibre = noise(rng, size, 0.8, rng.uniform(3, 8))
    return tinted(rng, unit(grain + rng.uniform(0.1, 0.8) * fibre))


def stone(rng: np.random.Generator, size: int) -> Picture:
    """Cells with seams: stone, tiles, leather, cast grain."""
    rows, columns = np.mgrid[:size, :size].astype(float)
    count = int(np.exp(rng.uniform(np.log(20), np.log(1500))))
    centres = rng.uniform(-10, size + 10, (count, 2))
    bend = rng.uniform(0, 3)
    at = np.stack([rows + bend * noise(rng, size, 1.5), columns + bend * noise(rng, size, 1.5)], -1)
    distance, nearest = cKDTree(centres).query(at.reshape(-1, 2), k=2)
    seam = (distance[:, 1] - distance[:, 0]).reshape(size, size)
    seam = np.clip(seam / rng.uniform(0.5, 4), 0, 1)[..., None]
    colours = palette(rng, count)
    picture = colours[nearest[:, 0]].reshape(size, size, 3) * (1 - rng.uniform(0, 0.8) * (1 - seam))
    drawn: Picture = (
        picture + rng.uniform(0, 0.1) * noise(rng, size, rng.uniform(0.2, 1.2))[..., None]
    )
    return drawn


def fractal(rng: np.random.Generator, size: int) -> Picture:
    """Density of an iterated function system, coloured by the map taken last."""
    maps = int(rng.integers(2, 7))
    linear = rng.normal(0, 0.5, (maps, 2, 2))
    # Contractive maps stay on the picture.
    linear /= np.maximum(np.linalg.norm(linear, 2, axis=(1, 2)) / rng.uniform(0.5, 0.85), 1)[
        :, None, None
    ]
    offset = rng.uniform(-1, 1, (maps, 2))
    points = rng.uniform(-1, 1, (4000, 2))
    heat, colour = np.zeros(size * size), np.zeros((size * size, 3))
    colours = palette(rng, maps)
    for turn in range(60):
        chosen = rng.integers(maps, size=len(points))
        points = np.einsum("nij,nj->ni", linear[chosen], points) + offset[chosen]
        if turn == 15:
            low, span = points.min(0), np.ptp(points, axis=0).max() + 1e-6
        if turn >= 15:
            cells = ((points - low) / span * (size - 1)).astype(int).clip(0, size - 1)
            flat = cells[:, 0] * size + cells[:, 1]
            np.add.at(heat, flat, 1)
            np.add.at(colour, flat, colours[chosen])
    mean = colour / np.maximum(heat, 1)[:, None]
    strength = np.clip(np.log1p(heat) / np.log1p(np.quantile(heat, 0.999) + 1), 0, 1)[:, None]
    back = tinted(rng, unit(noise(rng, size, rng.uniform(1, 2))))
    drawn: Picture = back * (1 - strength).reshape(size, size, 1) + (mean * strength).reshape(
        size, size, 3
    )
    return drawn


def waves(rng: np.random.Generator, size: int) -> Picture:
    """Sines of sines: what a shader draws, from stripes to moiré."""
    u, v = np.mgrid[:size, :size] / size * rng.uniform(4, 30)
    for _ in range(int(rng.integers(1, 4))):
        a, b, c, d = rng.normal(0, 1, 4)
        u, v = u + np.sin(a * v + b), v + np.sin(c * u + d)
    plane = np.sin(u * rng.normal(0, 1) + v * rng.normal(0, 1)) + np.cos(u * rng.normal(0, 1))
    if rng.random() < 0.4:
        plane = np.floor(plane * rng.uniform(1, 3))
    return tinted(rng, unit(plane + 0.05 * noise(rng, size, 0.5)))


def parts(rng: np.random.Generator, size: int) -> Picture:
    """A few shaded objects in rows on a plain ground: caps, screws, pads."""
    rows, columns = np.mgrid[:size, :size].astype(float)
    picture = tinted(rng, unit(noise(rng, size, rng.uniform(1, 2))) * rng.uniform(0.1, 0.5))
    pitch = rng.uniform(size / 6, size / 1.5)
    radius = pitch * rng.uniform(0.2, 0.48)
    y, x = (rows + rng.uniform(0, pitch)) % pitch, (columns + rng.uniform(0, pitch)) % pitch
    y, x = y - pitch / 2, x - pitch / 2
    corners = rng.integers(3, 12)
    turn = np.arctan2(y, x) + rng.uniform(0, 6)
    edge = radius * (1 - rng.uniform(0, 0.3) * np.cos(corners * turn))
    distance = np.hypot(x, y)
    light = 0.6 + 0.4 * (x * rng.normal() + y * rng.normal()) / radius
    ringed = np.sin(distance / radius * rng.uniform(2, 20)) * rng.uniform(0, 0.3)
    fill = palette(rng, 1)[0] * (light + ringed)[..., None]
    inside = np.clip(edge - distance, 0, 1)[..., None]
    picture = picture * (1 - inside) + fill * inside
    drawn: Picture = picture + rng.uniform(0, 0.05) * noise(rng, size, rng.uniform(0, 1))[..., None]
    return drawn


FAMILIES: tuple[Callable[[np.random.Generator, int], Picture], ...] = (
    coloured_noise, dead_leaves, weave, wood, stone, fractal, waves, parts,
)  # fmt: skip
