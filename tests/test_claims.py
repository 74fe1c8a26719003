"""An output is one process's at a time, and the old stays until the new is whole."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

from faults.kills import contents, hidden_in, killed_before
from haloae.claims import Results, claim_folder, finish_writing, unfinished, write_together
from haloae.errors import OutputError
from haloae.files import write_atomic


def listed(out: Path) -> Iterator[PurePosixPath]:
    if (out / "list.json").is_file():
        yield from map(PurePosixPath, json.loads((out / "list.json").read_text()))


RESULTS = Results("test", ("list.json", "page"), folders=("pictures",), listed=listed)
TRAINED = Results("trained", ("model", "checkpoint"), goes_on_from="checkpoint")


def write(out: Path, names: str, *, page: bool = True, overwrite: bool = True) -> None:
    """Leave a picture of each name, a list of them, and a page."""
    with claim_folder(out, RESULTS, overwrite=overwrite) as folder:
        for name in names:
            write_atomic(folder / f"pictures/{name}/0", os.fsencode(names), durable=False)
        write_atomic(folder / "list.json", json.dumps([f"pictures/{n}/0" for n in names]).encode())
        if page:
            write_atomic(folder / "page", os.fsencode(names))


def made(names: str, *, page: bool = True) -> dict[str, bytes]:
    pictures = [f"pictures/{name}/0" for name in names]
    files = dict.fromkeys(pictures, os.fsencode(names)) | {
        "list.json": json.dumps(pictures).encode()
    }
    return files | ({"page": os.fsencode(names)} if page else {})


def claim_again(out: Path) -> None:
    """The next command, even one that is refused."""
    with pytest.raises(OutputError, match="not empty"):
        write(out, "x", overwrite=False)


def test_the_new_replaces_the_old_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, "ab", overwrite=False)
    assert contents(tmp_path) == made("ab")
    (tmp_path / "pictures/mine").write_bytes(b"mine")
    (tmp_path / "notes").write_bytes(b"mine")
    mine = {"pictures/mine": b"mine", "notes": b"mine"}
    claim_again(tmp_path)
    write(tmp_path, "bc", page=False)
    assert contents(tmp_path) == made("bc", page=False) | mine
    assert hidden_in(tmp_path) == set()


def test_names_may_be_any_the_disk_takes(tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"o\xff\n" + b"o" * 252)
    write(out, "\udcff\n")
    write(out, "\udcfe\u202e")
    assert contents(out) == made("\udcfe\u202e")
    pair = {out / f"{'n' * 251}.xml": b"graph", out / f"{'n' * 251}.bin": b"weights"}
    write_together(pair)
    assert all(path.read_bytes() == data for path, data in pair.items())


def test_an_error_leaves_the_old(tmp_path: Path) -> None:
    write(tmp_path, "ab")

    def stop() -> None:
        with claim_folder(tmp_path, RESULTS, overwrite=True) as folder:
            write_atomic(folder / "page", b"new")
            assert contents(tmp_path) == made("ab")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert contents(tmp_path) == made("ab")
    assert hidden_in(tmp_path) == set()


EVERY = pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.slow)])


@EVERY
def test_killed_before_a_step_the_old_or_the_new_is_whole(tmp_path: Path, every: int) -> None:
    found = []
    for step in range(1, 1000, every):
        out = tmp_path / str(step)
        write(out, "ab")
        was_killed = killed_before(step, lambda out=out: write(out, "bc", page=False), out)
        claim_again(out)
        found.append(contents(out))
        assert not {name for name in hidden_in(out) if "tmp" not in name}
        if not was_killed:
            break
    old, new = made("ab"), made("bc", page=False)
    assert all(state in (old, new) for state in found)
    switched = found.index(new)
    assert found[:switched] == [old] * switched
    assert found[switched:] == [new] * (len(found) - switched)
    assert switched > 5
    assert len(found) - switched > 5


@EVERY
def test_files_that_belong_together_stay_together_when_killed(tmp_path: Path, every: int) -> None:
    found = []
    for step in range(1, 1000, every):
        graph, weights = tmp_path / f"{step}.xml", tmp_path / f"{step}.bin"
        write_together({graph: b"old", weights: b"old"})

        def work(graph: Path = graph, weights: Path = weights) -> None:
            write_together({graph: b"new", weights: b"new"})

        was_killed = killed_before(step, work, tmp_path)
        finish_writing(graph)
        assert graph.read_bytes() == weights.read_bytes()
        found.append(graph.read_bytes())
        if not was_killed:
            break
    assert sorted(found, reverse=True) == found
    assert set(found) == {b"old", b"new"}
    assert not {name for name in hidden_in(tmp_path) if not name.endswith(".lock")}


def test_what_was_stopped_goes_on_beside_the_old(tmp_path: Path) -> None:
    def has_checkpoint(folder: Path) -> bool:
        return (folder / "checkpoint").is_file()

    for name in TRAINED.files:
        write_atomic(tmp_path / name, b"old")

    def stop() -> None:
        with claim_folder(tmp_path, TRAINED, overwrite=True) as folder:
            write_atomic(folder / "checkpoint", b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert contents(tmp_path) == {"model": b"old", "checkpoint": b"old"}
    assert (unfinished(tmp_path, TRAINED) / "checkpoint").read_bytes() == b"new"
    with claim_folder(tmp_path, TRAINED, overwrite=False, goes_on=has_checkpoint) as folder:
        assert (folder / "checkpoint").read_bytes() == b"new"
        write_atomic(folder / "model", b"new")
    assert contents(tmp_path) == {"model": b"new", "checkpoint": b"new"}
    assert hidden_in(tmp_path) == set()


HOLD = """\
import sys
from pathlib import Path
from haloae.claims import Results, claim_folder
with claim_folder(Path(sys.argv[1]), Results("test", ("page",)), overwrite=True):
    print(flush=True)
    sys.stdin.read()
"""


def test_two_processes_and_one_that_was_killed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(OutputError, match=rf"process {holder.pid} is writing there"):
            write(out, "a")
        holder.send_signal(signal.SIGKILL)
    assert hidden_in(out) == {".haloae-lock"}
    write(out, "a", overwrite=False)
    assert contents(out) == made("a")
    assert hidden_in(out) == set()


def test_of_threads_one_at_a_time(tmp_path: Path) -> None:
    with (
        claim_folder(tmp_path, RESULTS, overwrite=True),
        pytest.raises(OutputError, match=f"process {os.getpid()} "),
    ):
        write(tmp_path, "a")
    write(tmp_path, "a")


def test_a_link_among_the_results_deletes_nobody_s_files(tmp_path: Path) -> None:
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    write(out, "ab")
    (out / "pictures/a/0").unlink()
    (out / "pictures/a").rmdir()
    theirs.mkdir()
    (theirs / "0").write_bytes(b"theirs")
    (out / "pictures/a").symlink_to(theirs)
    write(out, "b")
    with pytest.raises(OutputError, match="pictures/a: is a symbolic link"):
        write(out, "a")
    (out / "list.json").write_text(json.dumps(["../theirs/0", str(theirs / "0"), "pictures/a/0"]))
    write(out, "b")
    assert (theirs / "0").read_bytes() == b"theirs"
    (out / "pictures").rename(out / "other")
    (out / "pictures").symlink_to(theirs)
    with pytest.raises(OutputError, match="pictures: is a symbolic link"):
        write(out, "a")
    assert contents(theirs) == {"0": b"theirs"}


@pytest.mark.parametrize("gone", ["../theirs/0", "{theirs}/0", "link/0"])
def test_a_record_that_someone_else_made_deletes_nothing_elsewhere(
    tmp_path: Path, gone: str
) -> None:
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "0").write_bytes(b"theirs")
    new = out / ".haloae-new-test"
    new.mkdir(parents=True)
    (out / "link").symlink_to(theirs)
    (new / ".haloae-whole").write_text(json.dumps([gone.format(theirs=theirs)]))
    write(out, "a")
    assert contents(theirs) == {"0": b"theirs"}


def test_a_link_in_the_place_of_the_new_is_not_followed(tmp_path: Path) -> None:
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    for folder in (out, theirs):
        write(folder, "a")
    (theirs / ".haloae-whole").write_text("[]")
    (out / ".haloae-new-test").symlink_to(theirs)
    write(out, "b")
    assert contents(out) == made("b")
    assert contents(theirs) == made("a")


@pytest.mark.parametrize("record", ["", "{", "3", "[3]"])
def test_a_damaged_record_is_said(tmp_path: Path, record: str) -> None:
    new = tmp_path / ".haloae-new-test"
    new.mkdir()
    (new / ".haloae-whole").write_text(record)
    with pytest.raises(OutputError, match="damaged"):
        write(tmp_path, "a")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("page", Path.mkdir),
        ("page", make_pipe),
        ("list.json", make_pipe),
        ("pictures", Path.touch),
        ("pictures", make_pipe),
    ],
)
def test_something_else_in_the_place_of_a_result(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    make(tmp_path / name)
    start = time.monotonic()
    with pytest.raises(OutputError, match=rf"{name}: is a .*, and stands where results are to go"):
        write(tmp_path, "a")
    assert time.monotonic() - start < 5
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_below_which_new_results_cannot_go_leaves_the_old(tmp_path: Path) -> None:
    write(tmp_path, "a")
    (tmp_path / "pictures/b").write_bytes(b"mine")
    with pytest.raises(OutputError, match="pictures/b: is a file"):
        write(tmp_path, "b")
    assert contents(tmp_path) == made("a") | {"pictures/b": b"mine"}
    assert hidden_in(tmp_path) == set()
