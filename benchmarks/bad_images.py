"""Small image files that cost much to decode: seconds and memory, with and without limits.

    python -m benchmarks.bad_images --out runs/bad_images [--source OTHER/src --out runs/before]

Each file of `tests/faults/bad_images.py`, as large as they are sent, is read in a process of its
own, which is stopped after a minute of processor time. SOURCE is where an older haloae stands, to
compare with.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.faults.bad_images import BOMBS, LARGE

import haloae
from benchmarks.machine import machine
from benchmarks.script import leave, parser_of
from benchmarks.tables import Table

MOST_SECONDS = 60
OUTCOMES = {
    "read": "read",
    "decoding it takes more": "refused: time",
    "not enough memory": "refused: memory",
    "truncated or corrupted": "refused: damaged",
}
"""How what is said of a file begins, in a word."""
READ = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[3]),) * 2)
sys.path.insert(0, sys.argv[1])
from haloae.data.images import read_image
from haloae.errors import ImageError
try:
    read_image(sys.argv[2])
    said = "read"
except ImageError as error:
    said = str(error).removeprefix(sys.argv[2] + ": ")
print(json.dumps(said))
"""


def read(path: Path, source: Path) -> dict[str, Any]:
    """What came of it; seconds of processor time, and most memory of a process, in MB.

    Both of the process that reads and of those it has started. Time by the clock would be more on
    a machine that does something else as well.
    """
    command = [sys.executable, "-c", READ, str(source), str(path), str(MOST_SECONDS)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file)  # noqa: S603 - ourselves
        _, status, usage = os.wait4(process.pid, 0)  # of it and of those it has waited for
        process.returncode = os.waitstatus_to_exitcode(status)
        file.seek(0)
        told = file.read()
    return {
        "said": json.loads(told) if told else "stopped",
        "seconds": usage.ru_utime + usage.ru_stime,
        "mb": usage.ru_maxrss / 1024,
    }


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each file: an older haloae's figures, then this one's and what it says."""
    before, after = results
    rows = []
    for name, found in after["files"].items():
        cells = [name, found["bytes"]]
        for each in (before["files"][name], found):
            seconds = round(each["seconds"], 2)
            seconds = f"> {MOST_SECONDS}" if each["said"] == "stopped" else seconds
            cells += [seconds, round(each["mb"])]
        said = found["said"]
        rows.append([*cells, *(word for start, word in OUTCOMES.items() if said.startswith(start))])
    columns = ["file", "bytes", "s, before", "MB, before", "s", "MB", "outcome"]
    return Table(columns, rows, dict.fromkeys(columns[2:5:2], 1))


def main() -> None:
    """Measure, and write results.json."""
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--source", type=Path, default=Path(haloae.__file__).parents[1])
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(1), "files": {}}
    for name, write in BOMBS.items():
        with tempfile.NamedTemporaryFile(suffix=".bin") as file:
            file.write(write(LARGE[name]))
            file.flush()
            size = file.tell()
            results["files"][name] = {"bytes": size, **read(Path(file.name), arguments.source)}
        print(name, json.dumps(results["files"][name]), flush=True)
    print(leave(results, arguments.out))


if __name__ == "__main__":
    main()
