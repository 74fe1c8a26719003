"""Files that are written whole or not at all, and read without waiting."""

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from haloae.errors import OutputError
from haloae.files import open_regular, read_regular, write_atomic


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_the_mask_of_the_process_is_never_lifted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("another thread may write now"))
    write_atomic(tmp_path / "a", b"1")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_temporary_files_of_killed_processes_go_and_those_in_use_stay(tmp_path: Path) -> None:
    import fcntl

    dead, alive, young = (tmp_path / f".haloae-tmp-{name}" for name in ("dead", "alive", "young"))
    for path in (dead, alive, young):
        path.write_bytes(b"half")
    for path in (dead, alive):
        os.utime(path, (0, 0))
    with alive.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_atomic(tmp_path / "a", b"whole")
        assert {path.name for path in tmp_path.iterdir()} == {"a", alive.name, young.name}


def test_a_file_and_its_folder_reach_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda number: synced.append(stat.S_IFMT(os.fstat(number).st_mode))
    )
    write_atomic(tmp_path / "a", b"1")
    write_atomic(tmp_path / "b", b"1", durable=False)
    monkeypatch.setattr(os, "fsync", fsync)
    assert synced == [stat.S_IFREG, stat.S_IFDIR]


def special(folder: Path) -> dict[str, Path]:
    """One of each kind that is no regular file, by what it is called."""
    paths = {kind: folder / kind for kind in ("folder", "pipe", "socket", "leads back")}
    paths["folder"].mkdir()
    os.mkfifo(paths["pipe"])
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(folder)  # a socket's path may be no longer than 107 bytes
        server.bind("socket")
    paths["leads back"].symlink_to("leads back")
    return paths | {"device": Path("/dev/zero")}


def test_only_regular_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, path in special(tmp_path).items():
        with pytest.raises(OSError, match=kind):
            open_regular(path)
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").symlink_to("a")
    assert read_regular(tmp_path / "b", most=3) == b"123"
    with pytest.raises(OSError, match="larger than 2 bytes"):
        read_regular(tmp_path / "a", most=2)


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    was_file = (tmp_path / "file").stat()
    monkeypatch.setattr(Path, "stat", lambda path: was_file)
    with pytest.raises(OSError, match="it is a pipe"):
        open_regular(tmp_path / "pipe")


def test_nothing_but_a_file_or_a_link_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, path in special(tmp_path).items():
        if kind != "leads back":
            with pytest.raises(OutputError, match=rf"is a {kind}, and stands where"):
                write_atomic(path, b"")
    assert stat.S_ISCHR(Path("/dev/zero").stat().st_mode)
    write_atomic(tmp_path / "leads back", b"1")
    assert (tmp_path / "leads back").read_bytes() == b"1"


def test_threads_write_one_file(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=write_atomic, args=(tmp_path / "a", bytes([n]) * 1000))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set((tmp_path / "a").read_bytes())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
