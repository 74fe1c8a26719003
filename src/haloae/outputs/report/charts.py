"""Charts as inline SVG. Colours are CSS variables of the page, so they follow its light or dark.

Everything put into a chart is escaped by `Markup.format`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from haloae.evaluation.metrics import Curve

WIDTH, HEIGHT = 460, 290
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 40
"""Margins, within which the plot lies."""
MIDDLE = (TOP + HEIGHT - BOTTOM) / 2
"""Of the histogram: the line that its bars stand on and hang from."""
BINS = 40
LOG_FROM = 8.0
"""An axis whose highest value is this many times its lowest is logarithmic."""
TAIL = 10.0
"""Scores this many times above threshold and good images share the histogram's last bar."""
FAR = 1e6
"""What is this many times smaller than the highest value is drawn at the axis' low end."""
ROW = 24
"""Height of a row of the dot chart."""


class Axis(NamedTuple):
    """Maps values to 0…1."""

    low: float
    high: float
    is_log: bool

    @classmethod
    def around(cls, values: ArrayLike) -> "Axis":
        """An axis that shows all values, logarithmic where they span much."""
        found = np.asarray(values, dtype=np.float64)
        found = found[np.isfinite(found)]
        if not found.size:
            return cls(0.0, 1.0, False)
        high = float(found.max())
        positive = found[found > high / FAR] if high > 0 else found[:0]
        low = float(positive.min()) if positive.size else 0.0
        if low > 0 and high / low > LOG_FROM:
            return cls(low / 1.05, high * 1.05, True)
        low = float(found.min())
        margin = (high - low) * 0.03 or abs(high) * 0.1 or 1.0
        return cls(low - margin, high + margin, False)

    def place(self, values: ArrayLike) -> NDArray[np.float64]:
        """Places of the same shape, cut to 0…1."""
        found = np.asarray(values, dtype=np.float64)
        if self.is_log:
            spread = math.log(self.high / self.low)
            share = np.log(np.maximum(found, self.low) / self.low) / spread
        else:
            share = (found - self.low) / (self.high - self.low)
        return np.asarray(share.clip(0, 1))

    def value(self, place: float) -> float:
        """What lies at a place."""
        if self.is_log:
            return self.low * math.exp(math.log(self.high / self.low) * place)
        return self.low + (self.high - self.low) * place

    def ticks(self, most: int = 6) -> list[float]:
        """Round values on the axis."""
        if not self.is_log:
            return _round_steps(self.low, self.high, most)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [s * 10.0**d for d in decades for s in steps]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) <= most + 1:
                return found
        return found[:: math.ceil(len(found) / most)]


UNIT = Axis(0.0, 1.0, False)


class Line(NamedTuple):
    """One curve of a line chart; `kind` 0, 1, … chooses colour and dashes."""

    label: str
    curve: Curve
    kind: int = 0


class Dots(NamedTuple):
    """A row of the dot chart: name, and for each kind a value or None."""

    name: str
    values: Sequence[float | None]


def histogram(
    good: Sequence[float], defective: Sequence[float], threshold: float
) -> tuple[Markup, int]:
    """Good images upwards, defective ones downwards, each as a share of their kind.

    Returns:
        The drawing, and how many scores are too high for its axis and stand in the last bar.
    """
    scores = np.array([*good, *defective])
    # A threshold that was extrapolated into the blue must not squeeze the scores to a line.
    is_near = threshold <= 100 * float(scores.max())
    # Nor must a few defects thousands of times above it: they are told good from bad near it.
    limit = TAIL * max([threshold if is_near else 0.0, *good])
    above = int((scores > limit).sum()) if limit > 0 else 0
    visible = np.minimum(scores, limit) if above else scores
    axis = Axis.around([*visible, threshold] if is_near else visible)
    counts = [np.histogram(axis.place(s), bins=BINS, range=(0, 1))[0] for s in (good, defective)]
    tallest = max(float(c.max() / max(c.sum(), 1)) for c in counts)
    parts = [_x_axis(axis, "score, higher is more unusual" + (" (log)" if axis.is_log else ""))]
    for count, is_good in zip(counts, (True, False), strict=True):
        parts += _bars(count, axis, tallest, is_good=is_good)
    parts.append(_rule(LEFT, MIDDLE, WIDTH - RIGHT, MIDDLE, "axis"))
    if is_near:
        parts += _threshold_line(_x(float(axis.place(threshold))))
    label = f"Histogram of scores of {len(good)} good and {len(defective)} defective images"
    return _svg(parts, label), above


def _bars(counts: NDArray[np.int_], axis: Axis, tallest: float, *, is_good: bool) -> list[Markup]:
    """Bars of one kind of image, upwards where they are good, and how many images they are.

    Args:
        counts: (BINS,) images of the kind in each bin of the axis.
        axis: of the scores.
        tallest: the share of its kind that fills its half of the drawing.
        is_good: True: of good images.
    """
    kind, name = ("good", "good") if is_good else ("bad", "defective")
    parts = []
    for index in np.flatnonzero(counts):
        height = float(counts[index] / counts.sum() / tallest) * (MIDDLE - TOP - 28)
        left, right = _x(index / BINS), _x((index + 1) / BINS)
        parts.append(
            Markup(
                '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                "<title>{} {}, score {:.3g} to {:.3g}</title></rect>"
            ).format(
                kind,
                left + 0.5,
                MIDDLE - height if is_good else MIDDLE,
                right - left - 1,
                max(height, 1.0),
                counts[index],
                name,
                axis.value(index / BINS),
                axis.value((index + 1) / BINS),
            )
        )
    text = Markup('<text class="on-{}" x="{}" y="{}" text-anchor="end">{} {}</text>')
    y = TOP + 24 if is_good else HEIGHT - BOTTOM - 6
    return [*parts, text.format(kind, WIDTH - RIGHT, y, counts.sum(), name)]


def _threshold_line(x: float) -> list[Markup]:
    """An upright line, and its name on the side that has room."""
    text = Markup('<text class="strong" x="{:.1f}" y="{}" text-anchor="{}">threshold</text>')
    is_right = x > WIDTH * 0.7
    return [
        _rule(x, TOP, x, HEIGHT - BOTTOM, "threshold"),
        text.format(x + (-5 if is_right else 5), TOP + 10, "end" if is_right else "start"),
    ]


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    x: Axis = UNIT,
    y: Axis = UNIT,
    marker: tuple[float, float] | None = None,
) -> Markup:
    """Curves, and a marker on them."""
    parts = [_x_axis(x, x_label), _y_axis(y, y_label)]
    for line in lines:
        places = zip(x.place(line.curve.x), y.place(line.curve.y), strict=True)
        points = " ".join(f"{_x(a):.1f},{_y(b):.1f}" for a, b in places)
        parts.append(
            Markup('<polyline class="line k{}" points="{}"><title>{}</title></polyline>').format(
                line.kind, points, line.label
            )
        )
    if marker:
        parts.append(
            Markup('<circle class="marker" cx="{:.1f}" cy="{:.1f}" r="5"/>').format(
                _x(float(x.place(marker[0]))), _y(float(y.place(marker[1])))
            )
        )
    return _svg(parts, f"{y_label} against {x_label}: " + ", ".join(line.label for line in lines))


def dot_chart(rows: Sequence[Dots], kinds: Sequence[str], x_label: str) -> Markup:
    """One row for each name, one dot in it for each kind."""
    values = [value for row in rows for value in row.values if value is not None]
    low = min([0.9, *(math.floor(value * 10) / 10 for value in values)])
    axis, left, height = Axis(low, 1.0, False), 150, TOP + ROW * len(rows) + BOTTOM
    parts = [_x_axis(axis, x_label, height=height, left=left)]
    for number, row in enumerate(rows):
        y = TOP + ROW * (number + 0.5)
        name = row.name if len(row.name) <= 18 else row.name[:17] + "…"
        parts.append(_rule(left, y, WIDTH - RIGHT, y, "grid"))
        parts.append(
            Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}<title>{}</title></text>').format(
                left - 10, y + 4, name, row.name
            )
        )
        for kind, value in enumerate(row.values):
            if value is not None:
                x = _x(float(axis.place(value)), left)
                parts.append(
                    Markup(
                        '<path class="dot {}" d="{}"><title>{}, {}: {:.3f}</title></path>'
                    ).format(
                        dot_class(kind, len(kinds)),
                        dot_shape(kind, x, y),
                        row.name,
                        kinds[kind],
                        value,
                    )
                )
    return _svg(parts, f"{x_label} of " + ", ".join(kinds), height=height)


def dot_class(kind: int, kinds: int) -> str:
    """Class of a kind's dots; the last kind is the baseline, drawn hollow."""
    return "last" if kind == kinds - 1 else f"k{kind}"


def dot_shape(kind: int, x: float, y: float) -> str:
    """Circle, diamond, square or triangle: kinds differ without their colour too."""
    if kind % 4 == 0:
        return f"M{x - 5:.1f},{y:.1f}a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z"
    if kind % 4 == 1:
        return f"M{x:.1f},{y - 6:.1f}l6,6l-6,6l-6,-6z"
    if kind % 4 == 2:
        return f"M{x - 4.5:.1f},{y - 4.5:.1f}h9v9h-9z"
    return f"M{x:.1f},{y - 6:.1f}l6,10h-12z"


def _round_steps(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    steps = [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return [min(max(value, low), high) for value in steps]


def _x(place: float, left: int = LEFT) -> float:
    return left + place * (WIDTH - RIGHT - left)


def _y(place: float) -> float:
    return HEIGHT - BOTTOM - place * (HEIGHT - BOTTOM - TOP)


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<path class="{}" d="M{:.1f},{:.1f}L{:.1f},{:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def _x_axis(axis: Axis, label: str, *, height: int = HEIGHT, left: int = LEFT) -> Markup:
    bottom = height - BOTTOM
    parts = [_rule(left, bottom, WIDTH - RIGHT, bottom, "axis")]
    for tick in axis.ticks():
        x = _x(float(axis.place(tick)), left)
        parts.append(_rule(x, TOP, x, bottom, "grid"))
        parts.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:.6g}</text>').format(
                x, bottom + 16, tick + 0.0
            )
        )
    parts.append(
        Markup('<text class="label" x="{}" y="{}" text-anchor="end">{}</text>').format(
            WIDTH - RIGHT, height - 6, label
        )
    )
    return Markup("").join(parts)


def _y_axis(axis: Axis, label: str) -> Markup:
    parts = []
    for tick in axis.ticks(5):
        y = _y(float(axis.place(tick)))
        parts.append(_rule(LEFT, y, WIDTH - RIGHT, y, "grid"))
        parts.append(
            Markup('<text x="{}" y="{:.1f}" text-anchor="end">{:.6g}</text>').format(
                LEFT - 6, y + 4, tick + 0.0
            )
        )
    parts.append(
        Markup(
            '<text class="label" transform="translate(11 {}) rotate(-90)" text-anchor="end">'
            "{}</text>"
        ).format(TOP, label)
    )
    return Markup("").join(parts)


def _svg(parts: Sequence[Markup], label: str, *, height: int = HEIGHT) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, label, Markup("").join(parts)
    )
