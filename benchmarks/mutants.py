"""How many small faults in the code the tests find: mutation testing of a random draw.

    uv run --group mutants python -m benchmarks.mutants --out runs/mutants --sample 300 --seed 0
    uv run --group mutants python -m benchmarks.mutants --out runs/now --again runs/mutants

A mutant is the code of a module with one of mutmut's changes: another number, operator, keyword or
text, an argument left out, a value that is None. One is drawn from each of equal parts of all that
there are, in the order of the code, so that each has the same chance. It is found where a test
fails, or takes far too long. Annotations, decorators, and defaults that are computed are left as
they are: most of their changes end at import.

Tests run in a copy of the repository. They run once as they are, to learn which of them run which
function; then each mutant is written into the copy, and a process is forked that runs those tests,
the likeliest first, until one fails or eight seconds' worth of them is over. `--again` takes the
mutants of an earlier run, and tries those that were not found. Tests that set the environment of a
process see the code as it is: what they would find is not.
"""

import json
import math
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.forked import Copy, First, Known, Watch
from benchmarks.machine import machine
from benchmarks.script import parser_of
from benchmarks.tables import ROOT, Table

PACKAGES = ("detection", "data")
TESTS = (
    *("tests/detection", "tests/data", "tests/test_detector.py", "tests/faults/test_attacks.py"),
    *("tests/faults/test_special_files.py", "tests/outputs", "tests/evaluation"),
    *("src/haloae/detection", "src/haloae/data"),
)
APART = {"serve", "decoders", "whole", "images", "limits"}
"""Modules of data/ that also run in the process that decodes, where nobody looks on."""
ASKING = "src/haloae/data/worker.py"
"""What asks that process."""
WORTH_SECONDS = 8.0
"""Of tests, tried on one mutant."""
LATE_SECONDS = 15.0
"""Of processor time, more than three times what the tests took before."""
RESULTS = "results.json"
RUNS = ("before", "now")
"""What runs are called in a table: a first one, and its `--again`."""
GROUPS = (
    ("`detection`", "/detection/", (False,)),
    ("`detection`, words of errors and of the log", "/detection/", (True,)),
    ("`data`", "/data/", (False,)),
    ("`data`, words of errors and of the log", "/data/", (True,)),
    ("all", "/", (False, True)),
)
"""Rows of the table: what a file's name has in it, and whether the change is of words."""
Z = 1.959964
LAST = 10**9
LEFT_ALONE = ("len", "isinstance")
LOGGERS = ("log", "logger")


@dataclass
class Mutant:
    """One change, and what came of it."""

    file: str
    """Below the root."""
    line: int
    function: tuple[int, int] | None
    """First and last line of the outermost function it is in."""
    of_message: bool
    """True: of the words of an error or of the log."""
    before: str
    after: str
    outcome: str = ""
    """``killed``, ``late``, ``survived`` or ``untested``."""
    by: str = ""
    """The test that failed."""
    seconds: float = 0.0

    @property
    def is_found(self) -> bool:
        """True: a test failed, or did not end."""
        return self.outcome in ("killed", "late")


class Change(NamedTuple):
    """A mutant, and how to write it."""

    mutant: Mutant
    module: Any
    old: Any
    new: Any


def changes(path: Path) -> list[Change]:
    """All mutants of a module, in the order of its code."""
    import libcst as cst
    from libcst.metadata import MetadataWrapper, PositionProvider
    from mutmut.mutation.mutators import mutation_operators

    wrapper = MetadataWrapper(cst.parse_module(path.read_text("utf-8")))
    places: dict[Any, Any] = dict(wrapper.resolve(PositionProvider))
    module = wrapper.module
    found = []

    def walk(node: Any, function: tuple[int, int] | None, of_message: bool) -> None:  # noqa: ANN401
        if _is_left_alone(node):
            return
        place: Any = places.get(node)
        if isinstance(node, cst.FunctionDef) and function is None:
            function = place.start.line, place.end.line
        of_message = of_message or _is_message(node)
        for kind, operator in mutation_operators:
            for new in operator(node) if isinstance(node, kind) and place else ():
                before, after = (" ".join(module.code_for_node(x).split()) for x in (node, new))
                file = str(path.relative_to(ROOT))
                mutant = Mutant(file, place.start.line, function, of_message, before, after)
                found.append(Change(mutant, module, node, new))
        for child in node.children:
            walk(child, function, of_message)

    walk(module, None, False)
    return found


def _is_left_alone(node: Any) -> bool:  # noqa: ANN401 - libcst is there only where it is run
    import libcst as cst

    if isinstance(node, cst.Param) and node.default is not None:
        return not isinstance(node.default, cst.Name | cst.BaseNumber | cst.BaseString)
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Name):
        return node.func.value in LEFT_ALONE
    return isinstance(node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom)


def _is_message(node: Any) -> bool:  # noqa: ANN401
    import libcst as cst

    if not isinstance(node, cst.Call):
        return False
    if isinstance(node.func, cst.Attribute) and isinstance(node.func.value, cst.Name):
        return node.func.value.value in LOGGERS
    return isinstance(node.func, cst.Name) and node.func.value.endswith("Error")


def drawn(population: Sequence[Change], count: int, seed: int) -> list[Change]:
    """One of each of so many equal parts; in any order, so that a part of a run is a draw too."""
    rng = random.Random(seed)  # noqa: S311 - of a draw
    share = len(population) / count
    found = [population[int((part + rng.random()) * share)] for part in range(count)]
    rng.shuffle(found)
    return found


def taken_up(population: Sequence[Change], earlier: Sequence[Mutant]) -> list[Change]:
    """The mutants of an earlier run; the code around them may have moved.

    Raises:
        ValueError: the code of one is no more.
    """
    found = []
    for wanted in earlier:
        same = [
            each
            for each in population
            if (each.mutant.file, each.mutant.before, each.mutant.after)
            == (wanted.file, wanted.before, wanted.after)
        ]
        if not same:
            raise ValueError(f"{wanted.file}:{wanted.line}: {wanted.before} is no more.")
        found.append(min(same, key=lambda each: abs(each.mutant.line - wanted.line)))
    return found


def likely(mutant: Mutant, known: Known) -> list[str]:
    """Tests that may find it: those of its line, of its module's name, and short ones first."""
    path = Path(mutant.file)
    first, last = mutant.function or (0, LAST)
    found = known.between(mutant.file, first + 1, last)  # the line of `def` runs at import
    found = found or known.between(mutant.file, 0, LAST) or set(known.seconds)
    if path.parent.name == "data" and path.stem in APART:
        found |= known.between(ASKING, 0, LAST)
    of_line = known.between(mutant.file, mutant.line, mutant.line)
    names = (f"test_{path.stem}.py", f"test_{path.parent.name}.py")

    def order(test: str) -> tuple[bool, bool, float]:
        is_mirror = any(name in test for name in names)
        return test not in of_line, not is_mirror, known.seconds[test]

    return sorted(found, key=order)


def learn(copy: Copy, tests: Sequence[str], out: Path) -> Known:
    """Run tests as the code is, or take what a run into this folder has learned.

    Raises:
        ValueError: they cannot be run.
    """
    path = out / "tests.json"
    code = 0 if path.exists() else copy.run(tests, Watch(copy.root, PACKAGES, path), seconds=3600)
    if code not in (0, 1) or not path.exists():
        raise ValueError(f"the tests cannot be run as the code is: exit code {code}.")
    return Known(json.loads(path.read_text("utf-8")))


def try_out(change: Change, copy: Copy, known: Known, out: Path) -> Mutant:
    """Run a mutant's tests."""
    mutant, start = change.mutant, time.monotonic()
    failed = out / "failed.txt"
    failed.unlink(missing_ok=True)
    tests, seconds = known.affordable(likely(mutant, known), WORTH_SECONDS)
    sound = (copy.root / mutant.file).read_text("utf-8")
    late = round(LATE_SECONDS + 3 * seconds)
    copy.write(mutant.file, change.module.deep_replace(change.old, change.new).code)
    code = copy.run(["-x", *tests], First(failed), late) if tests else 0
    copy.write(mutant.file, sound)
    mutant.outcome = {None: "late", 0: "survived"}.get(code, "killed") if tests else "untested"
    mutant.by = failed.read_text("utf-8") if failed.exists() else ""
    mutant.seconds = round(time.monotonic() - start, 1)
    return mutant


def results(folder: Path) -> tuple[dict[str, Any], list[Mutant]]:
    """What a run has left, and its mutants."""
    told = json.loads((folder / RESULTS).read_text("utf-8"))
    return told, [Mutant(**{**each, "function": None}) for each in told["mutants"]]


def table(folders: Sequence[Path]) -> Table:
    """A row for each package, of its messages and of all else; a column for each run."""
    columns = ["of", "mutants"]
    rows: dict[str, list[Any]] = {}
    for name, folder in zip(RUNS, folders, strict=True):
        told, mutants = results(folder)
        columns += [f"tried, {name}", f"found, {name}", f"%, {name}"]
        for label, part, kinds in GROUPS:
            everything = sum(part in file and kind in kinds for file, kind in told["population"])
            row = rows.setdefault(label, [label, everything])
            tried = [each for each in mutants if part in each.file and each.of_message in kinds]
            found = sum(each.is_found for each in tried)
            row += [len(tried), found, interval(found, len(tried))]
    return Table(columns, list(rows.values()), {})


def interval(found: int, tried: int) -> str | None:
    """Share in %, and its 95 % interval (Wilson); None of none.

    >>> interval(9, 10)
    '90 (60–98)'
    """
    if not tried:
        return None
    share, square = found / tried, Z**2 / tried
    middle = (share + square / 2) / (1 + square)
    reach = Z / (1 + square) * math.sqrt(share * (1 - share) / tried + square / tried / 4)
    return f"{100 * share:.0f} ({100 * (middle - reach):.0f}–{100 * (middle + reach):.0f})"


def main() -> None:
    """Draw, try, and keep after each mutant what is known by then."""
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--sample", type=int, default=300, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--again", type=Path, metavar="RUN", help="the mutants of an earlier run")
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="PATH", help="to find them by")
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    folders = [ROOT / "src" / "haloae" / name for name in PACKAGES]
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    population = [change for path in paths for change in changes(path)]
    before = results(given.again)[1] if given.again else []
    chosen = taken_up(population, before) if before else drawn(population, given.sample, given.seed)
    told: dict[str, Any] = {
        "machine": machine(1),
        "population": [[each.mutant.file, each.mutant.of_message] for each in population],
        "mutants": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder).resolve())
        known = learn(copy, given.tests, out)
        for number, change in enumerate(chosen):
            is_known = bool(before) and before[number].is_found
            mutant = before[number] if is_known else try_out(change, copy, known, out)
            told["mutants"].append(asdict(mutant))
            (out / RESULTS).write_text(json.dumps(told, indent=1), "utf-8")
            where = f"{mutant.file}:{mutant.line} {mutant.before} -> {mutant.after}"
            print(f"{number + 1}/{len(chosen)} {mutant.outcome} {where}", flush=True)


if __name__ == "__main__":
    main()
