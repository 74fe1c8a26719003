"""Sinks at work: none slows inspection, what is accepted arrives, what is not is counted."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest
from pydantic import BaseModel, ConfigDict

from haloae import ConfigError, OutputError
from haloae.server.sinks import (
    SINKS,
    Connection,
    Item,
    ServiceState,
    Sink,
    Sinks,
    UnwantedError,
    register_sink,
)
from haloae.server.sinks.base import SinkSettings
from haloae.server.sinks.folder import Folder
from server.plant import QUICK, Seen, disk, fill, inspection, numbers, png, until

KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from haloae.server.sinks import Connection, Sink, Sinks
from server.plant import Seen, inspection

class Away(Sink):
    keeps = True
    def opened(self):
        raise OSError("away")

sinks = Sinks([Away(name="other")], Path(sys.argv[1]))
sinks.start()
for number in range(50):
    sinks.offer(inspection(number), Seen())
time.sleep(1)
print("accepted", flush=True)
time.sleep(60)
"""


class Settings(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    sink: SinkSettings = ()


class Other(Sink):
    """The other end, which the tests hold."""

    keeps = True
    wants_image = True

    @contextmanager
    def opened(self) -> Iterator[Connection]:
        OPENED.append(self.name)
        yield End()


OPENED: list[str] = []
GOT: list[Item] = []
TOLD: list[ServiceState] = []
ANSWERS: list[Exception] = []
"""To raise, one after the other, before anything is taken."""
TAKES = Event()


class End(Connection):
    def deliver(self, item: Item) -> None:
        TAKES.wait()
        if ANSWERS:
            raise ANSWERS.pop(0)
        GOT.append(item)

    def tell(self, state: ServiceState) -> None:
        TOLD.append(state)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    before = dict(SINKS)
    register_sink("other")(Other)
    for each in (OPENED, GOT, TOLD, ANSWERS):
        each.clear()
    TAKES.set()
    yield
    SINKS.clear()
    SINKS.update(before)


def parse(*tables: dict[str, object]) -> tuple[Sink, ...]:
    return Settings.model_validate({"sink": tables}).sink


def got() -> list[int]:
    return numbers([item.record for item in GOT])


def test_a_sink_from_outside_gets_all_in_order_after_it_broke(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ANSWERS.extend([OSError("the plug is out"), OSError("the plug is out")])
    sinks = Sinks(parse({"kind": "other"}), tmp_path / "new", back_off=QUICK)
    with caplog.at_level(logging.INFO):
        sinks.start()
        for number in range(5):
            sinks.offer(inspection(number), Seen(b"picture"))
        until(lambda: len(GOT) == 5)
        sinks.stop()
    assert got() == [0, 1, 2, 3, 4]
    assert GOT[0] == Item(inspection(0).as_record(), b"picture")
    assert len(OPENED) == 3
    assert "sink other: retrying: the plug is out" in caplog.text
    state = sinks.states()[0]
    assert (state.delivered, state.waiting, state.dropped) == (5, 0, 0)
    assert state.status == "stopped"


def test_one_that_hangs_slows_nobody_and_what_is_too_much_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    TAKES.clear()
    sinks = Sinks(parse({"kind": "other"}), tmp_path, most_waiting=10)
    sinks.start()
    began = time.monotonic()
    for number in range(15):
        sinks.offer(inspection(number), Seen())
    assert time.monotonic() - began < 1
    state = sinks.states()[0]
    assert (state.waiting, state.dropped) == (10, 5)
    assert "no room, 1 dropped so far" in caplog.text
    TAKES.set()
    until(lambda: len(GOT) == 10)
    sinks.stop()
    assert got() == [*range(10)]


def test_what_the_other_end_refuses_is_left_out_and_counted(tmp_path: Path) -> None:
    ANSWERS.append(UnwantedError("not that one"))
    sinks = Sinks(parse({"kind": "other"}), tmp_path)
    sinks.start()
    for number in range(3):
        sinks.offer(inspection(number), Seen())
    until(lambda: len(GOT) == 2)
    sinks.stop()
    assert got() == [1, 2]
    assert (sinks.states()[0].delivered, sinks.states()[0].refused) == (2, 1)


def test_the_state_of_the_service_is_passed_on_when_it_changes(tmp_path: Path) -> None:
    sinks = Sinks(parse({"kind": "other"}), tmp_path)
    sinks.start()
    until(lambda: TOLD)
    sinks.tell(ServiceState("error", "camera 1: gives no more images"))
    until(lambda: len(TOLD) == 2)
    sinks.stop()
    assert [state.name for state in TOLD] == ["starting", "error"]


def test_what_was_not_delivered_at_a_stop_is_delivered_after_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ANSWERS.extend([OSError("away")] * 1000)
    sinks = Sinks(parse({"kind": "other"}), tmp_path, back_off=QUICK)
    sinks.start()
    for number in range(3):
        sinks.offer(inspection(number), Seen(b"picture"))
    sinks.stop()
    assert "3 not delivered, and stay on disk" in caplog.text
    ANSWERS.clear()
    sinks = Sinks(parse({"kind": "other"}), tmp_path)
    sinks.start()
    sinks.offer(inspection(3), Seen())
    until(lambda: len(GOT) == 4)
    sinks.stop()
    assert got() == [0, 1, 2, 3]
    again = Sinks(parse({"kind": "other"}), tmp_path)
    assert again.states()[0].waiting == 0  # what has arrived does not come again
    again.stop()


def test_what_is_accepted_outlives_a_process_that_is_killed(tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", KILLED, str(tmp_path), tests]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"accepted\n"
        process.send_signal(signal.SIGKILL)
    sinks = Sinks(parse({"kind": "other"}), tmp_path)
    sinks.start()
    until(lambda: len(GOT) == 50)
    sinks.stop()
    assert got() == [*range(50)]


def test_a_disk_that_is_gone_stops_no_delivery_and_is_said(tmp_path: Path) -> None:
    folder, away = tmp_path / "disk", tmp_path / "away"
    sinks = Sinks(parse({"kind": "other"}), folder)
    folder.rename(away)
    TAKES.clear()
    sinks.start()
    sinks.offer(inspection(0), Seen())
    until(lambda: sinks.states()[0].trouble)
    assert "not kept on disk (unable to open" in str(sinks.states()[0].trouble)
    TAKES.set()
    until(lambda: GOT)
    away.rename(folder)
    until(lambda: sinks.states()[0].trouble is None)
    sinks.stop()
    assert got() == [0]


@pytest.mark.faults
def test_on_a_full_disk_all_is_delivered_and_what_waited_is_found(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", 1000) as place:
        ANSWERS.extend([OSError("away")] * 1000)
        sinks = Sinks(parse({"kind": "other"}), place / "kept", back_off=QUICK)
        sinks.start()
        sinks.offer(inspection(0), Seen())
        sinks.stop()
        fill(place / "ballast")
        files = Folder(name="files", path=place / "out")
        sinks = Sinks([*parse({"kind": "other"}), files], place / "kept", back_off=QUICK)
        for number in range(1, 100):
            sinks.offer(inspection(number), Seen(png(number)))
        until(lambda: sinks.states()[0].trouble)
        assert "disk is full" in str(sinks.states()[0].trouble)
        sinks.start()
        until(lambda: "free some space" in str(sinks.states()[1].reason))
        ANSWERS.clear()
        until(lambda: len(GOT) == 100)
        assert got() == [*range(100)]
        (place / "ballast").unlink()
        until(lambda: sinks.states()[1].delivered == 99)
        until(lambda: sinks.states()[0].trouble is None)
        sinks.stop()
        (file,) = (place / "out").rglob("inspections.jsonl")
        assert len(file.read_text().splitlines()) == 99


def test_a_file_of_what_waits_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "sink-other.sqlite").write_bytes(b"none" * 1000)
    with pytest.raises(OutputError, match=r"sink-other.sqlite: .*not a database.*delete the file"):
        Sinks(parse({"kind": "other"}), tmp_path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "fax"}, "sink 1: no kind is called 'fax'.*webhook"),
        ({"kind": "webhook", "url": "gopher://x"}, r"sink 1 \(webhook\): .*http:// or https://"),
        ({"kind": "webhook", "url": "http://a:hunter2@b/"}, "give them as settings instead"),
        ({"kind": "mqtt", "url": "mqtt://a", "topic": "a/#"}, "setting topic"),
        ({"kind": "mqtt", "url": "mqtt://a", "password_file": "p"}, "needs a user"),
        ({"kind": "opcua", "url": "opc.tcp:///x"}, "opc.tcp:// and a host"),
        ({"kind": "folder", "path": "x", "images": "some"}, "setting images"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(table: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Settings.model_validate({"sink": [table]})
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
