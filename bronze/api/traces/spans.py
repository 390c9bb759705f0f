"""The spans of a run and of a stream.

A run is one trace: the run, its plan, each table, and the stages of a table (read, write, optimize)
as they were timed. A batch of a stream is a trace of one span: from the commit of the batch's last
transaction at the source until it is applied. Spans have names, counts and sizes; never a
connection string or a value of a cell.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bronze.api.traces import exporting
from bronze.errors import BronzeError
from bronze.model.events import BatchApplied, LoadEvent, StreamEvent, TableFailed, TableProgress
from bronze.model.results import Failure, RunResult, TableResult
from bronze.printable import count

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

_SECOND = 10**9
_FIGURES = {
    "rows_read": "db.response.returned_rows",
    "inserted": "bronze.rows.inserted",
    "updated": "bronze.rows.updated",
    "deleted": "bronze.rows.deleted",
    "rejected": "bronze.values.rejected",
    "quarantined": "bronze.rows.quarantined",
    "files": "bronze.files.written",
    "bytes": "bronze.bytes.written",
    "version": "bronze.delta.version",
    "score": "bronze.quality.score",
}


@dataclass
class RunTrace:
    """The trace of a run that goes on. Times are nanoseconds since 1970; ``ends`` are those of the
    tables that have ended, by their names.
    """

    tracer: Tracer | None
    span: Span | None
    context: Context | None
    began: int = field(default_factory=time.time_ns)
    ends: dict[str, int] = field(default_factory=dict)

    def plan(self, tables: int) -> None:
        """The tables are planned; after a lost connection again."""
        if self.tracer:
            attributes = {"bronze.tables": tables}
            span = self.tracer.start_span("plan", self.context, start_time=self.began)
            _end(span, attributes, time.time_ns())

    def note(self, event: LoadEvent) -> None:
        """A table has moved."""
        if self.tracer and not isinstance(event, TableProgress):
            self.ends[event.table] = time.time_ns()

    def end(self, done: RunResult) -> None:
        """The run has ended with this result."""
        if not self.tracer or not self.span:
            return
        now = time.time_ns()
        for table in done.tables:
            self._table(self.tracer, table, self.ends.get(table.table, now))
        self.span.set_attributes(
            {
                "bronze.batch_id": done.batch_id,
                "bronze.tables": len(done.tables),
                "bronze.exit_code": done.exit_code,
            }
        )
        failed = sum(table.error is not None for table in done.tables)
        if done.exit_code:
            _fail(self.span, f"{failed:,} of {count(len(done.tables), 'table')} failed")

    def _table(self, tracer: Tracer, table: TableResult, ended: int) -> None:
        from opentelemetry import trace

        began = max(self.began, ended - round(table.seconds * _SECOND))
        span = tracer.start_span(f"load {table.table}", self.context, start_time=began)
        within = trace.set_span_in_context(span)
        at = began
        for name, seconds in table.stages.items():
            stage = tracer.start_span(name, within, start_time=at)
            at = min(at + round(seconds * _SECOND), ended)
            _end(stage, {"db.collection.name": table.table}, at)
        values = {name: getattr(table, field) for field, name in _FIGURES.items()}
        attributes = {
            "db.system.name": "postgresql",
            "db.collection.name": table.table,
            "bronze.target": table.target,
            "bronze.status": table.status,
            **{name: value for name, value in values.items() if value is not None},
        }
        _end(span, attributes, ended, table.error)


@contextmanager
def run_trace(notes: list[str]) -> Iterator[RunTrace]:
    """The trace of a run, which is exported at its end; messages for the user are added to
    ``notes``.
    """
    with exporting.destination() as to:
        notes += to.notes
        if to.tracer is None:
            yield RunTrace(None, None, None)
            return
        from opentelemetry import trace

        span = to.tracer.start_span("bronze run", to.parent)
        try:
            yield RunTrace(to.tracer, span, trace.set_span_in_context(span))
        except BaseException as error:
            message = error.message if isinstance(error, BronzeError) else type(error).__name__
            span.set_attribute("error.type", type(error).__name__)
            _fail(span, message)
            raise
        finally:
            span.end()
    notes += [note for note in to.notes if note not in notes]


@contextmanager
def stream_trace() -> Iterator[StreamTrace]:
    """The traces of a stream, which are exported while it goes on."""
    with exporting.destination(lasting=True) as to:
        yield StreamTrace(to.tracer, tuple(to.notes))


@dataclass(frozen=True)
class StreamTrace:
    """The traces of a stream: each batch, each table that failed. ``notes`` are for the user."""

    tracer: Tracer | None
    notes: tuple[str, ...] = ()

    def note(self, event: StreamEvent) -> None:
        """Something has happened."""
        if self.tracer is None:
            return
        now = time.time_ns()
        if isinstance(event, BatchApplied):
            began = min(now, round(event.committed.timestamp() * _SECOND))
            span = self._root("bronze stream batch", began)
            attributes = {
                "db.system.name": "postgresql",
                "bronze.tables": list(event.tables),
                "bronze.transactions": event.transactions,
                "bronze.changes": event.changes,
                "bronze.position": event.position,
                "bronze.lag.bytes": event.lag_bytes,
            }
            _end(span, attributes, now)
        elif isinstance(event, TableFailed):
            span = self._root("bronze stream table", now)
            _end(span, {"db.collection.name": event.table}, now, event.error)

    def _root(self, name: str, began: int) -> Any:
        from opentelemetry.context import Context

        if self.tracer is None:
            raise ValueError("there is no tracer")
        # A batch is a trace of its own, whatever span the stream was begun in.
        return self.tracer.start_span(name, Context(), start_time=began)


def _end(span: Span, attributes: Mapping[str, Any], at: int, error: Failure | None = None) -> None:
    span.set_attributes(dict(attributes))
    if error is not None:
        span.set_attribute("error.type", error.kind)
        if error.sqlstate:
            span.set_attribute("db.response.status_code", error.sqlstate)
        _fail(span, error.message)
    span.end(at)


def _fail(span: Span, message: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, message))
