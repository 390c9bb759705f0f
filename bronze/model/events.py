"""What happens while a run or a stream goes on: values for the terminal, the audit log and callers.

Each has a ``message``: a sentence for people, empty where there is nothing to say.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """A table has failed; a streamed one is not followed until it is retried."""

    table: str
    error: Failure

    @property
    def message(self) -> str:
        """Why."""
        return f"{self.table} is not followed: {self.error.message} {self.error.hint}".rstrip()


@dataclass(frozen=True)
class BatchApplied:
    """A batch of a stream was applied to its ``tables``, and the checkpoint made.

    ``position`` is the LSN up to which all tables have followed. ``lag_bytes`` is how much of the
    source's log is not applied yet, ``lag_seconds`` how long ago the batch's last transaction was
    committed.
    """

    position: int
    transactions: int
    changes: int
    lag_bytes: int
    lag_seconds: float
    tables: tuple[str, ...]

    message = ""


@dataclass(frozen=True)
class CheckpointMade:
    """A checkpoint was made without changes: the stream began, is idle or ends."""

    position: int
    lag_bytes: int

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
class SlotRetains:
    """The slot makes the server keep more of its log than ``[stream] wal_budget`` allows."""

    slot: str
    bytes: int
    budget: int
    status: str
    bytes_left: int | None = None

    @property
    def message(self) -> str:
        """How much."""
        left = f", {self.bytes_left} bytes before it is lost" if self.bytes_left else ""
        return (
            f"The slot {self.slot} makes the server keep {self.bytes} bytes of its log"
            f" ({self.status}{left}); [stream] wal_budget is {self.budget}."
        )


@dataclass(frozen=True)
class Waiting:
    """Something is waited for: ``cause`` says what is so, ``again_in`` after how many seconds it is
    tried again, None where it goes on by itself.
    """

    cause: str
    again_in: float | None = None

    @property
    def message(self) -> str:
        """What for."""
        return (
            self.cause if self.again_in is None else f"{self.cause} Again in {self.again_in:.0f} s."
        )


@dataclass(frozen=True)
class Notice:
    """Something else that people should know."""

    message: str


LoadEvent = TableProgress | TableLanded | TableFailed
"""What happens during a run, a proof, or while a stream copies tables."""

StreamEvent = (
    BatchApplied
    | CheckpointMade
    | TableAdded
    | Resynced
    | TableRetried
    | TableFollowed
    | TableFailed
    | SlotRetains
    | Waiting
    | Notice
)
"""What happens during a stream."""
