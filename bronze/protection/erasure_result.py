"""The result of an erasure: what was read and found before, what was erased, and what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from bronze.model.results import Failure, Shown
from bronze.printable import count


@dataclass(frozen=True)
class Evidence:
    """What was read, and what was found in it.

    ``rows`` rows in ``files`` files of the table were read, and ``found`` of them are the person's;
    ``records`` records of the governance tables were read, and ``told`` of them are about the
    person. ``doubtful`` rows and records may be the person's or another's. ``unreadable`` files
    are in no version and not Parquet, as their writing was interrupted.
    """

    files: int = 0
    rows: int = 0
    found: int = 0
    records: int = 0
    told: int = 0
    doubtful: int = 0
    unreadable: int = 0


@dataclass(frozen=True)
class SourceAnswer:
    """The table of the source that was asked, its oid, and how many such rows it has."""

    table: str
    oid: int
    rows: int


@dataclass(frozen=True, repr=False)
class ErasureResult(Shown):
    """What was erased, and what is left.

    ``rows`` were removed from the table, and ``records`` from the governance tables; ``files``, of
    ``bytes``, and ``entries`` of the log were deleted. Then ``scanned`` files were read, in which
    ``left`` rows and records were found. ``source`` is the source's answer that it has no such row,
    ``before`` and ``after`` are what was read. ``unrecorded`` is why the audit log does not have
    the erasure, if so.
    """

    _items: ClassVar[str] = ""

    target: str
    version: int
    rows: int = 0
    records: int = 0
    files: int = 0
    bytes: int = 0
    entries: int = 0
    scanned: int = 0
    left: int = 0
    seconds: float = 0.0
    source: SourceAnswer | None = None
    before: Evidence | None = None
    after: Evidence | None = None
    notes: tuple[str, ...] = ()
    unrecorded: Failure | None = None

    @property
    def is_found(self) -> bool:
        """Whether there was anything to erase; always, where all older versions were deleted."""
        return self.before is None or bool(self.before.found or self.before.told)

    @property
    def doubtful(self) -> int:
        """How many rows and records are left that may be theirs, or another person's."""
        evidence = (self.after if self.is_found else self.before) or Evidence()
        return evidence.doubtful

    @property
    def exit_code(self) -> int:
        """0: nothing is left, and that is recorded; 1: otherwise, or nothing was found."""
        is_open = self.left or self.doubtful or self.unrecorded
        return 1 if is_open or not self.is_found else 0

    def _row(self, item: ErasureResult) -> Mapping[str, Any]:
        return {
            "target": item.target,
            "version": item.version,
            "rows erased": item.rows,
            "records erased": item.records,
            "files deleted": item.files,
            "bytes": item.bytes,
            "log entries deleted": item.entries,
            "left": item.left,
            "source": item.source and asdict(item.source),
            "read before": item.before and asdict(item.before),
            "read afterwards": item.after and asdict(item.after),
            "seconds": item.seconds,
        }

    def _summary(self) -> Sequence[str]:
        erased = f"{count(self.rows, 'row')} and {count(self.records, 'record')} erased"
        parts = [self.target, erased if self.is_found else "nothing found", f"{self.left:,} left"]
        parts += [f"{self.doubtful:,} doubtful"] if self.doubtful else []
        return parts
