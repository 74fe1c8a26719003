"""A small camera: a surface with colour, height and gloss becomes a photograph under some light.

Axes: x to the right, y down, z towards the camera, all in pixels. Reflectances are linear RGB.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image as PILImage
from scipy.ndimage import gaussian_filter, map_coordinates

SIZE = 224
"""Side of every image, in pixels."""
Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

GAMMA = 2.2
AMBIENT = 0.35
SHINE = 14
"""Exponent of the specular lobe: satin rather than mirror."""
VISIBLE = 4 / 255
"""Smallest difference of encoded values that counts as a change."""
VIGNETTE = 0.24
"""Share of the light that the lens loses at the middle of an edge; twice that in a corner."""
SHADOW_STEPS = 7


@dataclass(slots=True)
class Surface:
    """What lies before the camera.

    Attributes:
        albedo: (SIZE, SIZE, 3) reflectance, linear RGB in 0..1.
        height: (SIZE, SIZE) in pixels, towards the camera.
        gloss: (SIZE, SIZE) strength of the highlight, 0..1.
    """

    albedo: Array
    height: Array
    gloss: Array

    def copy(self) -> "Surface":
        """One that can be damaged without harm to this one."""
        return Surface(self.albedo.copy(), self.height.copy(), self.gloss.copy())


class Pose(NamedTuple):
    """How the product lies under the camera.

    Attributes:
        angle: radians it is turned by, about the image's middle.
        scale: pixels per unit of the product.
        middle: the point of the product that is in the image's middle.
    """

    angle: float
    scale: float
    middle: tuple[float, float]

    def on_product(self) -> tuple[Array, Array]:
        """Coordinates on the product of every image pixel, x and y, each (SIZE, SIZE)."""
        y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32) - (SIZE - 1) / 2
        cosine, sine = math.cos(self.angle) / self.scale, math.sin(self.angle) / self.scale
        return cosine * x + sine * y + self.middle[0], cosine * y - sine * x + self.middle[1]

    def in_image(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the product is seen."""
        cosine, sine = math.cos(self.angle) * self.scale, math.sin(self.angle) * self.scale
        x, y, centre = x - self.middle[0], y - self.middle[1], (SIZE - 1) / 2
        return cosine * x - sine * y + centre, sine * x + cosine * y + centre


class Light(NamedTuple):
    """One lamp and the room's light."""

    azimuth: float
    elevation: float
    colour: tuple[float, float, float]
    """Exposure and colour temperature, a factor for R, G and B."""
    slope: tuple[float, float]
    """Fall-off over the image, to the right and down."""


def some_light(rng: Generator) -> Light:
    """Light from the upper left, never twice the same."""
    exposure, warmth, tint = rng.uniform(0.95, 1.19), rng.uniform(-0.04, 0.04), rng.normal(0, 0.01)
    return Light(
        azimuth=math.pi * rng.uniform(1.24, 1.31),
        elevation=math.pi * rng.uniform(0.27, 0.31),
        colour=(exposure * (1 + warmth), exposure * (1 + tint), exposure * (1 - warmth)),
        slope=(rng.uniform(-0.06, 0.06), rng.uniform(-0.06, 0.06)),
    )


def shade(surface: Surface, light: Light) -> Array:
    """The light that leaves a surface towards the camera: (SIZE, SIZE, 3), linear."""
    slope_y, slope_x = np.gradient(surface.height)
    flat = math.cos(light.elevation)
    lamp = (
        math.cos(light.azimuth) * flat,
        math.sin(light.azimuth) * flat,
        math.sin(light.elevation),
    )
    # Blinn and Phong: the highlight is where the normal halves the angle of lamp and camera.
    half = math.sqrt(2 + 2 * lamp[2])
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    diffuse = (lamp[2] - slope_x * lamp[0] - slope_y * lamp[1]) / length
    mirror = np.maximum(diffuse + 1 / length, 0) / half
    lit = 1 - _shadow(surface.height, lamp)
    hollow = np.maximum(gaussian_filter(surface.height, 4, truncate=2) - surface.height, 0)
    direct = lit * np.maximum(diffuse, 0) / lamp[2] * (1 - AMBIENT)
    seen = surface.albedo * (AMBIENT * np.exp(-0.25 * hollow) + direct)[..., None]
    seen += (surface.gloss * lit * mirror**SHINE)[..., None]
    place = np.linspace(-1, 1, SIZE, dtype=np.float32)
    falloff = 1 + light.slope[0] * place + light.slope[1] * place[:, None]
    falloff *= 1 - VIGNETTE * (place**2 + place[:, None] ** 2)
    return np.asarray(seen * falloff[..., None] * np.array(light.colour, np.float32), np.float32)


def _shadow(height: Array, lamp: tuple[float, float, float]) -> Array:
    """Share of the lamp that what stands higher, towards it, takes away: (SIZE, SIZE), 0..1."""
    across = math.hypot(lamp[0], lamp[1])
    padded = np.pad(height, SHADOW_STEPS, mode="edge")
    covered = np.zeros_like(height)
    for step in range(1, SHADOW_STEPS + 1):
        x = SHADOW_STEPS + round(step * lamp[0] / across)
        y = SHADOW_STEPS + round(step * lamp[1] / across)
        above = padded[y : y + SIZE, x : x + SIZE] - height - step * lamp[2] / across
        np.maximum(covered, above, out=covered)
    return np.asarray(gaussian_filter(np.minimum(covered, 1), 0.8, truncate=3), np.float32)


def changed_pixels(before: Surface, after: Surface, light: Light) -> Mask:
    """Where a defect changes the material, or how it looks under the light, to the pixel."""
    if before is after:
        return np.zeros((SIZE, SIZE), dtype=bool)
    seen = np.abs(encode(shade(after, light)) - encode(shade(before, light))).max(axis=-1)
    return np.asarray(
        (seen > VISIBLE)
        | (np.abs(after.albedo - before.albedo).max(axis=-1) > 0.02)
        | (np.abs(after.height - before.height) > 0.15)
    )


def photograph(seen: Array, rng: Generator) -> NDArray[np.uint8]:
    """What the camera makes of it: focus, shot and read noise, encoding."""
    focus = rng.uniform(0.7, 0.88)
    blurred = np.stack([gaussian_filter(seen[..., i], focus, truncate=3) for i in range(3)], -1)
    noise = rng.standard_normal(seen.shape, dtype=np.float32)
    spread = np.sqrt(rng.uniform(0.00008, 0.0003) * np.maximum(blurred, 0) + 0.0025**2)
    return np.rint(255 * encode(blurred + spread * noise)).astype(np.uint8)


def encode(linear: Array) -> Array:
    """Linear light to the values of an image file, 0..1."""
    return np.clip(linear, 0, 1) ** np.float32(1 / GAMMA)


def smooth_noise(rng: Generator, scale: float) -> Array:
    """Noise of unit spread that changes over about `scale` pixels: (SIZE, SIZE)."""
    coarse = max(4, round(SIZE / scale) + 3)
    values = rng.standard_normal((coarse, coarse)).astype(np.float32)
    large = PILImage.fromarray(values).resize((SIZE, SIZE), PILImage.Resampling.BICUBIC)
    return np.asarray(large) * np.float32(1.3)


def fine_noise(rng: Generator, sigma: tuple[float, float]) -> Array:
    """Grain or fibres of unit spread, `sigma` pixels long down and across: (SIZE, SIZE)."""
    noise = gaussian_filter(
        rng.standard_normal((SIZE, SIZE), dtype=np.float32), sigma, mode="wrap", truncate=3
    )
    return np.asarray(noise / noise.std(), dtype=np.float32)


def ramp(low: float, high: float, values: Array) -> Array:
    """0 up to `low`, 1 from `high`, smooth between; `high` may be the lower one."""
    share = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


def curve(rng: Generator, centre: tuple[float, float], length: float, bend: float) -> Array:
    """Points along a bent line, 0.5 pixel apart: (points, 2), x and y."""
    angle = rng.uniform(0, np.pi)
    along = np.linspace(-0.5, 0.5, max(4, int(2 * length)))
    off = bend * (rng.normal() * (along**2 - 1 / 12) + rng.normal() * 2 * along**3)
    along, off = length * along, length * off
    x = centre[0] + np.cos(angle) * along - np.sin(angle) * off
    y = centre[1] + np.sin(angle) * along + np.cos(angle) * off
    return np.stack([x, y], -1).astype(np.float32)


def distance_to(points: Array, reach: float) -> tuple[Array, Array]:
    """Distance of every pixel to a curve, and where along it: both (SIZE, SIZE).

    Beyond `reach` the distance is just larger than that. The place is 0 at one end, 1 at the other.
    """
    distance = np.full((SIZE, SIZE), 2 * reach, np.float32)
    place = np.zeros((SIZE, SIZE), np.float32)
    side = int(np.ceil(reach))
    for share, (x, y) in zip(np.linspace(0, 1, len(points)), points, strict=True):
        left, top = max(0, int(x) - side), max(0, int(y) - side)
        window = (slice(top, max(0, int(y) + side + 2)), slice(left, max(0, int(x) + side + 2)))
        near = distance[window]
        rows, columns = np.ogrid[top : top + near.shape[0], left : left + near.shape[1]]
        new = np.sqrt((columns - x) ** 2 + (rows - y) ** 2).astype(np.float32)
        place[window] = np.where(new < near, share, place[window])
        np.minimum(near, new, out=near)
    return distance, place


def blot(rng: Generator, centre: tuple[float, float], radius: float, ragged: float) -> Array:
    """Distance into an irregular spot, 1 in its middle, 0 on its edge: (SIZE, SIZE)."""
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(0.75, 1.3)
    x, y = columns - centre[0], rows - centre[1]
    along = (np.cos(angle) * x + np.sin(angle) * y) * stretch
    across = (np.cos(angle) * y - np.sin(angle) * x) / stretch
    edge = 1 + ragged * smooth_noise(rng, radius / 1.3) + 0.35 * ragged * smooth_noise(rng, 3)
    return np.asarray(edge - np.hypot(along, across) / radius, np.float32)


def sample(layer: Array, x: Array, y: Array) -> Array:
    """A layer's value at fractional places, 0 outside of it."""
    values = map_coordinates(layer, [y, x], order=1, mode="constant")
    return np.asarray(values, dtype=np.float32)
