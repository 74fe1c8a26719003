"""The circuit board's design: which part stands where, and the layers printed on the bare board."""

from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from haloae.data.demo.scene import Array

FIELD = 160.0
"""Side of the board that is in view, in the layout's own unit."""
SCALE = 3
"""Samples per unit of the layers."""
MARGIN = 12
"""Units of board beyond the field on each side."""
SIZES: dict[str, tuple[float, float]] = {
    "can": (30, 22),
    "capacitor": (9, 5.5),
    "chip": (29, 29),
    "crystal": (21, 8),
    "diode": (10, 5),
    "electrolytic": (25, 25),
    "inductor": (15, 15),
    "led": (9, 5.5),
    "resistor": (9, 5),
    "tantalum": (15, 8),
}
"""Half length and half width of every kind of part."""
Point = tuple[float, float]


class Part(NamedTuple):
    """A part and where its middle is."""

    kind: str
    name: str
    x: float
    y: float
    turn: float
    """Radians."""


UPRIGHT = np.pi / 2
PARTS = (
    Part("chip", "U1", 42, 44, 0),
    Part("can", "U2", 120, 34, 0),
    Part("electrolytic", "C5", 124, 122, 0),
    Part("crystal", "Y1", 40, 94, 0),
    Part("tantalum", "C4", 32, 140, 0),
    Part("inductor", "L1", 74, 136, 0),
    Part("resistor", "R1", 86, 72, 0),
    Part("resistor", "R2", 86, 90, 0),
    Part("capacitor", "C1", 114, 72, 0),
    Part("diode", "D2", 142, 72, 0),
    Part("capacitor", "C2", 86, 107, 0),
    Part("resistor", "R3", 24, 118, 0),
    Part("led", "D1", 50, 118, 0),
)
LARGE = ("can", "chip", "electrolytic", "inductor")
"""Kinds whose outline is printed."""
TRACES = (
    ((-12, 24), (13, 24)),
    ((-12, 34), (13, 34)),
    ((-12, 54), (6, 54), (13, 54)),
    ((71, 34), (78, 34), (88, 24)),
    ((71, 39), (80, 39), (88, 31)),
    ((71, 54), (74, 57), (74, 69), (77, 72)),
    ((71, 59), (72, 60), (72, 85), (77, 90)),
    ((95, 72), (105, 72)),
    ((123, 72), (132, 72)),
    ((95, 90), (104, 90), (110, 97)),
    ((34, 73), (34, 82), (28, 90)),
    ((44, 73), (44, 82), (52, 90)),
    ((24, 15), (24, -12)),
    ((54, 15), (54, 6), (64, -4), (64, -12)),
    ((95, 107), (99, 111)),
    ((33, 118), (41, 118)),
    ((15, 118), (8, 125), (8, 140), (17, 140)),
    ((47, 140), (59, 140)),
    ((59, 118), (70, 118), (77, 111)),
    ((152, 72), (160, 80), (172, 80)),
    ((149, 122), (172, 122)),
    ((-12, 154), (172, 154)),
    ((-12, 4), (14, 4), (20, -2), (20, -12)),
)
VIAS = (
    (78, 14), (80, 52), (104, 82), (156, 62), (134, 88), (62, 104), (10, 82), (8, 104),
    (64, 82), (152, 92), (56, 128), (98, 150), (150, 10), (12, 12),
)  # fmt: skip
POURS = ((126.0, 124.0, 36.0, 33.0), (120.0, 34.0, 36.0, 27.0))
"""Areas filled with copper: middle and half sizes."""
GLYPHS = {
    "0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711", "5": "74717",
    "6": "74757", "7": "71122", "8": "75757", "9": "75717", "C": "74447", "D": "65556",
    "F": "74644", "H": "55755", "J": "11157", "L": "44447", "R": "65655", "U": "55557",
    "V": "55552", "X": "55255", "Y": "55222", ".": "00002",
}  # fmt: skip
"""Letters three cells wide and five high: a digit a row, whose bits are its cells."""


class Layers(NamedTuple):
    """The bare board, each (side, side) in 0..1 at `SCALE` samples per unit."""

    copper: Array
    """Under the green mask."""
    metal: Array
    """Bare and tinned: pads and rings."""
    print: Array
    """White."""
    hole: Array


@cache
def bare_board() -> Layers:
    """The layers, drawn once."""
    side = round(SCALE * (FIELD + 2 * MARGIN))
    grid = np.arange(side, dtype=np.float32) / SCALE - MARGIN
    x, y = grid[None, :], grid[:, None]
    copper, metal, white, hole = (np.zeros((side, side), np.float32) for _ in range(4))
    for points in TRACES:
        for start, end in pairwise(points):
            _draw(copper, 1.3 - _from_segment(x, y, start, end))
    for left, top, width, height in POURS:
        _draw(copper, _in_box(x - left, y - top, width, height))
    for via in VIAS:
        radius = np.hypot(x - via[0], y - via[1])
        _draw(metal, 2.6 - radius)
        _draw(hole, 1.2 - radius)
    for part in PARTS:
        across, down = SIZES[part.kind]
        is_upright = part.turn == UPRIGHT
        for side_x, side_y, width, height in _pads(part.kind):
            pad = (side_y, side_x, height, width) if is_upright else (side_x, side_y, width, height)
            _draw(metal, _in_box(x - part.x - pad[0], y - part.y - pad[1], pad[2], pad[3]))
        across, down = (down, across) if is_upright else (across, down)
        if part.kind in LARGE:
            outline = np.abs(_in_box(x - part.x, y - part.y, across + 3, down + 3))
            _draw(white, 0.45 - outline)
        _print(white, part.name, part.x - across, part.y - down - 9)
    np.minimum(white, 1 - metal, out=white)
    return Layers(copper, metal, white, hole)


def bitmap(text: str) -> Array:
    """Letters as cells of 0 and 1: (5, 4 per letter - 1)."""
    letters = []
    for letter in text:
        rows = [[int(digit) >> bit & 1 for bit in (2, 1, 0, 3)] for digit in GLYPHS[letter]]
        letters.append(np.array(rows, np.float32))
    return np.concatenate(letters, axis=1)[:, :-1]


def _pads(kind: str) -> list[tuple[float, float, float, float]]:
    """Middle and half sizes of the pads under a part that lies flat."""
    length, width = SIZES[kind]
    if kind in ("can", "chip"):
        return []
    if kind == "crystal":
        return [(-length * 0.55, 0, 3.5, 3.5), (length * 0.55, 0, 3.5, 3.5)]
    if kind == "electrolytic":
        return [(side * length * 0.75, 0, 10.0, 4.5) for side in (-1, 1)]
    return [(side * (length - 0.5), 0, 4.5, width * 0.9) for side in (-1, 1)]


def _print(layer: Array, text: str, x: float, y: float) -> None:
    """Print text from a corner, four samples a cell."""
    letters = np.kron(bitmap(text), np.ones((4, 4), np.float32))
    row, column = (round(SCALE * (value + MARGIN)) for value in (y, x))
    rows, columns = letters.shape
    layer[row : row + rows, column : column + columns] = letters


def _draw(layer: Array, inside: Array) -> None:
    """Add a shape, given by the distance into it in units."""
    np.maximum(layer, np.clip(SCALE * inside + 0.5, 0, 1), out=layer)


def _in_box(x: Array, y: Array, width: float, height: float) -> Array:
    return np.asarray(np.minimum(width - np.abs(x), height - np.abs(y)), np.float32)


def _from_segment(x: Array, y: Array, start: Point, end: Point) -> Array:
    dx, dy = end[0] - start[0], end[1] - start[1]
    share = ((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy)
    share = np.clip(share, 0, 1)
    return np.asarray(np.hypot(x - start[0] - share * dx, y - start[1] - share * dy), np.float32)
