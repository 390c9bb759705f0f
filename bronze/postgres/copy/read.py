"""Slices are read with connectorx, and its rows become typed columns.

This is the only place where connectorx is called. What it raises, panics included, leaves it as
one of our errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

import connectorx
import numpy as np
import polars as pl
import psycopg
import pyarrow as pa
from psycopg import errors as pg

from bronze import portion
from bronze.errors import (
    ConfigError,
    Mismatch,
    SourceBusy,
    SourceError,
    SourceUnreachable,
    TableRefused,
)
from bronze.model.columns import Column, Kind
from bronze.model.locations import Origin
from bronze.postgres.connection import relay
from bronze.postgres.connection.connect import (
    CANCELED,
    PATH_HINT,
    connect,
    contested,
    explain,
    forget,
    located,
    nameless,
    through,
)

# What follows the reading takes several times the memory of the rows themselves, so it is given
# few at a time: a quarter less memory in all, at no cost in time (measured).
_PART_VALUES = 300_000
_PART_BYTES = 8 * 2**20

_QUOTED = re.compile(r"""\s*(?:"[^"]*"|'[^']*')""")
_PASSED_ON = ("application_name", "connect_timeout", "options")
_CUT = ("closed", "reset", "eof", "terminating", "broken pipe", "timed out", "connecting")
_TIMED_OUT = {pg.QueryCanceled: "statement timeout", pg.LockNotAvailable: "lock timeout"}
_FULL = ("too many clients", "remaining connection slots", "too many connections")


def rows(
    origin: Origin,
    session: Sequence[str],
    query: str,
    where: Sequence[str],
    columns: Sequence[Column],
    table: str,
    guarded: bool = False,
) -> Iterator[tuple[pl.DataFrame, pl.Series]]:
    """The rows under their target names, a few megabytes at a time, and their rejected values.

    Rejected values are as in `bronze.postgres.statement`.

    Args:
        origin: the database.
        session: the statements that join the snapshot.
        query: the SELECT of `bronze.postgres.statement.select`.
        where: the slices' conditions.
        columns: what the query selects.
        table: the table's label, for errors.
        guarded: whether what PostgreSQL says of a row is told to nobody, as it may hold values.

    Raises:
        SourceError: and its kinds; a `TableRefused` where only this table is at fault.
    """
    most = portion.rows(_PART_VALUES, len(columns) + 1)
    with _reachable(origin) as url:
        for condition in where:
            try:
                raw = _fetch(origin, url, session, f"{query} WHERE {condition}", table, guarded)
            except _Untranslated as error:
                raise _located(origin, session, query, condition, columns, error) from None
            parts = list(portion.of(raw, most, _PART_BYTES))[::-1]
            del raw
            while parts:
                yield _typed(parts.pop(), columns, table)


def reachable(origin: Origin) -> None:
    """Makes sure that the parallel reads can reach a source as the config says.

    Raises:
        ConfigError: a connection parameter cannot be kept by them.
        SourceError
    """
    with _reachable(origin):
        pass


@contextmanager
def _reachable(origin: Origin) -> Iterator[str]:
    given = dict(located(origin))
    if not through(origin):
        # connectorx asks for the query's types before it pins, and a pooler takes no options.
        given["options"] = f"{given.get('options', '')} -c search_path=".strip()
    if relay.needed(given):
        with relay.relay(given) as relayed:
            yield _url(relayed)
    else:
        yield _url(given)


def _url(given: Mapping[str, str]) -> str:
    if given.get("require_auth"):
        raise ConfigError(
            "The connection parameter require_auth cannot be kept by the parallel reads.",
            hint="Leave it out; sslmode=verify-full proves the server's identity.",
        )
    host = given.get("hostaddr") or given["host"]
    place = f"[{host}]" if ":" in host and not host.startswith("/") else quote(host, safe="")
    login = quote(given["user"], safe="")
    if "password" in given:
        login += f":{quote(given['password'], safe='')}"
    options = {name: given[name] for name in _PASSED_ON if name in given}
    options["sslmode"] = {"allow": "prefer"}.get(
        given.get("sslmode", ""), given.get("sslmode", "prefer")
    )
    tail = "&".join(f"{name}={quote(value, safe='')}" for name, value in options.items())
    return f"postgresql://{login}@{place}:{given['port']}/{quote(given['dbname'], safe='')}?{tail}"


def _fetch(
    origin: Origin, url: str, session: Sequence[str], query: str, table: str, guarded: bool
) -> pa.Table:
    try:
        return connectorx.read_sql(
            url, query, return_type="arrow", protocol="binary", pre_execution_query=list(session)
        )
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        forget(origin)
        raise _why(origin, session, query, table, error, guarded) from None


def _why(
    origin: Origin,
    session: Sequence[str],
    query: str,
    table: str,
    error: BaseException,
    guarded: bool,
) -> SourceError:
    """Our error for a failed read. connectorx gives no SQLSTATE, so PostgreSQL is asked again."""
    text = " ".join(str(error).split())
    low = text.lower()
    if any(word in low for word in _FULL):
        full = explain(psycopg.OperationalError(text), origin)
        return SourceBusy(full.message, hint=full.hint, table=table)
    if CANCELED in low:
        return contested(table)
    try:
        with connect(origin) as probe:
            for statement in (*session, f"EXPLAIN {query}"):
                probe.execute(statement)
            probe.execute("ROLLBACK")
    except psycopg.Error as known:
        mine = explain(known, origin, table)
        return mine if isinstance(mine, SourceError) else SourceError(str(mine), table=table)
    except SourceError as known:
        known.table = table
        return known
    for kind, words in _TIMED_OUT.items():
        if words in low:
            mine = explain(kind(text), origin, table)
            return mine if isinstance(mine, SourceError) else SourceError(str(mine), table=table)
    if any(word in low for word in _CUT):
        return SourceUnreachable(
            f"The connection to {origin.name} was cut while table {table} was read.",
            hint="It is retried while the server is there.",
            table=table,
        )
    if unknown := _UNKNOWN.search(text):
        return _Untranslated(unknown[1], table=table)
    if "does not exist" in low:
        return TableRefused(f"{nameless(table)}.", hint=PATH_HINT, table=table)
    said = "PostgreSQL refused a value of one of its rows" if guarded else _without_values(text)
    return TableRefused(
        f"Table {table} could not be read: {said}.",
        hint="If a type is at fault, read the column as text through a view.",
        table=table,
    )


_UNKNOWN = re.compile(r'in encoding "(\w+)" has no equivalent')


class _Untranslated(TableRefused):
    """A character that UTF-8 has not; the message is the encoding that has it."""


def _located(
    origin: Origin,
    session: Sequence[str],
    query: str,
    condition: str,
    columns: Sequence[Column],
    error: _Untranslated,
) -> TableRefused:
    """The error with the column and the row, by reading one after another."""
    rows = f"{query.rpartition(' AS rejected FROM ')[2]} WHERE {condition}"
    where = "one of its columns"
    for column in columns:
        if column.kind.name not in ("string", "array"):
            continue
        texts = f"SELECT convert_to(({column.text})::text, 'UTF8') IS NULL FROM {rows}"  # noqa: S608
        before = _read_before(origin, session, texts)
        if before is not None:
            where = f"column {column.name}"
            with suppress(psycopg.Error), connect(origin) as again:
                for statement in (*session, *_IN_ORDER):
                    again.execute(statement)
                which = f"SELECT ctid::text FROM {rows} OFFSET {before} LIMIT 1"  # noqa: S608
                where += f" of the row at ctid {again.execute(which.encode()).fetchone()[0]}"  # type: ignore[index]
            break
    return TableRefused(
        f"Table {error.table} could not be read: {where} has a character of {error.message} that"
        " UTF-8 has not.",
        hint="Mend the value in the source, or read the table through a view that leaves it out.",
        table=error.table,
    )


# Whoever reads twice is to find the rows in the same order.
_IN_ORDER = ("SET LOCAL max_parallel_workers_per_gather = 0",)


def _read_before(origin: Origin, session: Sequence[str], query: str) -> int | None:
    """How many rows were read before one that PostgreSQL cannot convert, None if there is none."""
    count = 0
    with connect(origin) as reader:
        for statement in (*session, *_IN_ORDER):
            reader.execute(statement)
        try:
            for _ in reader.cursor().stream(query.encode()):
                count += 1
        except pg.UntranslatableCharacter:
            return count
        except psycopg.Error:
            return None
    return None


def _without_values(text: str) -> str:
    # PostgreSQL quotes the offending value; it may be anybody's data.
    return _QUOTED.sub("", text.partition(': "')[0])[:300].rstrip(". ")


def _typed(raw: pa.Table, columns: Sequence[Column], table: str) -> tuple[pl.DataFrame, pl.Series]:
    if raw.num_columns != len(columns) + 1:
        raise Mismatch(
            f"Table {table} gave {raw.num_columns} columns instead of {len(columns) + 1}.",
            table=table,
        )
    found = [pl.Series(values) for values in raw.columns]
    series = [
        decoded(values, column.kind, column.wire).alias(column.target)
        for values, column in zip(found, columns, strict=False)
    ]
    rejected = found[-1].cast(pl.String).alias("rejected")
    if not series:
        return pl.DataFrame(height=len(rejected)), rejected
    return pl.DataFrame(series), rejected


_DTYPES: Mapping[str, Any] = {
    "short": pl.Int16,
    "int": pl.Int32,
    "long": pl.Int64,
    "float": pl.Float32,
    "double": pl.Float64,
    "boolean": pl.Boolean,
    "string": pl.String,
    "binary": pl.Binary,
    "date": pl.Date,
    "timestamp": pl.Datetime("us", "UTC"),
    "timestamp_ntz": pl.Datetime("us"),
}


def dtype(kind: Kind) -> Any:
    """The polars type of a kind."""
    if kind.name == "decimal":
        return pl.Decimal(kind.precision, kind.scale)
    if kind.name == "array":
        return pl.List(dtype(kind.of))
    return _DTYPES[kind.name]


def decoded(series: pl.Series, kind: Kind, wire: str) -> pl.Series:
    """Values as they travelled (see `bronze.model.columns.Wire`) as what they are."""
    if wire == "unscaled":
        return _scaled(series.cast(pl.Int64), kind)
    if wire == "texts":
        flat = series.list.explode(empty_as_null=False, keep_nulls=False)
        return regrouped(_parsed(flat, kind.of), series)
    return series.cast(dtype(kind))


def _scaled(series: pl.Series, kind: Kind) -> pl.Series:
    # The 128-bit integer of an Arrow decimal is the unscaled value: widening it loses nothing.
    halves = np.empty((len(series), 2), np.int64)
    halves[:, 0] = series.fill_null(0).to_numpy()
    halves[:, 1] = halves[:, 0] >> 63
    mask = pa.array(series.is_not_null().to_numpy()) if series.null_count() else None
    buffers = [mask.buffers()[1] if mask is not None else None, pa.py_buffer(halves)]
    decimal = pa.decimal128(kind.precision, kind.scale)
    return pl.Series(pa.Array.from_buffers(decimal, len(series), buffers))


def _parsed(texts: pl.Series, kind: Kind) -> pl.Series:
    if kind.name in ("date", "timestamp", "timestamp_ntz"):
        whole = texts.cast(pl.Int32 if kind.name == "date" else pl.Int64)
        return whole.cast(dtype(kind))
    if kind.name == "boolean":
        return texts == "true"
    if kind.name == "binary":
        return texts.str.decode("hex")
    return texts.cast(dtype(kind))


def regrouped(flat: pl.Series, like: pl.Series) -> pl.Series:
    """Elements, one after another, as lists as long as those of ``like``, null where it is."""
    lengths = like.list.len().fill_null(0).to_numpy().astype(np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    values = flat.to_arrow(compat_level=pl.CompatLevel.oldest())
    missing = pa.array(like.is_null().to_numpy()) if like.null_count() else None
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), values, mask=missing)
    return pl.Series(lists, dtype=pl.List(flat.dtype))
