"""The tables of README and docs are those of docs/results."""

import json
import shutil
from pathlib import Path

import pytest
from benchmarks.tables import ROOT, filled, main

PAGE = "before\n<!-- table: results/speed.json{} -->\nold\n<!-- /table -->\nafter\n"
SPEED = {
    "title": "Speed",
    "command": "",
    "note": "",
    "columns": ["preset", "ms", "MB", "share"],
    "digits": {"share": 1},
    "rows": [
        ["`fast`", {"median": 11.51, "quartiles": [9.5, 101.4]}, 1383, 0.25],
        ["**paper**", None, 20, {"mean": 0.5, "std": 0.04}],
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "speed.json").write_text(json.dumps(SPEED))
    return tmp_path


def rows(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("|")]


def test_docs_are_up_to_date() -> None:
    assert main(["--check"]) == 0


def test_a_changed_result_is_seen_and_then_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    results = tmp_path / "docs" / "results" / "benchmark.json"
    results.write_text(results.read_text().replace("0.972", "0.123"))
    before = (tmp_path / "README.md").read_text()
    assert main(["--check"], tmp_path) == 1
    assert "not up to date: README.md" in capsys.readouterr().out
    assert (tmp_path / "README.md").read_text() == before
    assert main([], tmp_path) == 0
    assert "| 0.123 ± 0.002 |" in (tmp_path / "README.md").read_text()
    assert main(["--check"], tmp_path) == 0


def test_a_table_is_what_the_results_hold(folder: Path) -> None:
    page = filled(PAGE.format(""), folder)
    assert page.startswith("before\n<!-- table: results/speed.json -->\n| preset |")
    assert page.endswith("|\n<!-- /table -->\nafter\n")
    assert rows(page)[2:] == [
        "| `fast` | 11.5 (9.50–101) | 1,383 | 0.2 |",
        "| **paper** | – | 20 | 0.5 ± 0.0 |",
    ]
    assert filled(page, folder) == page


def test_columns_and_rows_are_chosen(folder: Path) -> None:
    page = filled(PAGE.format("; columns: MB | preset; where: preset = paper"), folder)
    assert rows(page) == ["| MB | preset |", "|---|---|", "| 20 | **paper** |"]
    page = filled(PAGE.format("; where: preset = fast"), folder)
    assert rows(page)[0] == "| ms | MB | share |"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("; columns: GB", "no column is called 'GB'"),
        ("; where: preset = slow", "no row has"),
        ("; sort: ms", "no option is called 'sort'"),
    ],
)
def test_what_is_not_there_is_said(folder: Path, options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filled(PAGE.format(options), folder)


def test_a_table_must_be_closed(folder: Path) -> None:
    with pytest.raises(ValueError, match="not closed"):
        filled(PAGE.format("").replace("<!-- /table -->", ""), folder)
