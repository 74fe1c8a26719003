"""What befell a whole `haloae serve` under load, and what came of it: a row for each fault.

    python -m pytest -m slow tests/server/test_kills.py --faults-out runs/service-faults

leaves a file for each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tables import Table

FIRST = "kill -9"


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """The kills first."""
    rows = [
        [
            found["row"], found["times"], found["answered"], found["files"], found["lost"],
            sum(found["undelivered"].values()), found["files_twice"],
            *(found["twice"][sink] for sink in ("folder", "webhook", "MQTT")), found["images"],
        ]
        for found in sorted(results, key=lambda each: not each["row"].startswith(FIRST))
    ]  # fmt: skip
    columns = [
        "what happened", "times", "answered", "files", "lost", "not delivered",
        "files inspected twice", "twice in the folder", "twice by webhook", "twice by MQTT",
        "images not kept",
    ]  # fmt: skip
    return Table(columns, rows, {})
