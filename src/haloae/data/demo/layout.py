"""The circuit board's design: which part stands where, and the layers printed on the bare board."""

from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from haloae.data.demo.scene import SIZE, Array

SCALE = 2
"""Samples per pixel of the layers."""
MARGIN = 16
"""Pixels of board beyond the image on each side."""
SIZES: dict[str, tuple[float, float]] = {
    "can": (34, 26),
    "capacitor": (9, 5.5),
    "chip": (29, 29),
    "crystal": (21, 8),
    "diode": (10, 5),
    "electrolytic": (26, 26),
    "header": (10, 46),
    "inductor": (15, 15),
    "led": (9, 5.5),
    "resistor": (9, 5),
    "tantalum": (15, 8),
}
"""Half length and half width of every kind of part, in pixels."""


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
    Part("header", "J1", 25, 122, 0),
    Part("chip", "U1", 88, 72, 0),
    Part("can", "U2", 174, 48, 0),
    Part("electrolytic", "C9", 186, 178, 0),
    Part("crystal", "Y1", 88, 128, 0),
    Part("tantalum", "C8", 66, 168, 0),
    Part("inductor", "L1", 130, 176, 0),
    Part("capacitor", "C1", 48, 52, UPRIGHT),
    Part("capacitor", "C2", 48, 86, UPRIGHT),
    Part("capacitor", "C3", 78, 24, 0),
    Part("resistor", "R1", 112, 24, 0),
    Part("resistor", "R2", 138, 98, 0),
    Part("resistor", "R3", 138, 118, 0),
    Part("resistor", "R4", 138, 138, 0),
    Part("capacitor", "C4", 172, 98, 0),
    Part("capacitor", "C5", 172, 118, 0),
    Part("led", "D1", 205, 102, UPRIGHT),
    Part("diode", "D2", 205, 138, UPRIGHT),
    Part("resistor", "R5", 58, 204, 0),
    Part("resistor", "R6", 92, 204, 0),
    Part("capacitor", "C6", 100, 168, UPRIGHT),
    Part("capacitor", "C7", 128, 206, 0),
)
TRACES = (
    ((36, 87), (42, 87), (48, 94)),
    ((36, 101), (52, 101), (66, 87)),
    ((36, 115), (50, 115), (60, 105), (73, 105), (73, 98)),
    ((36, 129), (66, 129)),
    ((36, 143), (44, 143), (52, 151), (52, 168)),
    ((36, 157), (40, 157), (46, 163), (46, 204), (49, 204)),
    ((48, 44), (48, 30), (54, 24), (69, 24)),
    ((48, 61), (54, 61), (60, 67)),
    ((87, 24), (93, 30), (93, 46)),
    ((103, 24), (98, 29), (98, 46)),
    ((121, 24), (132, 24), (140, 32)),
    ((116, 60), (124, 60), (130, 54), (140, 54)),
    ((116, 65), (126, 65), (132, 59), (140, 59)),
    ((116, 80), (122, 80), (129, 87), (129, 98)),
    ((116, 85), (120, 85), (124, 89), (124, 118), (129, 118)),
    ((147, 98), (163, 98)),
    ((147, 118), (163, 118)),
    ((147, 138), (156, 138), (163, 131), (190, 131)),
    ((181, 98), (192, 98), (196, 94), (205, 94)),
    ((181, 118), (190, 118), (205, 118), (205, 111)),
    ((205, 147), (205, 156), (210, 161), (220, 161)),
    ((78, 98), (78, 114), (72, 120)),
    ((98, 98), (98, 114), (104, 120)),
    ((109, 128), (118, 128), (124, 134), (129, 138)),
    ((81, 168), (92, 160), (100, 160)),
    ((100, 176), (112, 176)),
    ((146, 176), (158, 176)),
    ((67, 204), (83, 204)),
    ((101, 204), (119, 204)),
    ((137, 206), (152, 206), (158, 200), (158, 190)),
    ((0, 12), (110, 12), (118, 4), (240, 4)),
    ((-10, 218), (240, 218)),
)
VIAS = (
    (98, 10), (126, 44), (120, 104), (150, 84), (192, 84), (216, 84), (60, 142), (76, 146),
    (112, 146), (152, 152), (160, 140), (36, 186), (30, 204), (112, 192), (76, 188), (150, 196),
    (154, 14), (196, 14), (214, 120), (62, 118),
)  # fmt: skip
HOLE = (24.0, 26.0)
POURS = ((186.0, 180.0, 44.0, 40.0), (24.0, 26.0, 22.0, 22.0), (108.0, 150.0, 40.0, 6.0))
"""Areas filled with copper: middle and half sizes."""
GLYPHS = {
    "0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711", "5": "74717",
    "6": "74757", "7": "71122", "8": "75757", "9": "75717", "C": "74447", "D": "65556",
    "F": "74644", "H": "55755", "J": "11157", "L": "44447", "R": "65655", "U": "55557",
    "V": "55552", "X": "55255", "Y": "55222", ".": "00002",
}  # fmt: skip
"""Letters three cells wide and five high: a digit a row, whose bits are its cells."""


class Layers(NamedTuple):
    """The bare board, each (side, side) in 0..1 at `SCALE` samples per pixel."""

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
    side = SCALE * (SIZE + 2 * MARGIN)
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
    radius = np.hypot(x - HOLE[0], y - HOLE[1])
    _draw(metal, 14 - radius)
    _draw(hole, 9 - radius)
    for part in PARTS:
        across, down = SIZES[part.kind]
        is_upright = part.turn == UPRIGHT
        for side_x, side_y, width, height in _pads(part.kind):
            pad = (side_y, side_x, height, width) if is_upright else (side_x, side_y, width, height)
            _draw(metal, _in_box(x - part.x - pad[0], y - part.y - pad[1], pad[2], pad[3]))
        across, down = (down, across) if is_upright else (across, down)
        outline = np.abs(_in_box(x - part.x, y - part.y, across + 6, down + 4))
        _draw(white, 0.5 - outline)
        _print(white, part.name, part.x - across - 5, part.y - down - 11)
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
    if kind in ("can", "chip", "header"):
        return []
    if kind == "crystal":
        return [(-length * 0.55, 0, 3.5, 3.5), (length * 0.55, 0, 3.5, 3.5)]
    if kind == "electrolytic":
        return [(side * length * 0.75, 0, 10.0, 4.5) for side in (-1, 1)]
    return [(side * (length - 0.5), 0, 4.5, width * 0.9) for side in (-1, 1)]


def _print(layer: Array, text: str, x: float, y: float) -> None:
    """Print text from a corner, three samples a cell."""
    letters = np.kron(bitmap(text), np.ones((3, 3), np.float32))
    row, column = (round(SCALE * (value + MARGIN)) for value in (y, x))
    rows, columns = letters.shape
    layer[row : row + rows, column : column + columns] = letters


def _draw(layer: Array, inside: Array) -> None:
    """Add a shape, given by the distance into it in pixels."""
    np.maximum(layer, np.clip(SCALE * inside + 0.5, 0, 1), out=layer)


def _in_box(x: Array, y: Array, width: float, height: float) -> Array:
    return np.asarray(np.minimum(width - np.abs(x), height - np.abs(y)), np.float32)


def _from_segment(x: Array, y: Array, start: Point, end: Point) -> Array:
    dx, dy = end[0] - start[0], end[1] - start[1]
    share = ((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy)
    share = np.clip(share, 0, 1)
    return np.asarray(np.hypot(x - start[0] - share * dx, y - start[1] - share * dy), np.float32)
