"""The result of a registration: for each table what was written to the catalog."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bronze.model.results import Failure, Shown, exit_code
from bronze.printable import count

RegisterStatus = Literal["created", "recreated", "updated", "unchanged", "failed"]


@dataclass(frozen=True)
class RegisteredTable:
    """The result of one table: ``target`` of the lake is ``name`` in the catalog of ``host``.

    ``changes`` is what was written, also where the rest has failed.
    """

    target: str
    name: str
    host: str
    status: RegisterStatus
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: Failure | None = None


@dataclass(frozen=True, repr=False)
class RegisterResult(Shown):
    """The result of ``bronze register``.

    ``changes`` is what was written that is not of one table: schemas, their grants, bindings of
    workspaces. ``problems`` are errors of a whole catalog. ``reads`` and ``writes`` count requests.
    """

    seconds: float
    tables: tuple[RegisteredTable, ...]
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[Failure, ...] = ()
    reads: int = 0
    writes: int = 0
    unrecorded: Failure | None = None

    @property
    def exit_code(self) -> int:
        """0: all is registered; 3: no catalog can be reached; 1: something failed, or it could not
        be recorded.
        """
        errors = [*self.problems, *(table.error for table in self.tables)]
        return exit_code(errors, self.unrecorded)

    def _row(self, item: RegisteredTable) -> Mapping[str, Any]:
        return {"table": item.name, "catalog": item.host, **asdict(item), "name": "", "host": ""}

    def _summary(self) -> Iterable[str]:
        return [*super()._summary(), f"{count(self.reads, 'read')}, {count(self.writes, 'write')}"]

    def _messages(self) -> Iterator[str]:
        yield from self.changes
        yield from super()._messages()
