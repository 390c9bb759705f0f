"""Erasure: the rows of a person leave a table, its older versions and its change data feed.

The files of the current version that hold such rows are written anew without them, in one commit.
Then everything else is deleted that the current version does not need: older data files, files of
the change data feed, and the entries of the log, whose statistics may hold keys. At last every
Parquet file that is left is read, and counted is what is still found.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import polars as pl
import psycopg
import pyarrow.parquet as pq
import tenacity
import uuid_utils
from psycopg import errors as pg

from bronze import drift
from bronze import subject as subjects
from bronze.books import anomalies, models, profiles, quality, rejected
from bronze.errors import BronzeError, ConfigError, TableRefused
from bronze.model import KEY_TEXT, DataFile, Place, Stored
from bronze.result import Failure
from bronze.settings import GOVERNANCE, Settings
from bronze.source import connect
from bronze.source.comparison import PLAIN, comparisons
from bronze.source.connect import explain
from bronze.source.statement import quoted
from bronze.subject import Held, Subject
from bronze.table import commit, expire, files, layout, log, store
from bronze.table.commit import Change
from bronze.table.expire import Expired
from bronze.table.log import State

_ROW_KEY, _EXAMPLES, _TARGET = "row_key", "examples", "target_table"
_BATCH, _TRAINED = "batch_id", "trained_timestamp"


@dataclass(frozen=True)
class Forgotten:
    """What was erased, and what is left.

    ``rows`` left the current version of the table, ``records`` the tables of governance;
    ``files`` and ``entries`` of the log were deleted. Afterwards ``scanned`` files were read, and
    ``left`` rows found. ``unrecorded`` is why the audit log does not have it, if so.
    """

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
    unrecorded: Failure | None = None

    @property
    def exit_code(self) -> int:
        """0: nothing is left, and that is recorded; 1: otherwise."""
        return 1 if self.left or self.unrecorded else 0


def forget(
    settings: Settings, table: str, key: Mapping[str, str], *, ask: bool = True
) -> Forgotten:
    """Erases the rows whose columns have some values.

    What is left out of: backups and copies, versions that the object store keeps, what readers
    have read, and the source.

    Args:
        settings: the config.
        table: the Bronze table, or the source's.
        key: values of columns, as text.
        ask: whether to make sure that the source has no such row.

    Raises:
        ConfigError: there is no such table or column.
        TableRefused: the source still has such a row, which the next run would bring back.
        SourceError: it could not be asked; nothing was done.
        CommitConflict: others committed again and again.
        LakeError, LakeUnreachable
    """
    began = time.monotonic()
    if not key:
        raise ConfigError("Nobody is named.", hint='Name the rows: --key "customer_id=42"')
    mine = subjects.held(settings, table)
    whose = subjects.subject(mine, key)
    if ask:
        _gone(settings, mine, key)
    keys = _keys(mine, whose)
    # First the records: which rows they name is known only while older versions are there.
    records, more = _unrecorded(settings, mine, keys)
    version, rows = _removed(mine, whose)
    expired = expire.purge(mine.state.place, time.time())
    scanned, left = _scanned(mine, whose)
    left += _recorded(settings, mine, keys)
    return Forgotten(
        target=mine.name,
        version=version,
        rows=rows,
        records=records,
        files=expired.files + more.files,
        bytes=expired.bytes + more.bytes,
        entries=expired.entries + more.entries,
        scanned=scanned,
        left=left,
        seconds=time.monotonic() - began,
    )


def old_versions(settings: Settings, table: str) -> Forgotten:
    """Deletes all that the current version of a table does not need; if its columns are protected,
    or were, also what was recorded of rows that are older than all of its rows.

    Raises:
        ConfigError: there is no such table.
        CommitConflict: others committed again and again.
        LakeError, LakeUnreachable
    """
    began = time.monotonic()
    mine = subjects.held(settings, table)
    records, more = 0, Expired()
    if drift.PROTECT in mine.state.properties:
        records, more = _outdated(settings, mine)
    expired = expire.purge(mine.state.place, time.time()) + more
    return Forgotten(
        target=mine.name,
        version=mine.state.version,
        records=records,
        files=expired.files,
        bytes=expired.bytes,
        entries=expired.entries,
        seconds=time.monotonic() - began,
    )


def _gone(settings: Settings, table: Held, key: Mapping[str, str]) -> None:
    """Makes sure that the source has no such row."""
    schema, _, name = table.label.partition(".")
    if table.source not in settings.source:
        raise ConfigError(
            f"The config has no source {table.source}, from which {table.name} is.",
            hint="If the rows are gone there: --without-source",
        )
    if KEY_TEXT in key:
        raise ConfigError(
            f"The source has no column {KEY_TEXT}.",
            hint="Name the columns of the key; or, if the rows are gone there: --without-source",
        )
    own = settings.table(table.source, schema, name)
    names = {target: source for source, target in own.rename.items()}
    origin = settings.origin(table.source)
    with connect.connect(origin) as connection:
        try:
            known = comparisons(connection, schema, name)
            there = [names.get(column, column) for column in key]
            where = " AND ".join(f"{quoted(c)} {known.get(c, PLAIN).equal} %s" for c in there)
            query = f"SELECT EXISTS (SELECT FROM {quoted(schema, name)} WHERE {where})"  # noqa: S608
            row: Any = connection.execute(query.encode(), list(key.values())).fetchone()
        except pg.UndefinedTable:
            return
        except psycopg.Error as error:
            raise explain(error, origin, table.label) from None
    if row[0]:
        raise TableRefused(
            f"The source still has such a row in {table.label}: the next run would bring it back.",
            hint="Delete it there first; then forget it here.",
            table=table.label,
        )


Keys = Sequence[Mapping[str, set[str]]]
"""Keys of rows: for each of their columns what its text may be."""


def _keys(table: Held, whose: Subject) -> Keys:
    """The keys of the rows, in whatever version of the table they are."""
    found: list[Mapping[str, set[str]]] = []
    if table.key and set(whose.columns) <= set(table.key):
        found.append(whose.texts)
    names = list(dict.fromkeys((*table.key, *whose.columns)))
    for path in _paths(table.state.place):
        parquet = pq.ParquetFile(store.reader(table.state.place, path), pre_buffer=False)
        present = [name for name in names if name in parquet.schema_arrow.names]
        # No row needed the key's text when the table was without it.
        if present != [n for n in names if n != KEY_TEXT or n in present]:
            continue
        for part in parquet.iter_batches(columns=present, use_threads=False):
            rows = pl.DataFrame(part)
            if len(present) < len(names):
                rows = rows.with_columns(pl.lit(None, pl.String).alias(KEY_TEXT))
            keys = rows.filter(whose.earlier(rows)).select(table.key).unique()
            found += [{n: {str(v)} for n, v in row.items()} for row in keys.iter_rows(named=True)]
    return found


def _scanned(table: Held, whose: Subject) -> tuple[int, int]:
    """How many Parquet files there are, and how many of the rows are still in them."""
    state, paths, rows = table.again().state, _paths(table.state.place), 0
    for path in paths:
        parquet = pq.ParquetFile(store.reader(state.place, path), pre_buffer=False)
        parts = files.parts(parquet, state.columns, whose.columns, None, _of_folders(path))
        rows += sum(pl.DataFrame(part).filter(whose.condition).height for _, part in parts)
    return len(paths), rows


def _of_folders(path: str) -> dict[str, str | None]:
    pairs = (folder.partition("=") for folder in path.split("/")[:-1] if "=" in folder)
    return {name: None if value.startswith("__HIVE") else value for name, _, value in pairs}


def _paths(place: Place) -> list[str]:
    """All data files and files of the change data feed that lie in a table's folder."""
    return [path for path in store.listing(place) if expire.is_data(path)]


@tenacity.retry(
    retry=tenacity.retry_if_exception(commit.lost_race),
    stop=tenacity.stop_after_attempt(8),
    wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5),
    reraise=True,
)
def _removed(table: Held, whose: Subject) -> tuple[int, int]:
    """Commits the table without the rows; its version, and how many they were."""
    now = table.again()
    return _committed(now.state, whose.condition, whose.columns)


def _committed(state: State, condition: pl.Expr, columns: Sequence[str]) -> tuple[int, int]:
    batch = str(uuid_utils.uuid7())
    old: list[Stored] = []
    new: list[DataFile] = []
    rows = 0
    try:
        for file in state.files:
            found = _found(state, file, condition, columns)
            if found:
                old.append(file)
                rows += found
                left = _left(state, file, condition, batch)
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


def _found(state: State, file: Stored, condition: pl.Expr, columns: Sequence[str]) -> int:
    parquet = files.opened(state.place, file)
    parts = files.parts(parquet, state.columns, list(columns), None, dict(file.partition))
    return sum(pl.DataFrame(part).filter(condition).height for _, part in parts)


def _left(state: State, file: Stored, condition: pl.Expr, batch: str) -> DataFile | None:
    """A file anew without some rows; None where it has no others."""
    parquet = files.opened(state.place, file)
    cluster = files.cluster_of(unquote(file.path))
    name = files.clustered(batch, *cluster) if cluster else batch
    stats = [column for column in layout.statistics(state) if column in dict(state.columns)]
    parts = files.parts(parquet, state.columns, None, None, dict(file.partition))
    kept = (pl.DataFrame(part).filter(~condition) for _, part in parts)
    return files.write(kept, state.place, name, stats, file.partition)


def _records(settings: Settings) -> Iterator[State]:
    """The tables of governance whose records name rows: one each, or a few as examples."""
    for name in store.folders(settings.place(GOVERNANCE, "")):
        state = log.read(settings.place(GOVERNANCE, name))
        if state and _TARGET in dict(state.columns) and _named(state):
            yield state


def _named(state: State) -> str:
    """The column in which records name rows, "" where they do not."""
    return next((name for name in (_ROW_KEY, _EXAMPLES) if name in dict(state.columns)), "")


def _of(table: Held, keys: Keys, column: str) -> pl.Expr:
    """The condition that is true for records that name rows with some keys in a column."""

    def meant(text: str | None) -> bool:
        try:
            known = json.loads(text or "{}")
        except ValueError:
            return False
        # Protected columns of a key are left out of examples.
        return any(
            (named := key.keys() & one.keys()) and all(str(one[n]) in key[n] for n in named)
            for one in (known if isinstance(known, list) else [known])
            for key in keys
            if isinstance(one, dict)
        )

    return _about(table) & pl.col(column).map_elements(meant, pl.Boolean, skip_nulls=False)


def _about(table: Held) -> pl.Expr:
    """The condition that is true for records about a table."""
    return pl.col(_TARGET).is_in([table.name, table.name.rpartition(".")[2]])


def _unrecorded(settings: Settings, table: Held, keys: Keys) -> tuple[int, Expired]:
    """Erases the records of rows with some keys."""
    rows, done = 0, Expired()
    for state in _records(settings):
        column = _named(state)
        found, more = _erased(state.place, _of(table, keys, column), [column, _TARGET])
        rows, done = rows + found, done + more
    return rows, done


def _outdated(settings: Settings, table: Held) -> tuple[int, Expired]:
    """Erases the records that are older than all rows of a table, and what was learned of them."""
    batches: set[str] = set()
    for file in table.state.files:
        parquet = files.opened(table.state.place, file)
        for _, part in files.parts(parquet, table.state.columns, [_BATCH]):
            batches |= {*pl.DataFrame(part)[_BATCH].drop_nulls().unique()}
    rows, done = 0, Expired()
    for book in (rejected, quality, anomalies, profiles, models):
        place = settings.place(GOVERNANCE, book.NAME)
        state = log.read(place)
        if state is None:
            continue
        column = _BATCH if _BATCH in dict(state.columns) else _TRAINED
        before = pl.lit(True)
        if batches:
            oldest = min(batches)
            before = pl.col(column) < (oldest if column == _BATCH else _moment(oldest))
        found, more = _erased(place, _about(table) & before, [column, _TARGET])
        rows, done = rows + found, done + more
    return rows, done


def _moment(batch: str) -> datetime:
    """When a batch began: the first 48 bits of a UUIDv7 are its time in milliseconds (RFC 9562)."""
    return datetime.fromtimestamp(int(batch.replace("-", "")[:12], 16) / 1000, UTC)


def _erased(place: Place, condition: pl.Expr, columns: Sequence[str]) -> tuple[int, Expired]:
    """Erases the records of a book for which a condition is true."""
    for attempt in tenacity.Retrying(
        retry=tenacity.retry_if_exception(commit.lost_race),
        stop=tenacity.stop_after_attempt(8),
        wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5),
        reraise=True,
    ):
        with attempt:
            state = log.read(place)
            rows = _committed(state, condition, columns)[1] if state else 0
    return rows, expire.purge(place, time.time()) if rows else Expired()


def _recorded(settings: Settings, table: Held, keys: Keys) -> int:
    """How many records of rows with some keys are left in files, whatever version they are of."""
    count = 0
    for state in _records(settings):
        column = _named(state)
        for path in _paths(state.place):
            parquet = pq.ParquetFile(store.reader(state.place, path), pre_buffer=False)
            for _, part in files.parts(parquet, state.columns, [column, _TARGET]):
                count += pl.DataFrame(part).filter(_of(table, keys, column)).height
    return count
