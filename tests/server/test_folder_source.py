"""A watched folder: finished files only, each once, over restarts too."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from haloae import ConfigError, ImageError, limit_images
from haloae.server.sources import Sources
from haloae.server.sources.folder import Folder
from server.plant import QUICK, disk, fill, until

SETTLE = 0.1


@contextmanager
def watching(
    settings: Folder, memory: Path, refuse: Callable[[bytes], bool] = lambda image: False
) -> Iterator[tuple[list[bytes], Sources]]:
    seen: list[bytes] = []

    def inspect(recipe: str, image: bytes, source: str) -> None:
        if refuse(image):
            raise ImageError("no image")
        seen.append(image)

    sources = Sources([settings], inspect, memory, back_off=QUICK)
    sources.start()
    try:
        yield seen, sources
    finally:
        sources.stop()


def folder(path: Path, **changes: object) -> Folder:
    settings = {"name": "in", "recipe": "bottle", "path": path, "settle": SETTLE}
    return Folder.model_validate(settings | changes)


def write(path: Path, data: bytes, age: float = 0.0) -> None:
    path.write_bytes(data)
    os.utime(path, (1e9 - age, 1e9 - age))


def test_what_lies_there_comes_oldest_first_and_once_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "in"
    (path / "below").mkdir(parents=True)
    write(path / "b.png", b"old", age=50)
    write(path / "below" / "a.png", b"new")
    for name in (".hidden.png", "a.png.part", "notes.txt"):
        write(path / name, b"none")
    with watching(folder(path), tmp_path) as (seen, _):
        until(lambda: len(seen) == 2)
    assert seen == [b"old", b"new"]
    write(path / "c.png", b"later")
    with watching(folder(path), tmp_path) as (seen, sources):
        until(lambda: seen)
        write(path / "b.png", b"written anew")
        until(lambda: len(seen) == 2)
        assert sources.states()[0].inspected == 2
    assert seen == [b"later", b"written anew"]
    assert (path / "c.png").exists()


@pytest.mark.faults
def test_on_a_full_disk_of_another_folder_nothing_is_put_away_by_halves(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.mkdir()
    write(path / "a.png", bytes(60_000))
    with disk(tmp_path / "disk", 200) as place:
        settings = folder(path, move_to=place / "done")
        settings.check()
        fill(place / "ballast", 20_000)
        with watching(settings, tmp_path) as (seen, _):
            until(lambda: seen)
            time.sleep(4 * SETTLE)
            assert (path / "a.png").exists()
            assert [each for each in (place / "done").rglob("*") if each.is_file()] == []
            (place / "ballast").unlink()
            until(lambda: not (path / "a.png").exists())
        (moved,) = [each for each in (place / "done").rglob("*") if each.is_file()]
        assert (moved.name, moved.read_bytes()) == ("a.png", bytes(60_000))
        assert len(seen) == 1


def test_a_file_that_still_grows_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.mkdir()
    settings = folder(path, settle=0.5)
    with watching(settings, tmp_path) as (seen, _), (path / "a.png").open("wb") as file:
        for _ in range(12):
            file.write(b"x")
            file.flush()
            time.sleep(0.08)
        assert seen == []
        until(lambda: seen)
    assert seen == [b"x" * 12]


def test_a_folder_that_disappears_is_reported_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    path, away = tmp_path / "in", tmp_path / "away"
    path.mkdir()
    write(path / "a.png", b"first")
    with watching(folder(path), tmp_path) as (seen, sources):
        until(lambda: seen)
        path.rename(away)
        until(lambda: sources.states()[0].status == "retrying")
        assert "no such folder" in str(sources.states()[0].reason)
        write(away / "b.png", b"second")
        away.rename(path)
        until(lambda: sources.states()[0].status == "running")
        until(lambda: len(seen) == 2)
    assert seen == [b"first", b"second"]


def test_inspected_files_are_moved_without_ever_replacing_one(tmp_path: Path) -> None:
    path, goal = tmp_path / "in", tmp_path / "done"
    path.mkdir()
    settings = folder(path, move_to=goal)
    with watching(settings, tmp_path, lambda image: image == b"bad") as (seen, sources):
        for data in (b"one", b"two"):
            write(path / "a.png", data)
            until(lambda: not (path / "a.png").exists())
        write(path / "b.png", b"bad")
        until(lambda: not (path / "b.png").exists())
        assert (sources.states()[0].inspected, sources.states()[0].refused) == (2, 1)
    assert seen == [b"one", b"two"]
    assert (goal / "a.png").read_bytes() == b"one"
    assert (goal / "a-2.png").read_bytes() == b"two"
    assert (goal / "refused" / "b.png").read_bytes() == b"bad"


def test_files_that_cannot_be_moved_are_inspected_once_and_moved_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, goal = tmp_path / "in", tmp_path / "done"
    path.mkdir()
    with watching(folder(path, move_to=goal), tmp_path) as (seen, _):
        shutil.rmtree(goal)
        goal.write_bytes(b"in the way")
        write(path / "a.png", b"a")
        write(path / "b.png", b"b")
        until(lambda: len(seen) == 2)
        until(lambda: "b.png: cannot be moved" in caplog.text)
        goal.unlink()
        until(lambda: not any(path.iterdir()))
    assert sorted(seen) == [b"a", b"b"]
    assert caplog.text.count("a.png: cannot be moved") == 1
    assert {each.name for each in goal.iterdir()} == {"a.png", "b.png"}


def test_a_file_over_the_limit_is_said_and_put_away_unread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, goal = tmp_path / "in", tmp_path / "done"
    path.mkdir()
    limit_images(bytes=10)
    write(path / "a.png", b"x" * 11)
    with watching(folder(path, move_to=goal), tmp_path) as (seen, _):
        until(lambda: (goal / "refused" / "a.png").exists())
    assert seen == []
    assert "a.png: is over 10 bytes" in caplog.text


@pytest.mark.faults
def test_on_a_full_disk_each_file_is_inspected_once_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "in"
    path.mkdir()
    write(path / "a.png", b"a")
    with disk(tmp_path / "disk", 500) as place:
        with watching(folder(path), place) as (seen, _):
            until(lambda: seen)
        fill(place / "ballast")
        with watching(folder(path), place) as (seen, _):
            for number in range(300):  # more than its page on the disk has room for
                write(path / f"{number:0100}.png", b"%d" % number, age=1000 - number)
            until(lambda: len(seen) == 300)
            time.sleep(2 * SETTLE)
            (place / "ballast").unlink()
            write(path / "b.png", b"b")
            until(lambda: len(seen) == 301)
        with watching(folder(path), place) as (again, sources):
            until(lambda: sources.states()[0].status == "running")
            time.sleep(2 * SETTLE)
    assert len(seen) == len(set(seen)) == 301
    assert again == []
    assert "what was inspected cannot be noted" in caplog.text


def test_moving_to_where_it_would_be_found_again_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="outside of"):
        folder(tmp_path, move_to=tmp_path / "done").check()
