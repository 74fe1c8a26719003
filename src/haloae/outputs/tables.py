"""The one printer of tables: lines of text for a terminal, or Markdown."""

from collections.abc import Iterable, Sequence

Rows = Iterable[Sequence[str]]
GAP = "  "
"""Between columns, and before the first where a table is indented."""


def terminal(
    rows: Rows, header: Sequence[str] | None = None, *, align: str = "lr", indent: bool = False
) -> str:
    """A table whose columns are as wide as what they hold.

    Args:
        rows: their cells, of the same number in every row.
        header: goes above; None: nothing does.
        align: a letter for each column, ``l`` for left and ``r`` for right; the last stands for
            the columns after it too.
        indent: True: every line is set off by a gap.

    >>> print(terminal([["pill", "0.98"], ["cookie", "1"]], ["", "AUROC"]))
            AUROC
    pill     0.98
    cookie      1
    """
    cells = [list(row) for row in rows] if header is None else [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = align.ljust(len(widths), align[-1])
    lines = []
    for row in cells:
        columns = zip(row, widths, sides, strict=True)
        padded = [c.rjust(width) if side == "r" else c.ljust(width) for c, width, side in columns]
        lines.append((GAP * indent + GAP.join(padded)).rstrip())
    return "\n".join(lines)


def markdown(rows: Rows, header: Sequence[str]) -> str:
    """A table in Markdown.

    >>> print(markdown([["pill", "0.98"]], ["category", "AUROC"]))
    | category | AUROC |
    |---|---|
    | pill | 0.98 |
    """
    lines = [_line(header), "|---" * len(header) + "|"]
    return "\n".join([*lines, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    """A bar within a cell would end it."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
