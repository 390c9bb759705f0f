"""Erasure: the rows of a person leave a table, its older versions and its change data feed.

First every Parquet file in the table's folder is searched for the rows, and the tables of
governance for records of them: where neither has any, nothing is done. The files of the current
version that hold such rows are written anew without them, in one commit. Then everything else is
deleted that the current version does not need: older data files, files of the change data feed,
and the entries of the log, whose statistics may hold keys. At last every file that is left is read
again, and counted is what is still found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import ClassVar
from urllib.parse import unquote

import polars as pl
import uuid_utils

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import commit, files, log, properties
from bronze.delta.commit import Change
from bronze.delta.folder import Folder
from bronze.delta.layout import optimize, vacuum
from bronze.delta.layout.vacuum import Expired
from bronze.delta.log import State
from bronze.errors import BronzeError, ConfigError, LakeError, TableRefused
from bronze.governance.tables import anomalies, models, profiles, quality, rejected_values
from bronze.model.files import StoredFile, WrittenFile
from bronze.model.locations import Place
from bronze.model.results import Failure, Shown
from bronze.protection import governance_records, lake_table, source_rows
from bronze.protection import subject as subjects
from bronze.protection.governance_records import About, Person, Seen
from bronze.protection.lake_table import BATCH, ProtectedTable
from bronze.protection.source_rows import Original
from bronze.protection.subject import Subject, Verdict
from bronze.tables import evolution

_TRAINED = "trained_timestamp"
Among = Callable[[pl.DataFrame], pl.Series]
"""Tells which rows of a frame are meant."""


@dataclass(frozen=True)
class Evidence:
    """What was looked at, and what was found: ``files`` of the table's with ``rows``, of which
    ``found`` are the person's, and ``records`` of governance, of which ``told`` tell of them.

    ``doubtful`` rows and records have what may be theirs or another one's; ``unreadable`` files,
    which no version names, are no Parquet, as their writing was broken off.
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

    ``rows`` left the current version of the table, ``records`` the tables of governance;
    ``files`` and ``entries`` of the log were deleted. Afterwards ``scanned`` files were read, and
    ``left`` rows and records found. ``source`` is who said that the row is gone there, ``before``
    and ``after`` what was looked at. ``unrecorded`` is why the audit log does not have it, if so.
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
        """Whether there was anything to erase; so it is where older versions were all."""
        return self.before is None or bool(self.before.found or self.before.told)

    @property
    def doubtful(self) -> int:
        """How many rows and records are left that may be theirs, or another one's."""
        looked = (self.after if self.is_found else self.before) or Evidence()
        return looked.doubtful

    @property
    def exit_code(self) -> int:
        """0: nothing is left, and that is recorded; 1: otherwise, or nothing was found."""
        open_ends = self.left or self.doubtful or self.unrecorded
        return 1 if open_ends or not self.is_found else 0

    def _summary(self) -> Iterable[str]:
        return [
            self.target,
            f"{self.rows} rows and {self.records} records erased",
            f"{self.left} left",
        ]


def forget(
    settings: Settings, table: str, key: Mapping[str, str], *, ask: bool = True
) -> ErasureResult:
    """Erases the rows whose columns have some values.

    What is left out of: backups and copies, versions that the object store keeps, what readers
    have read, and the source.

    Args:
        settings: the config.
        table: the Bronze table, or the source's.
        key: values of columns, as text; PostgreSQL reads it by the columns' types. Who does not
            ask the source gives it as the Bronze table has it.
        ask: whether to make sure that the source has no such row.

    Raises:
        ConfigError: there is no such table or column.
        TableRefused: the source still has such a row, which the next run would bring back; or the
            table that the Bronze table was loaded from is not there to be asked.
        SourceError: it could not be asked; nothing was done.
        CommitConflict: others committed again and again.
        LakeError, LakeUnreachable
    """
    began = time.monotonic()
    if not key:
        raise ConfigError("Nobody is named.", hint='Name the rows: --key "customer_id=42"')
    mine = lake_table.protected_table(settings, table)
    about = governance_records.about(settings, mine)
    whose, asked, notes = _selected_rows(settings, mine, key, about, ask)
    person, before = _search_versions(settings, mine, whose, about)
    done = ErasureResult(mine.name, mine.state.version, source=asked, before=before, notes=notes)
    if not done.is_found:
        notes = (*notes, *_open_ends(mine, before))
        return replace(done, notes=notes, seconds=time.monotonic() - began)
    # First the records: which rows they name is known only while older versions are there.
    records, more = _unrecorded(settings, person, about)
    version, rows = _rewrite_without(mine, whose)
    expired = vacuum.purge(mine.state.place, time.time()) + more
    after = _proof(settings, mine, person, about)
    return replace(
        done,
        version=version,
        rows=rows,
        records=records,
        files=expired.files,
        bytes=expired.bytes,
        entries=expired.entries,
        scanned=after.files,
        left=after.found + after.told,
        after=after,
        notes=(*notes, *_open_ends(mine, after)),
        seconds=time.monotonic() - began,
    )


def purge_history(settings: Settings, table: str) -> ErasureResult:
    """Deletes all that the current version of a table does not need; if its columns are protected,
    or were, also what was recorded of rows that are older than all of its rows.

    Raises:
        ConfigError: there is no such table.
        CommitConflict: others committed again and again.
        LakeError, LakeUnreachable
    """
    began = time.monotonic()
    mine = lake_table.protected_table(settings, table)
    records, more = 0, Expired()
    if properties.PROTECT in mine.state.properties:
        records, more = _outdated(settings, mine)
    expired = vacuum.purge(mine.state.place, time.time()) + more
    return ErasureResult(
        target=mine.name,
        version=mine.state.version,
        records=records,
        files=expired.files,
        bytes=expired.bytes,
        entries=expired.entries,
        seconds=time.monotonic() - began,
    )


def _selected_rows(
    settings: Settings, table: ProtectedTable, key: Mapping[str, str], about: About, ask: bool
) -> tuple[Subject, SourceAnswer | None, tuple[str, ...]]:
    """The rows that are meant, who said that the source has none, and what there is to say."""
    with ExitStack() as stack:
        origin = None
        if ask:
            origin = stack.enter_context(
                source_rows.source_table(settings, table.name, table.state)
            )
        heads = {
            evolution.former_names(table.state.properties, name)[0]: t for name, t in key.items()
        }

        def spelled(name: str) -> Iterator[pl.Series]:
            yield from _stored_values(table, name)
            yield from governance_records.texts(settings, about, [name])

        whose = subjects.subject(table, key, origin, spelled)
        if origin is None:
            return whose, None, ()
        count = origin.rows(heads)
        asked = SourceAnswer(origin.relation.label, origin.relation.oid, count)
    if count:
        raise TableRefused(
            f"The source still has such a row in {asked.table}: the next run would bring it back.",
            hint="Delete it there first; then forget it here.",
            table=asked.table,
        )
    return whose, asked, tuple(_caveats(table, origin, heads))


def _caveats(table: ProtectedTable, origin: Original, names: Mapping[str, str]) -> Iterator[str]:
    for name in names:
        if name not in origin.columns:
            yield f"the source has no column {name} any more, and was asked without it"
        elif table.protected(name) and not origin.columns[name].exact:
            yield (
                f"column {name} is protected: its values were looked for as they were given, and as"
                " PostgreSQL writes that; other spellings that its type takes for equal are not"
                " found"
            )


def _open_ends(table: ProtectedTable, found: Evidence) -> Iterator[str]:
    """What cannot be answered by what was found."""
    if found.unreadable:
        yield (
            f"{found.unreadable} files that no version names are no Parquet, as their writing was"
            " broken off or has not ended: nothing can be read of them, and a day after it they are"
            " deleted"
        )
    if found.doubtful:
        yield (
            f"{found.doubtful} rows or records may be theirs, or another one's: they are of a time"
            " when a column was protected otherwise, or had another name that is used for something"
            f" else now. `bronze forget {table.name} --old-versions` deletes those that are not of"
            " the current version; name the others by another column"
        )


def _stored_values(table: ProtectedTable, name: str) -> Iterator[pl.Series]:
    """What a column has in all files of a table, each value once in a part."""
    for _, part in Folder(table.state).rows([name]):
        if name in part.columns:
            values = part[name].drop_nulls()
            yield values if isinstance(values.dtype, pl.List) else values.unique()


def _search_versions(
    settings: Settings, table: ProtectedTable, whose: Subject, about: About
) -> tuple[Person, Evidence]:
    """A person's rows in all files of a table, of whatever version, and what tells of them.

    Raises:
        LakeError: a file that a version names is not there, or cannot be read.
    """
    folder = Folder(table.state)
    if folder.lost:
        raise LakeError(
            f"The file {folder.lost[0]} of {table.name} is not there: nobody knows what is in it.",
            hint="`bronze verify --repair` mends the table; then forget.",
        )
    targets = dict(settings.table(table.source, *table.original).rename)
    seen = Seen(table, governance_records.records_of(settings, about, targets))
    looked = _looked(folder, whose, seen)
    person = Person(whose, seen, governance_records.alone(table, seen, whose), targets)
    return person, _count_records(settings, person, about, looked)


def _looked(folder: Folder, whose: Subject, seen: Seen | None = None) -> Evidence:
    """What the files of a table have of a person; ``seen`` takes in their rows."""
    rows = found = doubtful = 0
    for path in folder.paths:
        mine = 0
        for part in folder.parts(path, whose.columns):
            sure, possible = whose.verdict(part, folder.is_current(path))
            rows, mine = rows + part.height, mine + int(sure.sum())
            doubtful += int((possible & ~sure).sum())
        found += mine
        if mine and seen:
            for part in folder.parts(path, [*whose.columns, *seen.columns]):
                seen.add(part.filter(whose.among(part, folder.is_current(path))))
    files = len(folder.paths) - len(folder.unreadable)
    return Evidence(files, rows, found, doubtful=doubtful, unreadable=len(folder.unreadable))


def _count_records(settings: Settings, person: Person, about: About, looked: Evidence) -> Evidence:
    """What was looked at, with the records in all files of governance, of whatever version."""
    records = told = doubtful = unreadable = 0
    for state, columns in governance_records.books(settings):
        folder = Folder(state)
        for _, part in folder.rows(columns):
            sure, possible = _verdict(person, about, part)
            records, told = records + part.height, told + int(sure.sum())
            doubtful += int((possible & ~sure).sum())
        unreadable += len(folder.unreadable)
    return replace(
        looked,
        records=records,
        told=told,
        doubtful=looked.doubtful + doubtful,
        unreadable=looked.unreadable + unreadable,
    )


def _verdict(person: Person, about: About, records: pl.DataFrame) -> Verdict:
    """Which records are about a table and tell of a person, and which may do so."""
    mine = about.among(records)
    nothing = pl.repeat(False, records.height, dtype=pl.Boolean, eager=True)
    if not mine.any():
        return nothing, nothing
    where = mine.arg_true()
    sure, possible = person.verdict(records.filter(mine))
    return nothing.clone().scatter(where, sure), nothing.clone().scatter(where, possible)


def _proof(settings: Settings, table: ProtectedTable, person: Person, about: About) -> Evidence:
    """What is in the files that are left."""
    looked = _looked(Folder(table.again().state), person.subject)
    return _count_records(settings, person, about, looked)


@commit.retried
def _rewrite_without(table: ProtectedTable, whose: Subject) -> tuple[int, int]:
    """Commits the table without the rows; its version, and how many they were."""
    return _committed(table.again().state, whose.among, whose.columns)


def _committed(state: State, among: Among, columns: Sequence[str]) -> tuple[int, int]:
    batch = str(uuid_utils.uuid7())
    old: list[StoredFile] = []
    new: list[WrittenFile] = []
    rows = 0
    try:
        for file in state.files:
            found = _count_in_file(state, file, among, columns)
            if found:
                old.append(file)
                rows += found
                left = _rewritten_file(state, file, among, batch)
                new += [left] if left else []
        if not old:
            return state.version, 0
        change = Change("DELETE", new, old, is_data=False)
        return commit.commit(state.place, state, change, {"batch_id": batch, "erased": rows}), rows
    except BaseException:
        # Where no answer came, the commit may stand all the same.
        with suppress(BronzeError):
            commit.discard(state.place, batch)
        raise


def _count_in_file(state: State, file: StoredFile, among: Among, columns: Sequence[str]) -> int:
    parquet = files.opened(state.place, file)
    parts = files.parts(parquet, state.columns, list(columns), None, dict(file.partition))
    return sum(int(among(pl.DataFrame(part)).sum()) for _, part in parts)


def _rewritten_file(state: State, file: StoredFile, among: Among, batch: str) -> WrittenFile | None:
    """A file anew without some rows; None where it has no others."""
    parquet = files.opened(state.place, file)
    cluster = files.cluster_of(unquote(file.path))
    name = files.clustered(batch, *cluster) if cluster else batch
    stats = [column for column in optimize.statistics(state) if column in dict(state.columns)]
    parts = files.parts(parquet, state.columns, None, None, dict(file.partition))
    frames = (pl.DataFrame(part) for _, part in parts)
    kept = (frame.filter(~among(frame)) for frame in frames)
    return files.write(kept, state.place, name, stats, file.partition)


def _unrecorded(settings: Settings, person: Person, about: About) -> tuple[int, Expired]:
    """Erases the records that tell of a person."""
    rows, done = 0, Expired()
    for state, columns in governance_records.books(settings):
        among = lambda records: _verdict(person, about, records)[0]  # noqa: E731
        found, more = _erased(state.place, among, columns)
        rows, done = rows + found, done + more
    return rows, done


def _outdated(settings: Settings, table: ProtectedTable) -> tuple[int, Expired]:
    """Erases the records that are older than all rows of a table, and what was learned of them."""
    batches = lake_table.batches(table.state)
    rows, done = 0, Expired()
    about = governance_records.about(settings, table)
    for book in (rejected_values, quality, anomalies, profiles, models):
        place = settings.place(GOVERNANCE, book.NAME)
        state = log.read(place)
        if state is None:
            continue
        column = BATCH if BATCH in dict(state.columns) else _TRAINED
        found, more = _erased(
            place, _older(about, column, batches), [column, *governance_records.ABOUT]
        )
        rows, done = rows + found, done + more
    return rows, done


def _moment(batch: str) -> datetime:
    """When a batch began: the first 48 bits of a UUIDv7 are its time in milliseconds (RFC 9562)."""
    return datetime.fromtimestamp(int(batch.replace("-", "")[:12], 16) / 1000, UTC)


def _older(about: About, column: str, batches: set[str]) -> Among:
    """Which records are about a table, and older than all of some batches."""

    def among(records: pl.DataFrame) -> pl.Series:
        mine = about.among(records)
        if not batches:
            return mine
        oldest = min(batches)
        since = oldest if column == BATCH else _moment(oldest)
        return mine & (records[column] < since).fill_null(False)

    return among


def _erased(place: Place, among: Among, columns: Sequence[str]) -> tuple[int, Expired]:
    """Erases the records of a book that are meant."""
    for attempt in commit.attempts():
        with attempt:
            state = log.read(place)
            rows = _committed(state, among, columns)[1] if state else 0
    return rows, vacuum.purge(place, time.time()) if rows else Expired()
