"""What every source of images is, and the table they stand in."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from pathlib import Path
from threading import Event
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

from pydantic import BeforeValidator, Field, SerializeAsAny

from haloae.server.kinds import Settings, parse_kinds


class Taken(NamedTuple):
    """An image that a source has taken."""

    image: bytes
    """Of an image file, in any format that `haloae` reads."""
    name: str
    """What it is called in messages."""


Images = Generator[Taken | None, bool, None]
"""What a source gives: images, and None for "all is well, nothing new yet". A `yield` of an image
comes back when it has been inspected (True) or cannot be read as an image (False)."""


class Source(Settings, ABC):
    """One place that images come from: its settings, and how to take images there."""

    live: ClassVar[bool] = True
    """True: what cannot be inspected now is dropped and counted, as the next is newer; False: it is
    offered again until it can."""
    recipe: Annotated[str, Field(min_length=1, max_length=255)]
    """Which model inspects its images."""

    @abstractmethod
    def images(self, stop: Event, memory: Path) -> Images:
        """Take images, one after the other, until `stop` is set.

        An exception says that the source is broken: it is reported, and `images` is called again
        after a while. A return says that nothing more will ever come. What it has opened it closes
        in a ``finally``, or by ``with``. It looks at `stop` at least every second.

        Args:
            stop: set when the service stops; ``stop.wait(seconds)`` is how to wait.
            memory: a file of its own, in a folder that exists, for what is to outlive a restart.
        """


SOURCES: dict[str, type[Source]] = {}
"""By the kind that `serve.toml` gives."""

Registered = TypeVar("Registered", bound=type[Source])


def register_source(kind: str) -> Callable[[Registered], Registered]:
    """Put a source into the table, under a kind of its own."""

    def register(source: Registered) -> Registered:
        SOURCES[kind] = source
        return source

    return register


def _parse(values: Any) -> tuple[Source, ...]:  # noqa: ANN401 - whatever a file may hold
    return parse_kinds(SOURCES, "source", values)


SourceSettings = Annotated[tuple[SerializeAsAny[Source], ...], BeforeValidator(_parse)]
"""A field of settings: the tables ``[[source]]`` of `serve.toml`. A wrong one is a `ConfigError`.
"""
