"""Reading and writing files: at once, and whole or not at all."""

import errno
import hashlib
import os
import secrets
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from haloae.errors import OutputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
HIDDEN = ".haloae-"
"""How the names of all that is not to stay begin; no search for images finds such names."""
TEMPORARY = f"{HIDDEN}tmp-"
STALE_SECONDS = 60.0
"""Age of temporary files that may be a killed process's: younger ones are not yet or no longer
locked by who writes them."""
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotRegularError(OSError):
    """What was to be read is a pipe, a socket or a device: its `strerror` says which."""


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, without ever waiting for a pipe or touching a device.

    Raises:
        IsADirectoryError, NotRegularError: it is no file: its `strerror` says what it is.
        OSError: it cannot be opened.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        _require_regular(path, path.stat())  # before it is opened, which some devices feel
        file: BinaryIO = open(path, "rb", opener=opener)  # noqa: SIM115 - pathlib takes none
    except OSError as error:
        if error.errno == errno.ELOOP:
            reason = "it is a symbolic link that leads back to itself"
            raise OSError(errno.ELOOP, reason, str(path)) from error
        raise
    try:
        _require_regular(path, os.fstat(file.fileno()))
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: Path, *, most: int) -> bytes:
    """A whole file.

    Raises:
        OSError: as `open_regular`, or it has more bytes than `most`.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))
    return data


def sha256_of(path: Path) -> str:
    """Of a file's bytes, hexadecimal.

    Raises:
        OSError: as `open_regular`.
    """
    sha = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(2**20):
            sha.update(chunk)
    return sha.hexdigest()


def _require_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        reason = f"it is {_kind(status)}, not a regular file"
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, reason, str(path))
        raise NotRegularError(errno.EINVAL, reason, str(path))


def _kind(status: os.stat_result) -> str:
    return KINDS.get(stat.S_IFMT(status.st_mode), "something unknown")


def require_room(path: Path, *, of_folder: bool = False) -> None:
    """Refuse to replace what is no file or link, and to write below what is no folder.

    Args:
        path: of a file to write, or of a folder to write files to.
        of_folder: True: it is a folder, and no link, which would lead to who knows where.

    Raises:
        OutputError: something else stands there.
    """
    fitting = (stat.S_IFDIR,) if of_folder else (stat.S_IFREG, stat.S_IFLNK)
    if os.path.lexists(path) and stat.S_IFMT((status := path.lstat()).st_mode) not in fitting:
        raise OutputError(
            f"{path}: is {_kind(status)}, and stands where results are to go: move it away, or "
            f"choose another --out."
        )


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a whole file or nothing: temporary file, fsync, rename.

    Args:
        path: the file; its folder is made where it is missing.
        data: all of it.
        durable: False: leave out the fsync, for one of thousands of files.

    Raises:
        OutputError: the disk is full, the folder is not writable, something that is no file stands
            there, or the like; what stood at `path` before is untouched.
    """
    require_room(path)
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if durable:
            sweep(path.parent)
        with temporary.open("xb") as file:
            lock(file)
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> OutputError:
    """The error to raise when writing failed."""
    way_out = "free some space" if error.errno in FULL else "check its folder and permissions"
    return OutputError(
        f"{path}: cannot be written ({error.strerror or error}): {way_out}, or choose another "
        f"place with --out."
    )


def sync_folder(folder: Path) -> None:
    """Have the disk keep which files a folder holds now, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove the temporary files of processes that were killed: old, and their locks to be had.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if entry.name.startswith(TEMPORARY)]
    for path in found:
        with suppress(OSError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > STALE_SECONDS:
                with path.open("r+b") as file:
                    if lock(file):
                        path.unlink()


def lock(file: BinaryIO) -> bool | None:
    """Whether an open file's lock is ours now, until it is closed or this process ends.

    None: the system or the disk has no locks.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True
