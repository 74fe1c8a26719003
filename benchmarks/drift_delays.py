"""How soon a change is seen: less light, a camera that is knocked or covered, more defects."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.drift_lines import COUNTS, alarms, known, scores_of, simulated
from benchmarks.tables import Table
from haloae.data.folders import load_category
from haloae.data.images import read_image
from haloae.data.views import resize
from haloae.detection.guard import MEASURES, Guard
from haloae.detection.looks import View, look_at

SPREADS = (0.02, 0.05, 0.1)
"""Standard deviations of measures among good images; of the logarithm of brightness, for one."""
DARKER = 0.8
BEFORE = (0, 1000)
"""Good images before the change."""
MOST = 400
"""Images after that, in which it must be seen."""
DRAWS = 20
SIZE = 256


Draw = Callable[[int], NDArray[np.float64]]
"""(N,) → measures of so many images, (N, measures)."""


class Stream(NamedTuple):
    """What a watch is fitted to, and what it then looks at."""

    guard: Guard
    good: Draw
    changed: Draw
    anomalous: float = 0.0
    """Share of the changed images whose score is far above the threshold."""


def delays(
    name: str, change: str, fitted: Callable[[np.random.Generator], Stream], draws: int
) -> dict[str, Any]:
    """Images until a change is seen; None: it was not within `MOST`.

    Args:
        name: of the images.
        change: in words.
        fitted: draws a stream.
        draws: streams.
    """
    found: dict[str, Any] = {"images": name, "change": change}
    for before in BEFORE:
        seen = []
        for draw in range(draws):
            rng = np.random.default_rng([before, draw])
            stream = fitted(rng)
            measures = np.concatenate([stream.good(before), stream.changed(MOST)])
            scores = scores_of(before + MOST, rng)
            scores[before:][rng.random(MOST) < stream.anomalous] *= 10
            raised = alarms(known(stream.guard, rng), measures, scores, most=1)
            # A false alarm before, were there one, would be counted as not seen.
            seen.append(raised[0][0] - before if raised and raised[0][0] > before else None)
        found |= {f"after {before}": seen, "count": stream.guard.images}
    shown = [_delay(found[f"after {before}"]) for before in BEFORE]
    print(name, change, found["count"], shown, flush=True)
    return found


def simulated_delays() -> list[dict[str, Any]]:
    """Of simulated light, and of defects."""

    def of(count: int, spread: float, light: float, share: float, change: str) -> dict[str, Any]:
        def fitted(rng: np.random.Generator) -> Stream:
            def good(images: int) -> NDArray[np.float64]:
                return rng.normal(0, spread, (images, len(MEASURES)))

            def changed(images: int) -> NDArray[np.float64]:
                shift = [np.log(light) if name in ("dark", "bright") else 0 for name in MEASURES]
                return good(images) + shift

            return Stream(simulated(count, spread, rng), good, changed, share)

        return delays(f"simulated, ± {100 * spread:.0f} %", change, fitted, DRAWS)

    dark = [of(count, spread, DARKER, 0.0, A_FIFTH) for spread in SPREADS for count in COUNTS]
    return dark + [
        of(count, SPREADS[0], 1.0, share, f"{share:.0%} anomalous".replace("%", " %"))
        for share in DEFECTS
        for count in COUNTS
    ]


def of_photographs(folder: Path) -> list[dict[str, Any]]:
    """Of a category's good images, spoilt."""
    paths = load_category(folder).train
    light = [resize(read_image(path), SIZE) for path in paths]
    looks = [look_at(view) for view in light]
    found = []
    for change, spoil in SPOILT.items():
        for count in (count for count in COUNTS if count <= len(light) - 20):

            def fitted(
                rng: np.random.Generator,
                count: int = count,
                spoil: Callable[[View], View] = spoil,
            ) -> Stream:
                order = rng.permutation(len(light))
                guard = Guard.fit(looks[place] for place in order[:count])
                others = [light[place] for place in order[count : count + 60]]
                good = np.array([_row(guard.measure(view)) for view in others])
                changed = np.array([_row(guard.measure(spoil(view))) for view in others])

                def drawn(rows: NDArray[np.float64]) -> Draw:
                    return lambda images: rows[rng.integers(len(rows), size=images)]

                return Stream(guard, drawn(good), drawn(changed))

            found.append(delays(folder.name, change, fitted, DRAWS // 2))
    return found


def moved(view: View) -> View:
    """As a camera sees it that was knocked: by a tenth of the width; what is new repeats the edge.

    >>> moved(np.arange(40, dtype=np.float32).reshape(1, 2, 20))[0, 0, :4].tolist()
    [0.0, 0.0, 0.0, 1.0]
    """
    by = view.shape[2] // 10
    return np.pad(view, ((0, 0), (0, 0), (by, 0)), "edge")[..., :-by]


A_FIFTH = "a fifth less light"
DEFECTS = (0.2, 0.5)
"""Share of images that become anomalous."""
SPOILT: dict[str, Callable[[View], View]] = {
    A_FIFTH: lambda view: view * np.float32(DARKER),
    "moved by a tenth": moved,
    "covered": lambda view: view * np.float32(0.02),
}
"""What becomes of a camera's images."""


def _row(measures: Mapping[str, float]) -> list[float]:
    return [measures[name] for name in MEASURES]


def _delay(seen: Sequence[int | None]) -> list[float]:
    """Median and 95 % quantile; what was not seen counts as `MOST`."""
    values = [MOST if each is None else each for each in seen]
    return [statistics.median(values), float(np.quantile(values, 0.95))]


def delay_table(results: Mapping[str, Any]) -> Table:
    """Images until a change is seen."""
    rows = []
    for each in results["delays"]:
        cells = []
        for before in BEFORE:
            seen = each[f"after {before}"]
            middle, late = _delay(seen)
            missed = sum(one is None for one in seen)
            cells.append(
                f"{middle:.0f} ({late:.0f})"
                if not missed
                else f"{middle:.0f} ({missed} of {len(seen)} not)"
            )
        rows.append([each["change"], each["images"], each["count"], *cells])
    columns = [
        "change", "images", "calibration images", "from the first on", "after 1,000 good ones"
    ]  # fmt: skip
    return Table(columns, rows, {})
