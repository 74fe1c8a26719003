"""What came of the campaign of faults: a row for each way to attack, before and now.

    python -m pytest -m faults --faults-out runs/faults

leaves a file for each test that counts. Before: docs/results/faults-before.json, a record.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import ROOT, Table, load

COLUMNS = ["attack", "tried, before", "failed, before", "tried", "failed", "s, slowest", "MB, most"]


def table(folders: Sequence[Path]) -> Table:
    """Rows in the order of the record, then those of attacks that are new."""
    record = load(ROOT / "docs" / "results" / "faults-before.json")
    before = {row[0]: list(row[1:3]) for row in record.rows}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in before}
    for each in results(folders):
        found.setdefault(each["row"], []).append(each)
    rows = []
    for name, parts in found.items():
        now = [
            sum(part["tried"] for part in parts),
            sum(len(part["failed"]) for part in parts),
            *(_most(parts, of) for of in ("seconds", "mb")),
        ]
        rows.append([name, *before.get(name, [None] * 2), *(now if parts else [None] * 4)])
    return Table(COLUMNS, rows, {"s, slowest": 1, "MB, most": 0})


def results(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """What tests have left, in the order of their names."""
    paths = sorted(path for folder in folders for path in folder.glob("*.json"))
    return [json.loads(path.read_text("utf-8")) for path in paths]


def _most(parts: Sequence[dict[str, Any]], of: str) -> float | None:
    return max((part[of] for part in parts if part[of] is not None), default=None)
