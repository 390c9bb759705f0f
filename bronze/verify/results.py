"""The result of a verification: for each table whether it is equal, and every fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from bronze.errors import BronzeError, Stopped
from bronze.model.results import Failure, Shown, exit_code

VerifyStatus = Literal["equal", "differs", "failed", "stopped"]
Fault = Literal["missing", "extra", "different", "altered"]
"""The fault of a row. ``missing``: only in the source. ``extra``: only in Bronze. ``different``: in
both, with other values. ``altered``: not as bronze wrote it, because its values do not have its
hashes, or a metadata column has a value that no run writes.
"""


@dataclass(frozen=True)
class FaultyRow:
    """A row with a fault.

    ``key`` is a JSON object: the row's key, or its row_hash in a table without a key. ``file`` is
    the file that has the row, if the fault was found in the file. ``what`` lists what is altered:
    "values", or metadata columns.
    """

    fault: Fault
    key: str
    file: str = ""
    what: str = ""


@dataclass(frozen=True)
class FaultyFile:
    """A file that is not what the Delta log says; ``rows`` is its number of rows by the log."""

    file: str
    what: str
    rows: int


@dataclass(frozen=True)
class VerifiedTable:
    """The result of one table: ``table`` of ``source`` and its Bronze table ``target``.

    ``source_rows`` is -1 where the source was not read. ``bronze_rows`` is the number of live rows,
    in ``bronze_files`` files that were read to the end; these files also have ``gone_rows`` rows
    that are marked as deleted or are earlier versions. ``trusted`` says that ``row_hash`` was
    trusted instead of being computed from the values.

    ``missing``, ``extra``, ``different`` and ``altered`` count all faulty rows; ``rows`` lists the
    first of them. ``columns`` are the changes of another writer to the table's columns, ``foreign``
    the foreign commits that no comparison has checked yet.

    ``position`` (LSN) is where the Bronze table's last load or batch ended, ``lag_bytes`` the bytes
    of WAL from there to the snapshot; both are None where the table has no position on the source's
    timeline. ``stray_files`` are files in the table's folder that the Delta log does not know.
    ``repaired`` is the number of rows that a repair inserted, updated, deleted or removed.
    """

    table: str
    target: str
    status: VerifyStatus
    source: str = ""
    source_rows: int = -1
    bronze_rows: int = 0
    bronze_files: int = 0
    gone_rows: int = 0
    trusted: bool = False
    missing: int = 0
    extra: int = 0
    different: int = 0
    altered: int = 0
    rows: tuple[FaultyRow, ...] = ()
    files: tuple[FaultyFile, ...] = ()
    columns: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    version: int | None = None
    position: int | None = None
    lag_bytes: int | None = None
    stray_files: int = 0
    stray_bytes: int = 0
    repaired: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    error: Failure | None = None


@dataclass(frozen=True, repr=False)
class VerifyResult(Shown):
    """The result of a verification. ``at_rest`` says that the source was not read; ``unrecorded``
    is why the audit log has no record of it, if it has none.
    """

    _kind_without_failure: ClassVar[str] = "Mismatch"

    at_rest: bool
    seconds: float
    tables: tuple[VerifiedTable, ...]
    unrecorded: Failure | None = None

    @property
    def exit_code(self) -> int:
        """0: all tables are equal, and it is recorded. 130: it was stopped. 3: nothing could be
        verified, because source or lake cannot be reached. 1: otherwise.
        """
        if not self.tables:
            return 1
        code = exit_code((table.error for table in self.tables), self.unrecorded)
        return code or int(any(table.status != "equal" for table in self.tables))


def status_of(error: BronzeError) -> VerifyStatus:
    """The status of a table whose verification ended with an error."""
    return "stopped" if isinstance(error, Stopped) else "failed"
