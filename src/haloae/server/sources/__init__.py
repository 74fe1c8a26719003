"""Where images come from, one file a kind, and the threads that take them.

A kind is registered in one table; ``kind`` of a ``[[source]]`` in `serve.toml` names it.
"""

from haloae.server.sources import camera as camera
from haloae.server.sources import folder as folder
from haloae.server.sources import video as video
from haloae.server.sources.base import (
    SOURCES,
    Images,
    Source,
    SourceSettings,
    Taken,
    register_source,
)
from haloae.server.sources.supervisor import Inspect, Sources, SourceState

__all__ = [
    "SOURCES",
    "Images",
    "Inspect",
    "Source",
    "SourceSettings",
    "SourceState",
    "Sources",
    "Taken",
    "register_source",
]
