"""Decoding in a process of its own, which can be stopped, limited, and heard when it complains.

It is started when the first file asks for it, from whatever the program is, thread or main; then it
waits for more. Both sides speak through pipes: a message is JSON behind its length in four bytes,
and behind a reply come the pixels.
"""

import atexit
import json
import logging
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import BoundedSemaphore, Timer
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from haloae.data.limits import Limits
from haloae.errors import ImageError

log = logging.getLogger("haloae.data.decoders")

MOST_WORKERS = min(4, os.cpu_count() or 1)
"""At a time; of more threads that ask, some wait."""
PATIENCE = 6
"""How much longer by the clock than in processor time: the machine may be busy."""
START_SECONDS = 60
MOST_SAID = 2**16
"""Bytes that libraries may complain in."""
_ENDED_LATE = [-signal.SIGPROF] if hasattr(signal, "SIGPROF") else []
"""Exit code of one whose processor time was up."""
_PIPE_BYTES = 2**20
READY = b"haloae: ready to decode\n"
# The caller's own search path: nothing is taken from the folder that it happens to stand in.
_START = "import sys; sys.path[:] = sys.argv[1:]; from haloae.data.serve import serve; serve()"


class _Worker:
    """A decoding process, as its caller sees it.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - the interpreter that runs this
            [_interpreter(), "-c", _START, *map(str, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # no lock that one thread could hold while another one forks
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        self.requests = cast("IO[bytes]", self.process.stdin)
        self.replies = cast("IO[bytes]", self.process.stdout)
        self.is_stopped = False
        with suppress(ImportError, AttributeError, OSError):  # where a pipe can be widened
            import fcntl

            fcntl.fcntl(self.replies, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        with self._within(START_SECONDS):
            skip_to(self.replies, READY)

    @property
    def is_late(self) -> bool:
        """True: it was ended as it took too long, by its own processor time or by the clock."""
        return self.is_stopped or self.process.returncode in _ENDED_LATE

    def ask(
        self, request: dict[str, Any], data: bytes, seconds: float
    ) -> tuple[dict[str, Any], NDArray[Any]]:
        """The reply to a request, and its pixels, within some time by the clock.

        Raises:
            OSError: it was late and is stopped, or has ended by itself.
        """
        with self._within(seconds):
            write(self.requests, request)
            send(self.requests, data)
            reply = read(self.replies)
            pixels = np.empty(reply.pop("shape"), reply.pop("dtype"))
            fill(self.replies, pixels)
        return reply, pixels

    @contextmanager
    def _within(self, seconds: float) -> Iterator[None]:
        """End it where that takes longer, or where anything is wrong."""
        timer = Timer(seconds, self._stop)
        timer.daemon = True
        timer.start()
        try:
            yield
        except BaseException:
            self.end()
            raise
        finally:
            timer.cancel()
            timer.join()

    def end(self) -> None:
        """Stop it and forget it."""
        self.process.kill()
        self.process.wait()
        self.requests.close()
        self.replies.close()

    def abandon(self) -> None:
        """Leave it to the process that this one was forked from."""
        self.requests.close()
        self.replies.close()
        self.process.returncode = 0

    def _stop(self) -> None:
        self.is_stopped = True
        self.process.kill()


class _Workers:
    """Those that wait, and how many more there may be."""

    def __init__(self) -> None:
        self.places = BoundedSemaphore(MOST_WORKERS)
        self.waiting: list[_Worker] = []
        self.all: set[_Worker] = set()

    def ask(
        self, request: dict[str, Any], data: bytes, limits: Limits
    ) -> tuple[dict[str, Any], NDArray[Any]]:
        """The reply of any of them.

        Raises:
            ImageError: it took too long, or its process ended.
        """
        name = request["name"]
        with self.places:
            while True:
                worker, is_new = self._take(name)
                try:
                    return worker.ask(request, data, PATIENCE * limits.seconds)
                except OSError as error:
                    # One that waited may have been ended by someone else: then another is asked.
                    if worker.is_late or is_new:
                        raise _ended(worker, name, limits) from error
                finally:
                    self._give_back(worker)

    def _take(self, name: str) -> tuple[_Worker, bool]:
        """One that waits, or a new one, and whether it is new."""
        with suppress(IndexError):
            return self.waiting.pop(), False
        try:
            worker = _Worker()
        except OSError as error:
            raise ImageError(
                f"{name}: the process that would decode it cannot be started ({error}): save it as "
                f"PNG or JPEG."
            ) from error
        self.all.add(worker)
        return worker, True

    def _give_back(self, worker: _Worker) -> None:
        if worker.process.returncode is None and not worker.is_late:
            self.waiting.append(worker)
        else:
            worker.end()
            self.all.discard(worker)

    def end(self) -> None:
        for worker in list(self.all):
            worker.end()


_workers = _Workers()


def _after_fork() -> None:
    """A forked process starts its own: two that read from one pipe would get half a reply each."""
    global _workers
    for worker in _workers.all:
        worker.abandon()
    _workers = _Workers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _workers.end())


def decode_apart(source: Path | bytes, name: str, limits: Limits) -> tuple[NDArray[Any], int, bool]:
    """Decodes a file in another process.

    Args:
        source: its path, or all of it.
        name: what it is called in messages.
        limits: of what it may cost.

    Returns:
        pixels, depth and grey of an `Image`.

    Raises:
        ImageError: as `read_image`; also where the libraries complain, or a limit is reached.
    """
    # The folder that a path starts from may have changed since the other process was started.
    path = "" if isinstance(source, bytes) else os.path.abspath(source)  # noqa: PTH100
    data = source if isinstance(source, bytes) else b""
    request = {"path": path, "size": len(data), "name": name, **limits.model_dump()}
    reply, pixels = _workers.ask(request, data, limits)
    for warning in reply["warnings"]:
        log.warning("%s", warning)
    if "error" in reply:
        raise ImageError(reply["error"])
    return pixels, reply["depth"], reply["grey"]


def _ended(worker: _Worker, name: str, limits: Limits) -> ImageError:
    if worker.is_late:
        return ImageError(
            f"{name}: decoding it takes more than the limit of {limits.seconds:g} seconds: "
            f"export it again, or raise the limit with --limit seconds={2 * limits.seconds:g}."
        )
    return ImageError(
        f"{name}: the process that decoded it has ended (exit code {worker.process.returncode}): "
        f"copy or export it again."
    )


def _interpreter() -> str:
    """The Python that runs this: servers and frozen programs call themselves `sys.executable`."""
    beside = Path(sys.exec_prefix) / "bin" / "python3"
    for path in (Path(sys.executable or ""), beside):
        if path.name.lower().startswith("python") and path.is_file():
            return str(path)
    raise OSError("there is no Python to run it")


def skip_to(pipe: IO[bytes], mark: bytes) -> None:
    """What stands before is not ours, as of an interpreter that greets whoever starts it."""
    seen = bytearray()
    while not seen.endswith(mark):
        if not (byte := pipe.read(1)) or len(seen) > MOST_SAID:
            raise BrokenPipeError("it does not start")
        seen += byte


def write(pipe: IO[bytes], message: dict[str, Any]) -> None:
    """Send a message behind its length."""
    data = json.dumps(message).encode()
    send(pipe, struct.pack("<I", len(data)) + data)


def send(pipe: IO[bytes], data: Any) -> None:  # noqa: ANN401 - any buffer
    """Send all of a buffer."""
    view = memoryview(data)
    view = view.cast("B") if view.nbytes else memoryview(b"")
    while view:
        view = view[pipe.write(view) :]


def read(pipe: IO[bytes]) -> dict[str, Any]:
    """The next message; raises OSError where there is none."""
    length, data = bytearray(4), bytearray()
    fill(pipe, length)
    data = bytearray(int.from_bytes(length, "little"))
    fill(pipe, data)
    message: dict[str, Any] = json.loads(data)
    return message


def fill(pipe: IO[bytes], buffer: Any) -> None:  # noqa: ANN401 - any buffer
    """Fill a buffer; raises OSError where the other side has gone."""
    view = memoryview(buffer)
    view = view.cast("B") if view.nbytes else memoryview(bytearray())
    while view:
        count = pipe.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise BrokenPipeError("it has ended")
        view = view[count:]
