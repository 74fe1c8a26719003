"""A video file, by OpenCV: frame after frame, each once."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from haloae.data.images import shown_path
from haloae.errors import DataError, OutputError
from haloae.files import read_regular, write_atomic
from haloae.server.kinds import require
from haloae.server.sources.base import Images, Source, Taken, register_source
from haloae.server.sources.capture import as_png, capture_of, opencv

if TYPE_CHECKING:
    import cv2
    from numpy.typing import NDArray

MOST_MEMORY = 1024
"""Bytes."""
ENOUGH = 0.9
"""A file is broken that ends before this share of the frames that its header tells, which for some
formats is an estimate."""


@register_source("video")
class Video(Source):
    """Inspects a video file once, from its first frame to its last.

    It goes on where it was stopped; a file that was written anew begins anew.
    """

    live = False

    path: Path
    every: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Inspect the first of so many frames."""

    def check(self) -> None:
        """See `Settings.check`; the file itself may come later."""
        require("cv2")

    def images(self, stop: Event, memory: Path) -> Images:
        """See `Source.images`: frames as PNG files; the end of the file is the end."""
        del stop
        name = shown_path(self.path)
        if not self.path.is_file():
            raise DataError(f"{name}: no such file: check the path.")
        status = self.path.stat()
        version = [status.st_size, status.st_mtime_ns]
        first = _next_frame(memory, version)
        with capture_of(str(self.path), name) as capture:
            yield None
            for number, frame in _frames(capture, name, first=first, every=self.every):
                yield Taken(as_png(frame), f"frame {number} of {name}")
                with suppress(OutputError):  # a full disk: at worst it is inspected again
                    _remember(memory, version, number + 1)


def _frames(
    capture: "cv2.VideoCapture", name: str, *, first: int, every: int
) -> Iterator[tuple[int, "NDArray[Any]"]]:
    """Frames by number, from 0; those left out are decoded all the same, as seeking is inexact.

    Raises:
        DataError: the file breaks off.
    """
    stated = int(capture.get(opencv().CAP_PROP_FRAME_COUNT))
    number = 0
    while capture.grab():
        if number >= first and number % every == 0:
            is_read, frame = capture.retrieve()
            if not is_read:
                break
            yield number, frame
        number += 1
    if number < ENOUGH * stated or not number:
        raise DataError(f"{name}: breaks off at frame {number} of {stated}: copy it again.")


def _next_frame(memory: Path, version: list[int]) -> int:
    """The first frame that was not inspected."""
    try:
        found = json.loads(read_regular(memory, most=MOST_MEMORY))
        return int(found["next"]) if found["version"] == version else 0
    except (OSError, ValueError, TypeError, KeyError):  # none yet, or damaged
        return 0


def _remember(memory: Path, version: list[int], number: int) -> None:
    write_atomic(memory, json.dumps({"version": version, "next": number}).encode(), durable=False)
