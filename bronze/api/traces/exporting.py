"""Where spans go: to the exporter that the variables ``OTEL_*`` name, or into a program's own SDK.

Traces are asked for by an endpoint (``OTEL_EXPORTER_OTLP_ENDPOINT`` or that of traces) or by
``OTEL_TRACES_EXPORTER=otlp``, and not for ``none`` or ``OTEL_SDK_DISABLED=true``. In a program that
has set up OpenTelemetry, spans are part of its traces. Otherwise nothing is imported.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bronze.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_HTTP = "http/protobuf"
_PART = 512
MISSING = (
    "Traces are asked for by OTEL_*, and OpenTelemetry is not installed:"
    " pip install 'bronze[otel]'; or set OTEL_TRACES_EXPORTER=none."
)


def are_asked_for(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the variables of OpenTelemetry ask for traces."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter:
        return "otlp" in exporter.split(",")
    return any(environment.get(name) for name in _ENDPOINTS)


def has_program_tracing() -> bool:
    """Whether the program that bronze is a part of has set up OpenTelemetry."""
    if "opentelemetry.sdk.trace" not in sys.modules:
        return False
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    return isinstance(trace.get_tracer_provider(), TracerProvider)


@dataclass
class Destination:
    """A tracer, and how its spans leave; ``notes`` are messages for the user."""

    tracer: Tracer | None = None
    parent: Context | None = None
    notes: list[str] = field(default_factory=list)


@contextmanager
def destination(*, lasting: bool = False) -> Iterator[Destination]:
    """A tracer whose spans are exported when the context ends; one without tracer where no traces
    are asked for, or cannot be made, which a note says.

    Args:
        lasting: whether spans are exported while they come, every few seconds.
    """
    if has_program_tracing():
        from opentelemetry import trace

        yield Destination(trace.get_tracer("bronze", VERSION))
        return
    if not are_asked_for():
        yield Destination()
        return
    try:
        from opentelemetry.sdk.trace import TracerProvider

        exporter = _exporter()
    except ImportError:
        yield Destination(notes=[MISSING])
        return
    except Exception as error:  # no variable of OpenTelemetry may fail a run
        yield Destination(notes=[f"Traces cannot be sent: {type(error).__name__} of OTEL_*."])
        return
    _be_quiet()
    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    collected = _collect(provider, exporter, lasting)
    to = Destination(provider.get_tracer("bronze", VERSION), _parent())
    try:
        yield to
    finally:
        if not _leave(provider, exporter, collected):
            to.notes.append("Traces were not sent: the receiver of OTEL_* did not take them.")


def _exporter() -> SpanExporter:
    protocol = next(filter(None, map(os.environ.get, _PROTOCOLS)), _HTTP)
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
            OTLPSpanExporter as GrpcExporter,
        )

        exporter: SpanExporter = GrpcExporter()
        return exporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _resource() -> Any:
    from opentelemetry.sdk.resources import Resource

    # What the variables say of the service comes first.
    own = {"service.version": VERSION}
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    return Resource.create(own if named else {**own, "service.name": "bronze"})


def _parent() -> Context | None:
    """The span that the process is a part of: schedulers hand it on as ``TRACEPARENT``."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    names = ("traceparent", "tracestate")
    carrier = {name: os.environ.get(name.upper(), "") for name in names}
    return TraceContextTextMapPropagator().extract(carrier) if carrier["traceparent"] else None


def _collect(provider: TracerProvider, exporter: SpanExporter, lasting: bool) -> Any:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    if lasting:
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return None
    collected = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(collected))
    return collected


def _leave(provider: TracerProvider, exporter: SpanExporter, collected: Any) -> bool:
    """Exports what was collected, and closes all; whether the receiver has taken it."""
    from opentelemetry.sdk.trace.export import SpanExportResult

    done = True
    try:
        spans = collected.get_finished_spans() if collected else ()
        for first in range(0, len(spans), _PART):
            done = exporter.export(spans[first : first + _PART]) is SpanExportResult.SUCCESS
            if not done:
                break
    except Exception:  # the receiver's troubles are no reason for a run to fail
        done = False
    provider.shutdown()
    if collected:
        exporter.shutdown()
    return done


def _be_quiet() -> None:
    """The library would log each attempt; a run says in one note that nothing was sent."""
    log = logging.getLogger("opentelemetry")
    if log.level == logging.NOTSET and "BRONZE_DEBUG" not in os.environ:
        log.setLevel(logging.CRITICAL + 1)
