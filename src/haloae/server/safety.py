"""Who may ask, and how much: tokens and roles, hosts and origins, sizes and times of requests."""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from haloae.data.limits import current_limits
from haloae.errors import ConfigError
from haloae.server.problems import RefusedError
from haloae.server.settings import Settings
from haloae.settings import read_toml

log = logging.getLogger(__name__)

Role = Literal["operator", "engineer"]
"""Operators inspect, confirm and tag; engineers change thresholds, models and recipes, too."""
OPEN = {"/", "/login", "/v1/session", "/v2/health/live", "/v2/health/ready"}
"""Paths that ask for no token."""
OPEN_FOLDERS = ("/static/",)
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
COOKIE = "haloae_session"
SESSION_SECONDS = 12 * 3600
MOST_SESSIONS = 1000
LEAST_TOKEN = 20
"""Characters."""
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
"""Of every answer that does not set them itself."""


class Tokens(NamedTuple):
    """Hashes of the two tokens."""

    operator: bytes
    engineer: bytes

    def role_of(self, token: str) -> Role | None:
        """Whose it is; both are compared, in a time that tells nothing of them."""
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        is_operator = hmac.compare_digest(digest, self.operator)
        is_engineer = hmac.compare_digest(digest, self.engineer)
        if is_engineer:
            return "engineer"
        return "operator" if is_operator else None


def read_tokens(path: Path) -> Tokens:
    """Tokens from a TOML file of two lines, ``operator = "…"`` and ``engineer = "…"``.

    Raises:
        ConfigError: it cannot be read, lacks one, or they are short or the same. No message holds
            any of them.
    """
    values = read_toml(path)
    if values.keys() != {"operator", "engineer"}:
        raise ConfigError(f"{path}: expected two tokens, operator and engineer, and nothing else.")
    if any(not isinstance(token, str) or len(token) < LEAST_TOKEN for token in values.values()):
        raise ConfigError(
            f"{path}: a token is no text of at least {LEAST_TOKEN} characters: make one with "
            f"`openssl rand -hex 24`."
        )
    if values["operator"] == values["engineer"]:
        raise ConfigError(f"{path}: both tokens are the same: give engineers one of their own.")
    hashes = {role: hashlib.sha256(token.encode()).digest() for role, token in values.items()}
    return Tokens(**hashes)


def is_loopback(host: str) -> bool:
    """True: only programs of this machine reach it."""
    return ipaddress.ip_address(host).is_loopback if _is_address(host) else host == "localhost"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class Doorkeeper:
    """Knows who asks: by a token in each request, or by the session that the page opened with one.

    Args:
        tokens: None: there are none, all are engineers, and only loopback may be listened on.
    """

    def __init__(self, tokens: Tokens | None) -> None:
        self.tokens = tokens
        self._sessions: OrderedDict[bytes, tuple[Role, float]] = OrderedDict()

    def role_of(self, headers: Headers, cookies: Mapping[str, str]) -> Role | None:
        """Of who sent a request; None: nobody known."""
        if self.tokens is None:
            return "engineer"
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.tokens.role_of(token.strip())
        role, until = self._sessions.get(_digest(cookies.get(COOKIE, "")), (None, 0.0))
        return role if time.monotonic() < until else None

    def open_session(self, token: str) -> tuple[str, Role] | None:
        """A new session's secret and its role; None: the token is nobody's."""
        role: Role | None = "engineer" if self.tokens is None else self.tokens.role_of(token)
        if role is None:
            return None
        secret = secrets.token_urlsafe(32)
        self._sessions[_digest(secret)] = role, time.monotonic() + SESSION_SECONDS
        while len(self._sessions) > MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return secret, role

    def close_session(self, secret: str) -> None:
        """Forget a session."""
        self._sessions.pop(_digest(secret), None)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def role_of(request: Request) -> Role | None:
    """Of who sent a request; None: nobody known, on a path that is open to all."""
    role: Role | None = request.scope["haloae.role"]
    return role


def engineers_only(request: Request) -> None:
    """A dependency of routes that change something.

    Raises:
        RefusedError: 403, an operator asks.
    """
    if role_of(request) != "engineer":
        raise RefusedError(403, "this needs the engineers' token.")


class Gate:
    """Middleware: what is let in, in which size and time, and the headers of what goes out.

    Args:
        app: what it stands before.
        doorkeeper: knows who asks.
        settings: of the service.
    """

    def __init__(self, app: ASGIApp, doorkeeper: Doorkeeper, settings: Settings) -> None:
        self.app = app
        self.doorkeeper = doorkeeper
        self.settings = settings
        self.names = {name.lower() for name in settings.http.names}
        self.asks_names = bool(self.names) or doorkeeper.tokens is None
        """False: whoever leads a browser here by a name of theirs still lacks a token."""
        self.held = 0
        """Bytes of bodies of requests that are not answered yet."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(self, receive)
        is_answering = False

        async def sending(message: Message) -> None:
            nonlocal is_answering
            if message["type"] == "http.response.start":
                is_answering = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if scope["scheme"] == "https":
                    headers.setdefault("strict-transport-security", "max-age=31536000")
            await send(message)

        try:
            refused = self._refused(Request(scope))
            if refused is not None:
                await refused_response(refused)(scope, receive, sending)
            else:
                await self.app(scope, body.receive, sending)
        except ClientDisconnect:
            log.debug("a client went away before its request was whole")
        except Exception:
            log.exception("a request failed")
            if is_answering:
                raise
            failed = RefusedError(500, "the request failed: see the log.")
            await refused_response(failed)(scope, receive, sending)
        finally:
            self.held -= body.size

    def _refused(self, request: Request) -> RefusedError | None:
        """Why it is not let in, from its head alone."""
        host = request.headers.get("host", "")
        if self.asks_names and not self._is_known(host):
            return RefusedError(421, "this service is not called so: add the name to http.names.")
        if request.method not in SAFE_METHODS and not _is_own(request.headers, host):
            return RefusedError(403, "a page of another origin may not ask for this.")
        role = self.doorkeeper.role_of(request.headers, request.cookies)
        request.scope["haloae.role"] = role
        path = request.scope["path"]
        if role is None and path not in OPEN and not path.startswith(OPEN_FOLDERS):
            return RefusedError(401, "give a token: Authorization: Bearer TOKEN.")
        length = request.headers.get("content-length", "0")
        return self.refused_size(0, int(length) if length.isdecimal() else 0)

    def _is_known(self, host: str) -> bool:
        """True: no name that a foreign hand could have made lead here."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        return name.lower() in self.names | {"localhost"} or _is_address(name.strip("[]"))

    def refused_size(self, size: int, more: int) -> RefusedError | None:
        """Why more bytes of a body, of which some are held, are not taken."""
        most = current_limits().bytes
        if size + more > most:
            return RefusedError(413, f"the request has more than the limit of {most:,} bytes.")
        if self.held + more > self.settings.queue.bytes:
            return RefusedError(429, "too many bytes are waiting: ask again later.", 1)
        return None


class _Body:
    """Receives a request's body within the limits."""

    def __init__(self, gate: Gate, receive: Receive) -> None:
        self.gate = gate
        self.inner = receive
        self.size = 0
        self.is_whole = False
        self.until = asyncio.get_running_loop().time() + gate.settings.http.receive

    async def receive(self) -> Message:
        """As ASGI has it.

        Raises:
            RefusedError: 408, 413 or 429, it takes too long or is too large.
        """
        if self.is_whole:
            return await self.inner()
        try:
            async with asyncio.timeout_at(self.until):
                message = await self.inner()
        except TimeoutError as error:
            raise RefusedError(408, "the request did not arrive whole in time.") from error
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            refused = self.gate.refused_size(self.size, size)
            if refused is not None:
                raise refused
            self.size += size
            self.gate.held += size
            self.is_whole = not message.get("more_body", False)
        return message


def _is_own(headers: Headers, host: str) -> bool:
    """True: no browser sent it on behalf of another origin's page."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == host


def refused_response(error: RefusedError) -> JSONResponse:
    """What is answered to a request that is not carried out."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": str(error)}, error.status, headers)
