"""Tables as text: what lines up, and what Markdown would break on."""

from haloae.outputs.tables import markdown, terminal

ROWS = [["pill", "0.9", "yes"], ["cookie", "10.25", "no"]]


def test_columns_are_as_wide_as_what_they_hold() -> None:
    assert terminal(ROWS, ["", "AUROC", "done"]).splitlines() == [
        "        AUROC  done",
        "pill      0.9   yes",
        "cookie  10.25    no",
    ]


def test_the_last_letter_aligns_the_columns_after_it() -> None:
    assert terminal(ROWS, align="rl", indent=True).splitlines() == [
        "    pill  0.9    yes",
        "  cookie  10.25  no",
    ]


def test_no_line_ends_in_spaces() -> None:
    lines = terminal([["a", "long text"], ["b", ""]], align="l").splitlines()
    assert lines == ["a  long text", "b"]


def test_a_table_without_rows_has_its_header() -> None:
    assert terminal([], ["a", "b"]) == "a  b"
    assert terminal([]) == ""
    assert markdown([], ["a", "b"]) == "| a | b |\n|---|---|"


def test_a_bar_in_a_cell_ends_no_cell_of_markdown() -> None:
    assert markdown([["a|b", "1"]], ["name", "value"]).splitlines() == [
        "| name | value |",
        "|---|---|",
        "| a\\|b | 1 |",
    ]
