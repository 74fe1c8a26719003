"""Posts each inspection to a web server."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import IO, Annotated

from pydantic import AfterValidator, Field

from haloae._version import __version__
from haloae.server.kinds import plain_address, read_secret, shown_address
from haloae.server.sinks.base import Connection, Item, Sink, UnwantedError, register_sink

UNWANTED = (400, 413, 422)
"""Answers that say that this very record will never be taken."""


def _web_address(url: str) -> str:
    return plain_address(url, ("http", "https"))


@register_sink("webhook")
class Webhook(Sink):
    """Sends a POST with the record as JSON, one after the other, in order.

    A record has arrived when the answer is 2xx; on 400, 413 and 422 it is left out, and on all else
    it is sent again. It may arrive twice where an answer was lost: its ``id``, which is also in the
    header ``Idempotency-Key``, tells. Redirections are not followed, as they could lead anywhere.
    """

    keeps = True

    url: Annotated[str, AfterValidator(_web_address)]
    token_file: Path | None = None
    """Its first line is sent as ``Authorization: Bearer …``."""
    timeout: Annotated[float, Field(gt=0, le=600)] = 10.0
    """Seconds."""

    def check(self) -> None:
        """See `Settings.check`."""
        if self.token_file is not None:
            read_secret(self.token_file)

    @contextmanager
    def opened(self) -> Iterator[Connection]:
        """See `Sink.opened`; the token is read anew each time, so that it can be changed."""
        token = None if self.token_file is None else read_secret(self.token_file)
        yield _Web(self.url, token, self.timeout)


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: object, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        """An error, as any other answer."""


class _Web(Connection):
    def __init__(self, url: str, token: str | None, timeout: float) -> None:
        self._url, self._timeout = url, timeout
        self._headers = {"Content-Type": "application/json", "User-Agent": f"haloae/{__version__}"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._opener = urllib.request.build_opener(_NoRedirection)

    def deliver(self, item: Item) -> None:
        headers = self._headers | {"Idempotency-Key": item.record["id"]}
        data = json.dumps(item.record).encode()
        request = urllib.request.Request(self._url, data, headers)  # noqa: S310 - checked
        shown = shown_address(self._url)
        try:
            with self._opener.open(request, timeout=self._timeout):
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in UNWANTED:
                raise UnwantedError(f"{shown} answers {error.code}") from error
            raise ConnectionError(f"{shown} answers {error.code}") from None
        except urllib.error.URLError as error:
            raise ConnectionError(f"{shown} cannot be reached ({error.reason})") from None
        except (OSError, HTTPException) as error:
            raise ConnectionError(f"{shown} breaks off ({error})") from None
