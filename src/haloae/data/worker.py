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
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import BoundedSemaphore, Timer
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from haloae.data.limits import Limits
from haloae.errors import ImageError

if TYPE_CHECKING:
    from haloae.data.images import Image

log = logging.getLogger("haloae.data.decoders")

MOST_WORKERS = min(4, os.cpu_count() or 1)
"""At a time; of more threads that ask, some wait."""
START_SECONDS = 60
ORPHAN_SECONDS = 5
"""How much longer than the limit one lives whose caller has gone."""
MOST_SAID = 2**16
"""Bytes that libraries may complain in."""
_SHOWN = 200
"""Bytes of a complaint that are shown."""
_PIPE_BYTES = 2**20
_READY = b"haloae: ready to decode\n"
# The caller's own search path: nothing is taken from the folder that it happens to stand in.
_START = "import sys; sys.path[:] = sys.argv[1:]; from haloae.data.worker import serve; serve()"


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
        self.is_late = False
        with suppress(ImportError, AttributeError, OSError):  # where a pipe can be widened
            import fcntl

            fcntl.fcntl(self.replies, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        with self._within(START_SECONDS):
            _skip_to(self.replies, _READY)

    def ask(self, request: dict[str, Any], seconds: float) -> tuple[dict[str, Any], NDArray[Any]]:
        """The reply to a request, and its pixels.

        Raises:
            OSError: it was late and is stopped, or has ended by itself.
        """
        with self._within(seconds):
            _write(self.requests, request)
            reply = _read(self.replies)
            pixels = np.empty(reply.pop("shape"), reply.pop("dtype"))
            _fill(self.replies, pixels)
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
        self.is_late = True
        self.process.kill()


class _Workers:
    """Those that wait, and how many more there may be."""

    def __init__(self) -> None:
        self.places = BoundedSemaphore(MOST_WORKERS)
        self.waiting: list[_Worker] = []
        self.all: set[_Worker] = set()

    def ask(self, request: dict[str, Any], limits: Limits) -> tuple[dict[str, Any], NDArray[Any]]:
        """The reply of any of them.

        Raises:
            ImageError: it took too long, or its process ended.
        """
        name = request["name"]
        with self.places:
            while True:
                worker, is_new = self._take(name)
                try:
                    return worker.ask(request, limits.seconds)
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


def decode_apart(path: Path, name: str, limits: Limits) -> tuple[NDArray[Any], int, bool]:
    """Decodes a file in another process.

    Returns:
        pixels, depth and grey of an `Image`.

    Raises:
        ImageError: as `read_image`; also where the libraries complain, or a limit is reached.
    """
    # The folder that a path starts from may have changed since the other process was started.
    request = {"path": os.path.abspath(path), "name": name, **limits.model_dump()}  # noqa: PTH100
    reply, pixels = _workers.ask(request, limits)
    for warning in reply["warnings"]:
        log.warning("%s", warning)
    if "error" in reply:
        raise ImageError(reply["error"])
    return pixels, reply["depth"], reply["grey"]


def _ended(worker: _Worker, name: str, limits: Limits) -> ImageError:
    if worker.is_late:
        return ImageError(
            f"{name}: decoding it takes longer than the limit of {limits.seconds:g} seconds: "
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


class _Collector(logging.Handler):
    """Keeps what is logged, for the caller to log."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class _Server:
    """The other side of a `_Worker`."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who then ends it
        self.requests = os.fdopen(os.dup(0), "rb", 0)
        self.replies = os.fdopen(os.dup(1), "wb", 0)
        # Libraries complain to the terminal, past Python: here it is a file in memory.
        if hasattr(os, "memfd_create"):
            self.said = os.fdopen(os.memfd_create("said"), "rb+", 0)
        else:
            self.said = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - as long as it lives
        for number in (1, 2):
            os.dup2(self.said.fileno(), number)
        self.warnings: list[str] = []
        log.propagate = False
        log.addHandler(_Collector(self.warnings))
        self.own_memory = 0
        with suppress(OSError):
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            self.own_memory = pages * os.sysconf("SC_PAGE_SIZE")

    def answer(self) -> None:
        """Read one request, and write its reply."""
        request = _read(self.requests)
        path, name = request.pop("path"), request.pop("name")
        pixels: NDArray[Any] = np.empty(0, np.uint8)
        try:
            image = self._decode(Path(path), name, Limits(**request))
            pixels = image.pixels
            reply: dict[str, Any] = {"depth": image.depth, "grey": image.grey}
        except ImageError as error:
            reply = {"error": str(error)}
        reply |= {"shape": pixels.shape, "dtype": pixels.dtype.str, "warnings": self.warnings}
        _write(self.replies, reply)
        _send(self.replies, pixels)
        self.warnings.clear()
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _decode(self, path: Path, name: str, limits: Limits) -> "Image":
        from haloae.data.images import decode_here

        self._limit(limits)
        self.said.seek(0)
        self.said.truncate()
        image = decode_here(path, name, limits)
        self.said.seek(0)
        complaint = self.said.read(_SHOWN).decode("utf-8", "replace").partition("\n")[0]
        if complaint:
            reason = "".join(c for c in complaint if c.isprintable()).rstrip(".")
            raise ImageError(f"{name}: truncated or corrupted ({reason}): copy or export it again.")
        return image

    def _limit(self, limits: Limits) -> None:
        """Memory, what may be said, and time, should the caller go without stopping this."""
        with suppress(ImportError, AttributeError, ValueError, OSError):
            signal.setitimer(signal.ITIMER_REAL, limits.seconds + ORPHAN_SECONDS)
            import resource

            for kind, most in (
                (resource.RLIMIT_FSIZE, MOST_SAID),
                (resource.RLIMIT_AS, self.own_memory + limits.memory),
            ):
                hard = resource.getrlimit(kind)[1]
                soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
                resource.setrlimit(kind, (soft, hard))


def serve() -> None:
    """Decode what is asked for, until nobody is there to ask."""
    import haloae.data.images  # noqa: F401 - not above, as it imports this; and before time counts

    server = _Server()
    with suppress(OSError):  # the caller has gone
        _send(server.replies, _READY)
        while True:
            server.answer()


def _skip_to(pipe: IO[bytes], mark: bytes) -> None:
    """What stands before is not ours, as of an interpreter that greets whoever starts it."""
    seen = bytearray()
    while not seen.endswith(mark):
        if not (byte := pipe.read(1)) or len(seen) > MOST_SAID:
            raise BrokenPipeError("it does not start")
        seen += byte


def _write(pipe: IO[bytes], message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    _send(pipe, struct.pack("<I", len(data)) + data)


def _send(pipe: IO[bytes], data: Any) -> None:  # noqa: ANN401 - any buffer
    view = memoryview(data)
    view = view.cast("B") if view.nbytes else memoryview(b"")
    while view:
        view = view[pipe.write(view) :]


def _read(pipe: IO[bytes]) -> dict[str, Any]:
    """The next message; raises OSError where there is none."""
    length, data = bytearray(4), bytearray()
    _fill(pipe, length)
    data = bytearray(int.from_bytes(length, "little"))
    _fill(pipe, data)
    message: dict[str, Any] = json.loads(data)
    return message


def _fill(pipe: IO[bytes], buffer: Any) -> None:  # noqa: ANN401 - any buffer
    view = memoryview(buffer)
    view = view.cast("B") if view.nbytes else memoryview(bytearray())
    while view:
        count = pipe.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise BrokenPipeError("it has ended")
        view = view[count:]
