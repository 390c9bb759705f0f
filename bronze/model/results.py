"""The results of commands, as frozen values; `bronze.cli` prints them."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal

from bronze import html_table
from bronze.printable import count

Status = Literal["landed", "unchanged", "failed", "stopped"]

EXIT_CODES: Mapping[str, int] = {
    "ConfigError": 2,
    "SnapshotRefused": 2,
    "SecretsUnreachable": 3,
    "SourceUnreachable": 3,
    "SourceBusy": 3,
    "SourceRefused": 3,
    "SourceRewound": 3,
    "SnapshotLost": 3,
    "LakeUnreachable": 3,
    "CatalogUnreachable": 3,
    "EngineLost": 3,
    "Stopped": 130,
}
"""What a command exits with after an error of a kind; 1 after all others."""


@dataclass(frozen=True)
class Failure:
    """The error of a table or a command, as a value."""

    kind: str
    message: str
    hint: str
    sqlstate: str = ""


def exit_code(errors: Iterable[Failure | None], unrecorded: Failure | None = None) -> int:
    """The exit code of a command, by the error of each table (None where there was none).

    0: no table failed, and what was done is recorded; 130: the command was stopped before its end;
    3: each table failed because the source or the lake cannot be reached; 1: otherwise.
    """
    codes = {EXIT_CODES.get(error.kind, 1) if error else 0 for error in errors}
    if EXIT_CODES["Stopped"] in codes:
        return EXIT_CODES["Stopped"]
    if codes <= {0}:
        return 1 if unrecorded else 0
    return 3 if codes == {3} else 1


class Shown:
    """How results show themselves: in one line, and in a notebook as a table of their items."""

    _items: ClassVar[str] = "tables"
    """The field whose values are the rows of the table; "": the result is its only row."""

    def raise_for_status(self) -> None:
        """Does nothing if all went well.

        Raises:
            BronzeError: the ``exit_code`` is not 0. It is the error's class of the failures, if all
                have the same one.
        """
        code: int = getattr(self, "exit_code")  # noqa: B009 - a property of each result
        if not code:
            return
        # That module is made of the values of this one.
        errors = importlib.import_module("bronze.errors")
        failures = self._failures()
        kinds = {failure.kind for _, failure in failures}
        named = kinds.pop() if len(kinds) == 1 else self._kind_without_failure
        error = getattr(errors, named) if hasattr(errors, named) else errors.BronzeError
        sentences = dict.fromkeys(
            f"{name}: {failure.message}"
            if name and name not in failure.message
            else failure.message
            for name, failure in failures
        )
        hints = dict.fromkeys(failure.hint for _, failure in failures if failure.hint)
        raise error(" ".join(sentences) or f"Not all went well: {self!r}.", hint=" ".join(hints))

    _kind_without_failure: ClassVar[str] = "BronzeError"
    """The class of the error where none of the parts has failed."""

    def _failures(self) -> list[tuple[str, Failure]]:
        """Each failure, with the name of the item that has failed, or ""."""
        items: Sequence[Any] = getattr(self, self._items) if self._items else ()
        named = [
            (getattr(item, "table", "") or getattr(item, "target", ""), failure)
            for item in items
            for failure in (getattr(item, "error", None), getattr(item, "problem", None))
        ]
        known = [failure for _, failure in named]
        others = [*getattr(self, "missing", ()), *getattr(self, "problems", ())]
        # The problems of a check are those of its tables and the others.
        named += [("", failure) for failure in others if failure not in known]
        named += [
            ("Not recorded", getattr(self, "unrecorded", None)),
            ("The lake was not copied", getattr(self, "copy_error", None)),
        ]
        return [
            (name, failure)
            for name, failure in dict.fromkeys(named)
            if isinstance(failure, Failure)
        ]

    def _row(self, item: Any) -> Mapping[str, Any]:
        """The cells of an item, by column."""
        return asdict(item)

    def _summary(self) -> Iterable[str]:
        """What the line says, besides the exit code."""
        items: Sequence[Any] = getattr(self, self._items) if self._items else ()
        states = Counter(
            getattr(item, "status", "") or getattr(item, "state", "") for item in items
        )
        counts = [f"{number:,} {state}" for state, number in states.items() if state]
        return [count(len(items), self._items.removesuffix("s")), *counts] if items else []

    def __repr__(self) -> str:
        code: int = getattr(self, "exit_code")  # noqa: B009 - a property of each result
        return f"<{type(self).__name__}: {', '.join([*self._summary(), f'exit code {code}'])}>"

    def _repr_html_(self) -> str:
        if self._items:
            items: Sequence[Any] = getattr(self, self._items)
            rows = [self._row(item) for item in items[: html_table.MOST_ROWS]]
            table = html_table.items_table(rows)
        else:
            table = html_table.facts_table(self._row(self))
        code: int = getattr(self, "exit_code")  # noqa: B009 - a property of each result
        head = html_table.heading(type(self).__name__, self._summary(), code)
        return f"<div>{head}{table}{html_table.messages(dict.fromkeys(self._messages()))}</div>"

    def _messages(self) -> Iterator[str]:
        """What no row of the table says."""
        items: Sequence[Any] = getattr(self, self._items) if self._items else ()
        hidden = len(items) - html_table.MOST_ROWS
        if hidden > 0:
            yield f"and {hidden:,} more {self._items}"
        for name, failure in self._failures():
            named = name and name not in failure.message
            yield f"{f'{name}: ' if named else ''}{failure.message} {failure.hint}".rstrip()
        for problem in getattr(self, "problems", ()):
            if not isinstance(problem, Failure):
                yield str(problem)
        yield from getattr(self, "notes", ())
        yield from _notes_of(items)


def _notes_of(items: Iterable[Any]) -> Iterator[str]:
    """The notes on items: one that several have names them all."""
    noted: dict[str, list[str]] = {}
    for item in items:
        for note in getattr(item, "notes", ()):
            noted.setdefault(note, []).append(getattr(item, "table", ""))
    for note, names in noted.items():
        yield f"{', '.join(names)}: {note}"


@dataclass(frozen=True)
class TableResult:
    """The result of a run for one table.

    ``bytes`` is the size of the ``files`` that it wrote, ``anomalies`` their number among the rows
    that it wrote. ``score`` is the average score of the rows that were read, None if there were
    none; ``quarantined`` of them are below the threshold. ``schema_changes`` are the changes of the
    table's columns, ``notes`` are other messages for the user. ``as_of`` is the moment of the
    snapshot whose state the table has now, None where it failed; ``stages`` are the seconds of the
    parts of its work.
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
    as_of: datetime | None = None
    stages: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LateRecord:
    """A table of an earlier run that died before it wrote its record; this run has written it."""

    batch_id: str
    table: str
    target: str
    version: int | None
    schema_changes: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class RunResult(Shown):
    """The result of a run. ``position`` is the source's WAL position (LSN) at the snapshot.

    ``late`` are tables of earlier runs whose records were missing, ``notes`` messages for the user.
    ``unrecorded`` is why this run could not write all of its records into the governance tables,
    ``copy_error`` why the lake could not be copied after it; the tables are committed nevertheless.
    """

    batch_id: str
    position: int
    seconds: float
    tables: tuple[TableResult, ...]
    late: tuple[LateRecord, ...] = ()
    notes: tuple[str, ...] = ()
    unrecorded: Failure | None = None
    copy_error: Failure | None = None

    @property
    def exit_code(self) -> int:
        """0: all tables were loaded; 3: none was, as the source or the lake cannot be reached;
        1: some tables failed, or a record could not be written, or the lake could not be copied.
        """
        return exit_code((table.error for table in self.tables), self.unrecorded or self.copy_error)


@dataclass(frozen=True, repr=False)
class StreamResult(Shown):
    """The result of a stream that has ended. ``position`` is the LSN up to which the changes of all
    tables are applied; ``rows_read`` of a table counts the changes that were received.
    """

    stream: str
    position: int
    seconds: float
    batches: int
    transactions: int
    changes: int
    tables: tuple[TableResult, ...]
    late: tuple[LateRecord, ...] = ()
    notes: tuple[str, ...] = ()
    unrecorded: Failure | None = None

    @property
    def exit_code(self) -> int:
        """0: success; 1: some tables are no longer streamed, or a record could not be written."""
        return exit_code((table.error for table in self.tables), self.unrecorded)

    def _summary(self) -> Iterable[str]:
        changes = f"{count(self.changes, 'change')} in {count(self.transactions, 'transaction')}"
        return [f"stream {self.stream}", *super()._summary(), changes]


@dataclass(frozen=True)
class MaintainedTable:
    """The result of maintaining one table. ``version`` is that of the optimize, None if there was
    nothing to optimize; ``rewritten`` and ``expired_bytes`` are in bytes; ``upgraded`` says that
    the features of its protocol are named now.
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
    upgraded: bool = False


@dataclass(frozen=True, repr=False)
class MaintainResult(Shown):
    """The result of ``bronze maintain``."""

    seconds: float
    tables: tuple[MaintainedTable, ...]
    unrecorded: Failure | None = None

    @property
    def exit_code(self) -> int:
        """0: success; 1: some tables failed, or a record could not be written."""
        return exit_code((table.error for table in self.tables), self.unrecorded)
