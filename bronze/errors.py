"""All errors of bronze.

::

    BronzeError
    ├── ConfigError            the user's config or arguments            exit 2
    ├── SecretsUnreachable     a provider of secrets or tokens      retried  exit 3
    ├── SourceError            PostgreSQL                                exit 1
    │   ├── SourceUnreachable  no connection, or it was lost    retried  exit 3
    │   ├── SourceBusy         no free connection, or a lock    retried  exit 3
    │   ├── SourceRefused      wrong password, database, TLS             exit 3
    │   ├── SourceRewound      restored to an earlier state     retried  exit 3
    │   ├── SnapshotLost       the run's snapshot has ended     retried  exit 3
    │   ├── SnapshotRefused    the server cannot share snapshots         exit 2
    │   └── TableRefused       one table cannot be read                  exit 1
    │       └── TableContested another session waits for a lock          exit 1
    ├── LakeError              files and the Delta log                   exit 1
    │   ├── LakeUnreachable    cannot be read or written                 exit 3
    │   ├── TableVanished      a Bronze table no longer exists           exit 1
    │   ├── FileDamaged        a file is missing or unreadable           exit 1
    │   └── CommitConflict     another writer committed first   retried  exit 1
    │       └── Overtaken      a run with a later state did     retried  exit 1
    ├── CatalogError           Unity Catalog refuses something           exit 1
    │   └── CatalogUnreachable it does not answer                retried  exit 3
    ├── EngineLost             workers of the engine were lost      retried  exit 3
    ├── Mismatch               source and Bronze table differ            exit 1
    ├── QualityRefused         the quality is below the config's limits  exit 1
    └── Stopped                the command was asked to stop             exit 130

The ``str`` of an error is one sentence that says what is wrong and where; ``hint`` says what to do
about it. Neither contains a secret or a value of a cell.
"""

from __future__ import annotations

from typing import ClassVar

from bronze.model.results import EXIT_CODES, Failure


class BronzeError(Exception):
    """The base class of all errors. ``retry`` says whether trying again later can help.

    Args:
        message: one sentence for the user, without secrets and cell values.
        hint: what to do about it; may be empty.
        table: the source table (``schema.table``) concerned, if any.
        batch_id: the run in which it happened, if any.
        sqlstate: PostgreSQL's five-character error code, if any.
    """

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

    @property
    def exit_code(self) -> int:
        """What the command line exits with after this error."""
        kinds = [kind.__name__ for kind in type(self).__mro__]
        return next((EXIT_CODES[kind] for kind in kinds if kind in EXIT_CODES), 1)

    def failure(self) -> Failure:
        """The error as a value, for results."""
        return Failure(type(self).__name__, self.message, self.hint, self.sqlstate)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors come back from worker processes, and the default pickling of exceptions loses
        # keyword-only arguments.
        return (_rebuild, (type(self), self.message, self.__dict__.copy()))


def _rebuild(kind: type[BronzeError], message: str, state: dict[str, str]) -> BronzeError:
    error = kind(message)
    error.__dict__.update(state)
    return error


class ConfigError(BronzeError):
    """The config or the arguments are wrong; nothing was changed."""


class SecretsUnreachable(BronzeError):
    """A provider of secrets or tokens does not answer."""

    retry = True


class SourceError(BronzeError):
    """PostgreSQL reported an error."""


class SourceUnreachable(SourceError):
    """No connection could be opened, or one was lost."""

    retry = True


class SourceBusy(SourceError):
    """PostgreSQL has no free connection slot, or another session holds a lock for too long."""

    retry = True


class SourceRefused(SourceError):
    """PostgreSQL refused the login, the database, the encryption or the replication."""


class SourceRewound(SourceError):
    """PostgreSQL was restored to an earlier state, so that known log positions are not valid."""

    retry = True


class SnapshotLost(SourceError):
    """The transaction that exported the run's snapshot has ended, so the snapshot is lost."""

    retry = True


class SnapshotRefused(SourceError):
    """The server cannot export a snapshot for parallel reads."""


class TableRefused(SourceError):
    """One table cannot be read as it is; the others can."""


class TableContested(TableRefused):
    """Another session waits for a lock on a table that is being read, and reads wait behind it."""


class LakeError(BronzeError):
    """The lake reported an error."""


class LakeUnreachable(LakeError):
    """The lake cannot be read or written.

    ``is_key_renewed`` says that the store refused a key in the middle of an upload, and that there
    is another key now: the file may be written again at once.
    """

    is_key_renewed: bool = False


class TableVanished(LakeError):
    """A Bronze table that was written no longer exists."""


class FileDamaged(LakeError):
    """A file in the log of a table is missing, or is not what the log says."""


class CommitConflict(LakeError):
    """Another writer committed to the table after this one read it."""

    retry = True


class Overtaken(CommitConflict):
    """Another run committed a later state of the source: the source has to be read again."""


class CatalogError(BronzeError):
    """Unity Catalog refused something; the tables of the lake are not concerned."""


class CatalogUnreachable(CatalogError):
    """Unity Catalog does not answer."""

    retry = True


class EngineLost(BronzeError):
    """The workers of the engine were lost during the work, or the scheduler of a Dask cluster."""

    retry = True


class Mismatch(BronzeError):
    """A count or a hash differs where the source and the lake have to be equal."""


class QualityRefused(BronzeError):
    """The quality of a table's rows is below the limits of its config, so it was not committed."""


class Stopped(BronzeError):
    """The command was asked to stop before this was done."""
