"""Shows the service by OPC UA: its state and its last results, after OPC 40100-1 (Machine Vision).

Names, states and their numbers are those of the companion specification; its full model of types is
not loaded.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from haloae._version import __version__
from haloae.server.kinds import plain_address, require, shown_address
from haloae.server.sinks.base import Connection, Item, ServiceState, Sink, register_sink

if TYPE_CHECKING:
    from asyncua.sync import Server, SyncNode, ThreadLoop

NAMESPACE = "urn:haloae:machine-vision"
WAIT = 120.0
"""Seconds that a call within the server may take: it begins by loading the standard's nodes."""
PORT = 4840
VISION = {"Preoperational": 1, "Halted": 2, "Error": 3, "Operational": 4}
"""States of the `VisionStateMachine` and their numbers."""
AUTOMATIC = {"Initialized": 5, "Ready": 6, "SingleExecution": 7, "ContinuousExecution": 8}
"""States of its `AutomaticModeStateMachine`, which has one while the other is operational."""
VERDICTS = {"normal": "NormalCount", "anomalous": "AnomalousCount", "unusable": "UnusableCount"}


def _endpoint(url: str) -> str:
    return plain_address(url, ("opc.tcp",))


class _Value(NamedTuple):
    """A variable of a result."""

    type: str
    """Of OPC UA."""
    key: str
    """In the record."""


RESULT = {
    "CreationTime": _Value("DateTime", "time"),
    "Source": _Value("String", "source"),
    "InternalRecipeId": _Value("String", "recipe"),
    "InternalConfigurationId": _Value("String", "model"),
    "Verdict": _Value("String", "verdict"),
    "Score": _Value("Double", "score"),
    "PValue": _Value("Double", "p_value"),
    "Threshold": _Value("Double", "threshold"),
    "Reason": _Value("String", "reason"),
    "ResultContent": _Value("String", ""),
    "ResultId": _Value("String", "id"),
}
"""Variables of a result, in the order in which they are written: with `ResultId`, all are new."""


@register_sink("opcua")
class OpcUa(Sink):
    """A server that clients, as a PLC or SCADA, read and subscribe to; none can write or call.

    It neither signs nor encrypts, and lets everyone read who reaches its port: another address than
    loopback belongs into a network of its own.
    """

    url: Annotated[str, AfterValidator(_endpoint)] = "opc.tcp://127.0.0.1:4840/haloae"
    """Where it listens."""
    station: Annotated[str, Field(pattern=r"^[^./\x00]{1,64}$")] = "haloae"
    """What the object is called below `Objects`."""

    def check(self) -> None:
        """See `Settings.check`."""
        require("asyncua")

    @contextmanager
    def opened(self) -> Iterator[Connection]:
        """See `Sink.opened`: counts begin at 0."""
        with _loop() as loop, _server(loop, self) as server:
            station = _Station(server, self.station)
            try:
                server.start()
            except OSError as error:
                shown = shown_address(self.url)
                raise ConnectionError(f"{shown} cannot be listened on ({error.strerror})") from None
            yield station


@contextmanager
def _loop() -> "Iterator[ThreadLoop]":
    """A thread for what is asynchronous, which never keeps the process."""
    from asyncua.sync import ThreadLoop

    loop = ThreadLoop(timeout=WAIT)
    loop.daemon = True
    loop.start()
    try:
        yield loop
    finally:
        loop.stop()


@contextmanager
def _server(loop: "ThreadLoop", settings: OpcUa) -> "Iterator[Server]":
    """A server that is set up and not started, stopped afterwards."""
    from asyncua import ua
    from asyncua.sync import Server

    server = Server(tloop=loop)
    parts = urlsplit(settings.url)
    server.set_endpoint(f"opc.tcp://{parts.hostname}:{parts.port or PORT}{parts.path}")
    server.set_server_name(f"haloae {__version__}")
    server.set_application_uri(f"urn:haloae:{settings.station}")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    server.set_identity_tokens([ua.AnonymousIdentityToken])
    server.aio_obj.allow_remote_admin(False)  # else whoever says "admin" is one
    try:
        yield server
    finally:
        with suppress(Exception):  # it says so where it has not been started
            server.stop()


class _Station(Connection):
    """The nodes, and what is in them."""

    def __init__(self, server: "Server", station: str) -> None:
        from asyncua import ua

        self._ua = ua
        self._index = server.register_namespace(NAMESPACE)
        self._station = self._object(server.nodes.objects, station)
        machine = self._object(self._station, "VisionStateMachine")
        self._vision = self._machine(machine)
        self._automatic = self._machine(self._object(machine, "AutomaticModeStateMachine"))
        self._reason = self._variable(self._station, "ErrorReason", "String")
        management = self._object(self._station, "ResultManagement")
        self._latest = self._result(management, "Latest")
        self._recipes = self._object(management, "Recipes")
        self._state = ServiceState("starting")
        self._by_recipe: dict[str, dict[str, SyncNode]] = {}
        self._counts = dict.fromkeys(VERDICTS, 0)
        self._count_nodes = {
            verdict: self._variable(management, node, "UInt64")
            for verdict, node in VERDICTS.items()
        }
        self._enter("Preoperational", None)

    def tell(self, state: ServiceState) -> None:
        self._reason.write_value(state.reason or "")
        if state.name == "ready":
            self._enter("Operational", "Initialized")
            self._enter("Operational", "Ready")
        else:
            self._enter("Error" if state.name == "error" else "Preoperational", None)
        self._state = state

    def deliver(self, item: Item) -> None:
        """A single execution ends as soon as its result can be read."""
        record = item.record
        is_ready = self._state.name == "ready"
        if is_ready:
            self._enter("Operational", "SingleExecution")
        if record["recipe"] not in self._by_recipe:
            self._by_recipe[record["recipe"]] = self._result(self._recipes, record["recipe"])
        verdict = record["verdict"]
        self._counts[verdict] += 1
        self._count_nodes[verdict].write_value(
            self._ua.Variant(self._counts[verdict], self._ua.VariantType.UInt64)
        )
        for nodes in (self._by_recipe[record["recipe"]], self._latest):
            for name, node in nodes.items():
                node.write_value(self._variant(RESULT[name], record))
        if is_ready:
            self._enter("Operational", "Ready")

    def _variant(self, value: _Value, record: dict[str, Any]) -> Any:  # noqa: ANN401 - asyncua's
        found = json.dumps(record) if not value.key else record[value.key]
        if value.type == "DateTime":
            found = datetime.fromisoformat(found)
        return self._ua.Variant("" if found is None else found, self._ua.VariantType[value.type])

    def _enter(self, vision: str, automatic: str | None) -> None:
        self._set_state(self._vision, vision, VISION[vision])
        if automatic is None:
            self._set_state(self._automatic, None, 0)
        else:
            self._set_state(self._automatic, automatic, AUTOMATIC[automatic])

    def _set_state(self, nodes: "tuple[SyncNode, SyncNode]", name: str | None, number: int) -> None:
        ua = self._ua
        values = (
            ua.Variant(ua.LocalizedText(name or "", "en"), ua.VariantType.LocalizedText),
            ua.Variant(number, ua.VariantType.UInt32),
        )
        codes = ua.StatusCodes
        code = ua.StatusCode(codes.BadStateNotActive if name is None else codes.Good)
        for node, value in zip(nodes, values, strict=True):
            node.write_value(ua.DataValue(value, code, datetime.now(UTC)))

    def _object(self, parent: "SyncNode", name: str) -> "SyncNode":
        where = self._ua.QualifiedName(name, self._index)
        node: SyncNode = parent.add_object(self._id(parent, name), where)
        return node

    def _machine(self, parent: "SyncNode") -> "tuple[SyncNode, SyncNode]":
        """Name and number of the state that it is in."""
        state = self._variable(parent, "CurrentState", "LocalizedText")
        return state, self._variable(state, "Number", "UInt32")

    def _result(self, parent: "SyncNode", name: str) -> "dict[str, SyncNode]":
        node = self._object(parent, name)
        return {each: self._variable(node, each, value.type) for each, value in RESULT.items()}

    def _variable(self, parent: "SyncNode", name: str, type_name: str) -> "SyncNode":
        ua = self._ua
        kind = ua.VariantType[type_name]
        empty: dict[str, object] = {
            "String": "",
            "Double": 0.0,
            "LocalizedText": ua.LocalizedText(""),
            "DateTime": datetime.min,
        }
        value = ua.Variant(empty.get(type_name, 0), kind)
        where = ua.QualifiedName(name, self._index)
        node: SyncNode = parent.add_variable(self._id(parent, name), where, value)
        return node

    def _id(self, parent: "SyncNode", name: str) -> Any:  # noqa: ANN401 - asyncua's
        """Text that stays the same over a restart: the path below `Objects`, with dots."""
        above = parent.nodeid.Identifier
        path = f"{above}.{name}" if isinstance(above, str) else name
        return self._ua.NodeId(self._ua.String(path), self._index)
