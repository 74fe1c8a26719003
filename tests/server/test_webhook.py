"""Webhook: in order, through an outage, with nothing lost and nothing shown."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from plant import QUICK, Seen, free_port, inspection, numbers, until

from haloae.server.sinks import Sinks
from haloae.server.sinks.webhook import Webhook


class Receiver(BaseHTTPRequestHandler):
    """Keeps what comes, and answers as it is told: the next answers, then 204."""

    records: list[dict[str, Any]]
    headers_seen: list[dict[str, str]]
    answers: list[int]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        code = self.answers.pop(0) if self.answers else 204
        if code < 300:
            self.records.append(json.loads(body))
            self.headers_seen.append(dict(self.headers))
        self.send_response(code)
        if 300 <= code < 400:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def receiver() -> type[Receiver]:
    return type("Handler", (Receiver,), {"records": [], "headers_seen": [], "answers": []})


@contextmanager
def receiving(port: int, handler: type[Receiver]) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", port), handler)
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def webhook(port: int, **changes: object) -> Webhook:
    url = f"http://127.0.0.1:{port}/hook?key=hunter2"
    return Webhook.model_validate({"name": "hook", "url": url} | changes)


def test_a_server_that_goes_and_comes_back_gets_all_once_and_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "token").write_text("swordfish\n")
    port, handler = free_port(), receiver()
    settings = webhook(port, token_file=tmp_path / "token")
    sinks = Sinks([settings], tmp_path, back_off=QUICK)
    sinks.start()
    with receiving(port, handler):
        for number in range(5):
            sinks.offer(inspection(number), Seen(b"not sent"))
        until(lambda: len(handler.records) == 5)
    for number in range(5, 10):
        sinks.offer(inspection(number), Seen())
    until(lambda: sinks.states()[0].status == "retrying")
    assert f"http://127.0.0.1:{port} cannot be reached" in str(sinks.states()[0].reason)
    with receiving(port, handler):
        until(lambda: len(handler.records) == 10)
    sinks.stop()
    assert numbers(handler.records) == [*range(10)]
    assert handler.records[0] == inspection(0).as_record()
    headers = handler.headers_seen[3]
    assert headers["Authorization"] == "Bearer swordfish"
    assert headers["Idempotency-Key"] == handler.records[3]["id"]
    assert sinks.states()[0].delivered == 10
    shown = caplog.text + str([state.as_record() for state in sinks.states()])
    assert "swordfish" not in shown
    assert "hunter2" not in shown


def test_errors_of_the_server_are_tried_again_and_refusals_are_not(tmp_path: Path) -> None:
    port, handler = free_port(), receiver()
    handler.answers += [503, 429, 302, 401, 204, 422]  # for the first: five tries; for the second
    sinks = Sinks([webhook(port)], tmp_path, back_off=QUICK)
    with receiving(port, handler):
        sinks.start()
        for number in range(3):
            sinks.offer(inspection(number), Seen())
        until(lambda: len(handler.records) == 2)
        sinks.stop()
    assert numbers(handler.records) == [0, 2]
    assert (sinks.states()[0].delivered, sinks.states()[0].refused) == (2, 1)
