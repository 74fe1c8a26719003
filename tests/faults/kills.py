"""Processes that are killed before a step they take on the disk: no luck is needed to hit it."""

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

DEADLINE = 60.0
STEPS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


def contents(folder: Path) -> dict[str, bytes]:
    """What people find in a folder: its files by their path, without hidden ones."""
    files = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file()}
    return {
        path.as_posix(): file.read_bytes()
        for path, file in files.items()
        if not any(part.startswith(".") for part in path.parts)
    }


def hidden_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob(".haloae-*")}


def killed_before(step: int, work: Callable[[], object], root: Path) -> bool:
    """Do the work in a process that is killed before its step of that number, from 1.

    Returns:
        False: it ended before, having taken fewer steps.
    """

    def attacked() -> None:
        _die_before(step, root)
        work()

    return was_killed(attacked)


def was_killed(work: Callable[[], object]) -> bool:
    """Do something in a process that may kill itself; it must not fail in any other way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child needs none of our threads
        child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + DEADLINE
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError("the process waits for something")
        time.sleep(0.001)
    code = os.waitstatus_to_exitcode(ended[1])
    assert code in (0, -signal.SIGKILL), "the process failed on its own"
    return code != 0


def _die_before(step: int, root: Path) -> None:
    left = step

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if not _changes(event, arguments, str(root)):
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _changes(event: str, arguments: tuple[object, ...], root: str) -> bool:
    if event == "open":
        path, _, flags = arguments
        is_write = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return bool(is_write) and str(path).startswith(root)
    is_below = event in STEPS and str(arguments[0]).startswith(root)
    # What removes a whole folder names its files relative to a descriptor.
    return is_below or (event in ("os.remove", "os.rmdir") and arguments[1] != -1)
