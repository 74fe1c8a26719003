"""Sources and sinks at the inspector: images that come in by themselves, inspections handed on."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

from haloae.errors import ConfigError, DataError
from haloae.server.inspector import Inspector
from haloae.server.problems import Problems
from haloae.server.records import Records
from haloae.server.sinks import ServiceState, Sink, Sinks, SinkState
from haloae.server.sources import Source, Sources, SourceState


class Attached:
    """All of them.

    Args:
        sources: settings of where images come from.
        sinks: settings of what inspections are handed on to.
        inspector: that inspects; listens to it from now on, so it must not have been started.
        problems: is told what is broken, and what works again.
        folder: for what they keep over a restart; None: there are none.

    Raises:
        ConfigError: a setting cannot be used, or there is no folder.
        MissingExtraError: a package is not installed.
        OutputError: a folder cannot be made, or what waits in it cannot be read.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        sinks: Sequence[Sink],
        inspector: Inspector,
        problems: Problems,
        folder: Path | None,
    ) -> None:
        if folder is None and (sources or sinks):
            raise ConfigError("sources and sinks keep things over a restart: give a folder.")
        folder = folder or Path()
        self._inspector, self._problems = inspector, problems
        self._telling = Lock()
        self.sinks = Sinks(sinks, folder, on_change=self._on_sink)
        self.sources = Sources(sources, self._inspect, folder, on_change=self._on_source)
        if sinks:
            inspector.listeners["sinks"] = self.sinks.offer

    def start(self, records: Records) -> None:
        """After the inspector has been started: hand on, then take in.

        Args:
            records: that are open; of them, sinks get what a kill has kept from them.
        """

        def image_of(inspection: str) -> bytes:
            with suppress(DataError):
                stored = records.find(inspection)
                kept = stored and records.images.read(stored.inspection)
                return kept.data if kept else b""
            return b""

        self.sinks.catch_up(records.store.history, image_of)
        self.sinks.start()
        self._tell()
        self.sources.start()

    def stop_sources(self, seconds: float) -> None:
        """Before the inspector is stopped: take nothing more in."""
        self.sources.stop(seconds)

    def stop_sinks(self, seconds: float) -> None:
        """After the inspector has been stopped: hand on what waits."""
        self.sinks.stop(seconds)

    def _inspect(self, recipe: str, image: bytes, source: str) -> None:
        (future,) = self._inspector.submit([image], recipe=recipe, source=source)
        future.result()

    def _on_source(self, state: SourceState) -> None:
        self._report(f"source {state.name}", state.reason)
        self._tell()

    def _on_sink(self, state: SinkState) -> None:
        dropped = f"no room for {state.dropped} inspections" if state.dropped else None
        self._report(f"sink {state.name}", state.reason or dropped)

    def _report(self, part: str, reason: str | None) -> None:
        if reason is None:
            self._problems.clear(part)
        else:
            self._problems.report(part, reason)

    def _tell(self) -> None:
        """Let sinks know: in error while a source is broken."""
        with self._telling:
            broken = [each for each in self.sources.states() if each.status == "retrying"]
            reason = "; ".join(f"source {each.name}: {each.reason}" for each in broken)
            self.sinks.tell(ServiceState("error", reason) if broken else ServiceState("ready"))
