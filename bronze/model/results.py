"""The results of commands, as frozen values; `bronze.cli.render` prints them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["landed", "unchanged", "failed"]


@dataclass(frozen=True)
class Failure:
    """An error as a value: ``kind`` is the name of its class."""

    kind: str
    message: str
    hint: str
    sqlstate: str = ""


@dataclass(frozen=True)
class TableResult:
    """The result of a run for one table.

    ``bytes`` is the size of the ``files`` that it wrote, ``anomalies`` their number among the rows
    that it wrote. ``score`` is the average score of the rows that were read, None if there were
    none; ``quarantined`` of them are below the threshold. ``schema_changes`` are the changes of the
    table's columns, ``notes`` are other messages for the user.
    """

    table: str
    target: str
    status: Status
    rows_read: int = 0
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    rejected: int = 0
    anomalies: int = 0
    version: int | None = None
    files: int = 0
    bytes: int = 0
    seconds: float = 0.0
    schema_changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: Failure | None = None
    score: float | None = None
    quarantined: int = 0


@dataclass(frozen=True)
class Late:
    """A table of an earlier run that died before it wrote its record; this run has written it."""

    batch_id: str
    table: str
    target: str
    version: int | None
    schema_changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunResult:
    """The result of a run. ``position`` is the source's WAL position (LSN) at the snapshot.

    ``late`` are tables of earlier runs whose records were missing, ``notes`` messages for the user.
    ``unrecorded`` is why this run could not write all of its records into the governance tables;
    the tables have landed nevertheless.
    """

    batch_id: str
    position: int
    seconds: float
    tables: tuple[TableResult, ...]
    late: tuple[Late, ...] = ()
    notes: tuple[str, ...] = ()
    unrecorded: Failure | None = None

    @property
    def exit_code(self) -> int:
        """0: all tables landed; 3: the source or the lake could not be reached and no table landed;
        1: some tables failed, or a record could not be written.
        """
        kinds = {table.error.kind if table.error else "" for table in self.tables}
        if kinds <= {""}:
            return 1 if self.unrecorded else 0
        return 3 if kinds <= {"SourceUnreachable", "SourceBusy", "LakeUnreachable"} else 1


@dataclass(frozen=True)
class StreamResult:
    """The result of a stream that has ended. ``position`` is the LSN up to which the changes of all
    tables are applied; ``rows_read`` of a table counts the changes that were received.
    """

    stream: str
    position: int
    seconds: float
    batches: int
    transactions: int
    changes: int
    tables: tuple[TableResult, ...]
    late: tuple[Late, ...] = ()
    notes: tuple[str, ...] = ()
    unrecorded: Failure | None = None

    @property
    def exit_code(self) -> int:
        """0: success; 1: some tables are no longer streamed, or a record could not be written."""
        return 1 if self.unrecorded or any(table.error for table in self.tables) else 0


@dataclass(frozen=True)
class MaintainedTable:
    """The result of maintaining one table. ``version`` is that of the optimize, None if there was
    nothing to optimize; ``rewritten`` and ``expired_bytes`` are in bytes.
    """

    target: str
    version: int | None = None
    files_before: int = 0
    files_after: int = 0
    rewritten: int = 0
    expired_files: int = 0
    expired_bytes: int = 0
    expired_entries: int = 0
    seconds: float = 0.0
    error: Failure | None = None


@dataclass(frozen=True)
class MaintainResult:
    """The result of ``bronze maintain``."""

    seconds: float
    tables: tuple[MaintainedTable, ...]
    unrecorded: Failure | None = None

    @property
    def exit_code(self) -> int:
        """0: success; 1: some tables failed, or a record could not be written."""
        return 1 if self.unrecorded or any(table.error for table in self.tables) else 0
