"""An output belongs to one process at a time, and what it holds stays until the new is whole.

The new is built in a hidden folder beside the old; then a record in there says that nothing is
missing, and each file moves to its place. What is killed before the record has changed nothing;
after it, whoever comes next moves the rest.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from haloae.errors import OutputError
from haloae.files import (
    HIDDEN,
    cannot_write,
    lock,
    read_regular,
    require_room,
    sweep,
    sync_folder,
    write_atomic,
)

LOCK = f"{HIDDEN}lock"
NEW = f"{HIDDEN}new-"
"""A folder of new results, with their kind."""
TOGETHER = f"{HIDDEN}together-"
"""A folder of new files that belong together."""
RECORD = f"{HIDDEN}whole"
"""In either: all are there. Lists the old files that go, as none of the new has their name."""
MOST_RECORD = 2**30
"""Bytes."""


class Results(NamedTuple):
    """What a command leaves in its output folder."""

    kind: str
    files: tuple[str, ...]
    """Names."""
    folders: tuple[str, ...] = ()
    """Names of folders with more files, among which may be others'."""
    listed: Callable[[Path], Iterable[PurePosixPath]] = lambda out: ()
    """Files in those folders that earlier results in `out` say are theirs, relative to it."""
    goes_on_from: str = ""
    """File that new results can be gone on with from, if they are stopped; empty: there is none."""


@contextmanager
def claim_folder(
    out: Path,
    results: Results,
    *,
    overwrite: bool,
    goes_on: Callable[[Path], bool] = lambda folder: False,
    way_out: str = "give --overwrite",
) -> Iterator[Path]:
    """Make an output folder and keep other processes out, or refuse one that holds something.

    Yields the folder to write to: `out` itself, or, where older results stand in it, a hidden one,
    whose files take their place at the end. An error leaves those that stood there.

    Args:
        out: the folder.
        results: what is written to it.
        overwrite: True: what it holds may be replaced.
        goes_on: whether what a folder holds is to be gone on with, there and without `overwrite`.
        way_out: what the message tells the caller to do.

    Raises:
        OutputError: it is not empty, not a folder, cannot be written to, is being written to by
            another process, or something else stands where a result is to go.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    new = out / f"{NEW}{results.kind}"
    with _locked(out / LOCK, out) as was_killed:
        _put_right(out, new, results, was_killed=was_killed)
        _require_places(out, results)
        folder = next((place for place in (new, out) if place.is_dir() and goes_on(place)), None)
        if folder is None:
            if not overwrite and not is_empty(out):
                raise OutputError(f"{out}: is not empty: {way_out}, or choose another --out.")
            _discard(new)
            has_old = any(os.path.lexists(out / n) for n in (*results.files, *results.folders))
            folder = new if has_old else out
        if folder == out:
            yield out
        else:
            with _replacing(out, new, results):
                yield new


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder that is made or gone on with, as it stands.

    Raises:
        OutputError: it cannot be written to, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    with _locked(folder / LOCK, folder):
        yield


def unfinished(out: Path, results: Results) -> Path:
    """Where results that were stopped are to be gone on with: the hidden folder, or `out`."""
    new = out / f"{NEW}{results.kind}"
    return new if (new / results.goes_on_from).is_file() else out


def is_empty(out: Path) -> bool:
    """True: a folder holds nothing but what is hidden there."""
    return all(name.startswith(HIDDEN) for name in os.listdir(out))  # noqa: PTH208


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together, of one folder, all or none; see `finish_writing`.

    Args:
        files: the first is the one that is looked for.

    Raises:
        OutputError: they cannot be written, or another process is writing them.
    """
    first = next(iter(files))
    out, new = first.parent, _beside(first)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(first, error) from error
    with _locked(new.with_suffix(".lock"), first):
        _finish_or_discard(out, new)
        together = Results("", tuple(path.name for path in files))
        _require_places(out, together)
        with _replacing(out, new, together):
            for path, data in files.items():
                write_atomic(new / path.name, data)


def finish_writing(path: Path) -> None:
    """Before the first of such files is read: do what a process that was killed left to do."""
    new = _beside(path)
    if os.path.lexists(new):
        with suppress(OutputError), _locked(new.with_suffix(".lock"), path):
            _finish_or_discard(path.parent, new)


def _beside(path: Path) -> Path:
    """A folder's name that is short, however long the file's is."""
    return path.with_name(f"{TOGETHER}{sha256(os.fsencode(path.name)).hexdigest()[:16]}")


# What is new, and how it takes the place of the old


@contextmanager
def _replacing(out: Path, new: Path, results: Results) -> Iterator[None]:
    """While new results are made; at the end they take their places."""
    try:
        new.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    try:
        yield
        _record(out, new, results)
    except BaseException:
        if not _is_kept(new, results):
            _discard(new)
        raise
    _finish(out, new)


def _record(out: Path, new: Path, results: Results) -> None:
    """Say that all new files are there: from here on they are the results, wherever they lie."""
    for path in _files_in(new):
        require_room(out / path)
        for parent in path.parents[:-1]:
            require_room(out / parent, of_folder=True)
    old = (*map(PurePosixPath, results.files), *results.listed(out))
    gone = [str(p) for p in old if os.path.lexists(out / p) and not os.path.lexists(new / p)]
    write_atomic(new / RECORD, json.dumps(gone).encode())


def _finish(out: Path, new: Path) -> None:
    """Remove the old files that are to go, and move the new ones to their places."""
    try:
        for name in json.loads(read_regular(new / RECORD, most=MOST_RECORD)):
            path = PurePosixPath(name)
            if not _leads_away(out, path):
                (out / path).unlink(missing_ok=True)
        folders = {out}
        for path in _files_in(new):
            if _leads_away(out, path):
                raise OSError(errno.ENOTDIR, f"a folder of {path} is a symbolic link")
            folders.add((out / path).parent)
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (new / path).replace(out / path)
    except (ValueError, TypeError) as error:
        raise OutputError(f"{new}: damaged: delete it, or choose another --out.") from error
    except OSError as error:
        raise cannot_write(out, error) from error
    for folder in folders:
        sync_folder(folder)
    _discard(new)


def _finish_or_discard(out: Path, new: Path) -> None:
    if new.is_dir() and not new.is_symlink() and (new / RECORD).is_file():
        _finish(out, new)
    else:
        _discard(new)


def _is_kept(new: Path, results: Results) -> bool:
    """True: what was stopped can be gone on with, or is whole."""
    names = [name for name in (RECORD, results.goes_on_from) if name]
    return not new.is_symlink() and any((new / name).is_file() for name in names)


def _discard(new: Path) -> None:
    """Remove new files, the record first: without it, what is left of them counts for nothing."""
    try:
        if new.is_symlink():
            new.unlink()
        elif new.is_dir():
            (new / RECORD).unlink(missing_ok=True)
            shutil.rmtree(new)
    except OSError as error:
        raise cannot_write(new, error) from error


def _put_right(out: Path, new: Path, results: Results, *, was_killed: bool) -> None:
    """Finish what was recorded as whole, and remove what nobody can go on with."""
    try:
        for each in [out / name for name in os.listdir(out) if name.startswith(NEW)]:  # noqa: PTH208
            if (each / RECORD).is_file():
                _finish_or_discard(out, each)
        if not _is_kept(new, results):
            _discard(new)
        sweep(out)
        for name in results.folders if was_killed else ():
            for folder, _, _ in os.walk(out / name):
                sweep(Path(folder))
    except OSError as error:
        raise cannot_write(out, error) from error


def _files_in(new: Path) -> Iterator[PurePosixPath]:
    """The new files, relative to their folder."""
    for folder, _, names in os.walk(new):
        for name in names:
            if not name.startswith(HIDDEN):
                yield PurePosixPath(Path(folder, name).relative_to(new).as_posix())


def _leads_away(out: Path, path: PurePosixPath) -> bool:
    """True: no path into this folder, or one through a link."""
    if path.is_absolute() or ".." in path.parts:
        return True
    return any((out / parent).is_symlink() for parent in path.parents[:-1])


def _require_places(out: Path, results: Results) -> None:
    """Refuse what cannot be replaced, and links that would be followed to who knows where."""
    for name in results.files:
        require_room(out / name)
    for name in results.folders:
        require_room(out / name, of_folder=True)


# The lock


@contextmanager
def _locked(path: Path, output: Path) -> Iterator[bool]:
    """Hold a lock, whose file is gone afterwards; True: it was there, left by a killed process.

    The system itself takes the lock from a process that ends, however it does.

    Raises:
        OutputError: another process holds it.
    """
    try:
        was_killed = os.path.lexists(path)
        file = _acquire(path, output)
    except OSError as error:
        raise cannot_write(output, error) from error
    try:
        yield was_killed
    finally:
        with suppress(OSError):
            path.unlink()
        file.close()


def _acquire(path: Path, output: Path) -> BinaryIO:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    while True:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
        if lock(file) is False:
            holder = file.readline(20).decode("ascii", "replace").strip()
            file.close()
            process = f"process {holder}" if holder.isdecimal() else "another process"
            raise OutputError(
                f"{output}: {process} is writing there: wait until it is done, or choose another "
                f"folder."
            )
        if _is_at(path, file):
            with suppress(OSError):  # the disk is full, and the lock holds without a name
                file.write(f"{os.getpid()}\n".encode())
            return file
        file.close()


def _is_at(path: Path, file: BinaryIO) -> bool:
    """False: who held it has removed it since it was opened, and another may have made it anew."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False
