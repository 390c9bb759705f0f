"""The results of backups, as frozen values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from bronze.backup.purges import OutstandingErasure
from bronze.model.results import Failure, Shown, exit_code
from bronze.printable import count, size


@dataclass(frozen=True)
class BackedUpTable:
    """A table of a backup, by its full name; a ``failed`` one is still at the version of the last
    generation, None if it has none. ``objects`` and ``bytes`` are all that it needs.
    """

    target: str
    status: Literal["copied", "unchanged", "failed"]
    version: int | None = None
    objects: int = 0
    bytes: int = 0
    error: Failure | None = None


@dataclass(frozen=True, repr=False)
class BackupResult(Shown):
    """What a backup has done.

    Attributes:
        generation: the number of the generation.
        made: the moment that it is of.
        tables: its tables.
        objects, bytes: what was copied.
        requests: requests to both stores for that.
        total_objects, total_bytes: what the generation consists of.
        behind: how many seconds the copy was behind; None for the first generation.
        expired: how many generations were deleted.
        erasures: erasures of the lake that have not reached the copy.
        excluded: tables that are not in the generation, and why.
        seconds: how long it took.
        unrecorded: why the audit log has no record of it.
    """

    generation: int
    made: datetime
    tables: tuple[BackedUpTable, ...]
    objects: int
    bytes: int
    requests: int
    total_objects: int
    total_bytes: int
    behind: float | None
    expired: int
    erasures: tuple[OutstandingErasure, ...]
    excluded: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    unrecorded: Failure | None = None

    @property
    def exit_code(self) -> int:
        """0: all tables are copied, and all erasures; 1: some are not."""
        failed = exit_code([table.error for table in self.tables], self.unrecorded)
        return failed or int(bool(self.erasures))

    def _summary(self) -> Iterable[str]:
        copied = f"{count(self.objects, 'object')} ({size(self.bytes)}) copied"
        total = f"{count(self.total_objects, 'object')} ({size(self.total_bytes)}) in all"
        return [f"generation {self.generation}", *super()._summary(), copied, total]

    def _messages(self) -> Iterator[str]:
        for erasure in self.erasures:
            at = f"{erasure.at:%Y-%m-%d %H:%M:%S} UTC"
            yield f"An erasure has not reached the copy: {erasure.table}, {at}: {erasure.reason}"
        for name, reason in self.excluded.items():
            yield f"{name} is not in it: {reason}"
        yield from super()._messages()


@dataclass(frozen=True, repr=False)
class VerifiedCopy(Shown):
    """What a verification of the copy has found: ``faults`` are sentences.

    ``generations`` were checked; ``objects`` and ``bytes`` of ``total_objects`` were read.
    """

    _items = ""
    generations: int
    objects: int
    bytes: int
    total_objects: int
    faults: tuple[str, ...]
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 if the copy is whole, 1 if not."""
        return int(bool(self.faults))

    def _summary(self) -> Iterable[str]:
        read = f"{self.objects:,} of {count(self.total_objects, 'object')} read"
        found = count(len(self.faults), "fault") if self.faults else "no fault"
        return [count(self.generations, "generation"), read, found]

    def _row(self, item: VerifiedCopy) -> Mapping[str, Any]:
        return {
            "generations": item.generations,
            "objects": item.total_objects,
            "objects read": item.objects,
            "bytes": item.bytes,
            "seconds": item.seconds,
        }

    def _messages(self) -> Iterator[str]:
        yield from self.faults
