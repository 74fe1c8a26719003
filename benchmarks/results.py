"""Puts what experiments have left into docs/results: the one writer of results files.

    python -m benchmarks.results NAME [RUN ...]

writes docs/results/NAME.json; `benchmarks.kinds` lists the names. A RUN is a folder that the
experiment was given as --out, or a part of it; where there are several, they are put together.

A results file is a table: title, command and note (where it comes from), measured (on and with
what), columns, rows, and digits for columns whose numbers do not take three. `benchmarks.tables`
shows it. A file whose program or detector is no more has in place of command a record: the commit
it is of, and what was run.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.kinds import KINDS
from benchmarks.script import parser_of
from benchmarks.tables import ROOT
from haloae.errors import HaloaeError
from haloae.files import write_atomic


def write(name: str, runs: Sequence[Path], root: Path = ROOT) -> Path:
    """Make one results file.

    Args:
        name: of `KINDS`.
        runs: folders that the experiment left; none where it is counted.
        root: of the repository.

    Raises:
        OSError, KeyError, ValueError, ModelFileError: a run is not there, or is of another
            experiment.
    """
    kind = KINDS[name]
    table, measured = kind.make(runs)
    if not table.rows:
        raise ValueError("there is nothing of it in these runs.")
    command = f"python -m benchmarks.results {name}"
    values = {
        "title": kind.title,
        "command": f"{kind.runs}; {command} RUN ..." if kind.runs else command,
        "note": kind.note,
        "measured": measured,
        "columns": list(table.columns),
        "digits": dict(table.digits),
        "rows": table.rows,
    }
    path = root / "docs" / "results" / f"{name}.json"
    write_atomic(path, dumped({k: v for k, v in values.items() if v}).encode())
    return path


def dumped(values: Mapping[str, Any]) -> str:
    """JSON with a line for each value and each row, so that a changed figure is a changed line."""
    lines = []
    for name, value in values.items():
        text = json.dumps(value, ensure_ascii=False)
        if name == "rows":
            rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value)
            text = f"[\n  {rows}\n ]"
        lines.append(f' "{name}": {text}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write one file; the exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("name", choices=sorted(KINDS))
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    given = parser.parse_args(arguments)
    if bool(given.runs) != bool(KINDS[given.name].runs):
        parser.error(f"{given.name} is {'made of runs' if not given.runs else 'counted'}: give "
                     f"{'their folders' if not given.runs else 'no RUN'}.")  # fmt: skip
    try:
        print(write(given.name, given.runs, root))
    except KeyError as error:
        sys.exit(f"{given.name}: a run holds no {error}: it is of another experiment or version.")
    except (OSError, ValueError, HaloaeError) as error:
        sys.exit(f"{given.name}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
