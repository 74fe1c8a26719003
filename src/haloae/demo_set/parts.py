"""What stands on the circuit board: a drawing for every kind of part, with its solder."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from haloae.demo_set.layout import SIZES, Part, bitmap
from haloae.demo_set.scene import Array, Pose, Surface, ramp, sample

Colour = tuple[float, float, float]
BLACK: Colour = (0.022, 0.022, 0.024)
TIN: Colour = (0.46, 0.46, 0.45)
STEEL: Colour = (0.44, 0.44, 0.43)
PRINT: Colour = (0.55, 0.55, 0.52)
REACH = 5.0
"""Units around a part that its drawing may touch."""


class _Stamp(NamedTuple):
    """The pixels around a part, in its own axes.

    Attributes:
        surface: views of the board's surface, changed in place.
        p: along the part, in pixels from its middle.
        q: across it.
        grain: fine noise of unit spread.
    """

    surface: Surface
    p: Array
    q: Array
    grain: Array

    def lay(
        self,
        inside: Array,
        colour: Colour,
        *,
        height: float | Array,
        gloss: float = 0.03,
        bevel: float = 1.5,
        grain: float = 0.06,
    ) -> None:
        """Cover what `inside`, in pixels from the edge, says, with edges falling over `bevel`."""
        cover = np.clip(inside + 0.5, 0, 1).astype(np.float32)
        surface, texture = self.surface, (1 + grain * self.grain)[..., None]
        surface.albedo += cover[..., None] * (
            np.asarray(colour, np.float32) * texture - surface.albedo
        )
        surface.gloss += cover * (gloss - surface.gloss)
        top = height - bevel * ramp(bevel, 0, inside) + 0.4 * grain * self.grain
        surface.height += cover * (top - surface.height)

    def box(self, x: float, y: float, width: float, height: float, corner: float = 1.0) -> Array:
        """Distance into a rounded box of these half sizes."""
        dx = np.abs(self.p - x) - width + corner
        dy = np.abs(self.q - y) - height + corner
        outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
        return np.asarray(corner - outside - np.minimum(np.maximum(dx, dy), 0), np.float32)

    def disc(self, x: float, y: float, radius: float) -> Array:
        """Distance into a disc."""
        return np.asarray(radius - np.hypot(self.p - x, self.q - y), np.float32)

    def mark(self, text: str, *, x: float = 0, y: float = 0, cell: float, colour: Colour) -> None:
        """Print on top, centred, without changing height."""
        letters = bitmap(text)
        rows, columns = letters.shape
        fine = np.kron(letters, np.ones((4, 4), np.float32))
        column = ((self.p - x) / cell + columns / 2) * 4 - 0.5
        row = ((self.q - y) / cell + rows / 2) * 4 - 0.5
        cover = (0.85 * sample(fine, column, row))[..., None]
        self.surface.albedo += cover * (np.asarray(colour, np.float32) - self.surface.albedo)


def draw_part(
    surface: Surface, part: Part, *, pose: Pose, product: tuple[Array, Array], grain: Array
) -> None:
    """Solder a part on: changes the surface in place.

    Args:
        surface: the board so far.
        part: what and where, on the board.
        pose: of the board.
        product: what `Pose.on_product` gave.
        grain: fine noise of unit spread, (SIZE, SIZE).
    """
    reach = (np.hypot(*SIZES[part.kind]) + REACH) * pose.scale
    column, row = pose.in_image(part.x, part.y)
    side, _ = product[0].shape
    rows = slice(max(0, int(row - reach)), min(side, int(row + reach) + 1))
    columns = slice(max(0, int(column - reach)), min(side, int(column + reach) + 1))
    window = (rows, columns)
    x, y = product[0][window] - part.x, product[1][window] - part.y
    cosine, sine = np.float32(np.cos(part.turn)), np.float32(np.sin(part.turn))
    views = Surface(surface.albedo[window], surface.height[window], surface.gloss[window])
    stamp = _Stamp(views, cosine * x + sine * y, cosine * y - sine * x, grain[window])
    DRAWINGS[part.kind](stamp)


def _ends(stamp: _Stamp, kind: str, cap: float, height: float) -> None:
    """Solder and metal caps of a part with two ends."""
    length, width = SIZES[kind]
    for side in (-1, 1):
        solder = stamp.box(side * (length + 1), 0, 3.6, width - 0.3, 2.5)
        stamp.lay(solder, TIN, height=height * 0.55, gloss=0.30, bevel=3.0, grain=0.03)
        stamp.lay(
            stamp.box(side * (length - cap), 0, cap, width, 0.8),
            STEEL,
            height=height,
            gloss=0.22,
        )


def _resistor(stamp: _Stamp) -> None:
    _ends(stamp, "resistor", 2.0, 2.6)
    length, width = SIZES["resistor"]
    stamp.lay(stamp.box(0, 0, length - 2.6, width, 0.6), BLACK, height=2.9, gloss=0.05)
    stamp.mark("103", cell=1.15, colour=PRINT)


def _capacitor(stamp: _Stamp) -> None:
    _ends(stamp, "capacitor", 2.3, 4.2)
    length, width = SIZES["capacitor"]
    body = stamp.box(0, 0, length - 3.2, width, 0.6)
    stamp.lay(body, (0.24, 0.15, 0.08), height=4.3, gloss=0.04)


def _diode(stamp: _Stamp) -> None:
    _ends(stamp, "diode", 1.6, 1.6)
    length, width = SIZES["diode"]
    stamp.lay(stamp.box(0, 0, length - 1.6, width, 0.8), BLACK, height=4.6, bevel=2.0)
    band = stamp.box(-length + 4.6, 0, 1.3, width - 1.0, 0.2)
    stamp.lay(band, PRINT, height=4.6, bevel=0.1)


def _led(stamp: _Stamp) -> None:
    _ends(stamp, "led", 2.0, 1.8)
    length, width = SIZES["led"]
    stamp.lay(stamp.box(0, 0, length - 2.2, width, 0.8), (0.72, 0.71, 0.66), height=4.4)
    dome = stamp.disc(0, 0, width - 1.2)
    stamp.lay(dome, (0.62, 0.52, 0.16), height=4.2, gloss=0.16, bevel=1.2)
    stamp.lay(stamp.box(length - 3.8, width - 1.6, 1.0, 1.0, 0.2), (0.10, 0.30, 0.12), height=4.3)


def _tantalum(stamp: _Stamp) -> None:
    _ends(stamp, "tantalum", 2.2, 2.0)
    length, width = SIZES["tantalum"]
    body = stamp.box(0, 0, length - 1.8, width, 1.0)
    stamp.lay(body, (0.62, 0.36, 0.05), height=6.0, gloss=0.05, bevel=2.2)
    stripe = stamp.box(-length + 5.6, 0, 2.0, width - 1.6, 0.3)
    stamp.lay(stripe, (0.13, 0.06, 0.02), height=6.0, bevel=0.1)
    stamp.mark("47", x=3.4, cell=1.35, colour=(0.13, 0.06, 0.02))


def _crystal(stamp: _Stamp) -> None:
    length, width = SIZES["crystal"]
    rim = stamp.box(0, 0, length, width, width)
    stamp.lay(rim, STEEL, height=2.5, gloss=0.16, bevel=1.5)
    can = stamp.box(0, 0, length - 2.4, width - 2.2, width - 2.2)
    stamp.lay(can, (0.40, 0.395, 0.375), height=6.5, gloss=0.14, bevel=2.6, grain=0.03)
    stamp.mark("16.000", cell=1.2, colour=(0.24, 0.24, 0.24))


def _chip(stamp: _Stamp) -> None:
    half = SIZES["chip"][0]
    body = half - 6
    for along, out in ((stamp.p, stamp.q), (stamp.q, stamp.p)):
        tooth = 1.45 - np.abs((along + 200) % 5.0 - 2.5)
        reach = np.minimum(half - np.abs(out), body - 1.5 - np.abs(along))
        stamp.lay(
            np.minimum(tooth, reach),
            TIN,
            height=1.2 + 0.35 * np.maximum(half - np.abs(out), 0),
            gloss=0.25,
            bevel=0.8,
        )
    stamp.lay(
        stamp.box(0, 0, body, body, 1.5), BLACK, height=6.0, gloss=0.035, bevel=2.0, grain=0.06
    )
    dot = stamp.disc(-body + 6, -body + 6, 2.6)
    stamp.lay(dot, (0.035, 0.035, 0.036), height=5.2, gloss=0.08, bevel=0.8)
    for text, y in (("HX7100", -2), ("1624", 7)):
        stamp.mark(text, y=y, cell=1.2, colour=(0.09, 0.09, 0.085))


def _electrolytic(stamp: _Stamp) -> None:
    half = SIZES["electrolytic"][0]
    for side in (-1, 1):
        tab = stamp.box(side * (half + 1), 0, 3.0, 3.4, 1.0)
        stamp.lay(tab, TIN, height=1.2, gloss=0.3)
    chamfered = np.minimum(stamp.box(0, 0, half, half, 1.0), 1.52 * half - stamp.p - abs(stamp.q))
    stamp.lay(chamfered, BLACK, height=2.2, bevel=1.2)
    radius = half - 1.6
    can = stamp.disc(0, 0, radius)
    stamp.lay(can, (0.42, 0.42, 0.415), height=9.0, gloss=0.13, bevel=3.5, grain=0.025)
    sector = np.minimum(can - 1.5, -stamp.p - 0.48 * radius)
    stamp.lay(sector, (0.035, 0.035, 0.045), height=8.9, gloss=0.04, bevel=0.1)
    stamp.mark("220", x=4, y=-5, cell=1.6, colour=(0.06, 0.06, 0.07))
    stamp.mark("25V", x=4, y=6, cell=1.4, colour=(0.06, 0.06, 0.07))


DRAWINGS: dict[str, Callable[[_Stamp], None]] = {
    "capacitor": _capacitor,
    "chip": _chip,
    "crystal": _crystal,
    "diode": _diode,
    "electrolytic": _electrolytic,
    "led": _led,
    "resistor": _resistor,
    "tantalum": _tantalum,
}
