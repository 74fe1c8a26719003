"""Arms that were chosen on one half of the sets, and what they do on the other: of heads.json.

`benchmarks.results halves` calls it.
"""

import json
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from benchmarks.tables import ROOT, Table

HALVES = (("cookie", "kolektor", "elpv_mono"), ("magnetic_tile", "tire", "pill"))
RIVAL = "a Gaussian a place"
PART = "finalists"
"""Where the rival stands in the screening."""
SHIPPED = "3 nearest, one linear map, averaged by 1 4 1, ridge 0.05, shrunk by 0.1"
"""The arm that comes nearest to what ships."""
BEST = 3
"""Arms that are shown of each half, besides that."""


def table() -> Table:
    """The best arms of each half."""
    screened = json.loads((ROOT / "docs" / "results" / "heads.json").read_text("utf-8"))
    columns = screened["columns"]
    arms = [dict(zip(columns, row, strict=True)) for row in screened["rows"]]
    arms = [arm for arm in arms if all(arm[name] is not None for half in HALVES for name in half)]
    (rival,) = (arm for arm in arms if (arm["part"], arm["head"]) == (PART, RIVAL))
    rows: list[list[Any]] = []
    for half, other in (HALVES, HALVES[::-1]):
        ranked = sorted(arms, key=lambda arm: -_points(arm, rival, half))
        rows += [
            [
                ", ".join(half), place, f"{arm['part']}: {arm['head']}",
                f"{_points(arm, rival, half):+.1f}", f"{_points(arm, rival, other):+.1f}",
            ]
            for place, arm in enumerate(ranked, 1)
            if place <= BEST or arm["head"] == SHIPPED
        ]  # fmt: skip
    columns = [f"chosen on, of {len(arms)} arms", "place", "arm", "there", "on the others"]
    return Table(columns, rows, {"place": 0})


def _points(arm: dict[str, Any], rival: dict[str, Any], half: Sequence[str]) -> float:
    """Above the rival, on the mean."""
    return 100 * fmean(arm[name] - rival[name] for name in half)
