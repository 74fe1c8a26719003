"""What the service counts and times, as Prometheus reads it."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from haloae.server.inspection import Inspection
from haloae.server.inspector import Seen

if TYPE_CHECKING:
    from haloae.server.app import Service

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
P_VALUES = (0.001, 0.005, 0.01, 0.02, 0.05, *(tenth / 10 for tenth in range(1, 11)))
"""Upper ends: fine where good images are rare, then by tenths, which good images fill alike."""


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "haloae_requests", "Requests", ("method", "path", "status"), registry=self.registry
        )
        self.request_seconds = Histogram(
            "haloae_request_seconds",
            "From a request's head to its whole answer",
            ("path",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "haloae_stage_seconds",
            "Of an inspection, by stage",
            ("stage",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.inspections = Counter(
            "haloae_inspections",
            "Inspections",
            ("recipe", "verdict", "source"),
            registry=self.registry,
        )
        self.p_values = Histogram(
            "haloae_p_value",
            "Share of good images that score at least as high",
            ("recipe",),
            buckets=P_VALUES,
            registry=self.registry,
        )

    def listen(self, inspection: Inspection, seen: Seen) -> None:
        """A `Listener`; add it last, as it counts the seconds of those before it."""
        recipe = inspection.recipe
        self.inspections.labels(recipe, inspection.verdict, inspection.source).inc()
        self.p_values.labels(recipe).observe(inspection.p_value)
        for stage, seconds in seen.seconds.items():
            self.stage_seconds.labels(stage).observe(seconds)

    def watch(self, service: "Service") -> None:
        """Tell what the service's parts are like at the moment, too."""
        self.registry.register(_Moment(service))

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Moment(Collector):
    """What is asked of the parts when somebody looks."""

    def __init__(self, service: "Service") -> None:
        self.service = service

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        service = self.service
        for name, help, value in (
            ("haloae_queue_images", "Taken in and not answered yet", service.inspector.queued),
            ("haloae_queue_places", "Most that are taken in", service.settings.queue.places),
            ("haloae_ready", "1: images are taken in", int(service.inspector.is_taking)),
        ):
            yield GaugeMetricFamily(name, help, value=value)
        problems = GaugeMetricFamily(
            "haloae_problem_times",
            "How often what is wrong was reported",
            labels=["part"],
        )
        for problem in service.problems.now():
            problems.add_metric([problem.part], problem.times)
        yield problems
        yield from _drift(service)
        loaded = GaugeMetricFamily("haloae_recipe_loaded", "1: in memory", labels=["recipe"])
        for recipe in service.recipes.listed():
            loaded.add_metric([recipe.name], int(recipe.is_loaded))
        yield loaded
        yield from _attached(service)


def _drift(service: "Service") -> Iterator[Metric]:
    """What has changed, and what is about to be known to have, by recipe."""
    labels = ["recipe", "what"]
    alarm = GaugeMetricFamily("haloae_drift_alarm", "1: something has changed", labels=labels)
    evidence = GaugeMetricFamily(
        "haloae_drift_evidence", "That a measure has changed; 1: an alarm", labels=labels
    )
    change = GaugeMetricFamily(
        "haloae_drift_change", "Of a measure, from what is usual to the last images", labels=labels
    )
    for state in service.drift.state():
        for raised in state.alarms:
            alarm.add_metric([state.recipe, raised.what], 1)
        for metric, values in ((evidence, state.evidence), (change, state.change)):
            for measure, value in values.items():
                metric.add_metric([state.recipe, measure], value)
    yield alarm
    yield evidence
    yield change


def _attached(service: "Service") -> Iterator[Metric]:
    """Of sources and sinks, by name."""
    works = GaugeMetricFamily("haloae_source_works", "1: it is not broken", labels=["source"])
    refused = CounterMetricFamily("haloae_source_refused", "That are no image", labels=["source"])
    dropped = CounterMetricFamily("haloae_source_dropped", "Of a live one", labels=["source"])
    for source in service.attached.sources.states():
        works.add_metric([source.name], int(source.status != "retrying"))
        refused.add_metric([source.name], source.refused)
        dropped.add_metric([source.name], source.dropped)
    yield works
    yield refused
    yield dropped
    works = GaugeMetricFamily("haloae_sink_works", "1: it is not broken", labels=["sink"])
    waiting = GaugeMetricFamily("haloae_sink_waiting", "Inspections", labels=["sink"])
    refused = CounterMetricFamily("haloae_sink_refused", "Not wanted there", labels=["sink"])
    dropped = CounterMetricFamily("haloae_sink_dropped", "For want of room", labels=["sink"])
    for sink in service.attached.sinks.states():
        works.add_metric([sink.name], int(sink.status != "retrying"))
        waiting.add_metric([sink.name], sink.waiting)
        refused.add_metric([sink.name], sink.refused)
        dropped.add_metric([sink.name], sink.dropped)
    yield works
    yield waiting
    yield refused
    yield dropped
