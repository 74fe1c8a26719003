"""Writing results: whole or not at all, and never over something by accident."""

import errno
import os
import tempfile
from pathlib import Path

from haloae.errors import OutputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a whole file or nothing: temporary file, fsync, rename.

    Args:
        path: the file; its folder is made where it is missing.
        data: all of it.
        durable: False: leave out the fsync, for one of thousands of files.

    Raises:
        OutputError: the disk is full, the folder is not writable, or the like; what stood at
            `path` before is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".haloae-", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> OutputError:
    """The error to raise when writing failed."""
    way_out = "free some space" if error.errno in FULL else "check its folder and permissions"
    return OutputError(
        f"{path}: cannot be written ({error.strerror or error}): {way_out}, or choose another "
        f"place with --out."
    )


def claim_folder(out: Path, *, overwrite: bool, way_out: str = "give --overwrite") -> None:
    """Make an output folder, or refuse one that holds something.

    Args:
        out: the folder.
        overwrite: True: what it holds may be replaced.
        way_out: what the message tells the caller to do.

    Raises:
        OutputError: it is not empty, not a folder, or cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        is_empty = not any(out.iterdir())
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise cannot_write(out, error) from error
    if not is_empty and not overwrite:
        raise OutputError(f"{out}: is not empty: {way_out}, or choose another --out.")


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
