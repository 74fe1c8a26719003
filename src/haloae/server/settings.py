"""Every setting of the service, frozen and self-checking: `serve.toml`."""

import os
from datetime import time
from pathlib import Path
from socket import gethostname
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from haloae.errors import ConfigError
from haloae.server.kinds import Modules
from haloae.server.sinks import SinkSettings
from haloae.server.sources import SourceSettings
from haloae.settings import checked, read_toml

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Few = Annotated[int, Field(ge=1, le=4096)]


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ImageLimits(_Frozen):
    """Most that one image may cost, see `haloae.data.limits.Limits`; ``--limit`` goes first."""

    bytes: PositiveInt = 2**26
    """Of a request's body, too."""
    pixels: PositiveInt = 50_000_000
    seconds: Seconds = 3
    memory: PositiveInt = 2**30


class QueueSettings(_Frozen):
    """What is taken in, and how it is gone through."""

    threads: Few = Field(default_factory=cores)
    """That inspect, each on a core of its own."""
    places: Few = 64
    """Images taken in and not answered yet; a request beyond them is told to come again."""
    bytes: PositiveInt = 2**29
    """Of the bodies of all requests together that are received or waiting."""
    batch: Annotated[int, Field(ge=1, le=64)] = 8
    """Images measured at once."""
    wait: Annotated[float, Field(ge=0, le=10)] = 0.002
    """Seconds that an image waits for others, while no thread is idle."""
    seconds: Seconds = 30
    """From taking an image in to its answer; what is not inspected by then is not."""


class ModelSettings(_Frozen):
    """The recipes' models."""

    memory: PositiveInt = 2**31
    """Bytes that all loaded ones may take; the least recently used goes first."""
    look: Seconds = 1
    """Between two looks at whether a file was replaced."""


class HttpSettings(_Frozen):
    """The connections."""

    connections: Few = 256
    """At a time; of a further one, the request is refused."""
    receive: Seconds = 30
    """For a request to arrive whole."""
    idle: Annotated[int, Field(ge=1, le=3600)] = 5
    """Seconds that a connection may stay open without a request."""
    stop: Annotated[int, Field(ge=1, le=3600)] = 30
    """Seconds that a stop waits for what was taken in."""
    names: tuple[str, ...] = ()
    """Host names that requests may be addressed to, besides any address and ``localhost``."""


class KeepSettings(_Frozen):
    """What of inspections is kept, in the folder of ``--data``; the oldest goes first."""

    days: PositiveFloat = 365
    """Of records."""
    bytes: PositiveInt = 2**32
    """Of records."""
    images: Literal["all", "to_review", "none"] = "all"
    """Of which inspections the image is kept; ``to_review``: unusable, anomalous and nearly so."""
    image_days: PositiveFloat = 30
    image_bytes: PositiveInt = 20 * 2**30
    database: Path | None = None
    """A file whose first line is ``postgresql://USER:PASSWORD@HOST/DATABASE``: all records are
    copied there."""
    box: Annotated[str, Field(min_length=1, max_length=100)] = Field(default_factory=gethostname)
    """What this machine is called there."""


class PageSettings(_Frozen):
    """The operator's page."""

    shifts: Annotated[tuple[time, ...], Field(min_length=1)] = (time(6), time(14), time(22))
    """When a shift begins, by the machine's clock: ``["06:00", "18:00"]``."""
    texts: Path | None = None
    """A translation, see `haloae.server.page.texts`."""


class RetrainingSettings(_Frozen):
    """What models are fitted to anew."""

    good: dict[str, Path] = {}
    """Folders of good images by recipe, besides those that were added in the page."""


class Settings(_Frozen):
    """All of `serve.toml`."""

    image: ImageLimits = ImageLimits()
    queue: QueueSettings = Field(default_factory=QueueSettings)
    models: ModelSettings = ModelSettings()
    http: HttpSettings = HttpSettings()
    keep: KeepSettings = KeepSettings()
    page: PageSettings = PageSettings()
    retraining: RetrainingSettings = RetrainingSettings()
    modules: Modules = ()
    """Python files with kinds of sources and sinks of one's own; they are run."""
    source: SourceSettings = ()
    """Where images come from besides requests."""
    sink: SinkSettings = ()
    """What every inspection is handed on to."""


def read_settings(path: Path | None) -> Settings:
    """Settings from a TOML file; None: as they are by default.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or wrong.
    """
    if path is None:
        return Settings()
    try:
        return checked(Settings, read_toml(path))
    except ConfigError as error:
        named = str(error)
        raise error if named.startswith(str(path)) else ConfigError(f"{path}: {named}") from error
