"""OPC UA: a real client reads states and results, and can change nothing."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from haloae.server.inspection import Box
from haloae.server.sinks import ServiceState, Sinks
from haloae.server.sinks.opcua import NAMESPACE, OpcUa
from server.made_up import START
from server.plant import QUICK, Seen, free_port, inspection, until

pytest.importorskip("asyncua", reason="asyncua is not installed")

from asyncua import ua
from asyncua.sync import Client, ThreadLoop

Read = Callable[[str], Any]
STATE = "VisionStateMachine.CurrentState"
AUTOMATIC = "VisionStateMachine.AutomaticModeStateMachine.CurrentState"
LATEST = "ResultManagement.Latest"


@pytest.fixture(scope="module")
def sinks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sinks, str]]:
    """One server for all, as it takes seconds to start."""
    url = f"opc.tcp://127.0.0.1:{free_port()}/haloae"
    settings = OpcUa(name="plc", url=url, station="line-1")
    sinks = Sinks([settings], tmp_path_factory.mktemp("state"), back_off=QUICK)
    sinks.start()
    until(lambda: sinks.states()[0].status == "running", seconds=120)
    yield sinks, url
    sinks.stop()


@pytest.fixture
def client(sinks: tuple[Sinks, str]) -> Iterator[Client]:
    with Client(sinks[1]) as client:
        yield client


@pytest.fixture
def read(client: Client) -> Read:
    index = client.get_namespace_index(NAMESPACE)
    return lambda path: client.get_node(f"ns={index};s=line-1.{path}").read_value()


def text(read: Read, path: str) -> str | None:
    """Of a state; None: its machine is not active."""
    try:
        return str(read(path).Text)
    except ua.uaerrors.BadStateNotActive:
        return None


def test_states_are_those_of_the_companion_specification(
    sinks: tuple[Sinks, str], read: Read
) -> None:
    assert read(STATE).Text == "Preoperational"
    assert read(f"{STATE}.Number") == 1
    assert text(read, AUTOMATIC) is None
    sinks[0].tell(ServiceState("ready"))
    until(lambda: text(read, AUTOMATIC) == "Ready")
    assert read(STATE).Text == "Operational"
    assert (read(f"{STATE}.Number"), read(f"{AUTOMATIC}.Number")) == (4, 6)
    sinks[0].tell(ServiceState("error", "camera 1 is gone"))
    until(lambda: read(STATE).Text == "Error" and text(read, AUTOMATIC) is None)
    assert read("ErrorReason") == "camera 1 is gone"
    sinks[0].tell(ServiceState("ready"))
    until(lambda: text(read, AUTOMATIC) == "Ready")
    assert read("ErrorReason") == ""


def test_results_are_read_and_subscribed_to(
    sinks: tuple[Sinks, str], client: Client, read: Read
) -> None:
    class Subscriber:
        def __init__(self) -> None:
            self.ids: list[str] = []
            self.states: list[str] = []

        def datachange_notification(self, node: Any, value: Any, _: Any) -> None:  # noqa: ANN401
            if isinstance(value, str):
                self.ids.append(value)
            elif value is not None:
                self.states.append(value.Text)

    sinks[0].tell(ServiceState("ready"))
    until(lambda: text(read, AUTOMATIC) == "Ready")
    subscriber = Subscriber()
    subscription = client.create_subscription(20, subscriber)
    index = client.get_namespace_index(NAMESPACE)
    nodes = [client.get_node(f"ns={index};s=line-1.{p}") for p in (f"{LATEST}.ResultId", AUTOMATIC)]
    subscription.subscribe_data_change(nodes, queuesize=10)
    sinks[0].offer(inspection(1, verdict="unusable", reason="dark"), Seen())
    sinks[0].offer(inspection(2, recipe="bottle", boxes=(Box(1, 2, 3, 4, 5.0),)), Seen())
    until(lambda: inspection(2).id in subscriber.ids)
    until(lambda: subscriber.states[-1:] == ["Ready"])
    subscription.delete()
    assert "SingleExecution" in subscriber.states
    assert read(f"{LATEST}.Verdict") == "normal"
    assert read(f"{LATEST}.InternalRecipeId") == "bottle"
    assert read(f"{LATEST}.CreationTime") == START + timedelta(seconds=2)
    assert (read(f"{LATEST}.Score"), read(f"{LATEST}.PValue")) == (0.5, 0.25)
    assert '"boxes": [{"left": 1' in read(f"{LATEST}.ResultContent")
    cap = "ResultManagement.Recipes.cap"
    assert (read(f"{cap}.Verdict"), read(f"{cap}.Reason")) == ("unusable", "dark")
    counts = ("NormalCount", "AnomalousCount", "UnusableCount")
    assert [read(f"ResultManagement.{name}") for name in counts] == [1, 0, 1]


def test_a_client_can_change_nothing_whoever_it_says_it_is(
    sinks: tuple[Sinks, str], client: Client
) -> None:
    index = client.get_namespace_index(NAMESPACE)
    node = client.get_node(f"ns={index};s=line-1.ErrorReason")
    for forbidden in (
        lambda: node.write_value("mine"),
        lambda: client.nodes.objects.add_object(f"ns={index};s=mine", "mine"),
        lambda: client.delete_nodes([node]),
    ):
        with pytest.raises(ua.UaStatusCodeError, match="BadUserAccessDenied"):
            forbidden()
    with ThreadLoop() as loop:
        admin = Client(sinks[1], tloop=loop)
        admin.set_user("admin")
        admin.set_password("admin")
        with pytest.raises(ua.UaStatusCodeError, match="BadIdentityTokenRejected"):
            admin.connect()


@pytest.mark.slow  # each try loads the standard's nodes
def test_a_port_that_is_taken_is_reported(sinks: tuple[Sinks, str], tmp_path: Path) -> None:
    second = Sinks([OpcUa(name="plc", url=sinks[1])], tmp_path)
    second.start()
    until(lambda: second.states()[0].status == "retrying", seconds=120)
    assert "cannot be listened on" in str(second.states()[0].reason)
    second.stop()
