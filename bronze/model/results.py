"""What commands end with: frozen values, which `bronze.cli.render` renders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["landed", "unchanged", "failed"]


@dataclass(frozen=True)
class Failure:
    """Why a table failed, in the words of an error."""

    kind: str
    message: str
    hint: str
    sqlstate: str = ""


@dataclass(frozen=True)
class TableResult:
    """What a run did to one table.

    ``bytes`` is the size of the ``files`` that it wrote, ``anomalies`` counts those among the rows
    that it wrote. ``score`` is the average of the rows that were read, None where none were;
    ``quarantined`` of them are below the threshold. ``schema_changes`` are what happened to the
    table's columns, ``notes`` what else there is to know.
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
    """A table's run of which the record was left out, as it died; another run has entered it."""

    batch_id: str
    table: str
    target: str
    version: int | None
    schema_changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunResult:
    """What a run did. ``position`` is the source's log position (LSN) at the snapshot, an int.

    ``late`` is what earlier runs did and could not enter into the books, ``notes`` what else there
    is to know; ``unrecorded`` is why something of this run could not be entered: the tables have
    landed all the same.
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
        """0: all landed; 3: nothing did, as a side could not be reached; 1: some failed, or what
        was done could not be recorded.
        """
        kinds = {table.error.kind if table.error else "" for table in self.tables}
        if kinds <= {""}:
            return 1 if self.unrecorded else 0
        return 3 if kinds <= {"SourceUnreachable", "SourceBusy", "LakeUnreachable"} else 1


@dataclass(frozen=True)
class StreamResult:
    """What a stream did until it ended. ``position`` is the LSN up to which all tables have
    followed; their ``rows_read`` counts the changes that came.
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
        """0: all well; 1: some tables are not followed any more, or it could not be recorded."""
        return 1 if self.unrecorded or any(table.error for table in self.tables) else 0


@dataclass(frozen=True)
class MaintainedTable:
    """What maintenance did to one table. ``version`` is that of its new layout, None where that
    stayed as it was; ``rewritten`` and ``expired_bytes`` are bytes.
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
    """What maintenance did."""

    seconds: float
    tables: tuple[MaintainedTable, ...]
    unrecorded: Failure | None = None

    @property
    def exit_code(self) -> int:
        """0: all well; 1: some tables failed, or it could not be recorded."""
        return 1 if self.unrecorded or any(table.error for table in self.tables) else 0
