"""The traces of a run, as a receiver of OpenTelemetry gets them."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from bronze.api.client import Bronze
from bronze.api.traces import exporting
from tests.conftest import Source
from tests.support.otlp import receiver, values

SECRET = "s3cr3t-value"


def shop(source: Source, **tables: Any) -> Bronze:
    """A database with a table that can be loaded."""
    source.execute(
        "CREATE TABLE orders (id int PRIMARY KEY, word text);"
        f"INSERT INTO orders SELECT i, '{SECRET}' FROM generate_series(1, 7) i;"
        "CREATE TABLE bad (id int PRIMARY KEY)"
    )
    return Bronze(source.settings(tables=tables))


def test_a_run_is_a_trace_of_its_tables_and_their_stages(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, bytes and errors are attributes, a failed table is a status; no value and no address of
    the source is sent. The trace is a part of that of the scheduler.
    """
    opened = shop(source, bad={"rules": [{"column": "gone", "not_null": True}]})
    trace = "0af7651916cd43dd8448eb211c80319c"
    monkeypatch.setenv("TRACEPARENT", f"00-{trace}-b7ad6b7169203331-01")
    with receiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.url)
        done = opened.run()
    assert [table.status for table in done.tables] in (["landed", "failed"], ["failed", "landed"])
    assert not done.notes

    run = received.named("bronze run")
    assert run.trace_id.hex() == trace
    assert run.parent_span_id.hex() == "b7ad6b7169203331"
    assert values(run.attributes)["bronze.batch_id"] == done.batch_id
    assert (run.status.code, run.status.message) == (
        Status.STATUS_CODE_ERROR,
        "1 of 2 tables failed",
    )
    orders = received.named("load public.orders")
    found = values(orders.attributes)
    assert found["db.system.name"] == "postgresql"
    assert found["db.response.returned_rows"] == found["bronze.rows.inserted"] == 7
    assert found["bronze.bytes.written"] > 0
    assert orders.status.code == Status.STATUS_CODE_UNSET
    stages = [span for span in received.spans if span.parent_span_id == orders.span_id]
    assert [span.name for span in stages][:2] == ["read", "write"]
    for span in (*stages, orders, received.named("plan")):
        assert run.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= run.end_time_unix_nano
        assert span.trace_id == run.trace_id
    bad = received.named("load public.bad")
    assert bad.parent_span_id == orders.parent_span_id == run.span_id
    assert bad.status.code == Status.STATUS_CODE_ERROR
    assert values(bad.attributes)["error.type"] == "TableRefused"
    assert received.resources[0]["service.name"] == "bronze"
    sent = b"".join(received.bodies)
    for secret in (SECRET, source.dsn, source.dsn.partition("@")[2]):
        assert secret.encode() not in sent


def test_a_run_that_cannot_begin_is_an_error_of_its_trace(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The span has the kind of the error."""
    opened = shop(source)
    with receiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{received.url}/v1/traces")
        with pytest.raises(Exception, match="nothing"):
            opened.run(["nothing"])
    run = received.named("bronze run")
    assert run.status.code == Status.STATUS_CODE_ERROR
    assert values(run.attributes)["error.type"] == "ConfigError"


def test_traces_that_cannot_be_sent_are_a_note_and_no_failure(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that refuses them, and an installation without OpenTelemetry."""
    opened = shop(source)
    with receiver(400) as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.url)
        done = opened.run(["orders"])
    assert done.exit_code == 0
    assert done.notes == ("Traces were not sent: the receiver of OTEL_* did not take them.",)

    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.setattr(exporting, "has_program_tracing", lambda: False)
    done = opened.run(["orders"])
    assert done.exit_code == 0
    assert done.notes == (exporting.MISSING,)
