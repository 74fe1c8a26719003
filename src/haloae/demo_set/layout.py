"""The circuit board's design: which part stands where, and the layers printed on the bare board."""

from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from haloae.demo_set.scene import Array

BOARD = 128.0
"""Side of the board, in the layout's own unit."""
CORNER = 5.0
SCALE = 4
"""Samples per unit of the layers."""
MARGIN = 9
"""Units of the tray that are in view on each side of the board."""
SIZES: dict[str, tuple[float, float]] = {
    "capacitor": (11, 7.5),
    "chip": (26, 26),
    "crystal": (22, 9),
    "diode": (11, 7),
    "electrolytic": (22, 22),
    "led": (11, 7.5),
    "resistor": (11, 7),
    "tantalum": (16, 9),
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
    Part("chip", "U1", 39, 40, 0),
    Part("crystal", "Y1", 94, 24, 0),
    Part("electrolytic", "C3", 94, 94, 0),
    Part("tantalum", "C2", 32, 108, 0),
    Part("resistor", "R1", 82, 54, 0),
    Part("diode", "D2", 109, 54, 0),
    Part("capacitor", "C1", 23, 82, 0),
    Part("led", "D1", 51, 82, 0),
)
OUTLINED = ("electrolytic",)
"""Kinds whose outline is printed."""
TRACES = (
    ((65, 25), (72, 25), (80, 24)),
    ((65, 40), (67, 40), (67, 18), (76, 10), (100, 10), (106, 16), (106, 24)),
    ((65, 50), (72, 54)),
    ((92, 54), (99, 54)),
    ((33, 66), (33, 82)),
    ((44, 66), (44, 75), (51, 82)),
    ((61, 82), (66, 87), (74, 94)),
    ((13, 82), (10, 85), (10, 102), (16, 108)),
    ((48, 108), (58, 108), (72, 94)),
    ((119, 54), (119, 66), (112, 74)),
)
VIAS = ((66, 68), (120, 12), (11, 118), (60, 118), (120, 72), (12, 70), (62, 98))
POURS = ((94.0, 94.0, 28.0, 27.0),)
"""Areas filled with copper: middle and half sizes."""
GLYPHS = {
    "0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711", "5": "74717",
    "6": "74757", "7": "71122", "C": "74447", "D": "65556", "H": "55755", "R": "65655",
    "U": "55557", "V": "55552", "X": "55255", "Y": "55222", ".": "00002",
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
    side = round(SCALE * (BOARD + 2 * MARGIN))
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
        if part.kind in OUTLINED:
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
    if kind == "chip":
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
