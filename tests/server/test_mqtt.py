"""MQTT against a real broker: nothing is lost over its restart, and it says when we are gone."""

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from haloae.server.sinks import ServiceState, Sinks
from haloae.server.sinks.mqtt import Mqtt
from server.plant import QUICK, Seen, free_port, inspection, numbers, until

pytest.importorskip("paho", reason="paho-mqtt is not installed")

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")


class Broker:
    """Mosquitto, that keeps what it has over a restart."""

    def __init__(self, folder: Path, *, password: str | None = None) -> None:
        self.port = free_port()
        self._file = folder / "mosquitto.conf"
        lines = [f"listener {self.port} 127.0.0.1", "persistence true", "user root"]
        lines += [f"persistence_location {folder}/", f"allow_anonymous {str(not password).lower()}"]
        if password:
            (folder / "users").write_text(f"me:{password}\n")
            (folder / "users").chmod(0o600)
            subprocess.run(["mosquitto_passwd", "-U", folder / "users"], check=True)
            lines.append(f"password_file {folder / 'users'}")
        self._file.write_text("\n".join(lines) + "\n")
        self.start()

    def start(self) -> None:
        assert MOSQUITTO is not None
        self._process = subprocess.Popen([MOSQUITTO, "-c", self._file], stderr=subprocess.DEVNULL)
        until(self._answers)

    def _answers(self) -> bool:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    found = Broker(tmp_path)
    yield found
    found.stop()


class Heard:
    """What a subscriber got."""

    def __init__(self) -> None:
        self.messages: list[MQTTMessage] = []

    def on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:  # noqa: ANN401
        self.messages.append(message)

    def records(self) -> list[dict[str, Any]]:
        found = [each for each in self.messages if "/inspections/" in each.topic]
        return [json.loads(each.payload) for each in found]

    def states(self) -> list[str]:
        found = [each for each in self.messages if each.topic.endswith("/status")]
        return [json.loads(each.payload)["state"] for each in found]


@contextmanager
def listening(broker: Broker) -> Iterator[Heard]:
    """One that the broker remembers, and that comes back by itself."""
    heard, subscribed = Heard(), []
    client = Client(CallbackAPIVersion.VERSION2, "listener", clean_session=False)
    client.reconnect_delay_set(0.05, 0.2)
    client.on_message = heard.on_message
    client.on_subscribe = lambda *_: subscribed.append(True)
    client.connect("127.0.0.1", broker.port)
    client.subscribe("plant/#", 1)
    client.loop_start()
    until(lambda: subscribed)
    try:
        yield heard
    finally:
        client.disconnect()
        client.loop_stop()


def mqtt(broker: Broker, **changes: object) -> Mqtt:
    settings = {"name": "scada", "url": broker.url, "topic": "plant/line-1"}
    return Mqtt.model_validate(settings | changes)


def test_nothing_is_lost_while_the_broker_restarts(broker: Broker, tmp_path: Path) -> None:
    sinks = Sinks([mqtt(broker)], tmp_path / "state", back_off=QUICK)
    with listening(broker) as heard:
        sinks.start()
        for number in range(20):
            sinks.offer(inspection(number, source="top/left"), Seen())
        until(lambda: heard.records())
        broker.stop()
        for number in range(20, 30):
            sinks.offer(inspection(number, source="top/left"), Seen())
        until(lambda: sinks.states()[0].status == "retrying")
        assert "hunter2" not in str(sinks.states()[0].reason)
        broker.start()
        until(lambda: sinks.states()[0].delivered == 30)
        until(lambda: len(set(numbers(heard.records()))) == 30)
        sinks.stop()
    found = numbers(heard.records())
    assert list(dict.fromkeys(found)) == [*range(30)]  # in order, whatever came twice
    message = next(each for each in heard.messages if "/inspections/" in each.topic)
    assert message.topic == "plant/line-1/inspections/cap/top%2Fleft"
    assert (message.qos, message.retain) == (1, False)
    assert heard.records()[0] == inspection(0, source="top/left").as_record()


def test_the_state_is_retained_and_the_last_will_says_offline(
    broker: Broker, tmp_path: Path
) -> None:
    with listening(broker) as heard:
        sinks = Sinks([mqtt(broker)], tmp_path / "state", back_off=QUICK)
        sinks.start()
        sinks.tell(ServiceState("ready"))
        until(lambda: heard.states()[-1:] == ["ready"])
        sinks.tell(ServiceState("error", "camera 1 is gone"))
        until(lambda: heard.states()[-1:] == ["error"])
        sinks.stop()
        until(lambda: heard.states()[-1:] == ["offline"])
    with listening(broker) as later:
        until(later.states)
        assert (later.states(), later.messages[0].retain) == (["offline"], True)


def test_a_password_is_needed_given_and_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Broker(tmp_path, password="hunter2")  # noqa: S106 - made up
    try:
        (tmp_path / "wrong").write_text("no\n")
        wrong = mqtt(broker, user="me", password_file=tmp_path / "wrong")
        sinks = Sinks([wrong], tmp_path / "state", back_off=QUICK)
        sinks.start()
        until(lambda: sinks.states()[0].status == "retrying")
        assert "does not let us in (Not authorized)" in str(sinks.states()[0].reason)
        (tmp_path / "wrong").write_text("hunter2\n")  # put right while it runs
        sinks.offer(inspection(0), Seen())
        until(lambda: sinks.states()[0].delivered == 1)
        sinks.stop()
    finally:
        broker.stop()
    assert "hunter2" not in caplog.text
