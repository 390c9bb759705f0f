"""Every error that bronze raises on purpose, in one tree.

::

    BronzeError
    ├── ConfigError            the user's config or arguments            exit 2
    ├── SourceError            PostgreSQL                                exit 1
    │   ├── SourceUnreachable  no connection, or it was cut     retried  exit 3
    │   ├── SourceBusy         no free connection slot          retried  exit 3
    │   ├── SourceRefused      wrong password, database, TLS             exit 3
    │   ├── SourceRewound      it was put back to an earlier    retried  exit 3
    │   ├── SnapshotLost       the run's snapshot has ended     retried  exit 3
    │   ├── SnapshotRefused    no snapshot can be shared here            exit 2
    │   └── TableRefused       one table cannot be read                  exit 1
    ├── LakeError              files and the Delta log                   exit 1
    │   ├── LakeUnreachable    cannot be read or written                 exit 3
    │   ├── TableVanished      a Bronze table that was there is gone     exit 1
    │   ├── FileDamaged        a file of a table is lost or unreadable   exit 1
    │   └── CommitConflict     another writer was first         retried  exit 1
    │       └── Overtaken      it was a run with a later state  retried  exit 1
    ├── Mismatch               what was read is not what is there        exit 1
    └── QualityRefused         rows are worse than the config allows     exit 1

An error's ``str`` is one sentence that says what is wrong and where; ``hint`` says what to do
about it. Neither ever holds a secret or a cell's value.
"""

from __future__ import annotations

from typing import ClassVar

from bronze.model.results import Failure


class BronzeError(Exception):
    """The root. ``retry`` says whether doing the same again later can help.

    Args:
        message: one sentence for the operator, without secrets and cell values.
        hint: what to do about it; may be empty.
        table: the source table (``schema.table``) that it is about, if one.
        batch_id: the run that it happened in, if one.
        sqlstate: PostgreSQL's five-character code, if one.
    """

    exit_code: ClassVar[int] = 1
    retry: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        table: str = "",
        batch_id: str = "",
        sqlstate: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.table = table
        self.batch_id = batch_id
        self.sqlstate = sqlstate

    def failure(self) -> Failure:
        """The error as a value, for results."""
        return Failure(type(self).__name__, self.message, self.hint, self.sqlstate)

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling of exceptions, and errors
        # come back from worker processes.
        return (_rebuild, (type(self), self.message, self.__dict__.copy()))


def _rebuild(kind: type[BronzeError], message: str, state: dict[str, str]) -> BronzeError:
    error = kind(message)
    error.__dict__.update(state)
    return error


class ConfigError(BronzeError):
    """The config or the arguments are wrong; nothing was touched."""

    exit_code = 2


class SourceError(BronzeError):
    """PostgreSQL said no."""


class SourceUnreachable(SourceError):
    """No connection could be made, or one was cut."""

    exit_code = 3
    retry = True


class SourceBusy(SourceError):
    """PostgreSQL has no free connection slot for us, or others hold a lock for too long."""

    exit_code = 3
    retry = True


class SourceRefused(SourceError):
    """PostgreSQL refused the login, the database or the encryption."""

    exit_code = 3


class SourceRewound(SourceError):
    """PostgreSQL was put back to an earlier state: positions of before mean something else now."""

    exit_code = 3
    retry = True


class SnapshotLost(SourceError):
    """The transaction that held the run's snapshot has ended, so nobody can join it any more."""

    exit_code = 3
    retry = True


class SnapshotRefused(SourceError):
    """The server cannot hand out a snapshot for parallel reads."""

    exit_code = 2


class TableRefused(SourceError):
    """One table cannot be read as it is; the others can."""


class TableContested(TableRefused):
    """Somebody waits to change a table that is being read, and reads of it wait behind them."""


class LakeError(BronzeError):
    """The lake said no."""


class LakeUnreachable(LakeError):
    """The lake cannot be read or written."""

    exit_code = 3


class TableVanished(LakeError):
    """A Bronze table that was written to is not there any more."""


class FileDamaged(LakeError):
    """A file that a table's log names is not there, or is not what it should be."""


class CommitConflict(LakeError):
    """Another writer committed between our read of the table and our commit."""

    retry = True


class Overtaken(CommitConflict):
    """Another run has landed since this one read the source: only reading again helps."""


class Mismatch(BronzeError):
    """A count or a hash that must be equal on both sides is not."""


class QualityRefused(BronzeError):
    """The rows of a table are worse than its config lets land."""
