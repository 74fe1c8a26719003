"""Each request is counted, timed and logged: by the route it took, never by what was in it."""

import json
import logging
import time
from datetime import UTC, datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from haloae.server.metrics import Metrics

log = logging.getLogger("haloae.server.requests")

FIELDS = ("method", "path", "status", "seconds", "client", "role")
"""Of a line about a request."""
USUAL = {"/page/state", "/page/inspections/{inspection}/{kind}.jpg", "/static/{name}"}
"""What every open page asks for all the time: not logged unless it is refused."""
METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"}


class Watch:
    """Middleware around all others.

    Args:
        app: what it stands before.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            seconds = time.monotonic() - began
            # A path may hold anything at all; a route is one of few.
            path = getattr(scope.get("route"), "path_format", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.requests.labels(method, path, status).inc()
            self.metrics.request_seconds.labels(path).observe(seconds)
            client = (scope.get("client") or ("",))[0]
            values = (method, path, status, round(seconds, 6), client, scope.get("haloae.role"))
            is_usual = path in USUAL and status < 400
            log.log(
                logging.DEBUG if is_usual else logging.INFO,
                "request",
                extra=dict(zip(FIELDS, values, strict=True)),
            )


class JsonFormatter(logging.Formatter):
    """A line of JSON for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """As `logging.Formatter.format`."""
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        values |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values, default=str)


def log_as_json() -> None:
    """Have everything that the service logs be a line of JSON on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    level = logging.getLogger("haloae").level or logging.INFO
    for name in ("haloae", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
