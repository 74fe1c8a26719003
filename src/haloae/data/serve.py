"""The process that decodes for others: the other side of `worker`.

What libraries say, past Python and to the terminal, is a file in memory here: an image that they
complain of is not whole, though they hand it over.
"""

import logging
import os
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haloae.data.images import Image, decode_here
from haloae.data.limits import Limits
from haloae.data.worker import MOST_SAID, PATIENCE, READY, fill, log, read, send, write
from haloae.errors import ImageError

ORPHAN_SECONDS = 5
"""How much longer than the limit it lives where its caller has gone."""
_TIMERS: dict[int, Callable[[Limits], float]] = {}
_ENDING: list[signal.Signals] = []
if hasattr(signal, "setitimer"):
    _TIMERS[signal.ITIMER_PROF] = lambda limits: limits.seconds
    _TIMERS[signal.ITIMER_REAL] = lambda limits: PATIENCE * limits.seconds + ORPHAN_SECONDS
    _ENDING += [signal.SIGPROF, signal.SIGALRM]
SHOWN = 200
"""Bytes of a complaint that are shown."""


class _Collector(logging.Handler):
    """Keeps what is logged, for the caller to log."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class _Server:
    """Takes one request after the other."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who then ends it
        for ending in _ENDING:  # a caller that ignores them has handed that down
            signal.signal(ending, signal.SIG_DFL)
        self.requests = os.fdopen(os.dup(0), "rb", 0)
        self.replies = os.fdopen(os.dup(1), "wb", 0)
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
        request = read(self.requests)
        path, name = request.pop("path"), request.pop("name")
        sent = np.empty(request.pop("size"), np.uint8)
        fill(self.requests, sent)
        pixels: NDArray[Any] = np.empty(0, np.uint8)
        try:
            image = self._decode(Path(path) if path else sent.tobytes(), name, Limits(**request))
            pixels = image.pixels
            reply: dict[str, Any] = {"depth": image.depth, "grey": image.grey}
        except ImageError as error:
            reply = {"error": str(error)}
        reply |= {"shape": pixels.shape, "dtype": pixels.dtype.str, "warnings": self.warnings}
        write(self.replies, reply)
        send(self.replies, pixels)
        self.warnings.clear()
        for timer in _TIMERS:
            signal.setitimer(timer, 0)

    def _decode(self, source: Path | bytes, name: str, limits: Limits) -> Image:
        self._limit(limits)
        self.said.seek(0)
        self.said.truncate()
        image = decode_here(source, name, limits)
        self.said.seek(0)
        complaint = self.said.read(SHOWN).decode("utf-8", "replace").partition("\n")[0]
        if complaint:
            reason = "".join(c for c in complaint if c.isprintable()).rstrip(".")
            raise ImageError(f"{name}: truncated or corrupted ({reason}): copy or export it again.")
        return image

    def _limit(self, limits: Limits) -> None:
        """Seconds, memory, and what may be said; the timers end this process."""
        for timer, seconds in _TIMERS.items():
            signal.setitimer(timer, seconds(limits))
        with suppress(ImportError, ValueError, OSError):
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
    server = _Server()
    with suppress(OSError):  # the caller has gone
        send(server.replies, READY)
        while True:
            server.answer()
