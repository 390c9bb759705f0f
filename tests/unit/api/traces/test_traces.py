"""When traces are asked for, and those of streams."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bronze.api.traces import exporting, spans
from bronze.model.events import BatchApplied, CheckpointMade, TableFailed
from bronze.model.results import Failure
from tests.support.otlp import receiver, values


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://h"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://h"}, False),
    ],
)
def test_the_variables_of_opentelemetry_ask_for_traces(
    environment: dict[str, str], asked: bool
) -> None:
    """An endpoint or an exporter does, unless traces are switched off."""
    assert exporting.are_asked_for(environment) is asked


def test_a_batch_of_a_stream_is_a_trace_from_its_commit_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches are two traces; a table that fails is one with the error's kind."""
    committed = datetime.now(UTC) - timedelta(seconds=5)
    batch = BatchApplied(7, 2, 3, 11, 5.0, ("public.orders",), committed)
    with receiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
        with spans.stream_trace() as stream:
            stream.note(batch)
            stream.note(batch)
            stream.note(CheckpointMade(8, 0))
            stream.note(TableFailed("public.bad", Failure("TableRefused", "No.", "", "42P01")))
    first, second, failed = received.spans
    assert first.trace_id != second.trace_id
    assert abs(first.start_time_unix_nano - committed.timestamp() * 10**9) < 10**6
    assert first.end_time_unix_nano - first.start_time_unix_nano >= 5 * 10**9
    found = values(first.attributes)
    assert (found["bronze.transactions"], found["bronze.changes"]) == (2, 3)
    assert found["bronze.tables"] == ["public.orders"]
    assert values(failed.attributes)["db.response.status_code"] == "42P01"
    assert received.resources[0]["service.name"] == "shop"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """A program that has set up OpenTelemetry."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def test_in_a_program_with_opentelemetry_a_run_is_a_part_of_its_traces(
    program: InMemorySpanExporter,
) -> None:
    """Its current span is the parent; the program's provider stays as it is."""
    notes: list[str] = []
    with (
        trace.get_tracer("program").start_as_current_span("job") as job,
        spans.run_trace(notes) as run,
    ):
        run.plan(1)
    plan, whole, _ = program.get_finished_spans()
    assert (plan.name, whole.name) == ("plan", "bronze run")
    assert plan.parent is not None
    assert whole.parent is not None
    assert whole.context is not None
    assert whole.parent.span_id == job.get_span_context().span_id
    assert plan.parent.span_id == whole.context.span_id
    assert not notes
