"""HTTP on sockets: uvicorn, with patience for slow heads, and a stop that is no failure."""

import asyncio
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from haloae.errors import ConfigError
from haloae.server.settings import HttpSettings

BACKLOG = 512
"""Connections that the system holds before they are taken."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: an address, or a name of one.
        port: 0: any that is free.

    Raises:
        ConfigError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: cannot be listened on ({error.strerror}): choose "
            f"another, or stop what listens there."
        ) from error


def url_of(listening: socket.socket, *, is_secure: bool) -> str:
    """Where a browser on this machine finds it."""
    host, port = listening.getsockname()[:2]
    return f"{'https' if is_secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/"


def check_certificate(certificate: Path | None, key: Path | None) -> None:
    """Refuse what TLS could not be spoken with.

    Raises:
        ConfigError: one of the two is missing, or they cannot be read or do not belong together.
    """
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise ConfigError("--certificate and --key belong together: give both, or neither.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # ssl's own errors are of this kind
        raise ConfigError(
            f"{certificate}, {key}: no certificate with its private key, in PEM "
            f"({error.strerror or error})."
        ) from error


def serve(
    app: ASGIApp,
    listening: socket.socket,
    http: HttpSettings,
    *,
    certificate: Path | None,
    key: Path | None,
) -> None:
    """Answer requests until a signal says stop, then those that were taken in.

    Args:
        app: the service.
        listening: see `listen`.
        http: settings of the connections.
        certificate: PEM; with `key`, TLS.
        key: PEM of its private key.
    """

    class Protocol(_PatientProtocol):
        patience = http.receive

    config = uvicorn.Config(
        app,
        http=Protocol,
        loop="asyncio",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=http.connections,
        timeout_keep_alive=http.idle,
        timeout_graceful_shutdown=http.stop,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    _Server(config).run(sockets=[listening])


class _Server(uvicorn.Server):
    """One for which a signal to stop is no failure."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle those that say stop; uvicorn's own would raise them again at the end."""
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _PatientProtocol(H11Protocol):
    """Closes a connection whose request's head does not come in time, and sends without delay.

    uvicorn waits for a head without end: some hundred connections that send nothing would be all
    there are. It sends the head of an answer and its body apart, of which the system would hold the
    second back, some 40 ms, until the other end has confirmed the first.
    """

    patience: float
    """Seconds."""
    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As `asyncio.Protocol` has it."""
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """As `asyncio.Protocol` has it."""
        if self.timer is None and self._is_between():
            self._watch()
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """As `asyncio.Protocol` has it."""
        if self.timer is not None:
            self.timer.cancel()
        super().connection_lost(exc)

    def _is_between(self) -> bool:
        """True: no request's head is there that was not answered."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        self.timer = self.loop.call_later(self.patience, self._look, self.cycle)

    def _look(self, cycle: object) -> None:
        self.timer = None
        if self._is_between() and self.timeout_keep_alive_task is None:
            # A head has begun: this one's has had its time where no other came in between.
            if self.cycle is cycle:
                self.transport.close()
            else:
                self._watch()
