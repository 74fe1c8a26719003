"""Webhook: in order, through an outage, with nothing lost and nothing shown."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from haloae.server.sinks import Sinks
from haloae.server.sinks.webhook import Webhook
from server.plant import QUICK, Seen, free_port, inspection, numbers, until

KILLED = """
import itertools, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from haloae.server.sinks import Sinks
from haloae.server.sinks.webhook import Webhook
from server.plant import Seen, inspection

sinks = Sinks([Webhook(name="hook", url=sys.argv[1])], Path(sys.argv[2]))
sinks.start()
for number in itertools.count(int(sys.argv[4])):
    print(number, time.time(), flush=True)
    sinks.offer(inspection(number), Seen())
    time.sleep(0.005)
"""
SAFE = 0.25
"""Seconds after which an inspection outlives a kill, on a disk that is busy, too."""


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
    shown = caplog.text + str(sinks.states())
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


@pytest.mark.slow
def test_twenty_kills_under_load_lose_nothing_keep_the_order_and_repeat_few(tmp_path: Path) -> None:
    port, handler = free_port(), receiver()
    url, state = f"http://127.0.0.1:{port}/hook", tmp_path / "state"
    safe: list[int] = []
    first = 0
    with receiving(port, handler):
        for kill in range(20):
            command = [
                sys.executable,
                "-c",
                KILLED,
                url,
                str(state),
                str(Path(__file__).parents[1]),
            ]
            with subprocess.Popen([*command, str(first)], stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                process.stdout.readline()
                if kill % 4 == 0:
                    handler.answers.extend([503] * 3)  # so that something waits
                time.sleep(0.2 + 0.061 * kill)
                process.kill()
                killed = time.time()
                lines = [line.split() for line in process.stdout.read().splitlines()]
            whole = [line for line in lines if len(line) == 2]
            safe += [int(number) for number, when in whole if float(when) < killed - SAFE]
            first = max(int(number) for number, _ in whole) + 2
        sinks = Sinks([webhook(port)], state, back_off=QUICK)
        sinks.start()
        until(lambda: not sinks.states()[0].waiting, seconds=200)
        sinks.stop()
    found = numbers(handler.records)
    assert len(safe) > 500
    assert set(safe) - set(found) == set()
    unique = list(dict.fromkeys(found))
    assert unique == sorted(unique)
    assert len(found) - len(unique) < 0.1 * len(found)  # those of the last moments
