"""Webcams and network cameras, by OpenCV: the newest frame, every so often."""

from datetime import UTC, datetime
from pathlib import Path
from threading import Condition, Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Self
from urllib.parse import quote

from pydantic import Field, model_validator

from haloae.data.images import shown_path
from haloae.errors import DataError
from haloae.server.kinds import plain_address, read_secret, require, shown_address
from haloae.server.sources.base import Images, Source, Taken, register_source
from haloae.server.sources.capture import WAIT, as_png, capture_of, opencv

if TYPE_CHECKING:
    import cv2
    from numpy.typing import NDArray

SCHEMES = ("rtsp", "rtsps", "http", "https")
Pixels = Annotated[int, Field(ge=16, le=65_535)]


@register_source("camera")
class Camera(Source):
    """A camera at this machine (`device`) or in the network (`url`)."""

    device: Annotated[int, Field(ge=0, le=255)] | Path | None = None
    """Its number, or its path, as ``/dev/v4l/by-id/…``, which stays the same over a restart."""
    url: str | None = None
    """Of its stream, RTSP or HTTP, without user and password."""
    user: str | None = None
    password_file: Path | None = None
    every: Annotated[float, Field(ge=0, le=86_400)] = 1.0
    """Seconds from one inspected image to the next; 0: the next as soon as one is inspected."""
    width: Pixels | None = None
    height: Pixels | None = None
    """Of a frame; a camera that gives another size is broken. None: as it comes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.device is None) == (self.url is None):
            raise ValueError("give either the device or the url of a camera")
        if self.url is not None:
            plain_address(self.url, SCHEMES)
        if (self.user is None) != (self.password_file is None) or (self.user and not self.url):
            raise ValueError("user and password_file belong together, and to a url")
        return self

    def check(self) -> None:
        """See `Settings.check`; the camera itself may come later."""
        require("cv2")
        self._target()

    def images(self, stop: Event, memory: Path) -> Images:
        """See `Source.images`: the newest frame each time, as a PNG file."""
        del memory
        due = monotonic()
        with _Newest(self._target(), self._shown(), size=(self.width, self.height)) as newest:
            while not stop.is_set():
                frame = newest.wait()
                yield None
                yield Taken(as_png(frame), f"{self._shown()} at {datetime.now(UTC):%H:%M:%S}")
                due = max(due + self.every, monotonic())
                while not stop.is_set() and (left := due - monotonic()) > 0:
                    newest.check()
                    stop.wait(min(left, 1.0))

    def _target(self) -> int | str:
        """What is opened, with the password, which never goes anywhere else."""
        if self.url is None:
            return self.device if isinstance(self.device, int) else str(self.device)
        if self.user is None or self.password_file is None:
            return self.url
        scheme, _, rest = self.url.partition("://")
        secret = quote(read_secret(self.password_file), safe="")
        return f"{scheme}://{quote(self.user, safe='')}:{secret}@{rest}"

    def _shown(self) -> str:
        if self.url is not None:
            return shown_address(self.url)
        device = self.device
        return f"camera {device}" if isinstance(device, int) else shown_path(str(device))


class _Newest:
    """Reads a camera without a pause, as what is not read grows old in its queue.

    All calls of the capture are made by one thread: released beside a read that hangs, it would
    crash. A thread that hangs for good is left behind.
    """

    def __init__(
        self, target: int | str, name: str, *, size: tuple[int | None, int | None]
    ) -> None:
        self._target, self._name, self._size = target, name, size
        self._changed = Condition()
        self._is_wanted = False
        self._frame: NDArray[Any] | None = None
        self._error: Exception | None = None
        self._is_closed = False
        self._thread = Thread(target=self._run, name=f"reads {name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        self._thread.join(WAIT)

    def wait(self) -> "NDArray[Any]":
        """The first frame that comes from now on, (H, W, 3) BGR uint8.

        Raises:
            DataError: the camera is broken, or none comes.
        """
        with self._changed:
            self._frame, self._is_wanted = None, True
            self._changed.wait_for(lambda: self._frame is not None or self._error, 2 * WAIT)
            self.check()
            if self._frame is None:
                raise DataError(f"{self._name}: no image for {2 * WAIT:g} seconds.")
            return self._frame

    def check(self) -> None:
        """Raise what has broken the camera, if anything has."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        is_device = "://" not in str(self._target)
        try:
            with capture_of(self._target, self._name, is_device=is_device) as capture:
                self._resize(capture)
                while not self._is_closed:
                    self._read(capture)
        except Exception as error:  # handed to whoever waits
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _resize(self, capture: "cv2.VideoCapture") -> None:
        cv2 = opencv()
        sides = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        for side, wanted in zip(sides, self._size, strict=True):
            if wanted is not None:
                capture.set(side, wanted)

    def _read(self, capture: "cv2.VideoCapture") -> None:
        if not capture.grab():
            raise DataError(f"{self._name}: gives no more images: check its cable and network.")
        if not self._is_wanted:
            return
        is_read, frame = capture.retrieve()
        if not is_read:
            return
        height, width = frame.shape[:2]
        wanted = (self._size[0] or width, self._size[1] or height)
        if wanted != (width, height):
            raise DataError(
                f"{self._name}: gives {width}×{height} pixels, not {wanted[0]}×{wanted[1]}: set "
                f"width and height to a size that it has."
            )
        with self._changed:
            self._frame, self._is_wanted = frame, False
            self._changed.notify_all()
