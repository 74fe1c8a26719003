"""Folders of days: the oldest file goes first, and nothing of anybody else's."""

import os
import re
from pathlib import Path

import pytest

from haloae.server.days import Days

OURS = re.compile(r"\d\.png")


@pytest.fixture
def days(tmp_path: Path) -> Days:
    for number, name in enumerate(["2026-03-02/1.png", "2026-03-01/2.png", "2026-03-01/1.png"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(10 + number))
        os.utime(path, ns=(number, number))
    (tmp_path / "2026-03-01" / "notes.txt").write_text("of somebody")
    (tmp_path / "other").mkdir()
    found = Days(tmp_path, OURS)
    found.find()
    return found


def left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_what_was_written_before_counts_and_the_oldest_of_the_oldest_day_goes_first(
    days: Days, tmp_path: Path
) -> None:
    assert (days.bytes, days.first) == (33, "2026-03-01")
    days.remove_oldest()
    assert left(tmp_path) == ["2026-03-01/1.png", "2026-03-01/notes.txt", "2026-03-02/1.png"]
    assert days.bytes == 22
    while days.first is not None:
        days.remove_oldest()
    assert (days.bytes, left(tmp_path)) == (0, ["2026-03-01/notes.txt"])
    assert {path.name for path in tmp_path.iterdir()} == {"2026-03-01", "other"}


def test_what_is_added_counts_and_what_somebody_has_removed_does_no_more(
    days: Days, tmp_path: Path
) -> None:
    (tmp_path / "2026-03-01" / "1.png").unlink()
    (tmp_path / "2026-03-02" / "3.png").write_bytes(bytes(5))
    days.add("2026-03-02", 5)
    assert days.bytes == 38
    days.remove_oldest()
    assert days.bytes == 15
    days.remove_oldest()
    assert (days.bytes, days.first) == (15, "2026-03-02")
