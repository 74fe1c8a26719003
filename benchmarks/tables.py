"""Writes the tables of README and docs from the results in docs/results.

    python -m benchmarks.tables             # write them
    python -m benchmarks.tables --check     # change nothing; exit code 1 if one is not up to date

On a page,

    <!-- table: results/NAME.json; columns: image | ms; where: preset = fast -->
    <!-- /table -->

holds the table between its two lines. `columns` and `where` (any number of times) choose from it;
without `columns` it has all but those that `where` names. To compare, as in

    <!-- table: results/NAME.json; columns: set; cells: AUPRO; across: variant = default | fast -->

gives each of these variants a column of its own, which holds its AUPRO, beside those of `columns`;
rows in which none of them has a figure are left out.

What a results file holds, and what writes it: `benchmarks.results`. A cell is text, a number, a
mean with its standard deviation, a median with its quartiles, or null.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from haloae.outputs.tables import markdown

ROOT = Path(__file__).parents[1]
MARKED = re.compile(
    r"(?P<open><!-- table: (?P<what>[^\n]*?) -->\n).*?(?P<close><!-- /table -->)", re.DOTALL
)


class Table(NamedTuple):
    """A results file, or what was chosen of it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    digits: Mapping[str, int]


class Found(NamedTuple):
    """What a results file is made of."""

    table: Table
    measured: str = ""
    """On what and with what, as the runs' own files say."""


def load(path: Path) -> Table:
    """The table of a results file."""
    results = json.loads(path.read_text(encoding="utf-8"))
    return Table(results["columns"], results["rows"], results.get("digits", {}))


def choose(table: Table, columns: Sequence[str] | None, where: Mapping[str, str]) -> Table:
    """The rows whose cells are as `where` says, without regard to emphasis; some of the columns.

    Raises:
        ValueError: there is no such column, or no such row.
    """
    names = list(table.columns)
    kept = list(columns) if columns else [name for name in names if name not in where]
    unknown = [name for name in [*kept, *where] if name not in names]
    if unknown:
        raise ValueError(f"no column is called {unknown[0]!r}: choose of {' | '.join(names)}")
    rows = [
        [row[names.index(name)] for name in kept]
        for row in table.rows
        if all(_plain(row[names.index(name)]) == value for name, value in where.items())
    ]
    if not rows:
        raise ValueError(f"no row has {where}")
    return Table(kept, rows, table.digits)


def compare(table: Table, columns: Sequence[str], cells: str, across: str) -> Table:
    """One column for each of several values of another, side by side.

    Args:
        table: in which `columns`, and the column that is spread out, tell every row.
        columns: come first; equal ones share a row.
        cells: the column whose figures fill the new ones.
        across: ``variant = a | b``: the column that is spread out, and the values wanted of it.

    Raises:
        ValueError: there is no such column, or no row has one of the values.
    """
    name, _, values = across.partition(" = ")
    wanted = [value.strip() for value in values.split("|")]
    rows: dict[tuple[str, ...], list[Any]] = {}
    for place, value in enumerate(wanted):
        for row in choose(table, [*columns, cells], {name: value}).rows:
            key = tuple(str(cell) for cell in row[:-1])
            rows.setdefault(key, [*row[:-1], *(None for _ in wanted)])[len(columns) + place] = row[
                -1
            ]
    kept = [row for row in rows.values() if any(x is not None for x in row[len(columns) :])]
    digits = {**table.digits, **dict.fromkeys(wanted, table.digits.get(cells, 3))}
    return Table([*columns, *wanted], kept, digits)


def _plain(cell: object) -> str:
    return str(cell).strip("*`")


def texts(table: Table) -> list[list[str]]:
    """Every cell as it is read."""
    digits = [table.digits.get(column, 3) for column in table.columns]
    return [[cell_text(*cell) for cell in zip(row, digits, strict=True)] for row in table.rows]


def cell_text(value: Any, digits: int) -> str:  # noqa: ANN401 - what JSON holds
    """A cell as it is read: a dash for null, ± only where several were measured."""
    if value is None:
        return "–"
    if isinstance(value, Mapping) and "median" in value:
        low, high = value["quartiles"]
        return f"{milliseconds(value['median'])} ({milliseconds(low)}–{milliseconds(high)})"
    if isinstance(value, Mapping):
        mean = f"{value['mean']:.{digits}f}"
        return mean if value.get("n") == 1 else f"{mean} ± {value['std']:.{digits}f}"
    if isinstance(value, float):
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def milliseconds(value: float) -> str:
    """As exact as it is worth."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def filled(text: str, folder: Path) -> str:
    """A page with every table as the results have it.

    Args:
        text: of the page, in Markdown.
        folder: that the names of results files start from.

    Raises:
        ValueError: a marker asks for what is not there, or is not closed.
    """
    if len(MARKED.findall(text)) != text.count("<!-- table: "):
        raise ValueError("a table is not closed")
    return MARKED.sub(lambda match: _filled(match, folder), text)


def _filled(match: re.Match[str], folder: Path) -> str:
    """One marker with what belongs into it."""
    try:
        table = _asked_for(match["what"], folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{match['what']}: {error}") from error
    return f"{match['open']}{markdown(texts(table), table.columns)}\n{match['close']}"


def _asked_for(what: str, folder: Path) -> Table:
    name, *options = (part.strip() for part in what.split(";"))
    columns: list[str] | None = None
    where: dict[str, str] = {}
    side_by_side: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition(": ")
        if key == "columns":
            columns = [column.strip() for column in value.split("|")]
        elif key == "where":
            column, _, wanted = value.partition(" = ")
            where[column] = wanted
        elif key in ("cells", "across"):
            side_by_side[key] = value
        else:
            raise ValueError(
                f"no option is called {key!r}: choose of columns, where, cells, across"
            )
    table = load(folder / name)
    if side_by_side:
        if columns is None or where or len(side_by_side) < 2:
            raise ValueError("cells and across go together, with columns and without where")
        return compare(table, columns, **side_by_side)
    return choose(table, columns, where)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write or check README.md and docs; the exit code."""
    parser = argparse.ArgumentParser(description="Tables of the docs, from docs/results.")
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if stale")
    check = parser.parse_args(arguments).check
    stale = []
    for page in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        try:
            new = filled(text, root / "docs")
        except ValueError as error:
            sys.exit(f"{page.relative_to(root)}: {error}")
        if new != text:
            stale.append(page)
            if not check:
                page.write_text(new, encoding="utf-8")
            print(f"{'not up to date' if check else 'written'}: {page.relative_to(root)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
