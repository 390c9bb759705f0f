"""What happens while a run or a stream goes on: values for the terminal, the audit log and callers.

Each has a ``message``: a sentence for people, empty where there is nothing to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from bronze.model.results import Failure, TableResult


@dataclass(frozen=True)
class TableProgress:
    """The progress of a table: the ``rows`` read, and their ``share`` of it, from 0 to 1."""

    table: str
    rows: int
    share: float

    message = ""


@dataclass(frozen=True)
class TableLanded:
    """A table was committed, or is unchanged."""

    result: TableResult

    message = ""

    @property
    def table(self) -> str:
        """The table's name in the source."""
        return self.result.table


@dataclass(frozen=True)
class TableFailed:
    """A table has failed; a streamed one is not followed until it is retried, after ``again_in``
    seconds; None where that is not known.
    """

    table: str
    error: Failure
    again_in: float | None = None

    @property
    def message(self) -> str:
        """Why."""
        return f"{self.table} is not followed: {self.error.message} {self.error.hint}".rstrip()


@dataclass(frozen=True)
class BatchApplied:
    """A batch of a stream was applied to its ``tables``, and the checkpoint made.

    ``position`` is the LSN up to which all tables have followed. ``lag_bytes`` is how much of the
    source's log is not applied yet. The batch's last transaction was ``committed`` in the source
    at that time, ``lag_seconds`` ago.
    """

    position: int
    transactions: int
    changes: int
    lag_bytes: int
    lag_seconds: float
    tables: tuple[str, ...]
    committed: datetime

    message = ""


@dataclass(frozen=True)
class CheckpointMade:
    """A checkpoint was made without changes: the stream began, is idle or ends."""

    position: int
    lag_bytes: int

    message = ""


@dataclass(frozen=True)
class Heard:
    """The source was heard: its last message on the wire came ``at``. Not more than once a second.

    All that was committed by ``as_of`` has landed in the ``tables`` that follow, if anything was
    committed at all; None as long as that is not known of this connection. The event comes from
    the apply loop, between batches: not while it waits for the lake, or for a table to be read.
    """

    at: datetime
    as_of: datetime | None
    tables: tuple[str, ...]

    message = ""


@dataclass(frozen=True)
class TableAdded:
    """A table was created since the stream began: it is copied and followed."""

    table: str

    @property
    def message(self) -> str:
        """Which."""
        return f"{self.table} has come since the stream began. It is copied and followed."


@dataclass(frozen=True)
class Resynced:
    """Tables are compared with the source again, because the stream cannot tell all that changed;
    no ``tables`` are all of the stream.
    """

    tables: tuple[str, ...]
    why: str

    @property
    def message(self) -> str:
        """Which, and why."""
        named = ", ".join(self.tables) or "all tables"
        return f"{named}: resyncing from the source: {self.why.rstrip('.')}."


@dataclass(frozen=True)
class TableRetried:
    """Tables that failed are tried again."""

    tables: tuple[str, ...]

    @property
    def message(self) -> str:
        """Which."""
        return f"{', '.join(self.tables)}: tried again."


@dataclass(frozen=True)
class TableFollowed:
    """A table that had failed is followed again."""

    table: str

    @property
    def message(self) -> str:
        """Which."""
        return f"{self.table} is followed again."


@dataclass(frozen=True)
class TableMissing:
    """A table of the config does not exist; it is followed once it is created."""

    table: str
    error: Failure

    @property
    def message(self) -> str:
        """Which, and what to do."""
        return f"{self.error.message} It is followed once it is created. {self.error.hint}"


@dataclass(frozen=True)
class TableNote:
    """Something about a table that people should know."""

    table: str
    note: str

    @property
    def message(self) -> str:
        """Which, and what."""
        return f"{self.table}: {self.note}"


@dataclass(frozen=True)
class NewTablesRefused:
    """Tables that were created cannot be followed, because of the config."""

    error: Failure

    @property
    def message(self) -> str:
        """Why, and what to do."""
        return f"{self.error.message} {self.error.hint}"


@dataclass(frozen=True)
class SlotRetains:
    """How many ``bytes`` of its log the slot makes the server keep, and how many more it may until
    it is lost (None: any number). It is reported every few seconds; the message is empty as long as
    they are within the ``budget``, of ``[stream] wal_budget``.
    """

    slot: str
    bytes: int
    budget: int
    status: str
    bytes_left: int | None = None

    @property
    def message(self) -> str:
        """How much."""
        if self.bytes <= self.budget:
            return ""
        left = f", {self.bytes_left} bytes before it is lost" if self.bytes_left else ""
        return (
            f"The slot {self.slot} makes the server keep {self.bytes} bytes of its log"
            f" ({self.status}{left}); [stream] wal_budget is {self.budget}."
        )


@dataclass(frozen=True)
class Waiting:
    """Something is waited for: ``cause`` says what is so, ``again_in`` after how many seconds it is
    tried again, None where it goes on by itself.

    ``error`` is the failure that it waits after, if there is one: its kind says whether source or
    lake is unreachable. ``tables`` are those that wait; none is all of the stream.
    """

    cause: str
    again_in: float | None = None
    error: Failure | None = None
    tables: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """What for."""
        return (
            self.cause if self.again_in is None else f"{self.cause} Again in {self.again_in:.0f} s."
        )


@dataclass(frozen=True)
class Rewound:
    """The source was put back to an earlier state: all tables are resynced."""

    message: str


@dataclass(frozen=True)
class AuditRecordsLost:
    """A table names records of the audit log that the audit log does not have."""

    message: str


@dataclass(frozen=True)
class QualityUnrecorded:
    """Figures of quality could not be recorded; they are recorded with the next ones."""

    error: Failure

    @property
    def message(self) -> str:
        """Why."""
        return f"Quality figures were not recorded: {self.error.message}"


@dataclass(frozen=True)
class Notice:
    """Something else that people should know."""

    message: str


@dataclass(frozen=True)
class RunPlanned:
    """A run has planned its ``tables``, by their names, and begins to read them. ``rows`` is the
    planner's estimate of all of their rows, those of tables never analysed left out.
    """

    batch_id: str
    tables: tuple[str, ...]
    rows: int


LoadEvent = TableProgress | TableLanded | TableFailed
"""What happens during a run, a proof, or while a stream copies tables."""

StreamEvent = (
    BatchApplied
    | CheckpointMade
    | Heard
    | TableAdded
    | TableMissing
    | TableNote
    | NewTablesRefused
    | Resynced
    | TableRetried
    | TableFollowed
    | TableFailed
    | SlotRetains
    | Waiting
    | Rewound
    | AuditRecordsLost
    | QualityUnrecorded
    | Notice
)
"""What happens during a stream."""
