"""Publishes each inspection by MQTT, and whether the service is there."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Self
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, Field, model_validator

from haloae.server.kinds import plain_address, read_secret, require, shown_address
from haloae.server.sinks.base import Connection, Item, ServiceState, Sink, register_sink

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessageInfo

PORTS = {"mqtt": 1883, "mqtts": 8883}
KEEPALIVE = 30
"""Seconds after which, and half as many more, the broker says that we are gone."""
WAIT = 10.0
"""Seconds that the broker may take to answer."""
LOOK = 0.1
"""Seconds between looks at whether it is still there."""
ONCE_OR_MORE = 1
"""Quality of service: until the broker has it."""


def _broker(url: str) -> str:
    return plain_address(url, tuple(PORTS))


@register_sink("mqtt")
class Mqtt(Sink):
    """Publishes to ``TOPIC/inspections/RECIPE/SOURCE`` the record as JSON, QoS 1, not retained.

    ``TOPIC/status`` is retained: ``{"state": "ready", "reason": null}``; starting, ready, error, or
    offline, which is also the last will. One record after the other, in order; each has arrived
    when the broker says so, and may arrive twice where that was lost: its ``id`` tells.
    """

    keeps = True

    url: Annotated[str, AfterValidator(_broker)]
    """``mqtt://host:1883`` or, with TLS, ``mqtts://host:8883``."""
    topic: Annotated[str, Field(pattern=r"^[^#+\x00/$][^#+\x00]{0,255}$")] = "haloae"
    """What all topics begin with; one of its own for each box."""
    user: str | None = None
    password_file: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.password_file is not None and self.user is None:
            raise ValueError("a password_file needs a user")
        return self

    def check(self) -> None:
        """See `Settings.check`."""
        require("paho.mqtt.client")
        self._password()

    def _password(self) -> str | None:
        return None if self.password_file is None else read_secret(self.password_file)

    @contextmanager
    def opened(self) -> Iterator[Connection]:
        """See `Sink.opened`."""
        client, shown = self._client(), shown_address(self.url)
        broker = _Broker(client, self.topic, shown)
        parts = urlsplit(self.url)
        try:
            client.connect(parts.hostname or "", parts.port or PORTS[parts.scheme], KEEPALIVE)
        except (OSError, ValueError) as error:
            raise ConnectionError(f"{shown} cannot be reached ({error})") from None
        client.loop_start()
        try:
            broker.await_welcome()
            yield broker
            broker.say_goodbye()
        finally:
            client.disconnect()
            client.loop_stop()

    def _client(self) -> "Client":
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        client = Client(CallbackAPIVersion.VERSION2)
        client.connect_timeout = WAIT
        if urlsplit(self.url).scheme == "mqtts":
            client.tls_set()
        if self.user is not None:
            client.username_pw_set(self.user, self._password())
        return client


class _Broker(Connection):
    """A client that, where nothing is to be delivered, connects anew by itself."""

    def __init__(self, client: "Client", topic: str, shown: str) -> None:
        self._client, self._topic, self._shown = client, topic, shown
        self._answered = Event()
        self._refusal: str | None = None
        self._status: str | None = None
        client.on_connect = self._on_connect
        client.will_set(f"{topic}/status", _status("offline"), ONCE_OR_MORE, retain=True)

    def _on_connect(self, client: "Client", _data: Any, _flags: Any, code: Any, _more: Any) -> None:  # noqa: ANN401
        self._refusal = str(code) if code.is_failure else None
        self._answered.set()
        if self._status is not None and not code.is_failure:  # again, after it had said offline
            self._publish_status()

    def await_welcome(self) -> None:
        """Until the broker has let us in.

        Raises:
            ConnectionError: it has not.
        """
        is_answered = self._answered.wait(WAIT)
        if not is_answered or self._refusal is not None:
            why = self._refusal or f"no answer for {WAIT:g} seconds"
            raise ConnectionError(f"{self._shown} does not let us in ({why})")

    def deliver(self, item: Item) -> None:
        record = item.record
        names = [quote(record[part], safe=" ") for part in ("recipe", "source")]
        topic = "/".join((self._topic, "inspections", *names))
        self._arrived(self._client.publish(topic, json.dumps(record), ONCE_OR_MORE))

    def tell(self, state: ServiceState) -> None:
        self._status = _status(state.name, state.reason)
        self._arrived(self._publish_status())

    def say_goodbye(self) -> None:
        """What the last will would say, which a client that leaves in order takes with it."""
        self._status = _status("offline")
        self._arrived(self._publish_status())

    def _publish_status(self) -> "MQTTMessageInfo":
        return self._client.publish(
            f"{self._topic}/status", self._status, ONCE_OR_MORE, retain=True
        )

    def _arrived(self, message: "MQTTMessageInfo") -> None:
        end = monotonic() + WAIT
        while not message.is_published():
            try:
                message.wait_for_publish(LOOK)
            except (ValueError, RuntimeError) as error:
                raise ConnectionError(f"{self._shown} is away ({error})") from None
            if not self._client.is_connected():
                raise ConnectionError(f"{self._shown} is away")
            if monotonic() > end:
                raise ConnectionError(f"{self._shown} does not answer for {WAIT:g} seconds")


def _status(state: str, reason: str | None = None) -> str:
    return json.dumps({"state": state, "reason": reason})
