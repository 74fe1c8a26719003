"""What tests of sources and sinks share: inspections, waiting, free ports."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from haloae.server.inspection import Inspection
from haloae.server.kinds import BackOff
from server import made_up

QUICK = BackOff(first=0.02, longest=0.1)
"""For what is broken and comes back within a test."""


class Seen(NamedTuple):
    """What goes with an inspection."""

    given: bytes | NDArray[np.uint8] = b""


def inspection(number: int, **changes: Any) -> Inspection:  # noqa: ANN401 - of any field
    """The one of a number, which its id is, too."""
    return made_up.inspection(number, **{"id": f"{number:032x}"} | changes)


def numbers(records: list[dict[str, Any]]) -> list[int]:
    """Which ones arrived, in order."""
    return [int(record["id"], 16) for record in records]


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so after {seconds:g} seconds"
        time.sleep(0.01)


def free_port() -> int:
    """Of TCP, on loopback, that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def png(value: int) -> bytes:
    """A small image file of one grey."""
    file = BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


@contextmanager
def disk(place: Path, kilobytes: int) -> Iterator[Path]:
    """A small one of its own."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(ballast: Path, keep: int = 0) -> None:
    """Leave so many bytes free."""
    status = os.statvfs(ballast.parent)
    with suppress(OSError):  # others take of it, too
        ballast.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - keep)))
