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
    results = tmp_path / "docs" / "results" / "demo.json"
    changed = json.loads(results.read_text())
    changed["rows"][0][1] = 0.123
    results.write_text(json.dumps(changed))
    before = (tmp_path / "README.md").read_text()
    assert main(["--check"], tmp_path) == 1
    assert "not up to date: README.md" in capsys.readouterr().out
    assert (tmp_path / "README.md").read_text() == before
    assert main([], tmp_path) == 0
    assert "| 0.123 |" in (tmp_path / "README.md").read_text()
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


def test_variants_stand_side_by_side(folder: Path) -> None:
    def cell(value: float | None) -> dict[str, float] | None:
        return None if value is None else {"mean": value, "std": 0.01, "n": 2}

    figures = [
        ("fast", "cookie", 0.9, 0.6),
        ("fast", "pill", 0.8, None),  # has no masks
        ("fast", "tire", 0.7, 0.4),
        ("fast", "**mean**", 0.8, 0.5),
        ("fast, nearest", "cookie", 0.5, 0.2),
        ("fast, nearest", "pill", None, None),  # failed, as the next
        ("fast, nearest", "tire", None, None),
        ("fast, nearest", "**mean**", None, None),
    ]
    difference = {"cookie": 0.91, "pill": 0.92, "tire": 0.93, "**mean**": 0.92}
    columns = ["variant", "set", "pixel difference", "image AUROC", "AUPRO"]
    found = [[v, name, difference[name], cell(a), cell(o)] for v, name, a, o in figures]
    results = json.dumps({"columns": columns, "rows": found})
    (folder / "results" / "benchmark.json").write_text(results)
    page = PAGE.replace("speed", "benchmark")
    across = "across: variant = fast | fast, nearest"
    options = f"; columns: set | pixel difference; cells: image AUROC; {across}"
    assert rows(filled(page.format(options), folder)) == [
        "| set | pixel difference | fast | fast, nearest |",
        "|---|---|---|---|",
        "| cookie | 0.910 | 0.900 ± 0.010 | 0.500 ± 0.010 |",
        "| pill | 0.920 | 0.800 ± 0.010 | – |",
        "| tire | 0.930 | 0.700 ± 0.010 | – |",
        "| **mean** | 0.920 | 0.800 ± 0.010 | – |",
    ]
    assert rows(filled(page.format(f"; columns: set; cells: AUPRO; {across}"), folder))[2:] == [
        "| cookie | 0.600 ± 0.010 | 0.200 ± 0.010 |",
        "| tire | 0.400 ± 0.010 | – |",
        "| **mean** | 0.500 ± 0.010 | – |",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("; columns: GB", "no column is called 'GB'"),
        ("; where: preset = slow", "no row has"),
        ("; sort: ms", "no option is called 'sort'"),
        ("; columns: MB; cells: ms; across: preset = slow", "no row has"),
        ("; columns: MB; cells: ms", "go together"),
    ],
)
def test_what_is_not_there_is_said(folder: Path, options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filled(PAGE.format(options), folder)


def test_a_table_must_be_closed(folder: Path) -> None:
    with pytest.raises(ValueError, match="not closed"):
        filled(PAGE.format("").replace("<!-- /table -->", ""), folder)
