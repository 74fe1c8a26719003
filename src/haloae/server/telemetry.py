"""Spans of each inspection for OpenTelemetry, where ``haloae[telemetry]`` is installed.

Where they go is said as it is everywhere, by ``OTEL_EXPORTER_OTLP_ENDPOINT`` and its kin; without
it, or without the extra, none are made.
"""

import logging
import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from haloae._version import __version__
from haloae.server.inspector import STAGES, Finished

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_tracers: list[Any] = []
"""The one that spans are made by, in a process that makes some."""


def start_tracing() -> None:
    """Make spans from now on, where the environment says where they go."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    if find_spec("opentelemetry.sdk") is None:
        log.warning("spans are asked for: run `pip install 'haloae[telemetry]'` to have them.")
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "haloae", "service.version": __version__})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracers[:] = [provider.get_tracer("haloae", __version__)]


def trace(one: Finished, headers: Mapping[str, str]) -> None:
    """Make the spans of an inspection: one of all of it, below the caller's, and one a stage.

    Args:
        one: the inspection.
        headers: of its request, where ``traceparent`` names the caller's span.
    """
    if not _tracers:
        return
    from opentelemetry.propagate import extract
    from opentelemetry.trace import set_span_in_context

    [tracer] = _tracers
    inspection, seen = one
    at = round(seen.began * 1e9)
    whole = tracer.start_span(
        "inspect",
        context=extract({name: headers[name] for name in ("traceparent",) if name in headers}),
        start_time=at,
        attributes={
            "haloae.inspection": inspection.id,
            "haloae.recipe": inspection.recipe,
            "haloae.verdict": inspection.verdict,
            "haloae.score": inspection.score,
        },
    )
    context = set_span_in_context(whole)
    for stage in STAGES:
        span = tracer.start_span(stage, context=context, start_time=at)
        at += round(seen.seconds.get(stage, 0.0) * 1e9)
        span.end(at)
    whole.end(at)
