"""What befalls a whole service under load: it is killed, and all around it breaks and comes back.

What came of it is kept for `benchmarks.service_faults`, where ``--faults-out`` says so.
"""

import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.plant import disk, fill, until

pytest.importorskip("paho", reason="paho-mqtt is not installed")

from server.line import Line, Outcome, moments
from server.test_mqtt import MOSQUITTO

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed"),
]

KILLS, ROUNDS = 20, 3
AWAY = 3.0
"""Seconds that something is gone."""
Keep = Callable[[str, Any], None]


def sound(outcome: Outcome) -> None:
    """Nothing was lost, and there was something to lose."""
    assert not outcome.failed
    assert not outcome.lost
    assert not any(outcome.undelivered.values()), outcome
    assert outcome.answered > 5 * outcome.times
    assert outcome.files > 2 * outcome.times
    assert outcome.files_twice <= outcome.times, outcome
    assert outcome.twice["folder"] == 0, outcome


def test_twenty_kills_lose_nothing_that_was_accepted(
    small_model: Path, tmp_path: Path, record: Keep
) -> None:
    line = Line(tmp_path, small_model)
    with line.loaded() as heard:
        for seconds in moments(KILLS):
            answered = len(line.answered)
            with line.serving():
                until(lambda before=answered: len(line.answered) > before, 60)  # type: ignore[misc]
                time.sleep(seconds)
        with line.serving() as service:
            line.end_load()
            line.settled(heard)
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(60) == 0
        outcome = line.outcome(KILLS, heard)
    record("kill -9 of the service", outcome)
    sound(outcome)


@contextmanager
def full(line: Line) -> Iterator[None]:
    """No room on the disk that the service writes to."""
    ballast = line.data / "ballast"
    fill(ballast)
    yield
    ballast.unlink()


@contextmanager
def locked(line: Line) -> Iterator[None]:
    """Another program holds the store."""
    store = line.data / "data" / "store.db"
    with closing(sqlite3.connect(store, isolation_level=None, timeout=60)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def without_source(line: Line) -> Iterator[None]:
    """The camera's folder is gone, as a share may be."""
    (line.folder / "in").rename(line.folder / "away")
    yield
    (line.folder / "away").rename(line.folder / "in")


@contextmanager
def without_broker(line: Line) -> Iterator[None]:
    """The MQTT broker is restarted."""
    line.broker.stop()
    yield
    line.broker.start()


@contextmanager
def without_web(line: Line) -> Iterator[None]:
    """The web server of the webhook is restarted."""
    line.stop_web()
    yield
    line.start_web()


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("disk full", full),
        ("store locked by another program", locked),
        ("source gone and back", without_source),
        ("MQTT broker restarted", without_broker),
        ("web server restarted", without_web),
    ],
)
def test_what_breaks_and_comes_back_loses_nothing_and_stops_no_inspection(
    row: str,
    fault: Callable[[Line], Any],
    small_model: Path,
    tmp_path: Path,
    record: Keep,
) -> None:
    with disk(tmp_path / "disk", 200_000) as place:
        line = Line(tmp_path, small_model, place)
        with line.loaded() as heard, line.serving() as service:
            for _ in range(ROUNDS):
                until(lambda: line.answered, 60)
                with fault(line):
                    before = len(line.answered)
                    time.sleep(AWAY)
                    assert len(line.answered) > before
                time.sleep(AWAY)
            line.end_load()
            line.settled(heard)
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(60) == 0
            outcome = line.outcome(ROUNDS, heard)
    record(row, outcome)
    sound(outcome)
    assert not outcome.refused
    assert outcome.files_twice == 0
