"""What tests of sources and sinks share: inspections, waiting, free ports."""

import socket
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple

import made_up
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from haloae.server.inspection import Inspection
from haloae.server.kinds import BackOff

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
