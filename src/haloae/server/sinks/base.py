"""What everything is that inspections are handed on to, and the table they stand in."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

from pydantic import BeforeValidator, SerializeAsAny

from haloae.server.inspection import Given, bytes_of, file_of
from haloae.server.kinds import Settings, parse_kinds


class Seen(Protocol):
    """Of what the service hands on with an inspection, that which sinks look at."""

    @property
    def given(self) -> Given:
        """The image."""


class Item(NamedTuple):
    """One inspection, on its way."""

    record: dict[str, Any]
    """As `Inspection.as_record`."""
    given: Given = b""
    """The image; empty where the sink did not ask for it."""

    @property
    def size(self) -> int:
        """Bytes of the image, in memory."""
        return bytes_of(self.given)

    def image(self) -> bytes:
        """The image as a file: as it came, or a PNG of the pixels, which takes a while."""
        return file_of(self.given)


class ServiceState(NamedTuple):
    """How the service is, for those sinks that pass it on."""

    name: Literal["starting", "ready", "error"]
    reason: str | None = None
    """Of an error."""


class UnwantedError(Exception):
    """Whoever is at the other end does not want this one item, now or later: it is left out."""


class Connection:
    """An open sink."""

    def deliver(self, item: Item) -> None:
        """Hand an item on, and come back when it has arrived.

        Raises:
            UnwantedError: it will never be taken; it is counted, and the next one comes.
            Exception: the sink is broken; the item is delivered again, by a new connection.
        """
        raise NotImplementedError

    def tell(self, state: ServiceState) -> None:
        """Pass on how the service is, where that is of use; called at first, and on a change."""


class Sink(Settings, ABC):
    """One place that inspections are handed on to: its settings, and how to get there."""

    keeps: ClassVar[bool] = False
    """True: what could not be delivered yet is kept on disk over a restart, without images."""
    wants_image: ClassVar[bool] = False
    """True: items come with their image."""

    @abstractmethod
    def opened(self) -> AbstractContextManager[Connection]:
        """Connect.

        An exception, here or in `Connection.deliver`, says that the sink is broken: the connection
        is closed and `opened` is called again after a while. All calls come from one thread.
        """


SINKS: dict[str, type[Sink]] = {}
"""By the kind that `serve.toml` gives."""

Registered = TypeVar("Registered", bound=type[Sink])


def register_sink(kind: str) -> Callable[[Registered], Registered]:
    """Put a sink into the table, under a kind of its own."""

    def register(sink: Registered) -> Registered:
        SINKS[kind] = sink
        return sink

    return register


def _parse(values: Any) -> tuple[Sink, ...]:  # noqa: ANN401 - whatever a file may hold
    return parse_kinds(SINKS, "sink", values)


SinkSettings = Annotated[tuple[SerializeAsAny[Sink], ...], BeforeValidator(_parse)]
"""A field of settings: the tables ``[[sink]]`` of `serve.toml`. A wrong one is a `ConfigError`."""
