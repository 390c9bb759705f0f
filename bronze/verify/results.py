"""The frozen values that a proof ends with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bronze.model.results import Failure, Shown, exit_code

Fault = Literal["missing", "extra", "different", "altered"]
"""What is wrong with a row: it is in the source alone; in Bronze alone; in both, but with other
values; or it is not as bronze wrote it: its values are not those of its hashes, or a column of ours
has what no run writes."""


@dataclass(frozen=True)
class FaultyRow:
    """A row that is not as it should be. ``key`` is a JSON object: the row's key, or its row_hash
    where there is none; ``file`` is where it lies, if it was looked at there, and ``what`` of it is
    not as it was written: "values", or columns of ours.
    """

    fault: Fault
    key: str
    file: str = ""
    what: str = ""


@dataclass(frozen=True)
class FaultyFile:
    """A file that is not what the table's log says; ``rows`` are those that the log has in it."""

    file: str
    what: str
    rows: int


@dataclass(frozen=True)
class VerifiedTable:
    """What was found out about one table, ``table`` of ``source``, and its Bronze table ``target``.

    ``source_rows`` is -1 where the source was not asked, ``bronze_rows`` are those that count;
    ``bronze_files`` were read to the end, and with them ``gone_rows`` that do not count, as they
    are marked as deleted or are earlier versions. ``trusted`` says that the hashes of rows were
    taken for those of their values. ``rows`` are the first faulty ones, which the four counts have
    in full. ``columns`` is what another writer did to the table's columns, ``foreign`` are the
    commits by which one changed the table, and which no comparison has taken into account.
    ``position`` is what the Bronze table holds, and ``lag_bytes`` how much of the source's log lies
    between that and the snapshot; both are None where the table has no position in this history of
    the source. ``stray_files`` lie in the table's folder, unknown to its log. ``repaired`` is how
    many rows a repair has inserted, updated, and deleted or cut out.
    """

    table: str
    target: str
    status: Literal["equal", "differs", "failed"]
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
    """A proof, or what stands against it. ``at_rest`` says that the source was not asked;
    ``unrecorded`` is why the audit log does not have it, if so.
    """

    at_rest: bool
    seconds: float
    tables: tuple[VerifiedTable, ...]
    unrecorded: Failure | None = None

    @property
    def exit_code(self) -> int:
        """0: all equal, and recorded; 3: nothing could be found out, as a side is out of reach;
        1: otherwise.
        """
        if not self.tables:
            return 1
        code = exit_code((table.error for table in self.tables), self.unrecorded)
        return code or int(any(table.status != "equal" for table in self.tables))
