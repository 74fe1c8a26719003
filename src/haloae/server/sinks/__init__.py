"""Where inspections are handed on to, one file a kind, and the threads that deliver them.

A kind is registered in one table; ``kind`` of a ``[[sink]]`` in `serve.toml` names it.
"""

from haloae.server.sinks import folder as folder
from haloae.server.sinks import mqtt as mqtt
from haloae.server.sinks import opcua as opcua
from haloae.server.sinks import webhook as webhook
from haloae.server.sinks.base import (
    SINKS,
    Connection,
    Item,
    Seen,
    ServiceState,
    Sink,
    SinkSettings,
    UnwantedError,
    register_sink,
)
from haloae.server.sinks.dispatcher import Sinks, SinkState

__all__ = [
    "SINKS",
    "Connection",
    "Item",
    "Seen",
    "ServiceState",
    "Sink",
    "SinkSettings",
    "SinkState",
    "Sinks",
    "UnwantedError",
    "register_sink",
]
