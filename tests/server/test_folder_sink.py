"""Inspections on disk: whole lines, their images, and never more than was allowed."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from haloae import OutputError
from haloae.server.sinks import Item, Sinks
from haloae.server.sinks.folder import Folder
from server.made_up import START
from server.plant import QUICK, Seen, inspection, png, until

KIBI = 2**10


def folder(path: Path, **changes: object) -> Folder:
    return Folder.model_validate({"name": "disk", "path": path, "most_days": 36_500} | changes)


def items(count: int, size: int = 0, **changes: Any) -> list[Item]:  # noqa: ANN401
    image = png(7) + bytes(size)
    return [Item(inspection(n, **changes).as_record(), image) for n in range(count)]


def deliver(settings: Folder, found: list[Item]) -> None:
    with settings.opened() as connection:
        for item in found:
            connection.deliver(item)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def total(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_a_line_each_that_names_its_image(tmp_path: Path) -> None:
    sinks = Sinks([folder(tmp_path / "out")], tmp_path / "state")
    sinks.start()
    for number in range(3):
        sinks.offer(inspection(number), Seen(png(number)))
    sinks.stop()
    day = tmp_path / "out" / "2026-03-01"
    found = lines(day / "inspections.jsonl")
    assert [line | {"file": None} for line in found] == [
        inspection(number).as_record() | {"file": None} for number in range(3)
    ]
    assert [(day / line["file"]).read_bytes() for line in found] == [png(n) for n in range(3)]
    assert found[1]["file"] == f"060001.000000-{1:032x}.png"


def test_images_of_normal_ones_may_be_left_out(tmp_path: Path) -> None:
    settings = folder(tmp_path, images="not_normal")
    deliver(settings, items(1) + items(2, verdict="unusable", reason="dark")[1:])
    normal, unusable = lines(tmp_path / "2026-03-01" / "inspections.jsonl")
    assert normal["file"] is None
    assert (tmp_path / "2026-03-01" / unusable["file"]).exists()


def test_bytes_are_never_more_than_allowed_and_the_oldest_image_goes_first(tmp_path: Path) -> None:
    settings = folder(tmp_path, most_bytes=100 * KIBI)
    with settings.opened() as connection:
        for item in items(40, size=10 * KIBI):
            connection.deliver(item)
            assert total(tmp_path) <= 100 * KIBI
    found = lines(tmp_path / "2026-03-01" / "inspections.jsonl")
    kept = [line for line in found if (tmp_path / "2026-03-01" / line["file"]).exists()]
    assert len(found) == 40
    assert kept == found[-len(kept) :]
    assert 3 < len(kept) < 10
    deliver(settings, items(41, size=200 * KIBI)[40:])  # too large to be kept at all
    assert lines(tmp_path / "2026-03-01" / "inspections.jsonl")[-1]["file"] is None
    assert total(tmp_path) <= 100 * KIBI


def test_records_go_when_there_are_no_images_left(tmp_path: Path) -> None:
    settings = folder(tmp_path, most_bytes=64 * KIBI, images="none")
    with settings.opened() as connection:
        for number in range(200):
            changed = inspection(number, time=START + timedelta(hours=number))
            connection.deliver(Item(changed.as_record()))
            assert total(tmp_path) <= 64 * KIBI
    days = sorted(path.name for path in tmp_path.iterdir())
    assert days[-1] == "2026-03-09"
    assert 2 < len(days) < 8


def test_days_go_when_they_are_old_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    deliver(folder(tmp_path), items(2))
    (tmp_path / "2026-03-01" / "notes.txt").write_text("mine")
    (tmp_path / "2026-02-01").mkdir()
    (tmp_path / "other").mkdir()
    now = datetime.now(UTC)
    deliver(folder(tmp_path, most_days=2), [Item(inspection(5, time=now).as_record(), png(1))])
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    day = f"{now:%Y-%m-%d}"
    assert [name for name in found if not name.startswith(day)] == ["2026-03-01/notes.txt"]
    assert len(lines(tmp_path / day / "inspections.jsonl")) == 1


def test_what_a_killed_process_left_is_put_right(tmp_path: Path) -> None:
    deliver(folder(tmp_path), items(2))
    file = tmp_path / "2026-03-01" / "inspections.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    deliver(folder(tmp_path), items(2)[1:])  # its image is there already
    assert [line["id"] for line in lines(file)] == [inspection(n).id for n in (0, 1)]
    assert len([*file.parent.iterdir()]) == 3


def test_what_comes_again_after_a_kill_is_written_once_and_finds_its_image(tmp_path: Path) -> None:
    deliver(folder(tmp_path), items(2))
    file = tmp_path / "2026-03-01" / "inspections.jsonl"
    whole = file.read_text()
    deliver(folder(tmp_path), items(2))
    assert file.read_text() == whole
    file.write_text("")
    deliver(folder(tmp_path), [Item(item.record) for item in items(2)])  # without their images
    assert file.read_text() == whole


def test_a_folder_that_cannot_be_written_is_reported_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out"
    sinks = Sinks([folder(path)], tmp_path / "state", back_off=QUICK)
    path.rmdir()
    path.write_text("in the way")
    sinks.start()
    for number in range(3):
        sinks.offer(inspection(number), Seen(png(number)))
    until(lambda: sinks.states()[0].status == "retrying")
    path.unlink()
    until(lambda: sinks.states()[0].delivered == 3)
    sinks.stop()
    assert len(lines(path / "2026-03-01" / "inspections.jsonl")) == 3


def test_a_place_that_no_folder_can_have_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="the folder cannot be made"):
        Sinks([folder(tmp_path / "file" / "out")], tmp_path)
