"""Frames by OpenCV, which cameras, network streams and video files share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from haloae.errors import DataError

if TYPE_CHECKING:
    import cv2
    from numpy.typing import NDArray

WAIT = 10.0
"""Seconds that a camera or a stream may take to open, and for its next frame."""


def opencv() -> ModuleType:
    """OpenCV, quiet: what it and FFmpeg would print, they say by what they return."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    return cv2


@contextmanager
def capture_of(
    target: int | str, name: str, *, is_device: bool = False
) -> Iterator["cv2.VideoCapture"]:
    """An open capture, released afterwards.

    Args:
        target: number or path of a device, path of a file, or address.
        name: what it is called in messages, without passwords.
        is_device: True: a camera at this machine, by whatever the system has for them; False: by
            FFmpeg, which waits for nothing longer than `WAIT`.

    Raises:
        DataError: it cannot be opened.
    """
    cv2 = opencv()
    if is_device:
        capture = cv2.VideoCapture(target)
    else:
        wait = int(1000 * WAIT)
        waits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, wait, cv2.CAP_PROP_READ_TIMEOUT_MSEC, wait]
        capture = cv2.VideoCapture(target, cv2.CAP_FFMPEG, waits)
    try:
        if not capture.isOpened():
            raise DataError(f"{name}: cannot be opened: check that it is there and not in use.")
        yield capture
    finally:
        capture.release()


def as_png(frame: "NDArray[Any]") -> bytes:
    """A frame, (H, W, 3) BGR uint8, as a file without loss; packed little, as that takes long."""
    cv2 = opencv()
    _, data = cv2.imencode(".png", frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return bytes(data)
